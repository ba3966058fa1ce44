//! Who else balances Services on this node. Beside kube-proxy vmlb is at home; with another program at the same hook one of
//! both sees no packets.

use std::fs;
use std::path::Path;

use super::{Finding, Weight};

/// kube-proxy's `/healthz`.
const HEALTHZ: u16 = 10256;

pub(super) fn look() -> Vec<Finding> {
    let mut findings = Vec::new();
    let tables =
        ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    if tables.iter().any(|table| listens(table, HEALTHZ)) {
        findings.push(Finding::new(
            Weight::Note,
            "kube-proxy",
            format!("port {HEALTHZ} is taken, by kube-proxy or an agent of vmlb: both run side by side, each on its own port"),
            "give the agent another port, as the manifests do, or off: --healthz-address",
        ));
    }
    let ipvs = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
    if virtual_servers(&ipvs) > 0 {
        findings.push(Finding::new(
            Weight::Note,
            "ipvs",
            format!(
                "{} virtual servers of IPVS: node ports that vmlb serves never reach them",
                virtual_servers(&ipvs)
            ),
            "",
        ));
    }
    if ["/sys/fs/bpf/cilium", "/sys/fs/bpf/tc/globals/cilium_lb4_services_v2"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        findings.push(Finding::new(
            Weight::Problem,
            "cilium",
            "Cilium is on this node: where it replaces kube-proxy, it serves node ports at the same hooks",
            "let one of both serve node ports: kubeProxyReplacement=false in Cilium's values, or do without vmlb",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("balancers", "nobody else was found"));
    }
    findings
}

/// Whether a socket of /proc/net/tcp listens on `port`.
fn listens(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().and_then(|address| address.rsplit_once(':'));
        let is_port = local.is_some_and(|(_, text)| u16::from_str_radix(text, 16) == Ok(port));
        is_port && words.nth(1) == Some(LISTEN)
    })
}

fn virtual_servers(table: &str) -> usize {
    table
        .lines()
        .filter(|line| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|word| line.starts_with(word)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st\n   0: 00000000:2810 00000000:0000 0A 0\n   1: 0100007F:2811 0100007F:1 01 0\n";
        assert!(listens(table, 10256) && !listens(table, 10257) && !listens("", 10256));
    }

    #[test]
    fn virtual_servers_are_counted_without_their_real_ones() {
        let table = "IP Virtual Server version 1.2.1\nProt LocalAddress:Port\nTCP  0A000001:0050 rr\n  -> 0A000002:0050 Masq\n";
        assert_eq!(virtual_servers(table), 1);
    }
}
