//! The flows that are measured: which packets each has, by arithmetic on its number, so that the wrapper can make them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::course::{Course, FRAME, Varied};
use super::frame::{self, Ends, Segment, flags};
use crate::address::{self, Family};
use crate::service::Protocol;

/// Backends on the other node; flow `n` goes to backend `n % 16` by a Service of its own.
pub const BACKENDS: u16 = 16;
/// Node port of the Service of backend 0; the others follow.
pub const FIRST_PORT: u16 = 31_000;
/// Node port of the Service of all backends.
pub const MANY_PORT: u16 = 31_100;
/// Node port of the Service with a backend on the node itself.
pub const LOCAL_PORT: u16 = 31_200;
/// The backends' port in flows that become established.
pub const TARGET: u16 = 8080;
/// The backends' port in the Service of all backends.
pub const MANY_TARGET: u16 = 8081;
/// First port of clients, one that SNAT may use: the port is kept, and replies can be told by the flow's number.
const CLIENT_PORT: u16 = 1024;
/// First port of clients of new flows, one that SNAT may not use, as those of real clients are.
const EPHEMERAL: u16 = 32_768;
/// A TCP sequence number of either side.
const SEQUENCE: u32 = 0x1000_0000;

/// What a packet is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To an address that is no frontend's, on a frontend's port.
    ForeignAddress,
    /// To the node, on a port that is neither a frontend's nor SNAT's.
    ForeignPort,
    /// From a client, to a backend on another node.
    Request,
    /// From that backend.
    Reply,
    /// From a client, to a backend on this node.
    Local,
    /// The first packet of a flow to a backend on another node.
    New,
}

/// What a packet says of its connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first.
    Opening,
    /// The answer to the first.
    Answer,
    /// Any later.
    Going,
}

/// Packets of one kind, of flows counted from 0.
#[derive(Clone, Copy, Debug)]
pub struct Packets {
    /// What they are to the node.
    pub kind: Kind,
    /// Their family.
    pub family: Family,
    /// Their transport.
    pub protocol: Protocol,
}

/// The address of backend `number` on node `node`, both from 0. Consecutive numbers differ in the last 16 bits by one.
pub const fn backend(family: Family, node: u8, number: u16) -> IpAddr {
    let network = node as u16 + 1;
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 244, network as u8, 100 + number as u8)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, network, 0, 0, 0, 0x100 + number)),
    }
}

/// The network of the clients, behind the router (RFC 2544 and RFC 3849 blocks).
const fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0)),
    }
}

/// Replaces the last 16 bits of an address.
fn with_last(address: IpAddr, last: u16) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xffff | u32::from(last)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !0xffff | u128::from(last)).into(),
    }
}

/// The same in every flow.
const fn fixed(base: u16) -> Varied {
    Varied { base, mask: 0, shift: 0 }
}

fn last(address: IpAddr) -> Varied {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let count = octets.len();
    fixed(u16::from_be_bytes([octets[count - 2], octets[count - 1]]))
}

/// What differs between the flows of a kind.
struct Pattern {
    source: IpAddr,
    destination: IpAddr,
    source_last: Varied,
    destination_last: Varied,
    source_port: Varied,
    destination_port: Varied,
}

impl Packets {
    /// The same flows seen from the backend.
    pub fn replies(self) -> Self {
        Self { kind: Kind::Reply, ..self }
    }

    fn pattern(self) -> Pattern {
        let node = address::node(0).of(self.family);
        let by_backend = |base| Varied { base, mask: BACKENDS - 1, shift: 0 };
        let client_port = Varied { base: CLIENT_PORT, mask: 0x3fff, shift: 4 };
        let clients = Varied { base: 0, mask: 0xffff, shift: 0 };
        let request = Pattern {
            source: client(self.family),
            destination: node,
            source_last: clients,
            destination_last: last(node),
            source_port: client_port,
            destination_port: by_backend(FIRST_PORT),
        };
        match self.kind {
            Kind::Request => request,
            Kind::ForeignAddress => {
                let other = backend(self.family, 1, 50);
                Pattern { destination: other, destination_last: last(other), ..request }
            }
            Kind::ForeignPort => Pattern { destination_port: fixed(443), ..request },
            Kind::Local => Pattern { destination_port: fixed(LOCAL_PORT), ..request },
            Kind::New => Pattern {
                source_last: Varied { shift: 14, ..clients },
                source_port: Varied { base: EPHEMERAL, mask: 0x3fff, shift: 0 },
                destination_port: fixed(MANY_PORT),
                ..request
            },
            Kind::Reply => {
                let first = backend(self.family, 1, 0);
                Pattern {
                    source: first,
                    destination: node,
                    source_last: by_backend(last(first).base),
                    destination_last: last(node),
                    source_port: fixed(TARGET),
                    destination_port: client_port,
                }
            }
        }
    }

    /// Both ends of the packet of flow `number`.
    pub fn ends(self, number: u64) -> Ends {
        let pattern = self.pattern();
        Ends {
            source: with_last(pattern.source, pattern.source_last.of(number)),
            destination: with_last(pattern.destination, pattern.destination_last.of(number)),
            source_port: pattern.source_port.of(number),
            destination_port: pattern.destination_port.of(number),
        }
    }

    /// The answer of the backend on the node to the opening packet of flow `number`.
    pub fn local_answer(self, number: u64) -> [u8; FRAME] {
        let request = self.ends(number);
        let ends = Ends {
            source: backend(self.family, 0, 0),
            destination: request.source,
            source_port: TARGET,
            destination_port: request.source_port,
        };
        frame::build(&ends, self.protocol, segment(Phase::Answer))
    }

    /// The course over `flows` flows (a power of two) from packet number `next` on.
    pub fn course(self, phase: Phase, next: u64, flows: u64, order: Order) -> Course {
        let pattern = self.pattern();
        let zeroed = Ends {
            source: with_last(pattern.source, 0),
            destination: with_last(pattern.destination, 0),
            source_port: 0,
            destination_port: 0,
        };
        let octets = frame::build(&zeroed, self.protocol, segment(phase));
        let mut frame = [0; FRAME / 8];
        for (to, from) in frame.iter_mut().zip(octets.as_chunks::<8>().0) {
            *to = u64::from_ne_bytes(*from);
        }
        Course {
            next,
            stride: order.stride(),
            last: flows - 1,
            target: 0,
            family: if self.family == Family::V4 { 4 } else { 6 },
            source: pattern.source_last,
            destination: pattern.destination_last,
            source_port: pattern.source_port,
            destination_port: pattern.destination_port,
            frame,
        }
    }
}

fn segment(phase: Phase) -> Segment {
    let (flags, acknowledgment) = match phase {
        Phase::Opening => (flags::SYN, 0),
        Phase::Answer => (flags::SYN_ACK, SEQUENCE + 1),
        Phase::Going => (flags::ACK, SEQUENCE + 1),
    };
    Segment { flags, sequence: SEQUENCE, acknowledgment }
}

/// In which order flows have their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// That in which they were opened, which is that of their entries in memory: prefetching helps.
    Opened,
    /// Far from one another.
    Scattered,
}

impl Order {
    const fn stride(self) -> u64 {
        match self {
            Self::Opened => 1,
            // 2^64 divided by the golden ratio.
            Self::Scattered => 0x9e37_79b9_7f4a_7c15,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_flows_share_a_tuple_on_either_side() {
        for kind in [Kind::Request, Kind::Reply, Kind::Local, Kind::New] {
            let packets = Packets { kind, family: Family::V4, protocol: Protocol::Tcp };
            let tuples: BTreeSet<_> = (0..1 << 18)
                .map(|number| {
                    let ends = packets.ends(number);
                    (ends.source, ends.destination, ends.source_port, ends.destination_port)
                })
                .collect();
            assert_eq!(tuples.len(), 1 << 18, "{kind:?}");
        }
    }
}
