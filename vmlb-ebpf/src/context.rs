//! XDP and TC contexts as packets: the one comparison against the packet's end, and what each hook sends with.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff as SkBuff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_action, xdp_md as XdpMd,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_pull_data,
    bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_adjust_tail,
};
use vmlb_common::abi::{DeviceFlags, TunnelShape};
use vmlb_common::checksum::Delta;
use vmlb_common::family::Family;
use vmlb_common::live::Slot;
use vmlb_common::packet::{Frame, Packet, Sending, address_frame, fix_header_in_place, fix_in_place};
use vmlb_common::verdict::{Reason, Verdict};
use vmlb_common::wire::{Be16, Ethernet, Ethertype, Protocol, TcpHeader, UdpHeader, Wire};

/// `TC_ACT_UNSPEC`, which TCX calls `TCX_NEXT`: the next program decides.
pub(crate) const NEXT: i32 = TC_ACT_UNSPEC;

/// What XDP writes in front of a packet that TC is to send.
const DEFERRED: u32 = 0x766d_6c62;

/// What XDP writes in front of a packet that it has left to the stack, where TC looks at all packets.
const PUNTED: u32 = 0x766d_6c63;

/// A view of the packet's first octets: the datapath's one bounds check.
#[inline(always)]
fn view<'a, T: Wire>(data: usize, end: usize) -> Option<&'a mut T> {
    if data + size_of::<T>() > end {
        return None;
    }
    // SAFETY: the octets are inside the packet, `T` takes any, and packets of one program run are not shared.
    Some(unsafe { &mut *(data as *mut T) })
}

/// A packet at XDP.
pub(crate) struct Xdp(pub(crate) *mut XdpMd);

impl Xdp {
    /// Volatile: LLVM must not hoist the two loads and hand them to subprograms as numbers.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context the kernel gave the program.
        unsafe {
            (
                (&raw const (*self.0).data).read_volatile() as usize,
                (&raw const (*self.0).data_end).read_volatile() as usize,
            )
        }
    }

    /// What the kernel shall do. A deferral is written into the packet's metadata.
    #[inline(always)]
    pub(crate) fn action(&mut self, verdict: Verdict) -> u32 {
        let ifindex = self.ifindex();
        self.action_for(verdict, ifindex)
    }

    /// [`Xdp::action`] for a frame that belongs to that device.
    #[inline(always)]
    pub(crate) fn action_for(&mut self, verdict: Verdict, ifindex: u32) -> u32 {
        if verdict.is_drop() {
            return xdp_action::XDP_DROP;
        }
        if verdict.is_defer() {
            if self.mark(DEFERRED) {
                return xdp_action::XDP_PASS;
            }
            vmlb_common::kernel::Kernel::count(&crate::maps::Node, Reason::NO_METADATA);
            crate::maps::note_no_metadata(ifindex);
            return xdp_action::XDP_DROP;
        }
        if verdict.is_answer() {
            return xdp_action::XDP_TX;
        }
        match verdict {
            Verdict::TRANSMIT => xdp_action::XDP_TX,
            Verdict::REDIRECT => xdp_action::XDP_REDIRECT,
            _ => xdp_action::XDP_PASS,
        }
    }

    /// Moves the Ethernet header by so many octets, towards the packet's end or its front.
    #[inline(always)]
    pub(crate) fn shift(&mut self, by: i32, ethertype: Ethertype) -> bool {
        let Some(Ethernet { destination, source, .. }) = self.view::<Ethernet>().copied() else {
            return false;
        };
        // SAFETY: the context is this program's; views are taken afterwards.
        if unsafe { bpf_xdp_adjust_head(self.0, by) } != 0 {
            return false;
        }
        let Some(ethernet) = self.view::<Ethernet>() else {
            return false;
        };
        *ethernet = Ethernet { destination, source, ethertype };
        true
    }

    /// Keeps TC from looking at the packet again. Without metadata it counts the reason a second time, and no more.
    #[inline(always)]
    pub(crate) fn mark_punted(&mut self) {
        let _marked = self.mark(PUNTED);
    }

    /// Writes into the packet's metadata; `false` where the driver gives none.
    #[inline(always)]
    fn mark(&mut self, mark: u32) -> bool {
        // SAFETY: the context is this program's.
        let refused = unsafe { bpf_xdp_adjust_meta(self.0, -(size_of::<u32>() as i32)) } != 0;
        // SAFETY: as in `bounds`; the helper has moved the pointers.
        let meta = unsafe { (&raw const (*self.0).data_meta).read_volatile() as usize };
        let (data, _) = self.bounds();
        if refused || meta + size_of::<u32>() > data {
            return false;
        }
        // SAFETY: four octets of metadata in front of the packet, aligned by the kernel.
        unsafe { (meta as *mut u32).write(mark) };
        true
    }
}

impl Packet for Xdp {
    const SENDING: Sending = Sending::Frames;
    const SENDS_BY: u32 = DeviceFlags::XDP_TRANSMIT;

    #[inline(always)]
    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        let (data, end) = self.bounds();
        view(data, end)
    }

    #[inline(always)]
    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        let (data, end) = self.bounds();
        // The verifier is to know how far it may be.
        view(data + (offset & 0xff) as usize, end)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a frame is shorter than 4 GiB")]
    fn length(&self) -> u32 {
        let (data, end) = self.bounds();
        (end - data) as u32
    }

    #[inline(always)]
    fn uncut_length(&self) -> u32 {
        self.length()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context the kernel gave the program.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn entered_by(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        fix_in_place::<F, Self>(self, protocol, header, addresses, ports);
    }

    #[inline(always)]
    fn fix_header<F: Family>(&mut self, header: Delta) {
        fix_header_in_place::<F, Self>(self, header);
    }

    #[inline(always)]
    fn reshape(&mut self, kept: u32, front: u32) -> bool {
        let cut = kept.wrapping_sub(self.length()) as i32;
        // SAFETY: the context is this program's; views are taken afterwards.
        unsafe {
            (cut == 0 || bpf_xdp_adjust_tail(self.0, cut) == 0)
                && (front == 0 || bpf_xdp_adjust_head(self.0, (front as i32).wrapping_neg()) == 0)
        }
    }

    #[inline(always)]
    fn wrap<F: Family>(&mut self, _shape: u8, octets: u32) -> bool {
        self.shift((octets as i32).wrapping_neg(), F::ETHERTYPE)
    }

    #[inline(always)]
    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        self.shift(octets as i32, F::ETHERTYPE)
    }

    #[inline(always)]
    fn reach(&mut self, _octets: u32) {}

    #[inline(always)]
    fn send(&mut self, hop: Slot) -> Verdict {
        address_frame(self, hop);
        if hop.ifindex() == self.ifindex() {
            return Verdict::TRANSMIT;
        }
        // SAFETY: a number and no flags.
        unsafe { bpf_redirect(hop.ifindex(), 0) };
        Verdict::REDIRECT
    }
}

/// A packet at TC.
pub(crate) struct Tc(pub(crate) *mut SkBuff);

impl Tc {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context the kernel gave the program; volatile as at XDP.
        unsafe {
            (
                (&raw const (*self.0).data).read_volatile() as usize,
                (&raw const (*self.0).data_end).read_volatile() as usize,
            )
        }
    }

    /// Makes the headers we read linear; they may lie in fragments (GSO, GRO).
    #[inline(always)]
    pub(crate) fn pull(&mut self) {
        const HEADERS: u32 = 14 + 40 + 20;
        let (data, end) = self.bounds();
        if data + HEADERS as usize > end {
            let length = self.length();
            // SAFETY: the context is this program's; views are taken afterwards. A refusal leaves a short packet, which
            // is not ours.
            unsafe { bpf_skb_pull_data(self.0, if length < HEADERS { length } else { HEADERS }) };
        }
    }

    /// What the packet is, by the kernel's word.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> Ethertype {
        // SAFETY: the context the kernel gave the program.
        Ethertype(Be16::from_raw(unsafe { (*self.0).protocol } as u16))
    }

    /// Puts an Ethernet header in front of a packet without one; without addresses, which nobody reads.
    #[inline(always)]
    pub(crate) fn put_ethernet(&mut self, ethertype: Ethertype) -> bool {
        // SAFETY: the context is this program's; views are taken afterwards.
        if unsafe { bpf_skb_change_head(self.0, size_of::<Ethernet>() as u32, 0) } != 0 {
            return false;
        }
        self.pull();
        let Some(ethernet) = self.view::<Ethernet>() else {
            return false;
        };
        ethernet.ethertype = ethertype;
        true
    }

    /// Whether XDP has left this packet to us.
    #[inline(always)]
    pub(crate) fn is_deferred(&self) -> bool {
        self.mark() == DEFERRED
    }

    /// Whether XDP has left this packet to the stack.
    #[inline(always)]
    pub(crate) fn is_punted(&self) -> bool {
        self.mark() == PUNTED
    }

    /// What XDP has written in front of the packet; 0: nothing.
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as in `bounds`.
        let meta = unsafe { (&raw const (*self.0).data_meta).read_volatile() as usize };
        let (data, _) = self.bounds();
        if meta + size_of::<u32>() > data {
            return 0;
        }
        // SAFETY: the comparison leaves four octets between the pointers.
        unsafe { (meta as *const u32).read() }
    }

    /// What the kernel shall do. A packet that stays with the stack goes to the next program on the device, a CNI's say.
    #[inline(always)]
    pub(crate) fn action(&self, verdict: Verdict) -> i32 {
        if verdict.is_drop() {
            return TC_ACT_SHOT;
        }
        if verdict == Verdict::REDIRECT {
            return TC_ACT_REDIRECT;
        }
        NEXT
    }
}

impl Packet for Tc {
    const SENDING: Sending = Sending::Packets;
    const SENDS_BY: u32 = 0;

    #[inline(always)]
    fn view<T: Wire>(&mut self) -> Option<&mut T> {
        let (data, end) = self.bounds();
        view(data, end)
    }

    #[inline(always)]
    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        let (data, end) = self.bounds();
        // The verifier is to know how far it may be.
        view(data + (offset & 0xff) as usize, end)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context the kernel gave the program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn uncut_length(&self) -> u32 {
        // SAFETY: the context the kernel gave the program.
        if unsafe { (*self.0).gso_size } == 0 { self.length() } else { 0 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context the kernel gave the program.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn entered_by(&self) -> u32 {
        // SAFETY: the context the kernel gave the program.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn fix_checksums<F: Family>(
        &mut self,
        protocol: Protocol,
        header: Delta,
        addresses: Delta,
        ports: Delta,
    ) {
        const IP: u32 = size_of::<Ethernet>() as u32;
        const PSEUDO: u64 = BPF_F_PSEUDO_HDR as u64;
        let transport = IP + size_of::<F::Header>() as u32;
        // SAFETY: the context is this program's; offsets lie in the headers that were just written.
        unsafe {
            if F::VERSION == 4 {
                // The checksum follows ten octets of the IPv4 header.
                bpf_l3_csum_replace(self.0, IP + 10, 0, u64::from(header.wsum()), 0);
            }
            let (offset, flags) = if protocol == Protocol::TCP {
                (transport + core::mem::offset_of!(TcpHeader, checksum) as u32, 0)
            } else {
                (transport + core::mem::offset_of!(UdpHeader, checksum) as u32, BPF_F_MARK_MANGLED_0 as u64)
            };
            bpf_l4_csum_replace(self.0, offset, 0, u64::from(addresses.wsum()), PSEUDO | flags);
            bpf_l4_csum_replace(self.0, offset, 0, u64::from(ports.wsum()), flags);
            if F::VERSION == 6 {
                // What hardware summed of the whole packet (CHECKSUM_COMPLETE): the helper has taken the addresses off, as if
                // a checksum in the IP header made up for them.
                bpf_csum_update(self.0, header.wsum());
            }
        }
    }

    #[inline(always)]
    fn fix_header<F: Family>(&mut self, header: Delta) {
        // SAFETY: the context is this program's; the offset lies in the header that was just written.
        unsafe {
            if F::VERSION == 4 {
                // The checksum follows ten octets of the IPv4 header, whose sum stays what it was.
                bpf_l3_csum_replace(self.0, size_of::<Ethernet>() as u32 + 10, 0, u64::from(header.wsum()), 0);
            } else {
                // Where hardware has summed the packet, that sum has changed.
                bpf_csum_update(self.0, header.wsum());
            }
        }
    }

    #[inline(always)]
    fn reshape(&mut self, _kept: u32, _front: u32) -> bool {
        // A partial checksum would be completed over what stands there then.
        false
    }

    #[inline(always)]
    fn wrap<F: Family>(&mut self, shape: u8, octets: u32) -> bool {
        const ETHERNET: u64 = size_of::<Ethernet>() as u64;
        let mut flags = if F::VERSION == 4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } as u64;
        if shape == TunnelShape::UDP {
            // The inner Ethernet header is the last part of the room.
            let inner = ETHERNET << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
            flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64 | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | inner;
        }
        // SAFETY: the context is this program's; views are taken afterwards.
        unsafe { bpf_skb_adjust_room(self.0, octets as i32, BPF_ADJ_ROOM_MAC, flags) == 0 }
    }

    #[inline(always)]
    fn unwrap<F: Family>(&mut self, octets: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_adjust_room(self.0, (octets as i32).wrapping_neg(), BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    #[inline(always)]
    fn reach(&mut self, octets: u32) {
        let (data, end) = self.bounds();
        if data + octets as usize > end {
            let length = self.length();
            // SAFETY: as in `pull`.
            unsafe { bpf_skb_pull_data(self.0, if length < octets { length } else { octets }) };
        }
    }

    /// The kernel writes the MAC addresses. To what hardware summed of the whole packet it adds the addresses that it finds, and
    /// a veth takes off those that it got: they are to be the same, as far as they are known.
    #[inline(always)]
    fn send(&mut self, hop: Slot) -> Verdict {
        address_frame(self, hop);
        // SAFETY: a number, and no next hop of ours: the kernel routes and resolves.
        unsafe { bpf_redirect_neigh(hop.ifindex(), core::ptr::null_mut(), 0, 0) };
        Verdict::REDIRECT
    }
}

/// Both hooks see frames of this shape.
const _: () = assert!(size_of::<Frame<vmlb_common::wire::Ipv6Header, TcpHeader>>() == 14 + 40 + 20);
