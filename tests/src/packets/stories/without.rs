//! Frontends that cannot be served: no backend, no route, packets of connections that are not ours.

use vmlb_common::verdict::Reason;
use vmlb_common::wire::Protocol;

use crate::packets::frame::{Says, between, tcp, udp};
use crate::packets::story::{At, BEHIND_ETH2, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{EMPTY, EMPTY_LOCAL, ETH0, ETH2, Net};

use Expect::{Answered, Delivered, Dropped, Passed, Punted, Sent, Unanswered};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![empty(net), mid_flow(net), inherited(net), unreachable(net), gone(net), moved(net)]
}

fn empty(net: Net) -> Story {
    let mut story = Story::new("services without backends");
    let client = net.client(0, 40001);
    let syn = tcp(client, net.node(EMPTY)).syn(0xffff_ffff).data(b"early data");
    story.wire("TCP is reset", syn.clone(), Answered(Reason::NO_BACKEND, syn.refusal().ack(10).octets()));
    let ask = udp(client, net.vip(EMPTY));
    story.wire(
        "UDP finds the port unreachable",
        ask.clone(),
        Answered(Reason::NO_BACKEND, ask.refused(Says::NoPort)),
    );
    let empty = udp(client, net.vip(EMPTY)).data(b"");
    story.wire("without data too", empty.clone(), Answered(Reason::NO_BACKEND, empty.refused(Says::NoPort)));
    let crowd = [0x01, 0x00, 0x5e, 0, 0, 1];
    story.wire(
        "a frame to a crowd is not answered",
        ask.clone().macs([2; 6], crowd),
        Unanswered(Reason::NO_BACKEND),
    );
    let nobody = std::net::SocketAddr::new(net.loopback(), 40001);
    story.wire(
        "nor is one from nobody",
        between(nobody, ask.destination, &ask),
        Unanswered(Reason::NO_BACKEND),
    );
    story.change("answers are left to the stack", |world| world.records.settings.reject_rate = 0);
    story.wire("it rejects TCP", syn, Punted(Reason::NO_BACKEND));
    story.wire("and UDP", ask, Punted(Reason::NO_BACKEND));
    story.change("and are not any more", |world| world.records.settings.reject_rate = 1000);
    story.wire(
        "policy Local drops TCP",
        tcp(client, net.node(EMPTY_LOCAL)).syn(1),
        Dropped(Reason::NO_LOCAL_BACKEND),
    );
    story.wire("and UDP", udp(client, net.vip(EMPTY_LOCAL)), Dropped(Reason::NO_LOCAL_BACKEND));
    story.wire(
        "a slot whose backend is gone",
        tcp(client, net.node(30010)).syn(1),
        Punted(Reason::NO_BACKEND),
    );
    story.wire("a port of the gate without a frontend", udp(client, net.node_on_eth2(30001)), Passed);
    story.flows(0, 0);
    story
}

fn mid_flow(net: Net) -> Story {
    let mut story = Story::new("connections from before vmlb");
    let (client, frontend) = (net.client(0, 40002), net.node(30002));
    story.wire("data in mid-flow", tcp(client, frontend).at(7).ack(8).data(b"x"), Punted(Reason::MID_FLOW));
    story.wire("a FIN", tcp(client, frontend).at(7).ack(8).fin(), Punted(Reason::MID_FLOW));
    story.wire("a RST", tcp(client, frontend).at(7).rst(), Punted(Reason::MID_FLOW));
    story.wire("a SYN-ACK", tcp(client, frontend).syn(7).ack(9), Punted(Reason::MID_FLOW));
    story.wire("SYN and FIN together", tcp(client, frontend).syn(7).fin(), Punted(Reason::MID_FLOW));
    story.wire("no flag at all", tcp(client, frontend), Punted(Reason::MID_FLOW));
    story.flows(0, 0);
    story
}

fn inherited(net: Net) -> Story {
    let mut story = Story::new("what the stack carried before vmlb came");
    let (client, frontend) = (net.client(0, 61025), net.node(30002));
    let (us, pod) = (net.node(61026), net.pod(2));
    story.inherit(Protocol::UDP, client, frontend);
    story.inherit(Protocol::UDP, pod, us);
    story.inherit(Protocol::TCP, pod, us);
    story.wire("its datagrams", udp(client, frontend), Punted(Reason::INHERITED));
    story.wire("what its masquerading waits for", udp(pod, us), Passed);
    story.wire("by TCP too", tcp(pod, us).at(5).ack(6), Passed);
    let other = udp(client, net.vip(30002));
    let same = udp(net.client(0, 61026), frontend);
    story.wire("a newcomer that would get a tuple of it", same.clone(), Punted(Reason::INHERITED));
    story.flows(0, 0);
    story.wire("another frontend", other.clone(), Sent(between(net.node(61025), pod, &other).ttl(63), NODE2));
    story.flows(1, 0);
    story.wait(179);
    story.sweep();
    story.wire("it is kept as long as flows are", udp(client, frontend), Punted(Reason::INHERITED));
    story.wait(181);
    story.sweep();
    let ask = udp(client, frontend);
    story.wire(
        "after silence it is ours",
        ask.clone(),
        Sent(between(net.node(61025), pod, &ask).ttl(63), NODE2),
    );
    story.wire("and what comes late is nobody's", udp(pod, us), Passed);
    story
}

fn unreachable(net: Net) -> Story {
    let mut story = Story::new("backends that the network does not reach");
    let client = net.client(0, 61012);
    story.wire("no route", tcp(client, net.node(30007)).syn(1), Punted(Reason::NO_ROUTE));
    story.wire(
        "a device that is not ours",
        tcp(client, net.node(30006)).syn(1),
        Punted(Reason::FOREIGN_DEVICE),
    );
    story.flows(0, 0);
    story.wire(
        "a local backend, but no way back to the client",
        tcp(net.stranger(40000), net.node(30001)).syn(1),
        Punted(Reason::NO_ROUTE),
    );
    story.change("forwarding is off on eth0", |world| {
        world.silent.insert(ETH0);
    });
    story.wire("local", tcp(client, net.node(30001)).syn(1), Punted(Reason::FORWARDING_OFF));
    story.wire("remote", tcp(client, net.node(30002)).syn(1), Punted(Reason::FORWARDING_OFF));
    story.change("and on again", |world| world.silent.clear());
    story.change("eth0 loses its SNAT address", |world| {
        for device in world.records.devices.values_mut() {
            device.snat_v4 = Default::default();
            device.snat_v6 = Default::default();
        }
    });
    story.wire("no address for SNAT", tcp(client, net.node(30002)).syn(1), Punted(Reason::NO_SNAT_ADDRESS));
    story.flows(0, 0);
    story
}

fn gone(net: Net) -> Story {
    let mut story = Story::new("a backend that is gone");
    let (client, frontend, us) = (net.client(0, 61013), net.node(30002), net.node(61013));
    let syn = tcp(client, frontend).syn(1);
    story.wire("TCP to it", syn.clone(), Sent(between(us, net.pod(2), &syn).ttl(63), NODE2));
    let ask = udp(client, frontend);
    story.wire("UDP to it", ask.clone(), Sent(between(us, net.pod(2), &ask).ttl(63), NODE2));
    let answer = udp(net.pod(2), us);
    story.wire("UDP from it", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), ROUTER));
    story.wire("UDP, proved", ask.clone(), Sent(between(us, net.pod(2), &ask).ttl(63), NODE2));
    let other = udp(net.client(1, 61020), frontend);
    story.wire(
        "UDP to it, never answered",
        other.clone(),
        Sent(between(net.node(61020), net.pod(2), &other).ttl(63), NODE2),
    );
    story.flows(2, 1);
    story.change("the VM stops, another takes its place", |world| {
        world.remove_backend(2);
        world.select(30002, 0, &[1]);
    });
    let late = tcp(client, frontend).at(2).ack(77).data(b"late");
    story.wire("the TCP flow is reset", late.clone(), {
        Answered(Reason::BACKEND_GONE, late.refusal().at(77).octets())
    });
    let reset = tcp(client, frontend).at(2).rst();
    story.wire("a reset is not answered by one", reset, Unanswered(Reason::BACKEND_GONE));
    story.wire("a datagram moves at once", ask.clone(), Delivered(between(client, net.pod(1), &ask)));
    story.wire(
        "one of a flow never answered too",
        other.clone(),
        Delivered(between(net.client(1, 61020), net.pod(1), &other)),
    );
    story.flows(3, 0);
    story
}

fn moved(net: Net) -> Story {
    let mut story = Story::new("a VM that moves to another node");
    let (client, frontend) = (net.client(0, 61014), net.vip(30002));
    let us = net.node(61014);
    let syn = tcp(client, frontend).syn(1);
    story.wire("SYN", syn.clone(), Sent(between(us, net.pod(2), &syn).ttl(63), NODE2));
    story.change("backend 2 is behind eth2 now", move |world| {
        world.remove_backend(5);
        world.rehome(2, net.pod(5).ip());
    });
    let ack = tcp(client, frontend).at(2).ack(3);
    story.wire("requests follow it", ack.clone(), {
        Sent(between(us, net.pod(5), &ack).ttl(63), BEHIND_ETH2)
    });
    let speaks = tcp(net.pod(5), us).at(3).ack(2).data(b"first");
    story.packet("and so it is known when it speaks first", At::Uplink(ETH2), speaks.clone(), {
        Sent(between(frontend, client, &speaks).ttl(63), ROUTER)
    });
    story
}
