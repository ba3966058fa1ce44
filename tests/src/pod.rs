//! A pod: a namespace behind its node, with the rig's small servers inside.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::address::{self, Addresses};
use crate::namespace::Namespace;
use crate::topology::{Attachment, Node};

/// What runs in the pod, as far as Kubernetes can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// A virt-launcher pod of KubeVirt with the VM of the pod's name.
    Vm,
    /// A plain container.
    Container,
}

/// A running pod. Dropping it kills its servers and removes its devices.
pub struct Pod {
    /// Name of the VM or container; the pod's object name is [`Pod::object`].
    pub name: String,
    /// What runs in it.
    pub workload: Workload,
    /// Its addresses.
    pub addresses: Addresses,
    /// The name of its node.
    pub node: String,
    /// Its device in the node's namespace.
    pub device: String,
    /// Its namespace, with device `eth0`.
    pub namespace: Namespace,
    /// The VM in it, whose name outlives the pod's in a live migration.
    pub vm: Vm,
    server: Option<Child>,
}

/// What KubeVirt's labels on a launcher pod say of its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The VM's name.
    pub name: String,
    /// The UID of the VirtualMachineInstance: the same in both launchers of a migration, another one after a restart.
    pub uid: String,
}

/// The link-local next hop of routed pods, as Calico has it.
const ROUTED_GATEWAY_V4: &str = "169.254.1.1";
const ROUTED_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

impl Pod {
    /// A pod with the small servers in it.
    pub(crate) fn start(
        node: &Node,
        index: u8,
        name: &str,
        workload: Workload,
        namespace: Namespace,
    ) -> Result<Self> {
        let mut pod = Self::connect(node, index, name, workload, namespace)?;
        pod.server = Some(serve(&pod.namespace, name)?);
        Ok(pod)
    }

    /// A pod with nothing in it.
    pub(crate) fn connect(
        node: &Node,
        index: u8,
        name: &str,
        workload: Workload,
        namespace: Namespace,
    ) -> Result<Self> {
        let addresses = address::pod(node.index, index);
        let device = format!("pod{}", index + 1);
        node.namespace.ip(&format!(
            "link add {device} type veth peer name eth0 address 02:00:00:{:02x}:ad:{:02x} netns {}\n",
            node.index + 1,
            index + 1,
            namespace.name()
        ))?;
        match node.attachment() {
            Attachment::Routed => attach_routed(node, &device, addresses, &namespace)?,
            Attachment::Bridged => attach_bridged(node, &device, addresses, &namespace)?,
        }
        let vm = Vm { name: name.to_owned(), uid: uid(addresses, "aaaa") };
        let node = node.name.clone();
        Ok(Self { name: name.to_owned(), workload, addresses, node, device, namespace, vm, server: None })
    }

    /// The name of the Pod object.
    pub fn object(&self) -> String {
        match self.workload {
            Workload::Vm => format!("virt-launcher-{}-abcde", self.name),
            Workload::Container => self.name.clone(),
        }
    }

    /// The UID of the Pod object.
    pub fn uid(&self) -> String {
        uid(self.addresses, "0000")
    }

    /// The UID of the VirtualMachineInstance in the pod.
    pub fn vmi_uid(&self) -> String {
        self.vm.uid.clone()
    }

    /// Leaves the pod up for good.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _gone = server.kill();
            let _reaped = server.wait();
        }
    }
}

/// Starts the small servers in a namespace, under the name that they give in their answers.
pub(crate) fn serve(namespace: &Namespace, name: &str) -> Result<Child> {
    let mut server = namespace
        .command(crate::server_binary()?)
        .args(["serve", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the pod's servers")?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().context("a pipe was asked for")?).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the servers of pod {name} did not start");
    Ok(server)
}

/// A UID in the API's form that differs per pod, since the pod's address does.
fn uid(pod: Addresses, kind: &str) -> String {
    format!("{:08x}-0000-4000-{kind}-000000000000", u32::from(pod.v4))
}

impl fmt::Debug for Pod {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "pod {} on {} at {}", self.name, self.node, self.addresses)
    }
}

/// As Calico does: host routes to a veth whose node end answers ARP for anything.
fn attach_routed(node: &Node, device: &str, pod: Addresses, namespace: &Namespace) -> Result<()> {
    node.namespace.set_sysctl(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
    node.namespace.set_sysctl(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
    node.namespace.ip(&format!(
        "link set {device} address ee:ee:ee:ee:ee:ee\n\
         addr add {ROUTED_GATEWAY_V6}/64 dev {device} nodad\n\
         link set {device} up\n\
         route add {}/32 dev {device}\n\
         route add {}/128 dev {device}\n",
        pod.v4, pod.v6
    ))?;
    namespace.ip(&format!(
        "addr add {}/32 dev eth0\n\
         addr add {}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {ROUTED_GATEWAY_V4} dev eth0 scope link\n\
         route add default via {ROUTED_GATEWAY_V4}\n\
         route add default via {ROUTED_GATEWAY_V6} dev eth0\n",
        pod.v4, pod.v6
    ))
}

/// As the bridge CNI does: the veth is a port of `cni0`, which is the pods' gateway.
fn attach_bridged(node: &Node, device: &str, pod: Addresses, namespace: &Namespace) -> Result<()> {
    let gateway = address::pod_gateway(node.index);
    node.namespace.ip(&format!("link set {device} master cni0 up\n"))?;
    namespace.ip(&format!(
        "addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {}\n\
         route add default via {}\n",
        pod.v4, pod.v6, gateway.v4, gateway.v6
    ))
}
