//! Pods' host-side devices: they get the reverse program when the first backend is behind them, and keep it for a while after
//! the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aya::Ebpf;
use vmlb_common::abi::DeviceFlags;

use crate::interface::Interfaces;
use crate::interface::uplinks::Crossing;
use crate::loader::attach::{Attacher, Mode, Place};
use crate::pins::Hook;
use crate::state::{DeviceState, Role};

/// A pod's device keeps its program this long after its last backend has gone: pods are replaced more often than not.
const LINGER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct PodSide {
    name: String,
    need: Need,
}

/// Whether a pod's device needs its program.
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
pub struct PodSides {
    by_index: BTreeMap<u32, PodSide>,
}

impl PodSides {
    /// A pod's device that refuses its program is left out: flows to its pods keep to the stack.
    pub fn attach(
        &mut self,
        attacher: &mut Attacher,
        ebpf: &mut Ebpf,
        interfaces: &Interfaces,
        crossings: &mut BTreeMap<u32, Crossing>,
    ) {
        let before = self.by_index.len();
        self.by_index
            .retain(|ifindex, pod| interfaces.link(*ifindex).is_some_and(|link| link.name == pod.name));
        if self.by_index.len() < before {
            attacher.forget_devices_that_are_gone();
        }
        crossings.retain(|ifindex, crossing| {
            if crossing.flags & DeviceFlags::POD_SIDE == 0 || self.by_index.contains_key(ifindex) {
                return true;
            }
            let Some(link) = interfaces.link(*ifindex) else { return false };
            match attacher.pod_side(ebpf, Place { name: &link.name, ifindex: *ifindex }) {
                Ok(()) => {
                    self.by_index.insert(*ifindex, PodSide { name: link.name.clone(), need: Need::Used });
                    true
                }
                Err(error) => {
                    tracing::warn!("pods behind {}: {error:#}", link.name);
                    false
                }
            }
        });
        for (ifindex, pod) in &mut self.by_index {
            let used =
                crossings.get(ifindex).is_some_and(|crossing| crossing.flags & DeviceFlags::POD_SIDE != 0);
            pod.need = match pod.need {
                _ if used => Need::Used,
                Need::Used => Need::Idle(Instant::now()),
                Need::Idle(since) if since.elapsed() >= LINGER => Need::Leaving,
                idle => idle,
            };
            // Flows of a backend that has just gone are still answered.
            if matches!(pod.need, Need::Idle(_)) {
                crossings.entry(*ifindex).or_default().flags |= DeviceFlags::POD_SIDE;
            }
        }
    }

    /// Takes the programs off pods' devices that have had no backend for a while and are out of the facts.
    pub fn release(&mut self, attacher: &Attacher) {
        self.by_index.retain(|_, pod| {
            if pod.need != Need::Leaving {
                return true;
            }
            if let Err(error) = attacher.detach(&pod.name, Hook::Pod) {
                tracing::warn!("{}: {error:#}", pod.name);
            }
            false
        });
    }

    /// Takes the program off a device that has become an uplink: both at once would meet every packet twice.
    ///
    /// # Errors
    /// When it stays.
    pub fn yield_to_uplink(&mut self, ifindex: u32, attacher: &Attacher) -> anyhow::Result<()> {
        match self.by_index.remove(&ifindex) {
            Some(pod) => attacher.detach(&pod.name, Hook::Pod),
            None => Ok(()),
        }
    }

    /// Names and hook of the links in use.
    pub fn links(&self) -> impl Iterator<Item = (String, Hook)> {
        self.by_index.values().map(|pod| (pod.name.clone(), Hook::Pod))
    }

    /// For `vmlb status`.
    pub fn devices(&self) -> impl Iterator<Item = DeviceState> {
        self.by_index.iter().map(|(ifindex, pod)| DeviceState {
            name: pod.name.clone(),
            ifindex: *ifindex,
            role: Role::PodSide,
            mode: Mode::Tc,
            reason: None,
            on: None,
        })
    }
}
