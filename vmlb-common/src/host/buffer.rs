//! A packet in memory, with the effects on octets that XDP or TC would have.

use core::ffi::c_void;
use core::marker::PhantomData;
use std::vec::Vec;

use crate::abi::DeviceFlags;
use crate::checksum::Delta;
use crate::family::Family;
use crate::live::Slot;
use crate::packet::{Frame, Lane, Packet, Sending, Trunk, address_frame, fix_header_in_place, fix_in_place};
use crate::verdict::Verdict;
use crate::wire::{Be16, Ethernet, Ethertype, Protocol, TcpHeader, UdpHeader, Wire};

/// Words of an Ethernet header.
const ETHERNET: usize = 7;

/// Marks a buffer that behaves like a frame at XDP.
#[derive(Clone, Copy, Debug)]
pub struct Xdp;

/// Marks a buffer that behaves like a frame at XDP of a device that carries others.
#[derive(Clone, Copy, Debug)]
pub struct Carrier;

/// Hooks that send frames.
pub trait Frames {
    /// As [`Packet::SENDS_BY`].
    const SENDS_BY: u32;
}

impl Frames for Xdp {
    const SENDS_BY: u32 = DeviceFlags::XDP_TRANSMIT;
}

impl Frames for Carrier {
    const SENDS_BY: u32 = DeviceFlags::XDP_TRANSMIT | DeviceFlags::CARRIED;
}

/// Marks a buffer that behaves like a packet with full checksums at TC.
#[derive(Clone, Copy, Debug)]
pub struct Tc;

/// A frame in memory at hook `H`, [`Xdp`], [`Carrier`] or [`Tc`].
#[derive(Clone, Debug)]
pub struct Buffer<H> {
    /// Words, because views are aligned to two.
    words: Vec<u16>,
    length: usize,
    device: u32,
    wire: u32,
    lane: Lane,
    sent_by: Option<u32>,
    hook: PhantomData<H>,
}

impl<H> Buffer<H> {
    /// A copy of `frame`, Ethernet header first, that came in by `device` (at egress: leaves by it).
    ///
    /// # Panics
    /// If the frame has 4 GiB or more.
    pub fn new(device: u32, frame: &[u8]) -> Self {
        assert!(u32::try_from(frame.len()).is_ok(), "no device carries frames of 4 GiB");
        let word = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let words = frame.chunks(2).map(word).collect();
        Self {
            words,
            length: frame.len(),
            device,
            wire: device,
            lane: Lane::default(),
            sent_by: None,
            hook: PhantomData,
        }
    }

    /// The frame as it is now.
    pub fn octets(&self) -> &[u8] {
        // SAFETY: `length` octets have been written into the words, which any octet pointer may read.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }

    /// The device that the datapath sent it by.
    pub fn sent_by(&self) -> Option<u32> {
        self.sent_by
    }

    fn look<T: Wire>(&mut self) -> Option<&mut T> {
        if size_of::<T>() > self.length {
            return None;
        }
        // SAFETY: long enough, aligned to two, and any pattern is a `T`; borrowed as long as the buffer is.
        Some(unsafe { &mut *self.words.as_mut_ptr().cast() })
    }

    fn four(&mut self, offset: usize) -> Option<&mut [u8; 4]> {
        // SAFETY: as in `octets`; borrowed as long as the buffer is.
        let octets =
            unsafe { core::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), self.length) };
        octets.get_mut(offset..)?.first_chunk_mut()
    }

    /// Cuts the frame and makes room in front, which holds whatever was there before.
    fn cut(&mut self, kept: u32, front: u32) {
        let (kept, front) = (kept as usize, front as usize);
        self.words.truncate(kept.div_ceil(2));
        self.words.splice(0..0, std::iter::repeat_n(0xdead, front / 2));
        self.length = kept + front;
    }

    /// Makes room behind the Ethernet header.
    fn widen(&mut self, octets: u32) {
        let words = octets as usize / 2;
        self.words.splice(ETHERNET..ETHERNET, std::iter::repeat_n(0xdead, words));
        self.length += words * 2;
    }

    /// Takes octets out behind the Ethernet header, if there are so many.
    fn narrow(&mut self, octets: u32) -> bool {
        let words = octets as usize / 2;
        let is_long_enough = self.length >= (ETHERNET + words) * 2;
        if is_long_enough {
            self.words.drain(ETHERNET..ETHERNET + words);
            self.length -= words * 2;
        }
        is_long_enough
    }

    #[expect(clippy::cast_possible_truncation, reason = "`new` takes no longer frames")]
    fn size(&self) -> u32 {
        self.length as u32
    }
}

impl<H: Frames> Packet for Buffer<H> {
    const SENDING: Sending = Sending::Frames;
    const SENDS_BY: u32 = H::SENDS_BY;

    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        self.look()
    }

    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        self.four(offset as usize)
    }

    fn length(&self) -> u32 {
        self.size()
    }

    fn uncut_length(&self) -> u32 {
        self.size()
    }

    fn ifindex(&self) -> u32 {
        self.device
    }

    fn entered_by(&self) -> u32 {
        self.device
    }

    fn context(&self) -> *mut c_void {
        core::ptr::null_mut()
    }

    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        fix_in_place::<F, Self>(self, protocol, header, addresses, ports);
    }

    fn fix_header<F: Family>(&mut self, header: Delta) {
        fix_header_in_place::<F, Self>(self, header);
    }

    fn reshape(&mut self, kept: u32, front: u32) -> bool {
        self.cut(kept, front);
        true
    }

    fn wrap<F: Family>(&mut self, _shape: u8, octets: u32) -> bool {
        self.widen(octets);
        true
    }

    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        self.narrow(octets)
    }

    fn reach(&mut self, _octets: u32) {}

    fn send(&mut self, hop: Slot) -> Verdict {
        address_frame(self, hop);
        if hop.ifindex() == self.device {
            self.sent_by = Some(self.wire);
            return Verdict::TRANSMIT;
        }
        self.lane.exit = hop.ifindex();
        self.sent_by = Some(hop.ifindex());
        Verdict::REDIRECT
    }
}

impl Trunk for Buffer<Carrier> {
    fn wire(&self) -> u32 {
        self.wire
    }

    fn note(&mut self, lane: Lane) {
        self.device = lane.ifindex;
        self.lane = lane;
    }

    fn lane(&self) -> Lane {
        self.lane
    }

    fn shift(&mut self, by: i32, ethertype: Ethertype) -> bool {
        if by < 0 {
            self.widen(by.unsigned_abs());
        } else if !self.narrow(by.unsigned_abs()) {
            return false;
        }
        self.look::<Ethernet>().map(|ethernet| ethernet.ethertype = ethertype).is_some()
    }

    fn redirect(&mut self, ifindex: u32) {
        self.sent_by = Some(ifindex);
    }
}

impl Packet for Buffer<Tc> {
    const SENDING: Sending = Sending::Packets;
    const SENDS_BY: u32 = 0;

    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        self.look()
    }

    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        self.four(offset as usize)
    }

    fn length(&self) -> u32 {
        self.size()
    }

    fn uncut_length(&self) -> u32 {
        self.size()
    }

    fn ifindex(&self) -> u32 {
        self.device
    }

    /// As of a program run: a packet that no device has brought.
    fn entered_by(&self) -> u32 {
        0
    }

    fn context(&self) -> *mut c_void {
        core::ptr::null_mut()
    }

    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        if F::VERSION == 4
            && let Some(frame) = self.look::<Frame<crate::wire::Ipv4Header, UdpHeader>>()
        {
            frame.ip.checksum = replace(frame.ip.checksum, header);
        }
        if protocol == Protocol::TCP {
            if let Some(frame) = self.look::<Frame<F::Header, TcpHeader>>() {
                frame.transport.checksum = replace(replace(frame.transport.checksum, addresses), ports);
            }
        } else if let Some(frame) = self.look::<Frame<F::Header, UdpHeader>>() {
            frame.transport.checksum =
                replace_mangled(replace_mangled(frame.transport.checksum, addresses), ports);
        }
    }

    fn fix_header<F: Family>(&mut self, header: Delta) {
        if F::VERSION == 4
            && let Some(frame) = self.look::<Frame<crate::wire::Ipv4Header, ()>>()
        {
            frame.ip.checksum = replace(frame.ip.checksum, header);
        }
    }

    fn reshape(&mut self, _kept: u32, _front: u32) -> bool {
        false
    }

    fn wrap<F: Family>(&mut self, _shape: u8, octets: u32) -> bool {
        self.widen(octets);
        true
    }

    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        self.narrow(octets)
    }

    fn reach(&mut self, _octets: u32) {}

    fn send(&mut self, hop: Slot) -> Verdict {
        address_frame(self, hop);
        self.sent_by = Some(hop.ifindex());
        Verdict::REDIRECT
    }
}

/// The kernel's `csum_replace_by_diff` (include/net/checksum.h): the complement is taken in 32 bits.
fn replace(checksum: Be16, delta: Delta) -> Be16 {
    let (sum, carry) = delta.wsum().overflowing_add(!u32::from(checksum.raw()));
    let sum = sum + u32::from(carry);
    let once = (sum & 0xffff) + (sum >> 16);
    let folded = (once & 0xffff) + (once >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
    Be16::from_raw(!(folded as u16))
}

/// `bpf_l4_csum_replace` with `BPF_F_MARK_MANGLED_0`: zero is no checksum and stays, a sum of zero becomes all ones.
fn replace_mangled(checksum: Be16, delta: Delta) -> Be16 {
    let none = Be16::default();
    if checksum == none {
        return none;
    }
    let sum = replace(checksum, delta);
    if sum == none { Be16::from_raw(0xffff) } else { sum }
}
