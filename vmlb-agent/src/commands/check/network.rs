//! Sysctls of the network that decide whether packets get through, and ports.

use std::fs;

use vmlb_common::abi::PortRange;

use crate::settings::{self, ports};

use crate::interface::overlays::OVN;

use super::devices::Uplink;
use super::{Finding, Weight};

pub(super) fn look(uplinks: &[Uplink], node_ports: PortRange) -> Vec<Finding> {
    let read = |key: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/{key}"));
        text.ok().and_then(|text| text.trim().parse::<u32>().ok())
    };
    let mut findings = vec![forwarding(read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding"))];
    for uplink in uplinks {
        let name = &uplink.link.name;
        let strict = [read("ipv4/conf/all/rp_filter"), read(&format!("ipv4/conf/{name}/rp_filter"))];
        findings.extend(reverse_path(name, strict, uplinks.len()));
    }
    findings.extend(mtu(uplinks));
    findings.extend(ovn(read(&format!("ipv4/conf/{OVN}/forwarding")).is_some()));
    if let Ok(local) = settings::local_ports() {
        findings.push(snat_ports(local, node_ports));
    }
    findings
}

/// OVN-Kubernetes answers clients outside past the node's stack.
fn ovn(is_there: bool) -> Option<Finding> {
    let message =
        format!("pods are OVN-Kubernetes' ({OVN}): every Service is left to it, vmlb serves nothing here");
    is_there.then(|| Finding::new(Weight::Problem, "cni", message, "install vmlb on nodes with another CNI"))
}

fn forwarding(v4: Option<u32>, v6: Option<u32>) -> Finding {
    const SUBJECT: &str = "forwarding";
    match (v4, v6) {
        (Some(0), _) => Finding::new(
            Weight::Problem,
            SUBJECT,
            "the node does not forward IPv4: VMs of this node cannot be reached",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (_, Some(0)) => Finding::new(
            Weight::Warning,
            SUBJECT,
            "the node does not forward IPv6: VMs of this node cannot be reached by it",
            "sysctl -w net.ipv6.conf.all.forwarding=1, if the cluster has IPv6",
        ),
        _ => Finding::ok(SUBJECT, "the node forwards packets"),
    }
}

/// The stricter of both values counts (ip-sysctl).
fn reverse_path(name: &str, values: [Option<u32>; 2], uplinks: usize) -> Option<Finding> {
    let is_strict = values.into_iter().flatten().max() == Some(1);
    let subject = format!("rp_filter {name}");
    match (is_strict, uplinks) {
        (false, _) => None,
        (true, 1) => Some(Finding::ok(&subject, "strict, with one uplink")),
        (true, _) => Some(Finding::new(
            Weight::Warning,
            &subject,
            "strict, with several uplinks: requests to VMs of this node are dropped where the way back is another device",
            format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
        )),
    }
}

fn mtu(uplinks: &[Uplink]) -> Option<Finding> {
    let least = uplinks.iter().map(|uplink| uplink.link.mtu).min()?;
    let most = uplinks.iter().map(|uplink| uplink.link.mtu).max()?;
    if least == most {
        return Some(Finding::ok("mtu", format!("{most} on every uplink")));
    }
    Some(Finding::new(
        Weight::Warning,
        "mtu",
        format!(
            "uplinks differ ({least} to {most}): packets that come in large cannot leave by the smaller one"
        ),
        "give all the same MTU",
    ))
}

fn snat_ports(local: PortRange, node_ports: PortRange) -> Finding {
    let choice = ports::choose(None, local, node_ports);
    match choice.advice {
        Some(advice) => Finding::new(Weight::Warning, "snat-ports", advice, ""),
        None => Finding::ok("snat-ports", ports::show(&choice.ranges)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_forward_is_a_problem() {
        assert_eq!(forwarding(Some(0), Some(1)).weight, Weight::Problem);
        assert_eq!(forwarding(Some(1), Some(0)).weight, Weight::Warning);
        assert_eq!(forwarding(Some(1), None).weight, Weight::Ok);
    }

    #[test]
    fn strict_reverse_path_filters_matter_with_several_uplinks() {
        let weight =
            |all, own, uplinks| reverse_path("a", [Some(all), Some(own)], uplinks).map(|one| one.weight);
        assert_eq!(weight(0, 1, 2), Some(Weight::Warning));
        assert_eq!(weight(1, 0, 1), Some(Weight::Ok));
        assert_eq!(weight(1, 2, 2), None);
    }

    #[test]
    fn ports_that_sockets_use_leave_too_few_for_snat() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(snat_ports(range(1024, 65535), range(30000, 32767)).weight, Weight::Warning);
        assert_eq!(snat_ports(range(32768, 60999), range(30000, 32767)).weight, Weight::Ok);
    }
}
