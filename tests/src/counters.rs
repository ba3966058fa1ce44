//! What the kernel of a node counted: packets that its own stack received and forwarded.

use anyhow::{Context, Result};

use crate::address::Family;
use crate::namespace::Namespace;

/// Packets of one node's IP stack since the namespace was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackCounters {
    /// IPv4 packets that entered the stack from a device.
    pub received_v4: u64,
    /// IPv4 packets that the stack forwarded.
    pub forwarded_v4: u64,
    /// IPv6 packets that the stack delivered or threw away, without ICMPv6 and others' multicast: neighbour discovery
    /// and listener reports come in all the time.
    pub received_v6: u64,
    /// IPv6 packets that the stack forwarded.
    pub forwarded_v6: u64,
}

impl StackCounters {
    /// Reads the counters of the node's namespace.
    pub fn read(node: &Namespace) -> Result<Self> {
        let v4 = node.read("/proc/thread-self/net/snmp")?;
        let v6 = node.read("/proc/thread-self/net/snmp6")?;
        Ok(Self {
            received_v4: paired(&v4, "Ip:", "InReceives")?,
            forwarded_v4: paired(&v4, "Ip:", "ForwDatagrams")?,
            received_v6: received_v6(&v6)?,
            forwarded_v6: listed(&v6, "Ip6OutForwDatagrams")?,
        })
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            received_v4: self.received_v4 - earlier.received_v4,
            forwarded_v4: self.forwarded_v4 - earlier.forwarded_v4,
            received_v6: self.received_v6.saturating_sub(earlier.received_v6),
            forwarded_v6: self.forwarded_v6 - earlier.forwarded_v6,
        }
    }
}

fn received_v6(text: &str) -> Result<u64> {
    let ends = ["Ip6InDelivers", "Ip6InHdrErrors", "Ip6InAddrErrors", "Ip6InNoRoutes", "Ip6InDiscards"];
    let all: u64 = ends.into_iter().map(|name| listed(text, name)).sum::<Result<u64>>()?;
    Ok(all.saturating_sub(listed(text, "Icmp6InMsgs")?))
}

/// The value of `name` in the form of `/proc/net/snmp`: a line of names, a line of values.
fn paired(text: &str, group: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no {group} in snmp"))?;
    let position = names.split_whitespace().position(|word| word == name);
    let value = position.and_then(|position| values.split_whitespace().nth(position));
    Ok(value.with_context(|| format!("no {name} in snmp"))?.parse()?)
}

/// The value of `name` in the form of `/proc/net/snmp6`: a line each.
fn listed(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.with_context(|| format!("no {name} in snmp6"))
}

/// TCP segments that a host sent again.
pub fn retransmitted(host: &Namespace) -> Result<u64> {
    paired(&host.read("/proc/thread-self/net/snmp")?, "Tcp:", "RetransSegs")
}

/// SYNs that a host sent again: the first went unanswered.
pub fn retransmitted_syns(host: &Namespace) -> Result<u64> {
    paired(&host.read("/proc/thread-self/net/netstat")?, "TcpExt:", "TCPSynRetrans")
}

/// Datagrams that a host's sockets had no room for.
pub fn udp_overflows(host: &Namespace, family: Family) -> Result<u64> {
    match family {
        Family::V4 => paired(&host.read("/proc/thread-self/net/snmp")?, "Udp:", "RcvbufErrors"),
        Family::V6 => listed(&host.read("/proc/thread-self/net/snmp6")?, "Udp6RcvbufErrors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_values_are_found_by_their_column() {
        let text = "Ip: Forwarding InReceives\nIp: 1 42\nTcp: RetransSegs\nTcp: 7\n";
        assert_eq!(paired(text, "Ip:", "InReceives").ok(), Some(42));
        assert_eq!(paired(text, "Tcp:", "RetransSegs").ok(), Some(7));
        assert!(paired(text, "Udp:", "InErrors").is_err());
    }

    #[test]
    fn listed_values_are_found_by_their_whole_name() {
        let text = "Ip6InReceives                   \t3\nIp6InReceivesX 9\n";
        assert_eq!(listed(text, "Ip6InReceives").ok(), Some(3));
    }
}
