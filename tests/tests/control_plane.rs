//! Goldens of the control plane: manifests in, a dump of the maps out, one story a file in `control_plane/golden/`.

#[path = "../control_plane/story.rs"]
mod story;

use std::fmt::Write;
use std::path::{Path, PathBuf};

#[test]
fn every_story_ends_with_the_maps_it_tells_of() -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("control_plane/golden");
    let mut stories: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    stories.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    stories.sort();
    anyhow::ensure!(!stories.is_empty(), "no stories");
    let mut failures = String::new();
    for story in stories {
        let name = story.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match story::run(&story) {
            Ok(()) => println!("story {name}: ok"),
            Err(error) => writeln!(failures, "== {name}\n{error:#}")?,
        }
    }
    anyhow::ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

#[path = "../control_plane/walk.rs"]
mod walk;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmlb_agent::sync::{RECYCLE, Sync};
use vmlb_agent::tables::InFlows;
use walk::{Step, Watched, World, meaning, step};

/// The ports left to the stack as they are kept up change by change.
fn kept_up(sync: &Sync) -> Vec<String> {
    let left = sync.left().into_iter();
    left.map(|port| format!("{}/{} {}: {}", port.namespace, port.name, port.port_name, port.reason)).collect()
}

/// The same by looking at every Service.
fn looked_up(sync: &Sync) -> Vec<String> {
    let left = sync.services().into_iter().filter_map(|port| {
        let reason = port.reason?;
        Some(format!("{}/{} {}: {reason}", port.namespace, port.name, port.port_name))
    });
    left.collect()
}

/// Lets a control plane write until it has nothing more to write.
fn settle(sync: &mut Sync, tables: &mut Watched, now: &mut Instant) {
    for _ in 0..6 {
        *now += RECYCLE;
        let report = sync.sync(tables, *now);
        assert!(report.error.is_none() && report.waiting.is_none(), "{report:?}");
        if report.written == 0 {
            assert_eq!(kept_up(sync), looked_up(sync));
            return;
        }
    }
    panic!("it goes on writing");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn after_a_random_walk_with_faults_and_restarts_the_maps_equal_those_built_from_scratch(
        steps in proptest::collection::vec(step(), 1..60),
        turn in 0usize..40,
    ) {
        let mut world = World::default();
        world.take(&Step::Addresses { first: true, second: false });
        let (mut tables, mut now) = (Watched::new(), Instant::now());
        let mut sync = world.sync(0);
        for step in &steps {
            for event in world.take(step) {
                sync.apply(event);
            }
            sync.facts(world.facts());
            sync.tick(world.now);
            match step {
                Step::Write => {
                    tables.0.fail_after(None);
                    now += Duration::from_millis(7);
                    let report = sync.sync(&mut tables, now);
                    prop_assert!(report.error.is_none(), "{:?}", report);
                    prop_assert_eq!(kept_up(&sync), looked_up(&sync));
                }
                Step::Fail { after } => {
                    tables.0.fail_after(Some(usize::from(*after)));
                    now += Duration::from_millis(7);
                    sync.sync(&mut tables, now);
                }
                Step::Flow { frontend } => tables.open(*frontend),
                Step::Arrival { number, heard } => {
                    let arrival = tables.arrive(*number, world.now.monotonic);
                    arrival.iter().filter(|_| *heard).for_each(|arrival| sync.arrived(arrival));
                }
                Step::Restart => sync = world.sync(turn),
                _ => {}
            }
        }
        tables.0.fail_after(None);
        settle(&mut sync, &mut tables, &mut now);
        // What flows name outlives its objects: no flows, no past.
        tables.0.set_flows(InFlows::default());
        // Backends that no slice lists drain for as long as their pods live, which the past decides: no pods, no past.
        for pod in world.pods() {
            for event in world.delete(&pod) {
                sync.apply(event);
            }
        }
        settle(&mut sync, &mut tables, &mut now);
        let mut fresh = Watched::new();
        settle(&mut world.sync(turn), &mut fresh, &mut now);
        prop_assert_eq!(meaning(&tables.0), meaning(&fresh.0));
        prop_assert_eq!(tables.0.fault(), None);
    }

    #[test]
    fn any_order_of_events_makes_the_same_records(
        steps in proptest::collection::vec(step(), 1..40),
        turn in 1usize..40,
    ) {
        let mut world = World::default();
        world.take(&Step::Addresses { first: true, second: true });
        for step in &steps {
            world.take(step);
        }
        let (mut one, mut other, mut now) = (Watched::new(), Watched::new(), Instant::now());
        settle(&mut world.sync(0), &mut one, &mut now);
        settle(&mut world.sync(turn), &mut other, &mut now);
        prop_assert_eq!(one.0.dump(), other.0.dump());
    }

    #[test]
    fn a_restart_writes_nothing_and_so_does_a_second_plan(
        steps in proptest::collection::vec(step(), 1..40),
        turn in 1usize..40,
    ) {
        let mut world = World::default();
        world.take(&Step::Addresses { first: true, second: false });
        for step in &steps {
            world.take(step);
        }
        let (mut tables, mut now) = (Watched::new(), Instant::now());
        let mut sync = world.sync(0);
        settle(&mut sync, &mut tables, &mut now);
        prop_assert_eq!(sync.sync(&mut tables, now).written, 0);
        let mut next = world.sync(turn);
        let report = next.sync(&mut tables, now);
        prop_assert_eq!((report.written, report.error.is_none()), (0, true));
        prop_assert_eq!(sync.services(), next.services());
        prop_assert_eq!(sync.backends(), next.backends());
    }
}

#[path = "../control_plane/bench.rs"]
mod bench;

#[test]
fn a_change_costs_what_it_changes_and_not_what_the_cluster_holds() {
    let (small, large) = (bench::run(50, 5), bench::run(1000, 5));
    println!("50 services: {small:?}\n1000 services: {large:?}");
    assert!(large.written <= 8 && small.written <= 8, "{} and {} writes", small.written, large.written);
    assert_eq!((small.rewritten, large.rewritten), (0, 0), "a restart rewrites nothing");
    // Twenty times the cluster must not cost even four times as much. Slack for a busy machine.
    let slack = std::time::Duration::from_millis(5);
    assert!(large.change < small.change * 4 + slack, "{:?} and {:?}", small.change, large.change);
}
