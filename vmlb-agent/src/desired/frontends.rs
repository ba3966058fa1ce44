//! The ways to a Service's port: node ports on the node's addresses, ports on load-balancer addresses and external ones,
//! and whom each admits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Admission, Frontend, Here};
use crate::facts::Cidr;
use crate::index::Index;
use crate::index::service::{Families, Service, ServicePort};
use crate::index::slice::Family;
use crate::object::{Kind, ObjectRef};
use crate::serving::SourceRanges;
use crate::warning::Warning;

/// Every frontend of a port; of one that has node ports here, one more for those of other nodes.
#[must_use]
pub fn frontends(
    here: &Here,
    index: &Index,
    service: &Service,
    families: Families,
    port: &ServicePort,
) -> BTreeMap<Frontend, Admission> {
    let main = index.node(&here.node).map_or(&[][..], |node| &node.addresses);
    let of_node = here.facts.addresses.iter().filter(|known| {
        let primary = known.primary || main.contains(&known.address);
        port.node_port != 0 && here.serving.nodeport_addresses.admits(known.address, primary)
    });
    let external = if here.serving.external_ips { &service.external_ips[..] } else { &[] };
    let others = of_node.map(|known| (known.address, port.node_port));
    let others = others.chain(external.iter().map(|address| (*address, port.port)));
    let scope = here.serving.source_ranges;
    let others = others.map(|(address, number)| {
        let is_covered = scope == SourceRanges::All;
        (address, number, if is_covered { admission(service, address) } else { Admission::Open })
    });
    let of_balancer = service.addresses.iter();
    let of_balancer = of_balancer.map(|address| (*address, port.port, admission(service, *address)));
    let mut all = BTreeMap::new();
    for (address, number, admission) in others.chain(of_balancer) {
        if families.admit(address) && is_served(address) {
            let frontend = Frontend { address, port: number, protocol: port.protocol };
            let known = all.entry(frontend).or_insert(admission);
            // An external address may be a load balancer's too.
            *known = admission.max(*known);
        }
    }
    let mut foreign: Vec<(Frontend, Admission)> = Vec::new();
    for (frontend, admission) in &all {
        let is_node_port = frontend.port == port.node_port
            && here.facts.addresses.iter().any(|known| known.address == frontend.address);
        if is_node_port {
            foreign.push((Frontend { address: unspecified(frontend.address), ..*frontend }, *admission));
        }
    }
    all.extend(foreign);
    all
}

/// What stands for the addresses of the other nodes.
fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Ranges hold for clients of their own family, as for kube-proxy: where there are none of it, all are admitted.
fn admission(service: &Service, address: IpAddr) -> Admission {
    let is_of_family = |range: &Cidr| range.address().is_ipv4() == address.is_ipv4();
    if service.ranges.iter().any(is_of_family) { Admission::Ranges } else { Admission::Open }
}

/// Addresses that only mean something on one link or one host have no frontends.
fn is_served(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !link_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// Whether the Service has `externalIPs` that stay with the stack.
#[must_use]
pub fn has_idle_external_ips(here: &Here, service: &Service) -> bool {
    !here.serving.external_ips && !service.external_ips.is_empty()
}

/// What is odd about the Service's addresses and whom they admit.
#[must_use]
pub fn warnings(here: &Here, service: &Service) -> Vec<Warning> {
    let object = ObjectRef { kind: Kind::Service, name: service.name.clone() };
    let mut warnings = Vec::new();
    if has_idle_external_ips(here, service) {
        let message = "the Service's external addresses are left to the node's stack".to_owned();
        let remedy = "start the agent with --external-ips, or use type LoadBalancer";
        warnings.push(Warning::new(&object, "spec.externalIPs", message, remedy));
    }
    let of_ranges: BTreeSet<Family> =
        service.ranges.iter().map(|range| Family::of(range.address())).collect();
    let of_addresses: BTreeSet<Family> =
        service.addresses.iter().map(|address| Family::of(*address)).collect();
    for family in of_addresses.difference(&of_ranges).filter(|_| !of_ranges.is_empty()) {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let message = format!("holds no block of {name}, so every {name} client is admitted");
        let remedy = "add the blocks of that family that are meant";
        warnings.push(Warning::new(&object, "spec.loadBalancerSourceRanges", message, remedy));
    }
    warnings
}
