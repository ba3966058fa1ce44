//! Rules of netfilter by which CNIs enforce network policies: found by the names of their chains, which is all that tells them
//! from a proxy's.

use std::fs;

use anyhow::{Context, bail};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// How names of tables or chains begin by which policies of pods are enforced: Calico, kube-router, Weave, Antrea, OVN and the
/// engine of kindnet.
const POLICIES: [&str; 8] = [
    "cali-",
    "calico",
    "KUBE-ROUTER",
    "KUBE-NWPLCY",
    "KUBE-POD-FW",
    "WEAVE-NPC",
    "ANTREA-",
    "kube-network-policies",
];

/// Families of nf_tables whose chains see packets on bridges and devices (`NFPROTO_NETDEV`, `NFPROTO_BRIDGE`).
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;

/// A chain of nf_tables, that of iptables' newer kind included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
}

/// The rules that would be passed by, in words; also where that cannot be told.
pub(super) fn found() -> Option<String> {
    // Tables of the older iptables are not listed by name; kube-proxy's are there too.
    let old = ["ip_tables_names", "ip6_tables_names"]
        .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default());
    if old
        .iter()
        .flat_map(|names| names.lines())
        .any(|name| name == "filter" || name == "raw" || name == "mangle")
    {
        return Some("iptables-legacy has rules, whose they are is not seen".to_owned());
    }
    match chains() {
        Ok(chains) => chains.iter().find_map(enforces),
        Err(error) => Some(format!("netfilter's rules are not seen: {error:#}")),
    }
}

fn enforces(chain: &Chain) -> Option<String> {
    let is_policy = |name: &str| POLICIES.iter().any(|prefix| name.starts_with(prefix));
    let Chain { family, table, name } = chain;
    let is_below = [NETDEV, BRIDGE].contains(family);
    (is_below || is_policy(table) || is_policy(name))
        .then(|| format!("netfilter chain {name} of table {table} would be passed by"))
}

/// Every chain.
fn chains() -> anyhow::Result<Vec<Chain>> {
    const REQUEST_DUMP: u16 = 0x301;
    /// `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_GETCHAIN`.
    const GET: u16 = 10 << 8 | 4;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut question = Vec::new();
    question.extend(20u32.to_ne_bytes());
    question.extend(GET.to_ne_bytes());
    question.extend(REQUEST_DUMP.to_ne_bytes());
    question.extend([0; 12]);
    socket.send(&question, 0).context("cannot ask")?;
    let mut chains = Vec::new();
    loop {
        let (octets, _) = socket.recv_from_full().context("cannot list")?;
        if take(&octets, &mut chains)? {
            return Ok(chains);
        }
    }
}

/// Takes the messages of one datagram apart; whether the last one was there.
fn take(octets: &[u8], chains: &mut Vec<Chain>) -> anyhow::Result<bool> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut rest = octets;
    while rest.len() >= 16 {
        let length = usize::try_from(u32_at(rest, 0))?.clamp(16, rest.len());
        let (message, kind) = (&rest[..length], u16_at(rest, 4));
        match kind {
            DONE => return Ok(true),
            ERROR => match i32::from_ne_bytes(message.get(16..20).context("cut")?.try_into()?) {
                0 => return Ok(true),
                // No nf_tables in this kernel, or its module is not there.
                code if [libc::EINVAL, libc::ENOENT, libc::EOPNOTSUPP].contains(&-code) => return Ok(true),
                code => bail!("{}", std::io::Error::from_raw_os_error(-code)),
            },
            _ => chains.push(chain(message.get(16..).unwrap_or_default())),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct nfgenmsg` and attributes.
fn chain(octets: &[u8]) -> Chain {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    let mut chain = Chain { family: octets.first().copied().unwrap_or(0), ..Chain::default() };
    let mut rest = octets.get(4..).unwrap_or_default();
    while rest.len() >= 4 {
        let length = usize::from(u16_at(rest, 0)).clamp(4, rest.len());
        let text = || String::from_utf8_lossy(&rest[4..length]).trim_end_matches('\0').to_owned();
        match u16_at(rest, 2) {
            TABLE => chain.table = text(),
            NAME => chain.name = text(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    chain
}

fn u16_at(octets: &[u8], at: usize) -> u16 {
    octets.get(at..at + 2).and_then(|octets| octets.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    octets.get(at..at + 4).and_then(|octets| octets.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(family: u8, table: &str, name: &str) -> Option<String> {
        enforces(&Chain { family, table: table.to_owned(), name: name.to_owned() })
    }

    #[test]
    fn chains_of_policies_are_told_from_those_of_proxies() {
        for (family, table, name) in [
            (2, "filter", "cali-FORWARD"),
            (10, "calico", "filter-cali-fw"),
            (2, "filter", "KUBE-POD-FW-ABC"),
            (1, "kube-network-policies", "postrouting"),
            (5, "mine", "ingress"),
            (7, "filter", "FORWARD"),
        ] {
            assert!(of(family, table, name).is_some_and(|says| says.contains(name)), "{table} {name}");
        }
        for (family, table, name) in
            [(2, "kube-proxy", "filter-forward"), (2, "filter", "KUBE-FORWARD"), (10, "nat", "POSTROUTING")]
        {
            assert_eq!(of(family, table, name), None);
        }
    }

    #[test]
    fn what_is_cut_is_no_panic() {
        let mut message = Vec::new();
        message.extend(40u32.to_ne_bytes());
        message.extend([3, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        message.extend([9, 0, 1, 0, b'n', b'a', b't', b's', 0, 0, 0, 0, 7, 0, 3, 0, b'a', b'b', 0, 0]);
        for length in 0..=message.len() {
            let mut chains = Vec::new();
            assert!(take(&message[..length], &mut chains).is_ok_and(|done| !done));
        }
        let mut chains = Vec::new();
        assert!(take(&message, &mut chains).is_ok());
        assert_eq!(chains, [Chain { family: 2, table: "nats".into(), name: "ab".into() }]);
    }
}
