//! The seam between what the agent wants and where it is kept: ordered changes go to a [`Tables`], and the same
//! records come back from it after a restart. Two real implementations: the pinned maps (`tables/pinned.rs`) and an
//! in-memory one that can be told to fail (`tables/memory.rs`).

use std::collections::BTreeSet;

use vmlb_common::abi::{
    self, Backend, BackendName, Device, EligibleKey, FrontendKey, Pod, RangeKey, Selection, Service,
    ServiceName, TagKey, Target, TargetKey, Turn, Turned,
};
use vmlb_common::family::{Address4, Address6};

use crate::desired::Frontend;

pub mod memory;
pub mod pinned;
mod run;

pub use run::{Run, Shelf};

/// One entry of one map that the control plane owns (flows, hops and counters belong to the datapath; settings and
/// neighbours to the agent's network side).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// 64 gate bits.
    Gate(u32, u64),
    /// A device by interface index.
    Device(u32, Device),
    /// A service by id.
    Service(u32, Service),
    /// A run of slots from an offset; written whole before any service points at it.
    Slots(u32, Run),
    /// An IPv4 frontend.
    Frontend4(FrontendKey<Address4>, abi::Frontend),
    /// An IPv6 frontend.
    Frontend6(FrontendKey<Address6>, abi::Frontend),
    /// A backend's IPv4 endpoint by [`Turn::place`].
    Backend4(u32, Backend<Address4>),
    /// A backend's IPv6 endpoint by [`Turn::place`].
    Backend6(u32, Backend<Address6>),
    /// Whose an IPv4 pod address is.
    Pod4(Address4, Pod),
    /// Whose an IPv6 pod address is.
    Pod6(Address6, Pod),
    /// How many services select a target.
    Target(TargetKey, u32),
    /// A target that clients of a service may stay with.
    Eligible(EligibleKey),
    /// IPv4 clients of a service that frontends with ranges admit.
    Range4(RangeKey<Address4>),
    /// IPv6 clients of a service that frontends with ranges admit.
    Range6(RangeKey<Address6>),
    /// Which of a backend's endpoints is the present one, by id. Written by [`turned_to`]: the datapath turns too.
    Turn(u32, Turn),
    /// What a packet from another node's tunnel is for.
    Tag(TagKey, Target),
    /// The IPv4 address of a node.
    Node4(Address4),
    /// The IPv6 address of a node.
    Node6(Address6),
    /// The name of a service id.
    ServiceName(u32, Box<ServiceName>),
    /// The name of a backend id.
    BackendName(u32, Box<BackendName>),
}

/// The key of a hash map's [`Record`], for removal. Array entries are never removed, they are written as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// See [`Record::Device`].
    Device(u32),
    /// See [`Record::Frontend4`].
    Frontend4(FrontendKey<Address4>),
    /// See [`Record::Frontend6`].
    Frontend6(FrontendKey<Address6>),
    /// See [`Record::Pod4`].
    Pod4(Address4),
    /// See [`Record::Pod6`].
    Pod6(Address6),
    /// See [`Record::Target`].
    Target(TargetKey),
    /// See [`Record::Eligible`].
    Eligible(EligibleKey),
    /// See [`Record::Range4`].
    Range4(RangeKey<Address4>),
    /// See [`Record::Range6`].
    Range6(RangeKey<Address6>),
    /// See [`Record::Tag`].
    Tag(TagKey),
    /// See [`Record::Node4`].
    Node4(Address4),
    /// See [`Record::Node6`].
    Node6(Address6),
    /// See [`Record::ServiceName`].
    ServiceName(u32),
    /// See [`Record::BackendName`].
    BackendName(u32),
}

/// One step of a plan. Steps are carried out in order; each leaves the datapath with a state it can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write an entry (insert or replace).
    Put(Record),
    /// Remove an entry; one that is already gone is not an error.
    Remove(RecordKey),
}

/// How many entries the maps were made for; plans stay within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `services`.
    pub services: u32,
    /// Entries of `slots`.
    pub slots: u32,
    /// Entries of `backend_names`, `turns`, `hops_*` and `traffic`; half of those of `backends_*`.
    pub backends: u32,
    /// Entries of `frontends_v4` and `frontends_v6` each.
    pub frontends: u32,
    /// Entries of `pods_v4` and `pods_v6` each.
    pub pods: u32,
    /// Entries of `targets`.
    pub targets: u32,
    /// Entries of `eligible`.
    pub eligible: u32,
    /// Entries of `ranges_v4` and `ranges_v6` each.
    pub ranges: u32,
    /// Entries of `tags`.
    pub tags: u32,
    /// Entries of `nodes_v4` and `nodes_v6` each.
    pub nodes: u32,
}

/// Where records are kept.
pub trait Tables {
    /// The sizes that plans must respect.
    fn capacity(&self) -> Capacity;

    /// Everything that is installed, in no order; zeroed array entries are left out. `Slots` come back as one run per
    /// service that has a selection.
    ///
    /// # Errors
    /// When a map cannot be read; nothing is changed.
    fn read(&self) -> anyhow::Result<Vec<Record>>;

    /// Carries out `changes` in order.
    ///
    /// # Errors
    /// At the first change that fails; the error says which, and those before it are in force.
    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()>;

    /// The turn of a backend as it is at this moment.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn turn(&self, id: u32) -> anyhow::Result<Turn>;

    /// What flow entries name.
    ///
    /// # Errors
    /// When a flow table cannot be read.
    fn in_flows(&self) -> anyhow::Result<InFlows>;
}

/// What flows name, half-open ones included: it is not given away, and the gate lets it in, while they live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InFlows {
    /// Backend ids.
    pub backends: BTreeSet<u32>,
    /// What their clients address.
    pub frontends: BTreeSet<Frontend>,
    /// Who answers.
    pub targets: BTreeSet<TargetKey>,
}

/// What is to be written where `present` is found and `wanted` is to be; `None`: nothing. A change that the datapath has
/// overtaken is dropped: it has turned the backend since, and tells so.
#[must_use]
pub fn turned_to(present: Turn, wanted: Turn) -> Option<Turn> {
    let (now, then) = (Turned(present.word), Turned(wanted.word));
    let ahead = (then.0 >> 8).wrapping_sub(now.0 >> 8) & 0x00ff_ffff;
    let is_next = ahead == 0 && now.side() == then.side() || ahead == 1 && now.side() != then.side();
    if now == then || !is_next {
        return None;
    }
    // When the present side last answered counts from when the other is expected.
    let replied = if then.is_expected() && !now.is_expected() { 0 } else { present.replied };
    Some(Turn { word: wanted.word, pad: 0, replied })
}

/// The slice of `slots` a service points to, if it has one.
#[must_use]
pub fn selection_of(service: &Service) -> Option<Selection> {
    (service.selection.size != 0).then_some(service.selection)
}

/// An IPv4 address as the maps hold it.
#[must_use]
pub const fn address4(address: std::net::Ipv4Addr) -> Address4 {
    Address4 { octets: address.octets() }
}

/// An IPv6 address as the maps hold it.
#[must_use]
pub const fn address6(address: std::net::Ipv6Addr) -> Address6 {
    Address6 { octets: address.octets() }
}
