//! A datagram's first fragment, as the stages see it: a packet that need not have all that its transport header claims. It
//! remembers who sent it where.

use core::ffi::c_void;

use crate::abi::{Fragment, FragmentFlags, Hop};
use crate::checksum::Delta;
use crate::family::Family;
use crate::live::Slot;
use crate::packet::{Direction, Packet, Sending};
use crate::verdict::Verdict;
use crate::wire::{Be16, Ethernet, Protocol, Wire};

/// Beside [`FragmentFlags`]: the packet has been wrapped.
const WRAPPED: u32 = 1 << 31;

/// A packet that is, or may be, the first fragment of a datagram.
pub struct First<P> {
    packet: P,
    backend: u32,
    flags: u32,
    sent_by: u32,
    mtu: u32,
}

impl<P: Packet> First<P> {
    /// The fragment at hand.
    #[inline(always)]
    pub const fn new(packet: P) -> Self {
        Self { packet, backend: Fragment::<()>::NOBODY, flags: 0, sent_by: 0, mtu: u32::MAX }
    }

    /// The packet itself.
    #[inline(always)]
    pub fn into_packet(self) -> P {
        self.packet
    }

    /// Whose it is.
    #[inline(always)]
    pub(super) const fn backend(&self) -> u32 {
        self.backend
    }

    /// Which way it goes, as [`FragmentFlags`].
    #[inline(always)]
    pub(super) const fn flags(&self) -> u32 {
        self.flags & !WRAPPED
    }

    /// Whether it has been wrapped to go to another node.
    #[inline(always)]
    pub(super) const fn is_wrapped(&self) -> bool {
        self.flags & WRAPPED != 0
    }

    /// By which hop it was sent; the MAC addresses are those that it has.
    #[inline(always)]
    pub(super) fn hop(&mut self, now: u32) -> Hop {
        let mut hop = Hop { filled: now, ifindex: self.sent_by, mtu: self.mtu, ..Hop::NOWHERE };
        if P::SENDING == Sending::Frames
            && let Some(Ethernet { destination, source, .. }) = self.packet.view::<Ethernet>()
        {
            (hop.source, hop.destination) = (octets(*source), octets(*destination));
        }
        hop
    }
}

#[inline(always)]
fn octets([a, b, c]: [Be16; 3]) -> [u8; 6] {
    [a.high(), a.low(), b.high(), b.low(), c.high(), c.low()]
}

impl<P: Packet> Packet for First<P> {
    const SENDING: Sending = P::SENDING;
    const SENDS_BY: u32 = P::SENDS_BY;
    const WHOLE: bool = false;

    #[inline(always)]
    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        self.packet.view()
    }

    #[inline(always)]
    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        self.packet.octets_at(offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.packet.length()
    }

    #[inline(always)]
    fn uncut_length(&self) -> u32 {
        self.packet.uncut_length()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.packet.ifindex()
    }

    #[inline(always)]
    fn entered_by(&self) -> u32 {
        self.packet.entered_by()
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.packet.context()
    }

    #[inline(always)]
    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        self.packet.fix_checksums::<F>(protocol, header, addresses, ports);
    }

    #[inline(always)]
    fn fix_header<F: Family>(&mut self, header: Delta) {
        self.packet.fix_header::<F>(header);
    }

    #[inline(always)]
    fn note_backend(&mut self, backend: u32, direction: Direction) {
        self.backend = backend;
        self.flags = match direction {
            Direction::Request => 0,
            Direction::Reply => FragmentFlags::REPLY,
        };
    }

    #[inline(always)]
    fn reshape(&mut self, kept: u32, front: u32) -> bool {
        self.packet.reshape(kept, front)
    }

    #[inline(always)]
    fn wrap<F: Family>(&mut self, shape: u8, octets: u32) -> bool {
        self.flags |= WRAPPED;
        self.packet.wrap::<F>(shape, octets)
    }

    #[inline(always)]
    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        self.packet.unwrap::<F>(octets)
    }

    #[inline(always)]
    fn reach(&mut self, octets: u32) {
        self.packet.reach(octets);
    }

    #[inline(always)]
    fn send(&mut self, hop: Slot) -> Verdict {
        self.sent_by = hop.ifindex();
        self.mtu = hop.mtu();
        self.packet.send(hop)
    }
}
