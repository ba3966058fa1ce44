//! EndpointSlices of the pods that Services select, as the cluster's controller keeps them: one slice a Service.

use serde_json::{Value, json};

use super::store::Store;

/// Brings every Service's slice up to date.
pub(super) fn refresh(store: &mut Store) {
    let objects = store.objects();
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let services: Vec<&Value> =
        of_kind("Service").filter(|service| service["spec"]["selector"].is_object()).collect();
    for slice in of_kind("EndpointSlice") {
        let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default();
        let is_same = |one: &&&Value| {
            one["metadata"]["name"] == service
                && one["metadata"]["namespace"] == slice["metadata"]["namespace"]
        };
        if !services.iter().any(|one| is_same(&one)) {
            let word = |field: &str| slice["metadata"][field].as_str().unwrap_or_default();
            store.remove("EndpointSlice", word("namespace"), word("name"));
        }
    }
    for service in services {
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default();
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        let pods = of_kind("Pod")
            .filter(|pod| pod["metadata"]["namespace"] == namespace && is_selected(service, pod));
        let slice = slice(namespace, name, service, pods);
        let old = store.find("EndpointSlice", namespace, &format!("{name}-slice"));
        let old: Value = old.and_then(|old| serde_json::from_str(&old.text).ok()).unwrap_or_default();
        if old["endpoints"] != slice["endpoints"] || old["ports"] != slice["ports"] {
            // It names a kind that is served, so it is taken.
            let _kept = store.put(slice);
        }
    }
}

fn is_selected(service: &Value, pod: &Value) -> bool {
    let mut selector = service["spec"]["selector"].as_object().into_iter().flatten();
    let is_over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    !is_over && selector.all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value))
}

fn slice<'a>(namespace: &str, name: &str, service: &Value, pods: impl Iterator<Item = &'a Value>) -> Value {
    let endpoint = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.into_iter().all(|one| one["type"] != "Ready" || one["status"] == "True");
        json!({
            "addresses": [pod["status"]["podIP"]],
            "nodeName": pod["spec"]["nodeName"],
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {
                "kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
            },
        })
    };
    let port = |port: &Value| json!({"name": port["name"], "port": port["targetPort"], "protocol": port["protocol"]});
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-slice"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": ports.map(port).collect::<Vec<_>>(),
        "endpoints": pods.map(endpoint).collect::<Vec<_>>(),
    })
}
