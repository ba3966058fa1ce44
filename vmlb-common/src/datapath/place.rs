//! Where a backend is: which of its two endpoints is the present one, and the moment in which a VM that migrates shows itself
//! at the other.

use crate::abi::{Arrival, ArrivalSign, Backend, BackendFlags, Pod, Turn};
use crate::family::Family;
use crate::kernel::{Kernel, Tables};
use crate::packet::Transport;
use crate::verdict::{Reason, Verdict};
use crate::wire::{Protocol, TcpFlags};

/// The present endpoint of a backend.
#[inline(always)]
pub(super) fn present<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    backend: u32,
) -> Option<&Backend<F::Address>> {
    kernel.endpoint(Turn::place(backend, side(kernel, backend)))
}

/// The present side of a backend.
#[inline(always)]
pub(super) fn side<K: Kernel>(kernel: &K, backend: u32) -> u32 {
    match kernel.turn(backend) {
        Some(turn) => turn.turned().side(),
        None => 0,
    }
}

/// How often a backend has turned: [`crate::abi::Turned::count`].
#[inline(always)]
pub(super) fn count<K: Kernel>(kernel: &K, backend: u32) -> u8 {
    match kernel.turn(backend) {
        Some(turn) => turn.turned().count(),
        None => 0,
    }
}

/// What a cached next hop to an endpoint is good for: this revision of this side. The two sides' revisions may be equal.
#[inline(always)]
pub(super) const fn version<A>(endpoint: &Backend<A>, side: u32) -> u32 {
    endpoint.revision.wrapping_mul(2).wrapping_add(side)
}

/// The side of a backend that is on this node, for packets of another node's tunnel: that node knows better where the VM is, or
/// makes its new place ready. The present side where neither is.
#[inline(never)]
pub(super) fn near<F: Family, K: Kernel + Tables<F>>(kernel: &K, backend: u32) -> u32 {
    side_where::<F, K>(kernel, backend, |endpoint| endpoint.flags & BackendFlags::LOCAL != 0)
}

/// The side of a backend whose endpoint is as asked: the present one, unless only the other is.
#[inline(always)]
pub(super) fn side_where<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    backend: u32,
    is_asked: impl Fn(&Backend<F::Address>) -> bool,
) -> u32 {
    let present = side(kernel, backend);
    let fits = |side| match kernel.endpoint(Turn::place(backend, side)) {
        Some(endpoint) => is_asked(endpoint),
        None => false,
    };
    if !fits(present) && fits(present ^ 1) { present ^ 1 } else { present }
}

/// Whether errors from a pod's address are those of where the VM is: what comes from elsewhere may be its launcher's. While a VM
/// that takes its address along is expected, nobody can tell.
#[inline(always)]
pub(super) fn is_at<F: Family, K: Kernel + Tables<F>>(kernel: &K, pod: &Pod) -> bool {
    let Some(turn) = kernel.turn(pod.backend) else {
        return true;
    };
    let turned = turn.turned();
    if turned.side() != pod.side || !turned.is_expected() {
        return turned.side() == pod.side;
    }
    let endpoint = |side| kernel.endpoint(Turn::place(pod.backend, side));
    match (endpoint(pod.side), endpoint(pod.side ^ 1)) {
        (Some(present), Some(expected)) => present.address != expected.address,
        _ => true,
    }
}

/// A packet of a flow has come from this side of its backend. The first one from where the VM is expected turns the backend;
/// a reset from there, or from where the VM has been, is its launcher's, and is dropped.
#[inline(never)]
pub(super) fn answered<K: Kernel>(kernel: &K, backend: u32, side: u32, flags: u32) -> u32 {
    let Some(turn) = kernel.turn(backend) else {
        return Verdict::CONTINUE.number();
    };
    let turned = turn.turned();
    if turned.side() == side {
        if turned.is_expected() {
            turn.set_replied(kernel.clock());
        }
        return Verdict::CONTINUE.number();
    }
    if TcpFlags(flags as u8).any(TcpFlags::RST) {
        return Verdict::drop(Reason::NOT_PRESENT).number();
    }
    if turned.is_expected() {
        arrive(kernel, backend, ArrivalSign::FLOW);
    }
    Verdict::CONTINUE.number()
}

/// What comes to the probes' port, from one of our pods: the agent asks where the VM is, and a SYN-ACK from where it is
/// expected says it.
#[inline(always)]
pub(super) fn probed<K: Kernel>(kernel: &K, backend: u32, side: u32, transport: &Transport) -> Verdict {
    if let Some(turn) = kernel.turn(backend)
        && turn.turned().is_expected()
        && turn.turned().side() != side
        && transport.protocol == Protocol::TCP
        && transport.flags.is_syn_ack()
    {
        arrive(kernel, backend, ArrivalSign::PROBE);
    }
    Verdict::drop(Reason::PROBE)
}

/// Turns a backend whose other side is expected. Of several CPUs at it one turns, and tells.
#[inline(never)]
fn arrive<K: Kernel>(kernel: &K, backend: u32, sign: u32) -> u32 {
    let Some(turn) = kernel.turn(backend) else {
        return 0;
    };
    let turned = turn.turned();
    let word = turned.turned().0;
    if turned.is_expected() && turn.word().swap(turned.0, word) {
        kernel.tell(&Arrival { at: kernel.clock(), replied: turn.replied(), backend, word, sign, pad: 0 });
    }
    0
}
