//! Packets of a header or two and no data. Written octet by octet in the order of the RFCs: nothing here is in a hurry.

use std::net::{IpAddr, SocketAddr};

use vmlb_common::abi::Tunnel;
use vmlb_common::wire::{Protocol, TcpFlags};

/// Hops of a packet that is to arrive.
pub const TTL: u8 = 64;
/// IP in IP, IPv4 (RFC 2003).
const IPIP: u8 = 4;
/// IPv6 in IPv6 (RFC 2473).
const IPV6: u8 = 41;
/// Of a flow that is established: the far node makes it anew where it does not know it.
const ESTABLISHED: u16 = 0x8000;
/// Flags of a VXLAN header with an identifier, and a reserved octet.
const VNI_IS_VALID: u16 = 0x0800;
/// The source port of the tunnel's UDP shape: one of those that the datapath uses there.
const ENTROPY: u16 = 0xc000;
/// RFC 791: do not fragment.
const DONT_FRAGMENT: u16 = 0x4000;

/// A packet, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    next: IpAddr,
    octets: Vec<u8>,
}

/// What a packet carries: no data in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A TCP header without options.
    Tcp {
        /// Sequence number.
        sequence: u32,
        /// Acknowledgment number.
        acknowledgment: u32,
        /// Flags.
        flags: TcpFlags,
        /// Window, not scaled.
        window: u16,
    },
    /// A UDP header.
    Udp,
}

impl Packet {
    /// A packet from `source` to `destination` with so many hops left. `None`: they are of different families.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, ttl: u8, payload: Payload) -> Option<Self> {
        if source.is_ipv4() != destination.is_ipv4() {
            return None;
        }
        let (protocol, mut body) = match payload {
            Payload::Tcp { sequence, acknowledgment, flags, window } => {
                let mut header = Vec::with_capacity(20);
                header.extend(source.port().to_be_bytes());
                header.extend(destination.port().to_be_bytes());
                header.extend(sequence.to_be_bytes());
                header.extend(acknowledgment.to_be_bytes());
                // Five words of header.
                header.extend([5 << 4, flags.0]);
                header.extend(window.to_be_bytes());
                // Checksum and urgent pointer.
                header.extend([0; 4]);
                (Protocol::TCP, header)
            }
            Payload::Udp => {
                let mut header = Vec::with_capacity(8);
                header.extend(source.port().to_be_bytes());
                header.extend(destination.port().to_be_bytes());
                header.extend(8u16.to_be_bytes());
                header.extend([0; 2]);
                (Protocol::UDP, header)
            }
        };
        let length = u16::try_from(body.len()).ok()?;
        let mut sum = Sum::default();
        sum.add(&octets(source.ip()));
        sum.add(&octets(destination.ip()));
        sum.add(&u16::from(protocol.number()).to_be_bytes());
        sum.add(&length.to_be_bytes());
        sum.add(&body);
        let (place, checksum) = match protocol {
            Protocol::TCP => (16, sum.checksum()),
            // Zero says that there is none (RFC 768).
            _ => (6, if sum.checksum() == 0 { 0xffff } else { sum.checksum() }),
        };
        body.splice(place..place + 2, checksum.to_be_bytes());
        let header = Header {
            source: source.ip(),
            destination: destination.ip(),
            protocol: protocol.number(),
            ttl,
            mark: 0,
        };
        Some(Self { next: destination.ip(), octets: header.over(&body)? })
    }

    /// The packet in another to `node` that says for which backend it is, and that its flow is established. `None`: the ends
    /// are not of the packet's family.
    #[must_use]
    pub fn within_ip(&self, source: IpAddr, node: IpAddr, tag: u16) -> Option<Self> {
        let protocol = if self.next.is_ipv4() { IPIP } else { IPV6 };
        if source.is_ipv4() != self.next.is_ipv4() || node.is_ipv4() != self.next.is_ipv4() {
            return None;
        }
        let header = Header { source, destination: node, protocol, ttl: TTL, mark: tag | ESTABLISHED };
        Some(Self { next: node, octets: header.over(&self.octets)? })
    }

    /// The same in the shape of VXLAN (RFC 7348), to the port and the network of `tunnel`. `None`: as for [`Self::within_ip`].
    #[must_use]
    pub fn within_udp(&self, source: IpAddr, node: IpAddr, tag: u16, tunnel: Tunnel) -> Option<Self> {
        if source.is_ipv4() != self.next.is_ipv4() || node.is_ipv4() != self.next.is_ipv4() {
            return None;
        }
        let length = u16::try_from(8 + 8 + 14 + self.octets.len()).ok()?;
        let mut body = Vec::with_capacity(usize::from(length));
        // One source port will do: networks need not spread so few. No checksum: what is inside has its own.
        for word in [ENTROPY, tunnel.port, length, 0, VNI_IS_VALID, tag | ESTABLISHED] {
            body.extend(word.to_be_bytes());
        }
        body.extend((tunnel.network << 8).to_be_bytes());
        body.extend([0; 12]);
        body.extend(if self.next.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        body.extend(&self.octets);
        let header =
            Header { source, destination: node, protocol: Protocol::UDP.number(), ttl: TTL, mark: 0 };
        Some(Self { next: node, octets: header.over(&body)? })
    }

    /// To where the kernel is to route it.
    #[must_use]
    pub fn next(&self) -> IpAddr {
        self.next
    }

    /// The packet, from the IP header on.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

/// An IP header of either family.
struct Header {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ttl: u8,
    /// IPv4: the identification, IPv6: the low half of the flow label.
    mark: u16,
}

impl Header {
    fn over(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut packet = Vec::with_capacity(40 + body.len());
        match self.source {
            IpAddr::V4(_) => {
                packet.extend([0x45, 0]);
                packet.extend(u16::try_from(20 + body.len()).ok()?.to_be_bytes());
                packet.extend(self.mark.to_be_bytes());
                packet.extend(DONT_FRAGMENT.to_be_bytes());
                packet.extend([self.ttl, self.protocol, 0, 0]);
                packet.extend(octets(self.source));
                packet.extend(octets(self.destination));
                let mut sum = Sum::default();
                sum.add(&packet);
                packet.splice(10..12, sum.checksum().to_be_bytes());
            }
            IpAddr::V6(_) => {
                packet.extend([0x60, 0]);
                packet.extend(self.mark.to_be_bytes());
                packet.extend(u16::try_from(body.len()).ok()?.to_be_bytes());
                packet.extend([self.protocol, self.ttl]);
                packet.extend(octets(self.source));
                packet.extend(octets(self.destination));
            }
        }
        packet.extend(body);
        Some(packet)
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The ones' complement sum of RFC 1071; of even numbers of octets.
#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, octets: &[u8]) {
        for word in octets.chunks_exact(2) {
            self.0 += u64::from(word[0]) << 8 | u64::from(word[1]);
        }
    }

    fn checksum(&self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
