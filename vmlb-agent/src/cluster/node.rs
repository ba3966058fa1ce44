//! Nodes: their zones, their main addresses, and whether they are on their way out.

use k8s_openapi::api::core::v1::Node as Raw;

use super::{Decoded, Findings, label};
use crate::index::pod::Node;
use crate::index::{Entry, text};

/// The taint of nodes that the cluster autoscaler is about to remove.
const AUTOSCALER: &str = "ToBeDeletedByClusterAutoscaler";

pub(super) fn decode(object: &Raw, findings: &mut Findings) -> Decoded {
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    let mut internal = Vec::new();
    for (index, address) in addresses.into_iter().flatten().enumerate() {
        if address.type_ == "InternalIP" {
            internal
                .extend(findings.address(&format!("status.addresses[{index}].address"), &address.address));
        }
    }
    Decoded::used(Entry::Node(Node {
        name: findings.object.name.name.clone(),
        zone: label(&object.metadata, "topology.kubernetes.io/zone").map(text),
        addresses: internal,
        leaving: object.metadata.deletion_timestamp.is_some() || is_tainted(object),
    }))
}

fn is_tainted(object: &Raw) -> bool {
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == AUTOSCALER)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cluster::{Decoded, decode};
    use crate::index::Entry;
    use crate::watch::document;

    fn is_leaving(metadata: serde_json::Value, taints: serde_json::Value) -> Option<bool> {
        let mut node =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
        node["metadata"]["name"] = "n1".into();
        let contents = document::read("", node.to_string().as_bytes());
        let object = contents.objects.into_iter().next()?;
        match decode(&object).0 {
            Decoded::Use(entry) => match *entry {
                Entry::Node(node) => Some(node.leaving),
                _ => None,
            },
            _ => None,
        }
    }

    #[test]
    fn a_node_leaves_when_it_is_deleted_or_the_autoscaler_says_so() {
        let other = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
        assert_eq!(is_leaving(json!({}), json!([])), Some(false));
        assert_eq!(is_leaving(json!({}), other), Some(false));
        let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
        assert_eq!(is_leaving(json!({}), taint), Some(true));
        assert_eq!(is_leaving(json!({"deletionTimestamp": "2026-01-02T03:04:05Z"}), json!([])), Some(true));
    }
}
