//! A device that carries others: the parent of VLAN devices, the members of a bond, the port of a bridge. Its program takes
//! the tags out of a frame, has the stages look at it as if it had come by the device to which it belongs, and puts tags
//! on before it goes on: those it came with, or those of the device by which it leaves.
//!
//! Both halves are subprograms of their own, siblings of the stages, because the BPF stack is small.

use crate::abi::{CarriedKey, Carrier};
use crate::kernel::{Carriers, Kernel};
use crate::packet::{Lane, Trunk};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Ethernet, Ethertype, OnceTagged, Tag, TwiceTagged};

/// Octets of a tag.
const TAG: i32 = size_of::<Tag>() as i32;
/// The VLAN's number in a tag; 0: it says a priority only.
const VLAN: u32 = 0xfff;
/// What of a tag is in [`CarriedKey`].
const KEY: u32 = 0xffff_0000 | VLAN;

/// Whether the frame is for a device that this one carries. If so its tags are out and noted.
#[inline(never)]
pub(super) fn enter<P: Trunk, K: Kernel + Carriers>(packet: &mut P, kernel: &K) -> u32 {
    u32::from(is_taken(packet, kernel))
}

#[inline(always)]
fn is_taken<P: Trunk, K: Kernel + Carriers>(packet: &mut P, kernel: &K) -> bool {
    let wire = packet.wire();
    let Some(ethernet) = packet.view::<Ethernet>() else { return false };
    let (mut inside, destination) = (ethernet.ethertype, ethernet.destination);
    let mut lane = Lane::default();
    if inside.is_tag() {
        let Some(frame) = packet.view::<OnceTagged>() else { return false };
        lane.outer = noted(inside, frame.tag);
        inside = frame.tag.ethertype;
        if inside.is_tag() {
            let Some(frame) = packet.view::<TwiceTagged>() else { return false };
            lane.inner = noted(inside, frame.inner);
            inside = frame.inner.ethertype;
            if lane.outer & VLAN == 0 || lane.inner & VLAN == 0 {
                return false;
            }
        }
    }
    if !inside.is_ip() {
        return false;
    }
    let key = CarriedKey { carrier: wire, outer: named(lane.outer), inner: lane.inner & KEY };
    let Some(carried) = kernel.carried(&key) else { return false };
    // A device takes whatever its driver gives it; what it carries may be a bridge, which forwards what is for others.
    if carried.ifindex != wire && !is_same(carried.mac, destination) {
        return false;
    }
    lane.ifindex = carried.ifindex;
    packet.note(lane);
    match (lane.outer, lane.inner) {
        (0, _) => true,
        (_, 0) => packet.shift(TAG, inside),
        _ => packet.shift(2 * TAG, inside),
    }
}

/// Puts tags on a frame that goes on.
#[inline(never)]
pub(super) fn leave<P: Trunk, K: Kernel + Carriers>(packet: &mut P, kernel: &K, verdict: u32) -> u32 {
    let mut lane = packet.lane();
    if Verdict::from_number(verdict) == Verdict::REDIRECT {
        let plain = Carrier { ifindex: lane.exit, outer: 0, inner: 0 };
        let carrier = kernel.carrier(lane.exit).unwrap_or(plain);
        lane = Lane { outer: carrier.outer, inner: carrier.inner, ..lane };
        packet.redirect(carrier.ifindex);
    }
    if tagged(packet, &lane) {
        return verdict;
    }
    kernel.count(Reason::MALFORMED);
    Verdict::drop(Reason::MALFORMED).number()
}

/// Puts the lane's tags on; `false` where there is no room for them.
#[inline(always)]
fn tagged<P: Trunk>(packet: &mut P, lane: &Lane) -> bool {
    if lane.outer == 0 {
        return true;
    }
    let Some(inside) = packet.view::<Ethernet>().map(|ethernet| ethernet.ethertype) else { return false };
    let outer = ethertype(lane.outer);
    if lane.inner == 0 {
        if !packet.shift(-TAG, outer) {
            return false;
        }
        let Some(frame) = packet.view::<OnceTagged>() else { return false };
        frame.tag = tag(lane.outer, inside);
        return true;
    }
    if !packet.shift(-2 * TAG, outer) {
        return false;
    }
    let Some(frame) = packet.view::<TwiceTagged>() else { return false };
    frame.outer = tag(lane.outer, ethertype(lane.inner));
    frame.inner = tag(lane.inner, inside);
    true
}

/// A tag as a [`Lane`] has it.
#[inline(always)]
fn noted(kind: Ethertype, tag: Tag) -> u32 {
    u32::from(kind.0.get()) << 16 | u32::from(tag.control.get())
}

#[inline(always)]
fn ethertype(noted: u32) -> Ethertype {
    Ethertype(Be16::new((noted >> 16) as u16))
}

#[inline(always)]
fn tag(noted: u32, inside: Ethertype) -> Tag {
    Tag { control: Be16::new(noted as u16), ethertype: inside }
}

/// A tag as [`CarriedKey`] has it.
#[inline(always)]
fn named(noted: u32) -> u32 {
    if noted & VLAN == 0 { 0 } else { noted & KEY }
}

#[inline(always)]
fn is_same(mac: [u8; 6], words: [Be16; 3]) -> bool {
    let [a, b, c, d, e, f] = mac;
    words == [Be16::from_octets(a, b), Be16::from_octets(c, d), Be16::from_octets(e, f)]
}
