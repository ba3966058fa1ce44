//! IPv6 with a fragment header behind the fixed one: a header like the others, eight octets longer.

use super::{Address6, Family, Header, Piece, V6, V6Fragment};
use crate::checksum::{Delta, Sum};
use crate::wire::{Be16, Ethertype, FragmentHeader, Ipv6Fragment, Protocol, words_of};

/// Octets of the fragment header.
const FRAGMENT: u16 = size_of::<FragmentHeader>() as u16;

impl Family for V6Fragment {
    type Address = Address6;
    type Header = Ipv6Fragment;
    type Own = V6;
    const ETHERTYPE: Ethertype = V6::ETHERTYPE;
    const VERSION: u8 = V6::VERSION;
    const UDP_CHECKSUM_OPTIONAL: bool = V6::UDP_CHECKSUM_OPTIONAL;
    const ICMP: Protocol = V6::ICMP;
    const IP_IN_IP: Protocol = V6::IP_IN_IP;
    const PORT_UNREACHABLE: Be16 = V6::PORT_UNREACHABLE;
    const TOO_BIG: Be16 = V6::TOO_BIG;
    const TIME_EXCEEDED: Be16 = V6::TIME_EXCEEDED;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        V6::is_error(kind)
    }
}

impl Header for Ipv6Fragment {
    type Address = Address6;

    #[inline(always)]
    fn source(&self) -> Address6 {
        self.ip.source()
    }

    #[inline(always)]
    fn destination(&self) -> Address6 {
        self.ip.destination()
    }

    #[inline(always)]
    fn set_source(&mut self, to: &Address6) {
        self.ip.set_source(to);
    }

    #[inline(always)]
    fn set_destination(&mut self, to: &Address6) {
        self.ip.set_destination(to);
    }

    #[inline(always)]
    fn protocol(&self) -> Protocol {
        Protocol::new(self.fragment.next_reserved.high())
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.ip.is_plain()
    }

    #[inline(always)]
    fn is_version(&self) -> bool {
        self.ip.is_version()
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        false
    }

    #[inline(always)]
    fn piece(&self) -> Piece {
        let [high, low] = self.fragment.identification;
        Piece {
            identification: u32::from(high.get()) << 16 | u32::from(low.get()),
            offset: self.fragment.offset.get() >> 3,
        }
    }

    #[inline(always)]
    fn set_identification(&mut self, to: u32) -> Delta {
        let old = Sum::of(&self.fragment.identification);
        self.fragment.identification = words_of(to);
        Delta::ZERO.without(old).with(Sum::of(&self.fragment.identification))
    }

    #[inline(always)]
    fn payload_length(&self) -> u32 {
        self.ip.payload_length().wrapping_sub(u32::from(FRAGMENT))
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ip.ttl()
    }

    #[inline(always)]
    fn decrement_ttl(&mut self) -> Delta {
        self.ip.decrement_ttl()
    }

    #[inline(always)]
    fn may_be_cut(&self) -> bool {
        self.ip.may_be_cut()
    }

    #[inline(always)]
    fn fix_checksum(&mut self, delta: Delta) -> Delta {
        self.ip.fix_checksum(delta)
    }

    /// An "atomic" fragment: the header says that nothing is missing (RFC 6946).
    #[inline(always)]
    fn originate(&mut self, source: &Address6, destination: &Address6, protocol: Protocol, length: u16) {
        self.ip.originate(source, destination, Protocol::IPV6_FRAGMENT, length.wrapping_add(FRAGMENT));
        self.fragment = FragmentHeader {
            next_reserved: Be16::new((protocol.number() as u16) << 8),
            offset: Be16::new(0),
            identification: words_of(0),
        };
    }

    #[inline(always)]
    fn mark(&self) -> Be16 {
        self.ip.mark()
    }

    #[inline(always)]
    fn set_mark(&mut self, to: Be16) {
        self.ip.set_mark(to);
    }

    #[inline(always)]
    fn sum(&self) -> Sum {
        let start = [self.fragment.next_reserved, self.fragment.offset];
        self.ip.sum().and(Sum::of(&start)).and(Sum::of(&self.fragment.identification))
    }
}
