//! What services know of clients: source ranges, session affinity; and datagrams whose VM serves no more.

use std::net::SocketAddr;

use vmlb_common::verdict::Reason;

use crate::packets::frame::{Frame, between, tcp, udp};
use crate::packets::story::{Expect, NODE2, ROUTER, Story};
use crate::packets::world::{Net, RANGED, STAY, STICKY};

use Expect::{Delivered, Dropped, Sent};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![ranges(net), stays(net), stays_proved(net), leaves(net), stops(net), stops_alone(net)]
}

fn ranges(net: Net) -> Story {
    let mut story = Story::new("source ranges");
    let pod = net.pod(1);
    for frontend in [net.node(RANGED), net.vip(RANGED)] {
        let inside = tcp(net.client(20, 40000 + frontend.port() % 7), frontend).syn(1);
        let outside = tcp(net.client(80, 40000), frontend).syn(1);
        story.wire("a client outside", outside, Dropped(Reason::SOURCE_RANGE));
        if frontend == net.node(RANGED) {
            story.wire("a client inside", inside.clone(), Delivered(between(inside.source, pod, &inside)));
        }
    }
    story.wire("UDP outside", udp(net.client(80, 4), net.vip(RANGED)), Dropped(Reason::SOURCE_RANGE));
    story.change("the range goes", |world| {
        world.records.v4.ranges.clear();
        world.records.v6.ranges.clear();
    });
    story.wire(
        "nobody is inside",
        tcp(net.client(20, 5), net.vip(RANGED)).syn(1),
        Dropped(Reason::SOURCE_RANGE),
    );
    let ack = tcp(net.client(20, 40000 + RANGED % 7), net.node(RANGED)).at(2).ack(1);
    story.wire("but what is open goes on", ack.clone(), Delivered(between(ack.source, pod, &ack)));
    story
}

/// A request of client 0 to the service with affinity; only one backend is chosen for new clients at a time.
fn request(net: Net, port: u16) -> Frame {
    tcp(net.client(0, port), net.node(STICKY)).syn(1)
}

/// What becomes of it at backend 1, which is here, or at backend 2, behind node2.
fn at_first(net: Net, frame: &Frame) -> Expect {
    Delivered(between(frame.source, net.pod(1), frame))
}

fn at_second(net: Net, frame: &Frame) -> Expect {
    let us = SocketAddr::new(net.node(0).ip(), frame.source.port());
    Sent(between(us, net.pod(2), frame).ttl(63), NODE2)
}

fn stays(net: Net) -> Story {
    let mut story = Story::new("a client stays with its target");
    story.change("new clients get backend 1", |world| world.select(STICKY, 0, &[1]));
    story.change("for a while", |world| world.stick(STICKY, STAY, &[1, 2]));
    let first = request(net, 61000);
    story.wire("its first flow", first.clone(), at_first(net, &first));
    story.change("now they get backend 2", |world| world.select(STICKY, 0, &[2]));
    story.change("and stay", |world| world.stick(STICKY, STAY, &[1, 2]));
    let second = request(net, 61001);
    story.wire("its second flow goes where the first went", second.clone(), at_first(net, &second));
    let by_vip = tcp(net.client(0, 61011), net.vip(STICKY)).syn(1);
    story.wire("by another frontend too", by_vip.clone(), at_first(net, &by_vip));
    let other = tcp(net.client(1, 61002), net.node(STICKY)).syn(1);
    story.wire("another client's does not", other.clone(), at_second(net, &other));
    let datagram = udp(net.client(0, 61003), net.node(STICKY));
    story.wire("nor do datagrams: another port of the Service", datagram.clone(), at_second(net, &datagram));
    story.wait(STAY - 10);
    let third = request(net, 61004);
    story.wire("every new flow begins its time anew", third.clone(), at_first(net, &third));
    story.wait(STAY - 10);
    let fourth = request(net, 61005);
    story.wire("so it stays", fourth.clone(), at_first(net, &fourth));
    story.wait(STAY + 10);
    let fifth = request(net, 61006);
    story.wire("after its time it goes where new clients go", fifth.clone(), at_second(net, &fifth));
    story.change("affinity is switched off", |world| world.stick(STICKY, 0, &[]));
    story.change("and new clients get backend 1", |world| world.select(STICKY, 0, &[1]));
    let sixth = request(net, 61007);
    story.wire("nothing is remembered", sixth.clone(), at_first(net, &sixth));
    story
}

fn stays_proved(net: Net) -> Story {
    let mut story = Story::new("a client that has shown itself is remembered apart from those who have not");
    story.change("new clients get backend 2", |world| world.select(STICKY, 0, &[2]));
    story.change("and stay", |world| world.stick(STICKY, STAY, &[1, 2]));
    let (client, frontend, us) = (net.client(0, 61000), net.node(STICKY), net.node(61000));
    let syn = tcp(client, frontend).syn(1);
    story.wire("SYN", syn.clone(), at_second(net, &syn));
    let syn_ack = tcp(net.pod(2), us).syn(5).ack(2);
    story.wire("SYN-ACK", syn_ack.clone(), Sent(between(frontend, client, &syn_ack).ttl(63), ROUTER));
    let ack = tcp(client, frontend).at(2).ack(6);
    story.wire("ACK", ack.clone(), at_second(net, &ack));
    story.change("now they get backend 1", |world| world.select(STICKY, 0, &[1]));
    story.change("and stay", |world| world.stick(STICKY, STAY, &[1, 2]));
    story.wait(STAY - 10);
    story.sweep();
    let again = request(net, 61001);
    story.wire("it stays", again.clone(), at_second(net, &again));
    story.wait(STAY - 10);
    story.sweep();
    let again = request(net, 61002);
    story.wire("its new flow began its time anew", again.clone(), at_second(net, &again));
    story.wait(STAY + 10);
    story.sweep();
    let again = request(net, 61003);
    story.wire("after its time it goes where new clients go", again.clone(), at_first(net, &again));
    story
}

fn leaves(net: Net) -> Story {
    let mut story = Story::new("a target that may not be chosen any more is a miss");
    story.change("new clients get backend 1", |world| world.select(STICKY, 0, &[1]));
    story.change("and stay", |world| world.stick(STICKY, STAY, &[1]));
    let first = request(net, 61000);
    story.wire("its first flow", first.clone(), at_first(net, &first));
    story.change("backend 1 drains", |world| world.select(STICKY, 0, &[2]));
    story.change("and is no choice", |world| world.stick(STICKY, STAY, &[2]));
    let second = request(net, 61001);
    story.wire("its second flow goes elsewhere", second.clone(), at_second(net, &second));
    story.change("backend 1 is back", |world| world.select(STICKY, 0, &[1]));
    story.change("and a choice", |world| world.stick(STICKY, STAY, &[1, 2]));
    let third = request(net, 61002);
    story.wire("and there it stays now", third.clone(), at_second(net, &third));
    let ack = tcp(first.source, first.destination).at(2).ack(1);
    story.wire("its first flow is where it was", ack.clone(), at_first(net, &ack));
    story
}

fn stops(net: Net) -> Story {
    let mut story = Story::new("datagrams move when their VM stops serving, and others stay");
    let (client, other, frontend) = (net.client(0, 61020), net.client(1, 61021), net.node(30002));
    let (us, pod) = (net.node(61020), net.pod(2));
    let (ask, answer) = (udp(client, frontend), udp(pod, us));
    let there = |frame: &Frame| Sent(between(us, pod, frame).ttl(63), NODE2);
    story.wire("to backend 2", ask.clone(), there(&ask));
    story.wire("its answer", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), ROUTER));
    story.wire("proved", ask.clone(), there(&ask));
    let syn = tcp(client, frontend).syn(1);
    story.wire("a connection too", syn.clone(), there(&syn));
    let stays = udp(other, net.node(30001));
    story.wire("another VM's", stays.clone(), Delivered(between(other, net.pod(1), &stays)));
    story.flows(2, 1);
    story.change("backend 2 is not ready, backend 1 is", |world| {
        world.select(30002, 0, &[1]);
        world.stop_serving(30002, 2);
    });
    story.sweep();
    story.flows(2, 0);
    story.wire("the datagrams move", ask.clone(), Delivered(between(client, net.pod(1), &ask)));
    let ack = tcp(client, frontend).at(2).ack(3);
    story.wire("the connection stays", ack.clone(), there(&ack));
    story.wire("and so does the other VM's", stays.clone(), Delivered(between(other, net.pod(1), &stays)));
    story
}

fn stops_alone(net: Net) -> Story {
    let mut story = Story::new("datagrams of the last VM stay with it, whatever it says of itself");
    let (client, frontend) = (net.client(0, 61022), net.node(30002));
    let ask = udp(client, frontend);
    let there = |frame: &Frame| Sent(between(net.node(61022), net.pod(2), frame).ttl(63), NODE2);
    story.wire("to backend 2", ask.clone(), there(&ask));
    story.change("backend 2 is not ready, and there is no other", |world| {
        world.select(30002, 0, &[]);
        world.stop_serving(30002, 2);
    });
    story.sweep();
    story.flows(1, 0);
    story.wire("they go on", ask.clone(), there(&ask));
    story
}
