//! What the objects call for, apart from ids and places: computed one Service at a time by pure functions ([`service`],
//! [`backend`]) and kept in sums ([`Desired`]) that remember which of them have changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use vmlb_common::wire::Protocol;

use crate::facts::NodeFacts;
use crate::few::Few;
use crate::identity::Identity;
use crate::index::Index;
use crate::object::Name;
use crate::serving::Serving;

pub mod backend;
pub mod choose;
pub mod frontends;
pub mod health;
pub mod service;

use backend::{AddressClaim, BackendView};
use health::HealthCheck;
use service::{Listing, ServiceView};

/// The node for which things are computed.
#[derive(Clone, Debug)]
pub struct Here {
    /// Its name.
    pub node: String,
    /// What is served and how.
    pub serving: Serving,
    /// What the network side knows of it.
    pub facts: NodeFacts,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Which of a port's selection tables: there is a second one only where IPv6 has other backends than IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// IPv4, and IPv6 where it has the same backends.
    First,
    /// IPv6 where it differs.
    Second,
}

/// What an entry of map `services` is made for.
pub type TableKey = (PortKey, Side);

/// A frontend of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address a client uses.
    pub address: IpAddr,
    /// Port a client uses.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// Whether it stands for a node port at the addresses of all other nodes: what their tunnels bring is looked up by
    /// it. No client addresses it.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.address.is_unspecified()
    }
}

/// A Service's wish for a frontend; the least wins, which is the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// When the Service was made.
    pub created: i64,
    /// The table that would serve it.
    pub table: TableKey,
    /// Whether the port is served at all; one that is left to the stack still keeps others off its frontends.
    pub served: bool,
    /// Who may open flows by it.
    pub admission: Admission,
}

/// Whom a frontend admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admission {
    /// Everybody.
    Open,
    /// Clients in the Service's source ranges.
    Ranges,
}

/// A backend and a port of it, whatever its id.
pub type TargetName = (Identity, u16, Protocol);

/// What has changed and must be compared with what is installed. At a start that is everything: sets that take one piece of
/// memory each, and leave no holes among what stays.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Selection tables.
    pub tables: HashSet<TableKey>,
    /// Frontends.
    pub frontends: HashSet<Frontend>,
    /// Backends.
    pub backends: HashSet<Identity>,
    /// Pod addresses.
    pub addresses: HashSet<IpAddr>,
    /// Targets.
    pub targets: HashSet<TargetName>,
}

/// Empties one of the sets of [`Dirty`]; in order, so that the same objects always get the same ids.
#[must_use]
pub fn in_order<T: Ord>(dirty: &mut HashSet<T>) -> Vec<T> {
    let mut all: Vec<T> = std::mem::take(dirty).into_iter().collect();
    all.sort_unstable();
    all
}

/// What all objects together call for.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    views: BTreeMap<Name, Box<ServiceView>>,
    claims: HashMap<Frontend, Few<Claim>>,
    /// Services whose slices list a backend.
    listings: HashMap<Identity, Few<Name>>,
    backends: HashMap<Identity, Box<BackendView>>,
    /// Backends that claim an address.
    addresses: HashMap<IpAddr, Few<Identity>>,
    /// Those that are not there but may be draining.
    held: HashSet<Identity>,
    health_changes: BTreeMap<Name, Option<HealthCheck>>,
    /// What has changed since it was last emptied.
    pub dirty: Dirty,
}

impl Desired {
    /// Computes a Service anew.
    pub fn refresh_service(&mut self, index: &Index, here: &Here, name: &Name) {
        let new = service::view(index, here, name);
        let old = self.views.remove(name).map(|view| *view);
        let none = ServiceView::default();
        self.shift_claims(old.as_ref().unwrap_or(&none), new.as_ref().unwrap_or(&none));
        self.shift_targets(old.as_ref().unwrap_or(&none), new.as_ref().unwrap_or(&none));
        self.shift_tables(old.as_ref().unwrap_or(&none), new.as_ref().unwrap_or(&none));
        let health = |view: &Option<ServiceView>| view.as_ref().and_then(|view| view.health);
        if health(&old) != health(&new) {
            self.health_changes.insert(name.clone(), health(&new));
        }
        let stale = self.shift_listings(name, old.as_ref(), new.as_ref());
        if let Some(new) = new {
            self.views.insert(name.clone(), Box::new(new));
        }
        for identity in stale {
            self.refresh_backend(index, here, &identity);
        }
    }

    /// Computes a backend anew, if it is or was one of ours.
    pub fn refresh_backend(&mut self, index: &Index, here: &Here, identity: &Identity) {
        let services = self.listings.get(identity).into_iter().flat_map(Few::keys);
        let of_service = |name| self.views.get(name)?.listings.get(identity);
        let listings: Vec<&Listing> = services.filter_map(of_service).flat_map(Few::keys).collect();
        // A backend that no slice lists any more drains for as long as its pod lives.
        let is_held =
            !listings.is_empty() || self.backends.contains_key(identity) || self.held.contains(identity);
        let new = if is_held { backend::view(index, here, identity, &listings).map(Box::new) } else { None };
        let old = self.backends.remove(identity);
        self.held.remove(identity);
        if old == new {
            if let Some(new) = new {
                self.backends.insert(identity.clone(), new);
            }
            return;
        }
        self.dirty.backends.insert(identity.clone());
        let is_here = |view: &Option<Box<BackendView>>| view.as_ref().is_some_and(|view| view.is_here());
        if is_here(&old) != is_here(&new) {
            // What tunnels call it is known where it is.
            self.touch_tables(identity);
        }
        for address in old.iter().flat_map(|view| view.claims.keys()) {
            if let Some(claimants) = self.addresses.get_mut(address) {
                claimants.remove(identity);
                if claimants.is_empty() {
                    self.addresses.remove(address);
                }
            }
            self.dirty.addresses.insert(*address);
        }
        for address in new.iter().flat_map(|view| view.claims.keys()) {
            self.addresses.entry(*address).or_default().insert(identity.clone(), ());
            self.dirty.addresses.insert(*address);
        }
        if let Some(new) = new {
            self.backends.insert(identity.clone(), new);
        }
    }

    /// What balancers outside are to be told from now on, as far as it has changed since the last call; `None`: nothing
    /// any more.
    pub fn take_health_changes(&mut self) -> Vec<(Name, Option<HealthCheck>)> {
        std::mem::take(&mut self.health_changes).into_iter().collect()
    }

    /// Takes over a backend that an earlier agent has installed: it may be draining.
    pub fn hold(&mut self, identity: &Identity) {
        self.held.insert(identity.clone());
    }

    /// Everything is to be compared with what is installed.
    pub fn touch_all(&mut self) {
        let tables = self.views.values().flat_map(|view| view.tables().map(|(key, _)| key));
        self.dirty.tables.extend(tables);
        self.dirty.frontends.extend(self.claims.keys().copied());
        self.dirty.backends.extend(self.backends.keys().cloned());
        self.dirty.addresses.extend(self.addresses.keys().copied());
        let ports = self.views.values().flat_map(|view| &view.ports);
        self.dirty.targets.extend(ports.flat_map(service::PortView::target_names));
    }

    /// The tables in which a backend takes part.
    fn touch_tables(&mut self, identity: &Identity) {
        for service in self.listings.get(identity).into_iter().flat_map(Few::keys) {
            let Some(view) = self.views.get(service) else { continue };
            self.dirty.tables.extend(view.tables().map(|(key, _)| key));
        }
    }

    /// Whether a backend takes new flows of any Service.
    #[must_use]
    pub fn is_chosen(&self, identity: &Identity) -> bool {
        let services = self.listings.get(identity).into_iter().flat_map(Few::keys);
        let mut tables = services.filter_map(|name| self.views.get(name)).flat_map(|view| view.tables());
        tables.any(|(_, table)| table.choice.iter().any(|chosen| chosen.identity == *identity))
    }

    /// Backends on these nodes.
    #[must_use]
    pub fn backends_on(&self, nodes: &BTreeSet<std::sync::Arc<str>>) -> Vec<Identity> {
        let is_on = |view: &BackendView| {
            view.ends().any(|end| end.node.as_ref().is_some_and(|node| nodes.contains(node)))
        };
        self.backends.iter().filter(|(_, view)| is_on(view)).map(|(identity, _)| identity.clone()).collect()
    }

    /// A backend has got its id, or lost it: what names it is to be looked at again.
    pub fn touch_users(&mut self, identity: &Identity) {
        let services: Vec<Name> =
            self.listings.get(identity).into_iter().flat_map(Few::keys).cloned().collect();
        for service in services {
            let Some(view) = self.views.get(&service) else { continue };
            for port in &view.ports {
                self.dirty.tables.extend(port.tables().map(|(key, _)| key));
                let of_backend = port.target_names().filter(|(backend, ..)| backend == identity);
                self.dirty.targets.extend(of_backend);
            }
        }
        if let Some(view) = self.backends.get(identity) {
            self.dirty.addresses.extend(view.claims.keys().copied());
        }
    }

    /// A table has got its id, or lost it: its frontends are to be looked at again.
    pub fn touch_frontends(&mut self, key: &PortKey) {
        if let Some(port) = self.port(key) {
            let frontends: Vec<Frontend> = port.frontends.iter().map(|way| way.frontend).collect();
            self.dirty.frontends.extend(frontends);
        }
    }

    /// Every Service that is of interest, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &ServiceView)> {
        self.views.iter().map(|(name, view)| (name, &**view))
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<&ServiceView> {
        self.views.get(name).map(|view| &**view)
    }

    /// A port.
    #[must_use]
    pub fn port(&self, key: &PortKey) -> Option<&service::PortView> {
        self.views.get(&key.service)?.ports.iter().find(|port| port.key == *key)
    }

    /// A selection table, if its port is served.
    #[must_use]
    pub fn table(&self, key: &TableKey) -> Option<(&service::PortView, &service::TableView)> {
        let port = self.port(&key.0)?;
        port.table(key.1).map(|table| (port, table))
    }

    /// The claims on a frontend, the winner first.
    pub fn claims(&self, frontend: &Frontend) -> impl Iterator<Item = &Claim> {
        self.claims.get(frontend).into_iter().flat_map(Few::keys)
    }

    /// A backend.
    #[must_use]
    pub fn backend(&self, identity: &Identity) -> Option<&BackendView> {
        self.backends.get(identity).map(|view| &**view)
    }

    /// All backends, in no order.
    pub fn backends(&self) -> impl Iterator<Item = (&Identity, &BackendView)> {
        self.backends.iter().map(|(identity, view)| (identity, &**view))
    }

    /// The claims on a pod address and whose they are, the winner first.
    #[must_use]
    pub fn address_claims(&self, address: IpAddr) -> Vec<(&AddressClaim, &Identity)> {
        let claimants = self.addresses.get(&address).into_iter().flat_map(Few::keys);
        let claim = |identity| Some((self.backend(identity)?.claims.get(&address)?, identity));
        let mut claims: Vec<_> = claimants.filter_map(claim).collect();
        claims.sort_unstable_by_key(|(claim, identity)| (claim.is_former, claim.created, *identity));
        claims
    }

    /// How many service ports a target serves.
    #[must_use]
    pub fn target_count(&self, (identity, number, protocol): &TargetName) -> u32 {
        let target = (identity.clone(), *number);
        let services = self.listings.get(identity).into_iter().flat_map(Few::keys);
        let ports = services.filter_map(|name| self.views.get(name)).flat_map(|view| &view.ports);
        let serves =
            |port: &&service::PortView| port.key.protocol == *protocol && port.targets.get(&target).is_some();
        u32::try_from(ports.filter(serves).count()).unwrap_or(u32::MAX)
    }

    fn shift_claims(&mut self, old: &ServiceView, new: &ServiceView) {
        let (old, new) = (old.claims(), new.claims());
        for (frontend, claim) in old.difference(&new) {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.remove(claim);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
            self.dirty.frontends.insert(*frontend);
        }
        for (frontend, claim) in new.difference(&old) {
            self.claims.entry(*frontend).or_default().insert(claim.clone(), ());
            self.dirty.frontends.insert(*frontend);
        }
    }

    fn shift_targets(&mut self, old: &ServiceView, new: &ServiceView) {
        // A port that stays adds and takes one: only what really differs becomes dirty.
        let mut differences: HashMap<TargetName, i64> = HashMap::new();
        for (view, by) in [(old, -1), (new, 1)] {
            for target in view.ports.iter().flat_map(service::PortView::target_names) {
                *differences.entry(target).or_insert(0) += by;
            }
        }
        let differing = differences.into_iter().filter(|(_, by)| *by != 0);
        self.dirty.targets.extend(differing.map(|(target, _)| target));
    }

    fn shift_tables(&mut self, old: &ServiceView, new: &ServiceView) {
        let (old, new) = (tables_of(old), tables_of(new));
        let keys = old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key));
        self.dirty.tables.extend(keys.cloned());
    }

    fn shift_listings(
        &mut self,
        name: &Name,
        old: Option<&ServiceView>,
        new: Option<&ServiceView>,
    ) -> Vec<Identity> {
        let none = Few::default();
        let old = old.map_or(&none, |view| &view.listings);
        let new = new.map_or(&none, |view| &view.listings);
        let mut stale = Vec::new();
        for identity in old.keys().chain(new.keys().filter(|identity| old.get(identity).is_none())) {
            if old.get(identity) == new.get(identity) {
                continue;
            }
            stale.push(identity.clone());
            let by_service = self.listings.entry(identity.clone()).or_default();
            match new.get(identity) {
                Some(_) => by_service.insert(name.clone(), ()),
                None => by_service.remove(name),
            };
            if by_service.is_empty() {
                self.listings.remove(identity);
            }
        }
        stale
    }
}

/// Who answers for a port.
type Targets = Few<(Identity, u16)>;

/// The tables of a Service, and who answers for them.
fn tables_of(view: &ServiceView) -> BTreeMap<TableKey, (&service::TableView, &Targets)> {
    let of_port = |port| {
        let tables = service::PortView::tables(port);
        tables.map(move |(key, table)| (key, (table, &port.targets)))
    };
    view.ports.iter().flat_map(of_port).collect()
}
