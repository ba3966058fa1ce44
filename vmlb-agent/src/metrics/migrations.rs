//! Live migrations as metrics: counted as they happen, without the VMs' names (Events and `vmlb migrations` have them).

use prometheus::core::Collector;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Opts};

use super::histogram;
use crate::handover::account::Counts;
use crate::migration::{Sign, Stage};

/// QEMU's own pause is tens of milliseconds; what the API tells comes seconds late.
const BLACKOUT: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0];

/// See the module.
#[derive(Debug)]
pub(super) struct Migrations {
    under_way: IntGauge,
    ended: IntCounterVec,
    turns: IntCounterVec,
    blackout: Histogram,
    carried: IntCounter,
    silent: IntCounter,
    packets: IntCounter,
    probes: IntCounter,
}

impl Migrations {
    /// Every series is there from the beginning, so that the first of a kind is an increase.
    pub fn new() -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        let migrations = Self {
            under_way: IntGauge::new(
                "vmlb_migration_under_way",
                "Live migrations that this node knows of and that are not over.",
            )?,
            ended: counters(
                "vmlb_migration_ended_total",
                "Live migrations that are over, by how they ended.",
                "outcome",
            )?,
            turns: counters(
                "vmlb_migration_turns_total",
                "VMs whose flows were turned to another pod, by what showed that the VM is there.",
                "sign",
            )?,
            blackout: histogram(
                "vmlb_migration_blackout_seconds",
                "Time from a VM's last answer at the source to its first at the target, where flows of this node show it.",
                &BLACKOUT,
            )?,
            carried: IntCounter::new(
                "vmlb_migration_flows_carried_total",
                "Established flows that went over to the target with their VM.",
            )?,
            silent: IntCounter::new(
                "vmlb_migration_flows_silent_total",
                "Flows that were carried over, and whose clients have heard nothing ten seconds later.",
            )?,
            packets: IntCounter::new(
                "vmlb_migration_primer_packets_total",
                "Packets that told a migration's target of a flow.",
            )?,
            probes: IntCounter::new(
                "vmlb_migration_probes_total",
                "Probes that asked whether a VM has arrived.",
            )?,
        };
        for stage in [Stage::Settled, Stage::Aborted, Stage::TimedOut] {
            migrations.ended.with_label_values(&[stage.name()]);
        }
        for sign in SIGNS {
            migrations.turns.with_label_values(&[sign.name()]);
        }
        Ok(migrations)
    }

    /// All of them.
    pub fn collectors(&self) -> [Box<dyn Collector>; 8] {
        [
            Box::new(self.under_way.clone()),
            Box::new(self.ended.clone()),
            Box::new(self.turns.clone()),
            Box::new(self.blackout.clone()),
            Box::new(self.carried.clone()),
            Box::new(self.silent.clone()),
            Box::new(self.packets.clone()),
            Box::new(self.probes.clone()),
        ]
    }

    /// Adds what is new.
    pub fn add(&self, counts: &Counts) {
        self.under_way.set(i64::try_from(counts.under_way).unwrap_or(i64::MAX));
        for stage in &counts.ended {
            self.ended.with_label_values(&[stage.name()]).inc();
        }
        for sign in &counts.turned {
            self.turns.with_label_values(&[sign.name()]).inc();
        }
        for blackout in &counts.blackouts {
            self.blackout.observe(blackout.as_secs_f64());
        }
        self.carried.inc_by(counts.carried);
        self.silent.inc_by(counts.silent);
        self.packets.inc_by(counts.packets);
        self.probes.inc_by(counts.probes);
    }
}

/// What may turn a VM ([`crate::migration::Migration::turned_by`]).
const SIGNS: [Sign; 7] = [
    Sign::Flow,
    Sign::Probe,
    Sign::Annotation,
    Sign::DomainReady,
    Sign::NodeName,
    Sign::Completed,
    Sign::SourceGone,
];
