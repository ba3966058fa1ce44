//! Datagrams larger than any packet: in order they arrive whole by every way, out of order nothing arrives that was not
//! sent, and who else talks notices nothing.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::packets::frame::{Frame, udp};
use vmlb_tests::pieces::Sender;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

#[path = "fragments/overlay.rs"]
mod overlay;
#[path = "fragments/tunnel.rs"]
mod tunnel;

/// The largest that IPv4 has.
const LARGEST: usize = 65_507;

/// The Services with one backend: on the first node, and on the second.
const SINGLE: [&str; 2] = ["first", "second"];

/// Octets behind the IP header in fragments cut by hand: they fit 1,500 in both families.
const ROOM: usize = 1448;

/// What packets may have so that every wrapping fits a cable, and everything an overlay.
const NARROW: usize = 1400;

/// Has a host send no more than so many octets a packet.
fn narrow(host: &Namespace) -> Result<()> {
    for family in ["-4", "-6"] {
        let route = host.output("ip", &[family, "route", "show", "default"])?;
        let route = route.lines().next().context("no default route")?.replace(" pref medium", "");
        let words: Vec<&str> = route.split_whitespace().collect();
        let mtu = NARROW.to_string();
        host.output("ip", &[&[family, "route", "replace"], &words[..], &["mtu", &mtu]].concat())?;
    }
    Ok(())
}

/// Octets behind the IP header in full fragments of a narrowed host.
fn room(family: Family) -> usize {
    let headers = if family == Family::V4 { 20 } else { 48 };
    (NARROW - headers) / 8 * 8
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_both_ways_beside_kube_proxys_rules() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_both_ways_beside_kube_proxys_rules", || {
        // With its rules, netfilter puts together what the stack forwards, and cuts it again.
        arrive_whole(Attachment::Routed, "eth0=xdp", true)?;
        arrive_whole(Attachment::Bridged, "eth0=tc", true)
    });
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_both_ways_where_nobody_puts_them_together() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_both_ways_where_nobody_puts_them_together", || {
        // Without any rule, what is delivered stays in fragments.
        arrive_whole(Attachment::Bridged, "eth0=xdp", false)?;
        arrive_whole(Attachment::Routed, "eth0=tc", false)
    });
}

fn arrive_whole(attachment: Attachment, device: &str, with_rules: bool) -> Result<()> {
    let flags = Flags { device: device.to_owned(), ..Flags::default() };
    let cluster = Cluster::serving(attachment, &flags)?;
    if with_rules {
        cluster.install_control()?;
    }
    let what = format!("{attachment:?}, {device}, rules: {with_rules}");
    for family in Family::ALL {
        for service in SINGLE {
            for node in 0..2 {
                let frontend = cluster.frontend(service, servers::ECHO, node, family)?;
                cluster
                    .client()
                    .run(|| exchange(frontend, if frontend.is_ipv4() { 1480 } else { ROOM }))
                    .with_context(|| format!("{what}, {family}, {service} through node{}", node + 1))?;
            }
        }
    }
    at_once(&cluster).with_context(|| what.clone())?;
    // A sender that is moved to another CPU in the middle of a datagram puts its fragments out of order, now and then.
    for (reason, few) in [("fragment", 100), ("fragment_order", 100), ("malformed", 0), ("uncuttable", 0)] {
        let counted = counted(&cluster, reason)?;
        ensure!(counted <= few, "{what}: {counted} packets counted as {reason}");
    }
    ensure!(!with_rules || cluster.control_hits()? == 0, "{what}: a flow took the rules");
    Ok(())
}

/// Datagrams of all kinds of ends: a last fragment of one octet, of seven, of eight, full ones of `room` octets. The socket
/// that was used.
fn exchange(frontend: SocketAddr, room: usize) -> Result<UdpSocket> {
    let socket = requests::datagrams(frontend)?;
    for length in [room - 7, room - 1, room, 2 * room - 8, 2 * room - 7, 3 * room, 20_000, LARGEST, LARGEST] {
        persist(&socket, &pattern(length, 1)).with_context(|| format!("{length} octets"))?;
    }
    Ok(socket)
}

/// Octets by which one datagram, and one place in it, is told from another.
fn pattern(length: usize, number: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251 + at / 1000 * 7 + number * 13) as u8).collect()
}

/// Several clients talk to both VMs at the same time, by fragments in each other's way.
fn at_once(cluster: &Cluster) -> Result<()> {
    let mut threads = Vec::new();
    for number in 0..8 {
        let frontend = cluster.frontend(SINGLE[number % 2], servers::ECHO, 0, Family::ALL[number / 2 % 2])?;
        let talk = move || -> Result<()> {
            let socket = requests::datagrams(frontend)?;
            for round in 0..20 {
                persist(&socket, &pattern(9000 + 500 * round, number * 31 + round))?;
            }
            Ok(())
        };
        threads.push(cluster.client().spawn(talk));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok(())
}

/// Asks until the answer comes, since sockets overflow; whatever comes has to be what was sent.
fn persist(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    for _ in 0..5 {
        socket.send(payload)?;
        if heard(socket, payload, Duration::from_secs(1))? {
            return Ok(());
        }
    }
    bail!("no answer to {} octets", payload.len())
}

/// Whether the datagram comes back in time. Late answers to others of this length and pattern count too.
fn heard(socket: &UdpSocket, payload: &[u8], patience: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(patience))?;
    let mut answer = vec![0; 65_536];
    match socket.recv(&mut answer) {
        Ok(length) => {
            ensure!(answer.get(..length) == Some(payload), "{length} octets that nobody sent");
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Packets counted for a reason, by all nodes.
fn counted(cluster: &Cluster, reason: &str) -> Result<u64> {
    let mut sum = 0;
    for node in &cluster.topology.nodes {
        let rows = agent::json(node, &["drops", "--all"])?;
        let row = rows.as_array().into_iter().flatten().find(|row| row["reason"] == reason);
        sum += row.and_then(|row| row["packets"].as_u64()).with_context(|| format!("no row {reason}"))?;
    }
    Ok(sum)
}

#[test]
fn a_vm_hears_from_errors_about_its_fragments_what_fits_the_way_to_the_client() {
    unless_unable("a_vm_hears_from_errors_about_its_fragments_what_fits_the_way_to_the_client", || {
        for others in [&[][..], &["--forwarding", "dsr", "--tunnel", "ip"]] {
            let cluster = Cluster::serving(Attachment::Routed, &Flags::with(others))?;
            narrow(cluster.client())?;
            let client = cluster.topology.clients[0].addresses.v6;
            let node = cluster.topology.nodes[0].addresses.v6;
            cluster.topology.router.ip(&format!("route replace {client} dev client1 mtu lock {NARROW}\n"))?;
            for service in SINGLE {
                let frontend = cluster.frontend(service, servers::ECHO, 0, Family::V6)?;
                // The router drops fragments that are too large, and tells the frontend.
                cluster
                    .client()
                    .run(|| persist(&requests::datagrams(frontend)?, &pattern(LARGEST, 1)))
                    .with_context(|| format!("{service}, {others:?}"))?;
                let vm = cluster.find(if service == "first" { "vm01" } else { "vm02" })?;
                let peer = if service == "second" && others.is_empty() { node } else { client };
                let known = vm.namespace.output("ip", &["route", "get", &peer.to_string()])?;
                ensure!(known.contains(&format!("mtu {NARROW}")), "{service}, {others:?}: it knows {known}");
            }
        }
        Ok(())
    });
}

#[test]
fn fragments_out_of_order_corrupt_nothing() {
    unless_unable("fragments_out_of_order_corrupt_nothing", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            let flags = Flags { device: device.to_owned(), ..Flags::default() };
            let cluster = Cluster::serving(Attachment::Routed, &flags)?;
            for family in Family::ALL {
                for service in SINGLE {
                    disorder(&cluster, family, service, ROOM)
                        .with_context(|| format!("{device}, {family}, {service}"))?;
                }
            }
        }
        Ok(())
    });
}

/// Sends a datagram in every kind of disorder, and counts what is dropped.
fn disorder(cluster: &Cluster, family: Family, service: &str, room: usize) -> Result<()> {
    let before = counted(cluster, "fragment_order")?;
    all_orders(cluster, family, service, room)?;
    let dropped = counted(cluster, "fragment_order")? - before;
    // All behind the first that stands behind others, and that one.
    ensure!(dropped == 7, "{dropped} dropped");
    Ok(())
}

/// Sends it from a socket whose flow is there already. Another one talks meanwhile.
fn all_orders(cluster: &Cluster, family: Family, service: &str, room: usize) -> Result<()> {
    let frontend = cluster.frontend(service, servers::ECHO, 0, family)?;
    let address = cluster.topology.clients[0].addresses.of(family);
    cluster.client().run(|| {
        let (socket, bystander) = (requests::datagrams(frontend)?, requests::datagrams(frontend)?);
        let client = SocketAddr::new(address, socket.local_addr()?.port());
        let sender = Sender::open(frontend)?;
        for _ in 0..3 {
            requests::echo(&socket, b"a whole one")?;
        }
        for (number, (name, order)) in ORDERS.into_iter().enumerate() {
            let payload = pattern(4 * room + 1200, number);
            let whole = udp(client, frontend).data(&payload);
            // The client has talked to another port of this address with other numbers, a moment ago.
            let id = u32::from(frontend.port()) + u32::try_from(number)?;
            let pieces = whole.pieces(id, room);
            let other = udp(client, frontend).data(&pattern(4 * room + 1200, number + 100));
            let sent = order(&pieces, &other, id, room);
            sender.send(&sent)?;
            persist(&bystander, &pattern(LARGEST, number)).context("the bystander")?;
            let came = heard(&socket, &payload, Duration::from_millis(100)).context(name)?;
            ensure!(came || name != "in order", "{name}: nothing came");
            ensure!(!came || sent[0] == pieces[0], "{name}: it came");
        }
        persist(&socket, &pattern(LARGEST, 1)).context("after all that")
    })
}

type Order = fn(&[Frame], &Frame, u32, usize) -> Vec<Frame>;

const ORDERS: [(&str, Order); 8] = [
    ("in order", |pieces, _, _, _| pieces.to_vec()),
    ("reversed", |pieces, _, _, _| pieces.iter().rev().cloned().collect()),
    ("the last first", |pieces, _, _, _| [&pieces[pieces.len() - 1..], &pieces[..pieces.len() - 1]].concat()),
    ("the first in the middle", |pieces, _, _, _| [&pieces[2..], &pieces[..2]].concat()),
    ("in order behind the first", |pieces, _, _, _| {
        pieces[..1].iter().chain(pieces[1..].iter().rev()).cloned().collect()
    }),
    ("each twice", |pieces, _, _, _| {
        pieces.iter().flat_map(|piece| [piece.clone(), piece.clone()]).collect()
    }),
    ("one that reaches into another, with other octets", |pieces, other, id, room| {
        let inside = other.clone().piece(id, room - 8..2 * room - 8);
        [&pieces[..1], &[inside], &pieces[1..]].concat()
    }),
    ("mixed with one of the same number and other octets", |pieces, other, id, room| {
        let others = other.pieces(id, room);
        pieces.iter().zip(others).flat_map(|(piece, other)| [piece.clone(), other]).collect()
    }),
];

#[test]
fn fragments_out_of_order_that_open_a_flow_are_served_by_kube_proxys_rules() {
    unless_unable("fragments_out_of_order_that_open_a_flow_are_served_by_kube_proxys_rules", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        cluster.install_control()?;
        for family in Family::ALL {
            for service in SINGLE {
                let frontend = cluster.frontend(service, servers::ECHO, 0, family)?;
                let address = cluster.topology.clients[0].addresses.of(family);
                let hits = cluster.control_hits()?;
                cluster.client().run(|| -> Result<()> {
                    let socket = requests::datagrams(frontend)?;
                    let client = SocketAddr::new(address, socket.local_addr()?.port());
                    let payload = pattern(7000, 5);
                    let pieces = udp(client, frontend).data(&payload).pieces(77, ROOM);
                    Sender::open(frontend)?.send(pieces.iter().rev())?;
                    let came = heard(&socket, &payload, Duration::from_secs(2))?;
                    ensure!(came, "{family}, {service}: no answer by the stack");
                    Ok(())
                })?;
                ensure!(cluster.control_hits()? == hits + 1, "{family}, {service}: not by the rules");
            }
        }
        Ok(())
    });
}
