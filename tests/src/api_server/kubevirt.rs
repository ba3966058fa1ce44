//! KubeVirt's objects as the API server would show them.

use serde_json::{Value, json};

use super::objects::address;

/// The namespace of the VMs.
pub const NAMESPACE: &str = "a";

/// A VM; `owner` names a pool it belongs to.
pub fn vm(name: &str, owner: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("vm-{name}")},
        "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"domain": {}}}},
    });
    if let Some(pool) = owner {
        object["metadata"]["ownerReferences"] = owned_by("VirtualMachinePool", pool);
    }
    object
}

/// A running VM, of the VM of the same name or of a replica set.
pub fn vmi(name: &str, owner: Option<(&str, &str)>) -> Value {
    let (kind, owner) = owner.unwrap_or(("VirtualMachine", name));
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("vmi-{name}"), "labels": {"app": "x"},
            "ownerReferences": owned_by(kind, owner),
        },
        "spec": {"domain": {}},
        "status": {"phase": "Running", "nodeName": "n0"},
    })
}

/// A migration of it, under way.
pub fn migration(name: &str, vmi: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("job-{name}")},
        "spec": {"vmiName": vmi}, "status": {"phase": "Running"},
    })
}

/// Its launcher pod; `number` gives it an address.
pub fn launcher_of(vmi: &str, number: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("virt-launcher-{vmi}-{number}"), "namespace": NAMESPACE,
            "labels": {"app": "x", "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": format!("vmi-{vmi}")},
        },
        "spec": {"nodeName": "n0", "containers": [{"name": "compute", "image": "launcher"}]},
        "status": {
            "phase": "Running", "podIP": address(number), "podIPs": [{"ip": address(number)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A plain pod.
pub fn plain_pod(name: &str, number: u16) -> Value {
    let mut pod = launcher_of("x", number);
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["labels"] = json!({"app": name});
    pod
}

/// A pool of VMs.
pub fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "pool.kubevirt.io/v1alpha1", "kind": "VirtualMachinePool",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}")},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"pool": name}},
            "virtualMachineTemplate": {
                "metadata": {"labels": {"pool": name}},
                "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": {"pool": name}}, "spec": {"domain": {}}}},
            },
        },
    })
}

/// A replica set of VMIs.
pub fn replica_set(name: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceReplicaSet",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}")},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"set": name}},
            "template": {"metadata": {"labels": {"set": name}}, "spec": {"domain": {}}},
        },
    })
}

fn owned_by(kind: &str, name: &str) -> Value {
    let uid = if kind == "VirtualMachine" { format!("vm-{name}") } else { format!("uid-{name}") };
    json!([{"apiVersion": "kubevirt.io/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}
