//! Packets for us in wrappings that the datapath does not unwrap: VLAN tags, IPv4 options, IPv6 extension headers, chains
//! and loops of them. They are the stack's, as they came.

use super::frame::{Frame, tcp, udp};
use super::world::Net;
use crate::address::Family;

/// Octets of an Ethernet header; the type is its last two.
const ETHERNET: usize = 14;
/// 802.1Q.
const TAG: [u8; 4] = [0x81, 0x00, 0x00, 0x05];
/// 802.1ad, the outer tag of QinQ.
const OUTER_TAG: [u8; 4] = [0x88, 0xa8, 0x00, 0x06];

/// Next-header numbers of IPv6 (RFC 8200).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// Authentication (RFC 4302): its length is counted otherwise.
const AUTHENTICATION: u8 = 51;

/// Each wrapping around a request that would open a flow and one that would refresh it.
pub fn all(net: Net) -> Vec<Vec<u8>> {
    let client = net.client(0, 61001);
    let frames = [
        tcp(client, net.node(30002)).syn(1),
        tcp(net.pod(2), net.node(61001)).syn(5).ack(1),
        udp(client, net.vip(30001)).data(b"some data"),
    ];
    frames.iter().flat_map(|frame| wrappings(net.0, frame)).collect()
}

fn wrappings(family: Family, frame: &Frame) -> Vec<Vec<u8>> {
    let plain = frame.octets();
    let mut wrapped = vec![
        tagged(&plain, &[TAG]),
        tagged(&plain, &[OUTER_TAG, TAG]),
        tagged(&plain, &[TAG; 8]),
        // A tag behind a tag that ends the frame.
        [&plain[..12], &TAG, &TAG].concat(),
    ];
    match family {
        Family::V4 => {
            // No-operation, end of list, a record route, one whose length is 0, one that is longer than the header.
            for options in
                [&[1; 4][..], &[0; 40], &[7, 7, 4, 0, 0, 0, 0, 0], &[68, 0, 0, 0], &[131, 39, 4, 0]]
            {
                wrapped.push(with_options(&plain, options));
            }
        }
        Family::V6 => {
            for chain in [
                &[HOP_BY_HOP][..],
                &[DESTINATION],
                &[ROUTING],
                // Without options behind it, it would be served.
                &[FRAGMENT, DESTINATION],
                &[AUTHENTICATION],
                &[HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION],
                &[DESTINATION; 24],
            ] {
                wrapped.push(with_extensions(&plain, chain));
            }
            // A loop: the last header says that another follows, and there is none.
            let mut looped = with_extensions(&plain, &[DESTINATION; 4]);
            looped.truncate(ETHERNET + 40 + 4 * 8);
            looped[ETHERNET + 40 + 3 * 8] = DESTINATION;
            wrapped.push(looped);
        }
    }
    wrapped
}

fn tagged(plain: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&plain[..12], &tags.concat(), &plain[12..]].concat()
}

/// The packet with options in its IPv4 header, whose sum is right.
fn with_options(plain: &[u8], options: &[u8]) -> Vec<u8> {
    let (header, rest) = plain[ETHERNET..].split_at(20);
    let mut header = [header, options].concat();
    header[0] = 0x40 | u8::try_from(header.len() / 4).unwrap_or(15);
    let total = u16::try_from(header.len() + rest.len()).unwrap_or(u16::MAX);
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[10..12].fill(0);
    let sum = header.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&plain[..ETHERNET], &header, rest].concat()
}

/// The packet behind these extension headers of eight octets each.
fn with_extensions(plain: &[u8], chain: &[u8]) -> Vec<u8> {
    let (header, rest) = plain[ETHERNET..].split_at(40);
    let (mut header, last) = (header.to_vec(), header[6]);
    let mut extensions = Vec::new();
    for (place, kind) in chain.iter().enumerate() {
        let next = chain.get(place + 1).copied().unwrap_or(last);
        // Length in eights of octets beyond the first eight; of an authentication header in fours less two. Then padding
        // by one option, a route of no segments, or the first fragment of several.
        let (length, more) = match *kind {
            AUTHENTICATION => (0, [0; 6]),
            FRAGMENT => (0, [0, 1, 0, 0, 0, 7]),
            ROUTING => (0, [0; 6]),
            _ => (0, [1, 4, 0, 0, 0, 0]),
        };
        extensions.extend([next, length]);
        extensions.extend(more);
    }
    header[6] = chain.first().copied().unwrap_or(last);
    let length = u16::try_from(extensions.len() + rest.len()).unwrap_or(u16::MAX);
    header[4..6].copy_from_slice(&length.to_be_bytes());
    [&plain[..ETHERNET], &header, &extensions, rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_parser_reads_through_the_wrappings() {
        for family in Family::ALL {
            let mut read = 0;
            for packet in all(Net(family)) {
                let found = etherparse::PacketHeaders::from_ethernet_slice(&packet);
                read += usize::from(found.is_ok_and(|found| found.transport.is_some()));
            }
            assert!(read >= 9, "{family}: {read} packets");
        }
    }
}
