//! Services of type NodePort, described once for the manifests and for the nftables control.

use crate::servers;

/// A transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As the Kubernetes API writes it.
    pub fn api(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// As nftables writes it.
    pub fn nft(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name in the Service.
    pub name: &'static str,
    /// Transport.
    pub protocol: Protocol,
    /// The port clients use.
    pub node_port: u16,
    /// The pods' port.
    pub target: u16,
}

/// A dual-stack Service of type NodePort.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, in namespace `default`.
    pub name: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Which backends take part.
    pub policy: Policy,
    /// Annotation `vmlb.io/forwarding`.
    pub forwarding: Option<&'static str>,
}

/// A Service and the names of the pods behind it.
#[derive(Clone, Debug)]
pub struct Published {
    /// The Service.
    pub service: Service,
    /// Names of its pods.
    pub pods: Vec<String>,
}

/// `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every backend.
    Cluster,
    /// Backends of the node that the client spoke to.
    Local,
}

impl Policy {
    /// As the Kubernetes API writes it.
    pub fn api(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// Names and targets of all the servers, in the order of their node ports.
const SERVERS: [(&str, Protocol, u16); 6] = [
    ("http", Protocol::Tcp, servers::HTTP),
    ("bulk", Protocol::Tcp, servers::BULK),
    ("echo", Protocol::Udp, servers::ECHO),
    ("greeting", Protocol::Tcp, servers::GREETING),
    ("lines", Protocol::Tcp, servers::LINES),
    ("banner", Protocol::Tcp, servers::BANNER),
];

impl Service {
    /// A Service with a single port.
    pub fn single(name: &str, node_port: u16, target: u16) -> Self {
        let port = Port { name: "main", protocol: Protocol::Tcp, node_port, target };
        Self { name: name.to_owned(), ports: vec![port], policy: Policy::Cluster, forwarding: None }
    }

    /// A Service that shows every server of the rig, on node ports from `first` on.
    pub fn all_servers(name: &str, first: u16) -> Self {
        let ports = SERVERS.into_iter().zip(first..).map(|((name, protocol, target), node_port)| Port {
            name,
            protocol,
            node_port,
            target,
        });
        Self { name: name.to_owned(), ports: ports.collect(), policy: Policy::Cluster, forwarding: None }
    }

    /// The node port that leads to `target`.
    ///
    /// # Panics
    /// If the Service has no such port.
    pub fn node_port(&self, target: u16) -> u16 {
        let found = self.ports.iter().find(|port| port.target == target);
        found.map(|port| port.node_port).unwrap_or_else(|| panic!("{} has no port to {target}", self.name))
    }
}
