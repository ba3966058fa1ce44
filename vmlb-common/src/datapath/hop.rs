//! Next hops: asked of the FIB once, believed until the agent says that the network changed, or ten seconds.

use crate::abi::{DeviceFlags, Hop};
use crate::checksum::Delta;
use crate::family::{Family, Header};
use crate::kernel::{Kernel, Query, Route, Step, Tables};
use crate::live::Slot;
use crate::packet::{Frame, Packet, Sending};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Ethernet, Protocol, UdpHeader};

use super::clamp;
use super::translate::{End, Hops, translate};

/// How long a cached hop is believed, in seconds, if nobody raises the generation: the agent may be away.
const BELIEVED: u32 = 10;

/// What a cached hop must match.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    pub(super) stamp: u32,
    pub(super) now: u32,
    pub(super) oldest: u32,
}

impl Validity {
    /// For hops that hold until the network changes, or the endpoint ([`super::place::version`]; 0: they lead to none).
    #[inline(always)]
    pub(super) fn new<P: Packet, K: Kernel>(kernel: &K, version: u32) -> Option<Self> {
        let settings = kernel.settings()?;
        // What TC may use XDP may not (no MAC address, no transmission), nor every XDP program what another may (tags): they
        // do not believe each other's hops.
        let hook = match P::SENDING {
            Sending::Frames if P::SENDS_BY & DeviceFlags::CARRIED != 0 => 0x4000_0000,
            Sending::Frames => 0,
            Sending::Packets => 0x8000_0000,
        };
        Some(Self {
            stamp: settings.generation.wrapping_mul(2).wrapping_add(version) & 0x3fff_ffff | hook,
            now: kernel.now(),
            oldest: settings.hz.wrapping_mul(BELIEVED),
        })
    }

    /// Whether the cached hop may be believed.
    #[inline(always)]
    fn holds(&self, slot: Slot) -> bool {
        slot.stamp() == self.stamp && self.now.wrapping_sub(slot.filled()) < self.oldest
    }
}

/// Translates a packet and sends it by the cached hop, or by what the FIB says. Where the verdict is a punt, a deferral or
/// a refusal the packet is untouched.
#[inline(always)]
pub(super) fn send<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    validity: &Validity,
    slot: Slot,
    way: &Way<'_, F>,
) -> Verdict {
    let verdict = aim(packet, kernel, validity, slot, way);
    if verdict.is_final() {
        return verdict;
    }
    let verdict = fits::<F, P>(packet, slot.mtu());
    if verdict.is_final() {
        return verdict;
    }
    let verdict =
        translate(packet, way.protocol, &way.source, &way.destination, way.addresses, Hops::Counted);
    if verdict.is_final() {
        return verdict;
    }
    clamp::clamp::<F, P, K>(packet, kernel, slot.mtu());
    packet.send(slot)
}

/// Whether a frame is short enough for its way: the kernel would drop it without a word (`xdp_ok_fwd_dev`,
/// `is_skb_forwardable`).
#[inline(always)]
pub(super) fn fits<F: Family, P: Packet>(packet: &mut P, mtu: u32) -> Verdict {
    if packet.uncut_length() <= mtu.saturating_add(size_of::<Ethernet>() as u32) {
        return Verdict::CONTINUE;
    }
    match packet.view::<Frame<F::Header, UdpHeader>>() {
        Some(frame) if !frame.ip.may_be_cut() => Verdict::too_big(mtu),
        _ => Verdict::drop(Reason::UNCUTTABLE),
    }
}

/// Sees to it that `slot` holds a hop that this hook can send by; [`Verdict::CONTINUE`] when it does.
#[inline(always)]
pub(super) fn aim<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    validity: &Validity,
    slot: Slot,
    way: &Way<'_, F>,
) -> Verdict {
    if !validity.holds(slot) {
        let verdict = Verdict::from_number(locate(packet, kernel, validity, slot, way));
        if verdict.is_defer() {
            // TC has no answer for what is too large. Looked at here: there the BPF stack has no room for it.
            let fits =
                if verdict.mtu() == 0 { Verdict::CONTINUE } else { fits::<F, P>(packet, verdict.mtu()) };
            return if fits.is_final() { fits } else { Verdict::defer(verdict.reason()) };
        }
        if verdict.is_final() {
            return verdict;
        }
        // Told here, not where the answer came: a log line there would be the deepest chain of calls.
        kernel.trace(packet, Step::ROUTED, slot.ifindex());
    }
    Verdict::CONTINUE
}

/// Where a packet is to go: both its ends after the translation, and the kind of device that may lead there.
pub(super) struct Way<'a, F: Family> {
    pub(super) protocol: Protocol,
    pub(super) source: End<'a, F>,
    pub(super) destination: End<'a, F>,
    /// What the translation changes in the sum of both addresses.
    pub(super) addresses: Delta,
    /// A bit of [`DeviceFlags`], or [`DeviceFlags::ANY`].
    pub(super) wanted: u32,
}

/// Asks the FIB, checks that this hook can send there, and fills `slot`; [`Verdict::CONTINUE`] when it is filled.
#[inline(never)]
fn locate<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    validity: &Validity,
    slot: Slot,
    way: &Way<'_, F>,
) -> u32 {
    let query = Query {
        source: way.source.address,
        destination: way.destination.address,
        protocol: way.protocol.number(),
    };
    let mut hop = Hop { stamp: validity.stamp, filled: validity.now, ..Hop::NOWHERE };
    let known = match kernel.route::<F>(packet.context(), packet.ifindex(), &query) {
        Route::Found { ifindex, source, destination, mtu } => {
            hop.mtu = mtu;
            hop.ifindex = ifindex;
            hop.source = source;
            hop.destination = destination;
            Neighbour::Known
        }
        Route::NoNeighbour { ifindex, mtu } => {
            hop.mtu = mtu;
            hop.ifindex = ifindex;
            Neighbour::Unknown
        }
        Route::ForwardingOff => return Verdict::punt(Reason::FORWARDING_OFF).number(),
        Route::None => return Verdict::punt(Reason::NO_ROUTE).number(),
    };
    let flags = device_flags(kernel, hop.ifindex);
    if way.wanted != DeviceFlags::ANY && flags & way.wanted == 0 {
        return Verdict::punt(Reason::FOREIGN_DEVICE).number();
    }
    if P::SENDING == Sending::Frames {
        if flags & P::SENDS_BY == 0 {
            return Verdict::defer_within(hop.mtu).number();
        }
        if known == Neighbour::Unknown {
            return Verdict::defer(Reason::NEIGHBOUR).number();
        }
    }
    slot.fill(hop);
    Verdict::CONTINUE.number()
}

/// The device that the FIB names for `query`, or [`NOWHERE`] with the reason.
#[inline(never)]
pub(super) fn leaves_by<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    query: &Query<'_, F::Address>,
) -> u32 {
    match kernel.route::<F>(packet.context(), packet.ifindex(), query) {
        Route::Found { ifindex, .. } | Route::NoNeighbour { ifindex, .. } => ifindex & !NOWHERE,
        Route::ForwardingOff => NOWHERE | Reason::FORWARDING_OFF.number(),
        Route::None => NOWHERE | Reason::NO_ROUTE.number(),
    }
}

/// Marks an answer of [`leaves_by`] that is a reason; interface indexes are positive `int`s.
pub(super) const NOWHERE: u32 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Neighbour {
    Known,
    Unknown,
}

/// The flags of a device; none for one that is not ours.
#[inline(always)]
pub(super) fn device_flags<K: Kernel>(kernel: &K, ifindex: u32) -> u32 {
    match kernel.device(ifindex) {
        Some(device) => device.flags,
        None => 0,
    }
}
