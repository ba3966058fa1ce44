//! Traffic through two nodes with XDP on their uplinks: whole, from the right backend, with the right source, and past
//! netfilter and the node's own stack.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::counters::StackCounters;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

/// The Services with one backend, and where that is: `first` on node 0, `second` on node 1.
const SINGLE: [(&str, &str, usize); 2] = [("first", "vm01", 0), ("second", "vm02", 1)];

#[test]
fn megabytes_arrive_whole_through_the_local_and_the_remote_node() {
    unless_unable("megabytes_arrive_whole_through_the_local_and_the_remote_node", || {
        megabytes_arrive_whole(Attachment::Routed, &Flags::default())
    });
}

#[test]
fn megabytes_arrive_whole_at_pods_on_a_bridge() {
    unless_unable("megabytes_arrive_whole_at_pods_on_a_bridge", || {
        megabytes_arrive_whole(Attachment::Bridged, &Flags::default())
    });
}

#[test]
fn megabytes_arrive_whole_where_the_uplink_has_tc_only() {
    unless_unable("megabytes_arrive_whole_where_the_uplink_has_tc_only", || {
        let flags = Flags { device: "eth0=tc".to_owned(), ..Flags::default() };
        megabytes_arrive_whole(Attachment::Routed, &flags)
    });
}

#[test]
fn megabytes_arrive_whole_where_the_kernel_has_no_tcx() {
    unless_unable("megabytes_arrive_whole_where_the_kernel_has_no_tcx", || {
        // The companion and the egress program of XDP, and the whole datapath at TC, by clsact.
        for device in ["eth0=xdp", "eth0=tc"] {
            let flags = Flags { device: device.to_owned(), ..Flags::with(&["--clsact"]) };
            megabytes_arrive_whole(Attachment::Routed, &flags).context(device)?;
        }
        Ok(())
    });
}

/// TCP both ways and UDP for every pair of node and backend; the control beside us takes none of it, and what reaches
/// the client has right checksums by another implementation.
fn megabytes_arrive_whole(attachment: Attachment, flags: &Flags) -> Result<()> {
    let cluster = Cluster::serving(attachment, flags)?;
    cluster.install_control()?;
    let capture = Capture::start(cluster.client())?;
    for family in Family::ALL {
        for (service, pod, home) in SINGLE {
            for node in 0..2 {
                exchange(&cluster, family, service, pod, home, node)
                    .with_context(|| format!("{family}, {pod} through node{}", node + 1))?;
            }
        }
    }
    let checked = capture::check_sums(&capture.finish())?;
    ensure!(checked > 5000, "only {checked} packets were seen");
    let hits = cluster.control_hits()?;
    ensure!(hits == 0, "{hits} connections took the nftables rules");
    Ok(())
}

fn exchange(
    cluster: &Cluster,
    family: Family,
    service: &str,
    pod: &str,
    home: usize,
    node: usize,
) -> Result<()> {
    let at = |port| cluster.frontend(service, port, node, family);
    let (http, bulk, udp) = (at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?);
    let expected = match home == node {
        true => cluster.topology.clients[0].addresses.of(family),
        false => cluster.topology.nodes[node].addresses.of(family),
    };
    cluster.client().run(|| {
        let answer = requests::http(http, "/").context("HTTP")?;
        ensure!(answer.pod() == pod, "{} answered", answer.pod());
        ensure!(answer.client == expected, "the VM saw {}, not {expected}", answer.client);
        requests::download(bulk, 8_000_000, 0).context("download")?;
        requests::upload(bulk, 8_000_000, 0).context("upload")?;
        let socket = requests::datagrams(udp)?;
        let (name, seen) = requests::who(&socket).context("UDP")?;
        ensure!((name.as_str(), seen) == (pod, expected), "by UDP {name} answered and saw {seen}");
        // Even and odd lengths, the empty datagram, and one that fills the path.
        let largest = if family == Family::V4 { 1472 } else { 1452 };
        for length in [0, 1, 2, 511, 1000, largest] {
            requests::echo(&socket, &vec![0xa5; length])
                .with_context(|| format!("{length} octets by UDP"))?;
        }
        Ok(())
    })
}

#[test]
fn a_thousand_connections_at_once_are_served() {
    unless_unable("a_thousand_connections_at_once_are_served", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        for family in Family::ALL {
            let frontend = cluster.frontend("both", servers::LINES, 0, family)?;
            let by_pod = cluster.client().run(|| hold_connections(frontend, 1000))?;
            // Maglev gives each of two backends half, within a few per cent of its table and of chance.
            ensure!(
                by_pod.iter().all(|&count| count > 400),
                "{family}: {by_pod:?} of 1,000 for vm01 and vm02"
            );
        }
        Ok(())
    });
}

/// Opens `count` connections, asks each twice while all are open; returns the connections of each VM.
fn hold_connections(frontend: SocketAddr, count: usize) -> Result<[usize; 2]> {
    let mut open = (0..count).map(|_| Conversation::open(frontend)).collect::<Result<Vec<_>>>()?;
    let mut first = Vec::new();
    for (number, conversation) in open.iter_mut().enumerate() {
        first.push(conversation.ask(&format!("line {number}"))?);
    }
    for (conversation, pod) in open.iter_mut().zip(&first) {
        let again = conversation.ask("again")?;
        ensure!(again == *pod, "{pod} became {again} in one connection");
    }
    Ok(["vm01", "vm02"].map(|vm| first.iter().filter(|pod| *pod == vm).count()))
}

#[test]
fn established_flows_to_a_remote_backend_never_enter_the_stack_of_the_node() {
    unless_unable("established_flows_to_a_remote_backend_never_enter_the_stack_of_the_node", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        for family in Family::ALL {
            let remote = stack_counts(&cluster, "second", family)?;
            ensure!(remote == StackCounters::default(), "{family}: the node's stack met {remote:?}");
            // A backend on the node is the stack's to deliver: the same exchange shows that the counters count.
            let local = stack_counts(&cluster, "first", family)?;
            let forwarded = if family == Family::V4 { local.forwarded_v4 } else { local.forwarded_v6 };
            ensure!(
                forwarded >= 2000,
                "{family}: the node's stack shows only {local:?} for the local backend"
            );
        }
        Ok(())
    });
}

/// What the first node's stack counts while established flows, TCP and UDP, exchange 1,000 requests and answers.
fn stack_counts(cluster: &Cluster, service: &str, family: Family) -> Result<StackCounters> {
    let node = &cluster.topology.nodes[0].namespace;
    let lines = cluster.frontend(service, servers::LINES, 0, family)?;
    let udp = cluster.frontend(service, servers::ECHO, 0, family)?;
    cluster.client().run(|| {
        let mut conversation = Conversation::open(lines)?;
        conversation.ask("established")?;
        let socket = requests::datagrams(udp)?;
        requests::echo(&socket, b"established")?;
        requests::echo(&socket, b"established")?;
        let before = StackCounters::read(node)?;
        for number in 0..500 {
            conversation.ask(&format!("{number} {}", "x".repeat(1000)))?;
            requests::echo(&socket, format!("{number:900}").as_bytes())?;
        }
        Ok(StackCounters::read(node)?.since(before))
    })
}

#[test]
fn a_pod_reaches_the_service_through_the_other_node() {
    unless_unable("a_pod_reaches_the_service_through_the_other_node", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        for family in Family::ALL {
            // Both backends: the one beside the node that is asked, and the pod itself (a hairpin over two nodes).
            for (service, pod) in [("second", "vm02"), ("first", "vm01")] {
                let frontend = cluster.frontend(service, servers::HTTP, 1, family)?;
                let from = cluster.find("vm01")?;
                let answer = from.namespace.run(|| requests::http(frontend, "/"));
                let answer = answer.with_context(|| format!("{family}, vm01 to {service} through node2"))?;
                ensure!(answer.pod() == pod, "{family}: {} answered", answer.pod());
            }
        }
        Ok(())
    });
}

#[test]
fn a_client_may_be_silent_longer_than_half_open_flows_are_kept() {
    unless_unable("a_client_may_be_silent_longer_than_half_open_flows_are_kept", || {
        let flags = Flags::with(&["--timeout", "tcp-opening=1s,udp-opening=1s", "--sweep-interval", "1s"]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        for family in Family::ALL {
            let frontends = [0, 1].map(|node| cluster.frontend("second", servers::LINES, node, family));
            let [remote, local] = frontends;
            let (remote, local) = (remote?, local?);
            cluster.client().run(|| {
                let mut conversations = [Conversation::open(remote)?, Conversation::open(local)?];
                for conversation in &mut conversations {
                    conversation.ask("before")?;
                }
                std::thread::sleep(Duration::from_secs(4));
                for conversation in &mut conversations {
                    conversation.ask("after").with_context(|| format!("{family}, after the silence"))?;
                }
                anyhow::Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn replies_leave_by_a_device_that_is_no_uplink_where_the_routes_say_so() {
    unless_unable("replies_leave_by_a_device_that_is_no_uplink_where_the_routes_say_so", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            let flags = Flags { device: device.to_owned(), ..Flags::default() };
            let cluster = Cluster::serving(Attachment::Routed, &flags)?;
            add_way_back(&cluster)?;
            let capture = Capture::start(cluster.client())?;
            for family in Family::ALL {
                for (service, pod, _) in SINGLE {
                    let before = sent(&cluster.topology.nodes[0].namespace, BACK)?;
                    round_trip(&cluster, family, service, pod)
                        .with_context(|| format!("{device}, {family}, {pod}"))?;
                    let after = sent(&cluster.topology.nodes[0].namespace, BACK)?;
                    ensure!(
                        after - before > 2_000_000,
                        "{device}, {family}, {pod}: only {} octets took the other way",
                        after - before
                    );
                }
            }
            let checked = capture::check_sums(&capture.finish())?;
            ensure!(checked > 1000, "only {checked} packets were seen");
        }
        Ok(())
    });
}

/// The first node's second device.
const BACK: &str = "back0";

/// Lays a second cable from the first node to the router, and the first node's way to the client over it. Requests go on
/// arriving by the uplink.
fn add_way_back(cluster: &Cluster) -> Result<()> {
    let (node, router) = (&cluster.topology.nodes[0].namespace, &cluster.topology.router);
    router.ip(&format!("link add far0 type veth peer name {BACK} netns {}\n", node.name()))?;
    router.offloads("far0", &["tx", "off", "gro", "on"])?;
    node.offloads(BACK, &["tx", "off"])?;
    router
        .ip("addr add 172.19.0.1/24 dev far0\naddr add fd00:19::1/64 dev far0 nodad\nlink set far0 up\n")?;
    let client = cluster.topology.clients[0].addresses;
    node.ip(&format!(
        "addr add 172.19.0.2/24 dev {BACK}\n\
         addr add fd00:19::2/64 dev {BACK} nodad\n\
         link set {BACK} up\n\
         route add {}/32 via 172.19.0.1\n\
         route add {}/128 via fd00:19::1\n",
        client.v4, client.v6
    ))?;
    // What comes from where it would not be sent to is refused otherwise.
    for host in [node, router] {
        host.set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    }
    node.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
    router.set_sysctl("net/ipv4/conf/far0/rp_filter", "0")
}

/// TCP both ways and UDP, through the first node.
fn round_trip(cluster: &Cluster, family: Family, service: &str, pod: &str) -> Result<()> {
    let at = |port| cluster.frontend(service, port, 0, family);
    let (http, bulk, udp) = (at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?);
    cluster.client().run(|| {
        let answer = requests::http(http, "/").context("HTTP")?;
        ensure!(answer.pod() == pod, "{} answered", answer.pod());
        requests::download(bulk, 2_000_000, 0).context("download")?;
        requests::upload(bulk, 2_000_000, 0).context("upload")?;
        let socket = requests::datagrams(udp)?;
        let (name, _) = requests::who(&socket).context("UDP")?;
        ensure!(name == pod, "by UDP {name} answered");
        requests::echo(&socket, &[0xa5; 1000]).context("UDP")
    })
}

/// Octets that a device has sent.
fn sent(host: &Namespace, device: &str) -> Result<u64> {
    let text = host.output("ip", &["-json", "-statistics", "link", "show", device])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    links[0]["stats64"]["tx"]["bytes"].as_u64().context("a count")
}
