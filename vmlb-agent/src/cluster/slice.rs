//! EndpointSlices: whose they are and which of their endpoints can be used.

use std::time::SystemTime;

use k8s_openapi::api::discovery::v1::{Endpoint as RawEndpoint, EndpointPort, EndpointSlice as Raw};

use super::{Decoded, Findings, annotation, label, shorten};
use crate::index::slice::{Endpoint, Family, Hints, PodTarget, Slice, SlicePort};
use crate::index::{Entry, text};
use crate::object::Name;

/// Names the Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When what the slice tells of happened, written by the endpoint slice controller.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Stands on slices of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";

pub(super) fn decode(object: &Raw, findings: &mut Findings) -> Decoded {
    if object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS)) {
        return Decoded::Skip;
    }
    let Some(service) = label(&object.metadata, SERVICE_NAME) else {
        let message = "is missing, so the slice belongs to no Service; ignored".into();
        findings.warn(&format!("metadata.labels[{SERVICE_NAME}]"), message, "set it to the Service's name");
        return Decoded::Refuse;
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Decoded::Skip,
        other => {
            let message = format!("{:?} is not an address type; the slice is ignored", shorten(other));
            findings.warn("addressType", message, "use IPv4 or IPv6");
            return Decoded::Refuse;
        }
    };
    let name = findings.object.name.clone();
    let ports = object.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, raw)| port(raw, index, findings)).collect();
    let endpoints = object.endpoints.iter().enumerate();
    let mut endpoints: Vec<Endpoint> =
        endpoints.filter_map(|(index, raw)| endpoint(raw, index, family, &name, findings)).collect();
    endpoints.shrink_to_fit();
    let service = Name { namespace: name.namespace.clone(), name: text(service) };
    Decoded::used(Entry::Slice(Slice { name, service, family, ports, endpoints }))
}

/// When the last change of a slice was called for, if it says so.
pub(super) fn triggered(object: &Raw) -> Option<SystemTime> {
    let time: k8s_openapi::jiff::Timestamp = annotation(&object.metadata, TRIGGERED)?.parse().ok()?;
    Some(time.into())
}

fn port(raw: &EndpointPort, index: usize, findings: &mut Findings) -> Option<SlicePort> {
    let field = format!("ports[{index}].port");
    let port = findings.port(&field, raw.port)?;
    if port == 0 {
        findings.warn(
            &field,
            "0 is not a port; ignored".into(),
            "name the port that the endpoints listen on",
        );
        return None;
    }
    let protocol = findings.protocol(&format!("ports[{index}].protocol"), raw.protocol.as_deref())?;
    Some(SlicePort { name: text(raw.name.as_deref().unwrap_or_default()), port, protocol })
}

fn endpoint(
    raw: &RawEndpoint,
    index: usize,
    family: Family,
    slice: &Name,
    findings: &mut Findings,
) -> Option<Endpoint> {
    let field = format!("endpoints[{index}].addresses");
    let Some(first) = raw.addresses.first() else {
        findings.warn(
            &field,
            "holds no address; the endpoint is ignored".into(),
            "add one or remove the endpoint",
        );
        return None;
    };
    let field = format!("{field}[0]");
    let address = findings.address(&field, first)?;
    if Family::of(address) != family {
        let message = format!("{address} is not of the slice's addressType; the endpoint is ignored");
        findings.warn(&field, message, "move it to a slice of its own family");
        return None;
    }
    // Absent means ready; absent `serving` follows `ready` (discovery.k8s.io/v1).
    let conditions = raw.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let shared = |names: Option<&str>| names.filter(|name| !name.is_empty()).map(text);
    let hints = raw.hints.as_ref();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    let hints = Hints {
        nodes: nodes.map(|node| text(&node.name)).collect(),
        zones: zones.map(|zone| text(&zone.name)).collect(),
    };
    Some(Endpoint {
        address,
        ready,
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: shared(raw.node_name.as_deref()),
        hints: Some(hints).filter(|hints| *hints != Hints::default()).map(Box::new),
        pod: pod(raw, slice),
    })
}

fn pod(raw: &RawEndpoint, slice: &Name) -> Option<PodTarget> {
    let target = raw.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let name = target.name.as_deref().filter(|name| !name.is_empty())?;
    // A slice cannot speak for pods of another namespace: that would let one tenant take over another's backend.
    let namespace = target.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    if namespace.is_some_and(|namespace| namespace != &*slice.namespace) {
        return None;
    }
    let name = Name { namespace: slice.namespace.clone(), name: text(name) };
    Some(PodTarget { name, uid: text(target.uid.as_deref().unwrap_or_default()) })
}
