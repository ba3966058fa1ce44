//! The flags about the tunnel between the cluster's nodes.

use anyhow::ensure;
use clap::{Args, ValueEnum};
use vmlb_common::abi::{PortRange, Tunnel, TunnelShape};

/// Flags about the tunnel; they are to be the same on every node.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "The tunnel between nodes (the same on each of them)")]
pub struct TunnelFlags {
    /// How packets whose client's address is kept reach a VM on another node: IP in IP (protocols 4 and 41), UDP in VXLAN's
    /// shape where the network filters those, or not at all
    #[arg(long, value_enum, value_name = "ip|udp|none", default_value_t)]
    pub tunnel: Shape,
    /// Destination port of the tunnel's UDP shape; none that SNAT may use
    #[arg(long, value_name = "PORT", default_value_t = 44_789, value_parser = clap::value_parser!(u16).range(1..))]
    pub tunnel_port: u16,
    /// Network identifier (VNI) of the tunnel's UDP shape, by which it is told from an overlay's
    #[arg(long, value_name = "N", default_value_t = 7_761_260, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub tunnel_vni: u32,
    /// Whence replies of such flows leave: from the VM's node, with an address that is not that node's own; or by the node
    /// that the client addressed, where networks drop what comes from elsewhere (uRPF)
    #[arg(long, value_enum, value_name = "direct|ingress", default_value_t)]
    pub dsr_return: Return,
}

/// Values of `--tunnel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// IP in IP.
    #[default]
    Ip,
    /// UDP in VXLAN's shape.
    Udp,
    /// No tunnel.
    None,
}

/// Values of `--dsr-return`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Return {
    /// From the VM's node.
    #[default]
    Direct,
    /// By the node that the client addressed.
    Ingress,
}

impl TunnelFlags {
    /// What the maps say of it.
    ///
    /// # Errors
    /// When the UDP shape's port is one that SNAT may use.
    pub fn settings(&self, snat_ports: &[PortRange]) -> anyhow::Result<Tunnel> {
        let shape = match self.tunnel {
            Shape::Ip => TunnelShape::IP,
            Shape::Udp => TunnelShape::UDP,
            Shape::None => TunnelShape::NONE,
        };
        let returns = u8::from(self.dsr_return == Return::Ingress);
        if shape != TunnelShape::UDP {
            return Ok(Tunnel { shape, returns, ..Tunnel::default() });
        }
        let port = self.tunnel_port;
        ensure!(
            !snat_ports.iter().any(|range| (range.first..=range.last).contains(&port)),
            "--tunnel-port {port} is one that SNAT may use; take another, or leave it out of --snat-ports"
        );
        Ok(Tunnel { shape, returns, port, network: self.tunnel_vni })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAT: [PortRange; 1] = [PortRange { first: 1024, last: 29_999 }];

    fn flags(tunnel: Shape, tunnel_port: u16) -> TunnelFlags {
        TunnelFlags { tunnel, tunnel_port, tunnel_vni: 7, dsr_return: Return::Ingress }
    }

    #[test]
    fn a_port_of_snat_is_refused_where_it_would_be_used() {
        assert!(flags(Shape::Udp, 8472).settings(&SNAT).is_err());
        let tunnel = flags(Shape::Udp, 44_789).settings(&SNAT).expect("a port of its own");
        assert_eq!(tunnel, Tunnel { shape: TunnelShape::UDP, returns: 1, port: 44_789, network: 7 });
        let tunnel = flags(Shape::Ip, 8472).settings(&SNAT).expect("no port is used");
        assert_eq!(tunnel, Tunnel { shape: TunnelShape::IP, returns: 1, port: 0, network: 0 });
    }
}
