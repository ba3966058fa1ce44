//! The rig's address plan: every host has one address of each family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order of report.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A host's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of `family`.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address of `family` with a port.
    pub fn socket(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }

    /// Whether `address` is one of the two.
    pub fn contains(self, address: IpAddr) -> bool {
        Family::ALL.into_iter().any(|family| self.of(family) == address)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.v4, self.v6)
    }
}

/// Router's address in the clients' network, 192.0.2.0/24 and 2001:db8:c::/64.
pub const CLIENT_GATEWAY: Addresses = client_network(1);

/// Router's address in the nodes' network, 172.18.0.0/24 and fd00:18::/64.
pub const NODE_GATEWAY: Addresses = node_network(1);

/// Client `index`, from 0.
pub const fn client(index: u8) -> Addresses {
    client_network(10 + index)
}

/// Node `index`, from 0: node1 is 172.18.0.11.
pub const fn node(index: u8) -> Addresses {
    node_network(11 + index)
}

/// Pod `index` of node `node`, both from 0: the first pod of node1 is 10.244.1.10.
pub const fn pod(node: u8, index: u8) -> Addresses {
    pod_network(node, 10 + index)
}

/// The bridge of node `node` where pods hang on a bridge.
pub const fn pod_gateway(node: u8) -> Addresses {
    pod_network(node, 1)
}

/// The networks of the pods of node `node`, as prefixes.
pub fn pod_prefixes(node: u8) -> [String; 2] {
    let network = pod_network(node, 0);
    [format!("{}/24", network.v4), format!("{}/64", network.v6)]
}

const fn client_network(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 0, 2, host),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, decimal(host)),
    }
}

const fn node_network(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 18, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, decimal(host)),
    }
}

const fn pod_network(node: u8, host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node + 1, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16 + 1, 0, 0, 0, decimal(host)),
    }
}

/// The group whose hexadecimal form reads like `host` in decimal: people compare the two families by eye.
const fn decimal(host: u8) -> u16 {
    let host = host as u16;
    ((host / 100) << 8) | ((host / 10 % 10) << 4) | (host % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_a_host_end_alike() {
        assert_eq!(node(0).to_string(), "172.18.0.11 fd00:18::11");
        assert_eq!(pod(1, 113).to_string(), "10.244.2.123 fd00:10:244:2::123");
    }
}
