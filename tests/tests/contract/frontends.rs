//! The ways to a Service: how they come, go and change under load.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::objects::{BALANCER, service, wait};

/// An external address of the Services.
const EXTERNAL: &str = "198.51.100.7";

/// Between two lines of a connection.
const BEAT: Duration = Duration::from_millis(10);

/// Connections that ask all the time, until `work` is done; how many lines came back.
fn meanwhile(conversations: Vec<Conversation>, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = conversations
            .into_iter()
            .map(|mut conversation| {
                let stop = &stop;
                scope.spawn(move || {
                    let (vm, mut lines) = (conversation.ask("hello")?, 0);
                    while !stop.load(Ordering::Acquire) {
                        ensure!(conversation.ask("still there?")? == vm, "another VM answers");
                        lines += 1;
                        thread::sleep(BEAT);
                    }
                    Ok(lines)
                })
            })
            .collect();
        let done = work();
        stop.store(true, Ordering::Release);
        let lines = threads.into_iter().map(|thread| thread.join().expect("a client"));
        let lines = lines.collect::<Result<Vec<usize>>>().context("a connection was cut")?;
        done.map(|()| lines.into_iter().sum())
    })
}

fn is_refused(cluster: &Cluster, server: SocketAddr) -> bool {
    let tried = cluster.client().run(|| requests::greeting(server));
    tried.is_err_and(|error| format!("{error:#}").contains("refused"))
}

/// How many frontends each node shows for the Service's HTTP port; none where it shows no such port.
fn has_frontends(rows: &[Value], count: usize) -> bool {
    let http = rows.iter().filter(|row| row["portName"] == "http");
    http.map(|row| row["frontends"].as_array().map_or(0, Vec::len)).sum::<usize>() == count
}

#[test]
fn connections_go_on_through_every_change_of_type_and_new_ones_do_as_the_type_says() {
    unless_unable("connections_go_on_through_every_change_of_type_and_new_ones_do_as_the_type_says", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut conversations = Vec::new();
        for family in Family::ALL {
            for (name, node) in [("both", 0), ("both", 1), ("both", 0), ("both", 1)] {
                let frontend = cluster.frontend(name, servers::LINES, node, family)?;
                conversations.push(cluster.client().run(|| Conversation::open(frontend))?);
            }
        }
        let begun = conversations.len();
        let lines = meanwhile(conversations, || change_everything(&mut cluster))?;
        ensure!(lines > 100 * begun, "{lines} lines in {begun} connections");
        Ok(())
    });
}

fn change_everything(cluster: &mut Cluster) -> Result<()> {
    let port = |cluster: &Cluster, node| cluster.frontend("both", servers::GREETING, node, Family::V4);
    let serves = |cluster: &Cluster, node| {
        let server = port(cluster, node)?;
        cluster.client().run(|| requests::greeting(server)).map(drop)
    };
    for kind in ["LoadBalancer", "ClusterIP", "NodePort"] {
        service(cluster, "both", &json!({"type": kind}))?;
        let frontends = match kind {
            "LoadBalancer" => 4,
            "NodePort" => 2,
            _ => 0,
        };
        wait(cluster, "both", |rows| has_frontends(rows, frontends)).context(kind)?;
        for node in 0..2 {
            match kind {
                "ClusterIP" => ensure!(is_refused(cluster, port(cluster, node)?), "{kind} has a node port"),
                _ => serves(cluster, node).context(kind)?,
            }
        }
        if kind == "ClusterIP" {
            // Nothing but the flows tells the next agent of the Service.
            cluster.agents[0].take().context("an agent")?.kill()?;
            cluster.launch_agent(0, &Flags::default())?;
            let published = cluster.services.remove(0);
            cluster.wait_until_serving()?;
            cluster.services.insert(0, published);
            ensure!(is_refused(cluster, port(cluster, 0)?));
        }
    }
    service(cluster, "both", &json!({"externalTrafficPolicy": "Local"}))?;
    wait(cluster, "both", |rows| {
        rows.iter().all(|row| row["backends"].as_array().is_some_and(|all| all.len() == 1))
    })?;
    serves(cluster, 0).context("policy Local")?;
    let ports = json!([{"name": "lines", "port": servers::LINES, "nodePort": 31777}]);
    service(cluster, "both", &json!({"ports": ports}))?;
    wait(cluster, "both", |rows| rows.len() == 1 || rows.len() == 2)?;
    ensure!(is_refused(cluster, port(cluster, 0)?), "a port that is gone");
    cluster.manifests.remove("service-both.yaml")?;
    wait(cluster, "both", <[Value]>::is_empty)?;
    thread::sleep(BEAT * 30);
    Ok(())
}

#[test]
fn a_load_balancer_address_that_no_node_owns_is_served_by_the_node_it_is_routed_to() {
    unless_unable("a_load_balancer_address_that_no_node_owns_is_served_by_the_node_it_is_routed_to", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::with(&["--external-ips"]))?;
        let [first, second] = [0, 1].map(|node: usize| cluster.topology.nodes[node].addresses);
        let [v4, v6] = BALANCER;
        cluster.topology.router.ip(&format!(
            "route add {v4}/32 via {}\nroute add {v6}/128 via {}\nroute add {EXTERNAL}/32 via {}\n",
            first.v4, second.v6, second.v4
        ))?;
        let more = json!({"type": "LoadBalancer", "externalIPs": [EXTERNAL]});
        service(&cluster, "both", &more)?;
        wait(&cluster, "both", |rows| has_frontends(rows, 5))?;
        for address in [v4, v6, EXTERNAL] {
            let server = SocketAddr::new(address.parse::<IpAddr>()?, servers::GREETING);
            let mut met = std::collections::BTreeSet::new();
            for _ in 0..24 {
                met.insert(cluster.client().run(|| requests::greeting(server)).context(address)?);
            }
            ensure!(met.len() == 2, "{address}: {met:?}");
            let bulk = SocketAddr::new(server.ip(), servers::BULK);
            cluster.client().run(|| requests::download(bulk, 4_000_000, 0)).context(address)?;
        }
        Ok(())
    });
}
