//! Which devices are uplinks, by which hook, and what the control plane is told about them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vmlb_common::abi::{Device, DeviceFlags, PortRange};
use vmlb_common::family::{Address4, Address6};

use super::flag::DeviceFlag;
use super::footing::{Footing, footing};
use super::{Interfaces, Link, Standing};
use crate::facts::{NodeAddress, NodeFacts};
use crate::loader::attach::Mode;

/// An uplink as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The device.
    pub link: &'a Link,
    /// Its hook.
    pub mode: Mode,
    /// Why it is not XDP.
    pub reason: Option<&'static str>,
    /// What carries it; `None`: XDP is on the device itself, or not at all.
    pub footing: Option<Footing>,
}

/// Devices whose drivers give XDP no metadata, by index: what XDP would have TC send is lost there.
pub type WithoutMetadata = BTreeSet<u32>;

/// The devices on which the XDP program has found no metadata, as map `devices` tells.
#[must_use]
pub fn without_metadata(devices: &BTreeMap<u32, Device>) -> WithoutMetadata {
    let without = devices.iter().filter(|(_, device)| device.flags & DeviceFlags::NO_METADATA != 0);
    without.map(|(ifindex, _)| *ifindex).collect()
}

/// Why such a device gets TC.
pub const NO_METADATA: &str =
    "the driver gives XDP no metadata, without which TC cannot be told what to send";

/// The hook of a device for which the operator asked `asked`. XDP on a veth costs bystanders their TSO (a veth is the
/// uplink of nested nodes and of kind, where nothing is gained by it).
fn hook<'a>(
    interfaces: &Interfaces,
    link: &'a Link,
    asked: Option<Mode>,
    without_metadata: &WithoutMetadata,
) -> Choice<'a> {
    let by_tc = |reason| Choice { link, mode: Mode::Tc, reason: Some(reason), footing: None };
    if asked == Some(Mode::Tc) {
        return by_tc("--device asks for it");
    }
    if without_metadata.contains(&link.ifindex) {
        return by_tc(NO_METADATA);
    }
    let footing = match footing(interfaces, link) {
        Ok(footing) => footing,
        Err(reason) => return by_tc(reason),
    };
    let mut wires = footing.iter().flat_map(|footing| &footing.wires);
    let is_veth = |wire: &u32| interfaces.link(*wire).is_some_and(|wire| wire.kind == "veth");
    if asked.is_none() && (link.kind == "veth" || wires.any(is_veth)) {
        return by_tc("XDP on a veth takes segmentation offload from others; --device NAME=xdp asks for it");
    }
    Choice { link, mode: Mode::Xdp, reason: None, footing }
}

/// A device that carries another has the program that tells frames apart; for its own too.
fn share<'a>(mut choices: Vec<Choice<'a>>) -> Vec<Choice<'a>> {
    let carriers: BTreeSet<u32> =
        choices.iter().filter_map(|choice| Some(choice.footing.as_ref()?.on)).collect();
    for choice in &mut choices {
        let ifindex = choice.link.ifindex;
        if choice.mode == Mode::Xdp && choice.footing.is_none() && carriers.contains(&ifindex) {
            choice.footing = Some(Footing::of(ifindex));
        }
    }
    choices
}

/// The uplinks: those the operator named, otherwise those that carry a default route or one of the node's addresses
/// `internal` (the Node object's InternalIP). A named device that is not there (yet) is left out. A device's own name
/// outranks patterns that match it, a pattern those after it.
#[must_use]
pub fn choose<'a>(
    flags: &[DeviceFlag],
    interfaces: &'a Interfaces,
    default_routes: &BTreeSet<u32>,
    internal: &[IpAddr],
    without_metadata: &WithoutMetadata,
) -> Vec<Choice<'a>> {
    if !flags.is_empty() {
        let flag_of = |link: &Link| {
            let named = flags.iter().find(|flag| flag.name == link.name);
            named.or_else(|| flags.iter().find(|flag| flag.matches(&link.name)))
        };
        let chosen = interfaces
            .links()
            .filter_map(|link| Some(hook(interfaces, link, flag_of(link)?.mode, without_metadata)));
        return share(chosen.collect());
    }
    let chosen = interfaces
        .links()
        .filter(|link| link.name != "lo" && link.kind != "dummy")
        .filter(|link| {
            default_routes.contains(&link.ifindex)
                || interfaces.addresses(link.ifindex).any(|one| internal.contains(&one.address))
        })
        .map(|link| hook(interfaces, link, None, without_metadata));
    share(chosen.collect())
}

/// What SNAT takes on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snat {
    /// Ports it may use, and those that flows still hold from a time when it could use others.
    pub ports: Vec<PortRange>,
    /// Devices as map `devices` holds them.
    pub devices: BTreeMap<u32, Device>,
    /// Addresses that a device has or had and that flows may hold.
    pub held: BTreeSet<IpAddr>,
}

impl Snat {
    /// Takes note of what the control plane is told: what devices have now is what a later look keeps to.
    pub fn note(&mut self, facts: &NodeFacts) {
        self.devices.clone_from(&facts.devices);
        for device in facts.devices.values() {
            self.held.extend(snat_addresses(device));
        }
    }

    /// The address of a device in one family: the present one while it is there and no other is a better choice, else
    /// the first of the best. The order of addresses tells nothing: the kernel lists those of IPv6 newest first. A device
    /// without any borrows `source`.
    fn address(
        &self,
        interfaces: &Interfaces,
        ifindex: u32,
        v4: bool,
        source: Option<IpAddr>,
    ) -> Option<IpAddr> {
        let present = self
            .devices
            .get(&ifindex)
            .and_then(|device| snat_addresses(device).find(|address| address.is_ipv4() == v4));
        let own = || interfaces.addresses(ifindex).filter(|one| one.address.is_ipv4() == v4);
        let Some(best) = own().min_by_key(|one| one.standing) else {
            return present.filter(|address| interfaces.link_of(*address).is_some()).or(source);
        };
        let kept = own().find(|one| Some(one.address) == present && one.standing == best.standing);
        Some(kept.unwrap_or(best).address)
    }
}

/// The addresses that SNAT takes on a device, at most one a family.
pub fn snat_addresses(device: &Device) -> impl Iterator<Item = IpAddr> {
    let addresses = [IpAddr::from(device.snat_v4.octets), IpAddr::from(device.snat_v6.octets)];
    addresses.into_iter().filter(|address| !address.is_unspecified())
}

/// Two addresses as map `devices` holds them; zeros for none.
#[must_use]
pub fn device_addresses(v4: Option<IpAddr>, v6: Option<IpAddr>) -> (Address4, Address6) {
    let v4 = match v4 {
        Some(IpAddr::V4(address)) => Address4 { octets: address.octets() },
        _ => Address4::default(),
    };
    let v6 = match v6 {
        Some(IpAddr::V6(address)) => Address6 { octets: address.octets() },
        _ => Address6::default(),
    };
    (v4, v6)
}

/// A device that packets of ours cross, as far as it is known when the facts are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossing {
    /// [`DeviceFlags`].
    pub flags: u32,
    /// The node's address the kernel would use towards it, where it has none itself.
    pub source_v4: Option<IpAddr>,
    /// As `source_v4`.
    pub source_v6: Option<IpAddr>,
}

/// What the control plane is told. Without SNAT ports there are no SNAT addresses either: what needs them is left to the
/// stack.
#[must_use]
pub fn facts(
    interfaces: &Interfaces,
    crossings: &BTreeMap<u32, Crossing>,
    snat: &Snat,
    internal: &[IpAddr],
) -> NodeFacts {
    let mut facts = NodeFacts {
        snat_ports: snat.ports.clone(),
        held_addresses: snat.held.clone(),
        ..NodeFacts::default()
    };
    for (ifindex, crossing) in crossings {
        let (mut snat_v4, mut snat_v6) = device_addresses(
            snat.address(interfaces, *ifindex, true, crossing.source_v4),
            snat.address(interfaces, *ifindex, false, crossing.source_v6),
        );
        if snat.ports.is_empty() {
            (snat_v4, snat_v6) = Default::default();
        }
        facts.devices.insert(*ifindex, Device { flags: crossing.flags, snat_v4, snat_v6 });
    }
    let uplinks = crossings.iter().filter(|(_, crossing)| crossing.flags & DeviceFlags::UPLINK != 0);
    for (ifindex, _) in uplinks {
        let addresses = interfaces.addresses(*ifindex);
        facts.addresses.extend(addresses.map(|one| NodeAddress {
            address: one.address,
            ifindex: *ifindex,
            primary: internal.contains(&one.address),
        }));
    }
    // An InternalIP on a loopback or dummy device (nodes that speak BGP) is reached through the uplinks.
    for address in internal {
        if !facts.addresses.iter().any(|known| known.address == *address)
            && let Some(link) = interfaces.link_of(*address)
        {
            facts.addresses.push(NodeAddress { address: *address, ifindex: link.ifindex, primary: true });
        }
    }
    let (snat_v4, snat_v6) = known_by(interfaces, internal);
    let node = Device { flags: 0, snat_v4, snat_v6 };
    if node != Device::default() {
        facts.devices.insert(Device::NODE, node);
    }
    for v4 in [true, false] {
        name_primary(interfaces, &mut facts, v4);
    }
    facts
}

/// The addresses by which the cluster knows this node: the first of each family that is the node's at all.
fn known_by(interfaces: &Interfaces, internal: &[IpAddr]) -> (Address4, Address6) {
    let mut known = internal.iter().copied().filter(|address| interfaces.link_of(*address).is_some());
    let v4 = known.clone().find(IpAddr::is_ipv4);
    device_addresses(v4, known.find(IpAddr::is_ipv6))
}

/// Where the Node object names no address of a family, the first uplink's main one is the node's: what SNAT takes there
/// (that does not change with the order of addresses), else its first.
fn name_primary(interfaces: &Interfaces, facts: &mut NodeFacts, v4: bool) {
    let devices = &facts.devices;
    let is_snat_address = |known: &NodeAddress| {
        devices
            .get(&known.ifindex)
            .is_some_and(|device| snat_addresses(device).any(|address| address == known.address))
    };
    let is_primary_choice = |known: &NodeAddress| {
        interfaces
            .addresses(known.ifindex)
            .any(|one| one.address == known.address && one.standing == Standing::Primary)
    };
    let mut family: Vec<_> =
        facts.addresses.iter_mut().filter(|known| known.address.is_ipv4() == v4).collect();
    if family.iter().any(|known| known.primary) {
        return;
    }
    let first = family.iter().position(|known| is_snat_address(known));
    let first = first.or_else(|| family.iter().position(|known| is_primary_choice(known))).unwrap_or(0);
    if let Some(known) = family.get_mut(first) {
        known.primary = true;
    }
}

#[cfg(test)]
mod tests;
