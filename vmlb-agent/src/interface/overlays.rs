//! Devices by which pods of other nodes may be reached, beside the uplinks. Pure.

use super::Link;

/// Kinds of devices whose other end, whatever it is made of, delivers packets and answers by the same device: tunnels,
/// and what is Ethernet. A veth may lead anywhere, into a CNI's own programs for one.
const KINDS: [&str; 18] = [
    "",
    "bond",
    "bridge",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "macvlan",
    "sit",
    "team",
    "tun",
    "vlan",
    "vti",
    "vxlan",
    "wireguard",
];

/// OVN-Kubernetes' way from the host into its network.
pub const OVN: &str = "ovn-k8s-mp0";

/// Whether pods of other nodes behind this device can be reached by way of SNAT to its address.
#[must_use]
pub fn leads_to_pods(link: &Link) -> bool {
    link.name != "lo" && KINDS.contains(&link.kind.as_str())
}

/// Whether the device is OVN-Kubernetes' way from the host into its network, from which pods answer clients outside by the
/// bridge `br-ex`, past the host's stack.
#[must_use]
pub fn is_ovn(link: &Link) -> bool {
    link.name == OVN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: &str) -> Link {
        Link { name: name.to_owned(), kind: kind.to_owned(), ..Link::default() }
    }

    #[test]
    fn tunnels_and_ethernet_lead_to_pods_and_what_is_unknown_does_not() {
        for (name, kind) in [
            ("flannel.1", "vxlan"),
            ("tunl0", "ipip"),
            ("wg0", "wireguard"),
            ("flannel0", "tun"),
            ("eth1", ""),
        ] {
            assert!(leads_to_pods(&link(name, kind)), "{name}");
        }
        for (name, kind) in [("lo", ""), ("cilium_host", "veth"), ("ovn-k8s-mp0", "openvswitch")] {
            assert!(!leads_to_pods(&link(name, kind)), "{name}");
        }
        assert!(is_ovn(&link("ovn-k8s-mp0", "openvswitch")) && !is_ovn(&link("br0", "bridge")));
    }
}
