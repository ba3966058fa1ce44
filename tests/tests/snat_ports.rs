//! SNAT ports come back: far more connections than ports, none refused, and nothing left of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmlb_common::verdict::Reason;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{counters, maps, requests, servers};

/// The connections of the requirement, all of one family: they share the ports.
const CONNECTIONS: u64 = 200_000;
/// Connections while closed flows stay as long as they do by default.
const UNHURRIED: u64 = 10_000;
/// A thousand ports for flows, and one for probes.
const PORTS: &str = "20000-21000";
/// Clients at once.
const CLIENTS: u64 = 8;

#[test]
fn two_hundred_thousand_connections_pass_through_a_thousand_snat_ports() {
    unless_unable("two_hundred_thousand_connections_pass_through_a_thousand_snat_ports", || {
        let timeouts = "tcp-opening=2s,tcp-half-closed=2s,tcp-closed=1s,tcp-time-wait=1s";
        let flags = Flags::with(&["--snat-ports", PORTS, "--sweep-interval", "1s", "--timeout", timeouts]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        let frontend = cluster.frontend("second", servers::GREETING, 0, Family::V4)?;
        connect_many(&cluster, CONNECTIONS, CONNECTIONS / 1000, || requests::greeting(frontend), "vm02")?;
        for node in &cluster.topology.nodes {
            maps::wait_until_no_flows(node, Duration::from_secs(20))?;
        }
        Ok(())
    });
}

#[test]
fn ports_of_flows_that_the_server_closed_are_taken_again_long_before_they_age() {
    unless_unable("ports_of_flows_that_the_server_closed_are_taken_again_long_before_they_age", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::with(&["--snat-ports", PORTS]))?;
        for family in Family::ALL {
            // The server says one line and closes.
            let frontend = cluster.frontend("second", servers::BANNER, 0, family)?;
            // Whoever closes first is in TIME_WAIT, and Linux answers every other SYN to that with an ACK, upon which the
            // client sends its SYN again at once: only refusals tell of a leak here.
            connect_many(&cluster, UNHURRIED, UNHURRIED, || requests::banner(frontend), "SSH-2.0-vm02")
                .with_context(|| format!("{family}"))?;
        }
        Ok(())
    });
}

/// Makes `count` connections, and makes sure that no node ran out of ports and no more than `most` SYNs were sent again:
/// what is dropped is sent again by itself, so that a port that leaks would only make things slow. A few are, where a busy
/// machine holds a last ACK back for longer than the datapath waits for it.
fn connect_many(
    cluster: &Cluster,
    count: u64,
    most: u64,
    ask: impl Fn() -> Result<String> + Sync,
    answer: &str,
) -> Result<()> {
    let client = cluster.client();
    // Where the client closes first it has TIME_WAIT on its side. It takes such ports again after a second, else it would
    // run out of its own before vmlb is asked for anything.
    client.set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    client.set_sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
    let before = counters::retransmitted_syns(client)?;
    let start = Instant::now();
    connect(client, count, ask, answer)?;
    println!("{count} connections took {:.1} s", start.elapsed().as_secs_f32());
    let again = counters::retransmitted_syns(client)? - before;
    println!("{again} SYNs were sent again");
    ensure!(again <= most, "{again} SYNs were sent again");
    for node in &cluster.topology.nodes {
        let status = agent::json(node, &["status"])?;
        let reasons = status["reasons"].as_array().context("reasons")?;
        let exhausted = reasons.iter().find(|count| count["reason"] == Reason::SNAT_EXHAUSTED.name());
        ensure!(exhausted.is_none(), "{} ran out of ports: {exhausted:?}", node.name);
    }
    Ok(())
}

/// Asks `count` times, one after another in each of [`CLIENTS`] threads; fails with the first connection that is refused,
/// cut short or answered by another pod.
fn connect(
    client: &Namespace,
    count: u64,
    ask: impl Fn() -> Result<String> + Sync,
    answer: &str,
) -> Result<()> {
    let made = AtomicU64::new(0);
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let ask_again = || {
            client.run(|| {
                while made.fetch_add(1, Ordering::Relaxed) < count {
                    let said = ask()?;
                    ensure!(said == answer, "the answer was {said:?}");
                }
                Ok(())
            })
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask_again)).collect();
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
