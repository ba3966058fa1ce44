//! What makes a flow established, and what does not.

use vmlb_common::verdict::Reason;

use crate::packets::frame::{Frame, between, tcp, udp};
use crate::packets::story::{At, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, ETH1, Net};

use Expect::{Delivered, Passed, Punted, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![acknowledgments(net), order(net), flood(net), full(net), evicted(net)]
}

fn acknowledgments(net: Net) -> Story {
    let mut story = Story::new("only the right acknowledgment proves a flow");
    let (client, frontend, pod) = (net.client(0, 40003), net.node(30001), net.pod(1));
    let deliver = |packet: &Frame| Delivered(between(client, pod, packet));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), deliver(&syn));
    let early = tcp(client, frontend).at(1001).ack(5001);
    story.wire("an ACK before any answer", early.clone(), deliver(&early));
    story.flows(1, 0);
    let ack = tcp(pod, client).at(9).ack(1001);
    story.egress("an answer that is not a SYN-ACK", ack.clone(), Delivered(between(frontend, client, &ack)));
    story.wire("is not proof", early.clone(), deliver(&early));
    story.flows(1, 0);
    let syn_ack = tcp(pod, client).syn(u32::MAX).ack(1001);
    story.egress(
        "SYN-ACK with the last sequence number",
        syn_ack.clone(),
        Delivered(between(frontend, client, &syn_ack)),
    );
    for (says, guess) in
        [("guess 1", 0x8000_0000), ("guess 2", u32::MAX), ("guess 3", 0x10_0000), ("guess 4", 77_777_777)]
    {
        let packet = tcp(client, frontend).at(1001).ack(guess);
        story.wire(says, packet.clone(), deliver(&packet));
    }
    let rst = tcp(client, frontend).at(1001).ack(0).syn(1);
    story.wire("a SYN with the right number", rst.clone(), deliver(&rst));
    let bare = tcp(client, frontend).at(1001);
    story.wire("the right number without flag ACK", bare.clone(), deliver(&bare));
    story.flows(1, 0);
    let right = tcp(client, frontend).at(1001).ack(0);
    story.wire("the right one, past the wrap", right.clone(), deliver(&right));
    story.flows(0, 1);
    story
}

fn order(net: Net) -> Story {
    let mut story = Story::new("a SYN that is sent again meets the same backend");
    let (client, frontend, pod) = (net.client(0, 61015), net.node(30002), net.pod(2));
    let us = net.node(61015);
    let syn = tcp(client, frontend).syn(1000);
    for says in ["SYN", "SYN again", "SYN a third time"] {
        story.wire(says, syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
        story.flows(1, 0);
    }
    let syn_ack = tcp(pod, us).syn(1).ack(1001);
    story.wire("SYN-ACK", syn_ack.clone(), Sent(between(frontend, client, &syn_ack).ttl(63), ROUTER));
    story.wire("SYN again, crossing it", syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let again = tcp(pod, us).syn(1).ack(1001);
    story.wire("SYN-ACK again", again.clone(), Sent(between(frontend, client, &again).ttl(63), ROUTER));
    let ack = tcp(client, frontend).at(1001).ack(2).data(b"hello");
    story.wire("ACK with data", ack.clone(), Sent(between(us, pod, &ack).ttl(63), NODE2));
    story.flows(0, 1);
    story
}

fn flood(net: Net) -> Story {
    let mut story = Story::new("a flood of openings does not touch an established flow");
    let (client, frontend, pod) = (net.client(0, 40004), net.node(30001), net.pod(1));
    let packets =
        [tcp(client, frontend).syn(1), tcp(pod, client).syn(9).ack(2), tcp(client, frontend).at(2).ack(10)];
    story.wire("SYN", packets[0].clone(), Delivered(between(client, pod, &packets[0])));
    story.egress("SYN-ACK", packets[1].clone(), Delivered(between(frontend, client, &packets[1])));
    story.wire("ACK", packets[2].clone(), Delivered(between(client, pod, &packets[2])));
    for number in 0..200 {
        let spoofed = tcp(net.client(100, 1024 + number), frontend).syn(u32::from(number));
        let out = between(spoofed.source, pod, &spoofed);
        story.wire("a spoofed SYN", spoofed, Delivered(out));
    }
    story.host_flows(64, 1);
    let data = packets[2].clone().data(b"still here");
    story.wire("the client", data.clone(), Delivered(between(client, pod, &data)));
    let answer = tcp(pod, client).at(10).ack(12);
    story.egress("the VM", answer.clone(), Delivered(between(frontend, client, &answer)));
    story
}

fn full(net: Net) -> Story {
    let mut story = Story::new("a full table of established flows leaves new ones evictable");
    let (frontend, pod) = (net.node(30001), net.pod(1));
    for number in 0..65 {
        let client = net.client(0, 20000 + number);
        let ask = udp(client, frontend);
        story.wire("a datagram", ask.clone(), Delivered(between(client, pod, &ask)));
        let answer = udp(pod, client);
        story.egress("its answer", answer.clone(), Delivered(between(frontend, client, &answer)));
        if number < 64 {
            story.wire("another", ask.clone(), Delivered(between(client, pod, &ask)));
        } else {
            story.flows(1, 64);
            story.wire_counting(
                "one too many",
                Reason::TABLE_FULL_ESTABLISHED,
                ask.clone(),
                Delivered(between(client, pod, &ask)),
            );
            story.flows(1, 64);
        }
    }
    story
}

fn evicted(net: Net) -> Story {
    let mut story = Story::new("half a flow is not believed");
    let (client, frontend) = (net.client(0, 61016), net.node(30002));
    let (us, pod) = (net.node(61016), net.pod(2));
    let ask = udp(client, frontend);
    story.wire("a datagram", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    story.lose_half_replies("its reply's side is evicted");
    story.wire("the next one makes the flow anew", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    story.flows(1, 0);
    let syn = tcp(client, net.node(30004)).syn(1);
    let sent = between(net.node_on_eth1(61016), net.pod(4), &syn).ttl(63);
    story.packet("SYN", At::Uplink(ETH0), syn.clone(), SentByTc(Reason::NO_TRANSMIT, sent, ETH1));
    story.lose_half_replies("both replies' sides are evicted");
    let ack = tcp(client, net.node(30004)).at(2).ack(3);
    story.wire("an ACK without the other side is the stack's", ack, Punted(Reason::MID_FLOW));
    let answer = tcp(net.pod(4), net.node_on_eth1(61016)).syn(1).ack(2);
    story.packet("an answer without a reply's side is the stack's", At::Uplink(ETH1), answer, Passed);
    story.egress("what a pod says to somebody else passes", udp(net.pod(1), net.stranger(53)), Passed);
    story
}
