//! Uplinks whose frames come by other devices. Those on VLANs and bonds take a kernel that has them: `cargo xtask test guest
//! layer2`; `guest_layer2.rs` has those that every run of the tests sees.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::feature::unless_lacking;
use vmlb_tests::layer2::{self, Shape};
use vmlb_tests::namespace::Namespace;
use vmlb_tests::pass;
use vmlb_tests::probe;
use vmlb_tests::requests;
use vmlb_tests::requests::PATIENCE;
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

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
fn transfers_resume_after_an_uplink_was_away_and_under_another_mac_and_mtu() {
    unless_unable("transfers_resume_after_an_uplink_was_away_and_under_another_mac_and_mtu", || {
        for shape in [None, Some(Shape::Bridge)] {
            let cluster = match shape {
                Some(shape) => layer2::cluster(shape)?,
                None => Cluster::serving(Attachment::Routed, &Flags::default())?,
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
}

/// What a network manager would do is done here: routes are made again, addresses stay.
#[test]
fn transfers_resume_after_an_uplink_was_set_down_and_up() {
    unless_unable("transfers_resume_after_an_uplink_was_set_down_and_up", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            let flags = Flags { device: device.to_owned(), ..Flags::default() };
            let cluster = Cluster::serving(Attachment::Routed, &flags)?;
            let node = &cluster.topology.nodes[0];
            node.namespace.set_sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")?;
            layer2::downloads_meanwhile(&cluster, 5, || {
                thread::sleep(Duration::from_secs(1));
                node.namespace.ip("link set eth0 down\n")?;
                thread::sleep(Duration::from_millis(700));
                node.namespace.ip("link set eth0 up\n")?;
                layer2::routes(node)?;
                probe::wait("next hops that are kept fresh again", PATIENCE, || {
                    let known = node.namespace.output("ip", &["neigh", "show", "dev", "eth0"])?;
                    Ok(known.lines().filter(|line| line.contains(" managed")).count() >= 4)
                })
            })
            .with_context(|| device.to_owned())?;
        }
        Ok(())
    });
}

/// Clients are served by a first node of this shape.
fn is_served(name: &str, shape: Shape) {
    unless_lacking(name, shape.features(), || layer2::serves(&layer2::cluster(shape)?, shape));
}

#[test]
fn a_vlan_gets_tc_while_hardware_takes_its_tags_out() {
    unless_lacking("a_vlan_gets_tc_while_hardware_takes_its_tags_out", Shape::Vlan.features(), || {
        tags_that_hardware_takes_out(&layer2::cluster(Shape::Vlan)?)
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

/// In mode balance-alb the kernel refuses XDP on a bond, and each member has frames for an address of its own.
#[test]
fn a_bond_without_xdp_has_it_at_its_members_while_they_are_members() {
    let shape = Shape::Adaptive;
    unless_lacking(
        "a_bond_without_xdp_has_it_at_its_members_while_they_are_members",
        shape.features(),
        || {
            let cluster = layer2::cluster(shape)?;
            layer2::serves(&cluster, shape)?;
            let bond = layer2::device(&cluster, "bond0")?;
            let why = bond["reason"].as_str().unwrap_or_default();
            ensure!(why.starts_with("bond0: the driver refuses native XDP"), "{bond}");
            let node = &cluster.topology.nodes[0].namespace;
            let is_on = |members: &str| {
                probe::wait(members, PATIENCE, || Ok(layer2::device(&cluster, "bond0")?["on"] == members))
            };
            layer2::downloads_meanwhile(&cluster, 6, || {
                thread::sleep(Duration::from_secs(1));
                node.ip("link set eth1 nomaster\n")?;
                is_on("eth0")?;
                let left = node.output("ip", &["link", "show", "dev", "eth1"])?;
                ensure!(!left.contains("xdp"), "eth1 still has a program: {left}");
                thread::sleep(Duration::from_secs(1));
                node.ip("link set eth1 down\nlink set eth1 master bond0\n")?;
                is_on("eth0 and eth1")
            })?;
            layer2::serves(&cluster, shape)
        },
    );
}

#[test]
fn clients_on_a_vlan_of_a_bond_are_served() {
    is_served("clients_on_a_vlan_of_a_bond_are_served", Shape::VlanOnBond);
}

/// A client at the first node's second uplink, and the ways between both: by that uplink, and by the router.
fn second_uplink(cluster: &Cluster) -> Result<Namespace> {
    let far = cluster.topology.namespace("far")?;
    let (node, router) = (&cluster.topology.nodes[0], &cluster.topology.router);
    node.namespace.ip(&format!("link add eth1 type veth peer name eth0 netns {}\n", far.name()))?;
    router.ip(&format!("link add far type veth peer name eth1 netns {}\nlink set far up\n", far.name()))?;
    far.ip("addr add 198.51.100.2/24 dev eth0\naddr add fd00:51::2/64 dev eth0 nodad\n\
         link set eth0 up\nlink set eth1 up\n")?;
    node.namespace.ip(
        "addr add 198.51.100.11/24 dev eth1\naddr add fd00:51::11/64 dev eth1 nodad\nlink set eth1 up\n",
    )?;
    far.ip("route add default via 198.51.100.11\nroute add default via fd00:51::11\n")?;
    far.ip("link set eth1 address 02:00:00:00:fa:01\n")?;
    router.ip("route add 198.51.100.2/32 dev far\nroute add fd00:51::2/128 dev far\n\
         neigh replace 198.51.100.2 lladdr 02:00:00:00:fa:01 dev far\n\
         neigh replace fd00:51::2 lladdr 02:00:00:00:fa:01 dev far\n")?;
    for (host, device) in [(&far, "eth0"), (&far, "eth1"), (&node.namespace, "eth1"), (router, "far")] {
        host.offloads(device, &["tx", "off", "gro", "on"])?;
        host.set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        host.set_sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    pass::attach(&far, "eth0", &node.pin_root.join("pass"))?;
    Ok(far)
}

/// Octets that a device has received.
fn received(host: &Namespace, device: &str) -> Result<u64> {
    let text = host.read("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
    Ok(line.context("the device")?.split_whitespace().next().context("a count")?.parse()?)
}

#[test]
fn each_client_is_answered_by_the_uplink_that_leads_to_it() {
    unless_unable("each_client_is_answered_by_the_uplink_that_leads_to_it", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        let far = second_uplink(&cluster)?;
        let two = Flags::with(&["--device", "eth1=xdp", "--nodeport-addresses", "uplinks"]);
        cluster.launch_agent(0, &two)?;
        cluster.launch_agent(1, &Flags::default())?;
        cluster.wait_until_serving()?;
        let node = &cluster.topology.nodes[0];
        let download = |by_other: [&str; 2]| {
            for (family, other) in Family::ALL.into_iter().zip(by_other) {
                for service in ["first", "second"] {
                    let near = cluster.frontend(service, servers::BULK, 0, family)?;
                    for address in [near.ip(), other.parse()?] {
                        let frontend = SocketAddr::new(address, near.port());
                        let octets = far.run(|| requests::download(frontend, 300_000, 0));
                        octets.with_context(|| format!("{service} at {frontend}"))?;
                    }
                }
            }
            anyhow::Ok(())
        };
        let addresses = ["198.51.100.11", "fd00:51::11"];
        download(addresses).context("both ways by eth1")?;
        ensure!(received(&far, "eth1")? < 100_000, "answers went by the router");
        // From now on the answers leave by the uplink that the questions do not come by.
        node.namespace.ip(
            "route add 198.51.100.2/32 via 172.18.0.1 dev eth0\nroute add fd00:51::2/128 via fd00:18::1 dev eth0\n",
        )?;
        download(addresses).context("there by eth1, back by eth0")?;
        ensure!(received(&far, "eth1")? > 8 * 300_000, "answers did not go by the router");
        Ok(())
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
