//! Fragments (way 8): a datagram's first one has its ports and goes through the stages; what became of it is noted under the
//! datagram's number, and those that follow are treated alike without asking. Programs of their own run this: those
//! for whole packets have no stack to spare.

use crate::abi::{Fragment, FragmentFlags, FragmentHook, FragmentKey};
use crate::checksum::Delta;
use crate::family::{Address, Family, Header, V4, V6, V6Fragment};
use crate::kernel::{Kernel, Stage, Tables};
use crate::live::{Live, Slot};
use crate::packet::{Frame, Packet, Sending, Transport, flow_key};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Ethernet, Ethertype, Protocol, UdpHeader};

use super::{Origin, conclude, ethertype, gate, hop, reject, reply, request, tunnel};

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

/// A place where fragments are met.
trait Hook {
    /// What becomes of one whose first has not come.
    const EARLY: Verdict;

    /// [`FragmentHook`].
    fn number<P: Packet>() -> u8;

    /// The stages for whole packets, as far as they serve a first fragment.
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict;
}

struct Ingress;
struct Egress;
struct Pod;

impl Hook for Ingress {
    const EARLY: Verdict = Verdict::punt(Reason::FRAGMENT);

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        match P::SENDING {
            Sending::Frames => FragmentHook::XDP,
            Sending::Packets => FragmentHook::INGRESS,
        }
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
        if verdict == Verdict::CARRY {
            return Verdict::drop(Reason::FRAGMENT_TUNNEL);
        }
        if verdict.is_reject() {
            return Verdict::from_number(reject::answer::<F, P, K>(packet, kernel, verdict));
        }
        verdict
    }
}

impl Hook for Egress {
    const EARLY: Verdict = Verdict::PASS;

    #[inline(always)]
    fn number<P: Packet>() -> u8 {
        FragmentHook::EGRESS
    }

    #[inline(always)]
    fn stages<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
        let verdict = gate::from_pod::<F, P, K>(packet, kernel);
        if verdict.is_final() {
            return verdict;
        }
        let verdict = Verdict::from_number(reply::through_stack::<F, P, K>(packet, kernel));
        if verdict != Verdict::CARRY {
            return verdict;
        }
        // The node that the client addressed will learn of the flow by a whole packet.
        if tunnel::returns_all(kernel) { Verdict::drop(Reason::FRAGMENT_TUNNEL) } else { Verdict::DELIVER }
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
fn piece<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> Verdict {
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return Verdict::PASS;
    };
    if frame.ip.piece().offset != 0 {
        return Verdict::from_number(later::<H, F, P, K>(packet, kernel));
    }
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

/// The key of a fragment's datagram.
#[inline(always)]
fn key<H: Hook, F: Family, P: Packet>(ip: &F::Header) -> FragmentKey<F::Address> {
    FragmentKey {
        source: ip.source(),
        destination: ip.destination(),
        identification: ip.piece().identification,
        protocol: ip.protocol().number(),
        hook: H::number::<P>(),
        pad: 0,
    }
}

/// What is known of a datagram, unless it is another's of the same number, long ago.
#[inline(always)]
fn known<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &FragmentKey<F::Address>,
) -> Option<Fragment<F::Address>> {
    let found = kernel.fragment(key)?.copy();
    // The table gives entries away under our hands; a copy counts if the key still leads to an entry that says the same.
    let again: Live<'_, Fragment<F::Address>> = kernel.fragment(key)?;
    if again.seen() != found.seen || again.destination() != found.destination {
        return None;
    }
    is_recent(kernel, found.seen).then_some(found)
}

/// Whether what was noted at this time is still of the same datagram.
#[inline(always)]
fn is_recent<K: Kernel>(kernel: &K, seen: u32) -> bool {
    match kernel.settings() {
        Some(settings) => kernel.now().wrapping_sub(seen) < settings.hz.wrapping_mul(REMEMBERED),
        None => false,
    }
}

/// Remembers which datagram a first fragment is of, as it came. A verdict where others have come before it: they are the
/// stack's, and so is this one, unless its flow is ours and the stack could do nothing with it.
#[inline(never)]
fn begin<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return Verdict::PASS.number();
    };
    let mut early = false;
    kernel.with_datagram(|datagram| {
        datagram.key = key::<H, F, P>(&frame.ip);
        early = match kernel.fragment(&datagram.key) {
            Some(found) => found.flags() & FragmentFlags::EARLY != 0 && is_recent(kernel, found.seen()),
            None => false,
        };
    });
    if !early {
        return Verdict::CONTINUE.number();
    }
    if is_of_a_flow::<F, P, K>(packet, kernel) == 0 {
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
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return 0;
    };
    kernel.with_datagram(|datagram| {
        datagram.fragment = Fragment {
            source: frame.ip.source(),
            destination: frame.ip.destination(),
            hop,
            seen: now,
            verdict: verdict.number(),
            backend,
            flags,
            identification: frame.ip.piece().identification,
        };
        kernel.note_fragment(&datagram.key, &datagram.fragment);
    });
    0
}

/// Notes that a datagram is the stack's, unless its first fragment has been met at this very moment, on another CPU.
#[inline(always)]
fn note_early<H: Hook, F: Family, K: Kernel + Tables<F>>(kernel: &K, key: &FragmentKey<F::Address>) {
    kernel.with_datagram(|datagram| {
        datagram.fragment = Fragment {
            seen: kernel.now(),
            verdict: H::EARLY.number(),
            backend: Fragment::<()>::NOBODY,
            flags: FragmentFlags::EARLY,
            ..Fragment::default()
        };
        if kernel.add_fragment(key, &datagram.fragment).is_ok() {
            return;
        }
        match kernel.fragment(key) {
            Some(found) if is_recent(kernel, found.seen()) => {}
            _ => kernel.note_fragment(key, &datagram.fragment),
        }
    });
}

/// A fragment that is not the first: as the first, or the stack's if that has not come.
#[inline(never)]
fn later<H: Hook, F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut First<P>, kernel: &K) -> u32 {
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return Verdict::PASS.number();
    };
    // RFC 3128: one that reaches into the first one's TCP header would change what has been looked at.
    if frame.ip.protocol() == Protocol::TCP && frame.ip.piece().offset < 3 {
        return Verdict::drop(Reason::MALFORMED).number();
    }
    let key = key::<H, F, P>(&frame.ip);
    let Some(mut found) = known::<F, K>(kernel, &key) else {
        note_early::<H, F, K>(kernel, &key);
        return H::EARLY.number();
    };
    let verdict = Verdict::from_number(found.verdict);
    let is_sent = verdict == Verdict::TRANSMIT || verdict == Verdict::REDIRECT;
    if !is_sent && verdict != Verdict::DELIVER {
        return verdict.number();
    }
    let available = packet.length().wrapping_sub((size_of::<Ethernet>() + size_of::<F::Header>()) as u32);
    if is_sent {
        let verdict = hop::fits::<F, First<P>>(packet, found.hop.mtu);
        if verdict.is_final() {
            return verdict.unanswered().number();
        }
    }
    let Some(frame) =
        packet.view::<Frame<F::Header, ()>>().filter(|frame| frame.ip.payload_length() <= available)
    else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let mut header = Delta::ZERO;
    if is_sent {
        if frame.ip.ttl() <= 1 {
            return Verdict::drop(Reason::TTL_EXPIRED).number();
        }
        header = frame.ip.decrement_ttl();
    }
    let addresses = Delta::ZERO
        .without(key.source.sum())
        .without(key.destination.sum())
        .with(found.source.sum())
        .with(found.destination.sum());
    frame.ip.set_source(&found.source);
    frame.ip.set_destination(&found.destination);
    let octets = frame.ip.payload_length().wrapping_add(size_of::<F::Header>() as u32);
    header = header.and(frame.ip.set_identification(found.identification)).and(addresses);
    packet.fix_header::<F>(header, addresses);
    let is_reply = found.flags & FragmentFlags::REPLY != 0;
    kernel.account(found.backend, |traffic| {
        if is_reply { traffic.add_reply(octets) } else { traffic.add_request(octets) }
    });
    if !is_sent {
        return verdict.number();
    }
    // SAFETY: our own copy, which outlives the call.
    packet.send(unsafe { Slot::new(core::ptr::NonNull::from(&mut found.hop)) }).number()
}
