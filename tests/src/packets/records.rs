//! What an agent would have written into a node's maps, in the ABI's own types.

use std::collections::{BTreeMap, BTreeSet};

use vmlb_common::abi::{
    self, Backend, ClampMss, ClientKey, Device, EligibleKey, Frontend, FrontendKey, Gate, Pod, PortRange,
    Service, Settings, TagKey, Target, TargetKey, Timeouts, Tunnel, Turn,
};
use vmlb_common::family::{Address, Address4, Address6, V4, V6};
use vmlb_common::host::{HostFamily, Node};

/// The maps that agents write.
#[derive(Clone, Debug)]
pub struct Records {
    /// Map `settings`.
    pub settings: Settings,
    /// Map `gate`; absent entries are zero.
    pub gate: BTreeMap<u32, u64>,
    /// Map `devices`.
    pub devices: BTreeMap<u32, Device>,
    /// Map `services`.
    pub services: BTreeMap<u32, Service>,
    /// Map `slots`.
    pub slots: BTreeMap<u32, Target>,
    /// Map `targets`.
    pub targets: BTreeSet<TargetKey>,
    /// Map `eligible`.
    pub eligible: BTreeSet<EligibleKey>,
    /// Map `turns`; absent entries are zero.
    pub turns: BTreeMap<u32, Turn>,
    /// Map `tags`.
    pub tags: BTreeMap<TagKey, Target>,
    /// Maps of IPv4.
    pub v4: Addressed<Address4>,
    /// Maps of IPv6.
    pub v6: Addressed<Address6>,
}

/// The maps of one family.
#[derive(Clone, Debug, Default)]
pub struct Addressed<A: Ord> {
    /// Map `frontends_*`.
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    /// Map `backends_*`, by [`Turn::place`].
    pub backends: BTreeMap<u32, Backend<A>>,
    /// Map `nodes_*`.
    pub nodes: BTreeSet<A>,
    /// Map `pods_*`.
    pub pods: BTreeMap<A, Pod>,
    /// Map `ranges_*`: blocks and the length of their prefix.
    pub ranges: BTreeSet<(ClientKey<A>, u32)>,
}

impl Records {
    /// Settings and nothing else; `hz` jiffies a second.
    pub fn new(hz: u32) -> Self {
        let settings = Settings {
            version: abi::VERSION,
            generation: 1,
            hz,
            secret: 0x5eed_1234,
            snat_ports: [PortRange::default(); 4],
            snat_port_count: 0,
            timeouts: Timeouts::DEFAULT,
            inherited: 0,
            reject_rate: 1000,
            tunnel: Tunnel::default(),
            probe_port: 0,
            clamp_mss: ClampMss::AUTO,
            node: [0; 64],
        };
        Self {
            settings,
            gate: BTreeMap::new(),
            devices: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            targets: BTreeSet::new(),
            eligible: BTreeSet::new(),
            turns: BTreeMap::new(),
            tags: BTreeMap::new(),
            v4: Addressed::default(),
            v6: Addressed::default(),
        }
    }

    /// Sets a bit of the gate.
    pub fn open(&mut self, gate: Gate, bit: u16) {
        *self.gate.entry(gate.entry(bit)).or_default() |= Gate::mask(bit);
    }

    /// Replaces the SNAT ports by one range.
    pub fn use_snat_ports(&mut self, first: u16, last: u16) {
        let old = self.settings.snat_ports;
        for range in old.iter().filter(|range| range.count() > 0) {
            for port in range.first..=range.last {
                *self.gate.entry(Gate::SNAT_PORTS.entry(port)).or_default() &= !Gate::mask(port);
            }
        }
        let unused = PortRange::default();
        self.settings.snat_ports = [PortRange { first, last }, unused, unused, unused];
        self.settings.snat_port_count = self.settings.snat_ports[0].count();
        for port in first..=last {
            self.open(Gate::SNAT_PORTS, port);
        }
    }

    /// Brings `node` from what `old` says to what this says.
    pub fn install(&self, old: Option<&Self>, node: &mut Node) {
        node.set_settings(self.settings);
        for (&entry, &bits) in &self.gate {
            node.set_gate(entry, bits);
        }
        for id in old.iter().flat_map(|old| old.devices.keys()) {
            node.set_device(*id, None);
        }
        for (&id, &device) in &self.devices {
            node.set_device(id, Some(device));
        }
        for (&id, &service) in &self.services {
            node.set_service(id, service);
        }
        for (&index, &target) in &self.slots {
            node.set_slot(index, target);
        }
        node.set_targets(self.targets.iter().copied());
        node.set_eligible(self.eligible.iter().copied());
        for id in old.iter().flat_map(|old| old.turns.keys()) {
            node.set_turn(*id, Turn::default());
        }
        for (&id, &turn) in &self.turns {
            node.set_turn(id, turn);
        }
        node.set_tags(self.tags.iter().map(|(key, target)| (*key, *target)));
        self.v4.install::<V4>(old.map(|old| &old.v4), node);
        self.v6.install::<V6>(old.map(|old| &old.v6), node);
    }
}

impl<A: Address + Ord> Addressed<A> {
    fn install<F: HostFamily<Address = A>>(&self, old: Option<&Self>, node: &mut Node) {
        if let Some(old) = old {
            old.frontends.keys().for_each(|key| node.set_frontend::<F>(*key, None));
            old.backends.keys().for_each(|place| node.set_endpoint::<F>(place / 2, place % 2, None));
            old.nodes.iter().for_each(|address| node.set_node::<F>(*address, false));
            old.pods.keys().for_each(|address| node.set_pod::<F>(*address, None));
        }
        node.set_ranges::<F>(self.ranges.iter().copied());
        self.frontends.iter().for_each(|(key, to)| node.set_frontend::<F>(*key, Some(*to)));
        self.backends.iter().for_each(|(place, to)| node.set_endpoint::<F>(place / 2, place % 2, Some(*to)));
        self.nodes.iter().for_each(|address| node.set_node::<F>(*address, true));
        self.pods.iter().for_each(|(address, to)| node.set_pod::<F>(*address, Some(*to)));
    }
}
