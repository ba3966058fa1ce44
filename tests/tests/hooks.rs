//! Which hook an uplink gets, and that `vmlb status` says why it is not XDP.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_agent::bpf::PinnedMap;
use vmlb_agent::pins::PinRoot;
use vmlb_common::abi::{Device, DeviceFlags, names};
use vmlb_tests::address::{self, Family};
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::{Attachment, Node};

fn device(name: &str) -> Flags {
    Flags { device: name.to_owned(), ..Flags::default() }
}

/// What `vmlb status` tells of an uplink.
fn uplink(node: &Node, name: &str) -> Result<Value> {
    let status = agent::json(node, &["status"])?;
    let devices = status["devices"].as_array().cloned().unwrap_or_default();
    devices.into_iter().find(|device| device["name"] == name).with_context(|| format!("no {name}: {status}"))
}

/// Waits until the uplink has `mode` for a reason that mentions `words`.
fn wait_for(node: &Node, name: &str, mode: &str, words: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = uplink(node, name)?;
        if found["mode"] == mode && found["reason"].as_str().is_some_and(|reason| reason.contains(words)) {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "not by {mode} because of {words:?}: {found}");
        thread::sleep(Duration::from_millis(50));
    }
    let shown = agent::command(node, &["status"])?.output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    ensure!(line.contains(words), "people are not told why: {shown}");
    Ok(())
}

/// Every Service answers through node number `node`.
fn serves(cluster: &Cluster, node: usize) -> Result<()> {
    for family in Family::ALL {
        for service in ["first", "second"] {
            let http = cluster.frontend(service, servers::HTTP, node, family)?;
            let bulk = cluster.frontend(service, servers::BULK, node, family)?;
            cluster.client().run(|| {
                requests::http(http, "/")?;
                requests::download(bulk, 300_000, 0)
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_veth_is_served_by_tc_unless_asked_otherwise_and_the_status_says_why() {
    unless_unable("a_veth_is_served_by_tc_unless_asked_otherwise_and_the_status_says_why", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &device("eth0"))?;
        wait_for(&cluster.topology.nodes[0], "eth0", "tc", "segmentation offload")?;
        serves(&cluster, 0)?;
        cluster.agents[0].take().context("an agent")?.stop()?;
        cluster.launch_agent(0, &device("eth*=tc"))?;
        cluster.wait_until_serving()?;
        wait_for(&cluster.topology.nodes[0], "eth0", "tc", "--device asks for it")?;
        cluster.agents[0].take().context("an agent")?.stop()?;
        cluster.launch_agent(0, &device("eth0=xdp"))?;
        cluster.wait_until_serving()?;
        let found = uplink(&cluster.topology.nodes[0], "eth0")?;
        ensure!(found["mode"] == "xdp" && found["reason"].is_null(), "{found}");
        serves(&cluster, 0)
    });
}

#[test]
fn a_driver_that_refuses_native_xdp_is_served_by_tc_and_the_status_says_why() {
    unless_unable("a_driver_that_refuses_native_xdp_is_served_by_tc_and_the_status_says_why", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        for node in &cluster.topology.nodes {
            put_on_a_macvlan(node)?;
        }
        cluster.start_agents(&device("mac0=xdp"))?;
        for node in &cluster.topology.nodes {
            wait_for(node, "mac0", "tc", "the driver refuses native XDP")?;
        }
        serves(&cluster, 0)?;
        serves(&cluster, 1)
    });
}

#[test]
fn a_driver_without_metadata_is_moved_to_tc_for_good_under_connections() {
    unless_unable("a_driver_without_metadata_is_moved_to_tc_for_good_under_connections", || {
        let flags = Flags::with(&["--sweep-interval", "500ms"]);
        let mut cluster = Cluster::serving(Attachment::Routed, &flags)?;
        let mut talk = Talk::with_each(&cluster, &["first", "second"], 0..1, 1, 0).context("by XDP")?;
        // No driver here is without: this is what the XDP program writes on one that is.
        let devices: PinnedMap<u32, Device> =
            PinnedMap::open(&PinRoot::new(&cluster.topology.nodes[0].pin_root), names::DEVICES)?;
        let found = uplink(&cluster.topology.nodes[0], "eth0")?;
        let ifindex = u32::try_from(found["ifindex"].as_u64().context("an index")?)?;
        let device = devices.get(&ifindex)?.context("the uplink's entry")?;
        devices.put(&ifindex, &Device { flags: device.flags | DeviceFlags::NO_METADATA, ..device })?;
        wait_for(&cluster.topology.nodes[0], "eth0", "tc", "no metadata")?;
        talk.go_on().context("by TC")?;
        serves(&cluster, 0)?;
        // The next agent need not find out by dropping packets.
        cluster.agents[0].take().context("an agent")?.kill()?;
        cluster.launch_agent(0, &flags)?;
        cluster.wait_until_serving()?;
        wait_for(&cluster.topology.nodes[0], "eth0", "tc", "no metadata")?;
        let said = cluster.agents[0].as_ref().context("an agent")?.said();
        ensure!(!said.contains("uplink by xdp"), "{said}");
        talk.go_on().context("by TC, again")?;
        serves(&cluster, 0)
    });
}

/// Moves the uplink's addresses and routes to a macvlan, which has no native XDP.
fn put_on_a_macvlan(node: &Node) -> Result<()> {
    let (own, gateway) = (node.addresses, address::NODE_GATEWAY);
    let other = address::node(1 - node.index);
    let [v4, v6] = address::pod_prefixes(1 - node.index);
    // eth0 would answer for the address too, and whose answer comes last is believed.
    node.namespace.set_sysctl("net/ipv4/conf/eth0/arp_ignore", "1")?;
    node.namespace.ip(&format!(
        "link add mac0 link eth0 type macvlan mode bridge\n\
         addr flush dev eth0\n\
         addr add {}/24 dev mac0\n\
         addr add {}/64 dev mac0 nodad\n\
         link set mac0 up\n\
         route replace default via {}\n\
         route replace default via {}\n\
         route replace {v4} via {}\n\
         route replace {v6} via {}\n",
        own.v4, own.v6, gateway.v4, gateway.v6, other.v4, other.v6
    ))
}
