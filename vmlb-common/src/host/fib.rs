//! A routing table with neighbours, for a [`Node`](super::Node) that has no kernel to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::vec::Vec;

use crate::kernel::Route;

/// What the datapath asks of a FIB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Device the packet came in by.
    pub device: u32,
    /// Source address of the packet to route.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// To a router.
    Via(IpAddr),
    /// Straight to the destination.
    OnLink,
}

#[derive(Clone, Debug)]
struct Entry {
    network: IpAddr,
    bits: u32,
    gateway: Gateway,
    device: u32,
}

/// Routes, neighbours, the devices' own MAC addresses and MTUs, and devices on which forwarding is off.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    entries: Vec<Entry>,
    neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    devices: BTreeMap<u32, ([u8; 6], u32)>,
    silent: BTreeSet<u32>,
}

impl Routes {
    /// A device, its MAC address and its MTU.
    pub fn add_device(&mut self, device: u32, mac: [u8; 6], mtu: u32) {
        self.devices.insert(device, (mac, mtu));
    }

    /// Switches forwarding off for what comes in by `device`.
    pub fn stop_forwarding(&mut self, device: u32) {
        self.silent.insert(device);
    }

    /// A route to the network of the first `bits` bits of `network`; the longest match wins.
    pub fn add(&mut self, network: IpAddr, bits: u32, gateway: Gateway, device: u32) {
        self.entries.push(Entry { network, bits, gateway, device });
    }

    /// The MAC address of a neighbour.
    pub fn learn(&mut self, device: u32, address: IpAddr, mac: [u8; 6]) {
        self.neighbours.insert((device, address), mac);
    }

    /// The neighbour is not known any more.
    pub fn forget(&mut self, device: u32, address: IpAddr) {
        self.neighbours.remove(&(device, address));
    }

    /// What the kernel would answer.
    pub fn answer(&self, question: &Question) -> Route {
        if self.silent.contains(&question.device) {
            return Route::ForwardingOff;
        }
        let matching =
            self.entries.iter().filter(|entry| covers(entry.network, entry.bits, question.destination));
        let Some(entry) = matching.max_by_key(|entry| entry.bits) else {
            return Route::None;
        };
        let ifindex = entry.device;
        let neighbour = match entry.gateway {
            Gateway::Via(router) => router,
            Gateway::OnLink => question.destination,
        };
        match (self.neighbours.get(&(ifindex, neighbour)), self.devices.get(&ifindex)) {
            (Some(destination), Some((source, mtu))) => {
                Route::Found { ifindex, source: *source, destination: *destination, mtu: *mtu }
            }
            (_, device) => Route::NoNeighbour { ifindex, mtu: device.map_or(u32::MAX, |(_, mtu)| *mtu) },
        }
    }
}

fn covers(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    let differing = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_matching_route_wins() {
        let mut routes = Routes::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        routes.add_device(2, [2; 6], 1400);
        routes.add(ip("0.0.0.0"), 0, Gateway::Via(ip("192.0.2.1")), 2);
        routes.add(ip("10.0.0.7"), 32, Gateway::OnLink, 3);
        routes.learn(2, ip("192.0.2.1"), [9; 6]);
        let ask = |destination| {
            routes.answer(&Question { device: 2, source: ip("192.0.2.2"), destination, protocol: 6 })
        };
        assert_eq!(
            ask(ip("10.0.0.8")),
            Route::Found { ifindex: 2, source: [2; 6], destination: [9; 6], mtu: 1400 }
        );
        assert_eq!(ask(ip("10.0.0.7")), Route::NoNeighbour { ifindex: 3, mtu: u32::MAX });
        assert_eq!(ask(ip("2001:db8::1")), Route::None);
    }
}
