//! `vmlb migrations`.

use std::io::Write;
use std::net::IpAddr;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::print::{Listing, Row, Wide, answer};
use super::{Reading, help};
use crate::handover::Tally;
use crate::migration::{End, Moment, Stage};
use crate::pins::PinRoot;
use crate::state::{MigrationState, State, millis};

/// Options of `vmlb migrations`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb migrations
  vmlb migrations --watch 1
  vmlb migrations --output json | jq '.[] | select(.blackoutMs > 200)'

A row is a live migration that the agent on this node knows of, the oldest first, as the agent last said; of those that are
over only the last. STAGE: known (the target's pod has an address), primed (its connection tracking knows the flows), turned
(the VM is there), settled (the source is forgotten), aborted, timed-out. FLOWS are the VM's established ones on this node,
CARRIED those that went over with it. BLACKOUT is the time from the VM's last answer at the source to its first at the target,
where it was the datapath that turned the flows. SIGNALS are what was seen of it and when, in seconds since the target was known."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigrationRow {
    namespace: String,
    /// The VM's name.
    name: String,
    /// UID of the VirtualMachineInstance.
    uid: String,
    stage: Stage,
    source: EndRow,
    target: EndRow,
    /// What turned the flows; absent: nothing has.
    turned_by: Option<&'static str>,
    /// Milliseconds from the VM's last answer at the source to its first at the target; absent: not measured.
    blackout_ms: Option<f64>,
    /// When the target became known, milliseconds since 1970.
    known: u64,
    /// When the flows were turned, milliseconds since 1970.
    turned: Option<u64>,
    /// When the stage last changed, milliseconds since 1970.
    changed: u64,
    signals: Vec<SignalRow>,
    #[serde(flatten)]
    tally: Tally,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndRow {
    node: String,
    pod: String,
    addresses: Vec<IpAddr>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SignalRow {
    sign: &'static str,
    /// When it was seen here, milliseconds since 1970.
    at: u64,
    /// Seconds since the target was known.
    after: f64,
    /// When it was given according to the API, milliseconds since 1970.
    stated: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// When nothing is installed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    answer(&options.reading, |root, out| list(root, out, &options.reading))
}

fn list(root: &PinRoot, out: &mut dyn Write, reading: &Reading) -> anyhow::Result<()> {
    let migrations = State::read(root).map(|state| state.migrations).unwrap_or_default();
    let mut listing = Listing::begin::<MigrationRow>(out, reading);
    for state in migrations {
        listing.row(&MigrationRow::new(state))?;
    }
    listing.end()
}

impl MigrationRow {
    fn new(MigrationState { migration, tally }: MigrationState) -> Self {
        let signals = migration.signals.iter().map(|signal| SignalRow {
            sign: signal.sign.name(),
            at: signal.at.wall,
            after: seconds(signal.at, migration.known),
            stated: signal.stated,
        });
        Self {
            signals: signals.collect(),
            blackout_ms: migration.blackout().map(milliseconds),
            turned_by: migration.turned_by.map(crate::migration::Sign::name),
            stage: migration.stage,
            known: migration.known.wall,
            turned: migration.turned.map(|turned| turned.wall),
            changed: migration.changed.wall,
            tally,
            source: EndRow::new(migration.source),
            target: EndRow::new(migration.target),
            namespace: migration.namespace,
            name: migration.name,
            uid: migration.identity,
        }
    }
}

impl EndRow {
    fn new(End { pod, node, addresses, .. }: End) -> Self {
        Self { node, pod, addresses }
    }

    fn cell(&self, wide: Wide) -> String {
        let node = if self.node.is_empty() { "?" } else { &self.node };
        if wide == Wide::No {
            return node.to_owned();
        }
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        format!("{node}/{}/{}", self.pod, addresses.join("|"))
    }
}

/// To a millisecond.
#[expect(clippy::cast_precision_loss, reason = "times of people's scale")]
fn seconds(later: Moment, earlier: Moment) -> f64 {
    (later.since(earlier) / 1_000_000) as f64 / 1000.0
}

/// To a tenth.
#[expect(clippy::cast_precision_loss, reason = "times of people's scale")]
fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds / 100_000) as f64 / 10.0
}

impl Row for MigrationRow {
    fn heads(wide: Wide) -> Vec<&'static str> {
        let mut heads =
            vec!["VM", "STAGE", "AGE", "FROM", "TO", "FLOWS", "PRIMED", "CARRIED", "BLACKOUT", "BY"];
        if wide == Wide::Yes {
            heads.extend(["SILENT", "LEFT-OUT", "REFUSED", "PACKETS", "PROBES", "UID"]);
        }
        heads.push("SIGNALS");
        heads
    }

    fn cells(&self, wide: Wide) -> Vec<String> {
        let count = |count: Option<u64>| count.map(|count| count.to_string()).unwrap_or_default();
        let age = millis(SystemTime::now()).saturating_sub(self.known) / 1000;
        let mut cells = vec![
            format!("{}/{}", self.namespace, self.name),
            self.stage.name().to_owned(),
            format!("{age}s"),
            self.source.cell(wide),
            self.target.cell(wide),
            self.tally.flows.to_string(),
            self.tally.primed.to_string(),
            count(self.tally.carried),
            self.blackout_ms.map(|blackout| format!("{blackout:.0}ms")).unwrap_or_default(),
            self.turned_by.unwrap_or_default().to_owned(),
        ];
        if wide == Wide::Yes {
            let Tally { left_out, refused, packets, probes, silent, .. } = self.tally;
            cells.push(count(silent));
            cells.extend([left_out, refused, packets, probes].map(|count| count.to_string()));
            cells.push(self.uid.clone());
        }
        let signals: Vec<String> =
            self.signals.iter().map(|signal| format!("{} +{:.3}s", signal.sign, signal.after)).collect();
        cells.push(signals.join(", "));
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::{Migration, Sign, Signal};

    fn row() -> MigrationRow {
        let known = Moment { monotonic: 5_000_000_000, wall: 1_700_000_000_000 };
        let turned = known.at(13_412_345_678);
        let end = |node: &str, address: [u8; 4]| End {
            pod: format!("virt-launcher-vm-{node}"),
            uid: String::new(),
            node: node.into(),
            is_local: false,
            addresses: vec![address.into()],
        };
        let migration = Migration {
            number: 3,
            backend: 7,
            identity: "5f0c".into(),
            namespace: "shop".into(),
            name: "db".into(),
            stage: Stage::Turned,
            source: end("n1", [10, 244, 1, 5]),
            target: end("n2", [10, 244, 2, 9]),
            signals: vec![
                Signal { sign: Sign::TargetPod, at: known, stated: None },
                Signal { sign: Sign::Flow, at: turned, stated: None },
            ],
            turned_by: Some(Sign::Flow),
            known,
            turned: Some(turned),
            changed: turned,
            replied: Some(known.at(13_364_300_000)),
        };
        let tally = Tally { flows: 37, primed: 37, packets: 74, carried: Some(37), ..Tally::default() };
        MigrationRow::new(MigrationState { migration, tally })
    }

    #[test]
    fn a_migration_shows_what_it_cost_and_what_was_seen() {
        let cells = row().cells(Wide::No);
        assert_eq!(cells.len(), MigrationRow::heads(Wide::No).len());
        assert_eq!(cells[..2], ["shop/db", "turned"]);
        assert_eq!(
            cells[3..],
            ["n1", "n2", "37", "37", "37", "48ms", "flow", "target-pod +0.000s, flow +8.412s"]
        );
        let wide = row().cells(Wide::Yes);
        assert_eq!(wide.len(), MigrationRow::heads(Wide::Yes).len());
        assert_eq!(wide[4], "n2/virt-launcher-vm-n2/10.244.2.9");
    }

    #[test]
    fn programs_get_every_time_and_count() -> serde_json::Result<()> {
        let value = serde_json::to_value(row())?;
        assert_eq!((&value["blackoutMs"], &value["turnedBy"]), (&48.0.into(), &"flow".into()));
        assert_eq!((&value["carried"], &value["silent"]), (&37.into(), &serde_json::Value::Null));
        assert_eq!(value["signals"][1]["at"], 1_700_000_008_412_u64);
        assert_eq!((&value["stage"], &value["target"]["node"]), (&"turned".into(), &"n2".into()));
        Ok(())
    }
}
