//! `cargo xtask bench control`: the real agent with real maps in a network namespace, behind a scripted API server. How
//! long from the arrival of all lists to full maps, from a change's octets to the maps, what is written for it, and how
//! much memory the agent takes. Ends with a failure where a limit is missed ([`control`]).

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmlb_agent::bpf::PinnedMap;
use vmlb_agent::pins::PinRoot;
use vmlb_common::abi::{Frontend, FrontendKey, Service, names};
use vmlb_common::family::Address4;
use vmlb_tests::api_server::ApiServer;
use vmlb_tests::api_server::objects::{Endpoint, NODE, node, service, slice, with_managed_fields};
use vmlb_tests::bench::control::{self, Figures};
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::{agent, bpffs, skip};

/// Endpoints of a Service.
const ENDPOINTS: u16 = 5;
/// The first node port.
const FIRST_PORT: u16 = 25_000;
/// Changes of one endpoint.
const CHANGES: u16 = 41;
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the agent behind an API server
#[derive(Parser)]
#[command(name = "cargo xtask bench control", bin_name = "cargo xtask bench control")]
struct Arguments {
    /// Numbers of Services, each of five endpoints
    #[arg(default_values_t = [10, 1000, 5000], value_parser = clap::value_parser!(u16).range(1..=5000))]
    services: Vec<u16>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(why) = skip::reason() {
        println!("SKIPPED: bench control: {why}");
        return ExitCode::SUCCESS;
    }
    match judge(&arguments.services) {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            missed.iter().for_each(|missed| eprintln!("MISSED: {missed}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures every size; returns the limits that were missed.
fn judge(sizes: &[u16]) -> Result<Vec<String>> {
    println!("{}", control::HEAD);
    let mut missed = Vec::new();
    for services in sizes {
        let figures = measure(*services)?;
        println!("{figures}");
        missed.extend(figures.missed());
    }
    Ok(missed)
}

/// A namespace with an uplink, an API server and an agent in it. What is made goes with the prefix.
struct Rig {
    server: ApiServer,
    namespace: Namespace,
    pin_root: PathBuf,
    folder: PathBuf,
    _prefix: Prefix,
}

impl Rig {
    fn build(services: u16) -> Result<Self> {
        let prefix = Prefix::unique();
        let namespace = Namespace::create(&prefix.name("bench"))?;
        namespace.ip("link add eth0 type veth peer name peer0\naddr add 192.0.2.1/24 dev eth0\nlink set eth0 up\nlink set peer0 up")?;
        let pin_root = bpffs::pin_root(&prefix.name("bench"))?;
        let folder = prefix.folder("bench")?;
        let server = namespace.run(|| ApiServer::start(&folder))?;
        server.put(with_managed_fields(node(NODE, "192.0.2.1")))?;
        for number in 0..services {
            server.put(with_managed_fields(service(&format!("s{number}"), FIRST_PORT + number)))?;
            server.put(endpoints(number, None))?;
        }
        Ok(Self { server, namespace, pin_root, folder, _prefix: prefix })
    }

    fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    fn start(&self) -> Result<Agent> {
        let output = File::create(self.log())?;
        let child = self
            .namespace
            .command(agent::binary()?)
            .args(["agent", "--node-name", NODE, "--device", "eth0=tc", "--node-port-range", "25000-32767"])
            .args(["--backends", "32768", "--slots", "8388608", "--flows", "65536", "--half-flows", "16384"])
            // Its lines are counted.
            .args(["--log-repeats", "0"])
            .arg("--kubeconfig")
            .arg(self.server.kubeconfig())
            .arg("--pin-root")
            .arg(&self.pin_root)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Agent { child, log: self.log() })
    }
}

/// A running agent; killed when dropped.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `is_reached`.
    fn until(
        &mut self,
        pause: Duration,
        mut is_reached: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<Instant> {
        let start = Instant::now();
        while !is_reached(self)? {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.said());
            }
            ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}:\n{}", self.said());
            std::thread::sleep(pause);
        }
        Ok(Instant::now())
    }

    /// Entries written by each sync so far, as the agent logs it.
    fn written(&self) -> Vec<usize> {
        let said = self.said();
        let counts = said.lines().filter_map(|line| {
            let count = line.split_once("wrote ")?.1.strip_suffix(" changes")?;
            count.parse().ok()
        });
        counts.collect()
    }

    /// CPU time so far: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
    fn busy(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in brackets may hold spaces; the field after it is the third.
        let (_, fields) = stat.rsplit_once(')').context("a name in brackets")?;
        let ticks: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }

    /// Resident memory now and at its peak, KiB.
    fn resident(&self) -> Result<[u64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("a line of status")
        };
        Ok([field("VmRSS:")?, field("VmHWM:")?])
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = i32::try_from(self.child.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        let _reaped = self.child.wait();
    }
}

fn endpoints(service: u16, unready: Option<u16>) -> serde_json::Value {
    // 5,000 Services have 25,000 pods: fewer than a u16 holds.
    let pods = (0..ENDPOINTS)
        .map(|place| Endpoint { pod: service * ENDPOINTS + place, ready: unready != Some(place) });
    let pods: Vec<Endpoint> = pods.collect();
    with_managed_fields(slice(&format!("s{service}-x"), &format!("s{service}"), &pods))
}

fn is_there(path: &Path) -> bool {
    path.exists()
}

fn measure(services: u16) -> Result<Figures> {
    let rig = Rig::build(services)?;
    let root = PinRoot::new(&rig.pin_root);
    let begun = Instant::now();
    let mut agent = rig.start()?;
    agent.until(Duration::from_millis(5), |_| Ok(is_there(&root.map(names::FRONTENDS[0]))))?;
    let frontends: PinnedMap<FrontendKey<Address4>, Frontend> = PinnedMap::open(&root, names::FRONTENDS[0])?;
    let full =
        agent.until(Duration::from_millis(2), |_| Ok(frontends.all()?.len() >= usize::from(services)))?;
    let listed = rig.server.listed().context("the lists were read")?;
    let (start, full) = (full - begun, full - listed);
    let busy = agent.busy()?;
    agent.until(Duration::from_millis(20), |agent| {
        Ok(agent.said().contains("the maps follow the objects now"))
    })?;
    std::thread::sleep(Duration::from_millis(1500));
    let before = agent.written().len();
    let changes = change(&rig, &root, &mut agent, &frontends, services)?;
    std::thread::sleep(Duration::from_millis(300));
    let writes = agent.written().split_off(before).into_iter().max().context("a change is written")?;
    // For the state file and the housekeeping of a minute's life.
    std::thread::sleep(Duration::from_secs(2));
    let resident = agent.resident()?;
    drop(agent);
    let begun = Instant::now();
    let mut agent = rig.start()?;
    let restart = agent.until(Duration::from_millis(5), |agent| {
        Ok(agent.said().contains("the maps follow the objects now"))
    })?;
    let rewrites = agent.written().into_iter().sum();
    Ok(Figures { services, start, full, busy, changes, writes, restart: restart - begun, rewrites, resident })
}

/// Takes one endpoint after the other out of its Service and back in; returns how long each took, sorted.
fn change(
    rig: &Rig,
    root: &PinRoot,
    agent: &mut Agent,
    frontends: &PinnedMap<FrontendKey<Address4>, Frontend>,
    services: u16,
) -> Result<Vec<Duration>> {
    let table: PinnedMap<u32, Service> = PinnedMap::open(root, names::SERVICES)?;
    let mut took = Vec::new();
    for round in 0..CHANGES {
        let number = round.wrapping_mul(97) % services;
        let port = FIRST_PORT + number;
        let mut id = None;
        frontends.each(|key, frontend| {
            if key.port != port {
                return ControlFlow::Continue(());
            }
            id = Some(frontend.service);
            ControlFlow::Break(())
        })?;
        let id = id.context("the Service has a frontend")?;
        for unready in [Some(round % ENDPOINTS), None] {
            let old = table.get(&id)?;
            let begun = Instant::now();
            rig.server.put(endpoints(number, unready))?;
            let done = agent.until(Duration::from_micros(50), |_| Ok(table.get(&id)? != old))?;
            took.push(done - begun);
            std::thread::sleep(Duration::from_millis(40));
        }
    }
    took.sort_unstable();
    Ok(took)
}
