//! Ageing. One pass marks pairs that have been idle for longer than their timeout, a later pass removes those still
//! marked; a packet in between takes the mark back. Both sides are claimed before either goes.

use crate::abi::{
    Affinity, ClientKey, EligibleKey, Flow, FlowKey, Life, Reply, ReplyKey, Role, Seen, Settings, Timeouts,
    WireKey,
};
use crate::family::Family;
use crate::kernel::{Kernel, Stage, Tables};
use crate::live::{Live, Word};
use crate::wire::Protocol;

use super::{affinity, end};

/// Seconds that a pair in this state may be idle.
#[inline(always)]
fn timeout(timeouts: &Timeouts, stage: Stage, protocol: u8, flags: u32) -> u32 {
    if protocol == Protocol::UDP.number() {
        return if stage == Stage::Half { timeouts.udp_opening } else { timeouts.udp };
    }
    if Seen::is_closed(flags) && flags & (Seen::BACKEND_FIRST | Seen::RST) == Seen::BACKEND_FIRST {
        timeouts.tcp_time_wait
    } else if Seen::is_closed(flags) {
        timeouts.tcp_closed
    } else if stage == Stage::Half {
        timeouts.tcp_opening
    } else if flags & (Seen::CLIENT_FIN | Seen::BACKEND_FIN) != 0 {
        timeouts.tcp_half_closed
    } else {
        timeouts.tcp
    }
}

#[inline(always)]
fn is_idle(settings: &Settings, now: u32, seen: u32, seconds: u32) -> bool {
    // `seen` may lie ahead of `now` by what another CPU has just written: negative ages are young.
    let age = now.wrapping_sub(seen);
    age < u32::MAX / 2 && age >= seconds.wrapping_mul(settings.hz)
}

/// Looks at one flow of the table; removes it with its other side when both have been idle for two passes.
#[inline(always)]
pub fn flow<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
    live: Live<'_, Flow<F::Address>>,
) {
    let Some(settings) = kernel.settings() else {
        return;
    };
    let now = kernel.now();
    let reply_key = live.copy().reply_key(key.protocol);
    if has_stopped(kernel, live.service(), &reply_key) {
        end::remove(kernel, stage, key);
        return;
    }
    let other = match kernel.reply(stage, &reply_key) {
        Some(reply) if reply.flow() == *key => reply,
        _ => {
            let seconds = timeout(&settings.timeouts, Stage::Half, key.protocol, live.flags().get());
            if !is_idle(settings, now, live.seen().get(), seconds) {
                return;
            }
            if marked_before(live.life().get()) {
                if live.claim() {
                    kernel.remove_flow(stage, key);
                }
            } else {
                let _lost_to_a_packet = live.life().swap(Life::LIVE, Life::MARKED);
            }
            return;
        }
    };
    let seconds = timeout(&settings.timeouts, stage, key.protocol, live.flags().get() | other.flags().get());
    if !is_idle(settings, now, live.seen().get(), seconds)
        || !is_idle(settings, now, other.seen().get(), seconds)
    {
        return;
    }
    if !marked_before(live.life().get()) || !marked_before(other.life().get()) {
        let _already = live.life().swap(Life::LIVE, Life::MARKED);
        let _already = other.life().swap(Life::LIVE, Life::MARKED);
        return;
    }
    if !live.life().swap(Life::MARKED, Life::DEAD) {
        return;
    }
    if !other.life().swap(Life::MARKED, Life::DEAD) {
        // A reply has revived the other side since.
        live.life().set(Life::LIVE);
        return;
    }
    kernel.remove_flow(stage, key);
    kernel.remove_reply(stage, &reply_key);
}

/// Whether the flow is one of UDP whose target serves no more for its service, which has others: its next packet is to find
/// one of them. With nobody to move to it stays where it is.
#[inline(always)]
fn has_stopped<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    service: u32,
    key: &ReplyKey<F::Address>,
) -> bool {
    if key.protocol != Protocol::UDP.number() {
        return false;
    }
    // Another service may go on using the target: that says nothing about this one.
    let target = EligibleKey { service, backend: key.backend, port: key.target_port, role: Role::OPEN };
    if kernel.is_eligible(&target) {
        return false;
    }
    match kernel.service(service) {
        Some(service) => service.selection.size != 0,
        None => false,
    }
}

#[inline(always)]
fn marked_before(life: u32) -> bool {
    life == Life::MARKED
}

/// Looks at one reply of the table; removes it when it has lost its other side and been idle for two passes.
#[inline(always)]
pub fn reply<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &ReplyKey<F::Address>,
    live: Live<'_, Reply<F::Address>>,
) {
    let Some(settings) = kernel.settings() else {
        return;
    };
    if let Some(flow) = kernel.flow(stage, &live.flow())
        && flow.copy().reply_key(key.protocol) == *key
    {
        return;
    }
    let seconds = timeout(&settings.timeouts, Stage::Half, key.protocol, live.flags().get());
    if !is_idle(settings, kernel.now(), live.seen().get(), seconds) {
        return;
    }
    if marked_before(live.life().get()) {
        if live.claim() {
            kernel.remove_reply(stage, key);
        }
    } else {
        let _lost_to_a_packet = live.life().swap(Life::LIVE, Life::MARKED);
    }
}

/// Looks at one inherited connection; forgets it when it has been idle for as long as a flow of ours may be.
#[inline(always)]
pub fn inherited<F: Family, K: Kernel + Tables<F>>(kernel: &K, key: &WireKey<F::Address>, seen: Word<'_>) {
    let Some(settings) = kernel.settings() else {
        return;
    };
    let seconds = timeout(&settings.timeouts, Stage::Established, key.protocol, 0);
    if is_idle(settings, kernel.now(), seen.get(), seconds) {
        kernel.remove_inherited(key);
    }
}

/// Looks at what is known of one client of a service with session affinity.
#[inline(always)]
pub fn client<F: Family, K: Kernel + Tables<F>>(kernel: &K, key: &ClientKey<F::Address>, known: &Affinity) {
    affinity::age(kernel, key, known);
}
