//! Frames from a description. Every length and checksum is computed by `etherparse`, whose code is not vmlb's.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader, icmpv4, icmpv6,
};
use vmlb_common::wire::Protocol;

use super::world::{NODE_MAC, ROUTER_MAC, TUNNEL_NETWORK, TUNNEL_PORT};

/// A TCP, UDP or ICMP packet in an Ethernet frame without tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// TCP, UDP, ICMP or ICMPv6.
    pub protocol: Protocol,
    /// What an ICMP packet says.
    says: Says,
    ttl: u8,
    may_be_cut: bool,
    macs: ([u8; 6], [u8; 6]),
    flags: Flags,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    sum: Sum,
    wrapping: Option<Wrapping>,
    piece: Option<Piece>,
}

/// Some of a datagram, as a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    identification: u32,
    /// Octets behind the IP header; all but the last fragment end at a multiple of eight.
    octets: Range<usize>,
}

/// What a packet between two nodes' ends of the tunnel is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapping {
    /// IP in IP, or VXLAN's.
    pub shape: Shape,
    /// The node that sends it.
    pub from: IpAddr,
    /// The node it is for.
    pub to: IpAddr,
    /// What it says of what is inside.
    pub mark: u16,
}

/// The shape of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IP in IP.
    Ip,
    /// VXLAN's.
    Udp,
}

impl Shape {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ip, Self::Udp];

    /// Octets that it adds to a packet of the family of `address`.
    pub const fn overhead(self, address: IpAddr) -> u16 {
        let outer = if address.is_ipv4() { 20 } else { 40 };
        match self {
            Self::Ip => outer,
            // UDP, VXLAN, Ethernet.
            Self::Udp => outer + 8 + 8 + 14,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags {
    syn: u8,
    ack: u8,
    fin: u8,
    rst: u8,
}

/// What an ICMP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Echo request.
    Echo,
    /// Port unreachable.
    NoPort,
    /// Time exceeded in transit.
    TooLong,
    /// Larger than this MTU, and not to be cut.
    TooBig(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Right,
    Zero,
}

/// A TCP packet without flags and data.
pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Frame {
    Frame {
        source,
        destination,
        protocol: Protocol::TCP,
        says: Says::Echo,
        ttl: 64,
        may_be_cut: false,
        macs: (ROUTER_MAC, NODE_MAC),
        flags: Flags::default(),
        sequence: 0,
        acknowledgment: 0,
        window: 4096,
        options: Vec::new(),
        payload: Vec::new(),
        sum: Sum::Right,
        wrapping: None,
        piece: None,
    }
}

/// A UDP packet with a few octets of data.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Frame {
    Frame { protocol: Protocol::UDP, payload: b"data".to_vec(), ..tcp(source, destination) }
}

/// An ICMP packet that quotes the first octets of another behind its IP header, if it is an error; the ports of its ends
/// do not count.
pub fn icmp(source: SocketAddr, destination: SocketAddr, says: Says, quoted: &Frame, octets: usize) -> Frame {
    let protocol = if source.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
    let headers = if source.is_ipv4() { 20 } else { 40 };
    let quoted = quoted.octets()[14..].iter().copied().take(headers + octets).collect();
    Frame { protocol, says, payload: quoted, ..tcp(source, destination) }
}

/// Like `frame`, between two other ends.
pub fn between(source: SocketAddr, destination: SocketAddr, frame: &Frame) -> Frame {
    Frame { source, destination, ..frame.clone() }
}

impl Frame {
    /// The opening of a connection with this sequence number.
    #[must_use]
    pub fn syn(mut self, sequence: u32) -> Self {
        self.flags.syn = 1;
        self.sequence = sequence;
        self
    }

    /// With a flag ACK and this acknowledgment number.
    #[must_use]
    pub fn ack(mut self, acknowledgment: u32) -> Self {
        self.flags.ack = 1;
        self.acknowledgment = acknowledgment;
        self
    }

    /// With flag FIN.
    #[must_use]
    pub fn fin(mut self) -> Self {
        self.flags.fin = 1;
        self
    }

    /// With flag RST.
    #[must_use]
    pub fn rst(mut self) -> Self {
        self.flags.rst = 1;
        self
    }

    /// With this sequence number.
    #[must_use]
    pub fn at(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, hops: u8) -> Self {
        self.ttl = hops;
        self
    }

    /// With this window.
    #[must_use]
    pub fn window(mut self, octets: u16) -> Self {
        self.window = octets;
        self
    }

    /// With these octets as TCP's options, a multiple of four of them.
    #[must_use]
    pub fn options(mut self, octets: &[u8]) -> Self {
        self.options = octets.to_vec();
        self
    }

    /// The refusal of this packet: back by the way it came, by nobody who ever had a window.
    #[must_use]
    pub fn refusal(&self) -> Self {
        let (from, to) = self.macs;
        tcp(self.destination, self.source).rst().window(0).macs(to, from)
    }

    /// With these data.
    #[must_use]
    pub fn data(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// From and to these MAC addresses.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = (source, destination);
        self
    }

    /// With a UDP checksum of zero.
    #[must_use]
    pub fn without_sum(mut self) -> Self {
        self.sum = Sum::Zero;
        self
    }

    /// With data chosen so that the sum over the packet is zero, for which UDP sends all ones.
    #[must_use]
    pub fn with_sum_of_all_ones(mut self) -> Self {
        for number in 0..=u16::MAX {
            self.payload = number.to_be_bytes().to_vec();
            if self.transport_sum() == 0xffff {
                return self;
            }
        }
        unreachable!("one of all 16-bit words completes the sum")
    }

    /// Inside of this.
    #[must_use]
    pub fn wrapped(mut self, wrapping: Wrapping) -> Self {
        self.wrapping = Some(wrapping);
        self
    }

    /// The octets.
    pub fn octets(&self) -> Vec<u8> {
        let mut out = self.link(self.macs);
        let transport = self.transport();
        let mut packet = match &self.piece {
            Some(piece) => self.fragment(piece, &transport),
            None => self.network(transport.len()).octets(),
        };
        match &self.piece {
            Some(piece) => packet.extend(&transport[piece.octets.clone()]),
            None => packet.extend(transport),
        }
        if let Some(wrapping) = self.wrapping {
            out.extend(self.wrapping(&wrapping, &packet));
        }
        out.extend(packet);
        out
    }

    fn link(&self, (source, destination): ([u8; 6], [u8; 6])) -> Vec<u8> {
        let ether_type = if self.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec()
    }

    /// What stands before a packet that is wrapped, but for the Ethernet header.
    fn wrapping(&self, wrapping: &Wrapping, packet: &[u8]) -> Vec<u8> {
        let mut inner = Vec::new();
        if wrapping.shape == Shape::Udp {
            let transport = if self.source.is_ipv4() { 20 } else { 40 };
            let word = |at: usize| u16::from_be_bytes([packet[transport + at], packet[transport + at + 1]]);
            let mixed = match self.piece {
                Some(_) => self.source.port() ^ self.destination.port(),
                None => word(0) ^ word(2),
            };
            // One of the dynamic ports (RFC 6335 section 6), as RFC 7348 section 5 recommends.
            let entropy = 0xc000 | (mixed & 0x3fff);
            let ethernet = self.link(([0; 6], [0; 6]));
            let length = 8 + ethernet.len() + packet.len();
            let udp = UdpHeader::without_ipv4_checksum(entropy, TUNNEL_PORT, length);
            inner.extend(udp.expect("test packets are short").to_bytes());
            inner.extend([8, 0]);
            inner.extend(wrapping.mark.to_be_bytes());
            inner.extend((TUNNEL_NETWORK << 8).to_be_bytes());
            inner.extend(ethernet);
        }
        let length = u16::try_from(inner.len() + packet.len()).expect("test packets are short");
        let mut out = wrapping.network(length).octets();
        out.extend(inner);
        out
    }

    /// The octets of the refusal that says this, and quotes the IP header and eight octets.
    pub fn refused(&self, says: Says) -> Vec<u8> {
        let (from, to) = self.macs;
        icmp(self.destination, self.source, says, self, 8).macs(to, from).octets()
    }

    /// That routers may cut; over IPv4.
    #[must_use]
    pub fn cuttable(mut self) -> Self {
        self.may_be_cut = true;
        self
    }

    /// Some of its octets behind the IP header, as a fragment of the datagram of this number.
    #[must_use]
    pub fn piece(mut self, identification: u32, octets: Range<usize>) -> Self {
        self.piece = Some(Piece { identification, octets });
        self
    }

    /// All fragments of no more than `room` octets behind the IP header each, in order.
    pub fn pieces(&self, identification: u32, room: usize) -> Vec<Self> {
        let length = self.transport().len();
        let starts = (0..length).step_by(room);
        starts.map(|start| self.clone().piece(identification, start..length.min(start + room))).collect()
    }

    /// The headers in front of a fragment's data.
    fn fragment(&self, piece: &Piece, transport: &[u8]) -> Vec<u8> {
        let has_more = piece.octets.end < transport.len();
        let offset = u16::try_from(piece.octets.start / 8).expect("datagrams are short");
        let length = piece.octets.len();
        match self.network(length) {
            Network::V4(mut header) => {
                header.dont_fragment = false;
                header.more_fragments = has_more;
                header.fragment_offset = offset.try_into().expect("13 bits");
                header.identification = u16::try_from(piece.identification).expect("IPv4 has 16 bits");
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            Network::V6(mut header) => {
                header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                header.payload_length = u16::try_from(length + 8).expect("datagrams are short");
                let mut out = header.to_bytes().to_vec();
                out.extend([self.protocol.number(), 0]);
                out.extend((offset << 3 | u16::from(has_more)).to_be_bytes());
                out.extend(piece.identification.to_be_bytes());
                out
            }
        }
    }

    fn network(&self, length: usize) -> Network {
        let number = IpNumber(self.protocol.number());
        let length = u16::try_from(length).expect("test packets are short");
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Network::V4({
                let mut header =
                    Ipv4Header::new(length, self.ttl, number, source.octets(), destination.octets())
                        .expect("test packets are short");
                header.dont_fragment = !self.may_be_cut;
                header.header_checksum = header.calc_header_checksum();
                header
            }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Network::V6(Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: length,
                next_header: number,
                hop_limit: self.ttl,
                source: source.octets(),
                destination: destination.octets(),
            }),
            _ => panic!("one family a packet: {self:?}"),
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let network = self.network(0);
        if self.protocol == Protocol::TCP {
            let mut header = self.tcp_header();
            header.checksum = match &network {
                Network::V4(ip) => header.calc_checksum_ipv4(ip, &self.payload),
                Network::V6(ip) => header.calc_checksum_ipv6(ip, &self.payload),
            }
            .expect("test packets are short");
            header.write(&mut out).expect("a vector takes everything");
        } else if matches!(self.protocol, Protocol::ICMP | Protocol::ICMPV6) {
            out.extend(self.icmp_header(&network));
        } else {
            let header = self.udp_header(&network);
            header.write(&mut out).expect("a vector takes everything");
        }
        out.extend(&self.payload);
        out
    }

    fn tcp_header(&self) -> TcpHeader {
        let mut header =
            TcpHeader::new(self.source.port(), self.destination.port(), self.sequence, self.window);
        header.acknowledgment_number = self.acknowledgment;
        header.syn = self.flags.syn != 0;
        header.ack = self.flags.ack != 0;
        header.fin = self.flags.fin != 0;
        header.rst = self.flags.rst != 0;
        header.set_options_raw(&self.options).expect("40 octets at most");
        header
    }

    fn udp_header(&self, network: &Network) -> UdpHeader {
        let (from, to) = (self.source.port(), self.destination.port());
        let mut header =
            UdpHeader::without_ipv4_checksum(from, to, self.payload.len()).expect("test packets are short");
        if self.sum == Sum::Right {
            header.checksum = match network {
                Network::V4(ip) => header.calc_checksum_ipv4(ip, &self.payload),
                Network::V6(ip) => header.calc_checksum_ipv6(ip, &self.payload),
            }
            .expect("test packets are short");
        }
        header
    }

    fn icmp_header(&self, network: &Network) -> Vec<u8> {
        match network {
            Network::V4(_) => {
                let unreachable = Icmpv4Type::DestinationUnreachable;
                let says = match self.says {
                    Says::Echo => Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 1 }),
                    Says::NoPort => unreachable(icmpv4::DestUnreachableHeader::Port),
                    Says::TooBig(mtu) => {
                        unreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu })
                    }
                    Says::TooLong => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                };
                Icmpv4Header::with_checksum(says, &self.payload).to_bytes().to_vec()
            }
            Network::V6(ip) => {
                let says = match self.says {
                    Says::Echo => Icmpv6Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 1 }),
                    Says::NoPort => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
                    Says::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
                    Says::TooLong => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                };
                let header = Icmpv6Header::with_checksum(says, ip.source, ip.destination, &self.payload);
                header.expect("test packets are short").to_bytes().to_vec()
            }
        }
    }

    fn transport_sum(&self) -> u16 {
        self.udp_header(&self.network(0)).checksum
    }
}

impl Wrapping {
    /// The outer IP header.
    fn network(&self, length: u16) -> Network {
        match (self.from, self.to) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Network::V4({
                let number = if self.shape == Shape::Ip { IpNumber::IPV4 } else { IpNumber::UDP };
                let mut header = Ipv4Header::new(length, 64, number, source.octets(), destination.octets())
                    .expect("test packets are short");
                header.dont_fragment = true;
                if self.shape == Shape::Ip {
                    header.identification = self.mark;
                }
                header.header_checksum = header.calc_header_checksum();
                header
            }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Network::V6({
                let mark = if self.shape == Shape::Ip { self.mark } else { 0 };
                Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::try_new(mark.into()).expect("16 of 20 bits"),
                    payload_length: length,
                    next_header: if self.shape == Shape::Ip { IpNumber::IPV6 } else { IpNumber::UDP },
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                }
            }),
            _ => panic!("one family a packet: {self:?}"),
        }
    }
}

enum Network {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

impl Network {
    fn octets(&self) -> Vec<u8> {
        match self {
            Self::V4(header) => header.to_bytes().to_vec(),
            Self::V6(header) => header.to_bytes().to_vec(),
        }
    }
}
