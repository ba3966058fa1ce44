//! What the host needs of a family besides what the datapath does.

use core::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi::Device;
use crate::family::{Address, Address4, Address6, Family, V4, V6, V6Fragment};

use super::Node;
use super::tables::Side;

/// A family whose addresses collections and people can take.
pub trait HostFamily: Family<Address: Address + Ord + Hash> {
    /// The address of the standard library.
    fn to_ip(address: &Self::Address) -> IpAddr;
    /// The address in the maps' form, if it is of this family.
    fn from_ip(address: IpAddr) -> Option<Self::Address>;
    /// The address that SNAT takes on `device`.
    fn snat(device: &Device) -> &Self::Address;
    #[doc(hidden)]
    fn side(node: &Node) -> &Side<Self::Address>;
    #[doc(hidden)]
    fn side_mut(node: &mut Node) -> &mut Side<Self::Address>;
}

impl HostFamily for V4 {
    fn to_ip(address: &Address4) -> IpAddr {
        Ipv4Addr::from(address.octets).into()
    }

    fn from_ip(address: IpAddr) -> Option<Address4> {
        match address {
            IpAddr::V4(address) => Some(Address4 { octets: address.octets() }),
            IpAddr::V6(_) => None,
        }
    }

    fn snat(device: &Device) -> &Address4 {
        &device.snat_v4
    }

    fn side(node: &Node) -> &Side<Address4> {
        &node.v4
    }

    fn side_mut(node: &mut Node) -> &mut Side<Address4> {
        &mut node.v4
    }
}

impl HostFamily for V6 {
    fn to_ip(address: &Address6) -> IpAddr {
        Ipv6Addr::from(address.octets).into()
    }

    fn from_ip(address: IpAddr) -> Option<Address6> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(Address6 { octets: address.octets() }),
        }
    }

    fn snat(device: &Device) -> &Address6 {
        &device.snat_v6
    }

    fn side(node: &Node) -> &Side<Address6> {
        &node.v6
    }

    fn side_mut(node: &mut Node) -> &mut Side<Address6> {
        &mut node.v6
    }
}

impl HostFamily for V6Fragment {
    fn to_ip(address: &Address6) -> IpAddr {
        V6::to_ip(address)
    }

    fn from_ip(address: IpAddr) -> Option<Address6> {
        V6::from_ip(address)
    }

    fn snat(device: &Device) -> &Address6 {
        V6::snat(device)
    }

    fn side(node: &Node) -> &Side<Address6> {
        V6::side(node)
    }

    fn side_mut(node: &mut Node) -> &mut Side<Address6> {
        V6::side_mut(node)
    }
}
