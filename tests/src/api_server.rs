//! An API server by script: lists and watches over HTTPS with versions, pages, bookmarks and selectors as the real one
//! has them, and the faults that the real one has now and then. It holds what the test puts into it and nothing else.
//!
//! [`store`] is the versioned store, [`selector`] which objects a request wants, [`answer`] what it gets, [`fault`] how
//! that goes wrong, [`credentials`] the certificate, tokens and kubeconfig. [`objects`] are what tests put in, a
//! [`follower`] is the agent's control plane at the other end. [`suite`] holds what any API server does to it, also the
//! [`real`] one. What the operator's commands ask for besides ([`resource`]) is answered by [`write`](self::write): objects
//! of [`kubevirt`], and Services, whose [`endpoints`] follow where the script says so.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot, watch};
use vmlb_agent::object::{Kind, ObjectRef};

pub mod answer;
pub mod credentials;
pub mod endpoints;
pub mod fault;
pub mod follower;
pub mod kubevirt;
pub mod objects;
pub mod real;
pub mod resource;
pub mod selector;
pub mod store;
pub mod suite;
pub mod write;

use credentials::Credentials;
pub use fault::{Blow, Faults};
use store::Store;

/// What a client asked, for tests to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The kind that was listed or watched.
    pub kind: Kind,
    /// Whether it was a watch.
    pub is_watch: bool,
    /// The decoded query.
    pub query: Vec<(String, String)>,
}

/// A request as RBAC sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `get`, `list`, `watch`, `create`, `patch`, `delete`.
    pub verb: &'static str,
    /// API group, empty for the core.
    pub group: &'static str,
    /// The resource, in the plural.
    pub resource: &'static str,
}

/// What connections share.
pub(crate) struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    rights: Mutex<BTreeSet<Right>>,
    /// When the last page of a list was handed out.
    listed: Mutex<Option<Instant>>,
    /// The store's version.
    changed: watch::Sender<u64>,
    blows: broadcast::Sender<Blow>,
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_listed(&self) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Something was written: what follows from it, and everybody who watches is told.
    pub(crate) fn changed(&self) {
        if self.faults().makes_endpoints {
            endpoints::refresh(&mut self.store());
        }
        self.changed.send_replace(self.store().version());
    }

    fn note_right(&self, right: Right) {
        self.rights.lock().unwrap_or_else(PoisonError::into_inner).insert(right);
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    }
}

/// A server that answers; dropping it ends its connections.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The API server.
pub struct ApiServer {
    shared: Arc<Shared>,
    credentials: Credentials,
    address: SocketAddr,
    running: Option<Running>,
}

impl ApiServer {
    /// Starts an empty one on a free port of the loopback; its kubeconfig goes into `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_at(folder, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts an empty one at `address`.
    pub fn start_at(folder: &Path, address: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            rights: Mutex::default(),
            listed: Mutex::default(),
            changed: watch::Sender::new(0),
            blows: broadcast::Sender::new(64),
        });
        let credentials = Credentials::make(folder, address.ip())?;
        let mut server = Self { shared, credentials, address, running: None };
        server.resume()?;
        Ok(server)
    }

    /// The kubeconfig to reach it with.
    pub fn kubeconfig(&self) -> PathBuf {
        self.credentials.kubeconfig()
    }

    /// The file with the token that it accepts.
    pub fn token_file(&self) -> PathBuf {
        self.credentials.token_file()
    }

    /// Accepts only another token from now on, and writes it to the token file.
    pub fn rotate_token(&self, token: &str) -> Result<()> {
        self.shared.faults().token = token.to_owned();
        self.credentials.write_token(token)
    }

    /// Goes away: nobody listens, connections are cut.
    pub fn away(&mut self) {
        self.running = None;
    }

    /// Listens again, at the same address.
    pub fn resume(&mut self) -> Result<()> {
        self.running = None;
        let listener = bind(self.address)?;
        self.address = listener.local_addr()?;
        self.credentials.write_kubeconfig(self.address)?;
        let acceptor = self.credentials.acceptor()?;
        let shared = self.shared.clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, acceptor, shared) => {}
                    _ = stopped => {}
                }
            });
        })?;
        self.running = Some(Running { stop: Some(stop), thread: Some(thread) });
        Ok(())
    }

    /// Restarts it over a store that never heard of the present one; versions begin anew.
    pub fn replace(&mut self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        self.away();
        {
            let mut store = self.shared.store();
            *store = store.successor();
            for object in objects {
                store.put(object)?;
            }
            self.shared.changed.send_replace(store.version());
        }
        self.resume()
    }

    /// Creates or replaces an object; returns its version.
    pub fn put(&self, object: Value) -> Result<u64> {
        let version = self.shared.store().put(object)?;
        self.shared.changed();
        Ok(version)
    }

    /// Deletes an object.
    pub fn delete(&self, object: &ObjectRef) {
        let version = self.shared.store().delete(object);
        self.shared.changed.send_replace(version);
    }

    /// Deletes an object of any kind.
    pub fn remove(&self, kind: &'static str, namespace: &str, name: &str) {
        self.shared.store().remove(kind, namespace, name);
        self.shared.changed();
    }

    /// An object.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let stored = self.shared.store().find(kind, namespace, name)?;
        serde_json::from_str(&stored.text).ok()
    }

    /// Everything that was asked for since the last call, as RBAC sees it.
    pub fn take_rights(&self) -> BTreeSet<Right> {
        std::mem::take(&mut *self.shared.rights.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets everything but the present: watches from before, and pages of lists begun before, are gone.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// The objects, as a list without selectors would show them.
    pub fn objects(&self) -> Vec<Value> {
        self.shared.store().objects()
    }

    /// How it behaves from now on.
    pub fn behave(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults());
    }

    /// Does this to every watch that is open.
    pub fn strike(&self, blow: Blow) {
        let _watches = self.shared.blows.send(blow);
    }

    /// What was asked since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the last page of a list was handed out.
    pub fn listed(&self) -> Option<Instant> {
        *self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches that are open.
    pub fn watches(&self) -> usize {
        self.shared.blows.receiver_count()
    }
}

/// A listening socket whose address may have been in use a moment ago.
fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    // The standard library sets SO_REUSEADDR.
    for _ in 0..100 {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).with_context(|| format!("listening on {address}")),
        }
    }
    anyhow::bail!("{address} stays in use")
}

async fn serve(listener: std::net::TcpListener, acceptor: tokio_rustls::TlsAcceptor, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _unimportant = stream.set_nodelay(true);
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request| answer::answer(shared.clone(), request));
            // A client that goes away in mid-answer is no error here.
            let _ended = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
