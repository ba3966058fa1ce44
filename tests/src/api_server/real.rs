//! A real API server over a real etcd, from the folder that `KUBEBUILDER_ASSETS` names.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::Request;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use vmlb_agent::object::{Kind, ObjectRef};

use super::credentials::Credentials;
use super::suite::{Api, Hang};

const PATIENCE: Duration = Duration::from_secs(60);
/// A process that is killed when dropped.
struct Process(Child);

impl Process {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Both processes and who may ask them.
pub struct RealApi {
    assets: PathBuf,
    folder: PathBuf,
    etcd_ports: [u16; 2],
    address: SocketAddr,
    runtime: Runtime,
    client: Client,
    api: Option<Process>,
    etcd: Option<Process>,
}

/// The folder with `etcd` and `kube-apiserver`, or why there is none.
pub fn assets() -> Result<PathBuf, String> {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let folder = folder.ok_or("KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver")?;
    for program in ["etcd", "kube-apiserver"] {
        if !folder.join(program).is_file() {
            return Err(format!("{} holds no {program}", folder.display()));
        }
    }
    Ok(folder)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl RealApi {
    /// Starts both with an empty store; files go into `folder`.
    ///
    /// # Errors
    /// With the end of the log of what did not start.
    pub fn start(assets: &Path, folder: &Path) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let credentials = Credentials::make(folder, address.ip())?;
        credentials.write_kubeconfig(address)?;
        fs::write(folder.join("tokens.csv"), "first,vmlb,1\nmaster,admin,2,\"system:masters\"\n")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let admin = folder.join("admin");
        let text = fs::read_to_string(credentials.kubeconfig())?;
        let token = format!("tokenFile: '{}'", credentials.token_file().display());
        fs::write(&admin, text.replace(&token, "token: master"))?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(&admin)?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        let etcd_ports = [free_port()?, free_port()?];
        let (assets, folder) = (assets.to_owned(), folder.to_owned());
        let mut server = Self { assets, folder, etcd_ports, address, runtime, client, api: None, etcd: None };
        server.start_etcd()?;
        server.resume()?;
        server.furnish()?;
        Ok(server)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let [client, peer] = self.etcd_ports.map(|port| format!("http://127.0.0.1:{port}"));
        let data = self.folder.join("etcd").display().to_string();
        let arguments = [
            ("data-dir", data),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("default={peer}")),
        ];
        let arguments: Vec<String> =
            arguments.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        self.etcd =
            Some(Process::start(&self.assets.join("etcd"), &arguments, &self.folder.join("etcd.log"))?);
        self.wait("etcd", |server| server.etcd("/v3/kv/range", &json!({"key": "AA=="})).map(drop))
    }

    fn wait(&mut self, what: &str, mut is_there: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = is_there(self) {
            if start.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.folder.join(format!("{what}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("{what} is not there ({error:#}):\n{}", tail.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The agent's rights, and the namespace of the objects.
    fn furnish(&mut self) -> Result<()> {
        let rules = json!([
            {"apiGroups": [""], "resources": ["services", "nodes", "pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        ]);
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "vmlb"}, "rules": rules});
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "vmlb"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "vmlb"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "vmlb"}],
        });
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        self.ask("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role)?;
        self.ask("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding)?;
        self.ask("POST", "/api/v1/namespaces", &namespace).map(drop)
    }

    /// Asks the API server as its administrator.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let octets = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(octets)?;
        let text = self.runtime.block_on(self.client.request_text(request));
        let text = text.with_context(|| format!("{method} {path}"))?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Asks etcd's JSON gateway.
    fn etcd(&self, path: &str, body: &Value) -> Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.etcd_ports[0]))?;
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer of etcd")?;
        ensure!(head.contains(" 200 "), "etcd answers {answer}");
        Ok(serde_json::from_str(body)?)
    }
}

/// Where objects of a kind are, with and without a namespace.
fn path(kind: Kind, namespace: &str) -> String {
    let (root, plural) = match kind {
        Kind::Service => ("/api/v1", "services"),
        Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1", "endpointslices"),
        Kind::Node => ("/api/v1", "nodes"),
        Kind::Pod => ("/api/v1", "pods"),
        Kind::Vmi => ("/apis/kubevirt.io/v1", "virtualmachineinstances"),
        Kind::Migration => ("/apis/kubevirt.io/v1", "virtualmachineinstancemigrations"),
    };
    match namespace {
        "" => format!("{root}/{plural}"),
        namespace => format!("{root}/namespaces/{namespace}/{plural}"),
    }
}

impl Api for RealApi {
    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    fn put(&mut self, mut object: Value) -> Result<()> {
        let kind = object["kind"].as_str().and_then(Kind::from_name).context("a kind that is served")?;
        let word = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (all, name) = (path(kind, &word("namespace")), word("name"));
        let one = format!("{all}/{name}");
        let stored = match self.ask("GET", &one, &Value::Null) {
            Ok(old) => {
                object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("uid");
                }
                self.ask("PUT", &one, &object)?
            }
            Err(_) => self.ask("POST", &all, &object)?,
        };
        if object.get("status").is_some() {
            object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            self.ask("PUT", &format!("{one}/status"), &object)?;
        }
        Ok(())
    }

    fn delete(&mut self, object: &ObjectRef) -> Result<()> {
        let one = format!("{}/{}", path(object.kind, &object.name.namespace), object.name.name);
        let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        if self.ask("GET", &one, &Value::Null).is_ok() {
            self.ask("DELETE", &one, &now)?;
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for kind in Kind::ALL {
            let mut list = self.ask("GET", &path(kind, ""), &Value::Null)?;
            for mut object in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                object["kind"] = kind.name().into();
                object["apiVersion"] = kind.api_version().into();
                objects.push(object);
            }
        }
        Ok(objects)
    }

    fn away(&mut self) -> Result<()> {
        self.api = None;
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let arguments = [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.etcd_ports[0])),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", self.address.port().to_string()),
            ("tls-cert-file", file("ca.crt")),
            ("tls-private-key-file", file("tls.key")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("tls.key")),
            ("service-account-signing-key-file", file("tls.key")),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("etcd-compaction-interval", "0".to_owned()),
        ];
        let arguments: Vec<String> =
            arguments.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        let (program, log) = (self.assets.join("kube-apiserver"), self.folder.join("kube-apiserver.log"));
        self.api = Some(Process::start(&program, &arguments, &log)?);
        self.wait("kube-apiserver", |server| server.ask("GET", "/readyz", &Value::Null).map(drop))
    }

    fn hang(&mut self, state: Hang) -> Result<()> {
        let signal = if state == Hang::Begin { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.api.as_ref().context("the API server runs")?.signal(signal)
    }

    fn compact(&mut self) -> Result<()> {
        let range = self.etcd("/v3/kv/range", &json!({"key": "AA=="}))?;
        let revision = range["header"]["revision"].as_str().context("etcd names its revision")?;
        self.etcd("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).map(drop)
    }

    fn replace(&mut self, objects: Vec<Value>) -> Result<()> {
        (self.api, self.etcd) = (None, None);
        fs::remove_dir_all(self.folder.join("etcd"))?;
        self.start_etcd()?;
        self.resume()?;
        self.furnish()?;
        objects.into_iter().try_for_each(|object| self.put(object))
    }
}
