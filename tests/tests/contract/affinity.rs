//! Clients that stay with a VM.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::pod::Workload;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::objects::{BALANCER, Condition, chooses, endpoints, route_balancer, service, wait};

/// Three VMs behind Service `both`, two of them on the first node; its load-balancer addresses lead to the first node.
fn three() -> Result<Cluster> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    cluster.add_pod(0, "vm03", Workload::Vm)?;
    cluster.start_agents(&Flags::default())?;
    route_balancer(&cluster)?;
    Ok(cluster)
}

fn publish(cluster: &Cluster, vms: &[&str]) -> Result<()> {
    let ready: Vec<_> = vms.iter().map(|vm| (*vm, Condition::Ready)).collect();
    endpoints(cluster, "both", &ready)?;
    wait(cluster, "both", |rows| chooses(rows, vms))
}

/// Affinity for so many seconds, from load-balancer addresses too; `None`: no affinity.
fn stick(cluster: &Cluster, seconds: Option<u32>) -> Result<()> {
    let affinity = if seconds.is_some() { "ClientIP" } else { "None" };
    let config = json!({"clientIP": {"timeoutSeconds": seconds.unwrap_or(10_800)}});
    let more = json!({"type": "LoadBalancer", "sessionAffinity": affinity, "sessionAffinityConfig": config});
    service(cluster, "both", &more)?;
    wait(cluster, "both", |rows| rows.iter().all(|row| row["affinity"] == seconds.unwrap_or(0)))
}

/// Whoever answers connections to these frontends of a port.
fn met(cluster: &Cluster, frontends: &[SocketAddr], times: usize) -> Result<BTreeSet<String>> {
    let ask = |server: &SocketAddr| cluster.client().run(|| requests::greeting(*server));
    let asked = frontends.iter().flat_map(|server| (0..times).map(move |_| ask(server)));
    asked.collect::<Result<_>>().context("a new connection")
}

#[test]
fn a_client_stays_with_its_vm_when_others_come_and_leaves_it_when_it_goes() {
    unless_unable("a_client_stays_with_its_vm_when_others_come_and_leaves_it_when_it_goes", || {
        let cluster = three()?;
        publish(&cluster, &["vm01", "vm02"])?;
        stick(&cluster, Some(600))?;
        for (family, address) in Family::ALL.into_iter().zip(BALANCER) {
            let balancer = SocketAddr::new(address.parse::<IpAddr>()?, servers::GREETING);
            let frontends = [cluster.frontend("both", servers::GREETING, 0, family)?, balancer];
            let first = met(&cluster, &frontends, 12)?;
            ensure!(first.len() == 1, "{family}: by its node port and its balancer {first:?}");
            let lines = cluster.frontend("both", servers::LINES, 0, family)?;
            let mut conversation = cluster.client().run(|| Conversation::open(lines))?;
            let partner = conversation.ask("hello")?;
            publish(&cluster, &["vm01", "vm02", "vm03"])?;
            ensure!(met(&cluster, &frontends, 12)? == first, "{family}: another VM came");
            let gone = first.first().context("a VM")?.as_str();
            let rest: Vec<&str> = ["vm01", "vm02", "vm03"].into_iter().filter(|vm| *vm != gone).collect();
            publish(&cluster, &rest)?;
            let second = met(&cluster, &frontends, 12)?;
            ensure!(second.len() == 1 && second != first, "{family}: {first:?} went, then {second:?}");
            publish(&cluster, &["vm01", "vm02", "vm03"])?;
            ensure!(met(&cluster, &frontends, 12)? == second, "{family}: {first:?} came back");
            ensure!(conversation.ask("still there?")? == partner, "{family}: the connection moved");
            stick(&cluster, None)?;
            ensure!(met(&cluster, &frontends, 24)?.len() > 1, "{family}: without affinity");
            ensure!(conversation.ask("and now?")? == partner, "{family}: the connection moved");
            publish(&cluster, &["vm01", "vm02"])?;
            stick(&cluster, Some(600))?;
        }
        Ok(())
    });
}

#[test]
fn affinity_ends_after_its_timeout_and_begins_anew_with_every_connection() {
    unless_unable("affinity_ends_after_its_timeout_and_begins_anew_with_every_connection", || {
        let cluster = three()?;
        publish(&cluster, &["vm01"])?;
        stick(&cluster, Some(3))?;
        // Every port remembers by itself: eight chances for a client to show that it is free again.
        let names = |server: SocketAddr, port: u16| match port {
            servers::GREETING => requests::greeting(server),
            servers::HTTP => requests::http(server, "/").map(|answer| answer.pod().to_owned()),
            servers::BANNER => {
                requests::banner(server).map(|said| said.trim_start_matches("SSH-2.0-").to_owned())
            }
            _ => Conversation::open(server)?.ask("hello"),
        };
        let ask = || {
            let mut met = BTreeSet::new();
            for family in Family::ALL {
                for port in [servers::GREETING, servers::HTTP, servers::BANNER, servers::LINES] {
                    let server = cluster.frontend("both", port, 0, family)?;
                    met.insert(cluster.client().run(|| names(server, port))?);
                }
            }
            Ok::<_, anyhow::Error>(met)
        };
        let alone = BTreeSet::from(["vm01".to_owned()]);
        ensure!(ask()? == alone);
        publish(&cluster, &["vm01", "vm02", "vm03"])?;
        for second in 0..6 {
            ensure!(ask()? == alone, "after {second} s, asked every second");
            thread::sleep(Duration::from_secs(1));
        }
        thread::sleep(Duration::from_millis(3200));
        let free = ask()?;
        ensure!(free != alone, "nobody was free after the timeout");
        Ok(())
    });
}
