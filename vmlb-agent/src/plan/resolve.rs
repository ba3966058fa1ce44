//! From names to numbers: what is dirty among what is called for gets ids and slots and goes into the ledgers. What does
//! not fit costs itself and a warning that names the flag to raise.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use vmlb_common::abi::{self, EligibleKey, FrontendFlags, Gate, Role, Selection, Service, Target, TargetKey};

use super::names::{backend_name, service_name};
use super::{EMPTY, Installation, family_of};
use crate::desired::service::{Chosen, TableView};
use crate::desired::{Admission, Desired, Frontend, TableKey, TargetName, in_order};
use crate::facts::NodeFacts;
use crate::identity::Identity;
use crate::maglev::{self, Contender, Seed};
use crate::object::{Kind, Name, ObjectRef};
use crate::tables::Run;
use crate::warning::{Subject, Warning, Warnings};

/// The flag for the room that comes back by itself, when a packet cannot look at a retired slice any more.
const SLOTS: &str = "--slots";

impl Installation {
    /// Takes the dirty parts of `desired` into the ledgers and empties the dirty sets.
    pub fn resolve(&mut self, desired: &mut Desired, warnings: &mut Warnings, now: Instant) {
        self.slots.collect(now);
        desired.dirty.backends.extend(std::mem::take(&mut self.unplaced.backends));
        desired.dirty.backends.extend(std::mem::take(&mut self.unfinished));
        for identity in in_order(&mut desired.dirty.backends) {
            self.resolve_backend(desired, &identity, warnings);
        }
        desired.dirty.addresses.extend(std::mem::take(&mut self.unplaced.addresses));
        for address in in_order(&mut desired.dirty.addresses) {
            self.resolve_address(desired, address, warnings);
        }
        desired.dirty.targets.extend(std::mem::take(&mut self.unplaced.targets));
        for target in in_order(&mut desired.dirty.targets) {
            self.resolve_target(desired, &target, warnings);
        }
        let unplaced = std::mem::take(&mut self.unplaced.tables);
        desired.dirty.tables.extend(unplaced.into_keys());
        let dirty = in_order(&mut desired.dirty.tables);
        // Those that go make room for those that come, if only after their grace.
        let (stay, go): (Vec<_>, Vec<_>) = dirty.into_iter().partition(|key| desired.table(key).is_some());
        for key in go.iter().chain(&stay) {
            self.resolve_table(desired, key, warnings, now);
        }
        // Apart from the tables, whose slots take much memory until they are written: small pieces that stay would be all
        // over it.
        for key in &stay {
            self.resolve_tags(desired, key, warnings);
        }
        desired.dirty.frontends.extend(std::mem::take(&mut self.unplaced.frontends));
        for frontend in in_order(&mut desired.dirty.frontends) {
            self.resolve_frontend(desired, frontend, warnings);
        }
    }

    /// Takes in the addresses of the cluster's nodes.
    pub fn resolve_nodes(&mut self, nodes: &BTreeSet<IpAddr>) {
        for ledger in &mut self.nodes {
            let gone: Vec<IpAddr> = ledger
                .all_wanted()
                .map(|(address, ())| *address)
                .filter(|known| !nodes.contains(known))
                .collect();
            for address in gone {
                ledger.want(address, None);
            }
        }
        for address in nodes {
            let ledger = &mut self.nodes[family_of(*address)];
            if ledger.fits(address, self.capacity.nodes) {
                ledger.want(*address, Some(()));
            }
        }
    }

    /// Takes in the node's devices and SNAT ports.
    pub fn resolve_facts(&mut self, facts: &NodeFacts) {
        let gone: Vec<u32> = self
            .devices
            .all_wanted()
            .map(|(index, _)| *index)
            .filter(|index| !facts.devices.contains_key(index))
            .collect();
        for index in gone {
            self.devices.want(index, None);
        }
        let mut addresses = facts.held_addresses.clone();
        for (index, device) in &facts.devices {
            self.devices.want(*index, Some(*device));
            addresses.extend([IpAddr::from(device.snat_v4.octets), IpAddr::from(device.snat_v6.octets)]);
        }
        addresses.retain(|address| !address.is_unspecified());
        let ports = facts.snat_ports.iter().filter(|range| range.count() > 0);
        let ports: std::collections::BTreeSet<u16> =
            ports.flat_map(|range| range.first..=range.last).collect();
        for address in addresses.difference(&self.snat_addresses) {
            self.gates.want_address(Gate::SNAT_ADDRESSES, *address);
        }
        for address in self.snat_addresses.difference(&addresses) {
            self.gates.drop_address(Gate::SNAT_ADDRESSES, *address);
        }
        for port in ports.difference(&self.snat_ports) {
            self.gates.want_port(Gate::SNAT_PORTS, *port);
        }
        for port in self.snat_ports.difference(&ports) {
            self.gates.drop_port(Gate::SNAT_PORTS, *port);
        }
        (self.snat_addresses, self.snat_ports) = (addresses, ports);
    }

    fn resolve_backend(&mut self, desired: &mut Desired, identity: &Identity, warnings: &mut Warnings) {
        let subject = Subject::Capacity(Name::new("backend", identity.as_str()));
        let Some(view) = desired.backend(identity).cloned() else {
            warnings.set(subject, Vec::new());
            if let Some(id) = self.backend_ids.get(identity) {
                self.want_no_ends(id);
                self.lingering.backends.insert(identity.clone());
            }
            return;
        };
        let is_new = self.backend_ids.get(identity).is_none();
        let Some(id) = self.backend_ids.allocate(identity) else {
            self.unplaced.backends.insert(identity.clone());
            let object = ObjectRef::new(Kind::Pod, &view.namespace, &view.name);
            warnings.set(subject, vec![full(&object, "the backend gets no flows", "--backends")]);
            return;
        };
        warnings.set(subject, Vec::new());
        let was_lingering = self.lingering.backends.remove(identity);
        self.backend_names.want(id, Some(backend_name(identity, &view)));
        if !self.want_ends(id, identity, &view, is_new) {
            self.unfinished.insert(identity.clone());
        }
        // Their sides may be others now.
        desired.dirty.addresses.extend(view.claims.keys().copied());
        if is_new || was_lingering {
            desired.touch_users(identity);
        }
    }

    fn resolve_address(&mut self, desired: &Desired, address: IpAddr, warnings: &mut Warnings) {
        let claims = desired.address_claims(address);
        let winner = claims.iter().find_map(|(claim, identity)| Some((*claim, self.placed(identity)?)));
        let mut found = Vec::new();
        if let [(_, first), others @ ..] = &claims[..] {
            let name = |identity: &Identity| {
                desired.backend(identity).map(|view| format!("{}/{}", view.namespace, view.name))
            };
            for (_, other) in others {
                let (Some(first), Some(other)) = (name(first), name(other)) else {
                    continue;
                };
                let object = other.split_once('/').map_or(("", &*other), |parts| parts);
                let object = ObjectRef::new(Kind::Pod, object.0, object.1);
                let message =
                    format!("{address} also belongs to {first}, whose pod is newer and gets the replies");
                found.push(Warning::new(&object, "status.podIPs", message, "delete the one that is gone"));
            }
        }
        let map_is_full =
            winner.is_some() && !self.pods[family_of(address)].fits(&address, self.capacity.pods);
        if map_is_full {
            self.unplaced.addresses.insert(address);
            let object = ObjectRef::new(Kind::Pod, "", &address.to_string());
            found.push(full(&object, "replies from this address are not recognised", "--backends"));
        }
        warnings.set(Subject::Address(address), found);
        let winner = winner.filter(|_| !map_is_full);
        let pod = winner.map(|(_, backend)| abi::Pod { backend, side: self.side_with(backend, address) });
        self.pods[family_of(address)].want(address, pod);
        let is_local = winner.is_some_and(|(claim, _)| claim.is_local);
        if is_local && self.local_pods.insert(address) {
            self.gates.want_address(Gate::LOCAL_PODS, address);
        } else if !is_local && self.local_pods.remove(&address) {
            self.gates.drop_address(Gate::LOCAL_PODS, address);
        }
    }

    fn resolve_target(&mut self, desired: &Desired, target: &TargetName, warnings: &mut Warnings) {
        let (identity, port, protocol) = target;
        // Without an id there never was an entry.
        let Some(id) = self.backend_ids.get(identity) else { return };
        let key = TargetKey { backend: id, port: *port, protocol: protocol.number(), pad: 0 };
        let count = Some(desired.target_count(target)).filter(|count| *count > 0);
        let map_is_full = count.is_some() && !self.targets.fits(&key, self.capacity.targets);
        let mut found = Vec::new();
        if map_is_full {
            self.unplaced.targets.insert(target.clone());
            let object = ObjectRef::new(Kind::Pod, "", &format!("{identity}:{port}"));
            found.push(full(&object, "the target's UDP flows are not kept", "--backends"));
        }
        warnings.set(
            Subject::Capacity(Name::new("target", &format!("{identity}:{port}:{}", protocol.name()))),
            found,
        );
        let count = count.filter(|_| !map_is_full);
        match (self.targets.want(key, count), count) {
            (None, Some(_)) => self.lingering.open_target(key, &mut self.gates),
            (Some(_), None) => self.lingering.close_target(key),
            _ => {}
        }
    }

    fn resolve_table(
        &mut self,
        desired: &mut Desired,
        key: &TableKey,
        warnings: &mut Warnings,
        now: Instant,
    ) {
        let subject = table_subject(key);
        warnings.set(subject.clone(), Vec::new());
        let Some((port, table)) = desired.table(key) else {
            self.withdraw(key, now);
            desired.touch_frontends(&key.0);
            return;
        };
        let name = service_name(&key.0, &port.name);
        match self.place(key, table, now) {
            Ok(id) => self.service_names.want(id, Some(name)),
            Err(flag) => {
                self.unplaced.tables.insert(key.clone(), flag);
                let is_serving =
                    self.service_ids.get(key).is_some_and(|id| self.services.wanted(&id).is_some());
                // Room for slots comes back by itself; the old ranges would let in whom the new ones do not.
                let may_wait = flag == SLOTS && self.slots.is_waiting();
                if !(is_serving && may_wait) {
                    // Nothing will come free by waiting: a table that is out of date would go on sending flows to
                    // backends that are gone.
                    self.withdraw(key, now);
                    let object = ObjectRef { kind: Kind::Service, name: key.0.service.clone() };
                    let message = format!("port {} is left to the node's stack", key.0.port);
                    warnings.set(subject, vec![full(&object, &message, flag)]);
                }
            }
        }
        desired.touch_frontends(&key.0);
    }

    /// What tunnels from other nodes call the backends of a table that is served.
    fn resolve_tags(&mut self, desired: &Desired, key: &TableKey, warnings: &mut Warnings) {
        let Some((port, _)) = desired.table(key) else { return };
        let served = self.service_ids.get(key).filter(|id| self.services.wanted(id).is_some());
        let Some(id) = served.filter(|_| !self.unplaced.tables.contains_key(key)) else { return };
        let tags = self.tags_of(desired, id, port);
        if !self.tags.set(id, tags, self.capacity.tags) {
            let object = ObjectRef { kind: Kind::Service, name: key.0.service.clone() };
            let message = format!("port {} is not served to tunnels from other nodes", key.0.port);
            warnings.set(table_subject(key), vec![full(&object, &message, "--backends")]);
        }
    }

    /// Gives a table its id, its slice and what it knows of clients; else says the flag that makes room.
    fn place(&mut self, key: &TableKey, table: &TableView, now: Instant) -> Result<u32, &'static str> {
        let id = self.service_ids.allocate(key).ok_or("--services")?;
        if !self.clients.admit(id, &table.ranges, &self.capacity) {
            return Err("--frontends");
        }
        let selection = self.select(id, table, now).ok_or(SLOTS)?;
        let (flags, affinity) = (table.flags, table.affinity);
        self.services.want(id, Some(Service { selection, flags, affinity }));
        let targets = self.eligible(id, table);
        if self.clients.allow(id, targets, &self.capacity) { Ok(id) } else { Err("--backends") }
    }

    /// Whom clients of a service with affinity may stay with, and where datagrams may stay.
    fn eligible(&self, service: u32, table: &TableView) -> Vec<EligibleKey> {
        let key = |(backend, port), role| EligibleKey { service, backend, port, role };
        let new = if table.affinity == 0 { &[][..] } else { &table.choice[..] };
        let new = new.iter().filter_map(|chosen| Some((self.placed(&chosen.identity)?, chosen.port)));
        let open = table.serving.iter();
        let open = open.filter_map(|(identity, port)| Some((self.placed(identity)?, *port)));
        new.map(|target| key(target, Role::NEW)).chain(open.map(|target| key(target, Role::OPEN))).collect()
    }

    /// The id of a backend that is there.
    pub(super) fn placed(&self, identity: &Identity) -> Option<u32> {
        self.backend_ids.get(identity).filter(|_| !self.lingering.backends.contains(identity))
    }

    /// The slice that holds a table: the present one if it holds the same, else a new one.
    fn select(&mut self, id: u32, table: &TableView, now: Instant) -> Option<Selection> {
        let present = self.present_selection(id);
        let content = self.content(table);
        let digest = content_digest(&content);
        if present.size as usize == content.len() && self.digests.get(&id) == Some(&digest) {
            return Some(present);
        }
        if content.is_empty() {
            self.retire(id, now);
            return Some(EMPTY);
        }
        let selection = self.slots.allocate(content.len() as u32)?;
        self.retire(id, now);
        self.digests.insert(id, digest);
        self.fresh.put(selection.offset, content);
        Some(selection)
    }

    fn present_selection(&self, id: u32) -> Selection {
        let service = self.services.wanted(&id).or_else(|| self.services.installed(&id));
        service.map_or(EMPTY, |service| service.selection)
    }

    fn retire(&mut self, id: u32, now: Instant) {
        // Without a digest the selection is not known to be this service's own.
        if self.digests.remove(&id).is_some() {
            self.slots.retire(self.present_selection(id), now);
        }
    }

    fn withdraw(&mut self, key: &TableKey, now: Instant) {
        let Some(id) = self.service_ids.release(key) else { return };
        self.retire(id, now);
        self.clients.forget(id);
        self.tags.forget(id);
        self.services.want(id, None);
        self.service_names.want(id, None);
    }

    fn content(&self, table: &TableView) -> Run {
        let (targets, contenders) = self.contenders(table);
        Run::of_places(targets, &maglev::table(&contenders, table.size))
    }

    /// Those of a table's choice that have an id.
    fn contenders(&self, table: &TableView) -> (Vec<Target>, Vec<Contender>) {
        let choice = table.choice.iter().filter_map(|Chosen { identity, port, weight }| {
            let target = Target { backend: self.placed(identity)?, port: *port, pad: 0 };
            Some((target, Contender { seed: Seed::new(identity.as_str(), *port), weight: *weight }))
        });
        choice.unzip()
    }

    fn resolve_frontend(&mut self, desired: &Desired, frontend: Frontend, warnings: &mut Warnings) {
        let mut claims = desired.claims(&frontend);
        let winner = claims.next();
        let mut found = Vec::new();
        // Of node ports on other nodes the same is said where they are this node's.
        for loser in claims
            .filter(|_| !frontend.is_foreign())
            .filter(|claim| winner.is_some_and(|winner| winner.table.0 != claim.table.0))
        {
            let Some(winner) = winner else { continue };
            found.push(claimed_twice(frontend, &loser.table, &winner.table));
        }
        let winner_served = winner.filter(|claim| claim.served);
        let mut wanted = winner_served.and_then(|claim| {
            let service = self.service_ids.get(&claim.table)?;
            self.services.wanted(&service)?;
            let flags = if claim.admission == Admission::Ranges { FrontendFlags::RANGES } else { 0 };
            Some(abi::Frontend { service, flags })
        });
        let ledger = &mut self.frontends[family_of(frontend.address)];
        if wanted.is_some() && !ledger.fits(&frontend, self.capacity.frontends) {
            wanted = None;
            self.unplaced.frontends.insert(frontend);
            let service = winner.map(|claim| claim.table.0.service.clone()).unwrap_or_default();
            let object = ObjectRef { kind: Kind::Service, name: service };
            let message = format!("{}:{} is left to the node's stack", frontend.address, frontend.port);
            found.push(full(&object, &message, "--frontends"));
        }
        warnings.set(Subject::Frontend(frontend.address, frontend.port, frontend.protocol.number()), found);
        match (ledger.want(frontend, wanted), wanted) {
            // Tunnels do not pass by the gate.
            _ if frontend.is_foreign() => {}
            (None, Some(_)) => self.lingering.open_frontend(frontend, &mut self.gates),
            (Some(_), None) => self.lingering.close_frontend(frontend),
            _ => {}
        }
    }
}

/// What warnings about a table that does not fit are about.
fn table_subject(key: &TableKey) -> Subject {
    let (service, port) = (key.0.service.to_string(), &key.0);
    Subject::Capacity(Name::new(&service, &format!("{}/{}/{:?}", port.port, port.protocol.name(), key.1)))
}

/// What a slice holds, in 64 bits.
pub(super) fn content_digest(run: &Run) -> u64 {
    let targets = run.slots();
    // Eight octets at a time: the table of a large service has a million slots.
    let start = 0xcbf2_9ce4_8422_2325 ^ targets.len() as u64;
    targets.iter().fold(start, |hash, target| {
        let word = u64::from(target.backend) << 16 | u64::from(target.port);
        let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    })
}

fn full(object: &ObjectRef, cost: &str, flag: &str) -> Warning {
    Warning::new(object, "", format!("the maps are full: {cost}"), &format!("raise {flag}"))
}

fn claimed_twice(frontend: Frontend, loser: &TableKey, winner: &TableKey) -> Warning {
    let object = ObjectRef { kind: Kind::Service, name: loser.0.service.clone() };
    let message = format!(
        "{} port {} of port {} also belongs to the older Service {} (port {}), which keeps it",
        frontend.protocol.name(),
        frontend.port,
        loser.0.port,
        winner.0.service,
        winner.0.port
    );
    Warning::new(&object, "spec.ports", message, "give one of them another node port or address")
}
