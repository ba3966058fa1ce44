//! Services of the rig with more in them than the rig itself needs, and endpoints in any condition.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use vmlb_tests::address::Family;
use vmlb_tests::agent;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::pod::Pod;
use vmlb_tests::probe;
use vmlb_tests::service::{Port, Service};

/// From a change of a manifest until the nodes follow it.
pub const SOON: Duration = Duration::from_secs(5);

/// Addresses outside of every network of the rig, for load balancers.
pub const BALANCER: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];

/// Leads the [`BALANCER`] addresses to the first node.
pub fn route_balancer(cluster: &Cluster) -> Result<()> {
    let (node, [v4, v6]) = (cluster.topology.nodes[0].addresses, BALANCER);
    let routes = format!("route add {v4}/32 via {}\nroute add {v6}/128 via {}\n", node.v4, node.v6);
    cluster.topology.router.ip(&routes)
}

/// The condition of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Takes new flows.
    Ready,
    /// Takes none, and is there.
    Unready,
    /// Serves what it has, on its way out.
    Terminating,
}

/// Writes Service `name` of the cluster again with `more` in its spec; a port's number is its target's.
pub fn service(cluster: &Cluster, name: &str, more: &Value) -> Result<()> {
    let published = cluster.services.iter().find(|published| published.service.name == name);
    let service = &published.expect("a Service of the cluster").service;
    let ports: Vec<Value> = service.ports.iter().map(port).collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "NodePort", "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.96.0.2", "ports": ports},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    if object["spec"]["type"] == "LoadBalancer" {
        object["status"] = json!({"loadBalancer": {"ingress": BALANCER.map(|ip| json!({"ip": ip}))}});
    }
    cluster.manifests.write(&format!("service-{name}.yaml"), object.to_string().as_bytes())
}

fn port(port: &Port) -> Value {
    json!({
        "name": port.name, "protocol": port.protocol.api(), "port": port.target, "targetPort": port.target,
        "nodePort": port.node_port,
    })
}

/// Writes the endpoints of Service `name` again.
pub fn endpoints(cluster: &Cluster, name: &str, pods: &[(&str, Condition)]) -> Result<()> {
    let published = cluster.services.iter().find(|published| published.service.name == name);
    let service: &Service = &published.expect("a Service of the cluster").service;
    let pods = pods.iter().map(|(pod, condition)| Ok((cluster.find(pod)?, *condition)));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol.api(), "port": port.target}))
        .collect();
    let slices: Vec<Value> = Family::ALL
        .into_iter()
        .map(|family| {
            let endpoints = pods.iter().map(|(pod, condition)| endpoint(pod, *condition, family));
            json!({
                "metadata": {
                    "name": format!("{name}-{}", family.to_string().to_lowercase()), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family.to_string(), "ports": ports, "endpoints": endpoints.collect::<Vec<_>>(),
            })
        })
        .collect();
    let list = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": slices});
    cluster.manifests.write(&format!("endpoints-{name}.yaml"), list.to_string().as_bytes())
}

fn endpoint(pod: &Pod, condition: Condition, family: Family) -> Value {
    json!({
        "addresses": [pod.addresses.of(family).to_string()], "nodeName": pod.node,
        "conditions": {
            "ready": condition == Condition::Ready, "serving": condition != Condition::Unready,
            "terminating": condition == Condition::Terminating,
        },
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod.object(), "uid": pod.uid()},
    })
}

/// Writes the launcher pod of VM `name` again, with this weight.
pub fn weigh(cluster: &Cluster, name: &str, weight: u32) -> Result<()> {
    let pod = cluster.find(name)?;
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.object(), "namespace": "default", "uid": pod.uid(),
            "labels": {
                "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": pod.vmi_uid(), "vm.kubevirt.io/name": name,
            },
            "annotations": {"vmlb.io/weight": weight.to_string()},
        },
        "spec": {"nodeName": pod.node},
        "status": {
            "phase": "Running",
            "podIPs": Family::ALL.map(|family| json!({"ip": pod.addresses.of(family).to_string()})),
        },
    });
    cluster.manifests.write(&format!("pod-{name}.yaml"), object.to_string().as_bytes())
}

/// The rows of `vmlb services` for Service `name` on node number `node`.
pub fn shown(cluster: &Cluster, node: usize, name: &str) -> Result<Vec<Value>> {
    let rows = agent::json(&cluster.topology.nodes[node], &["services"])?;
    Ok(rows.as_array().into_iter().flatten().filter(|row| row["name"] == name).cloned().collect())
}

/// Waits until every node shows Service `name` as `wanted` says.
pub fn wait(cluster: &Cluster, name: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<()> {
    for node in 0..cluster.topology.nodes.len() {
        probe::wait(&format!("node {node} follows {name}"), SOON, || {
            Ok(wanted(&shown(cluster, node, name)?))
        })?;
    }
    Ok(())
}

/// Whether every row that is served gives new flows to exactly these VMs.
pub fn chooses(rows: &[Value], vms: &[&str]) -> bool {
    let mut wanted: Vec<String> = vms.iter().map(|vm| format!("default/{vm}")).collect();
    wanted.sort_unstable();
    let names = |row: &Value| {
        let backends = row["backends"].as_array().into_iter().flatten();
        let mut names: Vec<String> =
            backends.filter_map(|backend| backend["name"].as_str()).map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    !rows.is_empty() && rows.iter().all(|row| names(row) == wanted)
}
