//! The agent stopped, killed and started again while packets flow: state outlives the process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::probe::wait;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Node};
use vmlb_tests::{load, maps, namespace, servers};

const TRANSFER: u64 = 100_000_000;
/// Slow enough to last while the agent dies and comes back, fast enough for three rounds.
const RATE: u64 = 60_000_000;
/// How an agent reports that it has changed map entries.
const WROTE: &str = "wrote ";
/// What a restart may add to the longest stall of the same transfer without it.
const ALLOWANCE: Duration = Duration::from_millis(100);

#[test]
fn a_transfer_survives_the_agent_killed_and_started_again() {
    unless_unable("a_transfer_survives_the_agent_killed_and_started_again", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        // vm02 through node1: translated twice. vm02 through node2: delivered by the stack.
        for (family, node) in [(Family::V4, 0), (Family::V6, 1)] {
            let frontend = cluster.frontend("second", servers::BULK, node, family)?;
            let mut rounds = Vec::new();
            while rounds.len() < 3 && !rounds.iter().any(|&(quiet, disturbed)| disturbed <= quiet + ALLOWANCE)
            {
                let quiet = longest_stall(&mut cluster, frontend, |_| Ok(()))?;
                let disturbed = longest_stall(&mut cluster, frontend, |cluster| {
                    cluster.agents[node].take().context("an agent")?.kill()?;
                    thread::sleep(Duration::from_millis(200));
                    cluster.launch_agent(node, &Flags::default())
                })?;
                cluster.wait_until_serving()?;
                rounds.push((quiet, disturbed));
            }
            let best = rounds.iter().any(|&(quiet, disturbed)| disturbed <= quiet + ALLOWANCE);
            ensure!(best, "{family}: longest stalls without and with the restart: {rounds:?}");
            println!(
                "{family} through node{}: longest stalls without and with a restart: {rounds:?}",
                node + 1
            );
        }
        Ok(())
    });
}

/// Downloads 100 MB, checks the hash, and does `disturb` half a second after the start.
fn longest_stall(
    cluster: &mut Cluster,
    frontend: SocketAddr,
    disturb: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Duration> {
    let transfer = cluster.client().spawn(move || requests::download(frontend, TRANSFER, RATE));
    thread::sleep(Duration::from_millis(500));
    disturb(cluster)?;
    ensure!(!transfer.is_finished(), "the transfer ended before the agent did");
    let received = transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))??;
    Ok(received.longest_stall)
}

#[test]
fn connections_ids_and_flows_are_the_same_after_a_restart() {
    unless_unable("connections_ids_and_flows_are_the_same_after_a_restart", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut conversations = Vec::new();
        for family in Family::ALL {
            for node in 0..2 {
                let frontend = cluster.frontend("both", servers::LINES, node, family)?;
                for _ in 0..10 {
                    conversations.push(cluster.client().run(|| Conversation::open(frontend))?);
                }
            }
        }
        for conversation in &mut conversations {
            conversation.ask("before")?;
        }
        let before = snapshots(&cluster)?;
        let first = cluster.agents[0].as_ref().context("an agent")?.said();
        ensure!(first.contains(WROTE), "the first agent does not say that it wrote:\n{first}");
        for how in [End::Terminated, End::Killed] {
            for node in 0..2 {
                let agent = cluster.agents[node].take().context("an agent")?;
                match how {
                    End::Terminated => agent.stop()?,
                    End::Killed => agent.kill()?,
                }
            }
            for conversation in &mut conversations {
                conversation.ask("meanwhile").with_context(|| format!("{how:?}, without an agent"))?;
            }
            cluster.start_agents(&Flags::default())?;
            for conversation in &mut conversations {
                conversation.ask("after").with_context(|| format!("{how:?}, with a new agent"))?;
            }
            for (was, is) in before.iter().zip(snapshots(&cluster)?) {
                was.compare(&is).with_context(|| format!("{how:?}"))?;
            }
            for agent in cluster.agents.iter().flatten() {
                let said = agent.said();
                ensure!(
                    !said.contains(WROTE),
                    "{how:?}: the new agent wrote though nothing had changed:\n{said}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn new_connections_are_served_while_there_is_no_agent_and_while_it_starts() {
    unless_unable("new_connections_are_served_while_there_is_no_agent_and_while_it_starts", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let client = vmlb_tests::namespace::Namespace::open(cluster.client().name())?;
        let frontend = cluster.frontend("both", servers::HTTP, 0, Family::V4)?;
        let ((), report) = load::during(&client, frontend, 2, || {
            cluster.agents[0].take().context("an agent")?.kill()?;
            thread::sleep(Duration::from_millis(300));
            cluster.launch_agent(0, &Flags::default())?;
            cluster.wait_until_serving()?;
            cluster.agents[0].take().context("an agent")?.stop()?;
            thread::sleep(Duration::from_millis(300));
            cluster.launch_agent(0, &Flags::default())?;
            thread::sleep(Duration::from_millis(500));
            cluster.wait_until_serving()
        })?;
        let failures = &report.failures;
        ensure!(failures.is_empty(), "{} requests failed, e.g. {}", failures.len(), failures[0]);
        Ok(())
    });
}

#[test]
fn an_agent_starts_and_serves_where_the_kernel_lets_it_write_nothing() {
    unless_unable("an_agent_starts_and_serves_where_the_kernel_lets_it_write_nothing", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let frontend = cluster.frontend("both", servers::LINES, 0, Family::V4)?;
        let mut conversation = cluster.client().run(|| Conversation::open(frontend))?;
        conversation.ask("before")?;
        cluster.agents[0].take().context("an agent")?.stop()?;
        for map in FIXED.into_iter().chain(["gate", "ranges_v4", "ranges_v6", "eligible"]) {
            // Its generation rises with the network's changes.
            if map != "settings" {
                let pin = cluster.topology.nodes[0].pin_root.join(map);
                namespace::run(Command::new("bpftool").args(["map", "freeze", "pinned"]).arg(pin))?;
            }
        }
        cluster.launch_agent(0, &Flags::default())?;
        cluster.wait_until_serving()?;
        let said = cluster.agents[0].as_ref().context("an agent")?.said();
        ensure!(!said.contains(WROTE) && !said.contains("ERROR"), "{said}");
        conversation.ask("after")?;
        for family in Family::ALL {
            let http = cluster.frontend("both", servers::HTTP, 0, family)?;
            cluster.client().run(|| requests::http(http, "/"))?;
        }
        // The kernel does refuse: what has to be written now is not, and the agent says so.
        cluster.manifests.service(&Service::single("late", 32500, servers::HTTP))?;
        wait("the maps are behind", Duration::from_secs(5), || {
            Ok(agent::json(&cluster.topology.nodes[0], &["status"])?["sync"]["error"].is_string())
        })?;
        conversation.ask("still")?;
        Ok(())
    });
}

/// How an agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Terminated,
    Killed,
}

/// What must be the same on a node before and after a restart.
struct Snapshot {
    node: String,
    /// Maps in which nothing may change.
    fixed: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// Flow tables by key; their values move with every packet.
    flows: BTreeMap<&'static str, Vec<String>>,
}

const FIXED: [&str; 13] = [
    "settings",
    "devices",
    "services",
    "slots",
    "service_names",
    "backend_names",
    "targets",
    "frontends_v4",
    "frontends_v6",
    "backends_v4",
    "backends_v6",
    "pods_v4",
    "pods_v6",
];

const FLOWS: [&str; 4] = ["flows_v4", "flows_v6", "replies_v4", "replies_v6"];

fn snapshots(cluster: &Cluster) -> Result<Vec<Snapshot>> {
    cluster.topology.nodes.iter().map(Snapshot::take).collect()
}

impl Snapshot {
    fn take(node: &Node) -> Result<Self> {
        let fixed = FIXED.into_iter().map(|map| Ok((map, maps::dump(node, map)?))).collect::<Result<_>>()?;
        let flows = FLOWS
            .into_iter()
            .map(|map| Ok((map, maps::dump(node, map)?.into_keys().collect())))
            .collect::<Result<_>>()?;
        Ok(Self { node: node.name.clone(), fixed, flows })
    }

    fn compare(&self, after: &Self) -> Result<()> {
        for (map, entries) in &self.fixed {
            let found = &after.fixed[map];
            let key = entries.keys().chain(found.keys()).find(|key| entries.get(*key) != found.get(*key));
            ensure!(
                key.is_none(),
                "{} {map}: entry {key:?} was {:?}, is {:?}",
                self.node,
                key.and_then(|key| entries.get(key)),
                key.and_then(|key| found.get(key))
            );
            ensure!(
                *map == "devices" || !entries.is_empty(),
                "{} {map} is empty: nothing compared",
                self.node
            );
        }
        for (map, keys) in &self.flows {
            ensure!(!keys.is_empty(), "{} {map} is empty: nothing compared", self.node);
            ensure!(
                *keys == after.flows[map],
                "{} {map}: keys {keys:?} became {:?}",
                self.node,
                after.flows[map]
            );
        }
        Ok(())
    }
}
