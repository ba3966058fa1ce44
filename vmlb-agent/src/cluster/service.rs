//! Services: which are ours, which are left alone and why.

use k8s_openapi::api::core::v1::{Service as Raw, ServicePort as RawPort, ServiceSpec};

use super::{Decoded, Findings, annotation, created, label, shorten};
use crate::index::Entry;
use crate::index::service::{Algorithm, Families, Forwarding, Policy, Service, ServicePort};
use crate::index::text;

mod clients;

/// The annotation that chooses how a backend is found: `maglev` or `random`.
pub const ALGORITHM: &str = "vmlb.io/algorithm";

/// The annotation that says what VMs on other nodes see as the client: `snat` (this node) or `dsr` (the client itself).
pub const FORWARDING: &str = "vmlb.io/forwarding";

/// Another proxy serves it.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

pub(super) fn decode(object: &Raw, findings: &mut Findings) -> Decoded {
    let Some(spec) = object.spec.as_ref() else {
        findings.warn("spec", "is missing; the Service is ignored".into(), "add it");
        return Decoded::Refuse;
    };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let is_ours = match kind {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => spec.external_ips.iter().flatten().next().is_some(),
        "ExternalName" => false,
        other => {
            let message = format!("{:?} is not a type of Service; ignored", shorten(other));
            findings.warn("spec.type", message, "use NodePort or LoadBalancer");
            return Decoded::Refuse;
        }
    };
    if !is_ours || spec.cluster_ip.as_deref() == Some("None") || label(&object.metadata, PROXY_NAME).is_some()
    {
        return Decoded::Skip;
    }
    if findings.object.name.name.len() > 63 {
        let message = "a Service's name has at most 63 octets; ignored".into();
        findings.warn("metadata.name", message, "shorten it");
        return Decoded::Refuse;
    }
    let Some(policy) = policy(spec, findings) else { return Decoded::Refuse };
    let families = families(spec, findings);
    let (affinity, ranges) = (clients::affinity(spec, findings), clients::ranges(spec, kind, findings));
    let left = ranges.as_ref().err().or(affinity.as_ref().err()).cloned();
    Decoded::used(Entry::Service(Service {
        name: findings.object.name.clone(),
        created: created(&object.metadata).unwrap_or(i64::MAX),
        policy,
        algorithm: algorithm(annotation(&object.metadata, ALGORITHM), findings),
        forwarding: forwarding(annotation(&object.metadata, FORWARDING), findings),
        families,
        addresses: if kind == "LoadBalancer" { addresses(object, families, findings) } else { Vec::new() },
        external_ips: external_ips(spec, families, findings),
        affinity: affinity.unwrap_or(0),
        ranges: ranges.unwrap_or_default(),
        ports: ports(spec, kind, findings),
        health_port: if policy == Policy::Local { health_port(spec, kind, findings) } else { 0 },
        left,
    }))
}

fn policy(spec: &ServiceSpec, findings: &mut Findings) -> Option<Policy> {
    match spec.external_traffic_policy.as_deref() {
        None | Some("Cluster" | "") => Some(Policy::Cluster),
        Some("Local") => Some(Policy::Local),
        Some(other) => {
            let message = format!("{:?} is not a policy; the Service is ignored", shorten(other));
            findings.warn("spec.externalTrafficPolicy", message, "use Cluster or Local");
            None
        }
    }
}

fn algorithm(value: Option<&str>, findings: &mut Findings) -> Option<Algorithm> {
    match value? {
        "maglev" => Some(Algorithm::Maglev),
        "random" => Some(Algorithm::Random),
        other => {
            let message = format!("{:?} is not known; what --algorithm says is used", shorten(other));
            findings.warn(&format!("metadata.annotations[{ALGORITHM}]"), message, "use maglev or random");
            None
        }
    }
}

fn forwarding(value: Option<&str>, findings: &mut Findings) -> Option<Forwarding> {
    match value? {
        "snat" => Some(Forwarding::Snat),
        "dsr" => Some(Forwarding::Dsr),
        other => {
            let message = format!("{:?} is not known; what --forwarding says is used", shorten(other));
            findings.warn(&format!("metadata.annotations[{FORWARDING}]"), message, "use snat or dsr");
            None
        }
    }
}

fn families(spec: &ServiceSpec, findings: &mut Findings) -> Option<Families> {
    let mut families = Families::default();
    for (index, name) in spec.ip_families.iter().flatten().enumerate() {
        match name.as_str() {
            "IPv4" => families.v4 = true,
            "IPv6" => families.v6 = true,
            other => {
                let message = format!("{:?} is not a family; ignored", shorten(other));
                findings.warn(&format!("spec.ipFamilies[{index}]"), message, "use IPv4 or IPv6");
            }
        }
    }
    if families == Families::default() {
        let single = spec.cluster_ip.iter();
        for address in spec.cluster_ips.iter().flatten().chain(single).filter_map(|text| text.parse().ok()) {
            match address {
                std::net::IpAddr::V4(_) => families.v4 = true,
                std::net::IpAddr::V6(_) => families.v6 = true,
            }
        }
    }
    (families != Families::default()).then_some(families)
}

fn addresses(object: &Raw, families: Option<Families>, findings: &mut Findings) -> Vec<std::net::IpAddr> {
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let points = ingress.and_then(|status| status.ingress.as_ref()).into_iter().flatten().enumerate();
    // With ipMode Proxy the balancer outside answers itself; an entry with a host name only has nothing to program.
    let ours = points.filter(|(_, point)| matches!(point.ip_mode.as_deref(), None | Some("VIP" | "")));
    let ours = ours.filter_map(|(index, point)| {
        Some((format!("status.loadBalancer.ingress[{index}].ip"), point.ip.as_deref()?))
    });
    of_families(ours, families, findings)
}

fn external_ips(
    spec: &ServiceSpec,
    families: Option<Families>,
    findings: &mut Findings,
) -> Vec<std::net::IpAddr> {
    let fields = spec.external_ips.iter().flatten().enumerate();
    let fields = fields.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.as_str()));
    of_families(fields, families, findings)
}

/// Addresses by their fields, those of the wrong family left out; sorted, each once.
fn of_families<'a>(
    fields: impl Iterator<Item = (String, &'a str)>,
    families: Option<Families>,
    findings: &mut Findings,
) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    for (field, text) in fields {
        let Some(address) = findings.address(&field, text) else { continue };
        if families.is_some_and(|families| !families.admit(address)) {
            let message = format!("{address} is of a family that the Service does not have; ignored");
            findings.warn(&field, message, "add the family to spec.ipFamilies");
        } else if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.sort_unstable();
    addresses
}

/// Only load balancers with policy Local have one; elsewhere the API server refuses or ignores the field.
fn health_port(spec: &ServiceSpec, kind: &str, findings: &mut Findings) -> u16 {
    if kind != "LoadBalancer" {
        return 0;
    }
    findings.port("spec.healthCheckNodePort", spec.health_check_node_port).unwrap_or(0)
}

fn ports(spec: &ServiceSpec, kind: &str, findings: &mut Findings) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, raw) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(mut port) = port(raw, &field, findings) else { continue };
        if kind == "ClusterIP" {
            // The API server refuses one here; a manifest written by hand may have kept it from another type.
            port.node_port = 0;
        }
        let twin = ports.iter().any(|other| {
            (other.port, other.protocol) == (port.port, port.protocol)
                || (port.node_port != 0
                    && (other.node_port, other.protocol) == (port.node_port, port.protocol))
                || other.name == port.name
        });
        if twin {
            let message = "repeats the number, node port or name of an earlier port; ignored".into();
            findings.warn(&field, message, "remove one of the two");
            continue;
        }
        ports.push(port);
    }
    if ports.is_empty() {
        findings.warn("spec.ports", "holds no usable port; nothing is served".into(), "add one");
    }
    ports
}

fn port(raw: &RawPort, field: &str, findings: &mut Findings) -> Option<ServicePort> {
    let port = findings.port(&format!("{field}.port"), Some(raw.port))?;
    if port == 0 {
        findings.warn(&format!("{field}.port"), "0 is not a port; ignored".into(), "use 1 to 65535");
        return None;
    }
    let node_port = findings.port(&format!("{field}.nodePort"), raw.node_port).unwrap_or(0);
    let protocol = findings.protocol(&format!("{field}.protocol"), raw.protocol.as_deref())?;
    let name = raw.name.as_deref().unwrap_or_default();
    if name.len() > 15 {
        // RFC 6335 service names; the map has 16 octets.
        let message = format!("the name {:?} has more than 15 octets; the port is ignored", shorten(name));
        findings.warn(&format!("{field}.name"), message, "shorten it");
        return None;
    }
    Some(ServicePort { name: text(name), port, node_port, protocol })
}
