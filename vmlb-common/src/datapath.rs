//! The stages in order, per hook. A stage decides or says [`Verdict::CONTINUE`]; what it learns stays in the tables, and
//! the next stage reads the packet again: the BPF stack has 512 octets.
//!
//! Stages that are not inlined are BPF subprograms, which return numbers only.

use crate::abi::Delivery;
use crate::family::{Family, V4, V6};
use crate::kernel::{Carriers, Kernel, Step, Tables};
use crate::packet::{Packet, Trunk};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Ethernet, Ethertype};

mod affinity;
mod carried;
mod clamp;
mod end;
mod forward;
pub mod fragment;
mod gate;
mod hop;
mod icmp;
mod inherited;
mod open;
mod place;
mod reject;
mod reply;
mod snat;
pub mod sweep;
mod translate;
mod tunnel;

/// The ingress of an uplink: XDP, TC in its place, and TC beside it for packets that XDP deferred.
#[inline(always)]
pub fn uplink_ingress<P: Packet, K: Kernel + Tables<V4> + Tables<V6>>(packet: &mut P, kernel: &K) -> Verdict {
    let verdict = match ethertype(packet) {
        Some(Ethertype::IPV4) => client_or_backend::<V4, P, K>(packet, kernel),
        Some(Ethertype::IPV6) => client_or_backend::<V6, P, K>(packet, kernel),
        _ => return Verdict::PASS,
    };
    conclude(packet, kernel, verdict)
}

/// The ingress of a device that carries uplinks (XDP): what comes for one of them is looked at as if it came by it; all
/// else passes.
#[inline(always)]
pub fn carrier_ingress<P: Trunk, K: Kernel + Carriers + Tables<V4> + Tables<V6>>(
    packet: &mut P,
    kernel: &K,
) -> Verdict {
    if carried::enter(packet, kernel) == 0 {
        return Verdict::PASS;
    }
    let verdict = uplink_ingress(packet, kernel);
    if verdict.is_drop() {
        return verdict;
    }
    Verdict::from_number(carried::leave(packet, kernel, verdict.number()))
}

/// The egress of an uplink (TC): replies of flows that this node's stack delivered (way 3); and resets of the stack's own
/// that would kill a VM's connection.
#[inline(always)]
pub fn uplink_egress<P: Packet, K: Kernel + Tables<V4> + Tables<V6>>(packet: &mut P, kernel: &K) -> Verdict {
    let verdict = match ethertype(packet) {
        Some(Ethertype::IPV4) => leaving::<V4, P, K>(packet, kernel),
        Some(Ethertype::IPV6) => leaving::<V6, P, K>(packet, kernel),
        _ => return Verdict::PASS,
    };
    conclude(packet, kernel, verdict)
}

/// The ingress of a pod's host-side device (TC): replies of flows that went there with SNAT.
#[inline(always)]
pub fn pod_ingress<P: Packet, K: Kernel + Tables<V4> + Tables<V6>>(packet: &mut P, kernel: &K) -> Verdict {
    let verdict = match ethertype(packet) {
        Some(Ethertype::IPV4) => local_reply::<V4, P, K>(packet, kernel, Delivery::SNAT),
        Some(Ethertype::IPV6) => local_reply::<V6, P, K>(packet, kernel, Delivery::SNAT),
        _ => return Verdict::PASS,
    };
    conclude(packet, kernel, verdict)
}

/// The ingress of a device by which pods of other nodes are reached, but no clients (TC): replies of flows that went there,
/// and errors about them (way 11).
#[inline(always)]
pub fn overlay_ingress<P: Packet, K: Kernel + Tables<V4> + Tables<V6>>(
    packet: &mut P,
    kernel: &K,
) -> Verdict {
    let verdict = match ethertype(packet) {
        Some(Ethertype::IPV4) => from_overlay::<V4, P, K>(packet, kernel),
        Some(Ethertype::IPV6) => from_overlay::<V6, P, K>(packet, kernel),
        _ => return Verdict::PASS,
    };
    conclude(packet, kernel, verdict)
}

/// Whether a packet without an Ethernet header, as tunnels in IP have them, is to be given one for [`overlay_ingress`].
#[inline(always)]
pub fn is_for_overlay<P: Packet, K: Kernel>(packet: &mut P, kernel: &K, ethertype: Ethertype) -> bool {
    match ethertype {
        Ethertype::IPV4 => gate::is_bare_reply::<V4, P, K>(packet, kernel),
        Ethertype::IPV6 => gate::is_bare_reply::<V6, P, K>(packet, kernel),
        _ => false,
    }
}

#[inline(always)]
fn from_overlay<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
    let entrance = gate::ingress::<F, P, K>(packet, kernel);
    if entrance.verdict.is_final() {
        return entrance.verdict;
    }
    if entrance.may_be_error {
        if icmp::quotes_fragment::<F, P>(packet) {
            return Verdict::FRAGMENT;
        }
        return Verdict::from_number(icmp::from_pod::<F, P, K>(packet, kernel));
    }
    if entrance.may_be_reply {
        // The flow is ours: the stack would answer a reset.
        return Verdict::from_number(reply::remote::<F, P, K>(packet, kernel)).unanswered();
    }
    Verdict::PASS
}

#[inline(always)]
fn client_or_backend<F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
    packet: &mut P,
    kernel: &K,
) -> Verdict {
    let entrance = gate::ingress::<F, P, K>(packet, kernel);
    if entrance.verdict.is_final() {
        return entrance.verdict;
    }
    if entrance.may_be_error {
        if icmp::quotes_fragment::<F, P>(packet) {
            <K as Tables<F>>::with_parcel(kernel, |parcel| parcel.mark = 0);
            return Verdict::FRAGMENT;
        }
        return error::<F, P, K>(packet, kernel);
    }
    let mut verdict = Verdict::CONTINUE;
    let mut origin = Origin::CLIENT;
    if entrance.may_be_wrapped {
        verdict = unwrapped::<F, P, K>(packet, kernel);
        if verdict.is_final() {
            return verdict;
        }
        origin = Origin::TUNNEL;
    } else if entrance.may_be_reply {
        verdict = Verdict::from_number(reply::remote::<F, P, K>(packet, kernel));
    }
    if !verdict.is_final() && (entrance.may_be_request || origin == Origin::TUNNEL) {
        verdict = request::<F, P, K>(packet, kernel, origin);
    }
    if origin == Origin::TUNNEL {
        return verdict.or_drop();
    }
    carried_out::<F, P, K>(packet, kernel, verdict)
}

/// An error from a client's side, or another node's pod.
#[inline(always)]
fn error<F: Family, P: Packet, K: Kernel + Tables<F> + Tables<F::Own>>(
    packet: &mut P,
    kernel: &K,
) -> Verdict {
    let verdict = Verdict::from_number(icmp::about_reply::<F, P, K>(packet, kernel));
    if verdict == Verdict::CARRY {
        let verdict = Verdict::from_number(tunnel::carry::<F::Own, P, K>(packet, kernel));
        // Nobody answers an error with an error (RFC 1122 section 3.2.2).
        return verdict.unanswered();
    }
    if verdict.is_final() {
        return verdict;
    }
    Verdict::from_number(icmp::from_wire::<F, P, K>(packet, kernel))
}

/// What the stages have said of a client's packet, done: by the tunnel, or refused.
#[inline(always)]
fn carried_out<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    verdict: Verdict,
) -> Verdict {
    let mut verdict = verdict;
    if verdict == Verdict::CARRY {
        verdict = Verdict::from_number(tunnel::carry::<F, P, K>(packet, kernel));
    }
    if verdict.is_reject() {
        return Verdict::from_number(reject::answer::<F, P, K>(packet, kernel, verdict));
    }
    verdict
}

/// By which way a request has come; a number, because it crosses BPF subprogram boundaries.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Origin(u32);

impl Origin {
    /// From the client.
    const CLIENT: Self = Self(0);
    /// From the node that the client addressed, by the tunnel: the backend is to be on this node.
    const TUNNEL: Self = Self(1);
}

/// A packet from another node's tunnel, out of its wrapping; a request is for the next stages.
#[inline(always)]
fn unwrapped<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
    let outcome = tunnel::arrived::<F, P, K>(packet, kernel);
    if outcome == tunnel::Unpacked::REPLY {
        return Verdict::from_number(tunnel::returned::<F, P, K>(packet, kernel)).or_drop();
    }
    if outcome != tunnel::Unpacked::REQUEST {
        return Verdict::from_number(outcome);
    }
    if P::WHOLE && gate::may_be_error::<F, P>(packet) {
        if icmp::quotes_fragment::<F, P>(packet) {
            return Verdict::FRAGMENT;
        }
        return Verdict::from_number(icmp::about_reply::<F, P, K>(packet, kernel)).or_drop();
    }
    Verdict::CONTINUE
}

#[inline(always)]
fn request<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    origin: Origin,
) -> Verdict {
    let verdict = Verdict::from_number(forward::established::<F, P, K>(packet, kernel, origin));
    if verdict.is_final() {
        return verdict;
    }
    let verdict = Verdict::from_number(open::open::<F, P, K>(packet, kernel, origin));
    if verdict.is_final() {
        return verdict;
    }
    Verdict::from_number(forward::half_open::<F, P, K>(packet, kernel, origin))
}

#[inline(always)]
fn leaving<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
    if gate::may_be_own_reset::<F, P, K>(packet, kernel) {
        let verdict = Verdict::from_number(reply::own_reset::<F, P, K>(packet, kernel));
        if verdict.is_final() {
            return verdict;
        }
    }
    local_reply::<F, P, K>(packet, kernel, Delivery::KEPT)
}

#[inline(always)]
fn local_reply<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    delivery: Delivery,
) -> Verdict {
    if gate::may_be_error::<F, P>(packet) {
        if icmp::quotes_fragment::<F, P>(packet) {
            return Verdict::FRAGMENT;
        }
        return Verdict::from_number(if delivery == Delivery::KEPT {
            icmp::leaving::<F, P, K>(packet, kernel)
        } else {
            icmp::from_pod::<F, P, K>(packet, kernel)
        });
    }
    let verdict = gate::from_pod::<F, P, K>(packet, kernel);
    if verdict.is_final() {
        return verdict;
    }
    if delivery != Delivery::KEPT {
        // The flow is ours: the stack would answer a reset.
        return Verdict::from_number(reply::through_device::<F, P, K>(packet, kernel)).unanswered();
    }
    reply_through_stack::<F, P, K>(packet, kernel)
}

/// A reply on its way out of the stack: to the client, or by the node that the client addressed.
#[inline(always)]
fn reply_through_stack<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> Verdict {
    let verdict = Verdict::from_number(reply::through_stack::<F, P, K>(packet, kernel));
    if verdict != Verdict::CARRY {
        return verdict;
    }
    let verdict = Verdict::from_number(tunnel::back::<F, P, K>(packet, kernel));
    if verdict.is_too_large() && !tunnel::returns_all(kernel) {
        // The node that the client addressed will learn of the flow by a smaller one.
        return Verdict::DELIVER;
    }
    verdict.or_drop()
}

#[inline(always)]
fn ethertype<P: Packet>(packet: &mut P) -> Option<Ethertype> {
    packet.view::<Ethernet>().map(|ethernet| ethernet.ethertype)
}

/// Counts the reason; a packet that no stage wanted is the stack's.
#[inline(always)]
fn conclude<P: Packet, K: Kernel>(packet: &P, kernel: &K, verdict: Verdict) -> Verdict {
    let verdict = if verdict.is_final() { verdict } else { Verdict::PASS };
    if verdict.reason() != Reason::NONE {
        kernel.count(verdict.reason());
    }
    if verdict != Verdict::PASS {
        kernel.trace(packet, Step::VERDICT, verdict.number());
    }
    verdict
}
