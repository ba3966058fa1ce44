//! `vmlb status`.

use clap::Args;
use serde::Serialize;
use vmlb_common::abi::{PortRange, Settings, names};

use super::check::{self, Finding};
use super::print::{answer, document};
use super::{Output, Reading, help, settings};
use crate::bpf::PinnedMap;
use crate::counts::tries::{self, SearchCount};
use crate::counts::{self, Fill, Outcome, Stage, fills, reasons};
use crate::http::ListenerState;
use crate::pins::PinRoot;
use crate::settings::{TimeoutFlag, ports, text};
use crate::state::State;
use crate::warning::Warning;
use crate::watch::kube::Phase;

mod devices;
mod show;
mod ways;

use devices::DeviceStatus;
use ways::{BackendStatus, WayStatus};

/// The API server's default.
const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

/// Options of `vmlb status`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb status
  vmlb status --watch
  vmlb status --output json | jq .reasons

WAY says how backends are reached from here: by this node's stack, into the pod's device, by an uplink or an overlay; none:
no route leads there, or into a device that is not for vmlb. With --output wide also settings, how full every map is, how each
backend is reached, and every warning."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
    /// Look at the node itself too, as `vmlb check` does
    #[arg(long)]
    pub node: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node: String,
    pin_root: String,
    agent: AgentStatus,
    sync: SyncStatus,
    /// One for each kind of object; none where manifests are read.
    watches: Vec<WatchStatus>,
    settings: SettingsStatus,
    devices: Vec<DeviceStatus>,
    /// The ways by which backends are reached, and why.
    ways: Vec<WayStatus>,
    /// How each is.
    backends: Vec<BackendStatus>,
    flows: Vec<FlowStatus>,
    tables: Vec<TableStatus>,
    reasons: Vec<ReasonStatus>,
    /// Searches for a SNAT port by the ports that they tried.
    snat_searches: Vec<SearchCount>,
    listeners: Vec<ListenerState>,
    /// Ports of Services that are served.
    ports_served: u64,
    /// Ports of Services that are left to the node's stack; `vmlb services` tells why.
    ports_left: usize,
    advice: Vec<String>,
    warnings: Vec<Warning>,
    /// What `vmlb check` finds; absent: it was not asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Finding>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentStatus {
    /// Process of the running agent.
    pid: Option<u32>,
    version: Option<String>,
    /// Seconds since an agent last wrote its state.
    state_age: Option<u64>,
    tc: Option<String>,
    neighbours: Option<usize>,
}

/// What the agent last said, as old as its state.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct SyncStatus {
    /// What the maps wait for; absent: they follow the objects, or nothing is known.
    waiting: Option<String>,
    /// Why the maps are behind.
    error: Option<String>,
    /// Seconds since the maps were last found to follow the objects; absent: never.
    age: Option<u64>,
    /// Seconds since something was last written for it; absent: never.
    change_age: Option<u64>,
    /// Changes of objects that waited for the maps.
    queued: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WatchStatus {
    kind: String,
    phase: Phase,
    /// Seconds since the API server was last heard about this kind, when the agent wrote its state; absent: never.
    staleness: Option<u64>,
    /// Tries that failed since the last success.
    failures: u32,
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SettingsStatus {
    generation: u32,
    hz: u32,
    snat_ports: String,
    snat_port_count: u32,
    timeouts: String,
}

#[derive(Serialize)]
struct FlowStatus {
    family: &'static str,
    established: u64,
    opening: u64,
    capacity: u32,
}

#[derive(Serialize)]
struct TableStatus {
    map: &'static str,
    entries: u64,
    capacity: u32,
}

#[derive(Serialize)]
struct ReasonStatus {
    reason: &'static str,
    outcome: &'static str,
    packets: u64,
    explanation: &'static str,
}

/// Runs the command.
///
/// # Errors
/// When the maps cannot be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let reading = &options.reading;
    answer(reading, |root, out| {
        let mut status = read(root)?;
        if options.node {
            status.findings = check::look(&[], NODE_PORTS)?;
        }
        match reading.output {
            Output::Json => document(out, reading, &status),
            form => {
                show::write(out, &status, form)?;
                if options.node {
                    writeln!(out)?;
                    check::write(out, &status.findings)?;
                }
                Ok(())
            }
        }
    })
}

fn read(root: &PinRoot) -> anyhow::Result<Status> {
    let settings = settings(root)?;
    let state = State::read(root);
    let flows = counts::FlowCounts::read(root)?;
    let tables = fills(root, &flows)?;
    let backends = ways::read(root, state.as_ref()).unwrap_or_else(|error| {
        tracing::warn!("by which ways backends are reached is not seen: {error:#}");
        Vec::new()
    });
    let served = tables.iter().find(|fill| fill.map == names::SERVICE_NAMES).map_or(0, |fill| fill.entries);
    let family = |(family, place): (&'static str, usize)| FlowStatus {
        family,
        established: flows.total(family, Stage::Established),
        opening: flows.total(family, Stage::Opening),
        capacity: flows.capacities[place][0],
    };
    Ok(Status {
        node: text(&settings.node),
        pin_root: root.path().display().to_string(),
        agent: agent(root, state.as_ref()),
        sync: state.as_ref().map(sync).unwrap_or_default(),
        watches: state.as_ref().map(watches).unwrap_or_default(),
        settings: about_settings(&settings),
        devices: devices::read(root, state.as_ref())?,
        ways: ways::sum(&backends),
        backends,
        flows: [("IPv4", 0), ("IPv6", 1)].map(family).into(),
        tables: tables.into_iter().map(table).collect(),
        reasons: reasons(root)?,
        snat_searches: tries::read(root)?,
        ports_served: served,
        ports_left: state.as_ref().map_or(0, |state| state.left.len()),
        listeners: state.as_ref().map(|state| state.listeners.clone()).unwrap_or_default(),
        advice: state.as_ref().map(|state| state.advice.clone()).unwrap_or_default(),
        warnings: state.map(|state| state.warnings).unwrap_or_default(),
        findings: Vec::new(),
    })
}

fn table(Fill { map, entries, capacity }: Fill) -> TableStatus {
    TableStatus { map, entries, capacity }
}

fn agent(root: &PinRoot, state: Option<&State>) -> AgentStatus {
    AgentStatus {
        pid: root.running_agent(),
        version: state.map(|state| state.version.clone()),
        state_age: state.map(|state| state.age().as_secs()),
        tc: state.map(|state| state.tc.clone()),
        neighbours: PinnedMap::<vmlb_common::abi::NeighbourKey, u32>::open(root, names::NEIGHBOURS)
            .and_then(|map| Ok(map.all()?.len()))
            .ok(),
    }
}

fn sync(state: &State) -> SyncStatus {
    let age = |at| state.before(at).map(|before| (before + state.age()).as_secs());
    SyncStatus {
        waiting: state.waiting.clone(),
        error: state.error.clone(),
        age: age(state.synced),
        change_age: age(state.changed),
        queued: state.queued,
    }
}

fn watches(state: &State) -> Vec<WatchStatus> {
    let watch = |watch: &crate::watch::kube::WatchState| WatchStatus {
        kind: watch.kind.clone(),
        phase: watch.phase,
        staleness: state.before(watch.contact).map(|age| age.as_secs()),
        failures: watch.failures,
        error: watch.error.clone(),
    };
    state.watches.iter().map(watch).collect()
}

fn about_settings(settings: &Settings) -> SettingsStatus {
    let used: Vec<_> = settings.snat_ports.iter().copied().filter(|range| range.count() > 0).collect();
    SettingsStatus {
        generation: settings.generation,
        hz: settings.hz,
        snat_ports: ports::show(&used),
        snat_port_count: settings.snat_port_count,
        timeouts: TimeoutFlag(settings.timeouts).to_string(),
    }
}

fn reasons(root: &PinRoot) -> anyhow::Result<Vec<ReasonStatus>> {
    let counts = reasons::read(root)?.into_iter().filter(|count| count.packets > 0);
    let status = |count: reasons::ReasonCount| ReasonStatus {
        reason: count.reason.name(),
        outcome: Outcome::of(count.reason).name(),
        packets: count.packets,
        explanation: count.reason.explanation(),
    };
    Ok(counts.map(status).collect())
}
