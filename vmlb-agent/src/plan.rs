//! From what is called for to what is written: ids and slots are given out, the difference to what is installed becomes a
//! list of changes, in an order of which every prefix is a state the datapath can serve.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use vmlb_common::abi::{self, Device, Selection, Service, ServiceName, TargetKey};
use vmlb_common::family::{Address4, Address6};

use crate::desired::{Frontend, TableKey, TargetName};
use crate::identity::Identity;
use crate::index::slice::Family;
use crate::tables::{Capacity, Change, Record, RecordKey, Shelf, Tables, address4, address6};

mod adopt;
mod clients;
mod ends;
mod gate;
mod ids;
mod ledger;
mod linger;
mod named;
mod names;
mod resolve;
mod slots;
mod tags;
mod turns;

use clients::Clients;
use gate::Gates;
use ids::Ids;
use ledger::Ledger;
use linger::Lingering;
use named::Named;
pub use slots::GRACE;
use slots::Slots;
use tags::Tags;
use turns::Turns;

/// A backend's endpoint in one family. Its revision is not part of it: that is given out when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    flags: u32,
    address: IpAddr,
    /// The address of its node.
    node: Option<IpAddr>,
    tag: u32,
}

/// What could not be placed, with the flag to raise; looked at again with every plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unplaced {
    /// Selection tables.
    pub tables: BTreeMap<TableKey, &'static str>,
    backends: BTreeSet<Identity>,
    frontends: BTreeSet<Frontend>,
    addresses: BTreeSet<IpAddr>,
    targets: BTreeSet<TargetName>,
}

impl Unplaced {
    /// Whether anything waits for room.
    pub fn is_waiting(&self) -> bool {
        !self.tables.is_empty()
            || !self.backends.is_empty()
            || !self.frontends.is_empty()
            || !self.addresses.is_empty()
            || !self.targets.is_empty()
    }
}

/// What is installed and what is to be: everything that the control plane owns in the tables.
pub struct Installation {
    capacity: Capacity,
    gates: Gates,
    devices: Ledger<u32, Device>,
    services: Ledger<u32, Service>,
    service_names: Named<ServiceName>,
    /// By family, as the maps are.
    frontends: [Ledger<Frontend, abi::Frontend>; 2],
    /// By place in maps `backends_*`.
    backends: Ledger<(u32, Family), Endpoint>,
    turns: Turns,
    /// Backends that are one step nearer to where they are to be.
    unfinished: BTreeSet<Identity>,
    backend_names: Named<abi::BackendName>,
    pods: [Ledger<IpAddr, abi::Pod>; 2],
    nodes: [Ledger<IpAddr, ()>; 2],
    tags: Tags,
    targets: Ledger<TargetKey, u32>,
    clients: Clients,
    service_ids: Ids<TableKey>,
    backend_ids: Ids<Identity>,
    /// What is gone but may still be named by flows.
    lingering: Lingering,
    slots: Slots,
    /// What the slots of a service hold.
    digests: HashMap<u32, u64>,
    /// Slices to be written.
    fresh: Shelf,
    revision: u32,
    /// Addresses of pods on this node that are wanted.
    local_pods: HashSet<IpAddr>,
    /// Gate bits that the node's own facts want.
    snat_ports: BTreeSet<u16>,
    snat_addresses: BTreeSet<IpAddr>,
    pub(crate) unplaced: Unplaced,
}

impl Installation {
    /// The changes that make what is what is to be. None if nothing differs.
    ///
    /// First what others will point at, then what points; removals the other way round. Gate bits are set before
    /// anything else and cleared after everything else, and after the flows that name what they let in.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.gates.raise().collect();
        changes
            .extend(self.devices.puts().map(|(index, device)| Change::Put(Record::Device(*index, *device))));
        changes.extend(
            self.backend_names.take_puts().map(|(id, name)| Change::Put(Record::BackendName(id, name))),
        );
        let endpoints: Vec<_> = self.backends.puts().map(|(key, endpoint)| (*key, Some(*endpoint))).collect();
        changes.extend(endpoints.into_iter().map(|(key, endpoint)| self.put_backend(key, endpoint)));
        changes.extend(
            self.pods
                .iter()
                .flat_map(Ledger::puts)
                .map(|(address, pod)| Change::Put(pod_record(*address, *pod))),
        );
        // After what they turn to and who may answer from there; what they turn from goes with the removals.
        changes.extend(self.turns.puts());
        let nodes = self.nodes.iter().flat_map(Ledger::puts);
        changes.extend(nodes.map(|(address, ())| Change::Put(node_record(*address))));
        changes.extend(self.targets.puts().map(|(key, count)| Change::Put(Record::Target(*key, *count))));
        changes.extend(self.clients.puts());
        changes.extend(self.tags.puts());
        changes.extend(
            self.service_names.take_puts().map(|(id, name)| Change::Put(Record::ServiceName(id, name))),
        );
        changes.extend(self.fresh.take().map(|(offset, run)| Change::Put(Record::Slots(offset, run))));
        changes.extend(self.services.puts().map(|(id, service)| Change::Put(Record::Service(*id, *service))));
        changes.extend(
            self.frontends
                .iter()
                .flat_map(Ledger::puts)
                .map(|(key, value)| Change::Put(frontend_record(*key, *value))),
        );
        self.removals(&mut changes);
        changes
    }

    fn removals(&mut self, changes: &mut Vec<Change>) {
        changes.extend(
            self.frontends.iter().flat_map(Ledger::removals).map(|key| Change::Remove(frontend_key(*key))),
        );
        let services = self.services.removals();
        changes.extend(services.map(|id| Change::Put(Record::Service(*id, Service::default()))));
        let names = self.service_names.removals();
        changes.extend(names.map(|id| Change::Remove(RecordKey::ServiceName(*id))));
        changes.extend(self.tags.removals());
        changes.extend(self.clients.removals());
        changes.extend(self.targets.removals().map(|key| Change::Remove(RecordKey::Target(*key))));
        changes.extend(
            self.pods.iter().flat_map(Ledger::removals).map(|address| Change::Remove(pod_key(*address))),
        );
        let nodes = self.nodes.iter().flat_map(Ledger::removals);
        changes.extend(nodes.map(|address| Change::Remove(node_key(*address))));
        let gone: Vec<_> = self.backends.removals().copied().collect();
        changes.extend(gone.into_iter().map(|key| self.put_backend(key, None)));
        let names = self.backend_names.removals();
        changes.extend(names.map(|id| Change::Remove(RecordKey::BackendName(*id))));
        changes.extend(self.devices.removals().map(|index| Change::Remove(RecordKey::Device(*index))));
        changes.extend(self.gates.lower());
    }

    fn put_backend(&mut self, (place, family): (u32, Family), endpoint: Option<Endpoint>) -> Change {
        let Some(Endpoint { flags, address, node, tag }) = endpoint else {
            return Change::Put(match family {
                Family::V4 => Record::Backend4(place, abi::Backend::default()),
                Family::V6 => Record::Backend6(place, abi::Backend::default()),
            });
        };
        // One counter for all: what a cached next hop was stamped with never comes again, whoever gets the id.
        self.revision = self.revision.wrapping_add(1).max(1);
        let revision = self.revision;
        Change::Put(match address {
            IpAddr::V4(address) => {
                let node = match node {
                    Some(IpAddr::V4(node)) => address4(node),
                    _ => Address4::default(),
                };
                Record::Backend4(
                    place,
                    abi::Backend { flags, revision, address: address4(address), node, tag },
                )
            }
            IpAddr::V6(address) => {
                let node = match node {
                    Some(IpAddr::V6(node)) => address6(node),
                    _ => Address6::default(),
                };
                Record::Backend6(
                    place,
                    abi::Backend { flags, revision, address: address6(address), node, tag },
                )
            }
        })
    }

    /// The changes have been carried out. Tells whether room has come back that others wait for.
    pub fn settle(&mut self) -> bool {
        self.gates.settle();
        self.devices.settle();
        self.services.settle();
        self.service_names.settle();
        self.frontends.iter_mut().for_each(Ledger::settle);
        self.backends.settle();
        self.backend_names.settle();
        self.turns.settle();
        self.pods.iter_mut().for_each(Ledger::settle);
        self.nodes.iter_mut().for_each(Ledger::settle);
        self.tags.settle();
        self.targets.settle();
        self.clients.settle();
        let services = self.service_ids.settle();
        let backends = self.backend_ids.settle();
        services || backends
    }

    /// Whether some backends are not yet where they are to be: the next plan goes on.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Reads again which backends the datapath has turned. Returns those.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn look(&mut self, tables: &dyn Tables) -> anyhow::Result<Vec<(Identity, abi::Turn)>> {
        let mut turned = Vec::new();
        for id in self.turns.expected() {
            let turn = tables.turn(id)?;
            if self.turns.learn(id, abi::Turned(turn.word)) {
                turned.extend(self.identity(id).map(|identity| (identity, turn)));
            }
        }
        Ok(turned)
    }

    /// Takes in that the datapath has turned a backend. Tells whether that is new.
    pub fn learn(&mut self, id: u32, turned: abi::Turned) -> bool {
        self.turns.learn(id, turned)
    }

    /// Whose an id is.
    #[must_use]
    pub fn identity(&self, id: u32) -> Option<Identity> {
        self.backend_ids.iter().find(|(_, known)| *known == id).map(|(identity, _)| identity.clone())
    }

    /// Whether retired slots wait for their grace.
    #[must_use]
    pub fn is_retiring(&self) -> bool {
        self.slots.is_waiting()
    }

    /// The id of a table that is served.
    #[must_use]
    pub fn service_id(&self, key: &TableKey) -> Option<u32> {
        self.service_ids.get(key)
    }

    /// The id of a backend.
    #[must_use]
    pub fn backend_id(&self, identity: &Identity) -> Option<u32> {
        self.backend_ids.get(identity)
    }

    /// The service id that serves a frontend.
    #[must_use]
    pub fn frontend(&self, frontend: &Frontend) -> Option<u32> {
        self.frontends[family_of(frontend.address)].wanted(frontend).map(|opened| opened.service)
    }
}

/// Which of two maps holds an address.
const fn family_of(address: IpAddr) -> usize {
    address.is_ipv6() as usize
}

fn frontend_record(key: Frontend, value: abi::Frontend) -> Record {
    let Frontend { address, port, protocol } = key;
    match address {
        IpAddr::V4(address) => {
            Record::Frontend4(abi::FrontendKey::new(address4(address), port, protocol), value)
        }
        IpAddr::V6(address) => {
            Record::Frontend6(abi::FrontendKey::new(address6(address), port, protocol), value)
        }
    }
}

fn frontend_key(key: Frontend) -> RecordKey {
    let Frontend { address, port, protocol } = key;
    match address {
        IpAddr::V4(address) => RecordKey::Frontend4(abi::FrontendKey::new(address4(address), port, protocol)),
        IpAddr::V6(address) => RecordKey::Frontend6(abi::FrontendKey::new(address6(address), port, protocol)),
    }
}

fn node_record(address: IpAddr) -> Record {
    match address {
        IpAddr::V4(address) => Record::Node4(address4(address)),
        IpAddr::V6(address) => Record::Node6(address6(address)),
    }
}

fn node_key(address: IpAddr) -> RecordKey {
    match address {
        IpAddr::V4(address) => RecordKey::Node4(address4(address)),
        IpAddr::V6(address) => RecordKey::Node6(address6(address)),
    }
}

fn pod_record(address: IpAddr, pod: abi::Pod) -> Record {
    match address {
        IpAddr::V4(address) => Record::Pod4(address4(address), pod),
        IpAddr::V6(address) => Record::Pod6(address6(address), pod),
    }
}

fn pod_key(address: IpAddr) -> RecordKey {
    match address {
        IpAddr::V4(address) => RecordKey::Pod4(address4(address)),
        IpAddr::V6(address) => RecordKey::Pod6(address6(address)),
    }
}

/// The text in an array of octets padded with zeros.
#[must_use]
pub fn text_of(octets: &[u8]) -> String {
    names::text(octets)
}

/// No table: a service without usable backends.
const EMPTY: Selection = Selection { offset: 0, size: 0 };
