//! What the network side knows of this node and the control plane needs: its addresses, its devices, its SNAT ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use vmlb_common::abi::{Device, PortRange};

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Interface index of the device that carries it.
    pub ifindex: u32,
    /// Whether it is the node's main address of its family: the Node object's InternalIP, or where that is not known
    /// the first global address of the first uplink. The control plane also counts what the Node object says.
    pub primary: bool,
}

/// What the network side found; handed over whole, compared by the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Addresses of the uplinks, in no order.
    pub addresses: Vec<NodeAddress>,
    /// The entries of map `devices`: interface index → device. Their SNAT addresses open the gate for replies.
    pub devices: BTreeMap<u32, Device>,
    /// Ports that SNAT may use, and those that flows still hold from a time when it could use others.
    pub snat_ports: Vec<PortRange>,
    /// Addresses that devices had for SNAT before and that flows may still hold. The gate stays open for them too.
    pub held_addresses: BTreeSet<IpAddr>,
    /// Backends of other nodes whose route leads into a device that vmlb does not send into, by the device's name.
    pub unreached: BTreeMap<IpAddr, Arc<str>>,
    /// Whether the pods are in OVN-Kubernetes' network.
    pub is_ovn: bool,
}

/// A block of addresses, by the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// The block of the addresses that share the first `length` bits of `address`. `None`: it has fewer.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) => {
                let rest = 32u32.checked_sub(u32::from(length))?;
                IpAddr::from((u32::MAX.checked_shl(rest).unwrap_or(0) & address.to_bits()).to_be_bytes())
            }
            IpAddr::V6(address) => {
                let rest = 128u32.checked_sub(u32::from(length))?;
                IpAddr::from((u128::MAX.checked_shl(rest).unwrap_or(0) & address.to_bits()).to_be_bytes())
            }
        };
        Some(Self { address, length })
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the block holds `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(block), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.length);
                u64::from(block.to_bits()) >> shift == u64::from(address.to_bits()) >> shift
            }
            (IpAddr::V6(block), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.length);
                block.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong =
            || anyhow::anyhow!("{text:?} is not a block of addresses such as 192.0.2.0/24 or 2001:db8::/64");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        Self::new(address, length).ok_or_else(wrong)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

/// Which of the node's addresses serve node ports: the value of `--nodeport-addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    primary: bool,
    uplinks: bool,
    blocks: Vec<Cidr>,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self { primary: true, uplinks: false, blocks: Vec::new() }
    }
}

impl NodePortAddresses {
    /// Whether node ports are served on this address.
    #[must_use]
    pub fn admits(&self, address: IpAddr, primary: bool) -> bool {
        self.uplinks || (self.primary && primary) || self.blocks.iter().any(|block| block.contains(address))
    }
}

impl FromStr for NodePortAddresses {
    type Err = anyhow::Error;

    /// A list separated by commas of `primary` (the node's main addresses), `uplinks` (every address of the uplinks)
    /// and blocks such as `192.0.2.0/24`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut wanted = Self { primary: false, uplinks: false, blocks: Vec::new() };
        for word in text.split(',').map(str::trim) {
            match word {
                "primary" => wanted.primary = true,
                "uplinks" => wanted.uplinks = true,
                block => wanted.blocks.push(block.parse()?),
            }
        }
        Ok(wanted)
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.primary, "primary"), (self.uplinks, "uplinks")];
        let mut words: Vec<String> =
            words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned()).collect();
        words.extend(self.blocks.iter().map(Cidr::to_string));
        out.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_addresses_and_no_others() -> anyhow::Result<()> {
        let block: Cidr = "192.0.2.0/25".parse()?;
        assert!(block.contains("192.0.2.127".parse()?) && !block.contains("192.0.2.128".parse()?));
        let all: Cidr = "::/0".parse()?;
        assert!(all.contains("2001:db8::1".parse()?) && !all.contains("192.0.2.1".parse()?));
        let one: Cidr = "2001:db8::1/128".parse()?;
        assert!(one.contains("2001:db8::1".parse()?) && !one.contains("2001:db8::2".parse()?));
        Ok(())
    }

    #[test]
    fn a_block_is_the_same_whichever_of_its_addresses_names_it() -> anyhow::Result<()> {
        for (one, other) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.77/0", "0.0.0.0/0"),
            ("192.0.2.77/32", "192.0.2.77/32"),
            ("2001:db8::1:7/112", "2001:db8::1:0/112"),
            ("2001:db8::7/0", "::/0"),
        ] {
            assert_eq!(one.parse::<Cidr>()?, other.parse()?);
            assert_eq!(one.parse::<Cidr>()?.to_string(), other);
        }
        Ok(())
    }

    #[test]
    fn a_block_that_is_none_is_refused_with_an_example() {
        for text in ["", "192.0.2.1", "192.0.2.0/33", "::/129", "x/8"] {
            assert!(
                text.parse::<Cidr>().is_err_and(|error| error.to_string().contains("192.0.2.0/24")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_flag_reads_back_as_it_is_shown() -> anyhow::Result<()> {
        let flag: NodePortAddresses = "primary, 10.0.0.0/8".parse()?;
        assert_eq!(flag.to_string(), "primary,10.0.0.0/8");
        assert!(flag.admits("192.0.2.1".parse()?, true) && !flag.admits("192.0.2.1".parse()?, false));
        assert!(flag.admits("10.1.1.1".parse()?, false));
        Ok(())
    }
}
