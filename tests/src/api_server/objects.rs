//! Objects as the API server would show them, as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

/// The node whose agent is under test.
pub const NODE: &str = "n0";

/// A node with an address.
pub fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z"}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    })
}

/// A Service with one port, published on a node port.
pub fn service(name: &str, node_port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "a"},
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": "Cluster", "selector": {"app": name},
            "ports": [{"name": "x", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": node_port}],
        },
    })
}

/// An endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the pod: its address, its name and its node follow from it.
    pub pod: u16,
    /// Whether it takes new flows.
    pub ready: bool,
}

impl Endpoint {
    /// One that is ready.
    pub const fn ready(pod: u16) -> Self {
        Self { pod, ready: true }
    }
}

/// The IPv4 address of pod number `pod`.
pub fn address(pod: u16) -> String {
    let [high, low] = pod.to_be_bytes();
    format!("10.1.{high}.{low}")
}

/// The UID of pod number `pod`.
pub fn uid(pod: u16) -> String {
    format!("6f1c0000-0000-4000-8000-{pod:012}")
}

/// A slice of a Service's endpoints.
pub fn slice(name: &str, service: &str, endpoints: &[Endpoint]) -> Value {
    let endpoint = |Endpoint { pod, ready }: &Endpoint| {
        json!({
            "addresses": [address(*pod)], "nodeName": format!("n{}", pod % 3),
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "a", "name": format!("p{pod}"), "uid": uid(*pod)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "a", "labels": {"kubernetes.io/service-name": service},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-20T10:00:00Z"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "x", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A virt-launcher pod that carries a VM.
pub fn launcher(pod: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("p{pod}"), "namespace": "a", "uid": uid(pod),
            "labels": {
                "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": format!("vmi-{pod}"),
                "vm.kubevirt.io/name": format!("vm{pod}"),
            },
        },
        "spec": {"nodeName": format!("n{}", pod % 3), "containers": [{"name": "compute", "image": "launcher"}]},
        "status": {"phase": "Running", "podIP": address(pod), "podIPs": [{"ip": address(pod)}]},
    })
}

/// The same with what a real API server adds: about a kilobyte of who set which field.
pub fn with_managed_fields(mut object: Value) -> Value {
    let mut fields = String::from("f:a");
    for number in 0..4 {
        // A failed write to a String is not possible.
        let _written = write!(fields, "{number}");
        let entry = json!({
            "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": "2026-11-20T10:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {}},
                "f:labels": {".": {}, (fields.as_str()): {}}, "f:ownerReferences": {".": {}, "k:{\"uid\":\"6f1c\"}": {}}}},
        });
        if let Some(all) = object["metadata"].as_object_mut() {
            let list = all.entry("managedFields").or_insert_with(|| json!([]));
            list.as_array_mut().into_iter().for_each(|list| list.push(entry.clone()));
        }
    }
    object
}
