//! One backend: where a VM or pod is now, and by which addresses it may answer. A pure function of the index and the node.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use super::Here;
use super::service::Listing;
use crate::few::Few;
use crate::identity::Identity;
use crate::index::Index;
use crate::index::pod::Pod;

/// What a backend calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Namespace of the VM or pod.
    pub namespace: Arc<str>,
    /// Name of the VM, of the pod, or the address.
    pub name: Arc<str>,
    /// Whether it is a VM.
    pub is_vm: bool,
    /// Where it runs.
    pub node: Option<Arc<str>>,
    /// Whether that is this node.
    pub is_local: bool,
    /// How much of the new flows it gets beside others.
    pub weight: u32,
    /// Its present address of each family.
    pub addresses: Few<IpAddr>,
    /// Every address it may answer from, those of a migration's other side included.
    pub claims: Few<IpAddr, AddressClaim>,
}

/// A backend's claim on an address; the least wins, which is that of the newest pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressClaim {
    /// When its pod was made; a claim without a pod is weaker than any with one.
    pub created: Reverse<Option<i64>>,
    /// The backend.
    pub identity: Identity,
    /// Whether the address is on this node.
    pub is_local: bool,
}

/// Computes a backend from its pods that live and from the endpoints that list it. `None`: neither has an address.
#[must_use]
pub fn view(index: &Index, here: &Here, identity: &Identity, listings: &[&Listing]) -> Option<BackendView> {
    let pods = index.live_pods(identity);
    let pod = pods.last().copied();
    let addresses = addresses(pod, listings);
    let first = listings.first();
    if addresses.is_empty() || (pod.is_none() && first.is_none()) {
        return None;
    }
    let node = match pod {
        Some(pod) if pod.node.is_some() => pod.node.clone(),
        _ => {
            let present = listings.iter().filter(|listing| addresses.contains(&listing.address));
            present.filter_map(|listing| listing.node.clone()).min()
        }
    };
    let name = match (pod, first) {
        (Some(Pod { vm: Some(vm), .. }), _) => vm.clone(),
        (Some(pod), _) => pod.name.name.clone(),
        (None, Some(Listing { pod: Some(pod), .. })) => pod.name.clone(),
        (None, _) => identity.as_str().into(),
    };
    let namespace =
        pod.map(|pod| pod.name.namespace.clone()).or(first.map(|listing| listing.namespace.clone()));
    Some(BackendView {
        namespace: namespace.unwrap_or_default(),
        name,
        is_vm: pod.is_some_and(|pod| pod.vm.is_some()),
        is_local: node.as_deref() == Some(&*here.node),
        weight: index.weight(identity),
        node,
        claims: claims(here, identity, &pods, listings),
        addresses: addresses.into_iter().collect(),
    })
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
            Some(pod) => listed(&|listing| listing.pod.as_ref() == Some(&pod.name))
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

fn claims(
    here: &Here,
    identity: &Identity,
    pods: &[&Pod],
    listings: &[&Listing],
) -> Few<IpAddr, AddressClaim> {
    let mut claims = Few::default();
    let mut add = |address: IpAddr, created: Option<i64>, node: Option<&str>| {
        if claims.get(&address).is_none() {
            let is_local = node == Some(&*here.node);
            let claim = AddressClaim { created: Reverse(created), identity: identity.clone(), is_local };
            claims.insert(address, claim);
        }
    };
    for pod in pods.iter().rev() {
        for address in &pod.addresses {
            add(*address, Some(pod.created), pod.node.as_deref());
        }
    }
    for listing in listings {
        let pod = pods.iter().find(|pod| listing.pod.as_ref() == Some(&pod.name));
        add(listing.address, pod.map(|pod| pod.created), listing.node.as_deref());
    }
    claims
}
