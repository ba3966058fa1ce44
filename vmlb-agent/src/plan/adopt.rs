//! Taking over what is installed: from records to ledgers, ids and slots. The same on the first start, after a restart and
//! after a write that failed half way.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Instant;

use vmlb_common::abi::{self, BackendFlags, ServiceName};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use super::clients::{Clients, Range, range_of};
use super::gate::Gates;
use super::ids::Ids;
use super::ledger::Ledger;
use super::linger::Lingering;
use super::named::Named;
use super::names::{identity_of, port_of};
use super::resolve::content_digest;
use super::slots::Slots;
use super::tags::Tags;
use super::turns::Turns;
use super::{Endpoint, Installation, Unplaced, family_of};
use crate::desired::{Frontend, PortKey, Side, TableKey};
use crate::identity::Identity;
use crate::index::slice::Family;
use crate::tables::{Capacity, InFlows, Record, Shelf};

/// Records by kind.
#[derive(Default)]
struct Found {
    gates: Vec<(u32, u64)>,
    devices: HashMap<u32, abi::Device>,
    services: HashMap<u32, abi::Service>,
    service_names: HashMap<u32, ServiceName>,
    /// How many slots there are from an offset on, and their digest.
    slots: HashMap<u32, (usize, u64)>,
    frontends: HashMap<Frontend, abi::Frontend>,
    backends: HashMap<(u32, Family), Endpoint>,
    backend_names: HashMap<u32, abi::BackendName>,
    pods: HashMap<IpAddr, abi::Pod>,
    nodes: HashMap<IpAddr, ()>,
    tags: HashMap<abi::TagKey, abi::Target>,
    turns: HashMap<u32, abi::Turned>,
    targets: HashMap<abi::TargetKey, u32>,
    eligible: HashSet<abi::EligibleKey>,
    ranges: HashSet<Range>,
    revision: u32,
}

impl Installation {
    /// Takes over `records`. `in_flows` is what flows name. `previous` is what this process knew before a
    /// write failed: slices that packets may still be looking at are not given out at once.
    #[must_use]
    pub fn adopt(
        records: Vec<Record>,
        capacity: Capacity,
        in_flows: &InFlows,
        previous: Option<&Self>,
        now: Instant,
    ) -> Self {
        let found = Found::sort(records);
        let backend_keys = backend_ids(&found.backend_names, capacity.backends);
        let service_keys = service_ids(&found.service_names, &found.frontends, capacity.services);
        let named = in_flows.backends.iter().copied();
        let mut blocked: BTreeSet<u32> = named.filter(|id| *id != 0 && *id < capacity.backends).collect();
        // What has no name, or a name that another id has too, goes; until it is gone the id is not given out.
        blocked.extend(
            found.backends.keys().map(|(place, _)| *place / 2).chain(found.backend_names.keys().copied()),
        );
        let known: BTreeSet<u32> = backend_keys.values().copied().collect();
        blocked.retain(|id| !known.contains(id));
        let mut used_services: BTreeSet<u32> =
            found.services.keys().chain(found.service_names.keys()).copied().collect();
        used_services.extend(found.frontends.values().map(|frontend| frontend.service));
        let (slots, digests) = slots(&found, capacity.slots, previous, now);
        let mut gates = Gates::adopt(found.gates);
        let mut lingering = Lingering::adopt(in_flows, &mut gates);
        lingering.blocked = blocked;
        let mut installation = Self {
            capacity,
            gates,
            devices: Ledger::adopt(found.devices),
            services: Ledger::adopt(found.services),
            service_names: Named::adopt(&found.service_names),
            frontends: by_family(found.frontends, |frontend| frontend.address),
            backends: Ledger::adopt(found.backends),
            backend_names: Named::adopt(&found.backend_names),
            pods: by_family(found.pods, |address| *address),
            nodes: by_family(found.nodes, |address| *address),
            tags: Tags::adopt(found.tags),
            turns: Turns::adopt(found.turns),
            unfinished: BTreeSet::new(),
            targets: Ledger::adopt(found.targets),
            clients: Clients::adopt(found.eligible, found.ranges),
            service_ids: Ids::adopt(capacity.services, service_keys, &used_services),
            backend_ids: Ids::adopt(capacity.backends, backend_keys, &lingering.blocked),
            lingering,
            slots,
            digests,
            fresh: Shelf::default(),
            revision: found.revision.max(previous.map_or(0, |previous| previous.revision)),
            local_pods: std::collections::HashSet::new(),
            snat_ports: BTreeSet::new(),
            snat_addresses: BTreeSet::new(),
            unplaced: Unplaced::default(),
        };
        installation.keep_names(&found.backend_names);
        installation
    }

    /// The name of a backend stays until nothing names its id: it goes with [`Installation::recycle`].
    fn keep_names(&mut self, names: &HashMap<u32, abi::BackendName>) {
        let known: Vec<(Identity, u32)> =
            self.backend_ids.iter().map(|(identity, id)| (identity.clone(), id)).collect();
        for (identity, id) in known {
            self.backend_names.want(id, names.get(&id).copied());
            self.lingering.backends.insert(identity);
        }
    }

    /// What was found installed and must be compared with what is called for.
    pub(crate) fn known(&self) -> Known {
        let is_present = |id: u32| {
            let families = [Family::V4, Family::V6];
            let sides = [0, 1].map(|side| abi::Turn::place(id, side));
            let mut places = sides.into_iter().flat_map(|place| families.map(|family| (place, family)));
            places.any(|place| self.backends.installed(&place).is_some())
        };
        let present = self.backend_ids.iter().filter(|(_, id)| is_present(*id));
        Known {
            tables: self.service_ids.iter().map(|(key, _)| key.clone()).collect(),
            backends: self.backend_ids.iter().map(|(identity, _)| identity.clone()).collect(),
            draining: present.map(|(identity, _)| identity.clone()).collect(),
        }
    }
}

/// Names that were found.
pub(crate) struct Known {
    /// Selection tables.
    pub tables: BTreeSet<TableKey>,
    /// Backends.
    pub backends: BTreeSet<Identity>,
    /// Those of them that have an address: if no slice lists them, they may be draining.
    pub draining: BTreeSet<Identity>,
}

impl Found {
    fn sort(records: Vec<Record>) -> Self {
        let mut found = Self::default();
        for record in records {
            found.take(record);
        }
        // A service without backends and flags is all zeros, which is not read; its name tells that it is there.
        for id in found.service_names.keys() {
            found.services.entry(*id).or_default();
        }
        found
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Gate(entry, word) => self.gates.push((entry, word)),
            Record::Device(index, device) => drop(self.devices.insert(index, device)),
            Record::Service(id, service) => drop(self.services.insert(id, service)),
            Record::Slots(offset, run) => drop(self.slots.insert(offset, (run.len(), content_digest(&run)))),
            Record::Frontend4(key, value) => {
                let frontend = frontend(ip4(key.address), key.port, key.protocol);
                self.frontends.insert(frontend, value);
            }
            Record::Frontend6(key, value) => {
                let frontend = frontend(ip6(key.address), key.port, key.protocol);
                self.frontends.insert(frontend, value);
            }
            Record::Backend4(place, abi::Backend { flags, revision, address, node, tag }) => {
                let (address, node) = (ip4(address), Some(ip4(node)).filter(is_specified));
                self.backend((place, Family::V4), revision, Endpoint { flags, address, node, tag });
            }
            Record::Backend6(place, abi::Backend { flags, revision, address, node, tag }) => {
                let (address, node) = (ip6(address), Some(ip6(node)).filter(is_specified));
                self.backend((place, Family::V6), revision, Endpoint { flags, address, node, tag });
            }
            Record::Pod4(address, pod) => drop(self.pods.insert(ip4(address), pod)),
            Record::Pod6(address, pod) => drop(self.pods.insert(ip6(address), pod)),
            Record::Turn(id, turn) => drop(self.turns.insert(id, abi::Turned(turn.word))),
            Record::Tag(key, target) => drop(self.tags.insert(key, target)),
            Record::Node4(address) => drop(self.nodes.insert(ip4(address), ())),
            Record::Node6(address) => drop(self.nodes.insert(ip6(address), ())),
            Record::Target(key, count) => drop(self.targets.insert(key, count)),
            Record::Eligible(key) => drop(self.eligible.insert(key)),
            Record::Range4(key) => {
                self.ranges.extend(range_of(key.block.service, ip4(key.block.client), key.length));
            }
            Record::Range6(key) => {
                self.ranges.extend(range_of(key.block.service, ip6(key.block.client), key.length));
            }
            Record::ServiceName(id, name) => drop(self.service_names.insert(id, *name)),
            Record::BackendName(id, name) => drop(self.backend_names.insert(id, *name)),
        }
    }

    fn backend(&mut self, key: (u32, Family), revision: u32, endpoint: Endpoint) {
        self.revision = self.revision.max(revision);
        // An entry that is not present but not zero either is not one of ours: it will be zeroed.
        debug_assert!(endpoint.flags & BackendFlags::PRESENT != 0 || endpoint.flags == 0);
        self.backends.insert(key, endpoint);
    }
}

fn by_family<K: Ord + Hash + Clone, V: PartialEq + Clone>(
    found: HashMap<K, V>,
    address: fn(&K) -> IpAddr,
) -> [Ledger<K, V>; 2] {
    let (v4, v6) = found.into_iter().partition(|(key, _)| family_of(address(key)) == 0);
    [Ledger::adopt(v4), Ledger::adopt(v6)]
}

fn frontend(address: IpAddr, port: u16, protocol: u8) -> Frontend {
    Frontend { address, port, protocol: Protocol::new(protocol) }
}

fn is_specified(address: &IpAddr) -> bool {
    !address.is_unspecified()
}

fn ip4(address: Address4) -> IpAddr {
    IpAddr::from(address.octets)
}

fn ip6(address: Address6) -> IpAddr {
    IpAddr::from(address.octets)
}

/// Of two ids with one name the lower counts; the other's entries go.
fn backend_ids(names: &HashMap<u32, abi::BackendName>, limit: u32) -> HashMap<Identity, u32> {
    let mut ids: Vec<u32> = names.keys().copied().filter(|id| *id != 0 && *id < limit).collect();
    ids.sort_unstable();
    let mut by_identity = HashMap::new();
    for id in ids {
        if let Some(name) = names.get(&id) {
            by_identity.entry(identity_of(name)).or_insert(id);
        }
    }
    by_identity
}

/// Two ids with one name are the two tables of a port: the second is the one that IPv6 frontends alone point at.
fn service_ids(
    names: &HashMap<u32, ServiceName>,
    frontends: &HashMap<Frontend, abi::Frontend>,
    limit: u32,
) -> HashMap<TableKey, u32> {
    let v4 = frontends.iter().filter(|(frontend, _)| frontend.address.is_ipv4());
    let v4: BTreeSet<u32> = v4.map(|(_, value)| value.service).collect();
    let mut by_port: HashMap<PortKey, Vec<u32>> = HashMap::new();
    for (id, name) in names.iter().filter(|(id, _)| **id != 0 && **id < limit) {
        by_port.entry(port_of(name)).or_default().push(*id);
    }
    let mut ids = HashMap::new();
    for (port, mut found) in by_port {
        found.sort_unstable_by_key(|id| (!v4.contains(id), *id));
        for (side, id) in [Side::First, Side::Second].into_iter().zip(found) {
            ids.insert((port.clone(), side), id);
        }
    }
    ids
}

/// Which slots are taken and what they hold. A selection that does not fit the others has no digest: its service gets a
/// new one.
fn slots(
    found: &Found,
    count: u32,
    previous: Option<&Installation>,
    now: Instant,
) -> (Slots, HashMap<u32, u64>) {
    let mut slots = Slots::new(count);
    let mut digests = HashMap::new();
    let mut ids: Vec<u32> = found.services.keys().copied().collect();
    ids.sort_unstable();
    for id in ids {
        let Some(service) = found.services.get(&id) else { continue };
        let Some((size, digest)) = found.slots.get(&service.selection.offset) else { continue };
        if *size == service.selection.size as usize && slots.reserve(service.selection) {
            digests.insert(id, *digest);
        }
    }
    if let Some(previous) = previous {
        slots.inherit(&previous.slots, now);
    }
    (slots, digests)
}
