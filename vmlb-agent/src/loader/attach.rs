//! Programs on devices: pinned links, into which a restart swaps its programs without losing a packet, or clsact filters
//! where the kernel has no TCX.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};
use serde::{Deserialize, Serialize};

use super::programs::{self, Programs};
use crate::bpf::{LinkHook, LinkTarget, pinned_link_target};
use crate::interface::Framing;
use crate::pins::{self, Hook, PinRoot};

pub mod clsact;

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMethod {
    /// By TCX links (Linux 6.6), pinned.
    Tcx,
    /// By filters of a clsact qdisc, which stay by themselves.
    Clsact,
}

/// Which hook of an uplink carries the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native XDP, with the companion at TC ingress.
    Xdp,
    /// TC ingress alone.
    Tc,
}

impl Mode {
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// What an uplink got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The hook of the datapath.
    pub mode: Mode,
    /// Why it is not XDP, or not where it belongs.
    pub reason: Option<String>,
    /// Names and indexes of the devices that carry it and have its XDP program; none: itself.
    pub carriers: Vec<(String, u32)>,
}

impl Uplink {
    const BY_XDP: Self = Self { mode: Mode::Xdp, reason: None, carriers: Vec::new() };
    const BY_TC: Self = Self { mode: Mode::Tc, reason: None, carriers: Vec::new() };
}

/// What carries an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carriers<'a> {
    /// The device that gets the program.
    pub on: Place<'a>,
    /// Those that get it where `on` refuses it.
    pub members: Vec<Place<'a>>,
}

/// A device to attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its present name.
    pub name: &'a str,
    /// Its interface index.
    pub ifindex: u32,
}

/// Attaches the programs of one loaded object.
#[derive(Debug)]
pub struct Attacher {
    root: PinRoot,
    method: TcMethod,
}

impl Attacher {
    /// Attaches to pins under `root`. Where TCX turns out to be missing, the method becomes clsact.
    #[must_use]
    pub fn new(root: &PinRoot, method: TcMethod) -> Self {
        Self { root: root.clone(), method }
    }

    /// How TC programs are attached by now.
    #[must_use]
    pub fn method(&self) -> TcMethod {
        self.method
    }

    /// Puts the programs of an uplink on a device, or swaps them into the links that are there; XDP on its carriers, where
    /// others carry it. There is no moment without a program if there was one before; an XDP program that is
    /// of no use any more is left to [`Attacher::detach`], others may need it.
    ///
    /// # Errors
    /// When a TC program cannot be attached. A driver that refuses native XDP is no error: TC takes over.
    pub fn uplink(
        &mut self,
        programs: &mut Programs,
        place: Place<'_>,
        wanted: Mode,
        carriers: Option<&Carriers<'_>>,
    ) -> anyhow::Result<Uplink> {
        let own = if carriers.is_none() { programs::XDP } else { programs::XDP_CARRIER };
        // Frames of a device that another carries may come past its program: by a member that has just joined, or under the
        // MAC address of a moment ago.
        let beside = if carriers.is_none() { programs::INGRESS } else { programs::INGRESS_FULL };
        // Here, all at once: a kernel that refuses a program is no driver that refuses its hook.
        match wanted {
            Mode::Xdp => programs.load(&[programs::EGRESS, own, beside])?,
            Mode::Tc => programs.load(&[programs::EGRESS, programs::INGRESS_FULL])?,
        }
        self.attach_tc(programs, place, Hook::Egress, programs::EGRESS)?;
        // Each change of mode has a moment with both hooks, none with neither: what one has translated is foreign to the other.
        let by_xdp = match (wanted, carriers) {
            (Mode::Xdp, None) => self.attach_xdp(programs.xdp(own)?, place).map(|()| Uplink::BY_XDP),
            (Mode::Xdp, Some(carriers)) => self.attach_carriers(programs.xdp(own)?, carriers),
            (Mode::Tc, _) => Ok(Uplink::BY_TC),
        };
        let uplink =
            by_xdp.unwrap_or_else(|error| Uplink { reason: Some(format!("{error:#}")), ..Uplink::BY_TC });
        let ingress = if uplink.mode == Mode::Xdp { beside } else { programs::INGRESS_FULL };
        self.attach_tc(programs, place, Hook::Ingress, ingress)?;
        Ok(uplink)
    }

    /// XDP on what carries an uplink. A bond refuses it in some modes, and where the driver of one member has none; the
    /// kernel lets members have programs of their own while the bond has none.
    fn attach_carriers(&self, program: &mut Xdp, carriers: &Carriers<'_>) -> anyhow::Result<Uplink> {
        let named = |place: &Place<'_>| (place.name.to_owned(), place.ifindex);
        let refused = match self.attach_xdp(program, carriers.on) {
            Ok(()) => return Ok(Uplink { carriers: vec![named(&carriers.on)], ..Uplink::BY_XDP }),
            Err(error) if carriers.members.is_empty() => return Err(error),
            Err(error) => error,
        };
        let mut reasons = vec![format!("{}: {refused:#}", carriers.on.name)];
        let mut with_program = Vec::new();
        for member in &carriers.members {
            match self.attach_xdp(program, *member) {
                Ok(()) => with_program.push(named(member)),
                Err(error) => reasons.push(format!("{}: {error:#}", member.name)),
            }
        }
        let reason = reasons.join("; ");
        ensure!(!with_program.is_empty(), "{reason}");
        Ok(Uplink { carriers: with_program, reason: Some(reason), ..Uplink::BY_XDP })
    }

    /// Puts the reverse program on a pod's host-side device.
    ///
    /// # Errors
    /// When it cannot be attached.
    pub fn pod_side(&mut self, programs: &mut Programs, place: Place<'_>) -> anyhow::Result<()> {
        self.attach_tc(programs, place, Hook::Pod, programs::POD)
    }

    /// Puts the reverse program on a device by which pods of other nodes are reached.
    ///
    /// # Errors
    /// When it cannot be attached.
    pub fn overlay(
        &mut self,
        programs: &mut Programs,
        place: Place<'_>,
        framing: Framing,
    ) -> anyhow::Result<()> {
        let name = match framing {
            Framing::Ethernet => programs::OVERLAY,
            Framing::Ip => programs::OVERLAY_IP,
        };
        self.attach_tc(programs, place, Hook::Overlay, name)
    }

    /// Takes one program off a device; one that is not there is fine.
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn detach(&self, device: &str, hook: Hook) -> anyhow::Result<()> {
        pins::remove(&self.root.link(device, hook))?;
        if self.method == TcMethod::Clsact && hook != Hook::Xdp {
            clsact::remove(device, hook)?;
        }
        Ok(())
    }

    /// Whether the links of an uplink are still on the device; somebody with the privilege may have taken them off. Filters
    /// of clsact are not looked at.
    #[must_use]
    pub fn is_intact(&self, place: Place<'_>, uplink: &Uplink) -> bool {
        let tc = (self.method == TcMethod::Tcx)
            .then_some([(Hook::Ingress, LinkHook::TcxIngress), (Hook::Egress, LinkHook::TcxEgress)]);
        let itself = (uplink.mode == Mode::Xdp && uplink.carriers.is_empty()).then_some(place);
        let carriers = uplink.carriers.iter().map(|(name, ifindex)| Place { name, ifindex: *ifindex });
        let xdp = itself.into_iter().chain(carriers).map(|place| (place, Hook::Xdp, LinkHook::Xdp));
        let tc = tc.into_iter().flatten().map(|(hook, expected)| (place, hook, expected));
        tc.chain(xdp).all(|(place, hook, expected)| {
            let target = pinned_link_target(&self.root.link(place.name, hook)).ok().flatten();
            target.is_some_and(|target| target.ifindex == place.ifindex && target.hook == expected)
        })
    }

    /// Removes the pins of links whose device is gone: they hold nothing any more.
    pub fn forget_devices_that_are_gone(&self) {
        for link in links(&self.root).unwrap_or_default() {
            if link.target.is_some_and(|target| target.ifindex == 0)
                && let Err(error) = pins::remove(&link.path)
            {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Takes off everything that an earlier agent attached and that is not among `wanted`.
    ///
    /// # Errors
    /// When the folder of links cannot be read or a link cannot be removed.
    pub fn prune(&self, wanted: &BTreeSet<(String, Hook)>) -> anyhow::Result<()> {
        for link in links(&self.root)? {
            if !link.named.as_ref().is_some_and(|named| wanted.contains(named)) {
                tracing::info!("removing link {}: not wanted any more", link.path.display());
                pins::remove(&link.path)?;
            }
        }
        Ok(())
    }

    fn attach_xdp(&self, program: &mut Xdp, place: Place<'_>) -> anyhow::Result<()> {
        let pin = self.root.link(place.name, Hook::Xdp);
        if let Some(link) = self.adopt(&pin, place, LinkHook::Xdp) {
            match XdpLink::try_from(link)
                .map_err(anyhow::Error::from)
                .and_then(|link| Ok(program.attach_to_link(link)?))
            {
                Ok(id) => {
                    program.take_link(id)?;
                    return Ok(());
                }
                Err(error) => tracing::warn!("{}: cannot swap into {}: {error:#}", place.name, pin.display()),
            }
        }
        pins::remove(&pin)?;
        let id = program
            .attach_to_if_index(place.ifindex, XdpMode::Driver)
            .map_err(|error| anyhow!("the driver refuses native XDP: {}", root_cause(&error)))?;
        // Without a link (kernels before 5.9) there is nothing to pin, and the program would go with the agent.
        let link = FdLink::try_from(program.take_link(id)?)
            .map_err(|_| anyhow!("this kernel cannot pin an XDP program to the device"))?;
        link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        Ok(())
    }

    fn attach_tc(
        &mut self,
        programs: &mut Programs,
        place: Place<'_>,
        hook: Hook,
        name: &'static str,
    ) -> anyhow::Result<()> {
        let program = programs.classifier(name)?;
        if self.method == TcMethod::Tcx {
            match self.attach_tcx(program, place, hook) {
                Ok(()) => return Ok(()),
                Err(error) if has_tcx() => return Err(error),
                Err(error) => {
                    tracing::info!(
                        "TC programs are attached by clsact filters: the kernel has no TCX ({error:#})"
                    );
                    self.method = TcMethod::Clsact;
                }
            }
        }
        clsact::attach(program, place.name, hook, &self.root)?;
        pins::remove(&self.root.link(place.name, hook))?;
        Ok(())
    }

    fn attach_tcx(&self, program: &mut SchedClassifier, place: Place<'_>, hook: Hook) -> anyhow::Result<()> {
        let pin = self.root.link(place.name, hook);
        let (direction, link_hook) = match hook {
            Hook::Egress => (TcAttachType::Egress, LinkHook::TcxEgress),
            Hook::Ingress | Hook::Pod | Hook::Overlay | Hook::Xdp => {
                (TcAttachType::Ingress, LinkHook::TcxIngress)
            }
        };
        if let Some(link) = self.adopt(&pin, place, link_hook) {
            let swapped = SchedClassifierLink::try_from(link)
                .map_err(anyhow::Error::from)
                .and_then(|link| Ok(program.attach_to_link(link)?));
            match swapped {
                Ok(id) => {
                    program.take_link(id)?;
                    return Ok(());
                }
                Err(error) => tracing::warn!("{}: cannot swap into {}: {error:#}", place.name, pin.display()),
            }
        }
        pins::remove(&pin)?;
        // Before others on the way in, after them on the way out: a wire's order.
        let order = if hook == Hook::Egress { LinkOrder::last() } else { LinkOrder::first() };
        let id = program
            .attach_with_options(place.name, direction, TcAttachOptions::TcxOrder(order))
            .with_context(|| format!("cannot attach to TC {} of {}", hook.name(), place.name))?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        // Filters of a run that was told to use clsact.
        clsact::remove(place.name, hook)
    }

    /// The pinned link of a device's hook, if it is still attached to this very device. A device that was renamed keeps
    /// its link, under its new name.
    fn adopt(&self, pin: &Path, place: Place<'_>, hook: LinkHook) -> Option<FdLink> {
        let is_ours = |target: &LinkTarget| target.ifindex == place.ifindex && target.hook == hook;
        let here = pinned_link_target(pin).ok().flatten();
        if !here.as_ref().is_some_and(is_ours) {
            let renamed = links(&self.root).ok()?.into_iter().find(|link| {
                link.target.as_ref().is_some_and(is_ours)
                    && link.named.as_ref().is_some_and(|(name, _)| name != place.name)
            })?;
            pins::remove(pin).ok()?;
            fs::rename(&renamed.path, pin).ok()?;
        }
        PinnedLink::from_pin(pin).ok().map(FdLink::from)
    }
}

/// A pin in the folder of links.
#[derive(Clone, Debug)]
pub struct Link {
    /// The pin.
    pub path: PathBuf,
    /// The device and hook by the pin's name, if the name is one of ours.
    pub named: Option<(String, Hook)>,
    /// What the kernel says it is attached to.
    pub target: Option<LinkTarget>,
}

/// The links that are pinned under `root`; none where there is no such folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn links(root: &PinRoot) -> anyhow::Result<Vec<Link>> {
    let folder = root.links();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let mut links = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named = path.file_name().and_then(|name| name.to_str()).and_then(PinRoot::link_from_name);
        let target = pinned_link_target(&path).ok().flatten();
        links.push(Link { path, named, target });
    }
    links.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(links)
}

fn has_tcx() -> bool {
    aya::util::KernelVersion::current().is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0))
}

/// The innermost error: what the kernel said.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
