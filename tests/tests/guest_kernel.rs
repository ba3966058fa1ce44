//! vmlb on another kernel than this machine's: the object passes its verifier and packets go their ways, and the kernel has
//! what tests of real networks take. Runs in a guest: `cargo xtask test guest`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::{Feature, unless_lacking};
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::requests::PATIENCE;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{probe, requests, servers};

/// Octets of a transfer: some hundred packets each way.
const OCTETS: u64 = 300_000;

#[test]
fn a_client_reaches_local_and_remote_vms_by_xdp() {
    unless_unable("a_client_reaches_local_and_remote_vms_by_xdp", || {
        a_client_reaches_local_and_remote_vms(Attachment::Routed, "eth0=xdp")
    });
}

#[test]
fn a_client_reaches_local_and_remote_vms_by_tc() {
    unless_unable("a_client_reaches_local_and_remote_vms_by_tc", || {
        a_client_reaches_local_and_remote_vms(Attachment::Bridged, "eth0=tc")
    });
}

/// Each VM through each node: the right one answers and sees the right source, transfers arrive whole, sums are right, and
/// the control beside us takes nothing.
fn a_client_reaches_local_and_remote_vms(attachment: Attachment, device: &str) -> Result<()> {
    let flags = Flags { device: device.to_owned(), ..Flags::default() };
    let cluster = Cluster::serving(attachment, &flags)?;
    cluster.install_control()?;
    let capture = Capture::start(cluster.client())?;
    for family in Family::ALL {
        for (service, pod, home) in [("first", "vm01", 0), ("second", "vm02", 1)] {
            let at = |port| cluster.frontend(service, port, 0, family);
            let client = cluster.topology.clients[0].addresses.of(family);
            let node = cluster.topology.nodes[0].addresses.of(family);
            let source = if home == 0 { client } else { node };
            let frontends = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
            let asked = cluster.client().run(|| requests::served_by(frontends, OCTETS, (pod, source)));
            asked.with_context(|| format!("{family}, {pod} through node1 ({device})"))?;
        }
    }
    let checked = capture::check_sums(&capture.finish())?;
    ensure!(checked > 500, "only {checked} packets were seen");
    let hits = cluster.control_hits()?;
    ensure!(hits == 0, "{hits} connections took the nftables rules");
    Ok(())
}

#[test]
fn the_kernel_has_what_real_networks_are_made_of() {
    unless_lacking("the_kernel_has_what_real_networks_are_made_of", &Feature::ALL, || Ok(()));
}

/// A kind of device, and the line of `ip` that makes it as `over`; `{here}` and `{there}` are the ends' addresses.
const OVERLAYS: [(Feature, &str); 6] = [
    (Feature::Vlan, "link add link eth0 name over type vlan id 7"),
    (Feature::Ipip, "link add over type ipip local {here} remote {there}"),
    (Feature::Ip6Tunnel, "link add over type ip6tnl mode ipip6 local fd00::{here6} remote fd00::{there6}"),
    (Feature::Gre, "link add over type gretap local {here} remote {there}"),
    (Feature::Geneve, "link add over type geneve id 7 remote {there}"),
    (Feature::Vxlan, "link add over type vxlan id 7 dstport 4789 remote {there}"),
];

#[test]
fn packets_cross_every_kind_of_overlay() {
    let features = OVERLAYS.map(|(feature, _)| feature);
    unless_lacking("packets_cross_every_kind_of_overlay", &features, || {
        for (feature, line) in OVERLAYS {
            let prefix = Prefix::unique();
            let hosts = pair(&prefix)?;
            for (host, here, there) in [(&hosts[0], 1, 2), (&hosts[1], 2, 1)] {
                let line = line
                    .replace("{here}", &format!("198.51.100.{here}"))
                    .replace("{there}", &format!("198.51.100.{there}"))
                    .replace("{here6}", &here.to_string())
                    .replace("{there6}", &there.to_string());
                host.ip(&format!("{line}\nlink set over up\naddr add 203.0.113.{here}/24 dev over\n"))?;
            }
            exchange(&hosts, "203.0.113.2:5002").with_context(|| format!("over {feature:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_bond_of_two_cables_survives_the_loss_of_one() {
    unless_lacking("a_bond_of_two_cables_survives_the_loss_of_one", &[Feature::Bond], || {
        let prefix = Prefix::unique();
        let hosts = pair(&prefix)?;
        hosts[0].ip(&format!("link add eth1 type veth peer name eth1 netns {}\n", hosts[1].name()))?;
        for (host, number) in [(&hosts[0], 1), (&hosts[1], 2)] {
            host.ip(&format!(
                "link add over type bond mode active-backup miimon 50\n\
                 link set eth0 down\nlink set eth0 master over\nlink set eth1 master over\n\
                 link set over up\naddr add 203.0.113.{number}/24 dev over\n"
            ))?;
        }
        exchange(&hosts, "203.0.113.2:5002").context("over both cables")?;
        hosts[1].ip("link set eth0 down\n")?;
        for host in &hosts {
            probe::wait("the bond's change to the second cable", PATIENCE, || {
                Ok(host.read("/proc/thread-self/net/bonding/over")?.contains("Currently Active Slave: eth1"))
            })?;
        }
        exchange(&hosts, "203.0.113.2:5002").context("over the second cable")
    });
}

#[test]
fn netem_delays_what_it_is_told_to() {
    unless_lacking("netem_delays_what_it_is_told_to", &[Feature::Netem], || {
        let prefix = Prefix::unique();
        let hosts = pair(&prefix)?;
        hosts[0].output("tc", &["qdisc", "add", "dev", "eth0", "root", "netem", "delay", "200ms"])?;
        let start = std::time::Instant::now();
        exchange(&hosts, "198.51.100.2:5002")?;
        let took = start.elapsed();
        // One delay for the address resolution and one for the datagram, in this direction only.
        ensure!(took.as_millis() >= 200, "the exchange took {took:?}");
        Ok(())
    });
}

/// Two hosts at the ends of a cable, 198.51.100.1 and .2, fd00::1 and ::2.
fn pair(prefix: &Prefix) -> Result<[Namespace; 2]> {
    let hosts = [Namespace::create(&prefix.name("left"))?, Namespace::create(&prefix.name("right"))?];
    hosts[0].ip(&format!("link add eth0 type veth peer name eth0 netns {}\n", hosts[1].name()))?;
    for (host, number) in hosts.iter().zip(1..) {
        host.ip(&format!(
            "addr add 198.51.100.{number}/24 dev eth0\naddr add fd00::{number}/64 dev eth0 nodad\nlink set eth0 up\n"
        ))?;
    }
    Ok(hosts)
}

/// One datagram from the first host to `server` on the second, and its answer.
fn exchange(hosts: &[Namespace; 2], server: &str) -> Result<()> {
    let server: SocketAddr = server.parse()?;
    let listener = hosts[1].run(|| std::net::UdpSocket::bind(server))?;
    listener.set_read_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let mut buffer = [0; 2048];
            let (length, client) = listener.recv_from(&mut buffer)?;
            listener.send_to(&buffer[..length], client).map(drop)
        });
        let asked = hosts[0].run(|| requests::echo(&requests::datagrams(server)?, &[0x5a; 900]));
        answering.join().expect("no panic").context("answering")?;
        asked
    })
}
