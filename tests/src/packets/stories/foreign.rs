//! Packets that are not ours: they pass at the cost of the gate.

use crate::address::Family;
use crate::packets::frame::{tcp, udp};
use crate::packets::story::{At, Expect, Story};
use crate::packets::world::{Net, POD1};

use Expect::{Foreign, Passed};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![gate(net), beside(net)]
}

fn gate(net: Net) -> Story {
    let mut story = Story::new("foreign packets");
    let (client, node) = (net.client(0, 40000), net.node(0).ip());
    let at = |port| std::net::SocketAddr::new(node, port);
    story.wire("ssh to the node", tcp(client, at(22)).syn(1), Foreign);
    story.wire("the API server", tcp(client, at(6443)).ack(1).data(b"x"), Foreign);
    story.wire("a name server's answer", udp(net.stranger(53), at(50_000)), Foreign);
    story.wire("a frontend's port at another address", tcp(client, net.stranger(30001)).syn(1), Foreign);
    story.wire("a SNAT port at another address", udp(client, net.stranger(61001)), Foreign);
    story.wire(
        "a frontend's port at an address of SNAT alone",
        udp(client, net.node_on_eth1(30001)),
        Foreign,
    );
    story.wire("a SNAT port at an address of frontends alone", udp(client, net.vip(61001)), Foreign);
    // UDP-Lite (RFC 3828) looks like UDP but for its number, and its length is something else.
    let mut lite = udp(client, at(30001)).octets();
    lite[if net.0 == Family::V4 { 23 } else { 20 }] = 136;
    story.raw("UDP-Lite to a frontend", lite, Foreign);
    story.egress("the node's own packets", tcp(net.node(22), client).ack(1), Foreign);
    story.egress("a pod's packet from another port", tcp(with_port(net.pod(1), 443), client).ack(1), Foreign);
    story.egress(
        "a stranger's packet from a target's port",
        udp(with_port(net.stranger(0), 8080), client),
        Foreign,
    );
    story.packet(
        "a pod's packet from another port",
        At::Pod(POD1),
        udp(with_port(net.pod(1), 53), client),
        Foreign,
    );
    story
}

fn beside(net: Net) -> Story {
    let mut story = Story::new("packets that the gate cannot tell");
    let client = net.client(0, 40000);
    story.wire("a client's packet to a SNAT port", tcp(client, net.node(61001)).syn(1), Passed);
    story.wire("a datagram of somebody to a SNAT port", udp(net.stranger(53), net.node(61001)), Passed);
    story.egress("a pod's packet to a client without a flow", tcp(net.pod(1), client).ack(1), Passed);
    story.packet(
        "a pod's packet into the cluster",
        At::Pod(POD1),
        tcp(net.pod(1), net.pod(2)).ack(1),
        Passed,
    );
    story
}

fn with_port(mut address: std::net::SocketAddr, port: u16) -> std::net::SocketAddr {
    address.set_port(port);
    address
}
