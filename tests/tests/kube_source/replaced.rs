//! The store behind the API server changes: compacted, emptied, filled anew with lower or higher versions.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use vmlb_agent::object::{Kind, ObjectRef};
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::watch::kube::Patience;
use vmlb_tests::api_server::fault::Blow;
use vmlb_tests::api_server::follower::Follower;
use vmlb_tests::api_server::objects::{Endpoint, NODE, launcher, node, service, slice};

use crate::stage::Stage;

const SOON: Duration = Duration::from_secs(2);

/// What the new store holds: some of the old names with other contents, some new ones.
fn others() -> Vec<Value> {
    let mut objects = vec![node(NODE, "192.0.2.1")];
    for number in 5..9 {
        objects.push(service(&format!("s{number}"), 30_100 + number));
        let endpoints = [0, 1].map(|pod| Endpoint::ready(100 + number * 3 + pod));
        objects.push(slice(&format!("s{number}-y"), &format!("s{number}"), &endpoints));
    }
    objects.push(launcher(116));
    objects
}

#[test]
fn after_a_compaction_under_its_watches_it_is_current_within_two_seconds() -> Result<()> {
    let mut stage = Stage::set(Patience::default())?;
    stage.wait_watching()?;
    stage.server.away();
    stage.change()?;
    stage.server.delete(&ObjectRef::new(Kind::Service, "a", "s3"));
    stage.server.delete(&ObjectRef::new(Kind::EndpointSlice, "a", "s3-x"));
    stage.server.compact();
    stage.server.resume()?;
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    stage.follows(SOON).map(drop)
}

#[test]
fn a_store_filled_anew_with_lower_versions_is_followed_within_two_seconds() -> Result<()> {
    let mut stage = Stage::set(Patience::default())?;
    for _ in 0..50 {
        stage.change()?;
    }
    stage.wait_current(SOON)?;
    stage.server.replace(others())?;
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    stage.server.put(slice("s6-y", "s6", &[Endpoint::ready(7)]))?;
    stage.wait_current(SOON).map(drop)
}

#[test]
fn a_store_filled_anew_with_higher_versions_is_followed_within_two_seconds() -> Result<()> {
    let mut stage = Stage::set(Patience::default())?;
    stage.wait_watching()?;
    // A watch from the old version misses nothing that it could ask for; only the first object tells.
    let mut objects = others();
    for _ in 0..40 {
        objects.push(slice("s5-y", "s5", &[Endpoint::ready(3)]));
    }
    stage.server.replace(objects)?;
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    stage.server.put(slice("s6-y", "s6", &[Endpoint::ready(9)]))?;
    stage.wait_current(SOON).map(drop)
}

#[test]
fn a_store_that_is_emptied_empties_the_tables_and_is_followed_when_it_fills() -> Result<()> {
    let mut stage = Stage::set(Patience::default())?;
    stage.server.replace([])?;
    stage.wait_current(SOON)?;
    stage.follower.until(SOON, "a warning that names the remedy", |follower| {
        let warnings: Vec<String> = follower.sync.warnings().iter().map(ToString::to_string).collect();
        warnings.iter().any(|warning| warning.contains("no node \"n0\"") && warning.contains("--node-name"))
    })?;
    for object in others() {
        stage.server.put(object)?;
    }
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    let is_well = |follower: &mut Follower<Memory>| follower.sync.warnings().is_empty();
    stage.follower.until(SOON, "no warnings", is_well).map(drop)
}

#[test]
fn what_came_into_an_empty_list_goes_with_its_store() -> Result<()> {
    let mut stage = Stage::set(Patience::default())?;
    for pod in 0..3 {
        stage.server.delete(&ObjectRef::new(Kind::Pod, "a", &format!("p{pod}")));
    }
    stage.wait_watching()?;
    // Listed anew, the pods are none: there is no first one by which to know the store.
    stage.server.strike(Blow::Error(410, "Expired"));
    stage.wait_current(SOON)?;
    stage.wait_watching()?;
    stage.server.put(launcher(1))?;
    stage.wait_current(SOON)?;
    let objects =
        stage.server.objects().into_iter().filter(|object| object["kind"] != "Pod").collect::<Vec<_>>();
    // So often that the new store's version is higher.
    let again = std::iter::repeat_n(objects, 4).flatten();
    stage.server.replace(again)?;
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    Ok(())
}
