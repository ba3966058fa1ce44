//! How many entries the maps are made for.

use clap::Args;
use vmlb_common::abi::names;

/// Sizes of the maps, by flag. They cost kernel memory whether used or not.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Sizes of the maps (kernel memory is taken at start)")]
pub struct Sizes {
    /// Established flows, for each of IPv4 and IPv6 (about 250 octets each)
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(16..=67_108_864))]
    pub flows: u32,
    /// Flows that are not proved by a packet of the backend yet, for each of IPv4 and IPv6; the oldest make room
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(16..=67_108_864))]
    pub half_flows: u32,
    /// Backends (VMs and pods) at a time
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub backends: u32,
    /// Ports of Services
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub services: u32,
    /// Slots of all selection tables together; a port of a Service takes 160 or more for each of its backends, and as many
    /// again while it changes
    #[arg(long, value_name = "N", default_value_t = 4_194_304, value_parser = clap::value_parser!(u32).range(1024..=268_435_456))]
    pub slots: u32,
    /// Pairs of address and port that clients use, for each of IPv4 and IPv6; a node port takes one for each address of the
    /// node, and one more for those of all other nodes
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub frontends: u32,
    /// Clients of Services with session affinity, for each of IPv4 and IPv6; as many again that have no proved flow yet
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub affinity: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            flows: 300_000,
            half_flows: 131_072,
            backends: 16_384,
            services: 16_384,
            slots: 4_194_304,
            frontends: 65_536,
            affinity: 65_536,
        }
    }
}

impl Sizes {
    /// Entries of the map of that name; `None`: what the object says.
    #[must_use]
    pub fn max_entries(&self, map: &str) -> Option<u32> {
        Some(match map {
            names::SERVICES | names::SERVICE_NAMES => self.services,
            names::SLOTS => self.slots,
            // A backend takes part in a few ports of Services; at four times as many the others are refused with a warning.
            names::TARGETS => self.backends.saturating_mul(4),
            // And for each of the families where a Service has affinity.
            names::ELIGIBLE => self.backends.saturating_mul(8),
            names::BACKEND_NAMES | names::TRAFFIC | names::TURNS => self.backends,
            // A backend takes part in a few Services.
            names::TAGS => self.backends.saturating_mul(4),
            // A VM that migrates has two addresses.
            _ if is(map, names::PODS) || is(map, names::BACKENDS) => self.backends.saturating_mul(2),
            _ if is(map, names::FRONTENDS) || is(map, names::RANGES) => self.frontends,
            _ if is(map, names::AFFINITY) || is(map, names::NEW_AFFINITY) => self.affinity,
            _ if is(map, names::HOPS) || is(map, names::TUNNEL_HOPS) => self.backends,
            _ if is(map, names::FLOWS) || is(map, names::REPLIES) => self.flows,
            _ if is(map, names::HALF_FLOWS) || is(map, names::HALF_REPLIES) => self.half_flows,
            _ => return None,
        })
    }

    /// The flag that decides the size of a map.
    #[must_use]
    pub fn flag(map: &str) -> Option<&'static str> {
        Some(match map {
            names::SERVICES | names::SERVICE_NAMES => "--services",
            names::SLOTS => "--slots",
            names::TARGETS
            | names::ELIGIBLE
            | names::TAGS
            | names::BACKEND_NAMES
            | names::TRAFFIC
            | names::TURNS => "--backends",
            _ if is(map, names::FRONTENDS) || is(map, names::RANGES) => "--frontends",
            _ if is(map, names::AFFINITY) || is(map, names::NEW_AFFINITY) => "--affinity",
            _ if is(map, names::BACKENDS) || is(map, names::PODS) => "--backends",
            _ if is(map, names::HOPS) || is(map, names::TUNNEL_HOPS) => "--backends",
            _ if is(map, names::FLOWS) || is(map, names::REPLIES) => "--flows",
            _ if is(map, names::HALF_FLOWS) || is(map, names::HALF_REPLIES) => "--half-flows",
            _ => return None,
        })
    }

    /// The value of that flag which makes a map of `entries`.
    #[must_use]
    pub fn flag_value(map: &str, entries: u32) -> u32 {
        match map {
            names::TARGETS | names::TAGS => entries / 4,
            names::ELIGIBLE => entries / 8,
            _ if is(map, names::PODS) || is(map, names::BACKENDS) => entries / 2,
            _ => entries,
        }
    }
}

fn is(map: &str, twins: [&str; 2]) -> bool {
    twins.contains(&map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::map_names;

    #[test]
    fn every_map_with_a_size_has_its_flag() {
        let sizes = Sizes::default();
        for map in map_names() {
            assert_eq!(sizes.max_entries(map).is_some(), Sizes::flag(map).is_some(), "{map}");
        }
    }

    #[test]
    fn the_flag_named_makes_the_map_of_that_size() {
        let sizes = Sizes::default();
        for map in map_names() {
            if let Some(entries) = sizes.max_entries(map) {
                let value = Sizes::flag_value(map, entries);
                let again = Sizes {
                    flows: value,
                    half_flows: value,
                    backends: value,
                    services: value,
                    slots: value,
                    frontends: value,
                    affinity: value,
                };
                assert_eq!(again.max_entries(map), Some(entries), "{map}");
            }
        }
    }
}
