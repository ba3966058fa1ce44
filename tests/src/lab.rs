//! VMs that migrate live between launcher pods, as KubeVirt's do with the masquerade binding.
//!
//! A [`launcher::Launcher`] is a pod with the bridge `k6t-eth0`, on which the guest has the same addresses in every launcher, and
//! with KubeVirt's rules between the bridge and the pod's address. Two kinds of guest can live there:
//!
//! - [`qemu::Vm`], a real one: its kernel and its servers run under QEMU and migrate by its own protocol. The guest is emulated;
//!   now and then a migration leaves it dead, which is QEMU's doing: [`launcher::Launcher::guest_answers`] tells it apart from
//!   packets that are lost on their way, and [`repeat`] tries again.
//! - [`stand_in::StandIn`], a namespace whose cable is moved from one launcher's bridge to the other's. Its sockets
//!   survive as a VM's do, it takes a twentieth of the time, and nothing in it is at the mercy of an emulator; but it does not
//!   stand still while it moves.
//!
//! ```no_run
//! use vmlb_tests::lab::{Guest, launcher::Rules, stand_in::StandIn};
//! use vmlb_tests::leftovers::Prefix;
//! use vmlb_tests::topology::{Attachment, Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut topology = Topology::build(Prefix::unique(), 1, 2, Attachment::Routed)?;
//! let source = topology.add_launcher(0, "source", &Rules::All)?;
//! let mut target = topology.add_launcher(1, "target", &Rules::All)?;
//! target.adopt(&source);
//! let mut vm = StandIn::boot(&topology, "vm", &source)?;
//! let switch = vm.migrate(&target)?;
//! println!("the VM stood still for {:?}", switch.pause());
//! # Ok(())
//! # }
//! ```

use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::{Result, bail};

use crate::skip::{self, unless_unable};

pub mod blackout;
pub mod crowd;
pub mod flows;
pub mod kubevirt;
pub mod launcher;
pub mod qemu;
pub mod qmp;
pub mod results;
pub mod site;
pub mod stand_in;

use launcher::Launcher;

/// A VM that can move to another launcher.
pub trait Guest {
    /// Moves it to `target`, from wherever it is, and returns once it runs there.
    ///
    /// # Errors
    /// The migration failed. A guest that is dead afterwards is no error: ask [`Launcher::guest_answers`].
    fn migrate(&mut self, target: &Launcher) -> Result<Switch>;
}

/// The moment in which a VM changed its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// When it stopped at the source.
    pub stopped: SystemTime,
    /// When it ran at the target.
    pub resumed: SystemTime,
}

impl Switch {
    /// How long it ran nowhere.
    pub fn pause(&self) -> Duration {
        self.resumed.duration_since(self.stopped).unwrap_or_default()
    }
}

/// How a trial with a real VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The VM came through, and what the trial is about held.
    Held,
    /// The emulator lost the guest: it does not even answer on its own bridge. Nothing can be said.
    GuestDied,
}

/// Repeats `trial` while the emulator loses the guest, at most three times.
///
/// # Errors
/// The trial's own, or the guest died each time.
pub fn repeat(mut trial: impl FnMut() -> Result<Trial>) -> Result<()> {
    const TRIALS: u32 = 3;
    for number in 1..=TRIALS {
        match trial()? {
            Trial::Held => return Ok(()),
            Trial::GuestDied => println!("trial {number}: the emulator lost the guest in its migration"),
        }
    }
    bail!("the emulator lost the guest in {TRIALS} of {TRIALS} trials")
}

/// Runs the test `name` unless this machine cannot run a real VM. One test of a binary at a time: two emulators that share the
/// cores with two more, their migrations' targets, would measure each other.
///
/// # Panics
/// If the test fails.
pub fn unless_without_vms(name: &str, test: impl FnOnce() -> Result<()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    unless_unable(name, || match qemu::reason() {
        Some(why) => {
            skip::announce(name, &why);
            Ok(())
        }
        None => {
            let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
            test()
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_dies_once_is_tried_again() {
        let mut trials = [Trial::GuestDied, Trial::Held].into_iter();
        assert!(repeat(|| Ok(trials.next().expect("no third trial"))).is_ok());
    }

    #[test]
    fn a_guest_that_dies_each_time_is_an_error_and_so_is_a_trial_that_fails() {
        assert!(repeat(|| Ok(Trial::GuestDied)).is_err());
        assert!(repeat(|| bail!("a flow was cut")).is_err());
    }
}
