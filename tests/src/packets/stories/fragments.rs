//! Datagrams in fragments: as the first one where that comes first, else the stack's, or nobody's.

use vmlb_common::verdict::Reason;

use crate::address::Family;
use crate::packets::frame::{Frame, Says, between, icmp, tcp, udp};
use crate::packets::story::{At, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{EMPTY, ETH0, Net, POD1, SMALL_MTU};

use Expect::{Answered, Delivered, Dropped, Passed, Punted, Sent, SentByTc, TooBig, Unanswered};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![
        remote(net),
        local(net),
        through_a_device(net),
        early(net),
        early_in_a_flow(net),
        again(net),
        foreign(net),
        streams(net),
        deferred(net),
        too_large(net),
        refused(net),
    ]
}

/// Octets behind the IP header of all fragments but the last.
const ROOM: usize = 1448;

/// A datagram of three fragments, the last of which has three octets: less than ports take.
fn long(frame: &Frame, room: usize) -> Frame {
    let data: Vec<u8> = (0..2 * room - 8 + 3).map(|number| (number % 251) as u8).collect();
    frame.clone().data(&data)
}

/// Its fragments, of no more than `room` octets behind the IP header.
pub(super) fn cut(frame: &Frame, number: u32, room: usize) -> [Frame; 3] {
    long(frame, room).pieces(number, room).try_into().expect("three fragments")
}

pub(super) fn three(frame: &Frame, number: u32) -> [Frame; 3] {
    cut(frame, number, ROOM)
}

pub(super) const SAYS: [&str; 3] = ["the first fragment", "the second", "the last, of three octets"];

/// Each fragment of one becomes that fragment of the other.
pub(super) fn whole(
    story: &mut Story,
    at: At,
    number: u32,
    from: &Frame,
    to: &Frame,
    expect: impl Fn(Frame) -> Expect,
) {
    for (says, (from, to)) in SAYS.into_iter().zip(three(from, number).into_iter().zip(three(to, number))) {
        story.packet(says, at, from, expect(to));
    }
}

pub(super) const WIRE: At = At::Uplink(ETH0);

fn remote(net: Net) -> Story {
    let mut story = Story::new("fragments to a VM on another node");
    let (client, frontend) = (net.client(0, 61001), net.node(30002));
    let (us, pod) = (net.node(61001), net.pod(2));
    let (ask, out) = (udp(client, frontend), udp(us, pod).ttl(63));
    let (answer, back) = (udp(pod, us), udp(frontend, client).ttl(63));
    for number in [7, 8] {
        whole(&mut story, WIRE, number, &ask, &out, |frame| Sent(frame, NODE2));
        whole(&mut story, WIRE, number, &answer, &back, |frame| Sent(frame, ROUTER));
    }
    story.flows(0, 1);
    let [first, second, _] = three(&ask, 9);
    let [out_first, ..] = three(&out, 9);
    story.wire("the first of another datagram", first, Sent(out_first, NODE2));
    story.wire("a fragment with no hops left", second.clone().ttl(1), Dropped(Reason::TTL_EXPIRED));
    story.wait(31);
    story.wire("after half a minute the number is another datagram's", second, Punted(Reason::FRAGMENT));
    if net.0 == Family::V4 {
        let bare = ask.without_sum();
        whole(&mut story, WIRE, 10, &bare, &out.without_sum(), |frame| Sent(frame, NODE2));
    }
    story
}

fn local(net: Net) -> Story {
    let mut story = Story::new("fragments to a VM on this node");
    let (client, frontend, pod) = (net.client(0, 40001), net.node(30001), net.pod(1));
    let (ask, out) = (udp(client, frontend), udp(client, pod));
    let (answer, back) = (udp(pod, client), udp(frontend, client));
    for number in [1, 2] {
        whole(&mut story, WIRE, number, &ask, &out, Delivered);
        whole(&mut story, At::Egress(ETH0), number, &answer, &back, Delivered);
    }
    story.flows(0, 1);
    let strange = udp(pod, net.stranger(53));
    for (says, frame) in SAYS.into_iter().zip(three(&strange, 3)) {
        story.egress(says, frame, Passed);
    }
    let [first, second, last] = three(&answer, 4);
    story.egress("an answer's second fragment first", second, Passed);
    story.egress("the first is not sent on without it", first, Dropped(Reason::FRAGMENT_ORDER));
    story.egress("nor is the last", last, Dropped(Reason::FRAGMENT_ORDER));
    story
}

fn through_a_device(net: Net) -> Story {
    let mut story =
        Story::new("fragments to a VM on this node whose answers would leave by a foreign device");
    let (client, frontend, pod) = (net.foreign_client(61001), net.node(30001), net.pod(1));
    let us = net.node(61001);
    let (ask, out) = (udp(client, frontend), udp(us, pod).ttl(63));
    whole(&mut story, WIRE, 5, &ask, &out, |frame| SentByTc(Reason::POD_DEVICE, frame, POD1));
    let (answer, back) = (udp(pod, us), udp(frontend, client).ttl(63));
    let foreign = crate::packets::world::OTHER0;
    let exit = crate::packets::story::Exit { device: foreign, next_hop: [0; 6] };
    whole(&mut story, At::Pod(POD1), 5, &answer, &back, |frame| Sent(frame, exit));
    story
}

fn early(net: Net) -> Story {
    let mut story = Story::new("fragments out of order that the stack can serve");
    let ask = udp(net.client(0, 61001), net.node(30002));
    let [first, second, last] = three(&ask, 7);
    story.wire("the last fragment first", last, Punted(Reason::FRAGMENT));
    story.wire("the first goes with it", first.clone(), Punted(Reason::FRAGMENT));
    story.wire("and the second", second, Punted(Reason::FRAGMENT));
    story.flows(0, 0);
    story.wire("the first again", first, Punted(Reason::FRAGMENT));
    story.flows(0, 0);
    story
}

fn early_in_a_flow(net: Net) -> Story {
    let mut story = Story::new("fragments out of order in a flow of ours");
    let (client, frontend) = (net.client(0, 61001), net.node(30002));
    let (us, pod) = (net.node(61001), net.pod(2));
    let ask = udp(client, frontend);
    story.wire("a whole datagram", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    for number in [1, 2] {
        let [first, second, last] = three(&ask, number);
        story.wire("a second fragment first", second.clone(), Punted(Reason::FRAGMENT));
        story.wire("the first is too late", first, Dropped(Reason::FRAGMENT_ORDER));
        story.wire("and so is the last", last, Dropped(Reason::FRAGMENT_ORDER));
        story.wire("and the second again", second, Dropped(Reason::FRAGMENT_ORDER));
    }
    let answer = udp(pod, us);
    let [first, second, last] = three(&answer, 1);
    story.wire("an answer's last fragment first", last, Punted(Reason::FRAGMENT));
    story.wire("its first is too late", first, Dropped(Reason::FRAGMENT_ORDER));
    story.wire("its second too", second, Dropped(Reason::FRAGMENT_ORDER));
    let out = udp(us, pod).ttl(63);
    whole(&mut story, WIRE, 3, &ask, &out, |frame| Sent(frame, NODE2));
    story
}

fn again(net: Net) -> Story {
    let mut story = Story::new("fragments that come twice, and two datagrams at a time");
    let (ask, other) =
        (udp(net.client(0, 61001), net.node(30002)), udp(net.client(1, 61002), net.node(30002)));
    let out = udp(net.node(61001), net.pod(2)).ttl(63);
    let out_other = udp(net.node(61002), net.pod(2)).ttl(63);
    let sent = three(&ask, 7).into_iter().zip(three(&out, 7));
    let sent_other = three(&other, 7).into_iter().zip(three(&out_other, 7));
    for ((frame, out), (other, out_other)) in sent.zip(sent_other) {
        for _ in 0..2 {
            story.wire("a fragment", frame.clone(), Sent(out.clone(), NODE2));
            story.wire("one of the same number by another", other.clone(), Sent(out_other.clone(), NODE2));
        }
    }
    story
}

fn foreign(net: Net) -> Story {
    let mut story = Story::new("fragments to nobody");
    for (frontend, expect) in [(net.node(9), Passed), (net.stranger(30001), Expect::Foreign)] {
        for (says, frame) in SAYS.into_iter().zip(three(&udp(net.client(0, 1), frontend), 7)) {
            story.wire(says, frame, expect.clone());
        }
    }
    let error = icmp(net.client(0, 0), net.node(0), Says::Echo, &udp(net.client(0, 1), net.node(9)), 8);
    for frame in three(&error, 8) {
        story.wire("an echo in fragments", frame, Punted(Reason::FRAGMENT));
    }
    story
}

fn streams(net: Net) -> Story {
    let mut story = Story::new("a connection in fragments");
    let (client, frontend) = (net.client(0, 61001), net.node(30002));
    let (us, pod) = (net.node(61001), net.pod(2));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let syn_ack = tcp(pod, us).syn(5000).ack(1001);
    story.wire("SYN-ACK", syn_ack.clone(), Sent(between(frontend, client, &syn_ack).ttl(63), ROUTER));
    let data = tcp(client, frontend).at(1001).ack(5001);
    let out = between(us, pod, &data).ttl(63);
    whole(&mut story, WIRE, 7, &data, &out, |frame| Sent(frame, NODE2));
    story.flows(0, 1);
    let length = long(&data, ROOM).octets().len() - data.octets().len() + 20;
    for start in [8, 16] {
        let inside = long(&data, ROOM).piece(7, start..length);
        story.wire("one that reaches into the header", inside, Dropped(Reason::MALFORMED));
    }
    let short = long(&data, ROOM).piece(8, 0..16);
    story.wire("a first one without the whole header", short, Dropped(Reason::MALFORMED));
    story
}

fn deferred(net: Net) -> Story {
    let mut story = Story::new("fragments to a VM whose node's MAC address is not known");
    let (client, frontend) = (net.client(0, 61001), net.node(30003));
    let out = udp(net.node(61001), net.pod(3)).ttl(63);
    whole(&mut story, WIRE, 7, &udp(client, frontend), &out, |frame| {
        SentByTc(Reason::NEIGHBOUR, frame, ETH0)
    });
    story
}

fn too_large(net: Net) -> Story {
    let mut story = Story::new("fragments larger than the way on takes");
    let ask = udp(net.client(0, 61001), net.node(30005));
    for (number, frame) in three(&ask, 7).into_iter().enumerate() {
        let expect = match (net.0, number) {
            (Family::V4, 0 | 1) => Dropped(Reason::UNCUTTABLE),
            (Family::V6, 0) => TooBig(refusal(&frame, Says::TooBig(SMALL_MTU))),
            (Family::V6, 1) => Dropped(Reason::TOO_BIG),
            (Family::V4, _) => Dropped(Reason::UNCUTTABLE),
            (Family::V6, _) => Dropped(Reason::TOO_BIG),
        };
        story.wire(SAYS[number], frame, expect);
    }
    story
}

/// The refusal that quotes the IP header, the fragment header if there is one, and eight octets.
pub(super) fn refusal(frame: &Frame, says: Says) -> Vec<u8> {
    let octets = if frame.source.is_ipv4() { 8 } else { 16 };
    let (to, from) = (crate::packets::world::ROUTER_MAC, crate::packets::world::NODE_MAC);
    icmp(frame.destination, frame.source, says, frame, octets).macs(from, to).octets()
}

fn refused(net: Net) -> Story {
    let mut story = Story::new("fragments to a service without backends");
    let [first, second, last] = three(&udp(net.client(0, 61001), net.vip(EMPTY)), 7);
    let answer = refusal(&first, Says::NoPort);
    story.wire("the first is answered", first, Answered(Reason::NO_BACKEND, answer));
    story.wire("the second is not", second, Unanswered(Reason::NO_BACKEND));
    story.wire("nor is the last", last, Unanswered(Reason::NO_BACKEND));
    story
}
