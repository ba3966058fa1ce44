//! What the operator says about serving, for all Services alike: the flags of `vmlb agent` that the control plane follows.

use clap::{Args, ValueEnum};

use crate::facts::NodePortAddresses;
use crate::index::service::{Algorithm, Forwarding};

/// Flags about what is served and how.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Addresses on which node ports are served: blocks, `primary` (the node's main addresses), `uplinks` (all of theirs)
    #[arg(long, value_name = "CIDR|primary|uplinks,...", default_value_t)]
    pub nodeport_addresses: NodePortAddresses,
    /// How a backend is chosen where the Service has no annotation vmlb.io/algorithm: by the flow's hash, alike on every
    /// node, or at random
    #[arg(long, value_enum, value_name = "maglev|random", default_value_t)]
    pub algorithm: Algorithm,
    /// What VMs on other nodes see as the client where the Service has no annotation vmlb.io/forwarding: this node (snat), or
    /// the client itself (dsr), whose packets then go to the VM's node by the tunnel
    #[arg(long, value_enum, value_name = "snat|dsr", default_value_t)]
    pub forwarding: Forwarding,
    /// Whether there is a tunnel between the nodes.
    #[arg(skip)]
    pub has_tunnel: bool,
    /// Serve the externalIPs of Services too. Whoever may write Services can then take any address's traffic on this node
    /// (CVE-2020-8554): restrict who may set them
    #[arg(long)]
    pub external_ips: bool,
    /// What loadBalancerSourceRanges holds for: addresses of load balancers, as kube-proxy does, or all ways to a Service
    /// that has it, node ports and external IPs included
    #[arg(long, value_enum, value_name = "load-balancer|all", default_value_t)]
    pub source_ranges: SourceRanges,
}

/// Which frontends of a Service its source ranges hold for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SourceRanges {
    /// Those on load-balancer addresses.
    #[default]
    LoadBalancer,
    /// All of them.
    All,
}
