//! Tells packets that cannot be ours, by bitmaps alone. Most traffic on a node ends here.

use crate::abi::{Gate, TunnelShape};
use crate::family::{Address, Family, Header};
use crate::kernel::{Kernel, Step};
use crate::packet::{Bare, Frame, Packet};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Protocol, TcpFlags, TcpHeader, UdpHeader};

use super::tunnel::tunnel;

/// What the gate knows of a packet that it let in.
pub(super) struct Entrance {
    pub(super) verdict: Verdict,
    pub(super) may_be_error: bool,
    pub(super) may_be_reply: bool,
    pub(super) may_be_request: bool,
    pub(super) may_be_wrapped: bool,
}

impl Entrance {
    const fn closed(verdict: Verdict) -> Self {
        Self {
            verdict,
            may_be_error: false,
            may_be_reply: false,
            may_be_request: false,
            may_be_wrapped: false,
        }
    }
}

#[inline(always)]
fn is_set<K: Kernel>(kernel: &K, gate: Gate, bit: u16) -> bool {
    kernel.gate(gate.entry(bit)) & Gate::mask(bit) != 0
}

/// From the wire: requests to frontends, replies to SNAT addresses.
#[inline(always)]
pub(super) fn ingress<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> Entrance {
    let Some(frame) = packet
        .view::<Frame<F::Header, UdpHeader>>()
        .filter(|frame| frame.ip.is_plain() && !(P::WHOLE && frame.ip.is_fragment()))
    else {
        return Entrance::closed(Verdict::from_number(unservable::<F, P, K>(packet, kernel)));
    };
    let ip = &frame.ip;
    let protocol = ip.protocol();
    if protocol == F::ICMP && is_to_us(kernel, &ip.destination()) {
        return Entrance { may_be_error: true, ..Entrance::closed(Verdict::CONTINUE) };
    }
    if protocol == F::IP_IN_IP
        && is_to_us(kernel, &ip.destination())
        && tunnel(kernel).shape == TunnelShape::IP
    {
        return Entrance { may_be_wrapped: true, ..Entrance::closed(Verdict::CONTINUE) };
    }
    if protocol != Protocol::TCP && protocol != Protocol::UDP {
        return Entrance::closed(Verdict::PASS);
    }
    let port = frame.transport.destination.get();
    let to_frontend = is_set(kernel, Gate::FRONTEND_PORTS, port);
    let to_snat = is_set(kernel, Gate::SNAT_PORTS, port);
    if !to_frontend && !to_snat {
        return Entrance::closed(Verdict::PASS);
    }
    let address = Gate::hash(&ip.destination());
    let may_be_request = to_frontend && is_set(kernel, Gate::FRONTEND_ADDRESSES, address);
    let may_be_reply = to_snat && is_set(kernel, Gate::SNAT_ADDRESSES, address);
    if !may_be_request && !may_be_reply {
        return Entrance::closed(Verdict::PASS);
    }
    let may_be_wrapped = may_be_reply && protocol == Protocol::UDP && is_tunnel(kernel, port);
    kernel.trace(packet, Step::GATE, u32::from(port));
    Entrance { may_be_reply, may_be_request, may_be_wrapped, ..Entrance::closed(Verdict::CONTINUE) }
}

/// Whether a packet that begins with its IP header may be a reply of ours, or an error about a request. Fragments may be of
/// one: those behind the first have no ports.
#[inline(always)]
pub(super) fn is_bare_reply<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> bool {
    let Some(Bare { ip, .. }) = packet.view::<Bare<F::Header, ()>>() else {
        return false;
    };
    if !ip.is_version() || !ip.is_plain() || !is_snat(kernel, &ip.destination()) {
        return false;
    }
    if ip.is_fragment() {
        return true;
    }
    let Some(Bare { ip, transport }) = packet.view::<Bare<F::Header, UdpHeader>>() else {
        return false;
    };
    let protocol = ip.protocol();
    let may_be_error = protocol == F::ICMP;
    let may_be_reply = (protocol == Protocol::TCP || protocol == Protocol::UDP)
        && is_set(kernel, Gate::SNAT_PORTS, transport.destination.get());
    may_be_error || may_be_reply
}

/// Whether an address is of a frontend, or SNAT's.
#[inline(always)]
fn is_to_us<K: Kernel, A: Address>(kernel: &K, address: &A) -> bool {
    let bit = Gate::hash(address);
    is_set(kernel, Gate::FRONTEND_ADDRESSES, bit) || is_set(kernel, Gate::SNAT_ADDRESSES, bit)
}

/// Whether an address may be one that SNAT takes.
#[inline(always)]
pub(super) fn is_snat<K: Kernel, A: Address>(kernel: &K, address: &A) -> bool {
    is_set(kernel, Gate::SNAT_ADDRESSES, Gate::hash(address))
}

/// Whether a port is a frontend's.
#[inline(always)]
pub(super) fn is_frontend<K: Kernel>(kernel: &K, port: u16) -> bool {
    is_set(kernel, Gate::FRONTEND_PORTS, port)
}

/// Whether an address may be a frontend's.
#[inline(always)]
pub(super) fn may_be_frontend<K: Kernel, A: Address>(kernel: &K, address: &A) -> bool {
    is_set(kernel, Gate::FRONTEND_ADDRESSES, Gate::hash(address))
}

#[inline(always)]
fn is_tunnel<K: Kernel>(kernel: &K, port: u16) -> bool {
    let tunnel = tunnel(kernel);
    tunnel.shape == TunnelShape::UDP && tunnel.port == port
}

/// Fragments to one of our addresses have a program of their own. Headers with options are counted; the stack gets them as
/// they came. A datagram's last fragment may end before ports would.
#[inline(never)]
fn unservable<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> u32 {
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return Verdict::PASS.number();
    };
    let ip = &frame.ip;
    if !ip.is_version() || !is_to_us(kernel, &ip.destination()) {
        return Verdict::PASS.number();
    }
    if !ip.is_plain() {
        return Verdict::punt(Reason::OPTIONS).number();
    }
    if P::WHOLE && ip.is_fragment() { Verdict::FRAGMENT } else { Verdict::PASS }.number()
}

/// Whether the packet is of the protocol that carries errors, without options and whole.
#[inline(always)]
pub(super) fn may_be_error<F: Family, P: Packet>(packet: &mut P) -> bool {
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return false;
    };
    let ip = &frame.ip;
    ip.is_version() && ip.is_plain() && !ip.is_fragment() && ip.protocol() == F::ICMP
}

/// From this node's pods: packets that a target may have sent.
#[inline(always)]
pub(super) fn from_pod<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> Verdict {
    if P::WHOLE && is_fragment_from_pod::<F, P, K>(packet, kernel) {
        return Verdict::FRAGMENT;
    }
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::PASS;
    };
    let ip = &frame.ip;
    let protocol = ip.protocol();
    let served = protocol == Protocol::TCP || protocol == Protocol::UDP;
    if !ip.is_version() || !ip.is_plain() || P::WHOLE && ip.is_fragment() || !served {
        return Verdict::PASS;
    }
    if !is_set(kernel, Gate::TARGET_PORTS, frame.transport.source.get())
        || !is_set(kernel, Gate::LOCAL_PODS, Gate::hash(&ip.source()))
    {
        return Verdict::PASS;
    }
    Verdict::CONTINUE
}

/// Whether the packet is a fragment from an address that may be one of this node's pods.
#[inline(always)]
fn is_fragment_from_pod<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> bool {
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return false;
    };
    let ip = &frame.ip;
    ip.is_version()
        && ip.is_plain()
        && ip.is_fragment()
        && is_set(kernel, Gate::LOCAL_PODS, Gate::hash(&ip.source()))
}

/// From this node's own stack: a TCP reset from a SNAT address and port.
#[inline(always)]
pub(super) fn may_be_own_reset<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K) -> bool {
    if packet.entered_by() != 0 {
        return false;
    }
    let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() else {
        return false;
    };
    let ip = &frame.ip;
    ip.is_version()
        && ip.is_plain()
        && !ip.is_fragment()
        && ip.protocol() == Protocol::TCP
        && frame.transport.flags().any(TcpFlags::RST)
        && is_set(kernel, Gate::SNAT_PORTS, frame.transport.source.get())
        && is_set(kernel, Gate::SNAT_ADDRESSES, Gate::hash(&ip.source()))
}
