//! Datagrams in fragments by the tunnel between nodes: they arrive whole, and the VM sees the client.

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{requests, servers};

use super::{LARGEST, SINGLE, at_once, counted, disorder, exchange, narrow, pattern, persist, room};

fn flags(device: &str, shape: &str, others: &[&str]) -> Flags {
    let tunnel = ["--forwarding", "dsr", "--tunnel", shape].into_iter().chain(others.iter().copied());
    Flags { device: device.to_owned(), others: tunnel.map(str::to_owned).collect() }
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_by_xdps_tunnel_in_ip() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_by_xdps_tunnel_in_ip", || {
        arrive_whole(Attachment::Routed, "eth0=xdp", "ip", true)
    });
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_by_xdps_tunnel_in_udp() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_by_xdps_tunnel_in_udp", || {
        arrive_whole(Attachment::Bridged, "eth0=xdp", "udp", false)
    });
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_by_tcs_tunnel_in_ip() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_by_tcs_tunnel_in_ip", || {
        arrive_whole(Attachment::Bridged, "eth0=tc", "ip", false)
    });
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_by_tcs_tunnel_in_udp() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_by_tcs_tunnel_in_udp", || {
        arrive_whole(Attachment::Routed, "eth0=tc", "udp", true)
    });
}

fn arrive_whole(attachment: Attachment, device: &str, shape: &str, with_rules: bool) -> Result<()> {
    let cluster = Cluster::serving(attachment, &flags(device, shape, &[]))?;
    narrow(cluster.client())?;
    if with_rules {
        cluster.install_control()?;
    }
    for family in Family::ALL {
        let client = cluster.topology.clients[0].addresses.of(family);
        for service in SINGLE {
            let frontend = cluster.frontend(service, servers::ECHO, 0, family)?;
            let socket = cluster
                .client()
                .run(|| exchange(frontend, room(family)))
                .with_context(|| format!("{family}, {service}"))?;
            let (_, seen) = cluster.client().run(|| requests::who(&socket))?;
            ensure!(seen == client, "{family}, {service}: the VM saw {seen}");
        }
        leaves_directly(&cluster, family).with_context(|| format!("{family}"))?;
    }
    at_once(&cluster)?;
    // A sender that is moved to another CPU in the middle of a datagram puts its fragments out of order, now and then.
    for (reason, few) in [
        ("fragment", 100),
        ("fragment_order", 100),
        ("fragment_tunnel", 100),
        ("malformed", 0),
        ("uncuttable", 0),
        ("too_big", 0),
    ] {
        let counted = counted(&cluster, reason)?;
        ensure!(counted <= few, "{counted} packets counted as {reason}");
    }
    ensure!(!with_rules || cluster.control_hits()? == 0, "a flow took the rules");
    Ok(())
}

/// The node that the client addressed passes on what it is sent, and none of the answers.
fn leaves_directly(cluster: &Cluster, family: Family) -> Result<()> {
    let frontend = cluster.frontend("second", servers::ECHO, 0, family)?;
    let sent = passes_on(cluster, frontend)?;
    let asked = 10 * LARGEST as u64;
    ensure!((asked..asked * 3 / 2).contains(&sent), "{sent} octets, {asked} asked");
    Ok(())
}

/// Octets that the first node sends while a client has ten of the largest datagrams echoed.
fn passes_on(cluster: &Cluster, frontend: std::net::SocketAddr) -> Result<u64> {
    let router = &cluster.topology.router;
    cluster.client().run(|| -> Result<u64> {
        let socket = requests::datagrams(frontend)?;
        persist(&socket, &pattern(LARGEST, 0))?;
        requests::who(&socket)?;
        let before = router.received("node1")?;
        for number in 0..10 {
            persist(&socket, &pattern(LARGEST, number))?;
        }
        Ok(router.received("node1")? - before)
    })
}

#[test]
fn answers_in_fragments_go_by_the_node_that_was_addressed_where_they_are_told_to() {
    unless_unable("answers_in_fragments_go_by_the_node_that_was_addressed_where_they_are_told_to", || {
        for (device, shape) in [("eth0=xdp", "udp"), ("eth0=tc", "ip")] {
            let flags = flags(device, shape, &["--dsr-return", "ingress"]);
            let cluster = Cluster::serving(Attachment::Routed, &flags)?;
            narrow(cluster.client())?;
            narrow(&cluster.find("vm02")?.namespace)?;
            for family in Family::ALL {
                let what = || format!("{device}, {shape}, {family}");
                let frontend = cluster.frontend("second", servers::ECHO, 0, family)?;
                cluster.client().run(|| exchange(frontend, room(family))).with_context(what)?;
                let sent = passes_on(&cluster, frontend).with_context(what)?;
                let asked = 10 * LARGEST as u64;
                ensure!(sent > 2 * asked, "{}: {sent} octets, {asked} asked", what());
            }
            ensure!(counted(&cluster, "malformed")? == 0, "{device}, {shape}: malformed");
        }
        Ok(())
    });
}

#[test]
fn a_client_learns_what_fits_the_tunnel_and_cuts_accordingly() {
    unless_unable("a_client_learns_what_fits_the_tunnel_and_cuts_accordingly", || {
        for shape in ["ip", "udp"] {
            let cluster = Cluster::serving(Attachment::Routed, &flags("eth0=xdp", shape, &[]))?;
            let frontend = cluster.frontend("second", servers::ECHO, 0, Family::V6)?;
            let socket = cluster.client().run(|| requests::datagrams(frontend))?;
            // Until the next hop is known TC sends, and answers nobody.
            persist(&socket, b"small")?;
            socket.send(&pattern(LARGEST, 1))?;
            let error = socket.recv(&mut [0]).err().context("an answer")?;
            ensure!(error.raw_os_error() == Some(nix::libc::EMSGSIZE), "{shape}: {error}");
            let told = counted(&cluster, "too_big")?;
            persist(&socket, &pattern(LARGEST, 2)).with_context(|| shape.to_owned())?;
            let again = counted(&cluster, "too_big")?;
            ensure!(again == told, "{shape}: it did not listen");
        }
        Ok(())
    });
}

#[test]
fn fragments_out_of_order_corrupt_nothing_by_the_tunnel() {
    unless_unable("fragments_out_of_order_corrupt_nothing_by_the_tunnel", || {
        for (device, shape) in [("eth0=xdp", "ip"), ("eth0=tc", "udp")] {
            let cluster = Cluster::serving(Attachment::Routed, &flags(device, shape, &[]))?;
            narrow(cluster.client())?;
            for family in Family::ALL {
                disorder(&cluster, family, "second", room(family))
                    .with_context(|| format!("{device}, {shape}, {family}"))?;
            }
        }
        Ok(())
    });
}
