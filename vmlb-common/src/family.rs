//! IPv4 and IPv6 as one sealed trait. This is the only file that knows one family from the other.

use crate::checksum::{Delta, Sum};
use crate::wire::{Be16, Ethertype, Ipv4Header, Ipv6Header, Protocol, Wire};

mod fragment;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
    impl Sealed for super::V6Fragment {}
}

/// An IPv4 address as it stands in the maps: network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Address4 {
    /// The four octets, most significant first.
    pub octets: [u8; 4],
}

/// An IPv6 address as it stands in the maps: network byte order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Address6 {
    /// The sixteen octets, most significant first.
    pub octets: [u8; 16],
}

// By words: LLVM would compare the array octet by octet, through the BPF stack.
impl PartialEq for Address6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl core::hash::Hash for Address6 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.octets.hash(state);
    }
}

/// What the datapath asks of an address besides equality.
pub trait Address: Copy + Eq + Default + core::fmt::Debug + 'static {
    /// The address folded to 32 bits, for hashes; not secret, not collision free.
    fn fold(&self) -> u32;
    /// The ones' complement sum of the address's 16-bit words.
    fn sum(&self) -> Sum;
    /// Whether it names one host of the network, so that an answer may go there (RFC 1122 section 3.2.2, RFC 4443
    /// section 2.4).
    fn is_host(&self) -> bool;
}

impl Address for Address4 {
    #[inline(always)]
    fn fold(&self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }

    #[inline(always)]
    fn sum(&self) -> Sum {
        let word = self.fold();
        Sum::ZERO.add(word & 0xffff).add(word >> 16)
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        let first = u32::from_be(self.fold()) >> 24;
        // This network, loopback; from 224 up multicast, reserved and broadcast (RFC 6890).
        first != 0 && first != 127 && first < 224
    }
}

impl Address6 {
    /// The address as four 32-bit words in memory order (the bytes stay in network order).
    #[inline(always)]
    const fn words(&self) -> [u32; 4] {
        // SAFETY: sixteen octets, aligned to four by the type; every bit pattern is a number.
        unsafe { *(&raw const self.octets).cast() }
    }
}

impl Address for Address6 {
    #[inline(always)]
    fn fold(&self) -> u32 {
        // Multiplied by distinct odd constants so that swapped words do not fold alike.
        let [a, b, c, d] = self.words();
        a.wrapping_mul(0x9e37_79b1)
            ^ b.wrapping_mul(0x85eb_ca77)
            ^ c.wrapping_mul(0xc2b2_ae3d)
            ^ d.wrapping_mul(0x27d4_eb2f)
    }

    #[inline(always)]
    fn sum(&self) -> Sum {
        let [a, b, c, d] = self.words();
        Sum::ZERO
            .add(a & 0xffff)
            .add(a >> 16)
            .add(b & 0xffff)
            .add(b >> 16)
            .add(c & 0xffff)
            .add(c >> 16)
            .add(d & 0xffff)
            .add(d >> 16)
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        let [a, b, c, d] = self.words();
        // Unspecified and loopback; multicast.
        (a | b | c | u32::from_be(d) >> 1) != 0 && u32::from_be(a) >> 24 != 0xff
    }
}

/// Marks IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// Marks IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

/// Marks IPv6 where a fragment header follows the fixed one. Addresses and tables are those of [`V6`]; every view that has
/// [`Family::Header`] in it skips the fragment header.
#[derive(Clone, Copy, Debug)]
pub struct V6Fragment;

/// Which piece of which datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The datagram's number, of its sender's choice.
    pub identification: u32,
    /// Where in the datagram it belongs, in units of eight octets.
    pub offset: u16,
}

/// What the one datapath needs of an IP version.
pub trait Family: sealed::Sealed + Copy + core::fmt::Debug + 'static {
    /// The address as the maps hold it.
    type Address: Address;
    /// The fixed header on the wire; no options, no extension headers.
    type Header: Header<Address = Self::Address> + Wire;
    /// The same, as packets of this node's own have it: whole ones.
    type Own: Family<Address = Self::Address>;
    /// The EtherType that announces it.
    const ETHERTYPE: Ethertype;
    /// 4 or 6.
    const VERSION: u8;
    /// Whether a UDP checksum of zero means "none" (RFC 768) or is not legal (RFC 8200 section 8.1).
    const UDP_CHECKSUM_OPTIONAL: bool;
    /// The protocol that carries errors.
    const ICMP: Protocol;
    /// The protocol of packets of this family inside others.
    const IP_IN_IP: Protocol;
    /// Type and code of "port unreachable" (RFC 792, RFC 4443 section 3.1).
    const PORT_UNREACHABLE: Be16;
    /// Type and code of "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443 section 3.2); the last 16 bits of
    /// the ICMP header are the MTU of the next hop.
    const TOO_BIG: Be16;
    /// Type and code of an ICMP "time exceeded in transit".
    const TIME_EXCEEDED: Be16;
    /// Whether an ICMP message of this type is an error, and quotes the packet that caused it.
    fn is_error(kind: u8) -> bool;
}

/// The fixed IP header, by the names both families share.
pub trait Header: Copy + 'static {
    /// The address type of this family.
    type Address: Address;
    /// Source address.
    fn source(&self) -> Self::Address;
    /// Destination address.
    fn destination(&self) -> Self::Address;
    /// Writes the source address; the checksum is the caller's.
    fn set_source(&mut self, to: &Self::Address);
    /// Writes the destination address; the checksum is the caller's.
    fn set_destination(&mut self, to: &Self::Address);
    /// The protocol of what follows the fixed header.
    fn protocol(&self) -> Protocol;
    /// Whether version and header length say "fixed header and nothing else".
    fn is_plain(&self) -> bool;
    /// Whether the version field is this family's.
    fn is_version(&self) -> bool;
    /// Whether the packet is a fragment (first or later) that its header does not account for.
    fn is_fragment(&self) -> bool;
    /// Which piece it is, if it is a fragment.
    fn piece(&self) -> Piece;
    /// Gives the datagram another number; returns what that changes in a sum over the header.
    fn set_identification(&mut self, to: u32) -> Delta;
    /// Octets after the fixed header, as the header claims; wraps below zero for a lying IPv4 length.
    fn payload_length(&self) -> u32;
    /// Hops left.
    fn ttl(&self) -> u8;
    /// Takes one hop off; returns what that changes in a sum over the header.
    fn decrement_ttl(&mut self) -> Delta;
    /// Whether routers may cut the packet.
    fn may_be_cut(&self) -> bool;
    /// Applies `delta` to the header's own checksum, if it has one; returns the change of that field.
    fn fix_checksum(&mut self, delta: Delta) -> Delta;
    /// Writes a whole header of this node's own, its checksum included; `length` octets follow it.
    fn originate(
        &mut self,
        source: &Self::Address,
        destination: &Self::Address,
        protocol: Protocol,
        length: u16,
    );
    /// What a tunnel's packet says beside its addresses: the identification, which means nothing where a packet is not to be
    /// cut (RFC 6864), or the low half of the flow label.
    fn mark(&self) -> Be16;
    /// Writes the mark of a header that has none, its checksum included.
    fn set_mark(&mut self, to: Be16);
    /// The ones' complement sum of the header's words.
    fn sum(&self) -> Sum;
}

/// Hops that a packet of this node's own may take, as of Linux (`IPDEFTTL`).
const HOPS: u8 = 64;

impl Family for V4 {
    type Address = Address4;
    type Header = Ipv4Header;
    type Own = Self;
    const ETHERTYPE: Ethertype = Ethertype::IPV4;
    const VERSION: u8 = 4;
    const UDP_CHECKSUM_OPTIONAL: bool = true;
    const ICMP: Protocol = Protocol::ICMP;
    const IP_IN_IP: Protocol = Protocol::IPV4_IN_IP;
    const PORT_UNREACHABLE: Be16 = Be16::new(0x0303);
    const TOO_BIG: Be16 = Be16::new(0x0304);
    const TIME_EXCEEDED: Be16 = Be16::new(0x0b00);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem; the others are gone (RFC 6633) or redirects.
        kind == 3 || kind == 11 || kind == 12
    }
}

impl Family for V6 {
    type Address = Address6;
    type Header = Ipv6Header;
    type Own = Self;
    const ETHERTYPE: Ethertype = Ethertype::IPV6;
    const VERSION: u8 = 6;
    const UDP_CHECKSUM_OPTIONAL: bool = false;
    const ICMP: Protocol = Protocol::ICMPV6;
    const IP_IN_IP: Protocol = Protocol::IPV6_IN_IP;
    const PORT_UNREACHABLE: Be16 = Be16::new(0x0104);
    const TOO_BIG: Be16 = Be16::new(0x0200);
    const TIME_EXCEEDED: Be16 = Be16::new(0x0300);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Those that are defined; all below 128 are errors (RFC 4443 section 2.1).
        matches!(kind, 1..=4)
    }
}

impl Header for Ipv4Header {
    type Address = Address4;

    #[inline(always)]
    fn source(&self) -> Address4 {
        Address4 { octets: Be16::octets2(self.source) }
    }

    #[inline(always)]
    fn destination(&self) -> Address4 {
        Address4 { octets: Be16::octets2(self.destination) }
    }

    #[inline(always)]
    fn set_source(&mut self, to: &Address4) {
        self.source = Be16::words2(to.octets);
    }

    #[inline(always)]
    fn set_destination(&mut self, to: &Address4) {
        self.destination = Be16::words2(to.octets);
    }

    #[inline(always)]
    fn protocol(&self) -> Protocol {
        Protocol::new(self.ttl_protocol.low())
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.version_tos.high() == 0x45
    }

    #[inline(always)]
    fn is_version(&self) -> bool {
        self.version_tos.high() >> 4 == 4
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        // RFC 791: more-fragments bit and a 13-bit offset; "don't fragment" is not among them.
        self.fragment.get() & 0x3fff != 0
    }

    #[inline(always)]
    fn piece(&self) -> Piece {
        Piece { identification: u32::from(self.identification.get()), offset: self.fragment.get() & 0x1fff }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "IPv4 has the low half only")]
    fn set_identification(&mut self, to: u32) -> Delta {
        let old = self.identification;
        self.identification = Be16::new(to as u16);
        Delta::ZERO.word(old, self.identification)
    }

    #[inline(always)]
    fn payload_length(&self) -> u32 {
        u32::from(self.total_length.get()).wrapping_sub(20)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl_protocol.high()
    }

    #[inline(always)]
    fn decrement_ttl(&mut self) -> Delta {
        let old = self.ttl_protocol;
        self.ttl_protocol = Be16::new(old.get().wrapping_sub(0x0100));
        Delta::ZERO.word(old, self.ttl_protocol)
    }

    #[inline(always)]
    fn may_be_cut(&self) -> bool {
        self.fragment.get() & 0x4000 == 0
    }

    #[inline(always)]
    fn fix_checksum(&mut self, delta: Delta) -> Delta {
        let old = self.checksum;
        self.checksum = delta.apply(old);
        Delta::ZERO.word(old, self.checksum)
    }

    #[inline(always)]
    fn originate(&mut self, source: &Address4, destination: &Address4, protocol: Protocol, length: u16) {
        self.version_tos = Be16::new(0x4500);
        self.total_length = Be16::new(length.wrapping_add(20));
        // Whole and not to be cut: the identification has no meaning (RFC 6864).
        self.identification = Be16::new(0);
        self.fragment = Be16::new(0x4000);
        self.ttl_protocol = Be16::new((HOPS as u16) << 8 | protocol.number() as u16);
        self.checksum = Be16::new(0);
        self.set_source(source);
        self.set_destination(destination);
        self.checksum = self.sum().complement();
    }

    #[inline(always)]
    fn mark(&self) -> Be16 {
        self.identification
    }

    #[inline(always)]
    fn set_mark(&mut self, to: Be16) {
        self.checksum = Delta::ZERO.word(self.identification, to).apply(self.checksum);
        self.identification = to;
    }

    #[inline(always)]
    fn sum(&self) -> Sum {
        let start = [
            self.version_tos,
            self.total_length,
            self.identification,
            self.fragment,
            self.ttl_protocol,
            self.checksum,
        ];
        Sum::of(&start).and(Sum::of(&self.source)).and(Sum::of(&self.destination))
    }
}

impl Header for Ipv6Header {
    type Address = Address6;

    #[inline(always)]
    fn source(&self) -> Address6 {
        Address6 { octets: Be16::octets8(self.source) }
    }

    #[inline(always)]
    fn destination(&self) -> Address6 {
        Address6 { octets: Be16::octets8(self.destination) }
    }

    #[inline(always)]
    fn set_source(&mut self, to: &Address6) {
        self.source = Be16::words8(to.octets);
    }

    #[inline(always)]
    fn set_destination(&mut self, to: &Address6) {
        self.destination = Be16::words8(to.octets);
    }

    #[inline(always)]
    fn protocol(&self) -> Protocol {
        Protocol::new(self.next_hop_limit.high())
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        // Extension headers announce themselves as a protocol we do not serve.
        self.is_version()
    }

    #[inline(always)]
    fn is_version(&self) -> bool {
        self.version_class.high() >> 4 == 6
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.protocol() == Protocol::IPV6_FRAGMENT
    }

    #[inline(always)]
    fn piece(&self) -> Piece {
        Piece { identification: 0, offset: 0 }
    }

    #[inline(always)]
    fn set_identification(&mut self, _to: u32) -> Delta {
        Delta::ZERO
    }

    #[inline(always)]
    fn payload_length(&self) -> u32 {
        u32::from(self.payload_length.get())
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.next_hop_limit.low()
    }

    #[inline(always)]
    fn decrement_ttl(&mut self) -> Delta {
        let old = self.next_hop_limit;
        self.next_hop_limit = Be16::new(old.get().wrapping_sub(1));
        Delta::ZERO.word(old, self.next_hop_limit)
    }

    #[inline(always)]
    fn may_be_cut(&self) -> bool {
        false
    }

    #[inline(always)]
    fn fix_checksum(&mut self, _delta: Delta) -> Delta {
        Delta::ZERO
    }

    #[inline(always)]
    fn originate(&mut self, source: &Address6, destination: &Address6, protocol: Protocol, length: u16) {
        self.version_class = Be16::new(0x6000);
        self.flow_label = Be16::new(0);
        self.payload_length = Be16::new(length);
        self.next_hop_limit = Be16::new((protocol.number() as u16) << 8 | HOPS as u16);
        self.set_source(source);
        self.set_destination(destination);
    }

    #[inline(always)]
    fn mark(&self) -> Be16 {
        self.flow_label
    }

    #[inline(always)]
    fn set_mark(&mut self, to: Be16) {
        self.flow_label = to;
    }

    #[inline(always)]
    fn sum(&self) -> Sum {
        let start = [self.version_class, self.flow_label, self.payload_length, self.next_hop_limit];
        Sum::of(&start).and(Sum::of(&self.source)).and(Sum::of(&self.destination))
    }
}
