//! The overlays that this machine's kernel may lack: VMs of other nodes behind each of them are reached, also where its
//! packets have no Ethernet header. Takes a kernel that has them: `cargo xtask test guest vms_behind`.

use anyhow::{Context, Result, ensure};
use vmlb_tests::agent::Flags;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::unless_lacking;
use vmlb_tests::overlay::{self, Overlay};
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::topology::Attachment;

/// Octets of a transfer: some hundred packets each way.
const OCTETS: u64 = 300_000;

#[test]
fn vms_behind_geneve_are_reached_by_xdp() {
    by_xdp("vms_behind_geneve_are_reached_by_xdp", Overlay::Geneve);
}

#[test]
fn vms_behind_geneve_are_reached_by_tc() {
    by_tc("vms_behind_geneve_are_reached_by_tc", Overlay::Geneve);
}

#[test]
fn vms_behind_ipip_are_reached_by_xdp() {
    by_xdp("vms_behind_ipip_are_reached_by_xdp", Overlay::Ipip);
}

#[test]
fn vms_behind_ipip_are_reached_by_tc() {
    by_tc("vms_behind_ipip_are_reached_by_tc", Overlay::Ipip);
}

#[test]
fn vms_behind_an_ip6_tunnel_are_reached_by_xdp() {
    by_xdp("vms_behind_an_ip6_tunnel_are_reached_by_xdp", Overlay::Ip6Tunnel);
}

#[test]
fn vms_behind_an_ip6_tunnel_are_reached_by_tc() {
    by_tc("vms_behind_an_ip6_tunnel_are_reached_by_tc", Overlay::Ip6Tunnel);
}

#[test]
fn vms_behind_gre_are_reached_by_xdp() {
    by_xdp("vms_behind_gre_are_reached_by_xdp", Overlay::Gre);
}

#[test]
fn vms_behind_gre_are_reached_by_tc() {
    by_tc("vms_behind_gre_are_reached_by_tc", Overlay::Gre);
}

#[test]
fn vms_behind_wireguard_are_reached_by_xdp() {
    by_xdp("vms_behind_wireguard_are_reached_by_xdp", Overlay::WireGuard);
}

#[test]
fn vms_behind_wireguard_are_reached_by_tc() {
    by_tc("vms_behind_wireguard_are_reached_by_tc", Overlay::WireGuard);
}

/// The uplink's hook is XDP, which leaves what goes into the overlay to TC.
fn by_xdp(name: &str, kind: Overlay) {
    unless_lacking(name, kind.features(), || reached(kind, "eth0=xdp"));
}

/// The uplink's hook is TC.
fn by_tc(name: &str, kind: Overlay) {
    unless_lacking(name, kind.features(), || reached(kind, "eth0=tc"));
}

fn reached(kind: Overlay, device: &str) -> Result<()> {
    let mut cluster = Cluster::build(Attachment::Bridged)?;
    kind.lay(&cluster)?;
    overlay::shrink(&cluster)?;
    for node in &cluster.topology.nodes {
        overlay::check_paths(&node.namespace)?;
        overlay::masquerade(node)?;
    }
    cluster.install_control()?;
    cluster.start_agents(&Flags { device: device.to_owned(), ..Flags::default() })?;
    overlay::attached(&cluster)?;
    let capture = Capture::start(cluster.client())?;
    for &family in kind.families() {
        let at = |port| cluster.frontend("second", port, 0, family);
        let frontends = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
        let source = overlay::address(&cluster.topology.nodes[0], family).parse()?;
        let asked = cluster.client().run(|| requests::served_by(frontends, OCTETS, ("vm02", source)));
        asked.with_context(|| format!("{family} over {kind} ({device})"))?;
        own_connections(&cluster, family)
            .with_context(|| format!("{family} over {kind}: the stack's own"))?;
    }
    let checked = capture::check_sums(&capture.finish())?;
    ensure!(checked > 100, "only {checked} packets were seen");
    ensure!(cluster.control_hits()? == 0, "connections took kube-proxy's rules");
    Ok(())
}

/// What the node's own stack talks about with pods by the overlay is received as before, from ports that the datapath
/// looks at too.
fn own_connections(cluster: &Cluster, family: vmlb_tests::address::Family) -> Result<()> {
    let node = &cluster.topology.nodes[0].namespace;
    let http = cluster.find("vm02")?.addresses.socket(family, servers::HTTP);
    node.set_sysctl("net/ipv4/ip_local_port_range", "20000 20999")?;
    let answer = node.run(|| requests::http(http, "/"))?;
    ensure!(answer.pod() == "vm02");
    let echo = cluster.find("vm02")?.addresses.socket(family, servers::ECHO);
    node.run(|| requests::echo(&requests::datagrams(echo)?, &[0x5a; 900]))
}
