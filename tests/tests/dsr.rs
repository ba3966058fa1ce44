//! The client's address kept on the way to another node: requests by the tunnel, replies from the VM's node.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_agent::bpf::PinnedMap;
use vmlb_agent::pins::PinRoot;
use vmlb_common::abi::{Device, names};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{pass, probe, servers};

/// Octets of a transfer.
const OCTETS: u64 = 3_000_000;

/// The ways to wrap, and the hooks that do it.
const SHAPES: [&str; 2] = ["ip", "udp"];
const DEVICES: [&str; 2] = ["eth0=xdp", "eth0=tc"];

fn flags(device: &str, shape: &str, others: &[&str]) -> Flags {
    let tunnel = ["--forwarding", "dsr", "--tunnel", shape].into_iter().chain(others.iter().copied());
    Flags { device: device.to_owned(), others: tunnel.map(str::to_owned).collect() }
}

#[test]
fn a_vm_of_another_node_sees_the_client_and_answers_it_directly() {
    unless_unable("a_vm_of_another_node_sees_the_client_and_answers_it_directly", || {
        for device in DEVICES {
            for shape in SHAPES {
                let cluster = Cluster::serving(Attachment::Routed, &flags(device, shape, &[]))?;
                for family in Family::ALL {
                    sees_the_client(&cluster, family)
                        .with_context(|| format!("{device}, {shape}, {family}"))?;
                    let sent = downloads(&cluster, family)
                        .with_context(|| format!("{device}, {shape}, {family}: a download"))?;
                    // What passes the node that the client addressed are its acknowledgments.
                    ensure!(sent < OCTETS / 4, "{device}, {shape}, {family}: the node sent {sent} octets");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn replies_go_by_the_node_that_was_addressed_where_they_are_told_to() {
    unless_unable("replies_go_by_the_node_that_was_addressed_where_they_are_told_to", || {
        for device in DEVICES {
            let flags = flags(device, "ip", &["--dsr-return", "ingress"]);
            let cluster = Cluster::serving(Attachment::Bridged, &flags)?;
            for family in Family::ALL {
                sees_the_client(&cluster, family).with_context(|| format!("{device}, {family}"))?;
                let sent = downloads(&cluster, family)?;
                ensure!(sent > OCTETS, "{device}, {family}: the node sent {sent} octets");
            }
        }
        Ok(())
    });
}

#[test]
fn transfers_complete_where_the_way_to_the_client_takes_less() {
    unless_unable("transfers_complete_where_the_way_to_the_client_takes_less", || {
        for device in DEVICES {
            let cluster = Cluster::serving(Attachment::Routed, &flags(device, "ip", &[]))?;
            for (family, mtu) in Family::ALL.into_iter().flat_map(|family| [(family, 1400), (family, 1280)]) {
                let client = cluster.topology.clients[0].addresses.of(family);
                cluster
                    .topology
                    .router
                    .ip(&format!("route replace {client} dev client1 mtu lock {mtu}\n"))?;
                let frontend = cluster.frontend("second", servers::BULK, 0, family)?;
                let what = || format!("{device}, {family}, MTU {mtu}");
                cluster.client().run(|| requests::download(frontend, OCTETS, 0)).with_context(what)?;
                cluster.client().run(|| requests::upload(frontend, OCTETS, 0)).with_context(what)?;
                let vm = &cluster.find("vm02")?.namespace;
                vm.output("ip", &["route", "flush", "cache"])?;
                vm.output("ip", &["-6", "route", "flush", "cache"])?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_tunnel_leaves_by_another_uplink_than_the_one_the_node_is_known_by() {
    unless_unable("the_tunnel_leaves_by_another_uplink_than_the_one_the_node_is_known_by", || {
        for shape in SHAPES {
            let mut cluster = Cluster::build(Attachment::Routed)?;
            add_uplink(&cluster)?;
            cluster.start_agents(&flags("eth0=xdp", shape, &["--device", "eth1=tc"]))?;
            for family in Family::ALL {
                sees_the_client(&cluster, family).with_context(|| format!("{shape}, {family}"))?;
                downloads(&cluster, family).with_context(|| format!("{shape}, {family}: a download"))?;
            }
            let text =
                cluster.topology.router.output("ip", &["-s", "-j", "link", "show", "dev", "node1b"])?;
            let links: serde_json::Value = serde_json::from_str(&text)?;
            let carried = links[0]["stats64"]["rx"]["packets"].as_u64().unwrap_or(0);
            ensure!(carried > 100, "{shape}: {carried} packets by the other uplink");
            is_not_listened_to(&cluster).with_context(|| format!("{shape}: the control"))?;
        }
        Ok(())
    });
}

/// Without the node's own address the tunnel has that of the device it leaves by, and the far node drops what comes.
fn is_not_listened_to(cluster: &Cluster) -> Result<()> {
    let [near, far] = &cluster.topology.nodes[..] else { anyhow::bail!("two nodes") };
    let devices: PinnedMap<u32, Device> = PinnedMap::open(&PinRoot::new(&near.pin_root), names::DEVICES)?;
    devices.remove(&Device::NODE)?;
    let udp = cluster.frontend("second", servers::ECHO, 0, Family::V4)?;
    cluster.client().run(|| requests::datagrams(udp))?.send(b"who")?;
    probe::wait("a packet from no node", Duration::from_secs(5), || {
        Ok(agent::json(far, &["drops"])?.to_string().contains("tunnel_source"))
    })
}

#[test]
fn transfers_by_the_tunnel_need_no_icmp_where_segments_are_clamped() {
    unless_unable("transfers_by_the_tunnel_need_no_icmp_where_segments_are_clamped", || {
        let of = |clamp| flags("eth0=xdp", "udp", &["--dsr-return", "ingress", "--clamp-mss", clamp]);
        let mut cluster = Cluster::serving(Attachment::Routed, &of("auto"))?;
        let deaf = "table inet deaf { chain input { type filter hook input priority filter; \
                    icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }\n";
        cluster.client().feed("nft", &["-f", "-"], deaf)?;
        cluster.find("vm02")?.namespace.feed("nft", &["-f", "-"], deaf)?;
        // What is cut behind the wrapping is cut to fit.
        cluster.find("vm02")?.namespace.offloads("eth0", &["tso", "off", "gso", "off"])?;
        for family in Family::ALL {
            // The next hops are known from then on, and what their ways take.
            sees_the_client(&cluster, family)?;
            for transfer in [fetches as Transfer, requests::upload_over] {
                moves(&cluster, family, transfer).with_context(|| format!("{family}"))?;
            }
        }
        for agent in cluster.agents.iter_mut().filter_map(Option::take) {
            agent.kill()?;
        }
        cluster.start_agents(&of("off"))?;
        for family in Family::ALL {
            for (name, transfer) in [("download", fetches as Transfer), ("upload", requests::upload_over)] {
                let stalls = moves(&cluster, family, transfer).is_err();
                ensure!(stalls, "{family}: the control's {name} does not stall");
            }
        }
        Ok(())
    });
}

/// A transfer over a connection: octets, and their rate.
type Transfer = fn(TcpStream, u64, u64) -> Result<()>;

fn fetches(connection: TcpStream, octets: u64, rate: u64) -> Result<()> {
    requests::download_over(connection, octets, rate).map(drop)
}

/// A transfer of some hundred packets from or to the VM of the other node that does not stall for long.
fn moves(cluster: &Cluster, family: Family, transfer: Transfer) -> Result<()> {
    let frontend = cluster.frontend("second", servers::BULK, 0, family)?;
    cluster.client().run(|| {
        let connection = requests::connect(frontend)?;
        connection.set_read_timeout(Some(Duration::from_millis(1500)))?;
        connection.set_write_timeout(Some(Duration::from_millis(1500)))?;
        transfer(connection, 300_000, 0)
    })
}

/// A second cable of the first node's, of another network; what it sends to the second node leaves by it.
fn add_uplink(cluster: &Cluster) -> Result<()> {
    let (node, router) = (&cluster.topology.nodes[0], &cluster.topology.router);
    router.ip(&format!(
        "link add node1b type veth peer name eth1 address 02:00:00:00:0e:01 netns {}\n\
         link set node1b up\nlink set node1b master br0\n",
        node.namespace.name()
    ))?;
    router.offloads("node1b", &["tx", "off", "gro", "on"])?;
    pass::attach(router, "node1b", &node.pin_root.join("pass2"))?;
    node.namespace.offloads("eth1", &["tx", "off"])?;
    let far = cluster.topology.nodes[1].addresses;
    // Who is asked for eth0's address by eth0's neighbours is not to answer by eth1.
    node.namespace.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    node.namespace.ip(&format!(
        "addr add 198.51.100.77/32 dev eth1\naddr add 2001:db8:77::1/128 dev eth1 nodad\nlink set eth1 up\n\
         route add {}/32 dev eth1\nroute add {}/128 dev eth1\n",
        far.v4, far.v6
    ))
}

/// The VM welcomes the client by HTTP and by UDP, and sees the client's address.
fn sees_the_client(cluster: &Cluster, family: Family) -> Result<()> {
    let client = cluster.topology.clients[0].addresses.of(family);
    let http = cluster.frontend("second", servers::HTTP, 0, family)?;
    let answer = cluster.client().run(|| requests::http(http, "/"))?;
    ensure!((answer.pod(), answer.client) == ("vm02", client), "{} saw {}", answer.pod(), answer.client);
    let udp = cluster.frontend("second", servers::ECHO, 0, family)?;
    let socket = cluster.client().run(|| requests::datagrams(udp))?;
    for _ in 0..5 {
        let (pod, seen) = requests::who(&socket)?;
        ensure!((pod.as_str(), seen) == ("vm02", client), "{pod} saw {seen} over UDP");
    }
    Ok(())
}

/// Downloads from the VM; the octets that the node which the client addressed has sent meanwhile.
fn downloads(cluster: &Cluster, family: Family) -> Result<u64> {
    let frontend = cluster.frontend("second", servers::BULK, 0, family)?;
    let router = &cluster.topology.router;
    // The far end of its cable counts.
    let before = router.received("node1")?;
    cluster.client().run(|| requests::download(frontend, OCTETS, 0))?;
    Ok(router.received("node1")? - before)
}

#[test]
fn a_service_that_changes_between_snat_and_dsr_cuts_nothing() {
    unless_unable("a_service_that_changes_between_snat_and_dsr_cuts_nothing", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        for family in Family::ALL {
            changes(&mut cluster, family).with_context(|| format!("{family}"))?;
        }
        Ok(())
    });
}

fn changes(cluster: &mut Cluster, family: Family) -> Result<()> {
    let client = cluster.topology.clients[0].addresses.of(family);
    let node = cluster.topology.nodes[0].addresses.of(family);
    let lines = cluster.frontend("second", servers::LINES, 0, family)?;
    let http = cluster.frontend("second", servers::HTTP, 0, family)?;
    let mut open: Vec<Conversation> = Vec::new();
    for (forwarding, seen) in [("dsr", client), ("snat", node), ("dsr", client)] {
        for _ in 0..50 {
            open.push(cluster.client().run(|| Conversation::open(lines))?);
        }
        let service = Service { forwarding: Some(forwarding), ..Service::all_servers("second", 31200) };
        cluster.publish(service, &["vm02"])?;
        probe::wait("new connections by the other way", Duration::from_secs(10), || {
            Ok(cluster.client().run(|| requests::http(http, "/"))?.client == seen)
        })?;
        for conversation in &mut open {
            conversation.ask("still there").with_context(|| format!("after the change to {forwarding}"))?;
        }
    }
    Ok(())
}
