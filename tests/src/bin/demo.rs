//! Two VMs and a container behind one NodePort Service: a client outside, two nodes, real `curl`, both families.
//!
//! `demo [--keep | --clean]`; `demo serve NAME` is what runs in the pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Agent, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::leftovers::{self, Prefix};
use vmlb_tests::namespace::{self, Namespace};
use vmlb_tests::pod::Workload;
use vmlb_tests::requests::{self, Answer};
use vmlb_tests::service::Service;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{servers, skip};

const PREFIX: &str = "vmlb-demo-";
const LOCK: &str = "/run/vmlb-demo.lock";
const VMS: [&str; 2] = ["fenar-centos-vm01", "fenar-centos-vm02"];
const CONTAINER: &str = "web-container";
const HTTP_SERVICE: &str = "welcome";
const SSH_SERVICE: &str = "ssh";

/// Requests through each frontend at least; three backends answer that many with all but certainty, and more follow
/// if one has not.
const REQUESTS: usize = 6;
const REQUESTS_AT_MOST: usize = 60;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demonstrate(Afterwards::Remove),
        ["--keep"] => demonstrate(Afterwards::Keep),
        ["--clean"] => clean(),
        ["serve", name] => servers::serve(name),
        _ => Err(anyhow::anyhow!("usage: demo [--keep | --clean]")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // What fails after an interrupt fails because of it; the thread that cleans up ends the program.
        Err(_) if INTERRUPTED.load(Ordering::Acquire) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What becomes of the hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Keep,
    Remove,
}

fn clean() -> Result<()> {
    let _alone = lock()?;
    leftovers::clean(PREFIX);
    println!("The demo's hosts are removed.");
    Ok(())
}

/// Two demos at once would remove each other's hosts.
fn lock() -> Result<Flock<File>> {
    let file = File::create(LOCK).with_context(|| format!("opening {LOCK} (the demo needs root)"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("another demo is running (it holds {LOCK})"),
    }
}

/// Removes the hosts when the terminal or an operator ends the demo early.
fn remove_when_interrupted() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Release);
            leftovers::clean(PREFIX);
            eprintln!("\ninterrupted; the demo's hosts are removed");
            std::process::exit(130);
        }
    });
    Ok(())
}

fn demonstrate(afterwards: Afterwards) -> Result<()> {
    if let Some(why) = skip::reason() {
        bail!("{why}");
    }
    let _alone = lock()?;
    remove_when_interrupted()?;
    let mut cluster = build()?;
    let outcome = show(&mut cluster);
    match afterwards {
        // What failed is worth a look too.
        Afterwards::Keep => {
            print_commands(&cluster)?;
            cluster.keep();
        }
        Afterwards::Remove if outcome.is_ok() => {
            println!("\nTo look further, leave it up: cargo xtask demo --keep");
            detach(&mut cluster)?;
        }
        Afterwards::Remove => {}
    }
    outcome
}

fn show(cluster: &mut Cluster) -> Result<()> {
    let start = Instant::now();
    describe(cluster);
    cluster.start_agents(&Flags::default())?;
    cluster.install_control()?;
    let mut tally = Tally::default();
    ask_from_outside(cluster, &mut tally)?;
    ask_from_pods(cluster)?;
    ask_for_banners(cluster)?;
    tally.print(cluster);
    look_inside(cluster)?;
    let hits = cluster.control_hits()?;
    println!("\nRules in kube-proxy's form stand in nftables on both nodes: {hits} connections took them.");
    ensure!(hits == 0, "vmlb left {hits} connections to the nftables rules");
    println!(
        "Every backend answered through both nodes, by IPv4 and IPv6 ({:.1} s).",
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

fn detach(cluster: &mut Cluster) -> Result<()> {
    for (agent, node) in cluster.agents.iter_mut().zip(&cluster.topology.nodes) {
        agent.take().map(Agent::stop).transpose()?;
        agent::detach(node)?;
    }
    Ok(())
}

fn build() -> Result<Cluster> {
    let mut cluster = Cluster::empty(Prefix::named(PREFIX), 1, 2, Attachment::Routed)?;
    cluster.add_pod(0, VMS[0], Workload::Vm)?;
    cluster.add_pod(1, VMS[1], Workload::Vm)?;
    cluster.add_pod(1, CONTAINER, Workload::Container)?;
    cluster.publish(Service::single(HTTP_SERVICE, 31923, servers::HTTP), &[VMS[0], VMS[1], CONTAINER])?;
    cluster.publish(Service::single(SSH_SERVICE, 32022, servers::BANNER), &VMS)?;
    Ok(cluster)
}

fn describe(cluster: &Cluster) {
    println!("Hosts (network namespaces of this machine)");
    for client in &cluster.topology.clients {
        println!("  {:<18} {:<14} {:<18} outside", "client", client.addresses.v4, client.addresses.v6);
    }
    for node in &cluster.topology.nodes {
        println!("  {:<18} {:<14} {:<18} vmlb on eth0", node.name, node.addresses.v4, node.addresses.v6);
    }
    for pod in &cluster.pods {
        let kind = match pod.workload {
            Workload::Vm => "VM (virt-launcher pod)",
            Workload::Container => "container",
        };
        println!(
            "  {:<18} {:<14} {:<18} {kind} on {}",
            pod.name, pod.addresses.v4, pod.addresses.v6, pod.node
        );
    }
    println!("Services: {HTTP_SERVICE} NodePort 31923 -> 80, {SSH_SERVICE} NodePort 32022 -> 22");
}

/// Answers by pod, over all frontends.
#[derive(Default)]
struct Tally {
    answers: BTreeMap<String, usize>,
    /// Client addresses as each pod saw them.
    seen: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        *self.answers.entry(answer.pod().to_owned()).or_default() += 1;
        self.seen.entry(answer.pod().to_owned()).or_default().insert(answer.client);
    }

    fn print(&self, cluster: &Cluster) {
        let total: usize = self.answers.values().sum();
        println!("\nShare of {total} answers to the client, and the client addresses that each backend saw");
        for pod in &cluster.pods {
            let count = self.answers.get(&pod.name).copied().unwrap_or(0);
            let seen: Vec<String> = self
                .seen
                .get(&pod.name)
                .into_iter()
                .flatten()
                .map(|address| name(cluster, *address))
                .collect();
            println!(
                "  {:<18} {count:>3} = {:>2} %  saw {}",
                pod.name,
                count * 100 / total.max(1),
                seen.join(", ")
            );
        }
        println!(
            "A backend on the node that was asked sees the client itself; one on another node sees the node."
        );
    }
}

/// An address with the name of its host.
fn name(cluster: &Cluster, address: IpAddr) -> String {
    let topology = &cluster.topology;
    let node =
        topology.nodes.iter().find(|node| node.addresses.contains(address)).map(|node| node.name.as_str());
    let client =
        || topology.clients.iter().any(|client| client.addresses.contains(address)).then_some("client");
    let pod = || cluster.pods.iter().find(|pod| pod.addresses.contains(address)).map(|pod| pod.name.as_str());
    let host = node.or_else(client).or_else(pod).unwrap_or("unknown");
    format!("{address} ({host})")
}

fn ask_from_outside(cluster: &Cluster, tally: &mut Tally) -> Result<()> {
    for family in Family::ALL {
        for node in &cluster.topology.nodes {
            let frontend = node.addresses.socket(family, 31923);
            println!("\nFrom outside through {}, {family}\n  $ curl http://{frontend}", node.name);
            let mut missing: BTreeSet<&str> = cluster.pods.iter().map(|pod| pod.name.as_str()).collect();
            for request in 0..REQUESTS_AT_MOST {
                if request >= REQUESTS && missing.is_empty() {
                    break;
                }
                let answer = curl(cluster.client(), frontend)?;
                println!("  {:<34} it saw {}", answer.body, name(cluster, answer.client));
                tally.count(&answer);
                missing.remove(answer.pod());
                check_source(cluster, &node.name, &answer, cluster.topology.clients[0].addresses.of(family))?;
            }
            ensure!(missing.is_empty(), "no answer from {missing:?} through {frontend}");
        }
    }
    Ok(())
}

/// The client's address is kept for backends of the node that was asked, and only for them.
fn check_source(cluster: &Cluster, asked: &str, answer: &Answer, client: IpAddr) -> Result<()> {
    let pod = cluster.find(answer.pod())?;
    let kept = answer.client == client;
    ensure!(
        kept == (pod.node == asked),
        "{} on {} saw {} when {asked} was asked by {client}",
        pod.name,
        pod.node,
        answer.client
    );
    Ok(())
}

fn ask_from_pods(cluster: &Cluster) -> Result<()> {
    println!(
        "\nFrom pods, each through the other node (a pod's packets to its own node never meet the uplink, where vmlb \
         is)"
    );
    for (pod, node) in [(VMS[0], 1), (CONTAINER, 0)] {
        let (pod, node) = (cluster.find(pod)?, &cluster.topology.nodes[node]);
        for family in Family::ALL {
            let frontend = node.addresses.socket(family, 31923);
            let answer = curl(&pod.namespace, frontend)?;
            println!("  {} $ curl http://{frontend}", pod.name);
            println!("  {:<34} it saw {}", answer.body, name(cluster, answer.client));
            check_source(cluster, &node.name, &answer, pod.addresses.of(family))?;
        }
    }
    Ok(())
}

fn ask_for_banners(cluster: &Cluster) -> Result<()> {
    println!("\nThe banner behind port 22");
    for family in Family::ALL {
        for node in &cluster.topology.nodes {
            let frontend = node.addresses.socket(family, 32022);
            let banner = cluster.client().run(|| requests::banner(frontend))?;
            println!("  {frontend:<24} {banner}");
            ensure!(
                VMS.iter().any(|vm| banner == format!("SSH-2.0-{vm}")),
                "not the banner of a VM: {banner:?}"
            );
        }
    }
    Ok(())
}

/// One request by the real curl.
fn curl(host: &Namespace, frontend: SocketAddr) -> Result<Answer> {
    let url = format!("http://{frontend}");
    let response =
        namespace::run(host.command("curl").args(["--silent", "--show-error", "--globoff"]).args([
            "--include",
            "--max-time",
            "5",
            &url,
        ]))?;
    Answer::parse(&response)
}

/// What the operator's commands say on the first node.
fn look_inside(cluster: &Cluster) -> Result<()> {
    for node in &cluster.topology.nodes {
        println!("\n{} $ vmlb services", node.name);
        print!("{}", namespace::run(&mut agent::command(node, &["services"])?)?);
    }
    Ok(())
}

fn print_commands(cluster: &Cluster) -> Result<()> {
    let vmlb = agent::binary()?;
    let node = &cluster.topology.nodes[0];
    let (inside, pins) =
        (format!("nsenter --net={}", node.namespace.path().display()), node.pin_root.display());
    let client = cluster.client().path();
    println!("\nLeft up. To look further (node1; node2 likewise):");
    println!("  nsenter --net={} curl http://{}", client.display(), node.addresses.socket(Family::V4, 31923));
    for command in ["status", "services", "flows"] {
        println!("  {inside} {} {command} --pin-root {pins}", vmlb.display());
    }
    for map in ["frontends_v4", "pods_v4", "flows_v4", "replies_v6"] {
        println!("  bpftool map dump pinned {pins}/{map}");
    }
    println!("  {inside} bpftool net");
    println!("  {inside} tcpdump -ni eth0");
    println!(
        "  editor {}/*.yaml       (the agents reload what changes)",
        cluster.manifests.folder().display()
    );
    println!("To remove it: cargo xtask demo --clean");
    Ok(())
}
