//! `vmlb check` on a node that is in order, and on one that is not.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::agent;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Node};

/// The exit code and what was found.
fn check(node: &Node, arguments: &[&str]) -> Result<(i32, Vec<Value>)> {
    let mut command = node.namespace.command(agent::binary()?);
    command.args(["check", "--output", "json"]).args(arguments).stdin(Stdio::null());
    let output = command.output()?;
    let found: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let code = output.status.code().context("the command was killed")?;
    Ok((code, found.as_array().cloned().context("a list")?))
}

/// The finding about `subject` that holds `part`.
fn finding<'a>(found: &'a [Value], subject: &str, part: &str) -> Result<&'a Value> {
    let is_it = |one: &&Value| {
        one["subject"] == subject && one["message"].as_str().is_some_and(|message| message.contains(part))
    };
    found.iter().find(is_it).with_context(|| format!("nothing about {subject} with {part:?}: {found:#?}"))
}

#[test]
fn what_stands_in_the_way_is_found_with_its_remedy() {
    unless_unable("what_stands_in_the_way_is_found_with_its_remedy", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        let node = &cluster.topology.nodes[0];
        let (code, found) = check(node, &["--device", "eth0"])?;
        ensure!(code == 0, "{found:#?}");
        ensure!(finding(&found, "forwarding", "forwards")?["weight"] == "ok");
        ensure!(finding(&found, "device eth0", "gets TC")?["weight"] == "ok");
        ensure!(finding(&found, "firewall", "no rule names a node port")?["weight"] == "ok");
        let (_, found) = check(node, &["--device", "eth0=xdp"])?;
        let cost = finding(&found, "device eth0", "segmentation offload")?;
        ensure!(cost["weight"] == "warning" && cost["remedy"] == "--device eth0=tc", "{cost}");

        node.namespace.set_sysctl("net/ipv4/ip_forward", "0")?;
        node.namespace.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        let rules = "add table inet guard\nadd chain inet guard input { type filter hook input priority 0; }\n\
                     add rule inet guard input ip saddr 192.0.2.0/24 tcp dport 31000-31010 drop\n";
        node.namespace.feed("nft", &["-f", "-"], rules)?;
        let (code, found) = check(node, &["--device", "eth0"])?;
        ensure!(code == 1, "{found:#?}");
        ensure!(found[0]["weight"] == "problem", "what matters most comes first: {found:#?}");
        let forwarding = finding(&found, "forwarding", "does not forward IPv4")?;
        ensure!(forwarding["remedy"] == "sysctl -w net.ipv4.ip_forward=1", "{forwarding}");
        ensure!(finding(&found, "firewall", "tcp dport 31000-31010 drop")?["weight"] == "warning");
        ensure!(finding(&found, "snat-ports", "SNAT is off")?["weight"] == "warning");
        node.namespace.set_sysctl("net/ipv4/ip_forward", "1")?;
        node.namespace.set_sysctl("net/ipv4/ip_local_port_range", "32768 60999")?;

        cluster.start_agents(&Flags::default())?;
        let node = &cluster.topology.nodes[0];
        let text = namespace::run(&mut agent::command(node, &["status", "--node"])?)?;
        ensure!(text.contains("SUBJECT") && text.contains("tcp dport 31000-31010 drop"), "{text}");
        let status = agent::json(node, &["status", "--node"])?;
        ensure!(!status["findings"].as_array().context("findings")?.is_empty());
        ensure!(agent::json(node, &["status"])?["findings"].is_null());
        Ok(())
    });
}

#[test]
fn a_node_without_a_way_out_has_no_uplink() {
    unless_unable("a_node_without_a_way_out_has_no_uplink", || {
        let cluster = Cluster::build(Attachment::Routed)?;
        let node = &cluster.topology.nodes[0];
        let (code, found) = check(node, &["--device", "eth7"])?;
        let none = finding(&found, "devices", "no device")?;
        ensure!(code == 1 && none["weight"] == "problem", "{none}");
        Ok(())
    });
}
