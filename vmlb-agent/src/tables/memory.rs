//! Tables in memory, for tests and goldens: they can be made small, can be told to fail, and are printed as a table that
//! people read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use vmlb_common::abi::{
    Arrival, ArrivalSign, Backend, BackendName, Device, EligibleKey, Frontend, FrontendFlags, FrontendKey,
    Gate, Pod, RangeKey, Role, Service, ServiceName, TagKey, Target, TargetKey, Turn, Turned,
};
use vmlb_common::family::{Address, Address4, Address6};
use vmlb_common::wire::Protocol;

use crate::index::slice::Family;

use super::{Capacity, Change, InFlows, Record, RecordKey, Tables, selection_of, turned_to};

mod dump;

/// The tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    capacity: Capacity,
    gate: BTreeMap<u32, u64>,
    devices: BTreeMap<u32, Device>,
    services: BTreeMap<u32, Service>,
    slots: Vec<Target>,
    frontends4: BTreeMap<FrontendKey<Address4>, Frontend>,
    frontends6: BTreeMap<FrontendKey<Address6>, Frontend>,
    backends4: BTreeMap<u32, Backend<Address4>>,
    backends6: BTreeMap<u32, Backend<Address6>>,
    pods4: BTreeMap<Address4, Pod>,
    pods6: BTreeMap<Address6, Pod>,
    turns: BTreeMap<u32, Turn>,
    tags: BTreeMap<TagKey, Target>,
    nodes4: BTreeMap<Address4, u32>,
    nodes6: BTreeMap<Address6, u32>,
    targets: BTreeMap<TargetKey, u32>,
    eligible: BTreeMap<EligibleKey, u32>,
    ranges4: BTreeMap<RangeKey<Address4>, u32>,
    ranges6: BTreeMap<RangeKey<Address6>, u32>,
    service_names: BTreeMap<u32, ServiceName>,
    backend_names: BTreeMap<u32, BackendName>,
    in_flows: InFlows,
    writes: usize,
    fail_after: Option<usize>,
}

/// What a packet to a frontend meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Service id.
    pub id: u32,
    /// Its name.
    pub name: Option<ServiceName>,
    /// [`vmlb_common::abi::ServiceFlags`].
    pub flags: u32,
    /// Seconds for which a client stays with a target.
    pub affinity: u32,
    /// Its selection table.
    pub slots: Vec<Target>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Capacity {
            services: 1024,
            slots: 1 << 20,
            backends: 1024,
            frontends: 1024,
            pods: 4096,
            targets: 4096,
            eligible: 4096,
            ranges: 1024,
            tags: 4096,
            nodes: 1024,
        })
    }
}

impl Memory {
    /// Empty tables of that size.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            gate: BTreeMap::new(),
            devices: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: vec![Target::default(); capacity.slots as usize],
            frontends4: BTreeMap::new(),
            frontends6: BTreeMap::new(),
            backends4: BTreeMap::new(),
            backends6: BTreeMap::new(),
            pods4: BTreeMap::new(),
            pods6: BTreeMap::new(),
            turns: BTreeMap::new(),
            tags: BTreeMap::new(),
            nodes4: BTreeMap::new(),
            nodes6: BTreeMap::new(),
            targets: BTreeMap::new(),
            eligible: BTreeMap::new(),
            ranges4: BTreeMap::new(),
            ranges6: BTreeMap::new(),
            service_names: BTreeMap::new(),
            backend_names: BTreeMap::new(),
            in_flows: InFlows::default(),
            writes: 0,
            fail_after: None,
        }
    }

    /// Lets so many more changes through and fails every one after them; `None`: fails no more.
    pub fn fail_after(&mut self, changes: Option<usize>) {
        self.fail_after = changes;
    }

    /// What flows name from now on.
    pub fn set_flows(&mut self, in_flows: InFlows) {
        self.in_flows = in_flows;
    }

    /// Changes carried out so far.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes
    }

    fn turn_of(&self, id: u32) -> Turn {
        self.turns.get(&id).copied().unwrap_or_default()
    }

    /// Which of a backend's sides is the present one.
    #[must_use]
    pub fn turned(&self, id: u32) -> Turned {
        Turned(self.turn_of(id).word)
    }

    /// Turns a backend as the datapath does when the VM shows itself where it is expected. `None`: it is not expected.
    pub fn arrive(&mut self, backend: u32, at: u64) -> Option<Arrival> {
        let turn = self.turn_of(backend);
        let turned = Turned(turn.word);
        let word = turned.turned().0;
        turned.is_expected().then(|| {
            self.turns.insert(backend, Turn { word, ..turn });
            Arrival { at, replied: turn.replied, backend, word, sign: ArrivalSign::FLOW, pad: 0 }
        })
    }

    /// What stands at a side of a backend.
    #[must_use]
    pub fn endpoints(&self, backend: u32, side: u32) -> Vec<(std::net::IpAddr, u32)> {
        let place = Turn::place(backend, side);
        let v4 = self.backends4.get(&place).map(|end| (end.address.octets.into(), end.flags));
        let v6 = self.backends6.get(&place).map(|end| (end.address.octets.into(), end.flags));
        v4.into_iter().chain(v6).collect()
    }

    /// Whose an address is, and at which of its sides.
    #[must_use]
    pub fn pod(&self, address: std::net::IpAddr) -> Option<Pod> {
        match address {
            std::net::IpAddr::V4(address) => self.pods4.get(&super::address4(address)).copied(),
            std::net::IpAddr::V6(address) => self.pods6.get(&super::address6(address)).copied(),
        }
    }

    /// Whether a gate bit is set.
    #[must_use]
    pub fn gate(&self, gate: Gate, bit: u16) -> bool {
        self.gate.get(&gate.entry(bit)).is_some_and(|word| word & Gate::mask(bit) != 0)
    }

    /// Each frontend with what a packet to it meets: a service's id, name, flags and slots. For comparing states of the
    /// maps.
    #[must_use]
    pub fn served(&self) -> BTreeMap<(std::net::IpAddr, u16, u8), Served> {
        let v4 = self.frontends4.iter();
        let v4 = v4.map(|(key, value)| ((key.address.octets.into(), key.port, key.protocol), value.service));
        let v6 = self.frontends6.iter();
        let v6 = v6.map(|(key, value)| ((key.address.octets.into(), key.port, key.protocol), value.service));
        v4.chain(v6).map(|(frontend, id)| (frontend, self.service(id))).collect()
    }

    /// What frontends of a service meet.
    #[must_use]
    pub fn service(&self, id: u32) -> Served {
        let service = self.services.get(&id).copied().unwrap_or_default();
        let slots = self.selection(&service).unwrap_or_default().to_vec();
        Served {
            id,
            name: self.service_names.get(&id).copied(),
            flags: service.flags,
            affinity: service.affinity,
            slots,
        }
    }

    /// Points at something that is not there: what no prefix of a plan may show. `None`: all is whole.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let v4 = self.frontends4.iter();
        let v4 = v4.map(|(key, value)| (value, key.port, gated(&key.address), Family::V4));
        let v6 = self.frontends6.iter();
        let v6 = v6.map(|(key, value)| (value, key.port, gated(&key.address), Family::V6));
        let mut served = BTreeSet::new();
        for (Frontend { service, flags }, port, hash, family) in v4.chain(v6) {
            if flags & FrontendFlags::RANGES != 0 && !self.has_ranges(*service, family) {
                return Some(format!("a frontend of service {service} admits nobody"));
            }
            let shut =
                |hash| !self.gate(Gate::FRONTEND_PORTS, port) || !self.gate(Gate::FRONTEND_ADDRESSES, hash);
            if hash.is_some_and(shut) {
                return Some(format!("a frontend of service {service} is behind a closed gate"));
            }
            served.insert(*service);
        }
        served.into_iter().find_map(|service| self.fault_of(service))
    }

    fn has_ranges(&self, service: u32, family: Family) -> bool {
        match family {
            Family::V4 => self.ranges4.keys().any(|key| key.block.service == service),
            Family::V6 => self.ranges6.keys().any(|key| key.block.service == service),
        }
    }

    fn fault_of(&self, service: u32) -> Option<String> {
        let Some(name) = self.service_names.get(&service) else {
            return Some(format!("a frontend points at service {service}, which is not there"));
        };
        let is_udp = name.protocol == Protocol::UDP.number();
        // All zeros is a service without a backend.
        let entry = self.services.get(&service).copied().unwrap_or_default();
        let Some(slots) = self.selection(&entry) else {
            return Some(format!("service {service} points outside the slots"));
        };
        let mut whole: Vec<Target> = Vec::new();
        for target in slots {
            if whole.contains(target) {
                continue;
            }
            if !self.is_whole(target) {
                return Some(format!("service {service} selects {target:?}, which is not there"));
            }
            let Target { backend, port, .. } = *target;
            let may_be = |role| self.eligible.contains_key(&EligibleKey { service, backend, port, role });
            if (entry.affinity != 0 && !may_be(Role::NEW)) || (is_udp && !may_be(Role::OPEN)) {
                return Some(format!("clients of service {service} cannot stay with {target:?}"));
            }
            whole.push(*target);
        }
        None
    }

    fn is_whole(&self, target: &Target) -> bool {
        let id = target.backend;
        let place = Turn::place(id, self.turned(id).side());
        let known = self.backends4.contains_key(&place) || self.backends6.contains_key(&place);
        let open = self.gate(Gate::TARGET_PORTS, target.port);
        known
            && open
            && self.backend_names.contains_key(&id)
            && self.targets.keys().any(|key| (key.backend, key.port) == (id, target.port))
    }

    fn selection(&self, service: &Service) -> Option<&[Target]> {
        let start = service.selection.offset as usize;
        self.slots.get(start..start + service.selection.size as usize)
    }

    fn put(&mut self, record: &Record) -> anyhow::Result<()> {
        let Capacity { services, backends, frontends, pods, targets, eligible, ranges, tags, nodes, .. } =
            self.capacity;
        match record {
            Record::Gate(entry, word) => array(&mut self.gate, Gate::ENTRIES, *entry, *word),
            Record::Device(index, device) => hash(&mut self.devices, 1024, *index, *device),
            Record::Service(id, service) => array(&mut self.services, services, *id, *service),
            Record::Slots(offset, run) => {
                let start = *offset as usize;
                let run = run.slots();
                let Some(slots) = self.slots.get_mut(start..start + run.len()) else {
                    bail!("no slot {offset}")
                };
                slots.copy_from_slice(&run);
                Ok(())
            }
            Record::Frontend4(key, value) => hash(&mut self.frontends4, frontends, *key, *value),
            Record::Frontend6(key, value) => hash(&mut self.frontends6, frontends, *key, *value),
            Record::Backend4(id, backend) => array(&mut self.backends4, backends * 2, *id, *backend),
            Record::Backend6(id, backend) => array(&mut self.backends6, backends * 2, *id, *backend),
            Record::Pod4(address, pod) => hash(&mut self.pods4, pods, *address, *pod),
            Record::Pod6(address, pod) => hash(&mut self.pods6, pods, *address, *pod),
            Record::Target(key, count) => hash(&mut self.targets, targets, *key, *count),
            Record::Eligible(key) => hash(&mut self.eligible, eligible, *key, 1),
            Record::Range4(key) => hash(&mut self.ranges4, ranges, *key, 1),
            Record::Range6(key) => hash(&mut self.ranges6, ranges, *key, 1),
            Record::Turn(id, wanted) => match turned_to(self.turn_of(*id), *wanted) {
                Some(turn) => array(&mut self.turns, backends, *id, turn),
                None => Ok(()),
            },
            Record::Tag(key, target) => hash(&mut self.tags, tags, *key, *target),
            Record::Node4(address) => hash(&mut self.nodes4, nodes, *address, 1),
            Record::Node6(address) => hash(&mut self.nodes6, nodes, *address, 1),
            Record::ServiceName(id, name) => hash(&mut self.service_names, services, *id, **name),
            Record::BackendName(id, name) => hash(&mut self.backend_names, backends, *id, **name),
        }
    }

    fn remove(&mut self, key: &RecordKey) {
        match key {
            RecordKey::Device(index) => drop(self.devices.remove(index)),
            RecordKey::Frontend4(key) => drop(self.frontends4.remove(key)),
            RecordKey::Frontend6(key) => drop(self.frontends6.remove(key)),
            RecordKey::Pod4(address) => drop(self.pods4.remove(address)),
            RecordKey::Pod6(address) => drop(self.pods6.remove(address)),
            RecordKey::Target(key) => drop(self.targets.remove(key)),
            RecordKey::Eligible(key) => drop(self.eligible.remove(key)),
            RecordKey::Range4(key) => drop(self.ranges4.remove(key)),
            RecordKey::Range6(key) => drop(self.ranges6.remove(key)),
            RecordKey::Tag(key) => drop(self.tags.remove(key)),
            RecordKey::Node4(address) => drop(self.nodes4.remove(address)),
            RecordKey::Node6(address) => drop(self.nodes6.remove(address)),
            RecordKey::ServiceName(id) => drop(self.service_names.remove(id)),
            RecordKey::BackendName(id) => drop(self.backend_names.remove(id)),
        }
    }
}

/// The gate's bit of a frontend's address; what stands for other nodes' addresses has none.
fn gated<A: Address>(address: &A) -> Option<u16> {
    (*address != A::default()).then(|| Gate::hash(address))
}

/// An array's entry; zeros are as good as nothing.
fn array<V: Copy + Default + PartialEq>(
    map: &mut BTreeMap<u32, V>,
    size: u32,
    index: u32,
    value: V,
) -> anyhow::Result<()> {
    if index >= size {
        bail!("index {index} in an array of {size} (E2BIG)");
    }
    if value == V::default() {
        map.remove(&index)
    } else {
        map.insert(index, value)
    };
    Ok(())
}

fn hash<K: Ord, V>(map: &mut BTreeMap<K, V>, size: u32, key: K, value: V) -> anyhow::Result<()> {
    if map.len() >= size as usize && !map.contains_key(&key) {
        bail!("the map of {size} entries is full (E2BIG)");
    }
    map.insert(key, value);
    Ok(())
}

impl Tables for Memory {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&self) -> anyhow::Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        records.extend(self.gate.iter().map(|(entry, word)| Record::Gate(*entry, *word)));
        records.extend(self.devices.iter().map(|(index, device)| Record::Device(*index, *device)));
        records.extend(self.services.iter().map(|(id, service)| Record::Service(*id, *service)));
        for service in self.services.values() {
            if let Some((selection, slots)) = selection_of(service).zip(self.selection(service)) {
                records.push(Record::Slots(selection.offset, slots.to_vec().into()));
            }
        }
        records.extend(self.frontends4.iter().map(|(key, value)| Record::Frontend4(*key, *value)));
        records.extend(self.frontends6.iter().map(|(key, value)| Record::Frontend6(*key, *value)));
        records.extend(self.backends4.iter().map(|(id, backend)| Record::Backend4(*id, *backend)));
        records.extend(self.backends6.iter().map(|(id, backend)| Record::Backend6(*id, *backend)));
        records.extend(self.pods4.iter().map(|(address, pod)| Record::Pod4(*address, *pod)));
        records.extend(self.pods6.iter().map(|(address, pod)| Record::Pod6(*address, *pod)));
        records.extend(self.targets.iter().map(|(key, count)| Record::Target(*key, *count)));
        records.extend(self.eligible.keys().map(|key| Record::Eligible(*key)));
        records.extend(self.ranges4.keys().map(|key| Record::Range4(*key)));
        records.extend(self.ranges6.keys().map(|key| Record::Range6(*key)));
        records.extend(self.turns.iter().map(|(id, turn)| Record::Turn(*id, *turn)));
        records.extend(self.tags.iter().map(|(key, target)| Record::Tag(*key, *target)));
        records.extend(self.nodes4.keys().map(|address| Record::Node4(*address)));
        records.extend(self.nodes6.keys().map(|address| Record::Node6(*address)));
        records.extend(self.service_names.iter().map(|(id, name)| Record::ServiceName(*id, Box::new(*name))));
        records.extend(self.backend_names.iter().map(|(id, name)| Record::BackendName(*id, Box::new(*name))));
        Ok(records)
    }

    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        for change in changes {
            if let Some(left) = &mut self.fail_after {
                let Some(less) = left.checked_sub(1) else { bail!("told to fail at {change:?}") };
                *left = less;
            }
            match change {
                Change::Put(record) => self.put(record)?,
                Change::Remove(key) => self.remove(key),
            }
            self.writes += 1;
        }
        Ok(())
    }

    fn turn(&self, id: u32) -> anyhow::Result<Turn> {
        Ok(self.turn_of(id))
    }

    fn in_flows(&self) -> anyhow::Result<InFlows> {
        Ok(self.in_flows.clone())
    }
}
