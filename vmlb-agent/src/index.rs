//! The index: every object the control plane knows, and who depends on whom. Pure, one owner, no Kubernetes types; it
//! remembers what a change touches, so that the rest need not be looked at again.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::few::Few;
use crate::identity::Identity;
use crate::object::{Kind, Name, ObjectRef};

pub mod pod;
pub mod service;
pub mod slice;
pub mod vm;

use pod::{Hosts, Node, Pod, WEIGHT};
use service::Service;
use slice::{Endpoint, Slice};
use vm::{Job, Vmi};

/// An object that has been decoded and found sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    Slice(Slice),
    /// A Pod.
    Pod(Pod),
    /// A Node.
    Node(Node),
    /// A VirtualMachineInstance.
    Vmi(Vmi),
    /// A VirtualMachineInstanceMigration.
    Job(Job),
}

/// What has to be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services by name; those that are gone included.
    pub services: BTreeSet<Name>,
    /// Backends by identity.
    pub backends: BTreeSet<Identity>,
    /// Whether a Node object has changed.
    pub nodes: bool,
    /// The nodes whose addresses have changed.
    pub hosts: BTreeSet<Arc<str>>,
    /// Whether KubeVirt's own objects have.
    pub vms: bool,
}

/// Where a VM with several pods is, and what its other pod is to it: [`crate::migration`] says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The pod it is in.
    pub present: Name,
    /// The pod beside it that counts.
    pub other: Option<(Name, Other)>,
    /// Whether it counts as ready although readiness gates hide it.
    pub is_held: bool,
}

/// What a VM's other pod is to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Other {
    /// Where it may show itself at any moment.
    Expected,
    /// Where it was, or where it may come to be: what it sends from there is still its own.
    Known,
}

/// How an endpoint finds its pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reference {
    Pod(Name),
    Address(IpAddr),
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Index {
    services: HashMap<Name, Box<Service>>,
    slices: HashMap<Name, Few<Name, Box<Slice>>>,
    slice_owners: HashMap<Name, Name>,
    pods: HashMap<Name, Pod>,
    pods_by_identity: HashMap<Identity, BTreeSet<Name>>,
    pods_by_address: HashMap<IpAddr, BTreeSet<Name>>,
    references: HashMap<Reference, Few<Name, usize>>,
    nodes: HashMap<Name, Node>,
    vmis: HashMap<Name, Vmi>,
    vmi_names: HashMap<Identity, Name>,
    jobs: HashMap<Name, Job>,
    placements: HashMap<Identity, Placement>,
    /// Names of nodes, which thousands of endpoints share.
    node_names: HashSet<Arc<str>>,
    relisted: HashMap<Kind, HashSet<Name>>,
    touched: Touched,
}

impl Index {
    /// Takes in an object, new or changed, and tells whether it is other than what was known; an equal one touches
    /// nothing.
    pub fn apply(&mut self, entry: Entry) -> bool {
        match entry {
            Entry::Service(service) => {
                self.keep(Kind::Service, &service.name);
                self.set_service(service.name.clone(), Some(service))
            }
            Entry::Slice(mut slice) => {
                self.keep(Kind::EndpointSlice, &slice.name);
                self.share_node_names(&mut slice);
                self.set_slice(&slice.name.clone(), Some(slice))
            }
            Entry::Pod(pod) => {
                self.keep(Kind::Pod, &pod.name);
                self.set_pod(pod.name.clone(), Some(pod))
            }
            Entry::Node(node) => {
                let name = Name { namespace: "".into(), name: node.name.clone() };
                self.keep(Kind::Node, &name);
                self.set_node(name, Some(node))
            }
            Entry::Vmi(vmi) => {
                self.keep(Kind::Vmi, &vmi.name);
                self.set_vmi(&vmi.name.clone(), Some(vmi))
            }
            Entry::Job(job) => {
                self.keep(Kind::Migration, &job.name);
                self.set_job(&job.name.clone(), Some(job))
            }
        }
    }

    /// Forgets an object; one that is not known touches nothing.
    pub fn delete(&mut self, object: &ObjectRef) {
        match object.kind {
            Kind::Service => self.set_service(object.name.clone(), None),
            Kind::EndpointSlice => self.set_slice(&object.name, None),
            Kind::Pod => self.set_pod(object.name.clone(), None),
            Kind::Node => self.set_node(object.name.clone(), None),
            Kind::Vmi => self.set_vmi(&object.name, None),
            Kind::Migration => self.set_job(&object.name, None),
        };
    }

    /// A listing of `kind` begins.
    pub fn reset(&mut self, kind: Kind) {
        self.relisted.insert(kind, HashSet::new());
    }

    /// Says that an object is still there, whether or not its new form could be used.
    pub fn keep(&mut self, kind: Kind, name: &Name) {
        if let Some(seen) = self.relisted.get_mut(&kind) {
            seen.insert(name.clone());
        }
    }

    /// The listing of `kind` is complete: what it did not hold is gone. Returns what was forgotten.
    pub fn listed(&mut self, kind: Kind) -> Vec<ObjectRef> {
        let Some(seen) = self.relisted.remove(&kind) else { return Vec::new() };
        let known: Vec<&Name> = match kind {
            Kind::Service => self.services.keys().collect(),
            Kind::EndpointSlice => self.slice_owners.keys().collect(),
            Kind::Pod => self.pods.keys().collect(),
            Kind::Node => self.nodes.keys().collect(),
            Kind::Vmi => self.vmis.keys().collect(),
            Kind::Migration => self.jobs.keys().collect(),
        };
        let gone = known.into_iter().filter(|name| !seen.contains(*name));
        let gone: Vec<ObjectRef> = gone.map(|name| ObjectRef { kind, name: name.clone() }).collect();
        for object in &gone {
            self.delete(object);
        }
        self.node_names.retain(|name| Arc::strong_count(name) > 1);
        gone
    }

    /// What has been touched since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Whether anything has been touched since the last [`Self::take_touched`].
    #[must_use]
    pub fn is_touched(&self) -> bool {
        self.touched != Touched::default()
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name).map(|service| &**service)
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// A Service's slices, sorted by name.
    pub fn slices(&self, service: &Name) -> impl Iterator<Item = &Slice> {
        self.slices.get(service).into_iter().flat_map(Few::values).map(|slice| &**slice)
    }

    /// A Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&Name::new("", name))
    }

    /// All Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Where a node is reached.
    #[must_use]
    pub fn hosts(&self, node: Option<&str>) -> Hosts {
        let node = node.and_then(|node| self.node(node));
        node.map_or(Hosts::default(), |node| Hosts::of(node.addresses.iter().copied()))
    }

    /// What KubeVirt says of a VM.
    #[must_use]
    pub fn vmi(&self, identity: &Identity) -> Option<&Vmi> {
        self.vmis.get(self.vmi_names.get(identity)?)
    }

    /// Whether a migration (by its UID) has failed.
    #[must_use]
    pub fn has_failed(&self, job: &str) -> bool {
        self.jobs.values().any(|known| &*known.uid == job && known.failed)
    }

    /// Says where a VM with several pods is; `None`: it has one at most.
    pub fn place(&mut self, identity: &Identity, placement: Option<Placement>) {
        if self.placements.get(identity) == placement.as_ref() {
            return;
        }
        match placement {
            Some(placement) => self.placements.insert(identity.clone(), placement),
            None => self.placements.remove(identity),
        };
        self.touch_backend(identity);
    }

    /// Where a VM with several pods is.
    #[must_use]
    pub fn placement(&self, identity: &Identity) -> Option<&Placement> {
        self.placements.get(identity)
    }

    /// The pod in which a backend is, and the one beside it that counts.
    #[must_use]
    pub fn pods_of(&self, identity: &Identity) -> (Option<&Pod>, Option<(&Pod, Other)>) {
        let live = self.live_pods(identity);
        let Some(placement) = self.placements.get(identity) else { return (live.last().copied(), None) };
        let of = |name: &Name| live.iter().copied().find(|pod| pod.name == *name);
        let other = placement.other.as_ref().and_then(|(name, other)| Some((of(name)?, *other)));
        (of(&placement.present).or(live.last().copied()), other)
    }

    /// Whether a pod has an address, or is listed at it.
    #[must_use]
    pub fn is_at(&self, pod: &Pod, address: IpAddr) -> bool {
        pod.addresses.contains(&address)
            || self.listings(&pod.name).any(|endpoint| endpoint.address == address)
    }

    /// Whether a slice lists a pod as ready.
    #[must_use]
    pub fn is_listed_ready(&self, pod: &Name) -> bool {
        self.listings(pod).any(|endpoint| endpoint.ready)
    }

    /// The endpoints that are a pod.
    fn listings<'a>(&'a self, pod: &'a Name) -> impl Iterator<Item = &'a Endpoint> {
        let services = self.references.get(&Reference::Pod(pod.clone())).into_iter().flat_map(Few::keys);
        let endpoints = services.flat_map(|service| self.slices(service)).flat_map(|slice| &slice.endpoints);
        endpoints.filter(move |endpoint| endpoint.pod.as_ref().is_some_and(|target| target.name == *pod))
    }

    /// The pods of a backend that have not ended; the last is where it runs, see [`Pod::precedence`].
    #[must_use]
    pub fn live_pods(&self, identity: &Identity) -> Vec<&Pod> {
        let names = self.pods_by_identity.get(identity).into_iter().flatten();
        let mut pods: Vec<&Pod> =
            names.filter_map(|name| self.pods.get(name)).filter(|pod| !pod.finished).collect();
        pods.sort_by_cached_key(|pod| pod.precedence());
        pods
    }

    /// How much of the new flows a backend gets beside others: what the pod says where it runs.
    #[must_use]
    pub fn weight(&self, identity: &Identity) -> u32 {
        self.pods_of(identity).0.map_or(WEIGHT, |pod| pod.weight)
    }

    /// Whether a pod is known to have ended.
    #[must_use]
    pub fn has_ended(&self, pod: &Name) -> bool {
        self.pods.get(pod).is_some_and(|pod| pod.finished)
    }

    fn has_live_pod(&self, identity: &Identity) -> bool {
        let mut names = self.pods_by_identity.get(identity).into_iter().flatten();
        names.any(|name| self.pods.get(name).is_some_and(|pod| !pod.finished))
    }

    /// An endpoint as one of its backend, which may be elsewhere by now, or hidden by readiness gates alone.
    #[must_use]
    pub fn relocate<'a>(&self, identity: &Identity, endpoint: &'a Endpoint) -> Cow<'a, Endpoint> {
        let placement = self.placements.get(identity);
        let ended = |pod: &slice::PodTarget| self.has_ended(&pod.name);
        if placement.is_none() && !endpoint.pod.as_ref().is_some_and(ended) {
            return Cow::Borrowed(endpoint);
        }
        let (Some(present), _) = self.pods_of(identity) else { return Cow::Borrowed(endpoint) };
        let is_held = placement.is_some_and(|placement| placement.is_held);
        let mut endpoint = endpoint.clone();
        let is_there = endpoint.pod.as_ref().is_none_or(|pod| pod.name == present.name);
        if !is_there {
            let same = |address: &&IpAddr| address.is_ipv4() == endpoint.address.is_ipv4();
            endpoint.address = present.addresses.iter().find(same).copied().unwrap_or(endpoint.address);
            endpoint.node = present.node.clone().or(endpoint.node);
            endpoint.hints = None;
        }
        endpoint.ready |= is_held;
        endpoint.serving |= is_held;
        endpoint.terminating &= !is_held;
        Cow::Owned(endpoint)
    }

    /// What an endpoint is as a backend. `None`: its pod has ended, and no other carries the same VM.
    #[must_use]
    pub fn identify(&self, endpoint: &Endpoint) -> Option<Identity> {
        let by_address = || Identity::of_address(endpoint.address);
        let Some(target) = &endpoint.pod else {
            let pod = self.pod_at(endpoint.address);
            return Some(pod.and_then(|pod| pod.identity.clone()).unwrap_or_else(by_address));
        };
        match self.pods.get(&target.name) {
            Some(pod) if target.uid.is_empty() || pod.uid.is_empty() || pod.uid == target.uid => {
                // A VM that has moved is still meant, until the slice lists its new pod.
                let is_meant = !pod.finished
                    || pod.identity.as_ref().is_some_and(|identity| self.has_live_pod(identity));
                is_meant.then(|| pod.identity.clone().unwrap_or_else(by_address))
            }
            _ if target.uid.is_empty() => Some(by_address()),
            // The pod is not known (yet), or another of its name is: the reference still says which one is meant.
            _ => Some(Identity::of_shared(&target.uid)),
        }
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let names = self.pods_by_address.get(&address).into_iter().flatten();
        let live = names.filter_map(|name| self.pods.get(name)).filter(|pod| !pod.finished);
        live.max_by_key(|pod| (pod.created, pod.name.clone()))
    }

    fn set_service(&mut self, name: Name, service: Option<Service>) -> bool {
        if self.service(&name) == service.as_ref() {
            return false;
        }
        self.touched.services.insert(name.clone());
        match service {
            Some(service) => self.services.insert(name, Box::new(service)),
            None => self.services.remove(&name),
        };
        true
    }

    fn set_slice(&mut self, name: &Name, slice: Option<Slice>) -> bool {
        let old_owner = self.slice_owners.remove(name);
        let old = old_owner.as_ref().and_then(|owner| {
            let siblings = self.slices.get_mut(owner)?;
            let old = siblings.remove(name);
            if siblings.is_empty() {
                self.slices.remove(owner);
            }
            old
        });
        let is_changed = old.as_deref() != slice.as_ref();
        if is_changed {
            self.touched.services.extend(old_owner);
            self.touched.services.extend(slice.as_ref().map(|slice| slice.service.clone()));
            if let Some(old) = &old {
                self.unreference(old);
            }
            if let Some(new) = &slice {
                self.reference(new);
            }
        }
        if let Some(slice) = slice {
            self.slice_owners.insert(name.clone(), slice.service.clone());
            self.slices.entry(slice.service.clone()).or_default().insert(name.clone(), Box::new(slice));
        }
        is_changed
    }

    fn share_node_names(&mut self, slice: &mut Slice) {
        for name in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            match self.node_names.get(name) {
                Some(known) => *name = known.clone(),
                None => drop(self.node_names.insert(name.clone())),
            }
        }
    }

    fn reference(&mut self, slice: &Slice) {
        for endpoint in &slice.endpoints {
            let services = self.references.entry(reference_of(endpoint)).or_default();
            match services.get_mut(&slice.service) {
                Some(count) => *count += 1,
                None => drop(services.insert(slice.service.clone(), 1)),
            }
        }
    }

    fn unreference(&mut self, slice: &Slice) {
        for endpoint in &slice.endpoints {
            let reference = reference_of(endpoint);
            let Some(services) = self.references.get_mut(&reference) else { continue };
            if let Some(count) = services.get_mut(&slice.service) {
                *count -= 1;
                if *count == 0 {
                    services.remove(&slice.service);
                }
            }
            if services.is_empty() {
                self.references.remove(&reference);
            }
        }
    }

    fn set_pod(&mut self, name: Name, pod: Option<Pod>) -> bool {
        if self.pods.get(&name) == pod.as_ref() {
            return false;
        }
        if let Some(old) = self.pods.remove(&name) {
            self.touch_pod(&old);
            if let Some(identity) = &old.identity {
                forget(&mut self.pods_by_identity, identity, &name);
            }
            for address in &old.addresses {
                forget(&mut self.pods_by_address, address, &name);
            }
        }
        let Some(pod) = pod else { return true };
        self.touch_pod(&pod);
        if let Some(identity) = &pod.identity {
            self.pods_by_identity.entry(identity.clone()).or_default().insert(name.clone());
        }
        for address in &pod.addresses {
            self.pods_by_address.entry(*address).or_default().insert(name.clone());
        }
        self.pods.insert(name, pod);
        true
    }

    fn touch_backend(&mut self, identity: &Identity) {
        self.touched.backends.insert(identity.clone());
        let pods = self.pods_by_identity.get(identity).into_iter().flatten();
        for pod in pods.filter_map(|name| self.pods.get(name)) {
            let by_address = pod.addresses.iter().map(|address| Reference::Address(*address));
            for reference in std::iter::once(Reference::Pod(pod.name.clone())).chain(by_address) {
                if let Some(services) = self.references.get(&reference) {
                    self.touched.services.extend(services.keys().cloned());
                }
            }
        }
    }

    /// A pod comes, changes or goes. Where a VM runs, and so its weight, is a matter of all its pods: Services that list
    /// another of them are touched too.
    fn touch_pod(&mut self, pod: &Pod) {
        self.touched.backends.extend(pod.identity.clone());
        let siblings = pod.identity.as_ref().and_then(|identity| self.pods_by_identity.get(identity));
        let siblings = siblings.into_iter().flatten().filter_map(|name| self.pods.get(name));
        for pod in siblings.chain([pod]) {
            let by_address = pod.addresses.iter().map(|address| Reference::Address(*address));
            for reference in std::iter::once(Reference::Pod(pod.name.clone())).chain(by_address) {
                if let Some(services) = self.references.get(&reference) {
                    self.touched.services.extend(services.keys().cloned());
                }
            }
        }
    }

    fn set_node(&mut self, name: Name, node: Option<Node>) -> bool {
        if self.nodes.get(&name) == node.as_ref() {
            return false;
        }
        self.touched.nodes = true;
        let hosts = |node: Option<&Node>| node.map(|node| node.addresses.clone()).unwrap_or_default();
        if hosts(self.nodes.get(&name)) != hosts(node.as_ref()) {
            self.touched.hosts.insert(name.name.clone());
        }
        match node {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
        true
    }
}

impl Index {
    fn set_vmi(&mut self, name: &Name, vmi: Option<Vmi>) -> bool {
        if self.vmis.get(name) == vmi.as_ref() {
            return false;
        }
        self.touched.vms = true;
        if let Some(old) = self.vmis.remove(name)
            && self.vmi_names.get(&old.identity) == Some(name)
        {
            self.vmi_names.remove(&old.identity);
        }
        if let Some(vmi) = vmi {
            self.vmi_names.insert(vmi.identity.clone(), name.clone());
            self.vmis.insert(name.clone(), vmi);
        }
        true
    }

    fn set_job(&mut self, name: &Name, job: Option<Job>) -> bool {
        if self.jobs.get(name) == job.as_ref() {
            return false;
        }
        self.touched.vms = true;
        match job {
            Some(job) => self.jobs.insert(name.clone(), job),
            None => self.jobs.remove(name),
        };
        true
    }
}

fn reference_of(endpoint: &Endpoint) -> Reference {
    match &endpoint.pod {
        Some(target) => Reference::Pod(target.name.clone()),
        None => Reference::Address(endpoint.address),
    }
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<Name>>, key: &K, name: &Name) {
    let Some(names) = map.get_mut(key) else { return };
    names.remove(name);
    if names.is_empty() {
        map.remove(key);
    }
}

/// A shared copy of text.
pub(crate) fn text(text: &str) -> Arc<str> {
    text.into()
}
