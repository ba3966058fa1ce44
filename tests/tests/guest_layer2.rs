//! Uplinks on a VLAN and on a bond, by XDP on what is on the wire. More of them is in `layer2.rs`, for which a guest has time
//! when it is asked: `cargo xtask test guest layer2`.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::unless_lacking;
use vmlb_tests::layer2::{self, Shape};
use vmlb_tests::probe;
use vmlb_tests::requests::PATIENCE;

#[test]
fn clients_on_a_trunk_are_served_behind_the_vlans_tag() {
    unless_lacking("clients_on_a_trunk_are_served_behind_the_vlans_tag", Shape::Vlan.features(), || {
        layer2::serves(&layer2::cluster(Shape::Vlan)?, Shape::Vlan)
    });
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
