//! Uplinks on VLANs and bonds, by XDP on what is on the wire. Runs in a guest: `cargo xtask test guest layer2`.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::unless_lacking;
use vmlb_tests::layer2::{self, Shape};
use vmlb_tests::probe;
use vmlb_tests::requests::PATIENCE;

/// Clients are served by a first node of this shape.
fn is_served(name: &str, shape: Shape) {
    unless_lacking(name, shape.features(), || layer2::serves(&layer2::cluster(shape)?, shape));
}

#[test]
fn clients_on_a_trunk_are_served_behind_the_vlans_tag() {
    unless_lacking("clients_on_a_trunk_are_served_behind_the_vlans_tag", Shape::Vlan.features(), || {
        let cluster = layer2::cluster(Shape::Vlan)?;
        layer2::serves(&cluster, Shape::Vlan)?;
        tags_that_hardware_takes_out(&cluster)
    });
}

/// Where the parent takes tags out itself XDP sees none: TC serves, says why, and XDP comes back.
fn tags_that_hardware_takes_out(cluster: &Cluster) -> Result<()> {
    let node = &cluster.topology.nodes[0].namespace;
    layer2::downloads_meanwhile(cluster, 6, || {
        thread::sleep(Duration::from_secs(1));
        node.offloads("eth0", &["rxvlan", "on"])?;
        probe::wait("TC in XDP's place", PATIENCE, || {
            let uplink = layer2::device(cluster, "eth0.100")?;
            let why = uplink["reason"].as_str().unwrap_or_default();
            Ok(uplink["mode"] == "tc" && why.contains("ethtool -K eth0 rxvlan off"))
        })?;
        let links = node.output("ip", &["link", "show", "dev", "eth0"])?;
        ensure!(!links.contains("xdp"), "the parent still has a program: {links}");
        node.offloads("eth0", &["rxvlan", "off"])?;
        probe::wait("XDP again", PATIENCE, || Ok(layer2::device(cluster, "eth0.100")?["mode"] == "xdp"))
    })?;
    layer2::serves(cluster, Shape::Vlan)
}

#[test]
fn clients_behind_two_tags_are_served() {
    is_served("clients_behind_two_tags_are_served", Shape::ServiceVlan);
}

#[test]
fn clients_on_a_bond_that_takes_turns_are_served() {
    is_served("clients_on_a_bond_that_takes_turns_are_served", Shape::RoundRobin);
}

#[test]
fn clients_on_a_vlan_of_a_bond_are_served() {
    is_served("clients_on_a_vlan_of_a_bond_are_served", Shape::VlanOnBond);
}

#[test]
fn a_transfer_goes_on_by_the_bonds_other_cable() {
    let shape = Shape::Backup;
    unless_lacking("a_transfer_goes_on_by_the_bonds_other_cable", shape.features(), || {
        let cluster = layer2::cluster(shape)?;
        layer2::serves(&cluster, shape)?;
        let router = &cluster.topology.router;
        layer2::downloads_meanwhile(&cluster, 6, || {
            for (lost, kept) in [("node1", "eth1"), ("node1b", "eth0")] {
                thread::sleep(Duration::from_secs(1));
                router.ip(&format!("link set {lost} down\n"))?;
                is_active(&cluster, kept)?;
                thread::sleep(Duration::from_secs(1));
                router.ip(&format!("link set {lost} up\n"))?;
            }
            Ok(())
        })?;
        layer2::serves(&cluster, shape)
    });
}

fn is_active(cluster: &Cluster, member: &str) -> Result<()> {
    let node = &cluster.topology.nodes[0].namespace;
    probe::wait("the bond's other cable", PATIENCE, || {
        let bond = node.read("/proc/thread-self/net/bonding/bond0").context("the bond")?;
        Ok(bond.contains(&format!("Currently Active Slave: {member}")))
    })
}
