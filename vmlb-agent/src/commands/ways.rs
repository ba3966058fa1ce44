//! How backends are reached: where each is now, and by which next hop packets last went there.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::ControlFlow;

use nix::net::if_::if_indextoname;
use vmlb_common::abi::{Backend, BackendFlags, Delivery, Device, DeviceFlags, Hop, Turn, Turned, names};
use vmlb_common::family::{Address4, Address6};

use crate::bpf::PinnedMap;
use crate::counts::{Family, own};
use crate::pins::PinRoot;

/// A backend's present endpoint in one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its address.
    pub(super) address: IpAddr,
    is_here: bool,
}

impl Place {
    #[cfg(test)]
    pub(super) const fn new(address: IpAddr, is_here: bool) -> Self {
        Self { address, is_here }
    }

    /// Whether it is on this node.
    pub(super) const fn is_here(&self) -> bool {
        self.is_here
    }
}

/// The present endpoints by backend id: at most one a family, IPv4 first.
pub(super) fn places(root: &PinRoot) -> anyhow::Result<HashMap<u32, Vec<Place>>> {
    let turns: PinnedMap<u32, Turn> = PinnedMap::open(root, names::TURNS)?;
    let turns: HashMap<u32, Turned> =
        turns.all()?.into_iter().map(|(id, turn)| (id, Turned(turn.word))).collect();
    let mut places = HashMap::new();
    add::<Address4>(root, &turns, &mut places)?;
    add::<Address6>(root, &turns, &mut places)?;
    Ok(places)
}

fn add<F: Family>(
    root: &PinRoot,
    turns: &HashMap<u32, Turned>,
    places: &mut HashMap<u32, Vec<Place>>,
) -> anyhow::Result<()> {
    let map: PinnedMap<u32, Backend<F>> = PinnedMap::open(root, own::<F>(names::BACKENDS))?;
    map.each(|place, backend| {
        let id = place / 2;
        let side = turns.get(&id).copied().unwrap_or_default().side();
        if backend.flags & BackendFlags::PRESENT != 0 && place == Turn::place(id, side) {
            let is_here = backend.flags & BackendFlags::LOCAL != 0;
            places.entry(id).or_default().push(Place { address: backend.address.ip(), is_here });
        }
        ControlFlow::Continue(())
    })
}

/// The word for how a flow's packets reach its backend; behind an overlay too it is `uplink`.
fn way(delivery: Delivery, place: Option<&Place>) -> &'static str {
    match (delivery, place) {
        (_, None) => "none",
        (Delivery::KEPT, Some(Place { is_here: true, .. })) => "stack",
        (Delivery::KEPT | Delivery::PEER, Some(Place { is_here: false, .. })) => "tunnel",
        (_, Some(Place { is_here: true, .. })) => "device",
        (_, Some(_)) => "uplink",
    }
}

/// The next hops that programs keep, of one family.
pub(super) struct Hops {
    pods: HashMap<u32, Hop>,
    nodes: HashMap<u32, Hop>,
    overlays: HashSet<u32>,
}

impl Hops {
    pub(super) fn read<F: Family>(root: &PinRoot) -> anyhow::Result<Self> {
        let devices: PinnedMap<u32, Device> = PinnedMap::open(root, names::DEVICES)?;
        let devices = devices.all()?.into_iter();
        let overlays = devices.filter(|(_, device)| device.flags & DeviceFlags::OVERLAY != 0);
        Ok(Self {
            pods: latest(root, own::<F>(names::HOPS))?,
            nodes: latest(root, own::<F>(names::TUNNEL_HOPS))?,
            overlays: overlays.map(|(ifindex, _)| ifindex).collect(),
        })
    }

    /// The word for how a flow's packets reach its backend, and the hop; the stack looks for its own.
    pub(super) fn of(
        &self,
        delivery: Delivery,
        place: Option<&Place>,
        backend: u32,
    ) -> (&'static str, Option<&Hop>) {
        let way = way(delivery, place);
        let hop = match way {
            "uplink" | "device" => self.pods.get(&backend),
            "tunnel" => self.nodes.get(&backend),
            _ => None,
        };
        let is_overlay = way == "uplink" && hop.is_some_and(|hop| self.overlays.contains(&hop.ifindex));
        (if is_overlay { "overlay" } else { way }, hop)
    }
}

/// Of each backend's hops, one a CPU, that which was looked up last.
fn latest(root: &PinRoot, name: &'static str) -> anyhow::Result<HashMap<u32, Hop>> {
    let map: PinnedMap<u32, Hop> = PinnedMap::open(root, name)?;
    let found = map.all_per_cpu()?.into_iter().filter_map(|(id, hops)| {
        let used = hops.into_iter().filter(|hop| hop.stamp != 0);
        // The clock wraps; what is kept is not older than half its range.
        let last = used.reduce(|a, b| if b.filled.wrapping_sub(a.filled) < u32::MAX / 2 { b } else { a })?;
        Some((id, last))
    });
    Ok(found.collect())
}

/// A device's name, or its index where it is gone.
pub(super) fn device(ifindex: u32) -> String {
    if_indextoname(ifindex)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("#{ifindex}"))
}

/// A MAC address for people; one that the kernel is to find is empty.
pub(super) fn mac(octets: [u8; 6]) -> String {
    if octets == [0; 6] {
        return String::new();
    }
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_told_by_what_the_backend_sees_and_where_it_is() {
        let place = |is_here| Place { address: IpAddr::from([10, 0, 0, 1]), is_here };
        let told = |delivery| [true, false].map(|is_here| way(delivery, Some(&place(is_here))));
        assert_eq!(told(Delivery::KEPT), ["stack", "tunnel"]);
        assert_eq!(told(Delivery::PEER), ["device", "tunnel"]);
        assert_eq!(told(Delivery::SNAT), ["device", "uplink"]);
        assert_eq!(way(Delivery::KEPT, None), "none");
    }

    #[test]
    fn a_hop_into_an_overlay_tells_it_from_an_uplink() {
        let elsewhere = Place { address: IpAddr::from([10, 0, 0, 1]), is_here: false };
        let pods = [(1, 7), (2, 8)].map(|(id, ifindex)| (id, Hop { ifindex, ..Hop::NOWHERE }));
        let hops = Hops { pods: pods.into(), nodes: HashMap::new(), overlays: HashSet::from([8]) };
        let told = |backend| hops.of(Delivery::SNAT, Some(&elsewhere), backend).0;
        assert_eq!([told(1), told(2), told(3)], ["uplink", "overlay", "uplink"]);
    }
}
