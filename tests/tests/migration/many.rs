//! A VM with twenty thousand established flows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::lab::Guest;
use vmlb_tests::lab::crowd::{self, Crowd};
use vmlb_tests::lab::flows::{Flows, Kind};
use vmlb_tests::lab::site::{ELSEWHERE, Site, Timing, VM};
use vmlb_tests::lab::stand_in::StandIn;
use vmlb_tests::maps;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::probe::wait;
use vmlb_tests::service::Policy;

use crate::trial::alone;

/// Connections in each family.
const EACH: u32 = 10_000;

/// In both.
const ALL: usize = 20_000;

/// From the target's address until the target knows every flow.
const PRIMED: Duration = Duration::from_secs(5);

#[test]
fn twenty_thousand_flows_are_primed_in_five_seconds_and_turned_by_one_write() {
    alone("twenty_thousand_flows_are_primed_in_five_seconds_and_turned_by_one_write", || {
        let mut site = Site::serving(Policy::Cluster)?;
        let mut vm = StandIn::boot(&site.topology, VM, &site.launcher)?;
        let [one, other] = crowd::PORTS;
        let servers = [(Family::V4, one), (Family::V6, other)]
            .map(|(family, port)| site.door(ELSEWHERE, family).to(port));
        let mut crowd = Crowd::gather(site.client(), &vm.namespace, servers, EACH)?;
        crowd.talk("past").context("before the migration")?;
        let mut others = Flows::default();
        let kinds = [Kind::Datagrams, Kind::Echo];
        others.start(site.client(), &site.other_door(ELSEWHERE, Family::V4), &kinds);
        std::thread::sleep(Duration::from_millis(300));

        let target = site.add_launcher(1)?;
        let primers = Capture::only(target.namespace(), capture::is_of_a_flow)?;
        site.instance.schedule(&target.pod)?;
        let start = Instant::now();
        site.instance.prepare(&site.launcher.pod, &target.pod)?;
        let primed =
            wait("the target knows every flow", 4 * PRIMED, || Ok(known(target.namespace())? >= ALL));
        let took = start.elapsed();
        println!("{} of {} flows known after {took:?}", known(target.namespace())?, ALL);
        primed?;
        let results = others.finish();
        print!("{results}");
        ensure!(results.datagrams().1 == 0, "{} datagrams of another pod are lost", results.datagrams().1);
        ensure!(took < PRIMED, "primed in {took:?}");
        println!("{} packets reached the target to prime it", primers.finish().len());

        let before = Maps::read(&site)?;
        site.instance.copy()?;
        let switch = vm.migrate(&target)?;
        // The first packet of any flow turns them all.
        crowd.talk("next").context("after the switch")?;
        before.check_turned(&Maps::read(&site)?)?;
        site.report(target, switch, &Timing::default())?;
        crowd.talk("last").context("after the report")
    });
}

/// Entries of the launcher's conntrack.
fn known(launcher: &Namespace) -> Result<usize> {
    Ok(launcher.read("/proc/sys/net/netfilter/nf_conntrack_count")?.trim().parse()?)
}

/// What names the VM's place on the node where the flows are.
struct Maps {
    turns: BTreeMap<String, Value>,
    others: Vec<(&'static str, BTreeMap<String, Value>)>,
}

const OTHERS: [&str; 5] = ["backends_v4", "backends_v6", "pods_v4", "pods_v6", "slots"];

impl Maps {
    fn read(site: &Site) -> Result<Self> {
        let node = &site.topology.nodes[ELSEWHERE];
        let mut turns = maps::dump(node, "turns")?;
        turns.values_mut().for_each(|turn| *turn = turn["word"].take());
        let others = OTHERS.map(|map| maps::dump(node, map).map(|entries| (map, entries)));
        Ok(Self { turns, others: others.into_iter().collect::<Result<_>>()? })
    }

    /// One word has changed, and nothing else.
    fn check_turned(&self, after: &Self) -> Result<()> {
        let changed: Vec<_> =
            self.turns.keys().filter(|key| self.turns.get(*key) != after.turns.get(*key)).collect();
        ensure!(changed.len() == 1, "words that changed: {changed:?}");
        for ((map, before), (_, after)) in self.others.iter().zip(&after.others) {
            ensure!(before == after, "{map} was {before:?}, is {after:?}");
        }
        Ok(())
    }
}
