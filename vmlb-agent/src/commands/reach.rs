//! By which way each backend is reached, as the node's routes and map `devices` have it now, and why so.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use tokio::runtime::Runtime;
use vmlb_common::abi::{Device, DeviceFlags, names};

use super::ways::{Place, device as device_name};
use crate::bpf::PinnedMap;
use crate::interface::uplinks::snat_addresses;
use crate::interface::watch::Netlink;
use crate::pins::PinRoot;
use crate::state::{Role, State};

/// How packets to one address of a backend go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reach {
    pub address: IpAddr,
    /// `stack`, `device`, `uplink`, `overlay` or `none`.
    pub way: &'static str,
    /// The device that the route names.
    pub device: Option<String>,
    /// For people.
    pub why: String,
    /// What of the reason it has in common with others; a pod of this node has a device of its own.
    #[serde(skip)]
    pub ground: Ground,
}

/// Why a way is as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ground {
    /// As in [`Reach::way`].
    pub way: &'static str,
    /// The device that all such packets go into; `None`: each pod's.
    pub device: Option<String>,
    /// For people.
    pub why: String,
}

impl fmt::Display for Reach {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} ({})", self.address, self.way, self.why)
    }
}

/// Asks the kernel for routes, those of the network namespace that the command runs in.
pub(super) struct Reaches {
    runtime: Runtime,
    netlink: Netlink,
    devices: HashMap<u32, Device>,
    /// Why packets do not go straight into pods' devices, by interface index, where that was asked for.
    refusals: HashMap<u32, String>,
}

impl Reaches {
    /// # Errors
    /// When the maps or netlink cannot be opened.
    pub fn open(root: &PinRoot, state: Option<&State>) -> anyhow::Result<Self> {
        let map: PinnedMap<u32, Device> = PinnedMap::open(root, names::DEVICES)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let netlink = runtime.block_on(async { Netlink::connect() })?;
        let pods = state.into_iter().flat_map(|state| &state.devices);
        let pods = pods.filter(|device| device.role == Role::PodSide);
        let refusals = pods.filter_map(|device| Some((device.ifindex, device.reason.clone()?)));
        Ok(Self { runtime, netlink, devices: map.all()?.into_iter().collect(), refusals: refusals.collect() })
    }

    /// How one endpoint is reached.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn of(&self, place: &Place) -> anyhow::Result<Reach> {
        let address = place.address;
        let route = self.runtime.block_on(self.netlink.route(address))?;
        let ifindex = route.map(|route| route.ifindex);
        let device = ifindex.and_then(|ifindex| self.devices.get(&ifindex));
        let name = ifindex.map(device_name);
        let refusal = ifindex.and_then(|ifindex| self.refusals.get(&ifindex));
        let Some(name) = name else {
            let ground = Ground { way: "none", device: None, why: "no route leads there".to_owned() };
            return Ok(Reach { address, way: ground.way, device: None, why: ground.why.clone(), ground });
        };
        let (ground, why) = if place.is_here() {
            here(&name, device, refusal.map(String::as_str))
        } else {
            let (way, why) = elsewhere(place, &name, device);
            (Ground { way, device: Some(name.clone()), why: why.clone() }, why)
        };
        Ok(Reach { address, way: ground.way, device: Some(name), why, ground })
    }
}

/// The way to a pod of this node behind that device.
fn here(name: &str, device: Option<&Device>, refusal: Option<&str>) -> (Ground, String) {
    const HERE: &str = "its pod is on this node";
    if device.is_some_and(|device| device.flags & DeviceFlags::DIRECT != 0) {
        let why = format!("{HERE}, --local-delivery asks for it");
        return (Ground { way: "device", device: None, why }, format!("{HERE}, straight into {name}"));
    }
    let refusal = refusal.map(|refusal| format!("; {refusal}")).unwrap_or_default();
    let ground = Ground { way: "stack", device: None, why: format!("{HERE}{refusal}") };
    (ground, format!("{HERE}, behind {name}{refusal}"))
}

fn elsewhere(place: &Place, name: &str, device: Option<&Device>) -> (&'static str, String) {
    let flags = device.map_or(0, |device| device.flags);
    let snat = || {
        let same = device.into_iter().flat_map(snat_addresses);
        let own = same.into_iter().find(|own| own.is_ipv4() == place.address.is_ipv4());
        own.map_or_else(|| "no address for SNAT".to_owned(), |own| format!("SNAT to {own}"))
    };
    if flags & DeviceFlags::UPLINK != 0 {
        ("uplink", format!("its route leads by uplink {name}, {}", snat()))
    } else if flags & DeviceFlags::OVERLAY != 0 {
        ("overlay", format!("its route leads by overlay {name}, {}, sent by TC", snat()))
    } else {
        ("none", format!("its route leads into {name}, which is neither an uplink nor an overlay's device"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmlb_common::family::Address4;

    fn told(flags: Option<u32>) -> (&'static str, String) {
        let place = Place::new(IpAddr::from([10, 244, 2, 10]), false);
        let snat_v4 = Address4 { octets: [10, 244, 1, 0] };
        let device = flags.map(|flags| Device { flags, snat_v4, ..Device::default() });
        elsewhere(&place, "dev0", device.as_ref())
    }

    #[test]
    fn pods_of_the_node_share_a_reason_but_no_device() {
        let straight = Device { flags: DeviceFlags::POD_SIDE | DeviceFlags::DIRECT, ..Device::default() };
        let (ground, why) = here("pod1", Some(&straight), None);
        assert_eq!((ground.way, ground.device), ("device", None));
        assert_eq!(why, "its pod is on this node, straight into pod1");
        let (ground, why) = here("pod1", None, Some("by the stack: a chain would be passed by"));
        assert_eq!(ground.way, "stack");
        assert_eq!(ground.why, "its pod is on this node; by the stack: a chain would be passed by");
        assert!(why.starts_with("its pod is on this node, behind pod1; by the stack"));
    }

    #[test]
    fn the_way_and_its_reason_are_told() {
        let (way, why) = told(Some(DeviceFlags::OVERLAY));
        assert_eq!(
            (way, why.as_str()),
            ("overlay", "its route leads by overlay dev0, SNAT to 10.244.1.0, sent by TC")
        );
        assert_eq!(told(Some(DeviceFlags::UPLINK)).0, "uplink");
        assert_eq!(told(None).0, "none");
        assert_eq!(told(Some(DeviceFlags::POD_SIDE)).0, "none");
    }
}
