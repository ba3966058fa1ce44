//! Health as balancers and probes outside see it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::{self, Namespace};
use vmlb_tests::probe::{ask, get, wait};
use vmlb_tests::servers;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

const HEALTHZ: u16 = 10256;
/// From a change of a manifest to what is answered.
const SOON: Duration = Duration::from_secs(5);

/// A load balancer with policy Local that is asked about at `port`, and its endpoints: address, pod's name, node, ready.
fn publish(cluster: &Cluster, port: u16, endpoints: &[(&str, bool)]) -> Result<()> {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: balanced, namespace: default}}\nspec:\n\
         \x20 type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n\
         \x20 ports: [{{name: http, protocol: TCP, port: 80, nodePort: 31900}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: balanced-1\n  namespace: default\n\
         \x20 labels: {{kubernetes.io/service-name: balanced}}\naddressType: IPv4\n\
         ports: [{{name: http, protocol: TCP, port: {}}}]\nendpoints:",
        servers::HTTP
    );
    for (name, is_ready) in endpoints {
        let pod = cluster.find(name)?;
        text.push_str(&format!(
            "\n- addresses: [\"{}\"]\n  nodeName: {}\n\
             \x20 conditions: {{ready: {is_ready}, serving: true, terminating: {}}}\n\
             \x20 targetRef: {{kind: Pod, namespace: default, name: {}, uid: {}}}",
            pod.addresses.v4,
            pod.node,
            !is_ready,
            pod.object(),
            pod.uid()
        ));
    }
    if endpoints.is_empty() {
        text.push_str(" []");
    }
    cluster.manifests.write("service-balanced.yaml", text.as_bytes())
}

/// Writes node number `node` anew with more in its manifest.
fn write_node(cluster: &Cluster, node: usize, more: &str) -> Result<()> {
    let node = &cluster.topology.nodes[node];
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n{more}\
         status:\n  addresses:\n  - {{type: InternalIP, address: \"{}\"}}\n  - {{type: InternalIP, address: \"{}\"}}\n",
        node.name, node.addresses.v4, node.addresses.v6
    );
    cluster.manifests.write(&format!("node-{}.yaml", node.name), text.as_bytes())
}

fn at(cluster: &Cluster, node: usize, family: Family, port: u16) -> SocketAddr {
    cluster.topology.nodes[node].addresses.socket(family, port)
}

fn status(cluster: &Cluster, server: SocketAddr, path: &str) -> Result<u16> {
    Ok(cluster.client().run(|| get(server, path))?.status)
}

fn is_refused(cluster: &Cluster, server: SocketAddr) -> bool {
    let tried = cluster.client().run(|| TcpStream::connect_timeout(&server, SOON));
    tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn health_follows_the_syncs_and_the_node() {
    unless_unable("health_follows_the_syncs_and_the_node", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::with(&["--max-sync-delay", "1s"]))?;
        publish(&cluster, 32100, &[("vm01", true)])?;
        for family in Family::ALL {
            let server = at(&cluster, 0, family, HEALTHZ);
            let reply = cluster.client().run(|| get(server, "/healthz"))?;
            ensure!(reply.status == 200, "{family}: {reply:?}");
            ensure!(reply.headers.get("content-type").is_some_and(|kind| kind == "application/json"));
            let body = reply.json()?;
            ensure!(
                body["nodeEligible"] == true && body.as_object().is_some_and(|body| body.len() == 3),
                "{body}"
            );
            for name in ["lastUpdated", "currentTime"] {
                ensure!(
                    body[name].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')),
                    "{body}"
                );
            }
        }
        let server = at(&cluster, 0, Family::V4, HEALTHZ);
        ensure!(status(&cluster, server, "/livez")? == 200);
        ensure!(status(&cluster, server, "/other")? == 404);
        ensure!(cluster.client().run(|| ask(server, "POST", "/healthz"))?.status == 405);
        ensure!(cluster.client().run(|| ask(server, "HEAD", "/healthz"))?.body.is_empty());

        write_node(
            &cluster,
            0,
            "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n",
        )?;
        wait("the taint shows", SOON, || Ok(status(&cluster, server, "/healthz")? == 503))?;
        let reply = cluster.client().run(|| get(server, "/healthz"))?;
        ensure!(reply.json()?["nodeEligible"] == false, "{reply:?}");
        ensure!(status(&cluster, server, "/livez")? == 200, "the agent is well on a node that leaves");
        write_node(&cluster, 0, "")?;
        wait("the node stays", SOON, || Ok(status(&cluster, server, "/healthz")? == 200))?;

        let check = at(&cluster, 0, Family::V4, 32100);
        wait("the Service has a backend", SOON, || Ok(status(&cluster, check, "/")? == 200))?;
        // From now on the kernel refuses what the agent writes.
        let frozen = cluster.topology.nodes[0].pin_root.join("frontends_v4");
        namespace::run(Command::new("bpftool").args(["map", "freeze", "pinned"]).arg(frozen))?;
        ensure!(status(&cluster, server, "/healthz")? == 200, "nothing waits yet");
        cluster.manifests.service(&Service::single("late", 32500, servers::HTTP))?;
        let changed = Instant::now();
        wait("the change waits too long", SOON, || Ok(status(&cluster, server, "/livez")? == 503))?;
        ensure!(changed.elapsed() > Duration::from_secs(1), "after {:?} only", changed.elapsed());
        ensure!(status(&cluster, server, "/healthz")? == 503);
        let reply = cluster.client().run(|| get(check, "/"))?;
        let body = reply.json()?;
        ensure!(
            reply.status == 503 && body["serviceProxyHealthy"] == false && body["localEndpoints"] == 1,
            "{body}"
        );
        // The other node is not concerned.
        ensure!(status(&cluster, at(&cluster, 1, Family::V4, HEALTHZ), "/healthz")? == 200);
        cluster.agents[0].take().context("an agent")?.kill()?;
        ensure!(is_refused(&cluster, server));
        Ok(())
    });
}

#[test]
fn a_services_health_check_follows_its_local_ready_backends_and_its_port() {
    unless_unable("a_services_health_check_follows_its_local_ready_backends_and_its_port", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let told =
            |node, family, port| cluster.client().run(|| get(at(&cluster, node, family, port), "/any/path"));
        let count = |node, port| {
            Ok::<_, anyhow::Error>(told(node, Family::V4, port)?.json()?["localEndpoints"].clone())
        };
        publish(&cluster, 32100, &[("vm01", true)])?;
        wait("node1 counts vm01", SOON, || Ok(count(0, 32100)? == 1))?;
        wait("node2 counts none", SOON, || Ok(count(1, 32100)? == 0))?;
        for family in Family::ALL {
            for (node, status, backends) in [(0, 200, 1), (1, 503, 0)] {
                let reply = told(node, family, 32100)?;
                let wanted = json!({
                    "service": {"namespace": "default", "name": "balanced"},
                    "localEndpoints": backends, "serviceProxyHealthy": true,
                });
                ensure!(
                    reply.status == status && reply.json()? == wanted,
                    "{family}, node{}: {reply:?}",
                    node + 1
                );
                let weight = reply.headers.get("x-load-balancing-endpoint-weight");
                ensure!(weight.is_some_and(|weight| *weight == backends.to_string()), "{reply:?}");
            }
        }
        publish(&cluster, 32100, &[("vm01", false), ("vm02", true)])?;
        wait("node1 drains, node2 serves", SOON, || Ok(count(0, 32100)? == 0 && count(1, 32100)? == 1))?;
        ensure!(told(0, Family::V4, 32100)?.status == 503 && told(1, Family::V4, 32100)?.status == 200);

        publish(&cluster, 32101, &[("vm01", true)])?;
        wait("the port moves", SOON, || Ok(count(0, 32101)? == 1))?;
        wait("the old port closes", SOON, || Ok(is_refused(&cluster, at(&cluster, 0, Family::V4, 32100))))?;
        cluster.manifests.remove("service-balanced.yaml")?;
        wait("the port closes", SOON, || Ok(is_refused(&cluster, at(&cluster, 0, Family::V6, 32101))))
    });
}

#[test]
fn a_taken_port_is_warned_of_shown_and_had_when_it_is_free() {
    unless_unable("a_taken_port_is_warned_of_shown_and_had_when_it_is_free", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        publish(&cluster, 32100, &[("vm01", true)])?;
        let node = Namespace::open(cluster.topology.nodes[0].namespace.name())?;
        let held = [HEALTHZ, 32100].map(|port| node.run(|| TcpListener::bind(("0.0.0.0", port))));
        let held: Vec<TcpListener> = held.into_iter().collect::<std::io::Result<_>>()?;
        cluster.start_agents(&Flags::with(&["--metrics-address", "off"]))?;
        let listener = |purpose: &str| {
            let status = agent::json(&cluster.topology.nodes[0], &["status"])?;
            let listeners = status["listeners"].as_array().cloned().unwrap_or_default();
            listeners
                .into_iter()
                .find(|one| one["purpose"] == purpose)
                .with_context(|| format!("no {purpose}: {status}"))
        };
        for purpose in ["health", "default/balanced"] {
            wait("the status shows it", SOON, || {
                Ok(listener(purpose)?["error"].as_str().is_some_and(|error| error.contains("taken")))
            })?;
        }
        ensure!(listener("metrics")?["address"].is_null());
        let log = cluster.agents[0].as_ref().context("an agent")?.said();
        ensure!(
            log.contains(":10256: the port is taken") && log.contains(":32100: the port is taken"),
            "{log}"
        );
        let metrics = SocketAddr::from(([127, 0, 0, 1], 9475));
        ensure!(node.run(|| TcpStream::connect(metrics)).is_err(), "metrics are off");
        drop(held);
        let patience = Duration::from_secs(10);
        for (purpose, port) in [("health", HEALTHZ), ("default/balanced", 32100)] {
            let server = at(&cluster, 0, Family::V4, port);
            wait("the port is had", patience, || Ok(status(&cluster, server, "/healthz")? == 200))?;
            wait("the status is well", patience, || Ok(listener(purpose)?["error"].is_null()))?;
        }
        Ok(())
    });
}

#[test]
fn clients_that_stall_do_not_keep_probes_out() {
    unless_unable("clients_that_stall_do_not_keep_probes_out", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let server = at(&cluster, 0, Family::V4, HEALTHZ);
        let stalled: Vec<TcpStream> = cluster.client().run(|| {
            (0..400).map(|_| TcpStream::connect_timeout(&server, SOON)).collect::<std::io::Result<_>>()
        })?;
        let start = Instant::now();
        ensure!(status(&cluster, server, "/healthz")? == 200);
        ensure!(start.elapsed() < Duration::from_secs(1), "a probe took {:?}", start.elapsed());
        drop(stalled);
        Ok(())
    });
}
