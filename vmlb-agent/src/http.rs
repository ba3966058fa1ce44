//! The agent's HTTP side: `/healthz` and `/livez`, the Services' `healthCheckNodePort`s, and `/metrics`. It has a thread
//! of its own, so that a probe is answered while the loop writes maps, and also when the loop stands still. Nothing that
//! comes in is trusted: a bounded number of connections, each with one request, little memory and a time limit.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::object::Name;
use crate::settings;

mod address;
mod answer;
mod listener;

pub use address::ListenFlag;

use answer::Endpoint;

/// Where kube-proxy answers `/healthz` too: balancers of clouds are set to it.
pub const HEALTHZ: &str = "[::]:10256";
/// Where metrics are, for this node alone unless the flag says otherwise.
pub const METRICS: &str = "127.0.0.1:9475";

/// A thread that a scrape has used is given back after this time.
const IDLE: Duration = Duration::from_secs(1);

/// Flags about health checks and metrics.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub struct Flags {
    /// Where /healthz and /livez are answered. kube-proxy has the same port: beside it say off, or another port
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = HEALTHZ)]
    pub healthz_address: ListenFlag,
    /// Where /metrics is answered (Prometheus text)
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = METRICS)]
    pub metrics_address: ListenFlag,
    /// Health checks fail when a change has waited longer than this for the maps (ms, s, m)
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = settings::duration)]
    pub max_sync_delay: Duration,
    /// Services, and VMs and pods, that have metrics of their own; what is beyond is added up as "(others)"
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub metrics_detail: usize,
}

/// A port the agent listens on, or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    /// `health`, `metrics`, or the Service whose `healthCheckNodePort` it is.
    pub purpose: String,
    /// Address and port; absent: switched off.
    pub address: Option<SocketAddr>,
    /// Why nobody is answered there; it is tried again.
    pub error: Option<String>,
}

/// The state of every listener, shared between them and whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    states: Mutex<BTreeMap<String, ListenerState>>,
    revision: AtomicU64,
}

impl Board {
    /// All listeners, by purpose.
    #[must_use]
    pub fn states(&self) -> Vec<ListenerState> {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Raised with every change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.revision.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, ListenerState>)) {
        change(&mut self.0.states.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.revision.fetch_add(1, Ordering::Release);
    }

    fn set(&self, purpose: &str, address: Option<SocketAddr>, error: Option<String>) {
        let state = ListenerState { purpose: purpose.to_owned(), address, error };
        self.change(|states| drop(states.insert(purpose.to_owned(), state)));
    }

    fn remove(&self, purpose: &str) {
        self.change(|states| drop(states.remove(purpose)));
    }
}

/// Begins to answer; ends with the process. A port that is taken is tried again, with a warning.
///
/// # Errors
/// When there can be no thread.
pub fn start(flags: &Flags, health: Arc<Health>, metrics: Arc<Metrics>) -> anyhow::Result<Board> {
    allow_many_listeners();
    let board = Board::default();
    let shown = board.clone();
    let (healthz, metrics_at) = (flags.healthz_address, flags.metrics_address);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_keep_alive(IDLE)
        .build()
        .context("cannot answer health checks and metrics")?;
    let serve = move || {
        runtime.block_on(async {
            open(&board, "health", healthz, Endpoint::Health(health.clone()));
            open(&board, "metrics", metrics_at, Endpoint::Metrics(metrics));
            keep_checks(&board, &health).await;
        });
    };
    thread::Builder::new()
        .name("http".into())
        .spawn(serve)
        .context("no thread for health checks and metrics")?;
    Ok(shown)
}

/// Each Service of policy Local takes a descriptor and more while it is asked; the usual soft limit is 1,024.
fn allow_many_listeners() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!("the limit of open files stays: {error}");
    }
}

fn open(board: &Board, purpose: &str, flag: ListenFlag, endpoint: Endpoint) {
    match flag.0 {
        Some(address) => {
            tokio::spawn(listener::keep(board.clone(), purpose.to_owned(), address, endpoint));
        }
        None => board.set(purpose, None, None),
    }
}

/// Two Services with one port: whoever does not have it is shown with the reason.
fn show_shadowed(
    board: &Board,
    shown: &mut BTreeMap<Name, (u16, Name)>,
    shadowed: BTreeMap<Name, (u16, Name)>,
) {
    for name in shown.keys().filter(|name| !shadowed.contains_key(*name)) {
        board.remove(&name.to_string());
    }
    for (name, (port, owner)) in &shadowed {
        if shown.get(name) != shadowed.get(name) {
            let message =
                format!("the port belongs to Service {owner}; give one of them another healthCheckNodePort");
            tracing::warn!("{name}: nobody is answered at port {port}: {message}");
            let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port);
            board.set(&name.to_string(), Some(address), Some(message));
        }
    }
    *shown = shadowed;
}

/// Opens and closes the Services' ports as Services come and go.
async fn keep_checks(board: &Board, health: &Arc<Health>) {
    let mut open: BTreeMap<u16, (Name, JoinHandle<()>)> = BTreeMap::new();
    let mut shadowed = BTreeMap::new();
    loop {
        let wanted = health.check_ports();
        let gone: Vec<u16> = open
            .iter()
            .filter(|(port, (name, _))| wanted.get(port) != Some(name))
            .map(|(port, _)| *port)
            .collect();
        for port in gone {
            let Some((name, task)) = open.remove(&port) else { continue };
            task.abort();
            // The port is free only once the task is gone, and another Service may have it next.
            if let Err(error) = task.await
                && !error.is_cancelled()
            {
                tracing::error!("health checks of {name} had ended: {error}");
            }
            board.remove(&name.to_string());
        }
        show_shadowed(board, &mut shadowed, health.shadowed_checks());
        for (port, name) in wanted {
            open.entry(port).or_insert_with(|| {
                let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
                let endpoint = Endpoint::Service(health.clone(), name.clone());
                let task = tokio::spawn(listener::keep(board.clone(), name.to_string(), address, endpoint));
                (name, task)
            });
        }
        health.checks_changed().await;
    }
}
