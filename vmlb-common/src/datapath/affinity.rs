//! Session affinity: a client's new flows of a service go where its last one went. What a client that has not shown
//! itself yet is given stands in a table of its own, so that a flood of invented clients evicts only each other.

use crate::abi::{Affinity, ClientKey, EligibleKey, Role, Target};
use crate::family::Family;
use crate::kernel::{Kernel, Stage, Tables};

/// No target, for [`recall`]; backend ids begin at 1.
pub(super) const NONE: u64 = 0;

/// A target as a number, because it crosses a BPF subprogram boundary.
#[inline(always)]
pub(super) fn number(target: &Target) -> u64 {
    u64::from(target.backend) << 16 | u64::from(target.port)
}

/// The target that a number of [`recall`] stands for.
#[inline(always)]
pub(super) fn target(number: u64) -> Option<Target> {
    if number == NONE {
        return None;
    }
    Some(Target { backend: (number >> 16) as u32, port: (number & 0xffff) as u16, pad: 0 })
}

/// The target that a client stays with, if its time is not over and new flows may still go there.
#[inline(never)]
pub(super) fn recall<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ClientKey<F::Address>,
    seconds: u32,
) -> u64 {
    let proved = valid(kernel, key, kernel.affinity(Stage::Established, key), seconds);
    if proved != NONE { proved } else { valid(kernel, key, kernel.affinity(Stage::Half, key), seconds) }
}

#[inline(always)]
fn valid<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ClientKey<F::Address>,
    known: Option<&Affinity>,
    seconds: u32,
) -> u64 {
    let (Some(known), Some(settings)) = (known, kernel.settings()) else {
        return NONE;
    };
    if is_over(kernel.now(), known.seen, seconds, settings.hz) {
        return NONE;
    }
    let Target { backend, port, .. } = known.target;
    if !kernel.is_eligible(&EligibleKey { service: key.service, backend, port, role: Role::NEW }) {
        return NONE;
    }
    number(&known.target)
}

#[inline(always)]
fn is_over(now: u32, seen: u32, seconds: u32, hz: u32) -> bool {
    let age = now.wrapping_sub(seen);
    // `seen` may lie ahead of `now` by what another CPU has just written.
    age < u32::MAX / 2 && age >= seconds.wrapping_mul(hz)
}

/// A client has got a new flow to `target`: its time begins anew.
#[inline(never)]
pub(super) fn note<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ClientKey<F::Address>,
    target: &Target,
) -> u32 {
    let to = Affinity { target: *target, seen: kernel.now() };
    match kernel.affinity(Stage::Established, key) {
        Some(known) if known.target == *target => kernel.set_affinity(Stage::Established, key, &to),
        Some(_) => {
            kernel.remove_affinity(Stage::Established, key);
            kernel.set_affinity(Stage::Half, key, &to);
        }
        None => kernel.set_affinity(Stage::Half, key, &to),
    }
    0
}

/// A flow of the client's was proved: nothing invented evicts the entry any more.
#[inline(never)]
pub(super) fn keep<F: Family, K: Kernel + Tables<F>>(kernel: &K, key: &ClientKey<F::Address>) -> u32 {
    match kernel.service(key.service) {
        Some(service) if service.affinity != 0 => {}
        _ => return 0,
    }
    if let Some(known) = kernel.affinity(Stage::Half, key) {
        let known = *known;
        kernel.set_affinity(Stage::Established, key, &known);
        if kernel.affinity(Stage::Established, key).is_some() {
            kernel.remove_affinity(Stage::Half, key);
        }
    }
    0
}

/// Looks at what is known of one client; forgets it when its time is over.
#[inline(always)]
pub(super) fn age<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ClientKey<F::Address>,
    known: &Affinity,
) {
    let (Some(settings), Some(service)) = (kernel.settings(), kernel.service(key.service)) else {
        return;
    };
    if is_over(kernel.now(), known.seen, service.affinity, settings.hz) {
        kernel.remove_affinity(Stage::Established, key);
    }
}
