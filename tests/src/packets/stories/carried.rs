//! Datagrams in fragments by the tunnel between nodes: each in a wrapping of its own, told apart on the other side by the first.

use vmlb_common::verdict::Reason;

use super::errors::about_first;
use super::fragments::{SAYS, cut, refusal};
use super::tunnel::{Ends, PROVED, begin, mark_of};
use crate::address::Family;
use crate::packets::frame::{Frame, Says, Shape, Wrapping, between, tcp, udp};
use crate::packets::story::{At, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, ETH1, Net, neighbour};

use Expect::{Delivered, Dropped, DroppedBare, Passed, Sent, SentByTc, TooBig};

pub(super) fn stories(net: Net) -> Vec<Story> {
    let of_shape: [fn(Net, Shape) -> Story; 13] = [
        addressed_here,
        backend_here,
        following,
        always_back,
        too_large_to_go_back,
        connections,
        out_of_order,
        not_ours,
        lost_on_the_way,
        errors,
        deferred,
        returned_by_tc,
        too_large,
    ];
    Shape::ALL.into_iter().flat_map(|shape| of_shape.map(|story| story(net, shape))).collect()
}

/// Octets behind the IP header of all fragments but the last: they fit every wrapping.
const ROOM: usize = 1360;

/// The same for fragments that fit a cable, and no wrapping on it.
fn most(net: Net) -> usize {
    if net.0 == Family::V4 { 1480 } else { 1448 }
}

const WIRE: At = At::Uplink(ETH0);
const EGRESS: At = At::Egress(ETH0);

fn three(frame: &Frame, number: u32) -> [Frame; 3] {
    cut(frame, number, ROOM)
}

/// Each fragment of one meets the datapath, and becomes what `expect` makes of that of the other.
fn whole(story: &mut Story, at: At, pieces: [Frame; 3], out: [Frame; 3], expect: impl Fn(Frame) -> Expect) {
    for (says, (piece, out)) in SAYS.into_iter().zip(pieces.into_iter().zip(out)) {
        story.packet(says, at, piece, expect(out));
    }
}

fn wrapped(pieces: [Frame; 3], wrapping: Wrapping) -> [Frame; 3] {
    pieces.map(|piece| piece.wrapped(wrapping))
}

/// From the client to a VM on node2.
fn asks(story: &mut Story, ends: Ends, number: u32, ask: &Frame, mark: u16) {
    whole(story, WIRE, three(ask, number), three(ask, number), |frame| ends.carried(&frame, mark));
}

/// From node2 to its client.
fn answers(story: &mut Story, ends: Ends, number: u32, answer: &Frame) {
    let out = three(&answer.clone().ttl(63), number);
    whole(story, WIRE, wrapped(three(answer, number), ends.from(0)), out, |frame| Sent(frame, ROUTER));
}

fn addressed_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments by the tunnel to a VM on another node", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.node(30002));
    let (ask, answer) = (udp(client, frontend), udp(frontend, client));
    asks(&mut story, ends, 7, &ask, 0);
    story.flows(1, 0);
    answers(&mut story, ends, 7, &answer);
    asks(&mut story, ends, 8, &ask, PROVED);
    story.flows(0, 1);
    answers(&mut story, ends, 8, &answer);
    let [first, second, last] = three(&ask, 9);
    story.wire("the first of another", first.clone(), ends.carried(&first, PROVED));
    story.wire("one without hops left", second.clone().ttl(1), Dropped(Reason::TTL_EXPIRED));
    story.wait(31);
    story.wire("half a minute later it is another datagram's", last, Expect::Punted(Reason::FRAGMENT));
    let (short, out) = (udp(client, frontend).data(&[9; 19]), 16);
    for piece in short.pieces(10, out) {
        story.wire("a fragment of a few octets", piece.clone(), ends.carried(&piece, PROVED));
    }
    if net.0 == Family::V4 {
        asks(&mut story, ends, 11, &ask.without_sum(), PROVED);
    }
    story
}

fn backend_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments by the tunnel to a VM of this node", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 5353), net.vip(30001), net.pod(1));
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let (ask, there) = (udp(client, frontend).ttl(63), udp(client, pod).ttl(63));
    let (answer, back) = (udp(pod, client), udp(frontend, client));
    whole(&mut story, WIRE, wrapped(three(&ask, 1), open), three(&there, 1), Delivered);
    story.flows(1, 0);
    whole(&mut story, EGRESS, three(&answer, 1), three(&back, 1), |frame| ends.back(frame));
    whole(&mut story, WIRE, wrapped(three(&ask, 2), proved), three(&there, 2), Delivered);
    story.flows(0, 1);
    whole(&mut story, EGRESS, three(&answer, 2), three(&back, 2), Delivered);
    let short = |from, to| udp(from, to).data(&[9; 19]).ttl(63).pieces(3, 16);
    for (piece, out) in short(client, frontend).into_iter().zip(short(client, pod)) {
        story.wire("a fragment of a few octets", piece.wrapped(proved), Delivered(out));
    }
    if net.0 == Family::V4 {
        let (ask, there) = (ask.without_sum(), there.without_sum());
        whole(&mut story, WIRE, wrapped(three(&ask, 4), proved), three(&there, 4), Delivered);
    }
    story
}

fn following(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments of a flow whose VM leaves for another node", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 5353), net.vip(30001), net.pod(1));
    let (ask, answer) = (udp(client, frontend), udp(pod, client));
    whole(&mut story, WIRE, three(&ask, 1), three(&udp(client, pod), 1), Delivered);
    whole(&mut story, EGRESS, three(&answer, 1), three(&udp(frontend, client), 1), Delivered);
    whole(&mut story, WIRE, three(&ask, 2), three(&udp(client, pod), 2), Delivered);
    story.flows(0, 1);
    story.change("it leaves for node2", move |world| {
        world.expect(1, net.pod_beside(2, 0), 2);
        world.turn(1);
    });
    let wrapping = ends.to(PROVED | mark_of(1));
    let out = wrapped(three(&ask.clone().ttl(63), 3), wrapping);
    whole(&mut story, WIRE, three(&ask, 3), out, |frame| Sent(frame, NODE2));
    let back = wrapped(three(&udp(frontend, client), 3), ends.from(0));
    let out = three(&udp(frontend, client).ttl(63), 3);
    whole(&mut story, WIRE, back, out, |frame| Sent(frame, ROUTER));
    story
}

fn always_back(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments of answers that come back as requests went", net, shape, 1);
    let (client, frontend, pod) = (net.client(0, 5353), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let (ask, there) = (udp(client, frontend).ttl(63), udp(client, pod).ttl(63));
    for number in [1, 2] {
        whole(&mut story, WIRE, wrapped(three(&ask, number), proved), three(&there, number), Delivered);
        let (answer, back) = (three(&udp(pod, client), number), three(&udp(frontend, client), number));
        whole(&mut story, EGRESS, answer, back, |frame| ends.back(frame));
    }
    let [.., last] = cut(&udp(pod, client), 3, most(net));
    story.egress("one whose first has not come", last, Passed);
    story
}

fn too_large_to_go_back(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("answers whose fragments are too large for the tunnel", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 5353), net.vip(30001), net.pod(1));
    let ask = udp(client, frontend).ttl(63);
    let there = || Delivered(between(client, pod, &ask));
    story.wire("a datagram", ask.clone().wrapped(ends.from(mark_of(1))), there());
    let (answer, back) = (udp(pod, client), udp(frontend, client));
    whole(&mut story, EGRESS, cut(&answer, 1, most(net)), cut(&back, 1, most(net)), Delivered);
    story.change("answers come back as requests went", move |world| world.tunnel(shape, 1));
    let reason = if net.0 == Family::V4 { Reason::UNCUTTABLE } else { Reason::TOO_BIG };
    let [first, second, _] = cut(&answer, 2, most(net));
    story.egress("then they are nobody's", first, DroppedBare(reason));
    story.egress("nor are the others sent", second, Dropped(reason));
    story
}

fn connections(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a connection in fragments by the tunnel", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let data = tcp(client, frontend).at(1007).ack(5001).ttl(63);
    let there = between(client, pod, &data);
    whole(&mut story, WIRE, wrapped(three(&data, 7), proved), three(&there, 7), Delivered);
    story.flows(0, 1);
    for start in [8, 16] {
        let inside = data.clone().data(&[1; 100]).piece(7, start..120).wrapped(proved);
        story.wire("one that reaches into the header", inside, Dropped(Reason::MALFORMED));
    }
    story
}

fn out_of_order(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments that the tunnel brings out of order", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30001));
    let proved = ends.from(PROVED | mark_of(1));
    let ask = udp(client, frontend).ttl(63);
    for number in [1, 2] {
        let [first, second, last] = wrapped(three(&ask, number), proved);
        story.wire("the second first", second.clone(), Dropped(Reason::FRAGMENT_TUNNEL));
        story.wire("the first then", first, Dropped(Reason::FRAGMENT_TUNNEL));
        story.wire("and the last", last, Dropped(Reason::FRAGMENT_TUNNEL));
        story.wire("and the second again", second, Dropped(Reason::FRAGMENT_TUNNEL));
    }
    story.flows(0, 0);
    let there = udp(client, net.pod(1)).ttl(63);
    whole(&mut story, WIRE, wrapped(three(&ask, 3), proved), three(&there, 3), Delivered);
    let direct = three(&udp(client, frontend), 3);
    let [_, second, _] = direct;
    story.wire("one of the same number from the client itself", second, Expect::Punted(Reason::FRAGMENT));
    story
}

fn not_ours(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments between nodes that are not the tunnel's", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30001));
    let open = ends.from(mark_of(1));
    let forged = Wrapping { from: net.stranger(0).ip(), ..open };
    for piece in wrapped(three(&udp(client, frontend), 1), forged) {
        story.wire("from no node of the cluster", piece, Dropped(Reason::TUNNEL_SOURCE));
    }
    for piece in wrapped(three(&udp(net.pod(2), net.pod(1)), 1), open) {
        story.wire("between pods", piece, Passed);
    }
    let to_stranger = Wrapping { to: net.stranger(0).ip(), ..open };
    for piece in wrapped(three(&udp(client, frontend), 1), to_stranger) {
        story.wire("for another node", piece, Passed);
    }
    for piece in wrapped(three(&udp(client, net.vip(9)), 1), open).into_iter().take(1) {
        story.wire("to a port of nobody's", piece, Passed);
    }
    story.flows(0, 0);
    story
}

fn lost_on_the_way(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments by the tunnel whose target is not here", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30001));
    let [first, second, last] = wrapped(three(&udp(client, frontend), 1), ends.from(0x7fff));
    story.wire("a tag of nobody's", first, DroppedBare(Reason::TUNNEL_TARGET));
    story.wire("the second goes the same way", second, Dropped(Reason::TUNNEL_TARGET));
    story.wire("and the last", last, Dropped(Reason::TUNNEL_TARGET));
    let [first, second, _] = wrapped(three(&udp(frontend, client), 1), ends.from(0));
    story.wire("an answer of no flow", first, DroppedBare(Reason::TUNNEL_FRONTEND));
    story.wire("its second", second, Dropped(Reason::TUNNEL_FRONTEND));
    story
}

fn errors(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("errors about first fragments, by the tunnel", net, shape, 0);
    let (client, router) = (net.client(0, 5353), net.routers_own());
    let about = |to, frame: &Frame| about_first(net, router, to, Says::TooBig(1280), frame);
    let frontend = net.vip(30002);
    asks(&mut story, ends, 7, &udp(client, frontend), 0);
    let error = about(frontend, &udp(frontend, client));
    story.wire("a router has trouble with an answer", error.clone(), ends.carried(&error, PROVED));
    let (frontend, pod) = (net.vip(30001), net.pod(1));
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let ask = udp(client, frontend);
    story.wire("a flow to a VM of this node", ask.clone().wrapped(open), {
        Delivered(between(client, pod, &ask))
    });
    let error = about(frontend, &udp(frontend, client));
    story.wire("its pod learns of its own packet", error.wrapped(proved), {
        Delivered(about(pod, &udp(pod, client)))
    });
    let nobodys = about(frontend, &udp(frontend, net.client(1, 1)));
    story.wire("an error about no flow", nobodys.wrapped(proved), DroppedBare(Reason::TUNNEL_FRONTEND));
    story
}

fn deferred(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments that TC sends to the other node", net, shape, 0);
    let client = net.client(0, 5353);
    let ask = udp(client, net.vip(30003));
    let wrapping = Wrapping { to: net.node_of(3), ..ends.to(mark_of(3)) };
    let out = wrapped(three(&ask.clone().ttl(63), 7), wrapping);
    whole(&mut story, WIRE, three(&ask, 7), out, |frame| SentByTc(Reason::NEIGHBOUR, frame, ETH0));
    let ask = udp(client, net.vip(30004));
    let wrapping = Wrapping { from: net.node_on_eth1(0).ip(), to: net.node_of(4), ..ends.to(mark_of(4)) };
    let out = wrapped(three(&ask.clone().ttl(63), 8), wrapping);
    whole(&mut story, WIRE, three(&ask, 8), out, |frame| SentByTc(Reason::NO_TRANSMIT, frame, ETH1));
    story
}

fn returned_by_tc(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments of an answer by the tunnel that TC sends", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30002));
    let router = net.routes()[0].2.expect("the world has a route to clients");
    story.change("nobody knows the router's MAC address", move |world| {
        world.neighbours.remove(&(ETH0, router));
    });
    asks(&mut story, ends, 7, &udp(client, frontend), 0);
    let answer = udp(frontend, client);
    let out = three(&answer.clone().ttl(63), 7);
    whole(&mut story, WIRE, wrapped(three(&answer, 7), ends.from(0)), out, |frame| {
        SentByTc(Reason::NEIGHBOUR, frame, ETH0)
    });
    story.change("the router answers", move |world| {
        world.neighbours.insert((ETH0, router), neighbour(1));
        world.records.settings.generation += 1;
    });
    answers(&mut story, ends, 8, &answer);
    story
}

fn too_large(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("fragments too large for the tunnel", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30002));
    let ask = udp(client, frontend);
    let room = 1500 - shape.overhead(client.ip());
    let [first, second, last] = cut(&ask, 7, most(net));
    if net.0 == Family::V4 {
        story.wire("nobody cuts them here", first, Dropped(Reason::UNCUTTABLE));
        story.wire("nor the second", second, Dropped(Reason::UNCUTTABLE));
        story.wire("and the last helps nobody", last, Dropped(Reason::UNCUTTABLE));
    } else {
        let answer = refusal(&first, Says::TooBig(room));
        story.wire("the client learns what fits", first, TooBig(answer));
        story.wire("once", second, Dropped(Reason::TOO_BIG));
        story.wire("and the last helps nobody", last, Dropped(Reason::TOO_BIG));
    }
    let long = ask.data(&[3; 4000]);
    let (first, second) = (long.clone().piece(8, 0..800), long.piece(8, 800..800 + most(net)));
    story.wire("a small first", first.clone(), ends.carried(&first, 0));
    let reason = if net.0 == Family::V4 { Reason::UNCUTTABLE } else { Reason::TOO_BIG };
    story.wire("a second that is too large", second, Dropped(reason));
    asks(&mut story, ends, 9, &udp(client, frontend), 0);
    story
}
