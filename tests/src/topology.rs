//! The rig's hosts: clients behind a router, nodes on a bridge of that router, pods in the nodes; each a network
//! namespace, joined by veth pairs.
//!
//! ```text
//! client1 eth0 ── client1 ┐        ┌ node1 ── eth0 node1 pod1 ── eth0 pod
//!                         router br0
//! client2 eth0 ── client2 ┘        └ node2 ── eth0 node2 cni0 ── eth0 pod
//! ```
//!
//! Offloads imitate wires: whatever a cable would carry has full checksums, so each end of a cable has `tx off`. Pods
//! keep their offloads. The router's ends of the nodes' cables have GRO on, without which redirects by the nodes deliver
//! nothing and say nothing, and an XDP program, without which `XDP_TX` does the same ([`crate::pass`]).

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::address::{self, Addresses};
use crate::bpffs;
use crate::lab::launcher::{Launcher, Rules};
use crate::leftovers::Prefix;
use crate::namespace::Namespace;
use crate::pass;
use crate::pod::{Pod, Workload};

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A route per pod to its own veth, as Calico does.
    Routed,
    /// A bridge `cni0` per node, as the bridge CNI and flannel do.
    Bridged,
}

/// A client outside the cluster.
#[derive(Debug)]
pub struct Client {
    /// Its namespace, with device `eth0`.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Addresses,
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its Kubernetes name: `node1`, `node2`, …
    pub name: String,
    /// Its number, from 0.
    pub index: u8,
    /// Its namespace, with the uplink `eth0`.
    pub namespace: Namespace,
    /// Its addresses on the uplink.
    pub addresses: Addresses,
    /// Its folder in bpffs.
    pub pin_root: PathBuf,
    attachment: Attachment,
    pods: u8,
}

/// The hosts of one test. Dropping it removes them all.
#[derive(Debug)]
pub struct Topology {
    /// Clients, in order.
    pub clients: Vec<Client>,
    /// Nodes, in order.
    pub nodes: Vec<Node>,
    /// What joins them.
    pub router: Namespace,
    prefix: Prefix,
}

impl Topology {
    /// Builds `clients` clients and `nodes` nodes, each no more than 200.
    pub fn build(prefix: Prefix, clients: u8, nodes: u8, attachment: Attachment) -> Result<Self> {
        let router = Namespace::create(&prefix.name("router")).context("making the router")?;
        let mut topology = Self { clients: Vec::new(), nodes: Vec::new(), router, prefix };
        topology.start_router()?;
        for index in 0..clients {
            let client = topology.add_client(index).with_context(|| format!("making client {index}"))?;
            topology.clients.push(client);
        }
        for index in 0..nodes {
            let node =
                topology.add_node(index, attachment).with_context(|| format!("making node {index}"))?;
            topology.nodes.push(node);
        }
        topology.join_pod_networks()?;
        Ok(topology)
    }

    /// Starts a pod on node number `node` with the small servers of [`crate::servers`] in it.
    pub fn add_pod(&mut self, node: usize, name: &str, workload: Workload) -> Result<Pod> {
        let (host, index, namespace) = self.place(node, name)?;
        Pod::start(host, index, name, workload, namespace).with_context(|| format!("making pod {name}"))
    }

    /// Removes `old` and gives its addresses to a new pod with the small servers in it, as an address pool does.
    pub fn replace_pod(&mut self, old: Pod, name: &str, workload: Workload) -> Result<Pod> {
        let host = self.nodes.iter().find(|node| node.name == old.node).context("no such node")?;
        let index = (0..host.pods).find(|&index| address::pod(host.index, index) == old.addresses);
        let index = index.context("its addresses are its own")?;
        // A namespace lets go of its devices some time after its end.
        host.namespace.ip(&format!("link del {}\n", old.device))?;
        drop(old);
        let namespace = Namespace::create(&self.prefix.name(name))?;
        Pod::start(host, index, name, workload, namespace).with_context(|| format!("making pod {name}"))
    }

    /// A virt-launcher pod on node number `node` with a place for a VM, see [`crate::lab`].
    pub fn add_launcher(&mut self, node: usize, name: &str, rules: &Rules) -> Result<Launcher> {
        let (host, index, namespace) = self.place(node, name)?;
        let pod = Pod::connect(host, index, name, Workload::Vm, namespace);
        pod.and_then(|pod| Launcher::prepare(pod, rules)).with_context(|| format!("making launcher {name}"))
    }

    /// A namespace that is no host of the topology, removed with it.
    pub fn namespace(&self, role: &str) -> Result<Namespace> {
        Namespace::create(&self.prefix.name(role))
    }

    /// The place of a new pod: its node, its number there, and a namespace.
    fn place(&mut self, node: usize, name: &str) -> Result<(&Node, u8, Namespace)> {
        let host = self.nodes.get_mut(node).context("no such node")?;
        let index = host.pods;
        host.pods += 1;
        let namespace = Namespace::create(&self.prefix.name(name))?;
        Ok((host, index, namespace))
    }

    /// A new folder for files of this test, removed with it.
    pub fn folder(&self, role: &str) -> Result<PathBuf> {
        self.prefix.folder(role)
    }

    /// Leaves the hosts up for good.
    pub fn keep(mut self) {
        self.prefix.keep();
        let Self { clients, nodes, router, prefix } = self;
        drop(prefix);
        // Their guards would remove the namespaces.
        std::mem::forget((clients, nodes, router));
    }

    fn start_router(&self) -> Result<()> {
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.router.set_sysctl(key, "1")?;
        }
        let gateway = address::NODE_GATEWAY;
        self.router.ip(&format!(
            "link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add {}/24 dev br0\n\
             addr add {}/64 dev br0 nodad\n\
             link set br0 up\n",
            gateway.v4, gateway.v6
        ))
    }

    /// Lays a cable from the router's new device `device` to `eth0` of `host`.
    fn cable(&self, device: &str, host: &Namespace, mac: &str) -> Result<()> {
        self.router.ip(&format!(
            "link add {device} type veth peer name eth0 address {mac} netns {}\nlink set {device} up\n",
            host.name()
        ))?;
        self.router.offloads(device, &["tx", "off", "gro", "on"])?;
        host.offloads("eth0", &["tx", "off"])
    }

    fn add_client(&self, index: u8) -> Result<Client> {
        let device = format!("client{}", index + 1);
        let namespace = Namespace::create(&self.prefix.name(&device))?;
        self.cable(&device, &namespace, &format!("02:00:00:00:c1:{:02x}", index + 1))?;
        let (addresses, gateway) = (address::client(index), address::CLIENT_GATEWAY);
        self.router.ip(&format!(
            "addr add {}/32 dev {device}\n\
             addr add {}/128 dev {device} nodad\n\
             route add {}/32 dev {device}\n\
             route add {}/128 dev {device}\n",
            gateway.v4, gateway.v6, addresses.v4, addresses.v6
        ))?;
        namespace.ip(&format!(
            "addr add {}/32 dev eth0\n\
             addr add {}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {} dev eth0 onlink\n\
             route add default via {} dev eth0 onlink\n",
            addresses.v4, addresses.v6, gateway.v4, gateway.v6
        ))?;
        Ok(Client { namespace, addresses })
    }

    fn add_node(&self, index: u8, attachment: Attachment) -> Result<Node> {
        let name = format!("node{}", index + 1);
        let namespace = Namespace::create(&self.prefix.name(&name))?;
        self.cable(&name, &namespace, &format!("02:00:00:00:0d:{:02x}", index + 1))?;
        let pin_root = bpffs::pin_root(&self.prefix.name(&name))?;
        self.router.ip(&format!("link set {name} master br0\n"))?;
        pass::attach(&self.router, &name, &pin_root.join("pass"))?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            namespace.set_sysctl(key, "1")?;
        }
        let (addresses, gateway) = (address::node(index), address::NODE_GATEWAY);
        namespace.ip(&format!(
            "addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {}\n\
             route add default via {}\n",
            addresses.v4, addresses.v6, gateway.v4, gateway.v6
        ))?;
        if attachment == Attachment::Bridged {
            let bridge = address::pod_gateway(index);
            namespace.ip(&format!(
                "link add cni0 type bridge forward_delay 0 mcast_snooping 0\n\
                 addr add {}/24 dev cni0\n\
                 addr add {}/64 dev cni0 nodad\n\
                 link set cni0 up\n",
                bridge.v4, bridge.v6
            ))?;
        }
        Ok(Node { name, index, namespace, addresses, pin_root, attachment, pods: 0 })
    }

    /// Routes between the pods of different nodes, without an overlay.
    fn join_pod_networks(&self) -> Result<()> {
        for node in &self.nodes {
            let routes: String = self
                .nodes
                .iter()
                .filter(|other| other.index != node.index)
                .map(|other| {
                    let [v4, v6] = address::pod_prefixes(other.index);
                    let via = other.addresses;
                    format!("route add {v4} via {}\nroute add {v6} via {}\n", via.v4, via.v6)
                })
                .collect();
            node.namespace.ip(&routes)?;
        }
        Ok(())
    }
}

impl Node {
    /// How this node's pods hang on it.
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }
}
