//! A real VM migrates while clients talk to it through vmlb. One migration there and one back as a rule; as many as the
//! variable names with `cargo xtask test migration`.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::lab::flows::{Flows, Kind};
use vmlb_tests::lab::results::Results;
use vmlb_tests::lab::site::{ELSEWHERE, Site, Timing, VM};
use vmlb_tests::lab::{Guest, Switch, Trial, qemu, unless_without_vms};
use vmlb_tests::service::Policy;
use vmlb_tests::skip;

/// The variable with the number of migrations in a row.
const COUNT: &str = "VMLB_MIGRATIONS";

/// There and back.
const SHORT: usize = 2;

/// UDP loss allowed over all migrations, in a thousand.
const UDP_LOSS: u64 = 20;

/// What the emulator may lose of the guests that migrate: a fifth, and one in any case.
const LOSSES: usize = 5;

/// Idle for longer than it takes until the VM has switched.
const SILENCE: Duration = Duration::from_secs(6);

/// Clients of one migration.
const ONCE: [Kind; 9] = [
    Kind::Download(500_000),
    Kind::Upload(500_000),
    Kind::Datagrams,
    Kind::PushedDatagrams(6000),
    Kind::Requests,
    Kind::ServerSpeaks(SILENCE),
    Kind::ServerCloses(SILENCE),
    Kind::ClientCloses,
    Kind::ClientResets,
];

/// Clients of another pod.
const CONTROL: [Kind; 2] = [Kind::Echo, Kind::Datagrams];

/// Clients that talk, or are silent, through all migrations.
const LASTING: [Kind; 4] = [Kind::Echo, Kind::Push, Kind::Datagrams, Kind::ClientSpeaks];

#[test]
fn flows_to_a_vm_survive_its_migrations() {
    unless_without_vms("flows_to_a_vm_survive_its_migrations", || {
        let count = number_of_migrations()?;
        let mut table = Table::default();
        while table.rows.len() < count {
            let left = count - table.rows.len();
            if migrate_in_a_row(left, &mut table)? == Trial::GuestDied {
                table.losses += 1;
                skip::show(&format!("migration {}: the emulator lost the guest", table.rows.len() + 1));
            }
            ensure!(table.losses <= 1 + count / LOSSES, "the emulator loses too many guests:\n{table}");
        }
        skip::show(&table.to_string());
        let (sent, lost) = table.datagrams();
        ensure!(lost * 1000 < sent * UDP_LOSS, "{lost} of {sent} datagrams are lost");
        Ok(())
    });
}

fn number_of_migrations() -> Result<usize> {
    let given = std::env::var(COUNT).ok();
    given.map_or(Ok(SHORT), |count| count.parse().with_context(|| format!("{COUNT}={count}")))
}

/// Migrates one VM to and fro, so often or until the emulator loses it.
fn migrate_in_a_row(count: usize, table: &mut Table) -> Result<Trial> {
    let mut site = Site::serving(Policy::Cluster)?;
    let mut vm = qemu::Vm::boot(&site.topology, VM, &site.launcher)?;
    let resets = Capture::resets(site.client(), site.topology.clients[0].addresses)?;
    let (mut lasting, mut control) = (Flows::default(), Flows::default());
    for family in Family::ALL {
        lasting.start(site.client(), &site.door(ELSEWHERE, family), &LASTING);
    }
    control.start(site.client(), &site.other_door(ELSEWHERE, Family::V4), &CONTROL);
    let mut switches = Vec::new();
    for number in 0..count {
        let mut once = Flows::default();
        let target = site.begin((number + 1) % 2, &Timing::default())?;
        for family in Family::ALL {
            once.start(site.client(), &site.door(ELSEWHERE, family), &ONCE);
        }
        thread::sleep(Duration::from_millis(500));
        let switch = vm.migrate(&target)?;
        once.switched();
        lasting.switched();
        site.report(target, switch, &Timing::default())?;
        let results = once.finish();
        let mut other = Flows::default();
        std::mem::swap(&mut other, &mut control);
        let hiccup = other.finish().hiccup()?;
        control.start(site.client(), &site.other_door(ELSEWHERE, Family::V4), &CONTROL);
        if let Err(error) = results.judge(&[switch], hiccup) {
            if !site.launcher.guest_answers(Duration::from_secs(5)) {
                return Ok(Trial::GuestDied);
            }
            return Err(error.context(format!("migration {}", table.rows.len() + 1)));
        }
        switches.push(switch);
        table.rows.push(Row::new(&results, switch, hiccup));
    }
    let hiccup = table.rows.iter().map(|row| row.hiccup).max().unwrap_or_default();
    let results = lasting.finish();
    results.judge(&switches, hiccup)?;
    table.lasting.extend(results);
    let resets: Vec<String> = resets.finish().iter().map(|frame| capture::show(frame)).collect();
    ensure!(resets.is_empty(), "{} resets reached the client, e.g. {}", resets.len(), resets[0]);
    Ok(Trial::Held)
}

/// One migration.
#[derive(Debug)]
struct Row {
    flows: usize,
    gap: Duration,
    pause: Duration,
    hiccup: Duration,
    /// Sent and lost.
    datagrams: (u64, u64),
}

impl Row {
    fn new(results: &Results, switch: Switch, hiccup: Duration) -> Self {
        Self {
            flows: results.count(),
            gap: results.longest_gap(),
            pause: switch.pause(),
            hiccup,
            datagrams: results.datagrams(),
        }
    }
}

/// All migrations.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    /// Flows that lasted through several migrations.
    lasting: Results,
    /// Guests that the emulator lost.
    losses: usize,
}

impl Table {
    fn datagrams(&self) -> (u64, u64) {
        let all = self.rows.iter().map(|row| row.datagrams).chain([self.lasting.datagrams()]);
        all.fold((0, 0), |(sent, lost), (more, gone)| (sent + more, lost + gone))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "migration  flows  longest gap  VM's pause  other pod's gap  datagrams lost")?;
        for (number, row) in self.rows.iter().enumerate() {
            let (sent, lost) = row.datagrams;
            writeln!(
                out,
                "{:9}  {:5}  {:8} ms  {:7} ms  {:12} ms  {lost:4} of {sent:6}",
                number + 1,
                row.flows,
                row.gap.as_millis(),
                row.pause.as_millis(),
                row.hiccup.as_millis()
            )?;
        }
        let (sent, lost) = self.datagrams();
        let share = lost as f64 * 100.0 / sent.max(1) as f64;
        writeln!(
            out,
            "{} migrations, {} guests lost by the emulator; {lost} of {sent} datagrams lost ({share:.2} %)\n             clients that lasted through them:\n{}",
            self.rows.len(),
            self.losses,
            self.lasting
        )
    }
}
