//! By which device each backend is reached, as the node's routes and map `devices` have it now, and why so.

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

/// How packets to one address of a backend go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reach {
    pub address: IpAddr,
    /// `stack`, `uplink`, `overlay` or `none`.
    pub way: &'static str,
    /// The device that the route names.
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
}

impl Reaches {
    /// # Errors
    /// When the maps or netlink cannot be opened.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let map: PinnedMap<u32, Device> = PinnedMap::open(root, names::DEVICES)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let netlink = runtime.block_on(async { Netlink::connect() })?;
        Ok(Self { runtime, netlink, devices: map.all()?.into_iter().collect() })
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
        let (way, why) = judge(place, name.as_deref(), device);
        Ok(Reach { address, way, device: name, why })
    }
}

fn judge(place: &Place, name: Option<&str>, device: Option<&Device>) -> (&'static str, String) {
    let Some(name) = name else { return ("none", "no route leads there".to_owned()) };
    if place.is_here() {
        return ("stack", format!("its pod is on this node, behind {name}"));
    }
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

    fn told(is_here: bool, flags: Option<u32>) -> (&'static str, String) {
        let place = Place::new(IpAddr::from([10, 244, 2, 10]), is_here);
        let snat_v4 = Address4 { octets: [10, 244, 1, 0] };
        let device = flags.map(|flags| Device { flags, snat_v4, ..Device::default() });
        judge(&place, Some("dev0"), device.as_ref())
    }

    #[test]
    fn the_way_and_its_reason_are_told() {
        assert_eq!(told(true, None).0, "stack");
        let (way, why) = told(false, Some(DeviceFlags::OVERLAY));
        assert_eq!(
            (way, why.as_str()),
            ("overlay", "its route leads by overlay dev0, SNAT to 10.244.1.0, sent by TC")
        );
        assert_eq!(told(false, Some(DeviceFlags::UPLINK)).0, "uplink");
        assert_eq!(told(false, None).0, "none");
        assert_eq!(told(false, Some(DeviceFlags::POD_SIDE)).0, "none");
    }
}
