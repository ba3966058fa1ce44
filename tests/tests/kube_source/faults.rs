//! Faults of the stream: each leaves the tables as they are, and what changes meanwhile arrives when it is over.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use vmlb_agent::object::Kind;
use vmlb_tests::api_server::objects::{Endpoint, service, slice};
use vmlb_tests::api_server::{Blow, Faults};

use crate::stage::{Stage, quick};

const SOON: Duration = Duration::from_secs(2);

/// A blow to every watch: nothing is written for it, and a change right behind it is in the tables soon.
fn a_blow(blow: Blow) -> Result<()> {
    let mut stage = Stage::set(quick())?;
    for _ in 0..3 {
        stage.wait_watching()?;
        stage.server.strike(blow.clone());
        stage.stays(Duration::from_millis(300))?;
        let took = stage.follows(SOON)?;
        println!("current after {took:?}");
    }
    Ok(())
}

/// A fault that lasts: nothing is written while it does, what changes meanwhile is in the tables soon after it.
fn a_spell(begin: impl Fn(&mut Faults), end: impl Fn(&mut Faults)) -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    stage.server.behave(begin);
    stage.server.strike(Blow::Cut);
    stage.stays(Duration::from_secs(1))?;
    stage.change()?;
    stage.stays(Duration::from_millis(300))?;
    stage.server.behave(end);
    // The pause before the next try may just have begun.
    let took = stage.wait_current(Duration::from_secs(4))?;
    println!("current after {took:?}");
    stage.follows(SOON).map(drop)
}

#[test]
fn a_watch_that_is_cut_goes_on() -> Result<()> {
    a_blow(Blow::Cut)
}

#[test]
fn a_watch_that_is_cut_in_mid_line_goes_on() -> Result<()> {
    a_blow(Blow::CutLine)
}

#[test]
fn a_watch_that_ends_early_goes_on() -> Result<()> {
    a_blow(Blow::End)
}

#[test]
fn a_line_of_truncated_json_is_survived() -> Result<()> {
    a_blow(Blow::BrokenLine)
}

#[test]
fn a_version_that_expires_in_mid_watch_is_survived() -> Result<()> {
    a_blow(Blow::Error(410, "Expired"))
}

#[test]
fn an_error_in_mid_watch_is_survived() -> Result<()> {
    a_blow(Blow::Error(500, "InternalError"))
}

#[test]
fn an_api_server_that_forbids_for_a_while_is_waited_for() -> Result<()> {
    a_spell(|faults| faults.refuse = Some(403), |faults| faults.refuse = None)
}

#[test]
fn an_api_server_that_fails_for_a_while_is_waited_for() -> Result<()> {
    a_spell(|faults| faults.refuse = Some(503), |faults| faults.refuse = None)
}

#[test]
fn an_api_server_that_takes_requests_without_an_answer_is_asked_again() -> Result<()> {
    a_spell(|faults| faults.holds = true, |faults| faults.holds = false)
}

#[test]
fn an_api_server_that_forbids_at_the_first_start_is_waited_for() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.server.behave(|faults| faults.refuse = Some(403));
    let tables = vmlb_agent::tables::memory::Memory::default();
    let kubeconfig = stage.server.kubeconfig();
    stage.follower = vmlb_tests::api_server::follower::Follower::start(&kubeconfig, quick(), tables)?;
    stage.stays(Duration::from_secs(1))?;
    stage.server.behave(|faults| faults.refuse = None);
    let took = stage.wait_current(SOON)?;
    println!("current after {took:?}");
    Ok(())
}

#[test]
fn a_watch_that_hangs_without_an_octet_is_given_up_and_goes_on() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    // Those that are open hang for good: silence ends only for those that come after it.
    stage.server.behave(|faults| faults.is_silent = true);
    stage.change()?;
    stage.stays(Duration::from_millis(500))?;
    stage.server.behave(|faults| faults.is_silent = false);
    stage.wait_current(SOON)?;
    stage.follows(SOON).map(drop)
}

#[test]
fn an_api_server_that_is_away_and_comes_back_is_followed_again() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    for away in [10, 300, 1500] {
        stage.server.away();
        stage.change()?;
        stage.stays(Duration::from_millis(away))?;
        stage.server.resume()?;
        let took = stage.wait_current(SOON)?;
        println!("away for {away} ms: current after {took:?}");
    }
    stage.follows(SOON).map(drop)
}

#[test]
fn an_api_server_that_answers_octet_by_octet_is_followed() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.server.behave(|faults| faults.slow = Some(Duration::from_millis(2)));
    stage.server.strike(Blow::Error(410, "Expired"));
    stage.follows(Duration::from_secs(5)).map(drop)
}

#[test]
fn lists_that_break_are_made_again_and_take_nothing_away() -> Result<()> {
    type Spell = fn(&mut Faults);
    let spells: [(&str, Spell); 4] = [
        ("truncated", |faults| faults.truncated_lists = 5),
        ("cut", |faults| faults.cut_lists = 5),
        ("expired", |faults| faults.gone_lists = 5),
        ("expired between pages", |faults| faults.compacts_between_pages = true),
    ];
    for (name, spell) in spells {
        let mut stage = Stage::set(quick())?;
        stage.wait_watching()?;
        stage.server.behave(spell);
        stage.server.strike(Blow::Error(410, "Expired"));
        stage.stays(Duration::from_millis(700))?;
        stage.server.behave(|faults| faults.compacts_between_pages = false);
        stage.change()?;
        let took = stage.wait_current(Duration::from_secs(4))?;
        println!("{name}: current after {took:?}");
        stage.follows(SOON)?;
    }
    Ok(())
}

#[test]
fn a_watch_refused_as_expired_leads_to_a_list() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    stage.server.take_asked();
    stage.server.behave(|faults| faults.gone_watches = Kind::ALL.to_vec());
    stage.server.strike(Blow::Cut);
    stage.stays(Duration::from_millis(600))?;
    let lists =
        stage.server.take_asked().iter().filter(|asked| !asked.is_watch && asked.kind == Kind::Node).count();
    ensure!(lists >= 2, "one list to compare the store, one to read it anew; {lists} were made");
    stage.follows(SOON).map(drop)
}

#[test]
fn events_that_come_twice_or_late_make_no_difference() -> Result<()> {
    for late in Kind::ALL {
        let mut stage = Stage::set(quick())?;
        stage.server.behave(|faults| {
            faults.doubles = true;
            faults.late = Some((late, Duration::from_millis(50)));
        });
        stage.server.put(service("s9", 30_009))?;
        stage.server.put(slice("s9-x", "s9", &[Endpoint::ready(1), Endpoint::ready(40)]))?;
        stage.wait_current(SOON)?;
        stage.follows(SOON)?;
    }
    Ok(())
}

#[test]
fn unknown_kinds_and_types_of_events_cost_themselves() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    let widget =
        json!({"kind": "Widget", "apiVersion": "x/v1", "metadata": {"name": "w", "resourceVersion": "1"}});
    for (kind, line) in [
        (Kind::Service, json!({"type": "ADDED", "object": widget})),
        (Kind::EndpointSlice, json!({"type": "DELETED", "object": widget})),
        (Kind::Pod, json!({"type": "FROZEN", "object": widget})),
    ] {
        stage.server.strike(Blow::Line(kind, line.to_string()));
    }
    stage.stays(Duration::from_millis(200))?;
    let warnings: Vec<String> = stage.follower.sync.warnings().iter().map(ToString::to_string).collect();
    for word in ["\"Widget\" in a watch", "the deletion of a \"Widget\"", "\"FROZEN\""] {
        ensure!(warnings.iter().any(|warning| warning.contains(word)), "{word} is not in {warnings:?}");
    }
    stage.follows(SOON).map(drop)
}

#[test]
fn an_object_that_cannot_be_read_stays_as_it_was_and_costs_no_other() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    let broken = |name: &str| {
        let mut object = service(name, 30_001);
        object["spec"]["ports"][0]["port"] = json!("eighty");
        object
    };
    let sound = stage.server.objects();
    stage.server.put(broken("s1"))?;
    stage.stays(Duration::from_millis(200))?;
    let told =
        |stage: &Stage| stage.follower.sync.warnings().iter().any(|warning| warning.object == "Service a/s1");
    ensure!(told(&stage), "{:?}", stage.follower.sync.warnings());
    // The same when all are listed anew.
    stage.server.strike(Blow::Error(410, "Expired"));
    stage.stays(Duration::from_millis(600))?;
    ensure!(told(&stage), "{:?}", stage.follower.sync.warnings());
    ensure!(sound.len() == stage.server.objects().len());
    stage.server.put(service("s1", 30_001))?;
    stage.wait_current(SOON)?;
    ensure!(!told(&stage), "{:?}", stage.follower.sync.warnings());
    stage.follows(SOON).map(drop)
}
