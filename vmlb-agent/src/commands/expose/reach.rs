//! After the writes: waiting until the Service's endpoints are there, and where clients reach it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::super::api::{Cluster, Refused, Resource, Scope, word};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Waits until each of `pods` is a ready endpoint; returns those that are not in time, with the reason.
///
/// # Errors
/// When the API server refuses or does not answer.
pub(super) async fn wait(
    cluster: &Cluster,
    service: &str,
    pods: &[&str],
    patience: Duration,
) -> Result<BTreeMap<String, &'static str>, Refused> {
    let end = Instant::now() + patience;
    loop {
        let ready = endpoints(cluster, service).await?;
        let missing: BTreeMap<String, &'static str> = pods
            .iter()
            .filter_map(|pod| match ready.get(*pod) {
                Some(true) => None,
                Some(false) => Some(((*pod).to_owned(), "it is not ready")),
                None => Some(((*pod).to_owned(), "no EndpointSlice lists it")),
            })
            .collect();
        if missing.is_empty() || Instant::now() >= end {
            return Ok(missing);
        }
        sleep(PAUSE).await;
    }
}

/// The pods behind a Service, and whether each is ready.
async fn endpoints(cluster: &Cluster, service: &str) -> Result<BTreeMap<String, bool>, Refused> {
    let selector = format!("kubernetes.io/service-name={service}");
    let mut found = BTreeMap::new();
    for slice in cluster.list_here(Resource::ENDPOINT_SLICE, &selector).await? {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let ready = endpoint["conditions"]["ready"] != false;
            *found.entry(word(endpoint, &["targetRef", "name"]).to_owned()).or_insert(false) |= ready;
        }
    }
    Ok(found)
}

/// Where clients reach the Service, a line for each port. Whoever may not list nodes is told so.
///
/// # Errors
/// When the API server does not answer.
pub(super) async fn lines(cluster: &Cluster, service: &Value) -> Result<Vec<String>, Refused> {
    let (nodes, note) = match cluster.list(Resource::NODE, Scope::All, "").await {
        Ok(nodes) => (addresses(&nodes.unwrap_or_default()), ""),
        Err(refused) if refused.is_forbidden() => {
            (vec!["<any node>".to_owned()], " (you may not list nodes, so their addresses are not shown)")
        }
        Err(refused) => return Err(refused),
    };
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let ingress: Vec<&str> = ingress
        .map(|one| one["ip"].as_str().or(one["hostname"].as_str()).unwrap_or_default())
        .filter(|address| !address.is_empty())
        .collect();
    let mut lines = Vec::new();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        let name = format!("{}/{}", port["port"], word(port, &["protocol"]));
        let outside = ingress.iter().map(|address| join(address, port["port"].as_u64().unwrap_or(0)));
        let at_nodes = port["nodePort"].as_u64().filter(|number| *number != 0).into_iter();
        let at_nodes = at_nodes.flat_map(|number| nodes.iter().map(move |address| join(address, number)));
        let all: Vec<String> = outside.chain(at_nodes).collect();
        lines.push(format!("{name}: {}{note}", all.join(", ")));
    }
    if word(service, &["spec", "type"]) == "LoadBalancer" && ingress.is_empty() {
        lines.push(
            "no load-balancer address yet: the cluster hands it out (kubectl get service shows it)"
                .to_owned(),
        );
    }
    Ok(lines)
}

/// One address of each node and family: external ones before internal ones.
fn addresses(nodes: &[Value]) -> Vec<String> {
    nodes
        .iter()
        .flat_map(|node| {
            let all: Vec<(&str, &str)> = node["status"]["addresses"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| (word(one, &["type"]), word(one, &["address"])))
                .collect();
            let of = |kind: &str| -> Vec<String> {
                all.iter().filter(|(one, _)| *one == kind).map(|(_, address)| (*address).to_owned()).collect()
            };
            let external = of("ExternalIP");
            if external.is_empty() { of("InternalIP") } else { external }
        })
        .collect()
}

fn join(address: &str, port: u64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_reached_at_its_external_addresses_or_else_its_internal_ones() {
        let node = |kinds: &[(&str, &str)]| {
            let all: Vec<Value> =
                kinds.iter().map(|(kind, at)| json!({"type": kind, "address": at})).collect();
            json!({"status": {"addresses": all}})
        };
        let nodes = [
            node(&[("InternalIP", "192.0.2.1"), ("ExternalIP", "198.51.100.1"), ("Hostname", "a")]),
            node(&[("InternalIP", "192.0.2.2"), ("InternalIP", "2001:db8::2")]),
        ];
        assert_eq!(addresses(&nodes), ["198.51.100.1", "192.0.2.2", "2001:db8::2"]);
        assert_eq!(join("2001:db8::2", 80), "[2001:db8::2]:80");
    }
}
