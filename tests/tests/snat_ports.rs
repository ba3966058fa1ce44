//! SNAT ports come back: far more connections than ports, none refused, and nothing left of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{maps, requests, servers};

/// Connections of each family; both together are the 200,000 of the requirement.
const CONNECTIONS: u64 = 100_000;
/// Clients at once.
const CLIENTS: u64 = 8;

#[test]
fn two_hundred_thousand_connections_pass_through_a_thousand_snat_ports() {
    unless_unable("two_hundred_thousand_connections_pass_through_a_thousand_snat_ports", || {
        let flags = Flags::with(&[
            "--snat-ports",
            "20000-20999",
            "--sweep-interval",
            "1s",
            "--timeout",
            "tcp-opening=2s,tcp-half-closed=2s,tcp-closed=1s,tcp-time-wait=1s",
        ]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        // The client closes first and so has TIME_WAIT on its side. It takes such ports again after a second, else it
        // would run out of its own before vmlb is asked for anything.
        cluster.client().set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        cluster.client().set_sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
        for family in Family::ALL {
            let frontend = cluster.frontend("second", servers::GREETING, 0, family)?;
            let start = Instant::now();
            connect_many(cluster.client(), frontend).with_context(|| format!("{family}"))?;
            println!("{CONNECTIONS} connections by {family} took {:.1} s", start.elapsed().as_secs_f32());
        }
        for node in &cluster.topology.nodes {
            maps::wait_until_no_flows(node, Duration::from_secs(20))?;
        }
        Ok(())
    });
}

/// Makes [`CONNECTIONS`] connections, one after another in each of [`CLIENTS`] threads; fails with the first that is
/// refused, cut short or answered by another pod.
fn connect_many(client: &Namespace, frontend: SocketAddr) -> Result<()> {
    let made = AtomicU64::new(0);
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let ask = || {
            client.run(|| {
                while made.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
                    let pod = requests::greeting(frontend)?;
                    ensure!(pod == "vm02", "the answer was {pod:?}");
                }
                Ok(())
            })
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
            .collect()
    });
    let failures: Vec<String> =
        outcomes.into_iter().filter_map(|outcome| Some(format!("{:#}", outcome.err()?))).collect();
    ensure!(failures.is_empty(), "after {} connections: {failures:?}", made.load(Ordering::Relaxed));
    Ok(())
}
