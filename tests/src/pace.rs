//! How long to wait: in an emulated guest everything takes several times longer, the kernel's verifier most of all. One that
//! says nothing for minutes is given up.

use std::time::Duration;

use vmlb_guest::job;

use crate::skip;

/// An agent that serves after a second here took ten in a guest, and forty with three others beside it on a busy machine.
const EMULATED: u32 = 8;

/// `patience`, stretched where this machine is an emulated one.
pub fn stretched(patience: Duration) -> Duration {
    if is_emulated() { patience * EMULATED } else { patience }
}

/// Says what a test is at, in a guest: it has one processor, and on one libtest is silent about tests that take long.
pub fn at(what: &str) {
    if is_emulated() {
        skip::show(what);
    }
}

fn is_emulated() -> bool {
    std::env::var_os(job::IN_GUEST).is_some()
}
