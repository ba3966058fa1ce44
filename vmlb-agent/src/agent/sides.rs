//! Devices behind which backends are, and no clients: host-side devices of this node's pods, and overlays towards others'.
//! They get their reverse program when the first backend is behind them, and keep it for a while after the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vmlb_common::abi::DeviceFlags;

use crate::interface::Interfaces;
use crate::interface::uplinks::Crossing;
use crate::loader::attach::{Attacher, Mode, Place};
use crate::loader::programs::Programs;
use crate::pins::Hook;
use crate::state::{DeviceState, Role};

/// A device keeps its program this long after its last backend has gone: pods are replaced more often than not.
const LINGER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Side {
    name: String,
    role: Role,
    need: Need,
}

impl Side {
    const fn hook(&self) -> Hook {
        hook(self.role)
    }
}

const fn hook(role: Role) -> Hook {
    match role {
        Role::Overlay => Hook::Overlay,
        Role::PodSide | Role::Uplink => Hook::Pod,
    }
}

const fn flag(role: Role) -> u32 {
    match role {
        Role::Overlay => DeviceFlags::OVERLAY,
        Role::PodSide | Role::Uplink => DeviceFlags::POD_SIDE,
    }
}

/// What a device is by its flags, where it is none of the uplinks.
fn role(flags: u32) -> Option<Role> {
    [Role::PodSide, Role::Overlay].into_iter().find(|role| flags & flag(*role) != 0)
}

/// Whether a device needs its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A backend is behind it.
    Used,
    /// None has been since then.
    Idle(Instant),
    /// It is out of the facts; the program goes with the next sync.
    Leaving,
}

/// The devices that have the program.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    by_index: BTreeMap<u32, Side>,
}

impl Sides {
    /// A device that refuses its program is left out: flows to its pods keep to the stack.
    pub fn attach(
        &mut self,
        attacher: &mut Attacher,
        programs: &mut Programs,
        interfaces: &Interfaces,
        crossings: &mut BTreeMap<u32, Crossing>,
    ) {
        let before = self.by_index.len();
        self.by_index
            .retain(|ifindex, side| interfaces.link(*ifindex).is_some_and(|link| link.name == side.name));
        if self.by_index.len() < before {
            attacher.forget_devices_that_are_gone();
        }
        crossings.retain(|ifindex, crossing| {
            let Some(role) = role(crossing.flags) else { return true };
            if self.by_index.get(ifindex).is_some_and(|side| side.role == role) {
                return true;
            }
            let Some(link) = interfaces.link(*ifindex) else { return false };
            let place = Place { name: &link.name, ifindex: *ifindex };
            let attached = match role {
                Role::Overlay => attacher.overlay(programs, place, link.framing),
                Role::PodSide | Role::Uplink => attacher.pod_side(programs, place),
            };
            match attached {
                Ok(()) => {
                    let side = Side { name: link.name.clone(), role, need: Need::Used };
                    if let Some(other) = self.by_index.insert(*ifindex, side) {
                        take_off(attacher, &other);
                    }
                    true
                }
                Err(error) => {
                    tracing::warn!("pods behind {}: {error:#}", link.name);
                    false
                }
            }
        });
        for (ifindex, side) in &mut self.by_index {
            let flag = flag(side.role);
            let used = crossings.get(ifindex).is_some_and(|crossing| crossing.flags & flag != 0);
            side.need = match side.need {
                _ if used => Need::Used,
                Need::Used => Need::Idle(Instant::now()),
                Need::Idle(since) if since.elapsed() >= LINGER => Need::Leaving,
                idle => idle,
            };
            // Flows of a backend that has just gone are still answered.
            if matches!(side.need, Need::Idle(_)) {
                crossings.entry(*ifindex).or_default().flags |= flag;
            }
        }
    }

    /// Takes the programs off devices that have had no backend for a while and are out of the facts.
    pub fn release(&mut self, attacher: &Attacher) {
        self.by_index.retain(|_, side| {
            let stays = side.need != Need::Leaving;
            if !stays {
                take_off(attacher, side);
            }
            stays
        });
    }

    /// Takes the program off a device that has become an uplink: both at once would meet every packet twice.
    ///
    /// # Errors
    /// When it stays.
    pub fn yield_to_uplink(&mut self, ifindex: u32, attacher: &Attacher) -> anyhow::Result<()> {
        match self.by_index.remove(&ifindex) {
            Some(side) => attacher.detach(&side.name, side.hook()),
            None => Ok(()),
        }
    }

    /// Names and hook of the links in use.
    pub fn links(&self) -> impl Iterator<Item = (String, Hook)> {
        self.by_index.values().map(|side| (side.name.clone(), side.hook()))
    }

    /// For `vmlb status`.
    pub fn devices(&self) -> impl Iterator<Item = DeviceState> {
        self.by_index.iter().map(|(ifindex, side)| DeviceState {
            name: side.name.clone(),
            ifindex: *ifindex,
            role: side.role,
            mode: Mode::Tc,
            reason: None,
            on: None,
        })
    }
}

fn take_off(attacher: &Attacher, side: &Side) {
    if let Err(error) = attacher.detach(&side.name, side.hook()) {
        tracing::warn!("{}: {error:#}", side.name);
    }
}
