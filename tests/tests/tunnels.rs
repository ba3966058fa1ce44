//! The overlays that this machine's kernel may lack: VMs of other nodes behind each of them are reached, also where its
//! packets have no Ethernet header. Takes a kernel that has them: `cargo xtask test guest vms_behind`.

use anyhow::{Context, Result, ensure};
use vmlb_tests::agent::Flags;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::{Feature, unless_lacking};
use vmlb_tests::overlay::{self, Overlay};
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::topology::Attachment;

/// Octets of a transfer: some hundred packets each way.
const OCTETS: u64 = 300_000;

#[test]
fn vms_behind_geneve_are_reached() {
    unless_lacking("vms_behind_geneve_are_reached", &[Feature::Geneve], || reached(Overlay::Geneve));
}

#[test]
fn vms_behind_ipip_are_reached() {
    unless_lacking("vms_behind_ipip_are_reached", &[Feature::Ipip], || reached(Overlay::Ipip));
}

#[test]
fn vms_behind_an_ip6_tunnel_are_reached() {
    unless_lacking("vms_behind_an_ip6_tunnel_are_reached", &[Feature::Ip6Tunnel], || {
        reached(Overlay::Ip6Tunnel)
    });
}

#[test]
fn vms_behind_gre_are_reached() {
    unless_lacking("vms_behind_gre_are_reached", &[Feature::Gre], || reached(Overlay::Gre));
}

fn reached(kind: Overlay) -> Result<()> {
    for device in ["eth0=xdp", "eth0=tc"] {
        let mut cluster = Cluster::build(Attachment::Bridged)?;
        kind.lay(&cluster)?;
        overlay::shrink(&cluster)?;
        for node in &cluster.topology.nodes {
            overlay::check_paths(&node.namespace)?;
            overlay::masquerade(node)?;
        }
        cluster.install_control()?;
        cluster.start_agents(&Flags { device: device.to_owned(), ..Flags::default() })?;
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
    }
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
