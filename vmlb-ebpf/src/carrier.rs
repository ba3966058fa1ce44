//! A frame at XDP of a device that carries others, as one of the device to which it belongs. What is known of it is in a map,
//! one entry a CPU: the BPF stack has no room for it.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_md as XdpMd;
use aya_ebpf::helpers::generated::bpf_redirect;
use vmlb_common::abi::DeviceFlags;
use vmlb_common::checksum::Delta;
use vmlb_common::family::Family;
use vmlb_common::live::Slot;
use vmlb_common::packet::{Lane, Packet, Sending, Trunk, address_frame};
use vmlb_common::verdict::Verdict;
use vmlb_common::wire::{Ethertype, Protocol, Wire};

use crate::context::Xdp;
use crate::maps;

/// See the module.
pub(crate) struct Carried(Xdp);

impl Carried {
    #[inline(always)]
    pub(crate) fn new(context: *mut XdpMd) -> Self {
        Self(Xdp(context))
    }

    /// What the kernel shall do.
    #[inline(always)]
    pub(crate) fn action(&mut self, verdict: Verdict) -> u32 {
        if verdict.is_punt() {
            self.0.mark_punted();
        }
        self.0.action_for(verdict, maps::lane_ifindex())
    }
}

impl Packet for Carried {
    const SENDING: Sending = Sending::Frames;
    const SENDS_BY: u32 = DeviceFlags::XDP_TRANSMIT | DeviceFlags::CARRIED;

    #[inline(always)]
    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        self.0.view()
    }

    #[inline(always)]
    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        self.0.octets_at(offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length()
    }

    #[inline(always)]
    fn uncut_length(&self) -> u32 {
        self.0.uncut_length()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        maps::lane_ifindex()
    }

    #[inline(always)]
    fn entered_by(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.context()
    }

    #[inline(always)]
    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        self.0.fix_checksums::<F>(protocol, header, addresses, ports);
    }

    #[inline(always)]
    fn fix_header<F: Family>(&mut self, header: Delta) {
        self.0.fix_header::<F>(header);
    }

    #[inline(always)]
    fn reshape(&mut self, kept: u32, front: u32) -> bool {
        self.0.reshape(kept, front)
    }

    #[inline(always)]
    fn wrap<F: Family>(&mut self, shape: u8, octets: u32) -> bool {
        self.0.wrap::<F>(shape, octets)
    }

    #[inline(always)]
    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        self.0.unwrap::<F>(octets)
    }

    #[inline(always)]
    fn reach(&mut self, octets: u32) {
        self.0.reach(octets);
    }

    /// The device, and the tags there, are looked for when the frame leaves ([`Trunk::redirect`]).
    #[inline(always)]
    fn send(&mut self, hop: Slot) -> Verdict {
        address_frame(self, hop);
        let exit = hop.ifindex();
        if exit == self.ifindex() {
            return Verdict::TRANSMIT;
        }
        maps::note_lane(|lane| lane.exit = exit);
        Verdict::REDIRECT
    }
}

impl Trunk for Carried {
    #[inline(always)]
    fn wire(&self) -> u32 {
        self.0.ifindex()
    }

    #[inline(always)]
    fn note(&mut self, lane: Lane) {
        maps::note_lane(|place| *place = lane);
    }

    #[inline(always)]
    fn lane(&self) -> Lane {
        maps::lane()
    }

    #[inline(always)]
    fn shift(&mut self, by: i32, ethertype: Ethertype) -> bool {
        self.0.shift(by, ethertype)
    }

    #[inline(always)]
    fn redirect(&mut self, ifindex: u32) {
        // SAFETY: a number and no flags.
        unsafe { bpf_redirect(ifindex, 0) };
    }
}
