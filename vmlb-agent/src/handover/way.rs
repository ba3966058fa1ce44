//! How packets that this node sends by itself get to the target of a migration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vmlb_common::abi::Device;

use crate::interface::watch::Route;
use crate::migration::Endpoint;

/// The way to one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its end.
    pub endpoint: Endpoint,
    /// The address that probes come from; `None`: there is no route, or SNAT has no address there.
    pub source: Option<IpAddr>,
    /// The address that the tunnel's packets come from.
    pub outer: Option<IpAddr>,
    /// With so many hops left a packet ends in the launcher, before the guest; `None`: not known.
    pub hops: Option<u8>,
}

impl Way {
    /// The way by `route` to the endpoint; `to_node` is that to its node. `devices` are those of map `devices`.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        route: Option<Route>,
        to_node: Option<Route>,
        devices: &BTreeMap<u32, Device>,
    ) -> Self {
        let snat = |route: &Route| {
            let device = devices.get(&route.ifindex);
            device.and_then(|device| snat_address(device, endpoint.address.is_ipv4()))
        };
        let own = || {
            let node = devices.get(&Device::NODE);
            node.and_then(|node| snat_address(node, endpoint.address.is_ipv4()))
        };
        Self {
            endpoint,
            // Answers to another address are no replies of ours, but from a pod of this node they come by here anyway.
            source: route.and_then(|route| snat(&route).or(route.source.filter(|_| endpoint.is_local))),
            // As the datapath has it; the far node listens to nodes of the cluster only.
            outer: to_node.and_then(|route| own().or_else(|| snat(&route)).or(route.source)),
            hops: hops(&endpoint, route, to_node),
        }
    }
}

fn snat_address(device: &Device, v4: bool) -> Option<IpAddr> {
    let address: IpAddr = if v4 { device.snat_v4.octets.into() } else { device.snat_v6.octets.into() };
    (!address.is_unspecified()).then_some(address)
}

/// A pod of this node is one hop away, its launcher. Another's is two where a gateway is in between and its node is a
/// neighbour, or behind an overlay that is one hop: then that gateway is the node. Without a gateway the pod itself could be the neighbour,
/// and with a router in between there are more.
fn hops(endpoint: &Endpoint, route: Option<Route>, to_node: Option<Route>) -> Option<u8> {
    if endpoint.is_local {
        return Some(1);
    }
    (route?.by_gateway && !to_node?.by_gateway).then_some(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmlb_common::family::{Address4, Address6};

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));
    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn route(next_hop: IpAddr, by_gateway: bool) -> Option<Route> {
        Some(Route { ifindex: 3, next_hop, by_gateway, source: Some(HERE) })
    }

    fn way(is_local: bool, route: Option<Route>, to_node: Option<Route>) -> Way {
        let snat = Address4 { octets: [192, 0, 2, 101] };
        let device = Device { flags: 1, snat_v4: snat, snat_v6: Address6::default() };
        let endpoint = Endpoint { address: POD, node: Some(NODE), is_local };
        Way::new(endpoint, route, to_node, &[(3, device)].into())
    }

    #[test]
    fn a_datagram_ends_in_the_launcher_only_where_the_hops_are_known() {
        assert_eq!(way(true, route(POD, false), None).hops, Some(1));
        assert_eq!(way(false, route(NODE, true), route(NODE, false)).hops, Some(2));
        // A pod that may be a neighbour, a router on the way to the node, no route.
        assert_eq!(way(false, route(POD, false), route(NODE, false)).hops, None);
        assert_eq!(way(false, route(HERE, true), route(HERE, true)).hops, None);
        assert_eq!(way(false, None, route(NODE, false)).hops, None);
        assert_eq!(way(false, route(NODE, true), None).hops, None);
    }

    #[test]
    fn probes_come_from_the_address_that_snat_takes_on_the_device() {
        let snat: IpAddr = "192.0.2.101".parse().unwrap_or(POD);
        assert_eq!(way(false, route(NODE, true), route(NODE, false)).source, Some(snat));
        let other = Route { ifindex: 9, next_hop: POD, by_gateway: false, source: Some(HERE) };
        assert_eq!(way(false, Some(other), None).source, None);
        assert_eq!(way(true, Some(other), None).source, Some(HERE));
        assert_eq!(way(true, None, None).source, None);
        assert_eq!(way(false, None, route(NODE, false)).outer, Some(snat));
        assert_eq!(way(false, None, Some(Route { ifindex: 9, ..other })).outer, Some(HERE));
    }
}
