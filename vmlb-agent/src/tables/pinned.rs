//! [`Tables`] over the pinned maps: what the datapath reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::ControlFlow;

use anyhow::Context;
use vmlb_common::abi::{
    Backend, BackendFlags, BackendName, Device, EligibleKey, Flow, FlowKey, Frontend, FrontendKey,
    NeighbourKey, Pod, RangeKey, Service, ServiceName, TagKey, Target, TargetKey, Turn, names,
};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use super::{Capacity, Change, InFlows, Record, RecordKey, Tables, selection_of, turned_to};
use crate::bpf::PinnedMap;
use crate::counts::traffic::TrafficMap;
use crate::desired;
use crate::pins::PinRoot;

/// The maps that the control plane owns, and the flow tables it looks at.
#[derive(Debug)]
pub struct PinnedTables {
    gate: PinnedMap<u32, u64>,
    devices: PinnedMap<u32, Device>,
    services: PinnedMap<u32, Service>,
    slots: PinnedMap<u32, Target>,
    targets: PinnedMap<TargetKey, u32>,
    eligible: PinnedMap<EligibleKey, u32>,
    service_names: PinnedMap<u32, ServiceName>,
    backend_names: PinnedMap<u32, BackendName>,
    turns: PinnedMap<u32, Turn>,
    tags: PinnedMap<TagKey, Target>,
    traffic: TrafficMap,
    v4: FamilyTables<FrontendKey<Address4>, Backend<Address4>, Address4, FlowKey<Address4>, Flow<Address4>>,
    v6: FamilyTables<FrontendKey<Address6>, Backend<Address6>, Address6, FlowKey<Address6>, Flow<Address6>>,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whereabouts {
    /// On this node.
    Here,
    /// On another one.
    Elsewhere,
}

impl Whereabouts {
    const fn of_flags(flags: u32) -> Self {
        if flags & BackendFlags::LOCAL == 0 { Self::Elsewhere } else { Self::Here }
    }
}

/// Ports and addresses of this node that flows hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatInFlows {
    /// Ports.
    pub ports: BTreeSet<u16>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl SnatInFlows {
    fn take<A>(&mut self, flow: &Flow<A>, peer: impl Into<IpAddr>) {
        // What the stack delivers keeps the client's address.
        if !flow.delivery.keeps_source() {
            self.ports.insert(flow.peer_port);
            self.addresses.insert(peer.into());
        }
    }
}

#[derive(Debug)]
struct FamilyTables<K, B, A, FK, FV> {
    frontends: PinnedMap<K, Frontend>,
    backends: PinnedMap<u32, B>,
    pods: PinnedMap<A, Pod>,
    nodes: PinnedMap<A, u32>,
    ranges: PinnedMap<RangeKey<A>, u32>,
    flows: [PinnedMap<FK, FV>; 2],
}

macro_rules! open_family {
    ($root:expr, $family:expr) => {
        FamilyTables {
            frontends: PinnedMap::open($root, names::FRONTENDS[$family])?,
            backends: PinnedMap::open($root, names::BACKENDS[$family])?,
            pods: PinnedMap::open($root, names::PODS[$family])?,
            nodes: PinnedMap::open($root, names::NODES[$family])?,
            ranges: PinnedMap::open($root, names::RANGES[$family])?,
            flows: [
                PinnedMap::open($root, names::FLOWS[$family])?,
                PinnedMap::open($root, names::HALF_FLOWS[$family])?,
            ],
        }
    };
}

impl PinnedTables {
    /// Opens the maps under `root`.
    ///
    /// # Errors
    /// When one is missing or of another layout.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        Ok(Self {
            gate: PinnedMap::open(root, names::GATE)?,
            devices: PinnedMap::open(root, names::DEVICES)?,
            services: PinnedMap::open(root, names::SERVICES)?,
            slots: PinnedMap::open(root, names::SLOTS)?,
            targets: PinnedMap::open(root, names::TARGETS)?,
            eligible: PinnedMap::open(root, names::ELIGIBLE)?,
            service_names: PinnedMap::open(root, names::SERVICE_NAMES)?,
            backend_names: PinnedMap::open(root, names::BACKEND_NAMES)?,
            turns: PinnedMap::open(root, names::TURNS)?,
            tags: PinnedMap::open(root, names::TAGS)?,
            traffic: TrafficMap::open(root)?,
            v4: open_family!(root, 0),
            v6: open_family!(root, 1),
        })
    }

    /// Addresses of the backends that are installed, and whether they are on this node.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn installed_backends(&self) -> anyhow::Result<Vec<(IpAddr, Whereabouts)>> {
        let v4 = self.v4.backends.all()?.into_iter();
        let v4 = v4.map(|(_, backend)| (backend.flags, IpAddr::from(backend.address.octets)));
        let v6 = self.v6.backends.all()?.into_iter();
        let v6 = v6.map(|(_, backend)| (backend.flags, IpAddr::from(backend.address.octets)));
        let present = v4.chain(v6).filter(|(flags, _)| flags & BackendFlags::PRESENT != 0);
        Ok(present.map(|(flags, address)| (address, Whereabouts::of_flags(flags))).collect())
    }

    /// Whether a frontend is open already; `false` for records of other kinds.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn is_open(&self, record: &Record) -> anyhow::Result<bool> {
        match record {
            Record::Frontend4(key, _) => Ok(self.v4.frontends.get(key)?.is_some()),
            Record::Frontend6(key, _) => Ok(self.v6.frontends.get(key)?.is_some()),
            _ => Ok(false),
        }
    }

    /// The devices that are installed, by interface index.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn installed_devices(&self) -> anyhow::Result<BTreeMap<u32, Device>> {
        Ok(self.devices.all()?.into_iter().collect())
    }

    /// What flows hold of this node for SNAT, whatever settings and devices say by now.
    ///
    /// # Errors
    /// When a flow table cannot be read.
    pub fn snat_in_flows(&self) -> anyhow::Result<SnatInFlows> {
        let mut held = SnatInFlows::default();
        for map in &self.v4.flows {
            map.all()?.iter().for_each(|(_, flow)| held.take(flow, flow.peer.octets));
        }
        for map in &self.v6.flows {
            map.all()?.iter().for_each(|(_, flow)| held.take(flow, flow.peer.octets));
        }
        Ok(held)
    }

    fn put(&self, record: &Record) -> anyhow::Result<()> {
        match record {
            Record::Gate(entry, bits) => self.gate.put(entry, bits),
            Record::Device(ifindex, device) => self.devices.put(ifindex, device),
            Record::Service(id, service) => self.services.put(id, service),
            Record::Slots(offset, run) => self.slots.put_run(*offset, &run.slots()),
            Record::Frontend4(key, frontend) => self.v4.frontends.put(key, frontend),
            Record::Frontend6(key, frontend) => self.v6.frontends.put(key, frontend),
            Record::Backend4(id, backend) => self.v4.backends.put(id, backend),
            Record::Backend6(id, backend) => self.v6.backends.put(id, backend),
            Record::Pod4(address, pod) => self.v4.pods.put(address, pod),
            Record::Pod6(address, pod) => self.v6.pods.put(address, pod),
            Record::Target(key, services) => self.targets.put(key, services),
            Record::Eligible(key) => self.eligible.put(key, &1),
            Record::Range4(key) => self.v4.ranges.put(key, &1),
            Record::Range6(key) => self.v6.ranges.put(key, &1),
            Record::Turn(id, wanted) => self.put_turn(*id, *wanted),
            Record::Tag(key, target) => self.tags.put(key, target),
            Record::Node4(address) => self.v4.nodes.put(address, &1),
            Record::Node6(address) => self.v6.nodes.put(address, &1),
            Record::ServiceName(id, name) => self.service_names.put(id, name),
            Record::BackendName(id, name) => self.put_backend_name(*id, name),
        }
    }

    /// The datapath turns by compare-and-swap; what it does between the reading and the writing here is lost to the map, and
    /// told by its arrival.
    fn put_turn(&self, id: u32, wanted: Turn) -> anyhow::Result<()> {
        match turned_to(self.turns.get(&id)?.unwrap_or_default(), wanted) {
            Some(turn) => self.turns.put(&id, &turn),
            None => Ok(()),
        }
    }

    /// An id that goes from one backend to another begins to count anew, before anything points at the new one.
    fn put_backend_name(&self, id: u32, name: &BackendName) -> anyhow::Result<()> {
        if self.backend_names.get(&id)?.is_some_and(|old| old.uid != name.uid) {
            self.traffic.clear(id)?;
        }
        self.backend_names.put(&id, name)
    }

    /// No flow names the id any more: whoever gets it next begins at zero.
    fn remove_backend_name(&self, id: u32) -> anyhow::Result<bool> {
        self.traffic.clear(id)?;
        self.backend_names.remove(&id)
    }

    fn remove(&self, key: &RecordKey) -> anyhow::Result<()> {
        match key {
            RecordKey::Device(ifindex) => self.devices.remove(ifindex),
            RecordKey::Frontend4(key) => self.v4.frontends.remove(key),
            RecordKey::Frontend6(key) => self.v6.frontends.remove(key),
            RecordKey::Pod4(address) => self.v4.pods.remove(address),
            RecordKey::Pod6(address) => self.v6.pods.remove(address),
            RecordKey::Target(key) => self.targets.remove(key),
            RecordKey::Eligible(key) => self.eligible.remove(key),
            RecordKey::Range4(key) => self.v4.ranges.remove(key),
            RecordKey::Range6(key) => self.v6.ranges.remove(key),
            RecordKey::Tag(key) => self.tags.remove(key),
            RecordKey::Node4(address) => self.v4.nodes.remove(address),
            RecordKey::Node6(address) => self.v6.nodes.remove(address),
            RecordKey::ServiceName(id) => self.service_names.remove(id),
            RecordKey::BackendName(id) => self.remove_backend_name(*id),
        }
        .map(drop)
    }

    fn read_services(&self, records: &mut Vec<Record>) -> anyhow::Result<()> {
        for (id, service) in self.services.all()? {
            if let Some(selection) = selection_of(&service) {
                let targets = self
                    .slots
                    .run(selection.offset, selection.size)
                    .with_context(|| format!("service {id} points to slots that cannot be read"))?;
                records.push(Record::Slots(selection.offset, targets.into()));
            }
            if service != Service::default() {
                records.push(Record::Service(id, service));
            }
        }
        Ok(())
    }
}

impl Tables for PinnedTables {
    fn capacity(&self) -> Capacity {
        Capacity {
            services: self.services.entries(),
            slots: self.slots.entries(),
            backends: self.backend_names.entries(),
            frontends: self.v4.frontends.entries(),
            pods: self.v4.pods.entries(),
            targets: self.targets.entries(),
            eligible: self.eligible.entries(),
            ranges: self.v4.ranges.entries(),
            tags: self.tags.entries(),
            nodes: self.v4.nodes.entries(),
        }
    }

    fn read(&self) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        let gate = self.gate.all()?.into_iter().filter(|(_, bits)| *bits != 0);
        records.extend(gate.map(|(entry, bits)| Record::Gate(entry, bits)));
        records.extend(self.devices.all()?.into_iter().map(|(key, value)| Record::Device(key, value)));
        self.read_services(&mut records)?;
        records
            .extend(self.v4.frontends.all()?.into_iter().map(|(key, value)| Record::Frontend4(key, value)));
        records
            .extend(self.v6.frontends.all()?.into_iter().map(|(key, value)| Record::Frontend6(key, value)));
        let backends = self.v4.backends.all()?.into_iter().filter(|(_, value)| *value != Backend::default());
        records.extend(backends.map(|(key, value)| Record::Backend4(key, value)));
        let backends = self.v6.backends.all()?.into_iter().filter(|(_, value)| *value != Backend::default());
        records.extend(backends.map(|(key, value)| Record::Backend6(key, value)));
        records.extend(self.v4.pods.all()?.into_iter().map(|(key, value)| Record::Pod4(key, value)));
        records.extend(self.v6.pods.all()?.into_iter().map(|(key, value)| Record::Pod6(key, value)));
        records.extend(self.targets.all()?.into_iter().map(|(key, value)| Record::Target(key, value)));
        records.extend(self.eligible.all()?.into_iter().map(|(key, _)| Record::Eligible(key)));
        records.extend(self.v4.ranges.all()?.into_iter().map(|(key, _)| Record::Range4(key)));
        records.extend(self.v6.ranges.all()?.into_iter().map(|(key, _)| Record::Range6(key)));
        let turns = self.turns.all()?.into_iter().filter(|(_, turn)| turn.word != 0);
        records.extend(turns.map(|(id, turn)| Record::Turn(id, turn)));
        records.extend(self.tags.all()?.into_iter().map(|(key, target)| Record::Tag(key, target)));
        records.extend(self.v4.nodes.all()?.into_iter().map(|(address, _)| Record::Node4(address)));
        records.extend(self.v6.nodes.all()?.into_iter().map(|(address, _)| Record::Node6(address)));
        records.extend(
            self.service_names
                .all()?
                .into_iter()
                .map(|(key, value)| Record::ServiceName(key, Box::new(value))),
        );
        records.extend(
            self.backend_names
                .all()?
                .into_iter()
                .map(|(key, value)| Record::BackendName(key, Box::new(value))),
        );
        Ok(records)
    }

    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        for (place, change) in changes.iter().enumerate() {
            match change {
                Change::Put(record) => self.put(record),
                Change::Remove(key) => self.remove(key),
            }
            .with_context(|| format!("change {} of {}", place + 1, changes.len()))?;
        }
        Ok(())
    }

    fn turn(&self, id: u32) -> anyhow::Result<Turn> {
        Ok(self.turns.get(&id)?.unwrap_or_default())
    }

    fn in_flows(&self) -> anyhow::Result<InFlows> {
        let mut in_flows = InFlows::default();
        for map in &self.v4.flows {
            map.each(|key, flow| note(&mut in_flows, key.frontend.octets.into(), &key, flow))?;
        }
        for map in &self.v6.flows {
            map.each(|key, flow| note(&mut in_flows, key.frontend.octets.into(), &key, flow))?;
        }
        Ok(in_flows)
    }
}

fn note<A>(in_flows: &mut InFlows, address: IpAddr, key: &FlowKey<A>, flow: &Flow<A>) -> ControlFlow<()> {
    let (backend, port) = (flow.backend, flow.target_port);
    in_flows.backends.insert(backend);
    in_flows.targets.insert(TargetKey { backend, port, protocol: key.protocol, pad: 0 });
    let protocol = Protocol::new(key.protocol);
    in_flows.frontends.insert(desired::Frontend { address, port: key.frontend_port, protocol });
    ControlFlow::Continue(())
}

/// Map `neighbours`: next hops that are kept fresh, and how ([`crate::neighbours::Upkeep`]).
///
/// # Errors
/// When it is not pinned or of another layout.
pub fn neighbours(root: &PinRoot) -> anyhow::Result<PinnedMap<NeighbourKey, u32>> {
    PinnedMap::open(root, names::NEIGHBOURS)
}
