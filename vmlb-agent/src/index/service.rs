//! A Service as the control plane sees it: what it takes to serve it, or why it is left alone.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use vmlb_common::wire::Protocol;

use crate::facts::Cidr;
use crate::object::Name;

/// A Service of type NodePort or LoadBalancer, or one of type ClusterIP that has `externalIPs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// When it was made, seconds since 1970; unknown counts as new. The older of two claims wins.
    pub created: i64,
    /// Which backends external traffic may use.
    pub policy: Policy,
    /// How a backend is chosen; `None`: as the agent's flag says.
    pub algorithm: Option<Algorithm>,
    /// What VMs on other nodes see as the client; `None`: as the agent's flag says.
    pub forwarding: Option<Forwarding>,
    /// The families it has; `None`: those of its EndpointSlices.
    pub families: Option<Families>,
    /// Load-balancer addresses that are ours to serve.
    pub addresses: Vec<IpAddr>,
    /// `externalIPs`, which are served where the agent is told so.
    pub external_ips: Vec<IpAddr>,
    /// For how many seconds after its last new flow a client stays with a backend (`sessionAffinity`); 0: it does not.
    pub affinity: u32,
    /// The clients that load-balancer addresses admit (`loadBalancerSourceRanges`), of either family; none: everybody.
    pub ranges: Vec<Cidr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Where balancers outside ask whether this node has backends of it (`healthCheckNodePort`); 0: they do not.
    pub health_port: u16,
    /// Why the whole Service is left to the node's stack.
    pub left: Option<Left>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty for the only one.
    pub name: Arc<str>,
    /// The port on load-balancer addresses.
    pub port: u16,
    /// The port on node addresses; 0: none.
    pub node_port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every node's backends.
    Cluster,
    /// This node's backends, the client's address kept.
    Local,
}

/// Annotation `vmlb.io/algorithm`, and flag `--algorithm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Algorithm {
    /// By the tuple's hash.
    #[default]
    Maglev,
    /// By the dice.
    Random,
}

/// Annotation `vmlb.io/forwarding`, and flag `--forwarding`: how a VM on another node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Forwarding {
    /// With this node's address as the source.
    #[default]
    Snat,
    /// With the client's, by the tunnel.
    Dsr,
}

/// A set of IP families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Whether the address's family is among them.
    #[must_use]
    pub fn admit(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Why a port is left to the node's stack, where kube-proxy may serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// `sessionAffinity` is none that is known.
    Affinity,
    /// `loadBalancerSourceRanges` cannot be read.
    SourceRanges,
    /// It has no other frontends than `externalIPs`, and they are off.
    ExternalIps,
    /// The protocol is not served yet.
    Protocol(Protocol),
    /// An older Service has its frontends.
    Claimed(Name),
    /// The maps are full; names the flag to raise.
    Full(&'static str),
    /// The route to one of its backends leads into a device that vmlb does not send into.
    Device(IpAddr, Arc<str>),
    /// The pods are in OVN-Kubernetes' network.
    Ovn,
}

impl fmt::Display for Left {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affinity => out.write_str("sessionAffinity is neither None nor ClientIP"),
            Self::SourceRanges => out.write_str("loadBalancerSourceRanges cannot be read"),
            Self::ExternalIps => out.write_str("externalIPs are served with --external-ips only"),
            Self::Protocol(protocol) => write!(out, "protocol {} is not served yet", protocol.name()),
            Self::Claimed(other) => write!(out, "its frontends belong to the older Service {other}"),
            Self::Full(flag) => write!(out, "the maps are full, raise {flag}"),
            Self::Device(address, device) => write!(
                out,
                "the route to {address} leads into {device}, which is neither an uplink nor an overlay's device"
            ),
            Self::Ovn => out.write_str("pods of OVN-Kubernetes answer past the node's stack (ovn-k8s-mp0)"),
        }
    }
}
