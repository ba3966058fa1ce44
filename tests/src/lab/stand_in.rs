//! A VM without an emulator: a namespace with the small servers, on a cable that is moved from one launcher's bridge to
//! another's. Its sockets, addresses and timers know nothing of it, as those of a VM.

use std::process::Child;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmlb_guest::vm;

use super::launcher::{BRIDGE, Launcher};
use super::{Guest, Switch};
use crate::namespace::Namespace;
use crate::topology::Topology;
use crate::{pod, probe, requests};

/// The link-layer address of the guest, which it keeps.
const MAC: &str = "02:00:00:00:0a:02";

/// The cable's end in the launcher.
const CABLE: &str = "tap0";

/// A running stand-in. Dropping it kills its servers and removes its namespace.
#[derive(Debug)]
pub struct StandIn {
    /// Its namespace, with device `eth0`.
    pub namespace: Namespace,
    /// The time for which its next migrations keep it cut off, beyond what moving a device takes.
    pub pause: Duration,
    /// The launcher's namespace that the cable leads to.
    place: Namespace,
    server: Child,
}

impl StandIn {
    /// Starts the VM `name` in `launcher`.
    pub fn boot(topology: &Topology, name: &str, launcher: &Launcher) -> Result<Self> {
        let namespace = topology.namespace(&format!("{name}-guest"))?;
        let place = Namespace::open(launcher.namespace().name())?;
        place.ip(&format!(
            "link add {CABLE} type veth peer name eth0 address {MAC} netns {}\n",
            namespace.name()
        ))?;
        namespace.ip(&format!(
            "addr add {}/{} dev eth0\n\
             addr add {}/{} dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {}\n\
             route add default via {}\n",
            vm::V4,
            vm::PREFIX_V4,
            vm::V6,
            vm::PREFIX_V6,
            vm::GATEWAY_V4,
            vm::GATEWAY_V6
        ))?;
        // See `announce`.
        for key in ["net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/ndisc_notify"] {
            namespace.set_sysctl(key, "1")?;
        }
        plug_in(&place)?;
        let server = pod::serve(&namespace, name)?;
        Ok(Self { namespace, pause: Duration::ZERO, place, server })
    }
}

impl StandIn {
    /// Stops its servers where they are, as a VM is paused.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets them go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.server.id())?), signal)?)
    }

    /// Migrates, and does `meanwhile` while it is nowhere: what a network does that lets a VM take its address along.
    pub fn migrate_and(
        &mut self,
        target: &Launcher,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Switch> {
        let next = Namespace::open(target.namespace().name())?;
        let stopped = SystemTime::now();
        self.place
            .ip(&format!("link set {CABLE} netns {}\n", next.name()))
            .context("moving the guest's cable to the target")?;
        self.place = next;
        meanwhile()?;
        thread::sleep(self.pause);
        plug_in(&self.place)?;
        announce(&self.namespace)?;
        Ok(Switch { stopped, resumed: SystemTime::now() })
    }
}

fn plug_in(place: &Namespace) -> Result<()> {
    place.ip(&format!("link set {CABLE} master {BRIDGE}\nlink set {CABLE} up\n"))
}

/// Has the guest tell its neighbours where it is, as a VM does when QEMU has moved it. Without it a launcher that was
/// asked for the guest in vain before goes on asking once a second.
fn announce(guest: &Namespace) -> Result<()> {
    // The kernel drops what is sent before it has noticed the carrier.
    probe::wait("the guest's device with a carrier", requests::PATIENCE, || {
        Ok(guest.output("ip", &["-oneline", "link", "show", "dev", "eth0"])?.contains(" state UP "))
    })?;
    // It announces a device's addresses whenever its link-layer address is set, be it to what it was.
    guest.ip(&format!("link set eth0 address {MAC}\n")).context("announcing the guest")
}

impl Guest for StandIn {
    fn migrate(&mut self, target: &Launcher) -> Result<Switch> {
        self.migrate_and(target, || Ok(()))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _reaped = self.server.wait();
    }
}
