//! The end of flows: FIN and RST noted on both sides, pairs removed together.

use crate::abi::{Flow, FlowKey, Reply, ReplyKey, Seen};
use crate::family::Family;
use crate::kernel::{Kernel, Stage, Tables};
use crate::live::Live;
use crate::wire::TcpFlags;

/// TCP flags that change a flow's state; all others pass without a second look.
pub(super) const MARKS: TcpFlags = TcpFlags::SYN.with(TcpFlags::FIN).with(TcpFlags::RST);

/// TCP flags that end a flow.
pub(super) const ENDS: TcpFlags = TcpFlags::FIN.with(TcpFlags::RST);

/// What became of a flow; a number, because it crosses a BPF subprogram boundary.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Outcome(u32);

impl Outcome {
    /// It goes on.
    pub(super) const KEPT: Self = Self(0);
    /// It is no more, and its request may open a new one.
    pub(super) const REMOVED: Self = Self(1);
}

/// Notes on both sides what a request with one of [`MARKS`] says about its flow. The opening of a new connection from a
/// port that an ended one had removes the old one.
#[inline(never)]
pub(super) fn note_request<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    flags: TcpFlags,
    key: &FlowKey<F::Address>,
) -> Outcome {
    let Some(live) = kernel.flow(stage, key) else {
        return Outcome::KEPT;
    };
    if flags.is_opening() && Seen::is_closed(live.flags().get()) {
        return remove(kernel, stage, key);
    }
    let bits = bits(flags, Seen::CLIENT_FIN);
    if bits != 0 {
        insert(kernel, stage, key, live, bits);
    }
    Outcome::KEPT
}

/// Notes on both sides that the connection is to end with a reset of ours.
#[inline(always)]
pub(super) fn note_reset<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
) {
    if let Some(live) = kernel.flow(stage, key) {
        insert(kernel, stage, key, live, Seen::RST);
    }
}

#[inline(always)]
fn insert<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
    live: Live<'_, Flow<F::Address>>,
    bits: u32,
) {
    live.flags().insert(bits);
    if let Some(reply) = kernel.reply(stage, &live.copy().reply_key(key.protocol)) {
        reply.flags().insert(bits);
    }
}

/// Notes what a reply says about the end of its flow, on both sides.
#[inline(always)]
pub(super) fn note_reply<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    flags: TcpFlags,
    live: Live<'_, Reply<F::Address>>,
) {
    let first = live.flags().get() & Seen::CLIENT_FIN == 0;
    let bits = bits(flags, if first { Seen::BACKEND_FIN | Seen::BACKEND_FIRST } else { Seen::BACKEND_FIN });
    if bits != 0 {
        live.flags().insert(bits);
        if let Some(flow) = kernel.flow(stage, &live.flow()) {
            flow.flags().insert(bits);
        }
    }
}

#[inline(always)]
fn bits(flags: TcpFlags, fin: u32) -> u32 {
    let rst = if flags.any(TcpFlags::RST) { Seen::RST } else { 0 };
    rst | if flags.any(TcpFlags::FIN) { fin } else { 0 }
}

/// Removes a flow and its other side, unless somebody else is at it. For half-open flows the other side may be another's.
#[inline(never)]
pub(super) fn remove<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
) -> Outcome {
    let Some(live) = kernel.flow(stage, key) else {
        return Outcome::REMOVED;
    };
    let reply_key = live.copy().reply_key(key.protocol);
    if !live.claim() {
        return Outcome::REMOVED;
    }
    if let Some(reply) = kernel.reply(stage, &reply_key)
        && reply.flow() == *key
        && reply.claim()
    {
        kernel.remove_reply(stage, &reply_key);
    }
    kernel.remove_flow(stage, key);
    Outcome::REMOVED
}

/// For so many jiffies nothing has come from a backend whose flow both sides have ended and is over: 64 ms at 250 Hz.
const QUIET: u32 = 16;

/// Whether the tuple of this established flow may go to another without harm. A RST is the last word; after both FINs an acknowledgment
/// is still on its way, and would find the flow gone while the next connection's SYN overtakes it to the backend.
#[inline(always)]
pub(super) fn is_over<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    reply: Live<'_, Reply<F::Address>>,
) -> bool {
    let flags = reply.flags().get();
    // One that is younger than this CPU's clock is not quiet.
    let beyond = kernel.now().wrapping_sub(reply.seen().get()).wrapping_sub(QUIET);
    Seen::is_closed(flags) && (flags & Seen::RST != 0 || beyond < u32::MAX / 2)
}

/// Removes the established flow that holds `reply_key` if TCP is done with it, so that its tuple can be used again.
#[inline(never)]
pub(super) fn reclaim<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    reply_key: &ReplyKey<F::Address>,
) -> Outcome {
    let Some(reply) = kernel.reply(Stage::Established, reply_key) else {
        return Outcome::REMOVED;
    };
    if !Seen::is_closed(reply.flags().get()) {
        return Outcome::KEPT;
    }
    remove(kernel, Stage::Established, &reply.flow())
}
