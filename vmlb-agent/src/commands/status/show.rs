//! The status for people.

use std::io::{self, Write};

use super::super::table::Table;
use super::devices::DeviceStatus;
use super::{Output, Status, WatchStatus};
use crate::loader::attach::Mode;
use crate::watch::kube::Phase;

/// Warnings that are shown unless all are asked for.
const WARNINGS: usize = 20;
/// Ways that are shown unless all are asked for.
const WAYS: usize = 12;

pub(super) fn write(out: &mut dyn Write, status: &Status, form: Output) -> anyhow::Result<()> {
    head(out, status, form)?;
    devices(out, status)?;
    ways(out, status, form)?;
    flows(out, status)?;
    if form == Output::Wide {
        backends(out, status)?;
        tables(out, status)?;
    }
    reasons(out, status)?;
    warnings(out, status, form)?;
    Ok(())
}

fn line(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{:12} {text}", format!("{name}:"))
}

fn head(out: &mut dyn Write, status: &Status, form: Output) -> io::Result<()> {
    line(out, "Node", &status.node)?;
    line(out, "Pin root", &status.pin_root)?;
    let agent = match (status.agent.pid, status.agent.state_age) {
        (Some(pid), _) => format!("running, process {pid}"),
        (None, Some(age)) => format!("not running, last heard of {age} s ago; traffic goes on"),
        (None, None) => "not running; traffic goes on".to_owned(),
    };
    let version = status.agent.version.as_ref().map(|version| format!(", version {version}"));
    line(out, "Agent", &format!("{agent}{}", version.unwrap_or_default()))?;
    line(out, "Maps", &sync(status))?;
    for watch in &status.watches {
        line(out, "Watch", &watch_text(watch))?;
    }
    let left = match status.ports_left {
        0 => String::new(),
        left => format!(", {left} left to the node's stack (vmlb services tells why)"),
    };
    line(out, "Services", &format!("{} ports served{left}", status.ports_served))?;
    for listener in &status.listeners {
        let address = listener.address.map_or_else(|| "off".to_owned(), |address| address.to_string());
        let error = listener.error.as_ref().map(|error| format!(": NOT ANSWERED, {error}; tried again"));
        line(out, "Listening", &format!("{address} for {}{}", listener.purpose, error.unwrap_or_default()))?;
    }
    let ports = match status.settings.snat_port_count {
        0 => "none, SNAT is off".to_owned(),
        count => format!("{} ({count} ports)", status.settings.snat_ports),
    };
    line(out, "SNAT ports", &ports)?;
    if form == Output::Wide {
        line(out, "SNAT tries", &searches(status))?;
        line(out, "Timeouts", &status.settings.timeouts)?;
        let hook = status.agent.tc.as_deref().unwrap_or("?");
        line(out, "TC by", hook)?;
        line(
            out,
            "Generation",
            &format!("{}, {} jiffies a second", status.settings.generation, status.settings.hz),
        )?;
    }
    if let Some(count) = status.agent.neighbours {
        line(out, "Neighbours", &format!("{count} kept fresh"))?;
    }
    Ok(())
}

/// Searches for SNAT ports that there were, by the ports they tried.
fn searches(status: &Status) -> String {
    let counted = status.snat_searches.iter().filter(|count| count.searches > 0);
    let words: Vec<String> =
        counted.map(|count| format!("{} searches of {}", count.searches, count.word())).collect();
    if words.is_empty() { "no search yet".to_owned() } else { words.join(", ") }
}

fn sync(status: &Status) -> String {
    let sync = &status.sync;
    if let Some(error) = &sync.error {
        return format!("behind ({} changes wait): {error}", sync.queued);
    }
    if let Some(waiting) = &sync.waiting {
        return format!("waiting for {waiting}; what an earlier agent left serves meanwhile");
    }
    let Some(age) = sync.age else { return "nobody has said how they are".to_owned() };
    let change =
        sync.change_age.map_or_else(|| "unchanged".to_owned(), |age| format!("last changed {age} s ago"));
    format!("follow the objects as of {age} s ago, {change}")
}

fn watch_text(watch: &WatchStatus) -> String {
    let phase = match watch.phase {
        Phase::Listing => "listing",
        Phase::Watching => "watching",
        Phase::Retrying => "retrying",
        Phase::Absent => {
            return format!("{} absent: {}", watch.kind, watch.error.as_deref().unwrap_or_default());
        }
    };
    let heard = match watch.staleness {
        Some(age) => format!("heard of {age} s ago"),
        None => "never heard of".to_owned(),
    };
    let error = watch.error.as_ref().map(|error| format!(": {error}"));
    let failures = match watch.failures {
        0 => String::new(),
        failures => format!(", {failures} failures since"),
    };
    format!("{} {phase}, {heard}{failures}{}", watch.kind, error.unwrap_or_default())
}

fn devices(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(out, &["DEVICE", "INDEX", "HOOK", "IS", "SNAT-ADDRESSES", "REASON"]);
    for device in &status.devices {
        let addresses =
            [device.snat_v4, device.snat_v6].into_iter().flatten().map(|address| address.to_string());
        table.row(vec![
            device.name.clone(),
            device.ifindex.to_string(),
            hook(device),
            device.flags.join(","),
            addresses.collect::<Vec<_>>().join(","),
            device.reason.clone().unwrap_or_default(),
        ])?;
    }
    table.end()
}

fn hook(device: &DeviceStatus) -> String {
    let name = device.mode.map_or("?", Mode::name);
    device.on.as_ref().map_or_else(|| name.to_owned(), |on| format!("{name} on {on}"))
}

/// How many backends are reached by which way.
fn ways(out: &mut dyn Write, status: &Status, form: Output) -> io::Result<()> {
    if status.ways.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::new(out, &["WAY", "DEVICE", "BACKENDS", "EXAMPLES", "WHY"]);
    let most = if form == Output::Wide { usize::MAX } else { WAYS };
    for way in status.ways.iter().take(most) {
        let mut examples = way.examples.join(",");
        if way.backends > way.examples.len() {
            examples.push_str(&format!(",+{}", way.backends - way.examples.len()));
        }
        table.row(vec![
            way.way.to_owned(),
            way.device.clone().unwrap_or_default(),
            way.backends.to_string(),
            examples,
            way.why.clone(),
        ])?;
    }
    table.end()?;
    match status.ways.len().saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(out, "{more} more ways: --output wide shows them"),
    }
}

fn backends(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(out, &["BACKEND", "ADDRESS", "WAY", "DEVICE", "WHY"]);
    for backend in &status.backends {
        for reach in &backend.ways {
            table.row(vec![
                backend.name.clone(),
                reach.address.to_string(),
                reach.way.to_owned(),
                reach.device.clone().unwrap_or_default(),
                reach.why.clone(),
            ])?;
        }
    }
    table.end()
}

fn flows(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(out, &["FAMILY", "ESTABLISHED", "OPENING", "CAPACITY"]);
    for flows in &status.flows {
        let numbers = [flows.established.to_string(), flows.opening.to_string(), flows.capacity.to_string()];
        table.row([flows.family.to_owned()].into_iter().chain(numbers).collect())?;
    }
    table.end()
}

fn tables(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(out, &["MAP", "ENTRIES", "CAPACITY", "USED"]);
    for fill in &status.tables {
        let used = fill.entries.saturating_mul(100) / u64::from(fill.capacity.max(1));
        table.row(vec![
            fill.map.to_owned(),
            fill.entries.to_string(),
            fill.capacity.to_string(),
            format!("{used}%"),
        ])?;
    }
    table.end()
}

fn reasons(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(out, &["REASON", "PACKETS", "EXPLANATION"]);
    for reason in &status.reasons {
        table.row(vec![
            reason.reason.to_owned(),
            reason.packets.to_string(),
            reason.explanation.to_owned(),
        ])?;
    }
    table.end()
}

fn warnings(out: &mut dyn Write, status: &Status, form: Output) -> io::Result<()> {
    let all: Vec<String> =
        status.advice.iter().cloned().chain(status.warnings.iter().map(ToString::to_string)).collect();
    let shown = if form == Output::Wide { all.len() } else { all.len().min(WARNINGS) };
    for warning in &all[..shown] {
        writeln!(out, "\nWarning: {warning}")?;
    }
    if all.len() > shown {
        writeln!(out, "\n{} more warnings: --output wide shows them", all.len() - shown)?;
    }
    Ok(())
}
