//! How long to wait: in an emulated guest everything takes several times longer, the kernel's verifier most of all.

use std::time::Duration;

use vmlb_guest::job;

/// An agent that serves after a second here took ten in a guest, and forty with three others beside it on a busy machine.
const EMULATED: u32 = 8;

/// `patience`, stretched where this machine is an emulated one.
pub fn stretched(patience: Duration) -> Duration {
    if std::env::var_os(job::IN_GUEST).is_some() { patience * EMULATED } else { patience }
}
