//! The pinned maps as `bpftool` shows them to anybody: the tests' view of a node that owes nothing to vmlb's own
//! commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace;
use crate::topology::Node;

/// The tables of flows, both families, established and half open.
pub const FLOW_TABLES: [&str; 8] = [
    "flows_v4",
    "flows_v6",
    "replies_v4",
    "replies_v6",
    "half_flows_v4",
    "half_flows_v6",
    "half_replies_v4",
    "half_replies_v6",
];

/// The entries of a map: key and value as JSON text.
pub fn dump(node: &Node, map: &str) -> Result<BTreeMap<String, Value>> {
    let path = node.pin_root.join(map);
    let text = namespace::run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(&path))?;
    let entries: Value = serde_json::from_str(&text).with_context(|| format!("dump of {map}"))?;
    // With BTF, bpftool shows each entry raw and, under `formatted`, by the names of its fields.
    let entries = entries.as_array().context("bpftool lists entries")?;
    Ok(entries
        .iter()
        .map(|entry| entry.get("formatted").unwrap_or(entry))
        .map(|entry| (entry["key"].to_string(), entry["value"].clone()))
        .collect())
}

/// Entries of all flow tables of a node together.
pub fn flow_count(node: &Node) -> Result<usize> {
    FLOW_TABLES.iter().map(|table| Ok(dump(node, table)?.len())).sum()
}

/// Waits until no flow is left.
pub fn wait_until_no_flows(node: &Node, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let left = flow_count(node)?;
        match left {
            0 => return Ok(()),
            _ if start.elapsed() > patience => bail!("{} still has {left} flow entries", node.name),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Everything pinned under a node's pin root.
pub fn pins(node: &Node) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&node.pin_root, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}
