//! Uplinks whose frames come by other devices. What takes VLANs and bonds is in `guest_layer2.rs`.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmlb_tests::layer2::{self, Shape};
use vmlb_tests::probe;
use vmlb_tests::requests::PATIENCE;
use vmlb_tests::skip::unless_unable;

#[test]
fn clients_on_a_bridge_are_served_at_its_port_until_it_has_more() {
    unless_unable("clients_on_a_bridge_are_served_at_its_port_until_it_has_more", || {
        let shape = Shape::Bridge;
        let cluster = layer2::cluster(shape)?;
        layer2::serves(&cluster, shape)?;
        let node = &cluster.topology.nodes[0].namespace;
        layer2::downloads_meanwhile(&cluster, 4, || {
            thread::sleep(Duration::from_secs(1));
            node.ip(
                "link add tap0 type veth peer name far0\nlink set tap0 master br-ex\nlink set tap0 up\n",
            )?;
            probe::wait("TC in XDP's place", PATIENCE, || {
                let uplink = layer2::device(&cluster, "br-ex")?;
                let why = uplink["reason"].as_str().unwrap_or_default();
                Ok(uplink["mode"] == "tc" && why.contains("several ports"))
            })?;
            ensure!(
                !node.output("ip", &["link", "show", "dev", "eth0"])?.contains("xdp"),
                "eth0 has a program"
            );
            thread::sleep(Duration::from_secs(1));
            node.ip("link del tap0\n")?;
            probe::wait("XDP again", PATIENCE, || Ok(layer2::device(&cluster, "br-ex")?["mode"] == "xdp"))
        })?;
        layer2::serves(&cluster, shape)
    });
}

/// The uplink keeps its addresses over these; a network manager would give it new ones otherwise.
#[test]
fn transfers_resume_after_an_uplink_was_away_and_under_another_mac_and_mtu() -> Result<()> {
    unless_unable("transfers_resume_after_an_uplink_was_away_and_under_another_mac_and_mtu", || {
        for shape in [None, Some(Shape::Bridge)] {
            let cluster = match shape {
                Some(shape) => layer2::cluster(shape)?,
                None => vmlb_tests::cluster::Cluster::serving(
                    vmlb_tests::topology::Attachment::Routed,
                    &vmlb_tests::agent::Flags::default(),
                )?,
            };
            let uplink = shape.map_or("eth0", Shape::uplink);
            let (node, router) = (&cluster.topology.nodes[0], &cluster.topology.router);
            layer2::downloads_meanwhile(&cluster, 6, || {
                thread::sleep(Duration::from_secs(1));
                router.ip("link set node1 down\n")?;
                thread::sleep(Duration::from_millis(700));
                router.ip("link set node1 up\n")?;
                thread::sleep(Duration::from_secs(1));
                let mac = "02:00:00:00:0d:77";
                node.namespace.ip(&format!("link set {uplink} address {mac}\n"))?;
                // What gratuitous ARP would say.
                let own = node.addresses;
                let says = |device: &str| {
                    format!(
                        "neigh replace {} lladdr {mac} dev {device}\nneigh replace {} lladdr {mac} dev {device}\n",
                        own.v4, own.v6
                    )
                };
                router.ip(&says("br0"))?;
                cluster.topology.nodes[1].namespace.ip(&says("eth0"))?;
                thread::sleep(Duration::from_secs(1));
                node.namespace.ip(&format!("link set {uplink} mtu 1400\n"))?;
                cluster.topology.nodes[1].namespace.ip("link set eth0 mtu 1400\n")?;
                router.ip("link set node1 mtu 1400\nlink set node2 mtu 1400\n")?;
                Ok(())
            })?;
        }
        Ok(())
    });
    Ok(())
}
