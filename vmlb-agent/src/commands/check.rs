//! `vmlb check`: what of this node would stand in vmlb's way, or vmlb in its, before it is installed. Each finding says
//! what to do about it. Reads, and changes nothing.

use std::collections::BTreeSet;
use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;
use vmlb_common::abi::PortRange;

use super::table::Table;
use crate::interface::flag::DeviceFlag;
use crate::settings::ports;

mod balancers;
mod devices;
mod firewall;
mod kernel;
mod network;

/// Options of `vmlb check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb check
  vmlb check --device eth1 --device eth2=tc --output json
  vmlb status --node                                 the same beside the status

Run it as root on the node, where nft and iptables are; in a container what they know is not looked at, and that is said.

Exit codes: 0 nothing stands in the way (warnings may be there); 1 a problem; 2 wrong usage.")]
pub struct Options {
    /// Device by which clients come, as it will be given to the agent. Without it: those of the default routes
    #[arg(long = "device", value_name = "NAME[=xdp|tc]")]
    pub devices: Vec<DeviceFlag>,
    /// The cluster's node ports
    #[arg(long, value_name = "A-B", default_value = "30000-32767", value_parser = ports::range)]
    pub node_port_range: PortRange,
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Form::Table)]
    pub output: Form,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Columns for people.
    Table,
    /// A JSON array.
    Json,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Weight {
    /// vmlb will not work, or not for some traffic.
    Problem,
    /// It works, at a price or with a difference that somebody may notice.
    Warning,
    /// Worth knowing.
    Note,
    /// As it should be.
    Ok,
}

impl Weight {
    const fn name(self) -> &'static str {
        match self {
            Self::Problem => "PROBLEM",
            Self::Warning => "WARNING",
            Self::Note => "note",
            Self::Ok => "ok",
        }
    }
}

/// One thing about the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    pub weight: Weight,
    /// What was looked at, as in `device eth0`.
    pub subject: String,
    /// How it is, and what follows.
    pub message: String,
    /// What to do about it; empty: nothing.
    pub remedy: String,
}

impl Finding {
    fn new(weight: Weight, subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { weight, subject: subject.to_owned(), message: message.into(), remedy: remedy.into() }
    }

    fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self::new(Weight::Ok, subject, message, "")
    }
}

/// That something stands in the way; it has been printed.
#[derive(Debug)]
struct Problems(usize);

impl std::fmt::Display for Problems {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            1 => out.write_str("a problem stands in the way"),
            count => write!(out, "{count} problems stand in the way"),
        }
    }
}

impl std::error::Error for Problems {}

/// Runs the command.
///
/// # Errors
/// When there is a problem, or the node cannot be looked at.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let findings = look(&options.devices, options.node_port_range)?;
    let mut out = io::stdout().lock();
    match options.output {
        Form::Json => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
        Form::Table => write(&mut out, &findings)?,
    }
    let problems = findings.iter().filter(|finding| finding.weight == Weight::Problem).count();
    if problems == 0 { Ok(()) } else { Err(Problems(problems).into()) }
}

/// Everything there is to say, what matters most first.
///
/// # Errors
/// When the node's devices cannot be listed.
pub(super) fn look(devices: &[DeviceFlag], node_ports: PortRange) -> anyhow::Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let uplinks = runtime.block_on(devices::uplinks(devices))?;
    let mut findings = kernel::look();
    findings.extend(devices::look(&uplinks));
    findings.extend(network::look(&uplinks, node_ports));
    findings.extend(balancers::look());
    findings.extend(firewall::look(node_ports));
    let unique: BTreeSet<Finding> = findings.into_iter().collect();
    Ok(unique.into_iter().collect())
}

/// For people.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(out: &mut dyn Write, findings: &[Finding]) -> anyhow::Result<()> {
    let mut table = Table::new(out, &["", "SUBJECT", "FINDING"]);
    for finding in findings {
        let subject = finding.subject.replace(' ', "/");
        let remedy =
            if finding.remedy.is_empty() { String::new() } else { format!(" -> {}", finding.remedy) };
        table.row(vec![finding.weight.name().to_owned(), subject, format!("{}{remedy}", finding.message)])?;
    }
    Ok(table.end()?)
}
