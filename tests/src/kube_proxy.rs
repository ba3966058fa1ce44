//! The control: nftables rules in the form that kube-proxy's nftables mode gives the same Services: verdict maps keyed
//! by protocol and port, a chain per service with a random choice, a chain per endpoint, masquerading by mark. Counters
//! in them tell whether a connection went that way.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::address::Family;
use crate::namespace::Namespace;
use crate::pod::Pod;
use crate::service::Service;

/// Name of the tables, one a family.
const TABLE: &str = "vmlb-control";

/// Packets with this mark are masqueraded on their way out.
const MARK: &str = "0x4000";

/// Installs the rules for `services` and their endpoints on a node, in place of those of an earlier call.
pub fn install(node: &Namespace, services: &[(&Service, &[&Pod])]) -> Result<()> {
    let rules: String = Family::ALL.into_iter().map(|family| ruleset(family, services)).collect();
    node.feed("nft", &["-f", "-"], &rules)
}

/// Removes the rules.
pub fn remove(node: &Namespace) -> Result<()> {
    let lines: String = Family::ALL
        .into_iter()
        .map(|family| format!("delete table {} {TABLE}\n", table_family(family)))
        .collect();
    node.feed("nft", &["-f", "-"], &lines)
}

/// First packets of connections that took the rules, over all services and families.
pub fn hits(node: &Namespace) -> Result<u64> {
    counted(node, TABLE)
}

/// What the counters of the tables of that name count, over both families.
pub(crate) fn counted(node: &Namespace, table: &str) -> Result<u64> {
    let listing: Value = serde_json::from_str(&node.output("nft", &["--json", "list", "ruleset"])?)?;
    let objects = listing["nftables"].as_array().context("nft's listing has objects")?;
    let expressions = objects
        .iter()
        .filter(|object| object["rule"]["table"] == table)
        .filter_map(|object| object["rule"]["expr"].as_array())
        .flatten();
    Ok(expressions.filter_map(|expression| expression["counter"]["packets"].as_u64()).sum())
}

fn table_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn ruleset(family: Family, services: &[(&Service, &[&Pod])]) -> String {
    let table = table_family(family);
    let (mut ports, mut chains) = (Vec::new(), String::new());
    for (service, pods) in services {
        for port in &service.ports {
            let chain = format!("service-{}-{}", service.name, port.name);
            let proto = port.protocol.nft();
            ports
                .push(format!("{proto} . {} : goto external-{}-{}", port.node_port, service.name, port.name));
            let targets: Vec<String> = pods.iter().map(|pod| endpoint(family, pod, port.target)).collect();
            write_chains(&mut chains, family, &chain, proto, &targets);
        }
    }
    format!(
        "table {table} {TABLE} {{}}\ndelete table {table} {TABLE}\ntable {table} {TABLE} {{\n\
         {chains}\
         map nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}\n\
         chain services {{ fib daddr type local meta l4proto . th dport vmap @nodeports; }}\n\
         chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain forward {{ type filter hook forward priority filter; ct state invalid drop; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
           meta mark & {MARK} == 0 return; meta mark set meta mark ^ {MARK}; masquerade fully-random; }}\n\
         }}\n",
        elements = ports.join(", ")
    )
}

/// The chain that clients from outside enter, the one that chooses and one per endpoint.
fn write_chains(chains: &mut String, family: Family, chain: &str, proto: &str, targets: &[String]) {
    let external = chain.replacen("service-", "external-", 1);
    let choices: Vec<String> = (0..targets.len()).map(|at| format!("{at} : goto {chain}-{at}")).collect();
    for (at, target) in targets.iter().enumerate() {
        let to = table_family(family);
        let _infallible =
            writeln!(chains, "chain {chain}-{at} {{ meta l4proto {proto} dnat {to} to {target}; }}");
    }
    let choose = match targets.len() {
        0 => "drop;".to_owned(),
        count => format!("numgen random mod {count} vmap {{ {} }};", choices.join(", ")),
    };
    let _infallible = write!(
        chains,
        "chain {chain} {{ counter; {choose} }}\n\
         chain {external} {{ meta mark set meta mark | {MARK}; goto {chain}; }}\n"
    );
}

fn endpoint(family: Family, pod: &Pod, port: u16) -> String {
    pod.addresses.socket(family, port).to_string()
}
