//! TCP's maximum segment size, lowered to what a way takes.

use vmlb_common::abi::ClampMss;

use crate::address::Family;
use crate::packets::frame::{between, tcp};
use crate::packets::story::{BEHIND_ETH2, Expect, ROUTER, Story};
use crate::packets::world::{Net, SMALL_MTU};

use Expect::{Delivered, Sent};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![wherever_it_is(net), malformed(net), of_replies(net), as_told(net)]
}

/// What fits packets of this size.
fn fitting(net: Net, mtu: u16) -> u16 {
    mtu - if net.0 == Family::V4 { 40 } else { 60 }
}

/// The options, with this size where they have `MSS`.
fn with(options: &[u16], size: u16) -> Vec<u8> {
    let octets = options.iter().flat_map(|&octet| match octet {
        MSS => vec![2, 4, (size >> 8) as u8, size as u8],
        octet => vec![octet as u8],
    });
    octets.collect()
}

/// Stands for the whole option.
const MSS: u16 = 256;
const TIMESTAMPS: [u16; 10] = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];

fn wherever_it_is(net: Net) -> Story {
    let mut story = Story::new("a segment size that is too large for the way to the VM");
    let (client, frontend) = (net.client(0, 61012), net.node(30005));
    let (us, pod) = (net.node_on_eth2(61012), net.pod(5));
    let behind = |padding: &[u16], after: &[u16]| [padding, &[MSS], after].concat();
    let mut last = TIMESTAMPS.repeat(3);
    last.extend([3, 3, 7, 4, 2, 1, MSS]);
    for (says, options) in [
        ("in front", behind(&[], &[])),
        ("in front of others", behind(&[], &[&TIMESTAMPS[..], &[1, 1]].concat())),
        ("at an odd octet", behind(&[1], &[1, 1, 1])),
        ("at another", behind(&[3, 3, 7], &[0])),
        ("behind others", behind(&TIMESTAMPS, &[1, 1])),
        ("behind END there is nothing else to find", behind(&[], &[0, 2, 4, 9])),
        ("the last of 40 octets, the third of odd length", last),
    ] {
        let syn = tcp(client, frontend).syn(1000);
        for (before, after) in [
            (fitting(net, 1500), fitting(net, SMALL_MTU)),
            (u16::MAX, fitting(net, SMALL_MTU)),
            (fitting(net, SMALL_MTU), fitting(net, SMALL_MTU)),
            (536, 536),
        ] {
            let sent = between(us, pod, &syn).ttl(63).options(&padded(with(&options, after)));
            story.wire(says, syn.clone().options(&padded(with(&options, before))), Sent(sent, BEHIND_ETH2));
        }
    }
    story
}

/// The header's length is counted in words.
fn padded(mut options: Vec<u8>) -> Vec<u8> {
    options.resize(options.len().next_multiple_of(4).min(40), 0);
    options
}

fn malformed(net: Net) -> Story {
    let mut story = Story::new("options without a segment size, or none at all");
    let (client, frontend) = (net.client(0, 61012), net.node(30005));
    let (us, pod) = (net.node_on_eth2(61012), net.pod(5));
    for (says, options) in [
        ("none", vec![]),
        ("padding", vec![1, 1, 1, 1]),
        ("other options", vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]),
        ("behind END", vec![0, 2, 4, 255, 255, 0, 0, 0]),
        ("a wrong length", vec![2, 3, 255, 255]),
        ("a longer one", vec![2, 5, 255, 255, 255, 0, 0, 0]),
        ("cut by the header's end", vec![1, 1, 2, 4]),
        ("behind an option of no length", vec![8, 0, 2, 4, 255, 255, 0, 0]),
        ("behind an option of one octet", vec![8, 1, 2, 4, 255, 255, 0, 0]),
        ("behind an option that ends elsewhere", vec![8, 255, 2, 4, 255, 255, 0, 0]),
        ("inside another option", vec![8, 8, 2, 4, 255, 255, 0, 0]),
    ] {
        let syn = tcp(client, frontend).syn(1000).options(&options);
        story.wire(says, syn.clone(), Sent(between(us, pod, &syn).ttl(63), BEHIND_ETH2));
    }
    // What stands behind the header is data.
    let syn = tcp(client, frontend).syn(1000).data(&[2, 4, 255, 255]);
    story.wire("in the data", syn.clone(), Sent(between(us, pod, &syn).ttl(63), BEHIND_ETH2));
    let options = [2, 4, 255, 255];
    let ack = tcp(client, frontend).at(1001).ack(1).options(&options);
    story.wire("no SYN", ack.clone(), Sent(between(us, pod, &ack).ttl(63), BEHIND_ETH2));
    story
}

fn of_replies(net: Net) -> Story {
    let mut story = Story::new("a segment size that is too large for the way to the client");
    let (client, frontend) = (net.client(0, 61012), net.node(30005));
    let (us, pod) = (net.node_on_eth2(61012), net.pod(5));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), Sent(between(us, pod, &syn).ttl(63), BEHIND_ETH2));
    for (before, after) in [(8960, fitting(net, 1500)), (1200, 1200)] {
        let answer = tcp(pod, us).syn(5000).ack(1001);
        let sent = between(frontend, client, &answer).ttl(63).options(&with(&[1, MSS, 1, 1, 1], after));
        story.wire("SYN-ACK", answer.options(&with(&[1, MSS, 1, 1, 1], before)), Sent(sent, ROUTER));
    }
    story
}

fn as_told(net: Net) -> Story {
    let mut story = Story::new("segment sizes as the operator says");
    let (client, frontend) = (net.client(0, 61012), net.node(30005));
    let (us, pod) = (net.node_on_eth2(61012), net.pod(5));
    let local = net.node(30001);
    for (says, told, remote, here) in [
        ("not lowered", ClampMss::OFF, 1460, 1460),
        ("to these octets at most, also on the way through the stack", ClampMss(1000), 1000, 1000),
        ("to what fits where that is less", ClampMss(1450), fitting(net, SMALL_MTU), 1450),
        ("to what fits; the stack knows its ways itself", ClampMss::AUTO, fitting(net, SMALL_MTU), 1460),
    ] {
        story.change(says, move |world| world.records.settings.clamp_mss = told);
        let sized = |size| with(&[MSS], size);
        let syn = tcp(client, frontend).syn(1000);
        let sent = between(us, pod, &syn).ttl(63).options(&sized(remote));
        story.wire("to another node", syn.options(&sized(1460)), Sent(sent, BEHIND_ETH2));
        let syn = tcp(client, local).syn(1000);
        let delivered = between(client, net.pod(1), &syn).options(&sized(here));
        story.wire("to a VM of this node", syn.options(&sized(1460)), Delivered(delivered));
        let answer = tcp(net.pod(1), client).syn(5000).ack(1001);
        let delivered = between(local, client, &answer).options(&sized(here));
        story.egress("and its answer", answer.options(&sized(1460)), Delivered(delivered));
    }
    story
}
