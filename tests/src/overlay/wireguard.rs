//! The ends of WireGuard: keys and peers, by generic netlink.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute,
};
use vmlb_agent::interface::generic::Generic;

use crate::address;
use crate::topology::Node;

/// Where every node listens.
const PORT: u16 = 51820;

/// A node's private key and its public one.
struct Keys {
    private: [u8; 32],
    public: [u8; 32],
}

/// RFC 7748 section 6.1: the keys of Alice and Bob, for the first node and the second.
const KEYS: [Keys; 2] = [
    Keys {
        private: key(0x77076d0a7318a57d3c16c17251b26645, 0xdf4c2f87ebc0992ab177fba51db92c2a),
        public: key(0x8520f0098930a754748b7ddcb43ef75a, 0x0dbf3a0d26381af4eba4a98eaa9b4e6a),
    },
    Keys {
        private: key(0x5dab087e624a8a4b79e17f8b83800ee6, 0x6f3bb1292618b6fd1c2f8b27ff88e0eb),
        public: key(0xde9edb7d7b7dc1b4d35b61c2ece43537, 0x3f8343c85b78674dadfc7e146f882b4f),
    },
];

/// A key by its halves, as they are printed.
const fn key(first: u128, second: u128) -> [u8; 32] {
    let (first, second) = (first.to_be_bytes(), second.to_be_bytes());
    let mut key = [0; 32];
    let mut at = 0;
    while at < 16 {
        key[at] = first[at];
        key[16 + at] = second[at];
        at += 1;
    }
    key
}

/// Gives the device of `here` its key, and one peer: `there`, with the networks of its pods.
pub fn join(device: &str, here: &Node, there: &Node) -> Result<()> {
    let keys = |node: &Node| KEYS.get(usize::from(node.index)).context("there are keys for two nodes");
    let networks = address::pod_prefixes(there.index);
    let networks = networks.iter().map(|prefix| network(prefix)).collect::<Result<_>>()?;
    let peer = vec![
        WireguardPeerAttribute::PublicKey(keys(there)?.public),
        WireguardPeerAttribute::Endpoint(SocketAddr::new(there.addresses.v4.into(), PORT)),
        WireguardPeerAttribute::AllowedIps(networks),
    ];
    let order = WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: vec![
            WireguardAttribute::IfName(device.to_owned()),
            WireguardAttribute::PrivateKey(keys(here)?.private),
            WireguardAttribute::ListenPort(PORT),
            WireguardAttribute::Peers(vec![WireguardPeer(peer)]),
        ],
    };
    here.namespace.run(|| Generic::open("wireguard")?.tell(order))
}

/// What a peer may send from.
fn network(prefix: &str) -> Result<WireguardAllowedIp> {
    let (address, length) = prefix.split_once('/').context("a prefix has a length")?;
    let address: IpAddr = address.parse()?;
    let family = match address {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    Ok(WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(address),
        WireguardAllowedIpAttr::Cidr(length.parse()?),
    ]))
}
