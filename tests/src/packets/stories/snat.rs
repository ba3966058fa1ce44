//! SNAT ports: one tuple, one flow; and packets of backends that no flow explains.

use vmlb_common::host::Socket;
use vmlb_common::verdict::Reason;
use vmlb_common::wire::Protocol;

use crate::packets::frame::{Frame, between, tcp, udp};
use crate::packets::story::{BEHIND_ETH2, Expect, NODE2, ROUTER, Story};
use crate::packets::world::Net;

use Expect::{Answered, Dropped, Passed, Sent};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![exhausted(net), exhausted_own_port(net), stray(net)]
}

pub(super) fn stories_of_moments(net: Net) -> Vec<Story> {
    vec![exhausted_by_ends(net)]
}

fn exhausted(net: Net) -> Story {
    let mut story = Story::new("SNAT ports run out, and those of closed flows are taken over");
    story.change("one SNAT port is left", |world| world.records.use_snat_ports(61000, 61000));
    let (us, pod, frontend) = (net.node(61000), net.pod(2), net.node(30002));
    let (first, second) = (net.client(0, 50000), net.client(1, 50001));
    let syn = tcp(first, frontend).syn(1);
    story.wire("the first connection has it", syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let next = tcp(second, frontend).syn(1);
    let refusal = next.refusal().ack(2).octets();
    story.wire("the second finds none", next.clone(), Answered(Reason::SNAT_EXHAUSTED, refusal.clone()));
    story.flows(1, 0);
    let ask = udp(second, frontend);
    story.wire("UDP has ports of its own", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    let other = tcp(second, net.node(30005)).syn(1);
    let (us_there, there) = (net.node_on_eth2(61000), net.pod(5));
    story.wire("and so has every target", other.clone(), {
        Sent(between(us_there, there, &other).ttl(63), BEHIND_ETH2)
    });
    let syn_ack = tcp(pod, us).syn(7).ack(2);
    story.wire("SYN-ACK", syn_ack.clone(), Sent(between(frontend, first, &syn_ack).ttl(63), ROUTER));
    let ack = tcp(first, frontend).at(2).ack(8);
    story.wire("ACK", ack.clone(), Sent(between(us, pod, &ack).ttl(63), NODE2));
    story.flows(2, 1);
    story.wire("established, it is not taken over", next.clone(), Answered(Reason::SNAT_EXHAUSTED, refusal));
    story.flows(2, 1);
    let rst = tcp(pod, us).at(8).rst();
    story.wire("RST of the VM", rst.clone(), Sent(between(frontend, first, &rst).ttl(63), ROUTER));
    story.wire("closed, it is", next.clone(), Sent(between(us, pod, &next).ttl(63), NODE2));
    story.flows(3, 0);
    let answer = tcp(pod, us).syn(9).ack(2);
    story.wire(
        "and the answer is the second one's",
        answer.clone(),
        Sent(between(frontend, second, &answer).ttl(63), ROUTER),
    );
    story
}

fn exhausted_by_ends(net: Net) -> Story {
    let mut story = Story::new(
        "the SNAT port of a flow that both ended is taken over, best once its last ACK has passed",
    );
    story.change("two SNAT ports are left", |world| world.records.use_snat_ports(61000, 61001));
    let (pod, frontend) = (net.pod(2), net.node(30002));
    for (index, port) in [(0, 61000), (1, 61001)] {
        let (client, us) = (net.client(index, port), net.node(port));
        let out = |packet: &Frame| Sent(between(us, pod, packet).ttl(63), NODE2);
        let back = |packet: &Frame| Sent(between(frontend, client, packet).ttl(63), ROUTER);
        let packet = tcp(client, frontend).syn(1);
        story.wire("SYN", packet.clone(), out(&packet));
        let packet = tcp(pod, us).syn(7).ack(2);
        story.wire("SYN-ACK", packet.clone(), back(&packet));
        let packet = tcp(client, frontend).at(2).ack(8).fin();
        story.wire("ACK and FIN", packet.clone(), out(&packet));
        story.wait(1);
        let packet = tcp(pod, us).at(8).ack(3).fin();
        story.wire("FIN of the VM, an ACK is still to come", packet.clone(), back(&packet));
    }
    story.flows(0, 2);
    for (index, port, says) in [
        (2, 61000, "a new one gets the port whose last ACK has passed"),
        (3, 61001, "another the other, before it is refused"),
    ] {
        let syn = tcp(net.client(index, 50000), frontend).syn(1);
        story.wire(says, syn.clone(), Sent(between(net.node(port), pod, &syn).ttl(63), NODE2));
    }
    story.flows(2, 0);
    let syn = tcp(net.client(4, 50000), frontend).syn(1);
    story.wire("a third finds none", syn.clone(), {
        Answered(Reason::SNAT_EXHAUSTED, syn.refusal().ack(2).octets())
    });
    story
}

fn exhausted_own_port(net: Net) -> Story {
    let mut story = Story::new("a client's own port is tried first");
    story.change("two SNAT ports are left", |world| world.records.use_snat_ports(61000, 61001));
    let (pod, frontend) = (net.pod(2), net.node(30002));
    let (first, second, third) = (net.client(0, 61001), net.client(1, 61001), net.client(2, 61001));
    let syn = tcp(first, frontend).syn(1);
    story.wire("its own", syn.clone(), Sent(between(net.node(61001), pod, &syn).ttl(63), NODE2));
    let syn = tcp(second, frontend).syn(1);
    story.wire("the other", syn.clone(), Sent(between(net.node(61000), pod, &syn).ttl(63), NODE2));
    let syn = tcp(third, frontend).syn(1);
    story.wire("none", syn.clone(), Answered(Reason::SNAT_EXHAUSTED, syn.refusal().ack(2).octets()));
    story.flows(2, 0);
    story
}

fn stray(net: Net) -> Story {
    let mut story =
        Story::new("packets of a backend to a SNAT port that no flow holds, and what the stack answers");
    let (us, pod) = (net.node(61018), net.pod(2));
    let late = tcp(pod, us).at(5).ack(6);
    story.wire("a late ACK may be kube-proxy's: the stack's", late.clone(), Passed);
    story.wire("a SYN-ACK too", tcp(pod, us).syn(5).ack(6), Passed);
    story.wire("a late datagram too", udp(pod, us), Passed);
    let reset = tcp(us, pod).at(6).rst();
    story.egress("the stack's own reset would kill the VM's connection", reset.clone(), {
        Dropped(Reason::OWN_RESET)
    });
    story.egress("what is not a reset leaves", tcp(us, pod).at(6).ack(5), Passed);
    let other = std::net::SocketAddr::new(pod.ip(), 9999);
    story.egress("a port that is not a target's", tcp(us, other).at(6).rst(), Passed);
    story.egress("a host that is not a backend", tcp(us, net.client(0, 8080)).at(6).rst(), Passed);
    story.egress("a port that is not SNAT's", tcp(net.node(50000), pod).at(6).rst(), Passed);
    story.change("the node has sockets there", move |world| {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            world.sockets.insert(Socket { protocol, address: us.ip(), port: us.port() });
        }
    });
    story.egress("a socket of the node's own may reset", reset.clone(), Passed);
    story.egress("another port still may not", tcp(net.node(61019), pod).at(6).rst(), {
        Dropped(Reason::OWN_RESET)
    });
    story.flows(0, 0);
    story
}
