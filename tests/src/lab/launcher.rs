//! A virt-launcher pod: the bridge with its guest, and the rules between it and the pod's network.

use std::fmt::Write;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use vmlb_guest::vm;

use crate::address::Family;
use crate::namespace::Namespace;
use crate::pod::Pod;
use crate::servers;
use crate::service::Protocol;

/// The bridge's name in every launcher.
pub const BRIDGE: &str = "k6t-eth0";

/// The bridge's address in every launcher: to the guest it is the same gateway before and after.
const BRIDGE_MAC: &str = "02:00:00:00:00:00";

/// What a launcher passes on to its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Everything, as where the interface lists no ports.
    All,
    /// These ports only; anything else meets the launcher's own stack.
    Ports(Vec<(Protocol, u16)>),
}

/// A running launcher, with a guest or without. Dropping it removes its devices.
#[derive(Debug)]
pub struct Launcher {
    /// The pod: its address, node, name and VM.
    pub pod: Pod,
}

impl Launcher {
    /// Turns an empty pod into a launcher.
    pub(crate) fn prepare(pod: Pod, rules: &Rules) -> Result<Self> {
        let host = &pod.namespace;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            host.set_sysctl(key, "1")?;
        }
        host.ip(&format!(
            "link add {BRIDGE} address {BRIDGE_MAC} type bridge forward_delay 0 mcast_snooping 0\n\
             addr add {}/{} dev {BRIDGE}\n\
             addr add {}/{} dev {BRIDGE} nodad\n\
             link set {BRIDGE} up\n",
            vm::GATEWAY_V4,
            vm::PREFIX_V4,
            vm::GATEWAY_V6,
            vm::PREFIX_V6
        ))?;
        let text: String = Family::ALL.into_iter().map(|family| ruleset(family, rules)).collect();
        host.feed("nft", &["-f", "-"], &text).context("installing the masquerade rules")?;
        Ok(Self { pod })
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.pod.namespace
    }

    /// Makes this the target of a migration of the VM in `source`: the pod carries the same VM.
    pub fn adopt(&mut self, source: &Self) {
        self.pod.vm = source.pod.vm.clone();
    }

    /// Whether the guest answers on its own bridge, which no load balancer and no pod network has a part in. Asking leaves
    /// traces (the launcher then knows the guest's link-layer address), so ask only where the question is open.
    pub fn guest_answers(&self, patience: Duration) -> bool {
        let start = std::time::Instant::now();
        while start.elapsed() < patience {
            if self.namespace().run(|| ask_guest(Duration::from_millis(200))).is_ok() {
                return true;
            }
        }
        false
    }
}

/// One datagram to the guest's echo server and back.
fn ask_guest(patience: Duration) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(SocketAddr::new(vm::V4.into(), servers::ECHO))?;
    socket.send(b"alive")?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// The rules of one family: what reaches the pod goes to the guest with its source kept, what the guest opens leaves with the
/// pod's address. They hold no state of their own, so that both launchers of a migration have the same.
fn ruleset(family: Family, rules: &Rules) -> String {
    let (table, guest, gateway, loopback) = match family {
        Family::V4 => ("ip", vm::V4.to_string(), vm::GATEWAY_V4.to_string(), "127.0.0.1"),
        Family::V6 => ("ip6", vm::V6.to_string(), vm::GATEWAY_V6.to_string(), "::1"),
    };
    let mut inbound = String::new();
    match rules {
        Rules::All => writeln!(inbound, "counter dnat to {guest}").expect("a string takes all"),
        Rules::Ports(ports) => {
            for (protocol, port) in ports {
                let protocol = protocol.api().to_lowercase();
                writeln!(inbound, "{protocol} dport {port} counter dnat to {guest}")
                    .expect("a string takes all");
            }
        }
    }
    format!(
        "table {table} nat {{\n\
         chain KUBEVIRT_PREINBOUND {{\n{inbound}}}\n\
         chain KUBEVIRT_POSTINBOUND {{\n{table} saddr {loopback} counter snat to {gateway}\n}}\n\
         chain prerouting {{\ntype nat hook prerouting priority -100;\niifname \"eth0\" counter jump KUBEVIRT_PREINBOUND\n}}\n\
         chain output {{\ntype nat hook output priority -100;\n{table} daddr {loopback} counter dnat to {guest}\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority 100;\n{table} saddr {guest} counter masquerade\n\
         oifname \"{BRIDGE}\" counter jump KUBEVIRT_POSTINBOUND\n}}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_ports_are_the_only_ones_that_reach_the_guest() {
        let rules = Rules::Ports(vec![(Protocol::Tcp, 22), (Protocol::Udp, 53)]);
        let text = ruleset(Family::V6, &rules);
        assert!(text.contains("tcp dport 22 counter dnat to fd10:0:2::2\nudp dport 53 counter dnat"));
        assert!(!text.contains("\ncounter dnat"));
        assert!(ruleset(Family::V4, &Rules::All).contains("\ncounter dnat to 10.0.2.2\n"));
    }
}
