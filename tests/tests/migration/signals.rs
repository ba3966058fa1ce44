//! The API tells of a migration late, early or wrongly; only the VM itself decides.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmlb_tests::lab::flows::Kind;
use vmlb_tests::lab::results::Results;
use vmlb_tests::lab::site::{ELSEWHERE, Listing, Timing};
use vmlb_tests::service::Policy;

use crate::trial::{EVERYTHING, FROM_ELSEWHERE, Trial, alone, turns};

fn survives(timing: &Timing) -> Result<Results> {
    let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &EVERYTHING)?;
    trial.migrate(1, timing)?;
    thread::sleep(Duration::from_secs(1));
    trial.finish()
}

#[test]
fn every_flow_survives_a_migration() {
    alone("every_flow_survives_a_migration", || survives(&Timing::default()).map(drop));
}

#[test]
fn every_flow_survives_where_the_report_is_six_seconds_late() {
    alone("every_flow_survives_where_the_report_is_six_seconds_late", || {
        survives(&Timing { report: Duration::from_secs(6), ..Timing::default() }).map(drop)
    });
}

#[test]
fn every_flow_survives_where_the_target_is_listed_three_seconds_early() {
    alone("every_flow_survives_where_the_target_is_listed_three_seconds_early", || {
        let copying = Duration::from_secs(3);
        survives(&Timing { copying, listing: Listing::TargetEarly, ..Timing::default() }).map(drop)
    });
}

#[test]
fn every_flow_survives_where_neither_side_is_ready_for_five_seconds() {
    alone("every_flow_survives_where_neither_side_is_ready_for_five_seconds", || {
        let blind = Duration::from_secs(5);
        survives(&Timing { listing: Listing::NeitherFor(blind), ..Timing::default() }).map(drop)
    });
}

/// The longest silence that is nobody's fault where nothing happens.
const NOTHING_HAPPENS: Duration = Duration::from_millis(150);

#[test]
fn an_aborted_migration_turns_and_delays_nothing() {
    alone("an_aborted_migration_turns_and_delays_nothing", || {
        let kinds = [&Kind::ACTIVE[..], &[Kind::Requests]].concat();
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &kinds)?;
        let before = turns(&trial.site.topology.nodes[ELSEWHERE])?;
        for _ in 0..2 {
            let target = trial.site.begin(1, &Timing::default())?;
            trial.site.instance.fail(&target.pod)?;
            thread::sleep(Duration::from_millis(500));
        }
        let after = turns(&trial.site.topology.nodes[ELSEWHERE])?;
        ensure!(before == after, "turns were {before:?}, are {after:?}");
        let (results, hiccup) = trial.finish_with_hiccup()?;
        let gap = results.longest_gap();
        ensure!(gap < NOTHING_HAPPENS + 2 * hiccup, "a gap of {gap:?} where nothing happens");
        Ok(())
    });
}
