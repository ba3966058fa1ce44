//! Overlays between the nodes of a topology, as CNIs lay them, with the rules that CNIs put beside them.

use std::fmt;

use anyhow::{Context, Result};

use crate::address::{self, Family};
use crate::cluster::Cluster;
use crate::feature::Feature;
use crate::namespace::Namespace;
use crate::requests::PATIENCE;
use crate::topology::Node;
use crate::{agent, kube_proxy, probe};

pub mod relay;
mod wireguard;

/// Name of the overlay's device on every node.
pub const DEVICE: &str = "overlay0";

/// Octets that a packet may have in any of them.
pub const MTU: u16 = 1420;

/// Name of the tables with the CNI's rules.
const TABLE: &str = "vmlb-cni";

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// VXLAN, as flannel has it: all that is to be known is written down by the CNI.
    Vxlan,
    /// Geneve with UDP checksums, as OVN has it, whose ends find each other by ARP.
    Geneve,
    /// IPv4 in IPv4, as Calico has it; IPv6 goes by the uplinks.
    Ipip,
    /// Either family in IPv6.
    Ip6Tunnel,
    /// A program in user space with TUN devices; [`relay::Relay`] makes them beforehand.
    Tun,
    /// GRE without Ethernet inside; IPv6 goes by the uplinks.
    Gre,
    /// WireGuard, between two nodes.
    WireGuard,
}

impl fmt::Display for Overlay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

impl Overlay {
    /// What the kernel must have.
    pub fn features(self) -> &'static [Feature] {
        match self {
            Self::Vxlan => &[Feature::Vxlan],
            Self::Geneve => &[Feature::Geneve],
            Self::Ipip => &[Feature::Ipip],
            Self::Ip6Tunnel => &[Feature::Ip6Tunnel],
            Self::Gre => &[Feature::Gre],
            Self::WireGuard => &[Feature::WireGuard],
            Self::Tun => &[],
        }
    }

    /// The families it carries.
    pub fn families(self) -> &'static [Family] {
        match self {
            Self::Vxlan | Self::Geneve | Self::Ip6Tunnel | Self::Tun | Self::WireGuard => &Family::ALL,
            Self::Ipip | Self::Gre => &[Family::V4],
        }
    }

    /// Lays it between all nodes of a cluster and routes the pods' networks by it, with all that hangs on its MTU.
    pub fn lay(self, cluster: &Cluster) -> Result<()> {
        for node in &cluster.topology.nodes {
            self.join(cluster, node).with_context(|| format!("{self} on {}", node.name))?;
        }
        Ok(())
    }

    /// The same for one node: its CNI starts (again).
    pub fn join(self, cluster: &Cluster, node: &Node) -> Result<()> {
        let others = || cluster.topology.nodes.iter().filter(|other| other.index != node.index);
        let remote = others().next().context("an overlay takes two nodes")?;
        let (here, there) = (node.addresses, remote.addresses);
        let make = match self {
            Self::Vxlan => format!("vxlan id 1 local {} dev eth0 dstport 8472 nolearning", here.v4),
            Self::Geneve => format!("geneve id 1 remote {} udpcsum", there.v4),
            Self::Ipip => format!("ipip local {} remote {}", here.v4, there.v4),
            Self::Ip6Tunnel => {
                format!("ip6tnl mode any encaplimit none local {} remote {}", here.v6, there.v6)
            }
            Self::Tun => String::new(),
            Self::Gre => format!("gre local {} remote {}", here.v4, there.v4),
            Self::WireGuard => "wireguard".to_owned(),
        };
        let link = match self {
            Self::Vxlan | Self::Geneve => format!("address {}", mac(node)),
            _ => String::new(),
        };
        let lines = if self == Self::Tun {
            format!("link set {DEVICE} mtu {MTU}\n")
        } else {
            format!("link add {DEVICE} {link} mtu {MTU} type {make}\n")
        };
        node.namespace.ip(&lines)?;
        if self == Self::WireGuard {
            wireguard::join(DEVICE, node, remote)?;
        }
        for family in self.families() {
            let length = if *family == Family::V4 { 32 } else { 128 };
            let own = address(node, *family);
            node.namespace.ip(&format!("addr add {own}/{length} dev {DEVICE}\n"))?;
        }
        node.namespace.ip(&format!("link set {DEVICE} up\n"))?;
        for (other, family) in others().flat_map(|other| self.families().iter().map(move |one| (other, *one)))
        {
            let prefix = &address::pod_prefixes(other.index)[usize::from(family == Family::V6)];
            let gateway = address(other, family);
            let way = match self {
                Self::Vxlan | Self::Geneve => format!("via {gateway} dev {DEVICE} onlink"),
                _ => format!("dev {DEVICE}"),
            };
            let version = if family == Family::V4 { "-4" } else { "-6" };
            node.namespace.output("ip", &[version, "route", "flush", "exact", prefix])?;
            node.namespace.ip(&format!("route add {prefix} {way}\n"))?;
            if self == Self::Vxlan {
                let neighbour =
                    format!("neigh replace {gateway} lladdr {} dev {DEVICE} nud permanent\n", mac(other));
                node.namespace.ip(&neighbour)?;
            }
        }
        if self == Self::Vxlan {
            for other in others() {
                let (end, to) = (mac(other), other.addresses.v4.to_string());
                node.namespace.output("bridge", &["fdb", "append", &end, "dev", DEVICE, "dst", &to])?;
            }
        }
        Ok(())
    }
}

/// The MAC address of a node's end.
fn mac(node: &Node) -> String {
    format!("02:00:00:00:0e:{:02x}", node.index + 1)
}

/// The address of a node's own device in the overlay: the first of its pods' network, as flannel has it.
pub fn address(node: &Node, family: Family) -> String {
    let [v4, v6] = address::pod_prefixes(node.index);
    let prefix = if family == Family::V4 { v4 } else { v6 };
    prefix.split('/').next().unwrap_or_default().to_owned()
}

/// Gives everything on the pods' side the overlay's MTU, as CNIs do.
pub fn shrink(cluster: &Cluster) -> Result<()> {
    for pod in &cluster.pods {
        pod.namespace.ip(&format!("link set eth0 mtu {MTU}\n"))?;
    }
    for node in &cluster.topology.nodes {
        let pods = cluster.pods.iter().filter(|pod| pod.node == node.name);
        let lines: String = pods.map(|pod| format!("link set {} mtu {MTU}\n", pod.device)).collect();
        node.namespace.ip(&lines)?;
    }
    Ok(())
}

/// Waits until the overlay's device is known to the datapath: it is looked for once the backends are known, and what comes
/// until then is kube-proxy's, which not every test has.
pub fn attached(cluster: &Cluster) -> Result<()> {
    cluster.topology.nodes.iter().try_for_each(|node| {
        probe::wait("the overlay's device", PATIENCE, || {
            let status = agent::json(node, &["status"])?;
            let mut devices = status["devices"].as_array().context("devices")?.iter();
            Ok(devices.any(|device| device["name"] == DEVICE))
        })
    })
}

/// Makes a node as strict as distributions do: what comes in must come the way that an answer would take.
pub fn check_paths(node: &Namespace) -> Result<()> {
    ["all", "default"]
        .into_iter()
        .try_for_each(|which| node.set_sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), "1"))
}

/// The CNI's rules for what pods send out of the cluster, in flannel's form, with counters.
pub fn masquerade(node: &Node) -> Result<()> {
    let pods = address::pod_prefixes(node.index);
    let rules: String = [("ip", "10.244.0.0/16", &pods[0]), ("ip6", "fd00:10:244::/48", &pods[1])]
        .into_iter()
        .map(|(table, cluster, own)| {
            format!(
                "table {table} {TABLE} {{\n\
                 chain postrouting {{ type nat hook postrouting priority srcnat + 1;\n\
                 {table} saddr {own} {table} daddr {cluster} return;\n\
                 {table} saddr {cluster} {table} daddr {own} return;\n\
                 {table} saddr != {cluster} {table} daddr {own} return;\n\
                 {table} saddr {cluster} counter masquerade fully-random;\n\
                 {table} saddr != {cluster} {table} daddr {cluster} counter masquerade fully-random;\n\
                 }}\n}}\n"
            )
        })
        .collect();
    node.namespace.feed("nft", &["-f", "-"], &rules)
}

/// Connections that the CNI's rules masqueraded on a node.
pub fn masqueraded(node: &Node) -> Result<u64> {
    kube_proxy::counted(&node.namespace, TABLE)
}
