//! Uplinks as networks have them: the cable of a node carries VLANs, or is a member of a bond or the port of a bridge.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::address::{self, Family};
use crate::agent::{self, Flags};
use crate::capture::{self, Capture};
use crate::cluster::Cluster;
use crate::feature::Feature;
use crate::topology::{Attachment, Node, Topology};
use crate::{pass, probe, requests, servers};

/// What the node's addresses are on, in place of `eth0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// VLAN 100 on the cable.
    Vlan,
    /// VLAN 100 in service VLAN 7 on the cable.
    ServiceVlan,
    /// A bond of two cables, of which one is used; the far ends are ports of one bridge.
    Backup,
    /// A bond of two cables, used in turn, to a bond.
    RoundRobin,
    /// A bond of two cables that gives each its own clients, by the cable's own address; the kernel refuses XDP on it.
    Adaptive,
    /// A bridge with the cable as its port.
    Bridge,
    /// VLAN 100 on a bond of two cables, of which one is used.
    VlanOnBond,
}

impl Shape {
    /// What the kernel must have.
    pub fn features(self) -> &'static [Feature] {
        match self {
            Self::Vlan | Self::ServiceVlan => &[Feature::Vlan],
            Self::Backup | Self::RoundRobin | Self::Adaptive => &[Feature::Bond],
            Self::Bridge => &[],
            Self::VlanOnBond => &[Feature::Vlan, Feature::Bond],
        }
    }

    /// The device with the node's addresses.
    pub fn uplink(self) -> &'static str {
        match self {
            Self::Vlan => "eth0.100",
            Self::ServiceVlan => "eth0.7.100",
            Self::Backup | Self::RoundRobin | Self::Adaptive => "bond0",
            Self::Bridge => "br-ex",
            Self::VlanOnBond => "bond0.100",
        }
    }

    /// The device that has its XDP program, and the tags, as `vmlb status` tells; `None`: itself.
    pub fn on(self) -> Option<&'static str> {
        match self {
            Self::Vlan => Some("eth0, VLAN 100"),
            Self::ServiceVlan => Some("eth0, service VLAN 7, VLAN 100"),
            Self::Backup | Self::RoundRobin => None,
            Self::Adaptive => Some("eth0 and eth1"),
            Self::Bridge => Some("eth0"),
            Self::VlanOnBond => Some("bond0, VLAN 100"),
        }
    }
}

/// Brings a node whose cable is as [`Topology::build`] laid it, and that no agent serves yet, into this shape.
pub fn shape(topology: &Topology, node: usize, shape: Shape) -> Result<()> {
    let node = &topology.nodes[node];
    node.namespace.ip("addr flush dev eth0\n")?;
    match shape {
        Shape::Vlan => vlan(topology, node, "eth0", &node.name)?,
        Shape::ServiceVlan => service_vlan(topology, node)?,
        Shape::Backup => bond(topology, node, "active-backup")?,
        Shape::Adaptive => bond(topology, node, "balance-alb")?,
        Shape::RoundRobin => {
            bond(topology, node, "balance-rr")?;
            let (name, router) = (&node.name, &topology.router);
            router.ip(&format!(
                "link add far type bond mode balance-rr miimon 50\n\
                 link set {name} down\nlink set {name}b down\nlink set {name} master far\nlink set {name}b master far\n\
                 link set far up\nlink set far master br0\n"
            ))?;
        }
        Shape::Bridge => node.namespace.ip(
            "link add br-ex type bridge forward_delay 0 mcast_snooping 0\nlink set eth0 master br-ex\nlink set br-ex up\n",
        )?,
        Shape::VlanOnBond => {
            bond(topology, node, "active-backup")?;
            // The far bridge keeps all its traffic in VLAN 100, with tags on both cables of the bond and without elsewhere.
            topology.router.ip("link set br0 type bridge vlan_filtering 1\n")?;
            for device in [node.name.clone(), format!("{}b", node.name)] {
                topology.router.output("bridge", &["vlan", "del", "dev", &device, "vid", "1"])?;
                topology.router.output("bridge", &["vlan", "add", "dev", &device, "vid", "100"])?;
                topology.router.offloads(&device, &["txvlan", "off"])?;
            }
            for (device, itself) in [("node2", ""), ("br0", "self")] {
                let line = format!("vlan add dev {device} vid 100 pvid untagged {itself}");
                topology.router.output("bridge", &line.split_whitespace().collect::<Vec<_>>())?;
            }
            for device in ["eth0", "eth1", "bond0"] {
                node.namespace.offloads(device, &["rxvlan", "off"])?;
            }
            node.namespace.ip("link add link bond0 name bond0.100 type vlan id 100\nlink set bond0.100 up\n")?;
        }
    }
    address(node, shape.uplink())
}

/// A VLAN on the cable between `here` and the router's `there`.
fn vlan(topology: &Topology, node: &Node, here: &str, there: &str) -> Result<()> {
    topology.router.offloads(there, &["txvlan", "off"])?;
    node.namespace.offloads(here, &["rxvlan", "off"])?;
    topology.router.ip(&format!(
        "link set {there} nomaster\nlink add link {there} name {there}.100 type vlan id 100\n\
         link set {there}.100 up\nlink set {there}.100 master br0\n"
    ))?;
    node.namespace
        .ip(&format!("link add link {here} name {here}.100 type vlan id 100\nlink set {here}.100 up\n"))
}

fn service_vlan(topology: &Topology, node: &Node) -> Result<()> {
    let there = &node.name;
    topology.router.offloads(there, &["txvlan", "off", "tx-vlan-stag-hw-insert", "off"])?;
    node.namespace.offloads("eth0", &["rxvlan", "off", "rx-vlan-stag-hw-parse", "off"])?;
    // A cable of 1500 octets has room for one tag more.
    topology.router.ip(&format!(
        "link set {there} nomaster\nlink add link {there} name {there}.7 type vlan protocol 802.1ad id 7\n\
         link add link {there}.7 name {there}.7.100 mtu 1496 type vlan id 100\nlink set {there}.7 up\n\
         link set {there}.7.100 up\nlink set {there}.7.100 master br0\n"
    ))?;
    node.namespace.ip("link add link eth0 name eth0.7 type vlan protocol 802.1ad id 7\nlink set eth0.7 up\n\
         link add link eth0.7 name eth0.7.100 mtu 1496 type vlan id 100\nlink set eth0.7.100 up\n")
}

/// A second cable to the same bridge, and a bond of both.
fn bond(topology: &Topology, node: &Node, mode: &str) -> Result<()> {
    let second = format!("{}b", node.name);
    let router = &topology.router;
    router.ip(&format!(
        "link add {second} type veth peer name eth1 netns {}\nlink set {second} master br0\nlink set {second} up\n",
        node.namespace.name()
    ))?;
    router.offloads(&second, &["tx", "off", "gro", "on"])?;
    node.namespace.offloads("eth1", &["tx", "off"])?;
    pass::attach(router, &second, &node.pin_root.join("pass"))?;
    node.namespace.ip(&format!(
        "link add bond0 type bond mode {mode} miimon 50\nlink set eth0 down\nlink set eth0 master bond0\n\
         link set eth1 master bond0\nlink set bond0 up\n"
    ))?;
    node.namespace.offloads("bond0", &["tx", "off"])
}

/// Gives a device the node's addresses and routes.
fn address(node: &Node, device: &str) -> Result<()> {
    let own = node.addresses;
    node.namespace
        .ip(&format!("addr add {}/24 dev {device}\naddr add {}/64 dev {device} nodad\n", own.v4, own.v6))?;
    routes(node)
}

/// Gives a node its routes by the uplink; a device that goes down loses them.
pub fn routes(node: &Node) -> Result<()> {
    let gateway = address::NODE_GATEWAY;
    let mut lines =
        format!("route replace default via {}\nroute replace default via {}\n", gateway.v4, gateway.v6);
    for other in [0, 1].into_iter().filter(|other| *other != node.index) {
        let ([v4, v6], via) = (address::pod_prefixes(other), address::node(other));
        lines += &format!("route replace {v4} via {}\nroute replace {v6} via {}\n", via.v4, via.v6);
    }
    node.namespace.ip(&lines)
}

/// Octets of a transfer: some hundred packets each way.
const OCTETS: u64 = 300_000;

/// Frames of one transfer that may go by TC: the first ones, until their next hop is known.
const FIRST_ONES: usize = 20;

/// A cluster whose first node has an uplink of this shape, served by XDP, by agents that serve.
pub fn cluster(of: Shape) -> Result<Cluster> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    shape(&cluster.topology, 0, of).with_context(|| format!("{of:?}"))?;
    let first = Flags { device: format!("{}=xdp", of.uplink()), ..Flags::default() };
    cluster.launch_agent(0, &first)?;
    cluster.launch_agent(1, &Flags::default())?;
    cluster.wait_until_serving()?;
    Ok(cluster)
}

/// What `vmlb status` says of a device of the first node.
pub fn device(cluster: &Cluster, name: &str) -> Result<Value> {
    let status = agent::json(&cluster.topology.nodes[0], &["status"])?;
    let mut devices = status["devices"].as_array().into_iter().flatten();
    devices.find(|device| device["name"] == name).cloned().with_context(|| format!("no {name} in {status}"))
}

/// Everything that clients ask of the first node's own VM and of the other's is served, with right sums, by XDP: the
/// stack's taps do not see what goes on to the other node.
pub fn serves(cluster: &Cluster, of: Shape) -> Result<()> {
    // The agent tells the commands a moment after it serves.
    probe::wait("XDP where it belongs", requests::PATIENCE, || {
        let uplink = device(cluster, of.uplink())?;
        Ok(uplink["mode"] == "xdp" && uplink["on"].as_str() == of.on())
    })?;
    let uplink = device(cluster, of.uplink())?;
    let arriving = Capture::start(cluster.client())?;
    for family in Family::ALL {
        let client = cluster.topology.clients[0].addresses.of(family);
        let node = cluster.topology.nodes[0].addresses.of(family);
        ask(cluster, "first", "vm01", family, client).with_context(|| format!("{of:?}, {family}, here"))?;
        let node1 = &cluster.topology.nodes[0].namespace;
        let port = cluster.frontend("second", servers::BULK, 0, family)?.port();
        let passing = Capture::only(node1, move |frame| is_to(frame, port))?;
        let asked = ask(cluster, "second", "vm02", family, node);
        let seen = passing.finish().len();
        asked.with_context(|| format!("{of:?}, {family}, elsewhere"))?;
        if sends(&uplink) {
            ensure!(
                seen < FIRST_ONES,
                "{of:?}, {family}: the stack has seen {seen} frames to the other node"
            );
        } else {
            // An old kernel does not tell that XDP can send out of a veth, and out of some bonds it cannot: XDP marks,
            // TC sends.
            ensure!(
                deferred(cluster)? > 100,
                "{of:?}, {family}: XDP has marked {} frames",
                deferred(cluster)?
            );
        }
    }
    let checked = capture::check_sums(&arriving.finish())?;
    ensure!(checked > 500, "only {checked} packets were seen");
    Ok(())
}

/// Whether XDP can send out of the device, or of what carries it.
fn sends(device: &Value) -> bool {
    let mut flags = device["flags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    flags.any(|flag| flag == "carried" || flag == "xdp-transmit")
}

/// Frames that XDP left to TC because it cannot send.
fn deferred(cluster: &Cluster) -> Result<u64> {
    let status = agent::json(&cluster.topology.nodes[0], &["status"])?;
    let reasons = status["reasons"].as_array().context("reasons")?;
    let found = reasons.iter().find(|reason| reason["reason"] == "no_transmit");
    Ok(found.and_then(|reason| reason["packets"].as_u64()).unwrap_or(0))
}

/// Whether a frame is one of TCP to this port.
fn is_to(frame: &[u8], port: u16) -> bool {
    let Ok(packet) = etherparse::PacketHeaders::from_ethernet_slice(frame) else { return false };
    matches!(&packet.transport, Some(etherparse::TransportHeader::Tcp(tcp)) if tcp.destination_port == port)
}

fn ask(cluster: &Cluster, service: &str, pod: &str, family: Family, source: IpAddr) -> Result<()> {
    let at = |port| cluster.frontend(service, port, 0, family);
    let [http, bulk, udp]: [SocketAddr; 3] = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
    cluster.client().run(|| requests::served_by([http, bulk, udp], OCTETS, (pod, source)))
}

/// A download at a moderate pace from each VM in each family, while `work` goes on: all arrive whole.
pub fn downloads_meanwhile(cluster: &Cluster, seconds: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    const RATE: u64 = 400_000;
    std::thread::scope(|scope| {
        let mut downloads = Vec::new();
        for family in Family::ALL {
            for service in ["first", "second"] {
                let frontend = cluster.frontend(service, servers::BULK, 0, family)?;
                let download = move || requests::download(frontend, RATE * seconds, RATE).map(drop);
                downloads.push((frontend, scope.spawn(move || cluster.client().run(download))));
            }
        }
        let worked = work();
        for (frontend, download) in downloads {
            let ended = download.join().map_err(|_| anyhow::anyhow!("a download panicked"))?;
            ended.with_context(|| format!("from {frontend}"))?;
        }
        worked
    })
}
