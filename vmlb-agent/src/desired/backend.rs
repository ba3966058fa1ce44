//! One backend: where a VM or pod is now, and by which addresses it may answer. A pure function of the index and the node.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use super::Here;
use super::service::Listing;
use crate::few::Few;
use crate::identity::Identity;
use crate::index::pod::{Hosts, Pod};
use crate::index::{Index, Other};

/// What a backend calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Namespace of the VM or pod.
    pub namespace: Arc<str>,
    /// Name of the VM, of the pod, or the address.
    pub name: Arc<str>,
    /// Whether it is a VM.
    pub is_vm: bool,
    /// How much of the new flows it gets beside others.
    pub weight: u32,
    /// Where it is.
    pub present: End,
    /// Where else it may answer from: the other side of a migration.
    pub other: Option<Box<Beside>>,
    /// Every address it may answer from.
    pub claims: Few<IpAddr, AddressClaim>,
}

/// Where a backend is, or may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Whether that is this node.
    pub is_local: bool,
    /// At most one address of each family.
    pub addresses: Few<IpAddr>,
    /// The addresses of its node.
    pub hosts: Hosts,
}

/// The other side of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Where that is.
    pub end: End,
    /// What it is to the backend.
    pub other: Other,
}

impl BackendView {
    /// Both sides.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        std::iter::once(&self.present).chain(self.other.iter().map(|beside| &beside.end))
    }

    /// Whether either side is on this node.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.ends().any(|end| end.is_local)
    }
}

/// A backend's claim on an address; the least wins, which is that of the newest pod. Of equal ones that of the least
/// backend does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressClaim {
    /// The backend is, or will be, elsewhere: whoever else has the address has it by now.
    pub is_former: bool,
    /// When its pod was made; a claim without a pod is weaker than any with one.
    pub created: Reverse<Option<i64>>,
    /// Whether the address is on this node.
    pub is_local: bool,
}

/// Computes a backend from its pods that live and from the endpoints that list it. `None`: neither has an address.
#[must_use]
pub fn view(index: &Index, here: &Here, identity: &Identity, listings: &[&Listing]) -> Option<BackendView> {
    let (pod, other) = index.pods_of(identity);
    let first = listings.first();
    if pod.is_none() && first.is_none() {
        return None;
    }
    let present = end(index, here, pod, listings);
    if present.addresses.is_empty() {
        return None;
    }
    let name = match (pod, first) {
        (Some(Pod { vm: Some(vm), .. }), _) => vm.clone(),
        (Some(pod), _) => pod.name.name.clone(),
        (None, Some(Listing { pod: Some(pod), .. })) => pod.clone(),
        (None, _) => identity.as_str().into(),
    };
    let namespace =
        pod.map(|pod| pod.name.namespace.clone()).or(first.map(|listing| listing.namespace.clone()));
    let beside =
        other.map(|(pod, other)| Box::new(Beside { end: end(index, here, Some(pod), listings), other }));
    Some(BackendView {
        namespace: namespace.unwrap_or_default(),
        name,
        is_vm: pod.is_some_and(|pod| pod.vm.is_some()),
        weight: index.weight(identity),
        claims: claims(index, here, identity, listings),
        present,
        other: beside.filter(|beside| !beside.end.addresses.is_empty()),
    })
}

fn end(index: &Index, here: &Here, pod: Option<&Pod>, listings: &[&Listing]) -> End {
    let addresses = addresses(pod, listings);
    let node = match pod {
        Some(pod) if pod.node.is_some() => pod.node.clone(),
        _ => {
            let present = listings.iter().filter(|listing| addresses.contains(&listing.address));
            present.filter_map(|listing| listing.node.clone()).min()
        }
    };
    let is_local = node.as_deref() == Some(&*here.node);
    let hosts = index.hosts(node.as_deref()).or(pod.map_or(Hosts::default(), |pod| pod.hosts));
    End { node, is_local, addresses: addresses.into_iter().collect(), hosts }
}

/// One address a family: what the slices list for the pod where the VM runs, else what the pod says, else, of a backend
/// without a pod, what the slices list.
fn addresses(pod: Option<&Pod>, listings: &[&Listing]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for v6 in [false, true] {
        let of_family = |address: &IpAddr| address.is_ipv6() == v6;
        let listed = |wanted: &dyn Fn(&Listing) -> bool| {
            let fitting = listings.iter().filter(|listing| wanted(listing) && of_family(&listing.address));
            fitting.map(|listing| listing.address).min()
        };
        let address = match pod {
            Some(pod) => listed(&|listing| listing.is(&pod.name))
                .or_else(|| pod.addresses.iter().copied().find(of_family)),
            None => listed(&|_| true),
        };
        found.extend(address);
    }
    if found.is_empty() && pod.is_some() {
        // Its pod is known and has no address yet: what the slices say is better than nothing.
        let others: Vec<&Listing> = listings.to_vec();
        return addresses(None, &others);
    }
    found
}

/// Of a VM with several pods only those that count: what another has is not its any more.
fn claims(
    index: &Index,
    here: &Here,
    identity: &Identity,
    listings: &[&Listing],
) -> Few<IpAddr, AddressClaim> {
    let mut claims = Few::default();
    let mut add = |address: IpAddr, created: Option<i64>, node: Option<&str>, is_former: bool| {
        if claims.get(&address).is_none() {
            let is_local = node == Some(&*here.node);
            claims.insert(address, AddressClaim { is_former, created: Reverse(created), is_local });
        }
    };
    let (present, other) = index.pods_of(identity);
    let placed = index.placement(identity).is_some();
    let pods: Vec<(&Pod, bool)> = if placed {
        let other = other.map(|(pod, other)| (pod, other == Other::Known));
        present.map(|pod| (pod, false)).into_iter().chain(other).collect()
    } else {
        index.live_pods(identity).into_iter().rev().map(|pod| (pod, false)).collect()
    };
    for (pod, is_former) in &pods {
        for address in &pod.addresses {
            add(*address, Some(pod.created), pod.node.as_deref(), *is_former);
        }
    }
    for listing in listings {
        let pod = pods.iter().find(|(pod, _)| listing.is(&pod.name));
        let has_ended = listing.pod().is_some_and(|pod| index.has_ended(&pod));
        if pod.is_some() || !(placed || has_ended) {
            let is_former = pod.is_some_and(|(_, is_former)| *is_former);
            add(listing.address, pod.map(|(pod, _)| pod.created), listing.node.as_deref(), is_former);
        }
    }
    claims
}
