//! Rules about node ports that XDP passes by: what vmlb serves never meets netfilter's raw, PREROUTING and INPUT chains on
//! its way in. Looked up by the node's own tools, which show both kinds of iptables.

use std::process::{Command, Stdio};

use vmlb_common::abi::PortRange;

use super::{Finding, Weight};

/// Rules that are named.
const SHOWN: usize = 3;
/// A firewall that serves Services, and not one that guards them.
const PROXY: [&str; 4] = ["kube-proxy", "KUBE-", "kubernetes", "cilium"];

pub(super) fn look(node_ports: PortRange) -> Vec<Finding> {
    const TOOLS: [(&str, &[&str]); 3] =
        [("nft", &["list", "ruleset"]), ("iptables-legacy-save", &[]), ("ip6tables-legacy-save", &[])];
    let mut findings = Vec::new();
    let mut is_seen = false;
    for (program, arguments) in TOOLS {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
        let Ok(output) = output
            .as_ref()
            .map_err(|_| ())
            .and_then(|output| output.status.success().then_some(output).ok_or(()))
        else {
            continue;
        };
        is_seen |= program == "nft";
        findings.extend(about(program, &rules(&String::from_utf8_lossy(&output.stdout), node_ports)));
    }
    if !is_seen {
        findings.push(Finding::new(
            Weight::Note,
            "firewall",
            "not looked at: there is no nft here, or it may not read the rules",
            "run vmlb check as root on the node itself",
        ));
    } else if findings.is_empty() {
        findings.push(Finding::ok("firewall", "no rule names a node port"));
    }
    findings
}

fn about(program: &str, rules: &[String]) -> Option<Finding> {
    if rules.is_empty() {
        return None;
    }
    let named: Vec<&str> = rules.iter().take(SHOWN).map(String::as_str).collect();
    let more = rules.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    Some(Finding::new(
        Weight::Warning,
        "firewall",
        format!(
            "{program} has rules about node ports, which what vmlb serves never meets: {}{more}",
            named.join("; ")
        ),
        "keep clients out by loadBalancerSourceRanges or in front of the node; other traffic meets the rules as before",
    ))
}

/// Rules that name a port of the range and judge.
fn rules(ruleset: &str, node_ports: PortRange) -> Vec<String> {
    let (mut found, mut chain) = (Vec::new(), String::new());
    for line in ruleset.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("table ").or(line.strip_prefix("chain ")) {
            chain = if line.starts_with("table ") { rest.to_owned() } else { format!("{chain} {rest}") };
        }
        let judges = ["drop", "reject", "accept", "DROP", "REJECT", "ACCEPT"];
        let is_verdict = line.split_whitespace().any(|word| judges.contains(&word));
        let is_proxy = PROXY.iter().any(|word| line.contains(word) || chain.contains(word));
        if is_verdict && !is_proxy && line.contains("dport") && names_port(line, node_ports) {
            found.push(line.to_owned());
        }
    }
    found
}

/// Whether what follows `dport` or `--dports` has a port of the range, or a range that overlaps it.
fn names_port(rule: &str, node_ports: PortRange) -> bool {
    let after = rule.split("dport").skip(1);
    after.into_iter().any(|text| {
        // The next option of iptables.
        let text = text.split(" -").next().unwrap_or_default();
        let text = text.trim_start_matches('s').trim_start_matches([' ', '=', '!', '{']);
        let end = text
            .find(|letter: char| !(letter.is_ascii_digit() || "-:, ".contains(letter)))
            .unwrap_or(text.len());
        text[..end].split(',').any(|part| {
            let mut numbers = part.trim().split(['-', ':']).map(|number| number.trim().parse::<u16>());
            match (numbers.next(), numbers.next()) {
                (Some(Ok(first)), Some(Ok(last))) => first <= node_ports.last && last >= node_ports.first,
                (Some(Ok(port)), None) => (node_ports.first..=node_ports.last).contains(&port),
                _ => false,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

    #[test]
    fn rules_of_every_tool_that_name_a_node_port_are_found() {
        for rule in [
            "tcp dport 31923 drop",
            "ip saddr 192.0.2.0/24 tcp dport { 22, 30000-32767 } accept",
            "udp dport 1024-65535 reject",
            "-A INPUT -p tcp -m tcp --dport 31923 -j DROP",
            "-A INPUT -p tcp -m multiport --dports 80,30000:30100 -j REJECT",
        ] {
            assert_eq!(rules(rule, NODE_PORTS), [rule]);
        }
    }

    #[test]
    fn rules_about_something_else_and_those_of_kube_proxy_are_not_told() {
        for rule in [
            "tcp dport 22 drop",
            "tcp dport 31923 counter",
            "tcp sport 31923 drop",
            "-A KUBE-NODEPORTS -p tcp --dport 31923 -j ACCEPT",
            "table ip kube-proxy {\n chain nodeports {\n tcp dport 31923 accept",
        ] {
            assert!(rules(rule, NODE_PORTS).is_empty(), "{rule}");
        }
    }
}
