//! Next hops that nobody has resolved yet: the first packet waits for the answer in the kernel, it is not lost.

use anyhow::{Context, Result, ensure};
use etherparse::{PacketHeaders, TcpOptionElement, TransportHeader};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{Agent, Flags};
use vmlb_tests::capture::Capture;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{counters, requests, servers};

#[test]
fn the_first_packet_to_an_unresolved_neighbour_arrives_without_being_sent_again() {
    unless_unable("the_first_packet_to_an_unresolved_neighbour_arrives_without_being_sent_again", || {
        // Both ways forward: the backend's node is the neighbour, and the pod itself is.
        for node in [0, 1] {
            let control = retransmitted(node, Way::Control)?;
            let ours = retransmitted(node, Way::Vmlb)?;
            ensure!(ours <= control, "node{}: {ours} segments sent again, {control} without vmlb", node + 1);
        }
        Ok(())
    });
}

/// The device's MTU is all that is known of a way to a neighbour without a MAC address; a SYN that waits for one is lowered to
/// that.
#[test]
fn the_first_syn_to_an_unresolved_neighbour_is_lowered_to_the_devices_mtu() {
    unless_unable("the_first_syn_to_an_unresolved_neighbour_is_lowered_to_the_devices_mtu", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            let mut cluster = Cluster::build(Attachment::Routed)?;
            let host = &cluster.topology.nodes[0].namespace;
            host.ip("link set eth0 mtu 1400\n")?;
            cluster.start_agents(&Flags { device: device.to_owned(), ..Flags::default() })?;
            cluster.agents.iter_mut().filter_map(Option::take).try_for_each(Agent::stop)?;
            for family in Family::ALL {
                let arriving = Capture::start(&cluster.find("vm02")?.namespace)?;
                forget_neighbours(&cluster.topology.nodes[0].namespace)?;
                let frontend = cluster.frontend("second", servers::HTTP, 0, family)?;
                cluster.client().run(|| requests::http(frontend, "/"))?;
                let sizes: Vec<u16> = arriving.finish().iter().filter_map(|frame| offered(frame)).collect();
                let headers = if family == Family::V4 { 40 } else { 60 };
                ensure!(sizes.first() == Some(&(1400 - headers)), "{device}, {family}: {sizes:?}");
            }
        }
        Ok(())
    });
}

/// The maximum segment size in a SYN to the HTTP server.
fn offered(frame: &[u8]) -> Option<u16> {
    let packet = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let TransportHeader::Tcp(tcp) = packet.transport? else { return None };
    let is_first = tcp.syn && !tcp.ack && tcp.destination_port == servers::HTTP;
    let mut options = tcp.options_iterator().filter_map(Result::ok).filter(|_| is_first);
    options.find_map(|option| match option {
        TcpOptionElement::MaximumSegmentSize(size) => Some(size),
        _ => None,
    })
}

/// Who forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Control,
    Vmlb,
}

/// Connects through node number `node` to vm02 right after the node forgot its neighbours, once a family; returns the
/// segments that the client had to send again.
fn retransmitted(node: usize, way: Way) -> Result<u64> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    match way {
        Way::Control => cluster.install_control()?,
        Way::Vmlb => {
            cluster.start_agents(&Flags::default())?;
            // A living agent would have the neighbour resolved before a packet needs it.
            cluster.agents.iter_mut().filter_map(Option::take).try_for_each(Agent::stop)?;
        }
    }
    let before = counters::retransmitted(cluster.client())?;
    for family in Family::ALL {
        let host = &cluster.topology.nodes[node].namespace;
        forget_neighbours(host)?;
        let frontend = cluster.frontend("second", servers::HTTP, node, family)?;
        let answer = cluster.client().run(|| requests::http(frontend, "/"));
        let answer = answer.with_context(|| format!("{family} through node{}", node + 1))?;
        ensure!(answer.pod() == "vm02");
    }
    Ok(counters::retransmitted(cluster.client())? - before)
}

/// Forgets every neighbour, the permanent and the managed ones too.
fn forget_neighbours(host: &vmlb_tests::namespace::Namespace) -> Result<()> {
    host.ip("neigh flush all nud all\n")?;
    let left = host.output("ip", &["neigh", "show", "nud", "reachable"])?;
    ensure!(left.is_empty(), "neighbours are left: {left}");
    Ok(())
}
