//! Paths that take less than both their ends send: whoever sends learns of it through vmlb, and transfers complete.

use anyhow::{Result, ensure};
use vmlb_tests::address::{self, Family};
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

/// Octets of a transfer: thousands of packets of any size.
const OCTETS: u64 = 3_000_000;

/// What the way takes, besides 1,500 everywhere else.
const SMALL: [u16; 2] = [1400, 1280];

#[test]
fn downloads_complete_where_the_way_to_the_client_takes_less() {
    unless_unable("downloads_complete_where_the_way_to_the_client_takes_less", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            let flags = Flags { device: device.to_owned(), ..Flags::default() };
            let cluster = Cluster::serving(Attachment::Routed, &flags)?;
            for mtu in SMALL {
                Family::ALL.into_iter().try_for_each(|family| download(&cluster, family, mtu))?;
            }
        }
        Ok(())
    });
}

fn download(cluster: &Cluster, family: Family, mtu: u16) -> Result<()> {
    let client = cluster.topology.clients[0].addresses.of(family);
    cluster.topology.router.ip(&format!("route replace {client} dev client1 mtu lock {mtu}\n"))?;
    let node = cluster.topology.nodes[0].addresses.of(family);
    for (service, pod, peer) in [("first", "vm01", client), ("second", "vm02", node)] {
        let frontend = cluster.frontend(service, servers::BULK, 0, family)?;
        cluster.client().run(|| requests::download(frontend, OCTETS, 0))?;
        let pod = &cluster.find(pod)?.namespace;
        learned(pod, peer, mtu)?;
        forget(pod)?;
    }
    Ok(())
}

#[test]
fn uploads_complete_where_the_way_to_the_vm_takes_less() {
    unless_unable("uploads_complete_where_the_way_to_the_vm_takes_less", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        for mtu in SMALL {
            Family::ALL.into_iter().try_for_each(|family| upload(&cluster, family, mtu))?;
        }
        Ok(())
    });
}

fn upload(cluster: &Cluster, family: Family, mtu: u16) -> Result<()> {
    let (here, there) = (&cluster.topology.nodes[0], &cluster.topology.nodes[1]);
    // To the VM of this node the stack forwards, and says what it cannot; to that of the other XDP does both.
    let local = cluster.find("vm01")?;
    let prefix = address::pod_prefixes(there.index)[usize::from(family == Family::V6)].clone();
    here.namespace.ip(&format!(
        "route replace {} dev {} mtu lock {mtu}\nroute replace {prefix} via {} mtu lock {mtu}\n",
        local.addresses.of(family),
        local.device,
        there.addresses.of(family)
    ))?;
    for service in ["first", "second"] {
        let frontend = cluster.frontend(service, servers::BULK, 0, family)?;
        cluster.client().run(|| requests::upload(frontend, OCTETS, 0))?;
        learned(cluster.client(), frontend.ip(), mtu)?;
        forget(cluster.client())?;
    }
    Ok(())
}

/// Makes sure that a host knows what the way to a peer takes.
fn learned(host: &Namespace, peer: std::net::IpAddr, mtu: u16) -> Result<()> {
    let known = host.output("ip", &["route", "get", &peer.to_string()])?;
    ensure!(known.contains(&format!("mtu {mtu}")), "of the way to {peer} is known: {known}");
    Ok(())
}

fn forget(host: &Namespace) -> Result<()> {
    host.output("ip", &["route", "flush", "cache"])?;
    host.output("ip", &["-6", "route", "flush", "cache"]).map(drop)
}
