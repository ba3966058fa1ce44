//! Pods: which VM they carry, where they are.

use k8s_openapi::api::core::v1::Pod as Raw;

use super::{Decoded, Findings, annotation, created, label, shorten};
use crate::identity::Identity;
use crate::index::pod::{Hosts, Pod, WEIGHT};
use crate::index::{Entry, text};

/// The annotation that says how much of the new flows a VM gets: 0 (none: maintenance) to 100, which is the default.
pub const WEIGHT_ANNOTATION: &str = "vmlb.io/weight";

pub(super) fn decode(object: &Raw, findings: &mut Findings) -> Decoded {
    let metadata = &object.metadata;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let launcher = label(metadata, "kubevirt.io") == Some("virt-launcher");
    let vmi = label(metadata, "kubevirt.io/created-by").filter(|_| launcher);
    if launcher && vmi.is_none() {
        let message =
            "is missing on a virt-launcher pod; it is taken for a plain pod, and a migration cuts its flows";
        let remedy = "set it to the UID of the VirtualMachineInstance";
        findings.warn("metadata.labels[kubevirt.io/created-by]", message.into(), remedy);
    }
    let on_host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let identity = match (vmi, uid) {
        _ if on_host => None,
        (Some(vmi), _) => Some(Identity::of_uid(vmi)),
        (None, "") => None,
        (None, uid) => Some(Identity::of_uid(uid)),
    };
    let vm = vmi.map(|_| {
        let name = label(metadata, "vm.kubevirt.io/name").or(annotation(metadata, "kubevirt.io/domain"));
        text(name.unwrap_or(&findings.object.name.name))
    });
    let phase = status.and_then(|status| status.phase.as_deref());
    Decoded::used(Entry::Pod(Pod {
        name: findings.object.name.clone(),
        uid: text(uid),
        identity,
        vm,
        node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()).map(text),
        addresses: addresses(object, findings),
        created: created(metadata).unwrap_or(i64::MIN),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        job: label(metadata, "kubevirt.io/migrationJobUID").map(text),
        contained: condition(object, "ContainersReady"),
        hosts: hosts(object),
        arrived: annotation(metadata, "kubevirt.io/migration-target-ready-timestamp").map(text),
        weight: weight(annotation(metadata, WEIGHT_ANNOTATION), findings),
    }))
}

/// A condition of the pod, where it says it.
fn condition(object: &Raw, name: &str) -> Option<bool> {
    let mut conditions = object.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == name).map(|condition| condition.status == "True")
}

/// The addresses of its node. What cannot be read is left out: the Node object says it too.
fn hosts(object: &Raw) -> Hosts {
    let Some(status) = &object.status else { return Hosts::default() };
    let several = status.host_ips.iter().flatten().map(|host| host.ip.as_str());
    let all = several.chain(status.host_ip.as_deref());
    Hosts::of(all.filter_map(|text| text.parse().ok()))
}

fn weight(value: Option<&str>, findings: &mut Findings) -> u32 {
    let Some(value) = value else { return WEIGHT };
    let weight = value.trim().parse().ok().filter(|weight| *weight <= WEIGHT);
    weight.unwrap_or_else(|| {
        let message =
            format!("{:?} is not a weight; {WEIGHT} is used, as without the annotation", shorten(value));
        let remedy = "use a whole number from 0 (no new flows) to 100";
        findings.warn(&format!("metadata.annotations[{WEIGHT_ANNOTATION}]"), message, remedy);
        WEIGHT
    })
}

fn addresses(object: &Raw, findings: &mut Findings) -> Vec<std::net::IpAddr> {
    let Some(status) = &object.status else { return Vec::new() };
    let mut addresses = Vec::new();
    let single = status.pod_ip.iter().map(|ip| ("status.podIP".to_owned(), ip));
    let several = status.pod_ips.iter().flatten().enumerate();
    let several = several.map(|(index, ip)| (format!("status.podIPs[{index}].ip"), &ip.ip));
    for (field, ip) in several.chain(single).filter(|(_, ip)| !ip.is_empty()) {
        let Some(address) = findings.address(&field, ip) else { continue };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
