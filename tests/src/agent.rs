//! `vmlb agent` on one node, as a child process that can be stopped, killed and started again, and the operator's
//! commands beside it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::address::Family;
use crate::manifests::Manifests;
use crate::namespace;
use crate::pace;
use crate::service::{Port, Published};
use crate::topology::Node;

/// How long an agent may take until it serves, and until it has ended after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// Table sizes small enough for several agents on a small machine.
const SIZES: [&str; 12] = [
    "--flows",
    "65536",
    "--half-flows",
    "16384",
    "--backends",
    "256",
    "--services",
    "64",
    "--slots",
    "65536",
    "--frontends",
    "256",
];

/// The binary `vmlb`: `VMLB_BINARY`, else the workspace's release build, else its debug build.
pub fn binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("VMLB_BINARY") {
        return Ok(PathBuf::from(given));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ is in the workspace")?;
    ["release", "debug"]
        .into_iter()
        .map(|profile| workspace.join("target").join(profile).join("vmlb"))
        .find(|path| path.is_file())
        .context("no `vmlb` under target/: build it with `cargo xtask build`, or name it in VMLB_BINARY")
}

/// What an agent is started with beside the node's name, manifests and pin root.
#[derive(Clone, Debug)]
pub struct Flags {
    /// For `--device`; empty: vmlb finds the uplinks by itself.
    pub device: String,
    /// Anything else, as on the command line; `--kubeconfig` takes the place of the manifests.
    pub others: Vec<String>,
}

impl Default for Flags {
    fn default() -> Self {
        Self { device: "eth0=xdp".to_owned(), others: Vec::new() }
    }
}

impl Flags {
    /// The default device, and `others`, which may name sizes too.
    pub fn with(others: &[&str]) -> Self {
        Self { others: others.iter().map(|&flag| flag.to_owned()).collect(), ..Self::default() }
    }
}

/// What an agent says once the maps hold what it has read, also when there was nothing to write. The maps alone do not
/// tell: they still hold what the agent before wrote.
const READY: &str = "the maps follow the objects now";

/// A running agent. Dropping it kills it, which leaves its pins in place.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    /// Octets in the log before this agent.
    log_start: usize,
}

impl Agent {
    /// Starts the agent of `node`; its log goes on in `log`.
    pub fn start(node: &Node, manifests: &Manifests, flags: &Flags, log: &Path) -> Result<Self> {
        let log_start = fs::metadata(log).map_or(0, |metadata| metadata.len());
        let output = File::options().create(true).append(true).open(log)?;
        let child = invocation(node, manifests, flags)?
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting vmlb agent")?;
        Ok(Self { child, log: log.to_owned(), log_start: usize::try_from(log_start)? })
    }

    /// Runs an agent that cannot start, to its end; what it said.
    pub fn refused(node: &Node, manifests: &Manifests, flags: &Flags) -> Result<String> {
        let mut child =
            invocation(node, manifests, flags)?.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let start = Instant::now();
        while child.try_wait()?.is_none() {
            if start.elapsed() > pace::stretched(PATIENCE) {
                child.kill()?;
                bail!("the agent of {} started", node.name);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output()?;
        ensure!(!output.status.success(), "the agent of {} started and ended", node.name);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Waits until the node serves every port of `services` with exactly their pods.
    pub fn wait_until_serving(&mut self, node: &Node, services: &[Published]) -> Result<()> {
        let start = Instant::now();
        loop {
            // Asking costs a process; before the agent is ready the answer does not count.
            let answer = self.is_ready().then(|| json(node, &["services"]));
            if let Some(Ok(found)) = &answer
                && serves(found, node, services)
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent of {} ended ({status}):\n{}", node.name, self.log_tail());
            }
            if start.elapsed() > pace::stretched(PATIENCE) {
                bail!("{} does not serve; vmlb services: {answer:?}; log:\n{}", node.name, self.log_tail());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end, which must be a success.
    pub fn stop(mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", self.log_tail());
        Ok(())
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < pace::stretched(PATIENCE) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the agent did not end in {PATIENCE:?}:\n{}", self.log_tail())
    }

    /// The agent's process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Everything the agents of this node have said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        self.said().contains(READY)
    }

    /// What this agent has said so far, without those before it.
    pub fn said(&self) -> String {
        self.log().split_off(self.log_start)
    }

    fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Leaves the agent running for good.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn invocation(node: &Node, manifests: &Manifests, flags: &Flags) -> Result<Command> {
    let mut command = node.namespace.command(binary()?);
    command.args(["agent", "--node-name", &node.name]);
    if !flags.others.iter().any(|flag| flag == "--kubeconfig") {
        command.arg("--manifests").arg(manifests.folder());
    }
    command.arg("--pin-root").arg(&node.pin_root);
    if !flags.device.is_empty() {
        command.args(["--device", &flags.device]);
    }
    let sizes = SIZES.chunks_exact(2).filter(|pair| !flags.others.iter().any(|flag| flag == pair[0]));
    command.args(sizes.flatten()).args(&flags.others);
    Ok(command)
}

/// A `vmlb` command on `node`, with its pin root.
pub fn command(node: &Node, arguments: &[&str]) -> Result<Command> {
    let mut command = node.namespace.command(binary()?);
    command.args(arguments).arg("--pin-root").arg(&node.pin_root).stdin(Stdio::null());
    Ok(command)
}

/// The answer of a `vmlb` command with `--output json`.
pub fn json(node: &Node, arguments: &[&str]) -> Result<Value> {
    let text = namespace::run(command(node, arguments)?.args(["--output", "json"]))?;
    serde_json::from_str(&text).with_context(|| format!("vmlb {arguments:?} printed {text:?}"))
}

/// `vmlb detach`.
pub fn detach(node: &Node) -> Result<()> {
    namespace::run(&mut command(node, &["detach"])?).map(drop)
}

/// Whether `found`, the answer of `vmlb services`, shows every port of `services` at both addresses of `node` with
/// exactly the backends given.
fn serves(found: &Value, node: &Node, services: &[Published]) -> bool {
    let rows: Vec<&Value> = found.as_array().into_iter().flatten().collect();
    services.iter().all(|published| {
        let wanted: BTreeSet<String> = published.pods.iter().map(|pod| format!("default/{pod}")).collect();
        published.service.ports.iter().all(|port| {
            rows.iter().any(|row| {
                row["name"] == published.service.name.as_str()
                    && row["portName"] == port.name
                    && shows_frontends(row, node, port)
                    && names(&row["backends"]) == wanted
            })
        })
    })
}

fn shows_frontends(row: &Value, node: &Node, port: &Port) -> bool {
    Family::ALL.into_iter().all(|family| {
        let address = node.addresses.of(family).to_string();
        let mut frontends = row["frontends"].as_array().into_iter().flatten();
        frontends
            .any(|frontend| frontend["address"] == address.as_str() && frontend["port"] == port.node_port)
    })
}

fn names(backends: &Value) -> BTreeSet<String> {
    let backends = backends.as_array().into_iter().flatten();
    backends.filter_map(|backend| backend["name"].as_str()).map(str::to_owned).collect()
}
