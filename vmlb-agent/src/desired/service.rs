//! One Service: its ports, their frontends and selection tables, and the endpoints it lists. A pure function of the index
//! and the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use vmlb_common::abi::ServiceFlags;
use vmlb_common::wire::Protocol;

use super::choose::{Offer, choose};
use super::frontends::{self, frontends, has_idle_external_ips};
use super::health::{HealthCheck, health_check};
use super::{Admission, Claim, Frontend, Here, PortKey, Side, TableKey, TargetName};
use crate::facts::Cidr;
use crate::few::Few;
use crate::identity::Identity;
use crate::index::Index;
use crate::index::service::{Algorithm, Families, Forwarding, Left, Policy, Service, ServicePort};
use crate::index::slice::{Endpoint, Family};
use crate::maglev;
use crate::object::{Kind, Name, ObjectRef};
use crate::warning::Warning;

/// What a Service calls for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    created: i64,
    /// Its ports, in the order of the Service.
    pub ports: Vec<PortView>,
    /// Every backend its slices list, in any condition.
    pub listings: Few<Identity, Few<Listing>>,
    /// What balancers outside are told of it.
    pub health: Option<HealthCheck>,
    /// What is odd about it together with its slices.
    pub warnings: Vec<Warning>,
}

/// An endpoint as a backend's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listing {
    /// The address.
    pub address: IpAddr,
    /// The name of its pod, if the slice gives one.
    pub pod: Option<Arc<str>>,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// The slice's namespace, and its pod's.
    pub namespace: Arc<str>,
}

impl Listing {
    /// The pod.
    #[must_use]
    pub fn pod(&self) -> Option<Name> {
        Some(Name { namespace: self.namespace.clone(), name: self.pod.clone()? })
    }

    /// Whether it is that pod.
    #[must_use]
    pub fn is(&self, pod: &Name) -> bool {
        self.pod.as_ref() == Some(&pod.name) && self.namespace == pod.namespace
    }
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Which port.
    pub key: PortKey,
    /// Its name, empty for the only one.
    pub name: Arc<str>,
    /// Why it is left to the node's stack.
    pub left: Option<Left>,
    /// Its frontends, sorted.
    pub frontends: Vec<Way>,
    /// Backends and ports that answer for it, sorted: those that new flows may be given to, and those that finish what
    /// they have.
    pub targets: Few<(Identity, u16)>,
    first: Option<TableView>,
    /// Seldom there.
    second: Option<Box<TableView>>,
}

/// One selection table, before ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableView {
    /// Whom new flows are given to, sorted: the order that Maglev needs.
    pub choice: Vec<Chosen>,
    /// Slots.
    pub size: u32,
    /// [`ServiceFlags`].
    pub flags: u32,
    /// For how many seconds a client stays with a backend; 0: it does not.
    pub affinity: u32,
    /// Of UDP: where flows that are open may stay, sorted.
    pub serving: Vec<(Identity, u16)>,
    /// Whom frontends admit that do not admit everybody.
    pub ranges: Vec<Cidr>,
}

/// A way to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// What clients address.
    pub frontend: Frontend,
    /// The table that serves it.
    pub side: Side,
    /// Whom it admits.
    pub admission: Admission,
}

/// A backend and the port by which it takes part in a selection table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// The backend.
    pub identity: Identity,
    /// Its port.
    pub port: u16,
    /// Its weight, not 0.
    pub weight: u32,
}

impl ServiceView {
    /// Its tables.
    pub fn tables(&self) -> impl Iterator<Item = (TableKey, &TableView)> {
        self.ports.iter().flat_map(PortView::tables)
    }

    /// Its claims on frontends.
    #[must_use]
    pub fn claims(&self) -> BTreeSet<(Frontend, Claim)> {
        let ways = self.ports.iter().flat_map(|port| port.frontends.iter().map(move |way| (port, way)));
        let claim = |(port, way): (&PortView, &Way)| {
            let (table, served) = ((port.key.clone(), way.side), port.left.is_none());
            (way.frontend, Claim { created: self.created, table, served, admission: way.admission })
        };
        ways.map(claim).collect()
    }
}

impl PortView {
    /// Its tables; none if it is not served.
    pub fn tables(&self) -> impl Iterator<Item = (TableKey, &TableView)> {
        let sides = [Side::First, Side::Second].into_iter();
        sides.filter_map(|side| Some(((self.key.clone(), side), self.table(side)?)))
    }

    /// Its targets, with the protocol.
    pub fn target_names(&self) -> impl Iterator<Item = TargetName> {
        self.targets.keys().map(|(backend, number)| (backend.clone(), *number, self.key.protocol))
    }

    /// One of its tables.
    #[must_use]
    pub fn table(&self, side: Side) -> Option<&TableView> {
        match side {
            Side::First => self.first.as_ref(),
            Side::Second => self.second.as_deref(),
        }
    }
}

impl PortView {
    /// Gives each table the ranges that its frontends ask for.
    fn restrict(&mut self, ranges: &[Cidr]) {
        let restricted = self.frontends.iter().filter(|way| way.admission == Admission::Ranges);
        let asked: BTreeSet<(Side, Family)> =
            restricted.map(|way| (way.side, Family::of(way.frontend.address))).collect();
        let (first, second) = (self.first.as_mut(), self.second.as_deref_mut());
        for (side, table) in [(Side::First, first), (Side::Second, second)] {
            let Some(table) = table else { continue };
            let of_side = ranges.iter().filter(|range| asked.contains(&(side, Family::of(range.address()))));
            table.ranges = of_side.copied().collect();
        }
    }
}

/// Computes a Service. `None`: there is no such Service, or none that is ours.
#[must_use]
pub fn view(index: &Index, here: &Here, name: &Name) -> Option<ServiceView> {
    let service = index.service(name)?;
    let mut view = ServiceView { created: service.created, ..ServiceView::default() };
    let families = service.families.unwrap_or_else(|| families_of_slices(index, name));
    view.ports.reserve_exact(service.ports.len());
    for port in &service.ports {
        view.ports.push(port_view(index, here, service, families, port));
    }
    // Where backends are has to be known for as long as that is what stands in the way.
    let is_placed = |left: &Option<Left>| matches!(left, None | Some(Left::Device(..)));
    if view.ports.iter().any(|port| is_placed(&port.left)) {
        view.listings = listings(index, name);
        view.health = health_check(index, here, service, families);
        view.warnings = warnings(index, service, families, &view.ports);
    }
    if service.left.is_none() {
        view.warnings.extend(frontends::warnings(here, service));
        view.warnings.extend(no_tunnel(here, service));
    }
    Some(view)
}

fn listings(index: &Index, service: &Name) -> Few<Identity, Few<Listing>> {
    let endpoints = index.slices(service).flat_map(|slice| &slice.endpoints);
    let listing = |endpoint: &Endpoint| {
        let listing = Listing {
            address: endpoint.address,
            pod: endpoint.pod.as_ref().map(|pod| pod.name.name.clone()),
            node: endpoint.node.clone(),
            namespace: service.namespace.clone(),
        };
        Some((index.identify(endpoint)?, listing))
    };
    let mut found: Vec<(Identity, Listing)> = endpoints.filter_map(listing).collect();
    found.sort_unstable();
    let of_backend = |same: &[(Identity, Listing)]| {
        let listings = same.iter().map(|(_, listing)| listing.clone()).collect();
        same.first().map(|(identity, _)| (identity.clone(), listings))
    };
    found.chunk_by(|one, next| one.0 == next.0).filter_map(of_backend).collect()
}

/// A manifest written by hand seldom says which families a Service has; its slices do.
fn families_of_slices(index: &Index, name: &Name) -> Families {
    let mut families = Families::default();
    for slice in index.slices(name) {
        match slice.family {
            Family::V4 => families.v4 = true,
            Family::V6 => families.v6 = true,
        }
    }
    if families == Families::default() { Families { v4: true, v6: true } } else { families }
}

fn port_view(
    index: &Index,
    here: &Here,
    service: &Service,
    families: Families,
    port: &ServicePort,
) -> PortView {
    let served = matches!(port.protocol, Protocol::TCP | Protocol::UDP);
    let key = PortKey { service: service.name.clone(), port: port.port, protocol: port.protocol };
    let frontends = frontends(here, index, service, families, port);
    let left = service.left.clone().or((!served).then_some(Left::Protocol(port.protocol)));
    let left =
        left.or((frontends.is_empty() && has_idle_external_ips(here, service)).then_some(Left::ExternalIps));
    let left = left.or_else(|| out_of_reach(index, here, service, port));
    let mut view = PortView {
        key,
        name: port.name.clone(),
        left,
        frontends: Vec::new(),
        targets: Few::default(),
        first: None,
        second: None,
    };
    let has = |v6: bool| frontends.keys().any(|frontend| frontend.address.is_ipv6() == v6);
    let (has_v4, has_v6) = (has(false), has(true));
    let mut split = false;
    if view.left.is_none() {
        let mut targets = BTreeSet::new();
        let v4 = has_v4.then(|| selection(index, here, service, port, Family::V4, &mut targets));
        let v6 = has_v6.then(|| selection(index, here, service, port, Family::V6, &mut targets));
        view.targets = targets.into_iter().collect();
        // Affinity is remembered by a table's id: it must not change because the slices of one family come first.
        split = v4.is_some() && v6.is_some() && (v4 != v6 || service.affinity != 0);
        (view.first, view.second) = if split { (v4, v6.map(Box::new)) } else { (v4.or(v6), None) };
    }
    let side =
        |frontend: &Frontend| if split && frontend.address.is_ipv6() { Side::Second } else { Side::First };
    let ways = frontends.into_iter();
    view.frontends =
        ways.map(|(frontend, admission)| Way { frontend, side: side(&frontend), admission }).collect();
    view.restrict(&service.ranges);
    view
}

/// Why backends cannot be reached, as far as the network side knows. What goes by the tunnel takes the way to their node.
fn out_of_reach(index: &Index, here: &Here, service: &Service, port: &ServicePort) -> Option<Left> {
    let facts = &here.facts;
    if facts.is_ovn {
        return Some(Left::Ovn);
    }
    let by_tunnel = is_dsr(service, here) && here.serving.has_tunnel;
    if facts.unreached.is_empty() || by_tunnel || service.policy == Policy::Local {
        return None;
    }
    let both = [Family::V4, Family::V6].into_iter();
    let mut found = both.flat_map(|family| endpoints(index, &service.name, port, family));
    found.find_map(|candidate| {
        let address = candidate.endpoint.address;
        facts.unreached.get(&address).map(|device| Left::Device(address, device.clone()))
    })
}

/// The table of one family; `targets` gets whoever answers for the port.
fn selection(
    index: &Index,
    here: &Here,
    service: &Service,
    port: &ServicePort,
    family: Family,
    targets: &mut BTreeSet<(Identity, u16)>,
) -> TableView {
    let found = endpoints(index, &service.name, port, family);
    let zone = index.node(&here.node).and_then(|node| node.zone.as_deref());
    let offers = found.iter().map(|Candidate { endpoint, weight, .. }| Offer { endpoint, weight: *weight });
    let choice = choose(&offers.collect::<Vec<_>>(), &here.node, zone);
    let target = |candidate: &Candidate| (candidate.identity.clone(), candidate.port);
    let serves = |candidate: &&Candidate| candidate.endpoint.serving || candidate.endpoint.ready;
    let serving: BTreeSet<(Identity, u16)> = found.iter().filter(serves).map(target).collect();
    targets.extend(serving.iter().cloned());
    let mut flags = 0;
    if service.algorithm.unwrap_or(here.serving.algorithm) == Algorithm::Random {
        flags |= ServiceFlags::RANDOM;
    }
    if is_dsr(service, here) && here.serving.has_tunnel {
        flags |= ServiceFlags::DSR;
    }
    let is_local = service.policy == Policy::Local;
    if is_local {
        flags |= ServiceFlags::LOCAL;
        if !choice.cluster.is_empty() {
            flags |= ServiceFlags::DROP_IF_EMPTY;
        }
    }
    let places = if is_local { choice.local } else { choice.cluster };
    let chosen: BTreeSet<Chosen> = places.into_iter().map(|place| found[place].chosen()).collect();
    let counts = |endpoint: &Endpoint| !is_local || endpoint.node.as_deref() == Some(&*here.node);
    let listed = found.iter().filter(|candidate| counts(&candidate.endpoint)).map(Candidate::chosen);
    let listed: BTreeSet<Chosen> = listed.collect();
    let weights: Vec<u32> = listed.iter().map(|chosen| chosen.weight).collect();
    let size = if chosen.is_empty() { 0 } else { maglev::weighted_size(&weights) };
    TableView {
        choice: chosen.into_iter().collect(),
        size,
        flags,
        affinity: service.affinity,
        serving: if port.protocol == Protocol::UDP { serving.into_iter().collect() } else { Vec::new() },
        ranges: Vec::new(),
    }
}

struct Candidate {
    identity: Identity,
    port: u16,
    endpoint: Endpoint,
    weight: u32,
}

impl Candidate {
    fn chosen(&self) -> Chosen {
        Chosen { identity: self.identity.clone(), port: self.port, weight: self.weight }
    }
}

/// The endpoints of a port in one family, all slices merged; one that stands in several counts once, at its best.
fn endpoints(index: &Index, service: &Name, port: &ServicePort, family: Family) -> Vec<Candidate> {
    let mut merged: BTreeMap<(IpAddr, u16, Identity), Endpoint> = BTreeMap::new();
    for slice in index.slices(service).filter(|slice| slice.family == family) {
        let wanted =
            slice.ports.iter().find(|found| found.name == port.name && found.protocol == port.protocol);
        let Some(number) = wanted.map(|found| found.port) else { continue };
        for endpoint in &slice.endpoints {
            let Some(identity) = index.identify(endpoint) else { continue };
            let endpoint = index.relocate(&identity, endpoint);
            let key = (endpoint.address, number, identity);
            let Some(twin) = merged.get_mut(&key) else {
                merged.insert(key, endpoint.into_owned());
                continue;
            };
            if is_better(&endpoint, twin) {
                *twin = endpoint.into_owned();
            }
        }
    }
    let candidates = merged.into_iter();
    let candidate = |((_, port, identity), endpoint)| {
        let weight = index.weight(&identity);
        Candidate { identity, port, endpoint, weight }
    };
    candidates.map(candidate).collect()
}

/// Of two entries for the same endpoint the better one counts; the rest of the comparison makes the choice the same
/// whatever the slices are called.
fn is_better(one: &Endpoint, other: &Endpoint) -> bool {
    let conditions = |endpoint: &Endpoint| [endpoint.ready, endpoint.serving, !endpoint.terminating];
    (conditions(one), &one.node, &one.hints) > (conditions(other), &other.node, &other.hints)
}

/// Whether VMs on other nodes are to see the client itself.
fn is_dsr(service: &Service, here: &Here) -> bool {
    service.forwarding.unwrap_or(here.serving.forwarding) == Forwarding::Dsr
}

fn no_tunnel(here: &Here, service: &Service) -> Option<Warning> {
    if !is_dsr(service, here) || here.serving.has_tunnel {
        return None;
    }
    let object = ObjectRef { kind: Kind::Service, name: service.name.clone() };
    let message = "dsr needs a tunnel between the nodes; snat is used".to_owned();
    let remedy = "give the agents --tunnel ip or udp";
    Some(Warning::new(&object, "metadata.annotations[vmlb.io/forwarding]", message, remedy))
}

fn warnings(index: &Index, service: &Service, families: Families, views: &[PortView]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let slices: Vec<_> = index.slices(&service.name).filter(|slice| !slice.endpoints.is_empty()).collect();
    for slice in &slices {
        let is_wanted = match slice.family {
            Family::V4 => families.v4,
            Family::V6 => families.v6,
        };
        if !is_wanted {
            let object = ObjectRef { kind: Kind::EndpointSlice, name: slice.name.clone() };
            let message =
                format!("is of a family that Service {} does not have; the slice is ignored", service.name);
            warnings.push(Warning::new(
                &object,
                "addressType",
                message,
                "add the family to the Service's spec.ipFamilies",
            ));
        }
    }
    let ports = service.ports.iter().zip(views).enumerate();
    for (place, (port, _)) in ports.filter(|(_, (_, view))| view.left.is_none()) {
        let mut found = slices.iter().flat_map(|slice| &slice.ports);
        if !slices.is_empty()
            && !found.any(|other| other.name == port.name && other.protocol == port.protocol)
        {
            let object = ObjectRef { kind: Kind::Service, name: service.name.clone() };
            let message = format!(
                "port {:?} ({}) is in none of the Service's EndpointSlices, so it has no backends",
                &*port.name,
                port.protocol.name()
            );
            let remedy = "give the port the same name and protocol in both";
            warnings.push(Warning::new(&object, &format!("spec.ports[{place}].name"), message, remedy));
        }
    }
    warnings
}
