//! Packets whose headers lie or hide something: untouched, or dropped and counted.

use vmlb_common::verdict::Reason;

use crate::address::Family;
use crate::packets::frame::{Frame, tcp, udp};
use crate::packets::story::{Expect, Story};
use crate::packets::world::Net;

use Expect::{Dropped, Foreign, Passed, Punted};

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;

pub(super) fn stories(net: Net) -> Vec<Story> {
    let mut stories = vec![lengths(net), tags(net)];
    stories.push(if net.0 == Family::V4 { ipv4(net) } else { ipv6(net) });
    stories
}

fn header(net: Net) -> usize {
    if net.0 == Family::V4 { 20 } else { 40 }
}

fn changed(frame: &Frame, at: usize, octets: &[u8]) -> Vec<u8> {
    let mut frame = frame.octets();
    frame[at..at + octets.len()].copy_from_slice(octets);
    frame
}

fn lengths(net: Net) -> Story {
    let mut story = Story::new("lengths that contradict each other");
    let (syn, ask) = (tcp(net.client(0, 1), net.node(30001)).syn(1), udp(net.client(0, 1), net.node(30001)));
    let transport = ETHERNET + header(net);
    let udp_length = transport + 4;
    story.raw(
        "UDP of more octets than IP has",
        changed(&ask, udp_length, &[0, 13]),
        Dropped(Reason::MALFORMED),
    );
    story.raw(
        "UDP of fewer octets than its header",
        changed(&ask, udp_length, &[0, 7]),
        Dropped(Reason::MALFORMED),
    );
    story.raw("UDP of length zero", changed(&ask, udp_length, &[0, 0]), Dropped(Reason::MALFORMED));
    let tcp_offset = transport + 12;
    story.raw("a TCP header of 16 octets", changed(&syn, tcp_offset, &[0x40]), Dropped(Reason::MALFORMED));
    story.raw(
        "a TCP header longer than the packet",
        changed(&syn, tcp_offset, &[0x60]),
        Dropped(Reason::MALFORMED),
    );
    let ip_length = if net.0 == Family::V4 { ETHERNET + 2 } else { ETHERNET + 4 };
    story.raw("IP longer than the frame", changed(&syn, ip_length, &[1, 0]), Dropped(Reason::MALFORMED));
    story.raw("IP without anything in it", changed(&syn, ip_length, &[0, 0]), Dropped(Reason::MALFORMED));
    let mut padded = tcp(net.client(0, 1), net.stranger(1)).octets();
    padded.resize(60, 0);
    story.raw("a foreign frame with padding", padded, Foreign);
    story.flows(0, 0);
    story
}

fn tags(net: Net) -> Story {
    let mut story = Story::new("tagged frames");
    let frame = tcp(net.client(0, 1), net.node(30001)).syn(1).octets();
    let tagged = |tags: &[u8]| [&frame[..12], tags, &frame[12..]].concat();
    story.raw("802.1Q", tagged(&[0x81, 0, 0, 100]), Foreign);
    story.raw("802.1ad with 802.1Q in it", tagged(&[0x88, 0xa8, 0, 100, 0x81, 0, 0, 5]), Foreign);
    story.raw("a priority tag", tagged(&[0x81, 0, 0xe0, 0]), Foreign);
    story.raw("ARP", changed(&tcp(net.client(0, 1), net.node(30001)), 12, &[8, 6]), Foreign);
    story
}

fn ipv4(net: Net) -> Story {
    let mut story = Story::new("IPv4 with options, fragments, other versions");
    let syn = tcp(net.client(0, 1), net.node(30001)).syn(1);
    let foreign = tcp(net.client(0, 1), net.stranger(30001)).syn(1);
    story.raw("options", changed(&syn, ETHERNET, &[0x46]), Punted(Reason::OPTIONS));
    story.raw("a header of 60 octets", changed(&syn, ETHERNET, &[0x4f]), Punted(Reason::OPTIONS));
    story.raw("a header of 16 octets", changed(&syn, ETHERNET, &[0x44]), Punted(Reason::OPTIONS));
    story.raw("options to somebody else", changed(&foreign, ETHERNET, &[0x46]), Foreign);
    story.raw("version 6 under EtherType IPv4", changed(&syn, ETHERNET, &[0x65]), Foreign);
    let icmp = changed(&syn, ETHERNET + 9, &[1]);
    let of_icmp = [&icmp[..ETHERNET + 6], &[0x20, 0], &icmp[ETHERNET + 8..]].concat();
    story.raw("the first fragment of an echo", of_icmp, Punted(Reason::FRAGMENT));
    story.raw("a fragment inside a header", changed(&syn, ETHERNET + 6, &[0, 1]), Dropped(Reason::MALFORMED));
    story.raw("a later fragment", changed(&syn, ETHERNET + 6, &[0, 3]), Punted(Reason::FRAGMENT));
    story.raw("a fragment to somebody else", changed(&foreign, ETHERNET + 6, &[0x20, 0]), Foreign);
    story.raw("ICMP", changed(&syn, ETHERNET + 9, &[1]), Foreign);
    story.raw("SCTP is not served yet", changed(&syn, ETHERNET + 9, &[132]), Foreign);
    story.flows(0, 0);
    story
}

fn ipv6(net: Net) -> Story {
    let mut story = Story::new("IPv6 with extension headers, fragments, other versions");
    let syn = tcp(net.client(0, 1), net.node(30001)).syn(1);
    let foreign = tcp(net.client(0, 1), net.stranger(30001)).syn(1);
    story.raw("version 4 under EtherType IPv6", changed(&syn, ETHERNET, &[0x45]), Foreign);
    story.raw("a fragment of options", with_extensions(&syn, &[44, 60]), Passed);
    story.raw("a fragment to somebody else", with_extensions(&foreign, &[44]), Foreign);
    story.raw("hop-by-hop options", with_extensions(&syn, &[0]), Foreign);
    story.raw("destination options", with_extensions(&syn, &[60]), Foreign);
    story.raw("a routing header", with_extensions(&syn, &[43]), Foreign);
    story.raw("a fragment behind options", with_extensions(&syn, &[0, 44]), Foreign);
    story.raw("a long chain", with_extensions(&syn, &[0, 60, 43, 60, 60, 60, 60, 60, 51, 135, 60]), Foreign);
    story.raw("no next header", changed(&syn, ETHERNET + 6, &[59]), Foreign);
    story.flows(0, 0);
    story
}

/// The packet with extension headers of 8 octets in front of its transport header.
fn with_extensions(frame: &Frame, kinds: &[u8]) -> Vec<u8> {
    let octets = frame.octets();
    let (front, transport) = octets.split_at(ETHERNET + 40);
    let mut out = front.to_vec();
    let last = out[ETHERNET + 6];
    for (index, _) in kinds.iter().enumerate() {
        out.extend([kinds.get(index + 1).copied().unwrap_or(last), 0, 0, 0, 0, 0, 0, 0]);
    }
    out[ETHERNET + 6] = kinds[0];
    out.extend(transport);
    let payload = u16::try_from(out.len() - ETHERNET - 40).expect("test packets are short");
    out[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&payload.to_be_bytes());
    out
}
