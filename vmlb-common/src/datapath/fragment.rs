//! Fragments (way 8): a datagram's first one has its ports and goes through the stages; what became of it is noted under the
//! datagram's number, and those that follow are treated alike without asking. Programs of their own run this: those
//! for whole packets have no stack to spare.

use crate::abi::{Fragment, FragmentFlags, FragmentHook, FragmentKey};
use crate::checksum::Delta;
use crate::family::{Address, Family, Header, Piece, V4, V6, V6Fragment};
use crate::kernel::{Kernel, Stage, Tables};
use crate::live::Slot;
use crate::packet::{Frame, Outer, Packet, Sending, Transport, flow_key};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Ethernet, Ethertype, Protocol, UdpHeader};

use super::translate::Hops;
use super::{
    Origin, carried_out, conclude, error, ethertype, gate, hop, icmp, reply, reply_through_stack, request,
    tunnel, unwrapped,
};

mod first;

pub use first::First;

/// How long a datagram's number means that datagram, in seconds: as long as Linux waits for its fragments
/// (`net.ipv4.ipfrag_time`).
const REMEMBERED: u32 = 30;

/// Octets in front of a fragment's data, and its ports.
const HEADERS: u32 = 14 + 48 + 20;

/// At the ingress of an uplink.
#[inline(always)]
pub fn ingress<P: Packet, K: Kernel + Tables<V4> + Tables<V6> + Tables<V6Fragment>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    served::<Ingress, P, K>(packet, kernel)
}

/// At the egress of an uplink.
#[inline(always)]
pub fn egress<P: Packet, K: Kernel + Tables<V4> + Tables<V6> + Tables<V6Fragment>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    served::<Egress, P, K>(packet, kernel)
}

/// At the ingress of a pod's host-side device.
#[inline(always)]
pub fn from_pod<P: Packet, K: Kernel + Tables<V4> + Tables<V6> + Tables<V6Fragment>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    served::<Pod, P, K>(packet, kernel)
}

/// At the ingress of a device by which pods of other nodes are reached.
#[inline(always)]
pub fn from_overlay<P: Packet, K: Kernel + Tables<V4> + Tables<V6> + Tables<V6Fragment>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    served::<Overlay, P, K>(packet, kernel)
}

/// A place where fragments are met.
pub(super) trait Hook {
    /// What becomes of one whose first has not come.
    const EARLY: Verdict;
    /// Whether other nodes' wrappings are met there.
    const UNWRAPS: bool = false;
    /// Whether some are sent on by the tunnel.
    const WRAPS: bool = false;
    /// Whether fragments are met in such a wrapping.
    const WRAPPED: bool = false;

    /// [`FragmentHook`].
    fn number<P: Packet>() -> u8;

    /// What whole errors that quote a first fragment undergo; by default as those that pods send. Nobody asks [`Tunnel`].
    #[inline(always)]
    fn error<F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
        packet: &mut P,
        kernel: &K,
    ) -> Verdict {
        Verdict::from_number(icmp::from_pod::<F, P, K>(packet, kernel))
    }

    /// The stages for whole packets, as far as they serve a first fragment.
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict;
}

struct Ingress;
struct Egress;
struct Pod;
struct Overlay;
/// At the ingress of an uplink, in another node's wrapping.
pub(super) struct Tunnel;

impl Hook for Ingress {
    const EARLY: Verdict = Verdict::punt(Reason::FRAGMENT);
    const UNWRAPS: bool = true;
    const WRAPS: bool = true;

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        match P::SENDING {
            Sending::Frames => FragmentHook::XDP,
            Sending::Packets => FragmentHook::INGRESS,
        }
    }

    #[inline(always)]
    fn error<F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
        packet: &mut P,
        kernel: &K,
    ) -> Verdict {
        let mut mark = 0;
        <K as Tables<F>>::with_parcel(kernel, |parcel| mark = parcel.mark);
        if mark != 0 {
            // Another node's tunnel has brought it.
            return Verdict::from_number(icmp::about_reply::<F, P, K>(packet, kernel)).or_drop();
        }
        error::<F, P, K>(packet, kernel)
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let entrance = gate::ingress::<F, P, K>(packet, kernel);
        if entrance.verdict.is_final() {
            return entrance.verdict;
        }
        if entrance.may_be_error || entrance.may_be_wrapped {
            return Verdict::punt(Reason::FRAGMENT);
        }
        let mut verdict = Verdict::CONTINUE;
        if entrance.may_be_reply {
            verdict = Verdict::from_number(reply::remote::<F, P, K>(packet, kernel));
        }
        if !verdict.is_final() && entrance.may_be_request {
            verdict = request::<F, P, K>(packet, kernel, Origin::CLIENT);
        }
        carried_out::<F, P, K>(packet, kernel, verdict)
    }
}

impl Hook for Tunnel {
    /// The node that has it as the client sent it has had the first one.
    const EARLY: Verdict = Verdict::drop(Reason::FRAGMENT_TUNNEL);
    const WRAPPED: bool = true;

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        match P::SENDING {
            Sending::Frames => FragmentHook::XDP_TUNNEL,
            Sending::Packets => FragmentHook::INGRESS_TUNNEL,
        }
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let verdict = unwrapped::<F, P, K>(packet, kernel);
        if verdict.is_final() {
            return verdict;
        }
        request::<F, P, K>(packet, kernel, Origin::TUNNEL).or_drop()
    }
}

impl Hook for Egress {
    const EARLY: Verdict = Verdict::PASS;
    const WRAPS: bool = true;

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        FragmentHook::EGRESS
    }

    #[inline(always)]
    fn error<F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
        packet: &mut P,
        kernel: &K,
    ) -> Verdict {
        Verdict::from_number(icmp::leaving::<F, P, K>(packet, kernel))
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let verdict = gate::from_pod::<F, P, K>(packet, kernel);
        if verdict.is_final() {
            return verdict;
        }
        reply_through_stack::<F, P, K>(packet, kernel)
    }
}

impl Hook for Pod {
    const EARLY: Verdict = Verdict::PASS;

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        FragmentHook::POD
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let verdict = gate::from_pod::<F, P, K>(packet, kernel);
        if verdict.is_final() {
            return verdict;
        }
        Verdict::from_number(reply::through_device::<F, P, K>(packet, kernel)).unanswered()
    }
}

impl Hook for Overlay {
    const EARLY: Verdict = Verdict::punt(Reason::FRAGMENT);

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        FragmentHook::OVERLAY
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let entrance = gate::ingress::<F, P, K>(packet, kernel);
        if entrance.verdict.is_final() {
            return entrance.verdict;
        }
        if entrance.may_be_error {
            return Verdict::punt(Reason::FRAGMENT);
        }
        if entrance.may_be_reply {
            return Verdict::from_number(reply::remote::<F, P, K>(packet, kernel)).unanswered();
        }
        Verdict::PASS
    }
}

#[inline(always)]
fn served<H: Hook, P: Packet, K: Kernel + Tables<V4> + Tables<V6> + Tables<V6Fragment>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    packet.reach(HEADERS);
    let verdict = match ethertype(packet) {
        Some(Ethertype::IPV4) => piece::<H, V4, P, K>(packet, kernel),
        Some(Ethertype::IPV6) => piece::<H, V6Fragment, P, K>(packet, kernel),
        _ => return Verdict::PASS,
    };
    conclude(packet, kernel, verdict)
}

#[inline(always)]
fn piece<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    let Some(frame) = packet.view::<Frame<Outer<F>, ()>>() else {
        return Verdict::PASS;
    };
    let is_piece = frame.ip.is_fragment();
    // Where there is no header more, such an error is like any other.
    if size_of::<F::Header>() > size_of::<Outer<F>>() && !is_piece && frame.ip.protocol() == F::ICMP {
        packet.reach(icmp::MOST);
        return H::error::<F, First<P>, K>(packet, kernel);
    }
    if H::UNWRAPS && !is_piece {
        return staged::<Tunnel, F, P, K>(packet, kernel);
    }
    staged::<H, F, P, K>(packet, kernel)
}

#[inline(always)]
fn staged<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut First<P>,
    kernel: &K,
) -> Verdict {
    let verdict = Verdict::from_number(begin::<H, F, P, K>(packet, kernel));
    if verdict.is_final() {
        return verdict;
    }
    let verdict = H::stages::<F, First<P>, K>(packet, kernel);
    // A packet that no stage wanted is the stack's.
    let verdict = if verdict.is_final() { verdict } else { Verdict::PASS };
    note::<F, P, K>(packet, kernel, verdict);
    verdict
}

/// What [`remember`] says of a fragment that is not its datagram's first, beside the octets of its wrapping.
const LATER: u32 = 1 << 31;

/// Remembers which datagram the fragment at hand is of, as it came, in a wrapping of so many octets. [`Verdict::CONTINUE`] for
/// the first one, [`LATER`] for others, or a verdict.
#[inline(always)]
pub(super) fn remember<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(
    kernel: &K,
    ip: &F::Header,
    wrapping: u32,
) -> u32 {
    let Piece { identification, offset } = ip.piece();
    // RFC 3128: one that reaches into the first one's TCP header would change what has been looked at.
    if ip.protocol() == Protocol::TCP && matches!(offset, 1..3) {
        return Verdict::drop(Reason::MALFORMED).number();
    }
    kernel.with_datagram(|datagram| {
        datagram.key = FragmentKey {
            source: ip.source(),
            destination: ip.destination(),
            identification,
            protocol: ip.protocol().number(),
            hook: H::number::<P>(),
            pad: 0,
        };
    });
    if offset == 0 { Verdict::CONTINUE.number() } else { LATER | wrapping }
}

/// Remembers by which wrapping a first fragment goes to `node`; for [`note`].
#[inline(always)]
pub(super) fn note_wrapping<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    ip: &F::Header,
    node: &F::Address,
    label: u32,
) {
    kernel.with_datagram(|datagram| {
        datagram.fragment.source = ip.source();
        datagram.fragment.destination = *node;
        datagram.fragment.identification = label;
    });
}

/// Whether what was noted at this time is still of the same datagram.
#[inline(always)]
fn is_recent<K: Kernel>(kernel: &K, seen: u32) -> bool {
    match kernel.settings() {
        Some(settings) => kernel.now().wrapping_sub(seen) < settings.hz.wrapping_mul(REMEMBERED),
        None => false,
    }
}

/// Remembers which datagram a fragment is of. [`Verdict::CONTINUE`] for the first one; others are done with here, and so is one
/// that others have come before: they are the stack's, and it is too, unless its flow is ours and the stack could do nothing
/// with it.
#[inline(never)]
fn begin<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let outcome = if H::WRAPPED {
        tunnel::piece::<F, First<P>, K>(packet, kernel)
    } else {
        let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
            return Verdict::PASS.number();
        };
        remember::<H, F, P, K>(kernel, &frame.ip, 0)
    };
    if outcome & LATER != 0 {
        return follow::<H, F, P, K>(packet, kernel, outcome & !LATER);
    }
    if outcome != Verdict::CONTINUE.number() {
        return outcome;
    }
    let mut early = false;
    kernel.with_datagram(|datagram| {
        early = match kernel.fragment(&datagram.key) {
            Some(found) => found.flags() & FragmentFlags::EARLY != 0 && is_recent(kernel, found.seen()),
            None => false,
        };
    });
    if !early {
        return Verdict::CONTINUE.number();
    }
    if H::WRAPPED || is_of_a_flow::<F, P, K>(packet, kernel) == 0 {
        return H::EARLY.number();
    }
    let verdict = Verdict::drop(Reason::FRAGMENT_ORDER);
    note::<F, P, K>(packet, kernel, verdict);
    verdict.number()
}

/// Whether a first fragment is a request or a reply of a flow of ours; 1: it is.
#[inline(never)]
fn is_of_a_flow<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let Some(transport) = Transport::read::<F, First<P>>(packet) else {
        return 0;
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return 0;
    };
    let key = flow_key::<F>(&frame.ip, &transport);
    if kernel.flow(Stage::Established, &key).is_some() || kernel.flow(Stage::Half, &key).is_some() {
        return 1;
    }
    u32::from(reply::is_one::<F, First<P>, K>(packet, kernel))
}

/// Notes what has become of the first fragment: addresses and hop are what it has now.
#[inline(always)]
fn note<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K, verdict: Verdict) {
    noted::<F, P, K>(packet, kernel, verdict.number());
}

#[inline(never)]
fn noted<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut First<P>,
    kernel: &K,
    verdict: u32,
) -> u32 {
    let now = kernel.now();
    let (hop, backend, flags) = (packet.hop(now), packet.backend(), packet.flags());
    let verdict = Verdict::from_number(verdict);
    // Nobody answers twice.
    let verdict = if verdict.is_answer() { Verdict::drop(verdict.reason()) } else { verdict };
    let is_carried = packet.is_wrapped();
    let verdict = if is_carried { Verdict::CARRY } else { verdict };
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return 0;
    };
    kernel.with_datagram(|datagram| {
        if !is_carried {
            datagram.fragment.source = frame.ip.source();
            datagram.fragment.destination = frame.ip.destination();
            datagram.fragment.identification = frame.ip.piece().identification;
        }
        let noted = &mut datagram.fragment;
        (noted.hop, noted.seen, noted.verdict) = (hop, now, verdict.number());
        (noted.backend, noted.flags) = (backend, flags);
        kernel.note_fragment(&datagram.key, &datagram.fragment);
    });
    0
}

/// Notes that a fragment has come before its datagram's first one, unless that has been met at this very moment, on another
/// CPU.
#[inline(always)]
fn note_early<H: Hook, F: Family, K: Kernel + Tables<F>>(kernel: &K) {
    kernel.with_datagram(|datagram| {
        datagram.fragment = Fragment {
            seen: kernel.now(),
            verdict: H::EARLY.number(),
            backend: Fragment::<()>::NOBODY,
            flags: FragmentFlags::EARLY,
            ..Fragment::default()
        };
        if kernel.add_fragment(&datagram.key, &datagram.fragment).is_ok() {
            return;
        }
        match kernel.fragment(&datagram.key) {
            Some(found) if is_recent(kernel, found.seen()) => {}
            _ => kernel.note_fragment(&datagram.key, &datagram.fragment),
        }
    });
}

/// What became of the datagram that is remembered: a verdict, and the rest where that datagram is. [`Verdict::CONTINUE`] where
/// nothing is known, or of another datagram of the same number, long ago.
#[inline(never)]
fn recall<F: Family, K: Kernel + Tables<F>>(kernel: &K) -> u32 {
    let mut verdict = Verdict::CONTINUE.number();
    kernel.with_datagram(|datagram| {
        let Some(found) = kernel.fragment(&datagram.key) else { return };
        datagram.fragment = found.copy();
        // The table gives entries away under our hands; a copy counts if the key still leads to an entry that says the same.
        let Some(again) = kernel.fragment(&datagram.key) else { return };
        let found = &datagram.fragment;
        if again.seen() == found.seen
            && again.destination() == found.destination
            && is_recent(kernel, found.seen)
        {
            verdict = found.verdict;
        }
    });
    verdict
}

/// A fragment that is not the first: as that one, or as those are that come before it; out of a wrapping of so many octets, if
/// there is one.
#[inline(never)]
fn follow<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut First<P>,
    kernel: &K,
    wrapping: u32,
) -> u32 {
    let verdict = Verdict::from_number(recall::<F, K>(kernel));
    if !verdict.is_final() {
        note_early::<H, F, K>(kernel);
        return H::EARLY.number();
    }
    if H::WRAPS && verdict == Verdict::CARRY {
        return carry_on::<F, P, K>(packet, kernel);
    }
    let is_sent = verdict == Verdict::TRANSMIT || verdict == Verdict::REDIRECT;
    if !is_sent && verdict != Verdict::DELIVER {
        return verdict.number();
    }
    if H::WRAPPED && !packet.unwrap::<F>(wrapping) {
        return Verdict::drop(Reason::MALFORMED).number();
    }
    go_on::<F, P, K>(packet, kernel)
}

/// Octets that a packet has behind its IP header, or would have.
#[inline(always)]
fn available<F: Family, P: Packet>(packet: &First<P>) -> u32 {
    packet.length().wrapping_sub((size_of::<Ethernet>() + size_of::<F::Header>()) as u32)
}

/// Translated and sent, or given to the stack.
#[inline(never)]
fn go_on<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let mut outcome = Verdict::drop(Reason::MALFORMED);
    kernel.with_datagram(|datagram| outcome = translated::<F, P, K>(packet, kernel, &mut datagram.fragment));
    outcome.number()
}

#[inline(always)]
fn translated<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut First<P>,
    kernel: &K,
    found: &mut Fragment<F::Address>,
) -> Verdict {
    let is_sent = found.verdict != Verdict::DELIVER.number();
    let available = available::<F, P>(packet);
    if is_sent {
        let verdict = hop::fits::<F, First<P>>(packet, found.hop.mtu);
        if verdict.is_final() {
            return verdict.unanswered();
        }
    }
    let Some(frame) =
        packet.view::<Frame<F::Header, ()>>().filter(|frame| frame.ip.payload_length() <= available)
    else {
        return Verdict::drop(Reason::MALFORMED);
    };
    let mut header = Delta::ZERO;
    if is_sent {
        if frame.ip.ttl() <= 1 {
            return Verdict::drop(Reason::TTL_EXPIRED);
        }
        header = frame.ip.decrement_ttl();
    }
    let addresses = Delta::ZERO
        .without(frame.ip.source().sum())
        .without(frame.ip.destination().sum())
        .with(found.source.sum())
        .with(found.destination.sum());
    frame.ip.set_source(&found.source);
    frame.ip.set_destination(&found.destination);
    let octets = frame.ip.payload_length().wrapping_add(size_of::<F::Header>() as u32);
    header = header.and(frame.ip.set_identification(found.identification)).and(addresses);
    packet.fix_header::<F>(header);
    account(kernel, found, octets);
    if is_sent { packet.send(way(found)) } else { Verdict::DELIVER }
}

/// In a wrapping like that of the first one, to the same node.
#[inline(never)]
fn carry_on<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let mut outcome = Verdict::drop(Reason::MALFORMED);
    kernel.with_datagram(|datagram| outcome = wrapped::<F, P, K>(packet, kernel, &mut datagram.fragment));
    outcome.unanswered().number()
}

#[inline(always)]
fn wrapped<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut First<P>,
    kernel: &K,
    found: &mut Fragment<F::Address>,
) -> Verdict {
    let mtu = tunnel::within::<F, K>(kernel, found.hop.mtu);
    let verdict = hop::fits::<F, First<P>>(packet, mtu);
    if verdict.is_final() {
        return verdict;
    }
    let available = available::<F, P>(packet);
    let Some(frame) =
        packet.view::<Frame<F::Header, ()>>().filter(|frame| frame.ip.payload_length() <= available)
    else {
        return Verdict::drop(Reason::MALFORMED);
    };
    // A reply has been translated when it is wrapped; its client's address is not changed, nor is a request's.
    let addresses = Delta::ZERO.without(frame.ip.source().sum()).with(found.source.sum());
    frame.ip.set_source(&found.source);
    let octets = frame.ip.payload_length().wrapping_add(size_of::<F::Header>() as u32);
    packet.fix_header::<F>(addresses);
    account(kernel, found, octets);
    let hops = if found.flags & FragmentFlags::REPLY != 0 { Hops::Kept } else { Hops::Counted };
    let slot = way(found);
    let (node, label) = (&found.destination, found.identification);
    Verdict::from_number(tunnel::seal::<F, First<P>, K>(packet, kernel, slot, node, label, hops))
}

#[inline(always)]
fn way<A>(found: &mut Fragment<A>) -> Slot {
    // SAFETY: our own copy, which outlives the call.
    unsafe { Slot::new(core::ptr::NonNull::from(&mut found.hop)) }
}

#[inline(always)]
fn account<K: Kernel, A>(kernel: &K, found: &Fragment<A>, octets: u32) {
    let is_reply = found.flags & FragmentFlags::REPLY != 0;
    kernel.account(found.backend, |traffic| {
        if is_reply { traffic.add_reply(octets) } else { traffic.add_request(octets) }
    });
}
