//! Headers as they lie on the wire, in big-endian 16-bit words. Words, not bytes: byte arrays make LLVM load byte
//! by byte and overflow the 512-byte BPF stack; alignment 2 is what an Ethernet header leaves.

use crate::checksum::Sum;

/// A big-endian 16-bit word; equality and copying need no swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The word as it lies in memory, for checksums: ones' complement sums do not depend on byte order (RFC 1071).
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// From a word as it lies in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// From two octets in their order on the wire.
    #[inline(always)]
    pub const fn from_octets(high: u8, low: u8) -> Self {
        Self(u16::from_ne_bytes([high, low]))
    }

    /// The first octet on the wire.
    #[inline(always)]
    pub const fn high(self) -> u8 {
        (self.get() >> 8) as u8
    }

    /// The second octet on the wire.
    #[inline(always)]
    pub const fn low(self) -> u8 {
        self.get() as u8
    }

    #[inline(always)]
    pub(crate) const fn octets2(words: [Self; 2]) -> [u8; 4] {
        // SAFETY: both are four plain octets; every bit pattern is valid for either.
        unsafe { core::mem::transmute(words) }
    }

    #[inline(always)]
    pub(crate) const fn words2(octets: [u8; 4]) -> [Self; 2] {
        // SAFETY: both are four plain octets; transmute copies, so alignment does not matter.
        unsafe { core::mem::transmute(octets) }
    }

    #[inline(always)]
    pub(crate) const fn octets8(words: [Self; 8]) -> [u8; 16] {
        // SAFETY: both are sixteen plain octets; every bit pattern is valid for either.
        unsafe { core::mem::transmute(words) }
    }

    #[inline(always)]
    pub(crate) const fn words8(octets: [u8; 16]) -> [Self; 8] {
        // SAFETY: both are sixteen plain octets; transmute copies, so alignment does not matter.
        unsafe { core::mem::transmute(octets) }
    }
}

/// An EtherType (IEEE 802 numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ethertype(pub Be16);

impl Ethertype {
    /// IPv4.
    pub const IPV4: Self = Self(Be16::new(0x0800));
    /// IPv6.
    pub const IPV6: Self = Self(Be16::new(0x86dd));
    /// A tag of IEEE 802.1Q follows.
    pub const VLAN: Self = Self(Be16::new(0x8100));
    /// A service tag of IEEE 802.1ad follows.
    pub const SERVICE_VLAN: Self = Self(Be16::new(0x88a8));

    /// Whether a tag follows.
    #[inline(always)]
    pub fn is_tag(self) -> bool {
        self == Self::VLAN || self == Self::SERVICE_VLAN
    }

    /// Whether an IP header follows.
    #[inline(always)]
    pub fn is_ip(self) -> bool {
        self == Self::IPV4 || self == Self::IPV6
    }
}

/// An IP protocol number (IANA); a newtype, because any octet may come from the wire or from a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Protocol(u8);

impl Protocol {
    /// ICMP, RFC 792.
    pub const ICMP: Self = Self(1);
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: Self = Self(58);
    /// TCP, RFC 9293.
    pub const TCP: Self = Self(6);
    /// UDP, RFC 768.
    pub const UDP: Self = Self(17);
    /// IPv4 in IP, RFC 2003.
    pub const IPV4_IN_IP: Self = Self(4);
    /// IPv6 in IP, RFC 2473.
    pub const IPV6_IN_IP: Self = Self(41);
    /// The IPv6 fragment header, RFC 8200 section 4.5.
    pub const IPV6_FRAGMENT: Self = Self(44);
    /// SCTP, RFC 9260; not served yet.
    pub const SCTP: Self = Self(132);

    /// Any octet is a protocol number.
    #[inline(always)]
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The IANA number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The name Kubernetes uses, or `?`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::SCTP => "SCTP",
            _ => "?",
        }
    }
}

/// An Ethernet header without tags.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ethernet {
    /// Destination MAC address.
    pub destination: [Be16; 3],
    /// Source MAC address.
    pub source: [Be16; 3],
    /// What follows.
    pub ethertype: Ethertype,
}

/// What a tag adds behind the EtherType that announces it (IEEE 802.1Q).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tag {
    /// Priority, drop eligibility, VLAN.
    pub control: Be16,
    /// What follows.
    pub ethertype: Ethertype,
}

/// A frame's first octets with one tag.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OnceTagged {
    /// Link layer.
    pub ethernet: Ethernet,
    /// The tag.
    pub tag: Tag,
}

/// A frame's first octets with two tags.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TwiceTagged {
    /// Link layer.
    pub ethernet: Ethernet,
    /// The first tag.
    pub outer: Tag,
    /// The second tag.
    pub inner: Tag,
}

/// The fixed IPv4 header (RFC 791).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version, header length in words, type of service.
    pub version_tos: Be16,
    /// Octets in the packet, this header included.
    pub total_length: Be16,
    /// Identification.
    pub identification: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Time to live, protocol.
    pub ttl_protocol: Be16,
    /// Header checksum.
    pub checksum: Be16,
    /// Source address.
    pub source: [Be16; 2],
    /// Destination address.
    pub destination: [Be16; 2],
}

/// The fixed IPv6 header (RFC 8200).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version, traffic class, start of the flow label.
    pub version_class: Be16,
    /// Rest of the flow label.
    pub flow_label: Be16,
    /// Octets after this header.
    pub payload_length: Be16,
    /// Next header, hop limit.
    pub next_hop_limit: Be16,
    /// Source address.
    pub source: [Be16; 8],
    /// Destination address.
    pub destination: [Be16; 8],
}

/// The IPv6 fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FragmentHeader {
    /// Next header, and a reserved octet.
    pub next_reserved: Be16,
    /// Offset in units of eight octets (13 bits), two reserved bits, "more fragments".
    pub offset: Be16,
    /// Identification, high word first.
    pub identification: [Be16; 2],
}

/// An IPv6 header and the fragment header right behind it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Fragment {
    /// The fixed header.
    pub ip: Ipv6Header,
    /// Which piece of which datagram.
    pub fragment: FragmentHeader,
}

/// The fixed TCP header (RFC 9293).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TcpHeader {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Sequence number, high word first.
    pub sequence: [Be16; 2],
    /// Acknowledgment number, high word first.
    pub acknowledgment: [Be16; 2],
    /// Data offset in words, reserved bits, flags.
    pub offset_flags: Be16,
    /// Window.
    pub window: Be16,
    /// Checksum over pseudo header, header and data.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

impl TcpHeader {
    /// The low octet of the flags.
    #[inline(always)]
    pub fn flags(&self) -> TcpFlags {
        TcpFlags(self.offset_flags.low())
    }

    /// Header length in octets, options included.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        u32::from(self.offset_flags.high() >> 4) * 4
    }

    /// The sequence number in host order.
    #[inline(always)]
    pub fn sequence_number(&self) -> u32 {
        u32::from(self.sequence[0].get()) << 16 | u32::from(self.sequence[1].get())
    }

    /// The acknowledgment number in host order.
    #[inline(always)]
    pub fn acknowledgment_number(&self) -> u32 {
        u32::from(self.acknowledgment[0].get()) << 16 | u32::from(self.acknowledgment[1].get())
    }

    /// The ones' complement sum of the header's words.
    #[inline(always)]
    pub fn sum(&self) -> Sum {
        let ends =
            [self.source, self.destination, self.offset_flags, self.window, self.checksum, self.urgent];
        Sum::of(&ends).and(Sum::of(&self.sequence)).and(Sum::of(&self.acknowledgment))
    }
}

/// A number as two words, high word first.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the number is cut in halves")]
pub const fn words_of(number: u32) -> [Be16; 2] {
    [Be16::new((number >> 16) as u16), Be16::new(number as u16)]
}

/// The eight classic TCP flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// RST and ACK.
    pub const RST_ACK: Self = Self(0x14);

    /// Whether any flag of `other` is set.
    #[inline(always)]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Either's flags.
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All but the flags of `other`.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// SYN and ACK, whatever else.
    #[inline(always)]
    pub const fn is_syn_ack(self) -> bool {
        let both = Self::SYN.0 | Self::ACK.0;
        self.0 & both == both
    }

    /// SYN without ACK, FIN or RST: the opening of a connection.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

/// The UDP header (RFC 768).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UdpHeader {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Octets of header and data.
    pub length: Be16,
    /// Checksum over pseudo header, header and data; zero over IPv4 means none.
    pub checksum: Be16,
}

/// The VXLAN header (RFC 7348 section 5), with a mark of ours in the low half of its first reserved field.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VxlanHeader {
    /// Flags (the identifier is valid), and the first reserved octet.
    pub flags: Be16,
    /// The mark.
    pub mark: Be16,
    /// Network identifier, and a reserved octet.
    pub network: [Be16; 2],
}

impl VxlanHeader {
    /// A header.
    #[inline(always)]
    pub const fn new(network: u32, mark: Be16) -> Self {
        Self { flags: Be16::new(0x0800), mark, network: words_of(network << 8) }
    }

    /// Whether it is of this network.
    #[inline(always)]
    pub fn is_of(&self, network: u32) -> bool {
        let found = u32::from(self.network[0].get()) << 8 | u32::from(self.network[1].high());
        self.flags.get() == 0x0800 && found == network
    }
}

/// The header of an ICMP or ICMPv6 error (RFC 792, RFC 4443 section 3).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IcmpHeader {
    /// Type and code.
    pub kind: Be16,
    /// Checksum; for ICMPv6 over the pseudo header too.
    pub checksum: Be16,
    /// What the type makes of it: a next hop's MTU, a place in the quoted packet, or nothing.
    pub rest: [Be16; 2],
}

/// Types that may be laid over packet octets.
///
/// # Safety
/// Every bit pattern is a value, there is no padding, and the alignment is at most 2.
pub unsafe trait Wire: Copy + 'static {}

// SAFETY: no octets at all: what a view of headers ends with that asks nothing of what follows them.
unsafe impl Wire for () {}
// SAFETY: `repr(C)` structure of 16-bit words.
unsafe impl Wire for Ethernet {}
// SAFETY: plain octets.
unsafe impl Wire for [u8; 4] {}
// SAFETY: as above.
unsafe impl Wire for Ipv6Fragment {}
// SAFETY: as above.
unsafe impl Wire for OnceTagged {}
// SAFETY: as above.
unsafe impl Wire for TwiceTagged {}
// SAFETY: as above.
unsafe impl Wire for VxlanHeader {}
// SAFETY: as above.
unsafe impl Wire for Ipv4Header {}
// SAFETY: as above.
unsafe impl Wire for Ipv6Header {}
// SAFETY: as above.
unsafe impl Wire for TcpHeader {}
// SAFETY: as above.
unsafe impl Wire for UdpHeader {}
// SAFETY: as above.
unsafe impl Wire for IcmpHeader {}
