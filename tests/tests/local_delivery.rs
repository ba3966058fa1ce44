//! Packets handed straight to the pods' devices of this node: past the stack, with the client's address, and not where that
//! would pass by what a CNI judges its pods' packets with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::{self, Family};
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::counters::StackCounters;
use vmlb_tests::probe;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Node};

/// Octets of a transfer.
const OCTETS: u64 = 3_000_000;

fn flags(device: &str, delivery: &str) -> Flags {
    let others = ["--local-delivery", delivery].map(str::to_owned).to_vec();
    Flags { device: device.to_owned(), others }
}

#[test]
fn packets_pass_by_the_stack_and_what_it_has_against_half_a_connection() {
    unless_unable("packets_pass_by_the_stack_and_what_it_has_against_half_a_connection", || {
        for attachment in [Attachment::Routed, Attachment::Bridged] {
            let mut cluster = Cluster::build(attachment)?;
            guard(&cluster)?;
            for device in ["eth0=xdp", "eth0=tc"] {
                cluster.start_agents(&flags(device, "peer"))?;
                // What comes before the agent has looked at the pod's device goes by the stack.
                let node = &cluster.topology.nodes[0];
                probe::wait("the way into the pod's device", Duration::from_secs(5), || {
                    Ok(way(node)?["way"] == "device")
                })?;
                for family in Family::ALL {
                    serves(&cluster, family)
                        .with_context(|| format!("{attachment:?}, {device}, {family}"))?;
                }
                for agent in cluster.agents.iter_mut().filter_map(Option::take) {
                    agent.kill()?;
                }
            }
            ensure!(cluster.control_hits()? == 0, "a connection took the rules");
        }
        Ok(())
    });
}

/// What nodes have beside vmlb: kube-proxy's rules, a CNI's masquerading of what its pods send out, strict reverse paths.
fn guard(cluster: &Cluster) -> Result<()> {
    cluster.install_control()?;
    for node in &cluster.topology.nodes {
        for name in ["all", "default", "eth0"] {
            node.namespace.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        }
        let [v4, v6] = address::pod_prefixes(node.index);
        let rules = format!(
            "table inet cni {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
                 ip saddr {v4} ip daddr != {v4} masquerade; ip6 saddr {v6} ip6 daddr != {v6} masquerade; }}; }}\n"
        );
        node.namespace.feed("nft", &["-f", "-"], &rules)?;
    }
    Ok(())
}

/// The first node's VM sees the client over TCP and UDP, and bulk passes that node's stack by.
fn serves(cluster: &Cluster, family: Family) -> Result<()> {
    let client = cluster.topology.clients[0].addresses.of(family);
    let node = &cluster.topology.nodes[0];
    let of = |target| cluster.frontend("first", target, 0, family);
    let answer = cluster.client().run(|| requests::http(of(servers::HTTP)?, "/"))?;
    ensure!((answer.pod(), answer.client) == ("vm01", client), "{} saw {}", answer.pod(), answer.client);
    let before = StackCounters::read(&node.namespace)?;
    let bulk = of(servers::BULK)?;
    cluster.client().run(|| requests::download(bulk, OCTETS, 0)).context("a download")?;
    cluster.client().run(|| requests::upload(bulk, OCTETS, 0)).context("an upload")?;
    let echo = of(servers::ECHO)?;
    let socket = cluster.client().run(|| requests::datagrams(echo))?;
    for _ in 0..20 {
        let (pod, seen) = requests::who(&socket)?;
        ensure!((pod.as_str(), seen) == ("vm01", client), "{pod} saw {seen} over UDP");
    }
    let passed = StackCounters::read(&node.namespace)?.since(before);
    ensure!(passed.forwarded_v4 + passed.forwarded_v6 == 0, "the stack forwarded: {passed:?}");
    let flows = agent::json(node, &["flows"])?;
    let flows = flows.as_array().context("a list")?;
    ensure!(!flows.is_empty() && flows.iter().all(|flow| flow["delivery"] == "peer"), "{flows:?}");
    Ok(())
}

#[test]
fn a_flag_that_changes_cuts_no_connection() {
    unless_unable("a_flag_that_changes_cuts_no_connection", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        guard(&cluster)?;
        let mut open: Vec<Conversation> = Vec::new();
        for (delivery, name) in [("stack", "kept"), ("peer", "peer"), ("stack", "kept")] {
            for agent in cluster.agents.iter_mut().filter_map(Option::take) {
                agent.kill()?;
            }
            cluster.start_agents(&flags("eth0=xdp", delivery))?;
            let before = of_delivery(&cluster.topology.nodes[0], name)?;
            for family in [Family::V4, Family::V6].into_iter().cycle().take(50) {
                let lines = cluster.frontend("first", servers::LINES, 0, family)?;
                open.push(cluster.client().run(|| Conversation::open(lines))?);
            }
            for conversation in &mut open {
                conversation.ask("still there").with_context(|| format!("with {delivery}"))?;
            }
            let after = of_delivery(&cluster.topology.nodes[0], name)?;
            ensure!(after == before + 50, "{delivery}: {before} and then {after} flows are {name}");
        }
        Ok(())
    });
}

fn of_delivery(node: &Node, name: &str) -> Result<usize> {
    let flows = agent::json(node, &["flows"])?;
    Ok(flows.as_array().context("a list")?.iter().filter(|flow| flow["delivery"] == name).count())
}

#[test]
fn what_a_cni_judges_its_pods_packets_by_is_not_passed_by_unless_forced() {
    unless_unable("what_a_cni_judges_its_pods_packets_by_is_not_passed_by_unless_forced", || {
        for attachment in [Attachment::Routed, Attachment::Bridged] {
            let mut cluster = Cluster::build(attachment)?;
            let pod = cluster.find("vm01")?.device.clone();
            let node = &cluster.topology.nodes[0].namespace;
            node.output("tc", &["qdisc", "add", "dev", &pod, "clsact"])?;
            let always = ["bpf", "bytecode", "1,6 0 0 4294967295,"];
            node.output("tc", &[&["filter", "add", "dev", &pod, "ingress"][..], &always].concat())?;
            cluster.start_agents(&flags("eth0=xdp", "peer"))?;
            delivers(&cluster, "kept", &format!("TC of {pod}"))?;
            cluster.agents[0].take().context("an agent")?.kill()?;
            cluster.launch_agent(0, &flags("eth0=xdp", "peer-forced"))?;
            cluster.wait_until_serving()?;
            delivers(&cluster, "peer", "")?;
            cluster.agents[0].take().context("an agent")?.kill()?;
            let node = &cluster.topology.nodes[0].namespace;
            node.output("tc", &["qdisc", "del", "dev", &pod, "clsact"])?;
            node.feed("nft", &["-f", "-"], "table ip filter { chain cali-FORWARD { }; }\n")?;
            cluster.launch_agent(0, &flags("eth0=xdp", "peer"))?;
            cluster.wait_until_serving()?;
            delivers(&cluster, "kept", "cali-FORWARD")?;
            cluster.agents[0].take().context("an agent")?.kill()?;
            cluster.topology.nodes[0].namespace.feed("nft", &["-f", "-"], "delete table ip filter\n")?;
            cluster.launch_agent(0, &flags("eth0=xdp", "peer"))?;
            cluster.wait_until_serving()?;
            delivers(&cluster, "peer", "")?;
        }
        Ok(())
    });
}

/// The way to the first node's VM, as `vmlb backends` tells it there.
fn way(node: &Node) -> Result<serde_json::Value> {
    let backends = agent::json(node, &["backends"])?;
    let mut backends = backends.as_array().into_iter().flatten();
    Ok(backends.find(|row| row["name"] == "vm01").context("vm01")?["ways"][0].clone())
}

/// A new flow of the first node's VM is delivered like this, and `vmlb status` gives this reason for its device, and `vmlb
/// backends` for its way, or none.
fn delivers(cluster: &Cluster, delivery: &str, reason: &str) -> Result<()> {
    let node = &cluster.topology.nodes[0];
    probe::wait("the reason is told", Duration::from_secs(5), || {
        let status = agent::json(node, &["status"])?;
        let devices = status["devices"].as_array().cloned().unwrap_or_default();
        let sides: Vec<_> =
            devices.iter().filter(|device| device["flags"].to_string().contains("pod-side")).collect();
        let fits = |told: &str| if reason.is_empty() { told.is_empty() } else { told.contains(reason) };
        Ok(!sides.is_empty() && sides.iter().all(|side| fits(side["reason"].as_str().unwrap_or_default())))
    })?;
    let way = way(node)?;
    let wanted = if delivery == "peer" { "device" } else { "stack" };
    let why = way["why"].as_str().unwrap_or_default();
    ensure!(way["way"] == wanted && why.contains(reason), "vm01 is reached by {way}");
    for family in Family::ALL {
        let before = of_delivery(node, delivery)?;
        let lines = cluster.frontend("first", servers::LINES, 0, family)?;
        let mut conversation = cluster.client().run(|| Conversation::open(lines))?;
        conversation.ask("hello")?;
        ensure!(of_delivery(node, delivery)? == before + 1, "{family}: not {delivery}");
    }
    Ok(())
}
