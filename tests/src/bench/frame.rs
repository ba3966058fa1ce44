//! Frames of the bench, and what became of them. Checksums are made up: the datapath only changes them by difference.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::course::FRAME;
use crate::address::Family;
use crate::service::Protocol;

/// MAC addresses that no host of the rig has: a frame that still carries them was not sent.
const MACS: [u8; 12] = [2, 0, 0, 0, 0xbe, 1, 2, 0, 0, 0, 0xbe, 2];
const MADE_UP: [u8; 2] = [0x12, 0x34];

/// TCP flags.
pub mod flags {
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// SYN and ACK.
    pub const SYN_ACK: u8 = 0x12;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// What a TCP segment says besides its ends; UDP says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
}

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// A frame of [`FRAME`] octets.
pub fn build(ends: &Ends, protocol: Protocol, segment: Segment) -> [u8; FRAME] {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let mut octets = MACS.to_vec();
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            octets.extend([0x08, 0x00, 0x45, 0]);
            octets.extend(length(FRAME - 14));
            octets.extend([0, 1, 0x40, 0, 64, number]);
            octets.extend(MADE_UP);
            octets.extend(source.octets().into_iter().chain(destination.octets()));
        }
        (source, destination) => {
            octets.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            octets.extend(length(FRAME - 54));
            octets.extend([number, 64]);
            octets.extend([source, destination].into_iter().flat_map(octets_v6));
        }
    }
    octets.extend(ends.source_port.to_be_bytes());
    octets.extend(ends.destination_port.to_be_bytes());
    match protocol {
        Protocol::Tcp => {
            octets.extend(segment.sequence.to_be_bytes());
            octets.extend(segment.acknowledgment.to_be_bytes());
            octets.extend([0x50, segment.flags, 0x10, 0]);
            octets.extend(MADE_UP);
            octets.extend([0, 0]);
        }
        Protocol::Udp => {
            octets.extend(length(FRAME + 2 - octets.len()));
            octets.extend(MADE_UP);
        }
    }
    let mut frame = [0; FRAME];
    frame.iter_mut().zip(octets).for_each(|(to, from)| *to = from);
    frame
}

fn length(octets: usize) -> [u8; 2] {
    u16::try_from(octets).unwrap_or(u16::MAX).to_be_bytes()
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Reads both ends of a frame.
pub fn ends(family: Family, frame: &[u8]) -> Result<Ends> {
    let field = |at: usize, count: usize| frame.get(at..at + count).context("a short frame");
    let port = |at| field(at, 2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]));
    match family {
        Family::V4 => {
            let address = |at| -> Result<IpAddr> { Ok(IpAddr::from(<[u8; 4]>::try_from(field(at, 4)?)?)) };
            let (source, destination) = (address(26)?, address(30)?);
            Ok(Ends { source, destination, source_port: port(34)?, destination_port: port(36)? })
        }
        Family::V6 => {
            let address = |at| -> Result<IpAddr> { Ok(IpAddr::from(<[u8; 16]>::try_from(field(at, 16)?)?)) };
            let (source, destination) = (address(22)?, address(38)?);
            Ok(Ends { source, destination, source_port: port(54)?, destination_port: port(56)? })
        }
    }
}

/// Whether the frame still has the MAC addresses it was built with.
pub fn is_unsent(frame: &[u8]) -> bool {
    frame.starts_with(&MACS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_another_parser_reads() {
        for (source, destination) in [("192.0.2.1", "10.0.0.1"), ("2001:db8::1", "fd00::1")] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ends = Ends {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    source_port: 1000,
                    destination_port: 2000,
                };
                let frame =
                    build(&ends, protocol, Segment { flags: flags::SYN, sequence: 7, acknowledgment: 8 });
                let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                let ports = match parsed.transport.unwrap() {
                    etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
                    etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
                    other => panic!("{other:?}"),
                };
                assert_eq!(ports, (1000, 2000));
                let family = if ends.source.is_ipv4() { Family::V4 } else { Family::V6 };
                assert_eq!(super::ends(family, &frame).unwrap(), ends);
                assert!(is_unsent(&frame));
            }
        }
    }
}
