//! What is asked of the API server and how, and what is said of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmlb_agent::object::Kind;
use vmlb_agent::watch::kube::{Access, Flags, Patience, Phase};
use vmlb_tests::api_server::objects::{Endpoint, NODE, node, service, slice};
use vmlb_tests::api_server::{ApiServer, Asked, Blow};

use crate::stage::{Folder, Stage, quick};

const SOON: Duration = Duration::from_secs(2);

fn word<'a>(asked: &'a Asked, name: &str) -> &'a str {
    asked.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
}

#[test]
fn lists_come_in_pages_and_watches_with_bookmarks_of_what_is_selected() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    let asked = stage.server.take_asked();
    let of = |kind: Kind, is_watch: bool| -> Vec<&Asked> {
        asked.iter().filter(|asked| (asked.kind, asked.is_watch) == (kind, is_watch)).collect()
    };
    ensure!(of(Kind::Service, false).len() == 3, "seven Services on pages of three: {asked:?}");
    ensure!(of(Kind::Service, false).iter().all(|asked| word(asked, "limit") == "3"));
    for kind in Kind::ALL {
        let [watch] = of(kind, true)[..] else { anyhow::bail!("one watch of {}: {asked:?}", kind.name()) };
        ensure!(word(watch, "allowWatchBookmarks") == "true" && !word(watch, "resourceVersion").is_empty());
        let seconds: u64 = word(watch, "timeoutSeconds").parse()?;
        ensure!((300..=600).contains(&seconds), "{seconds}");
        let selected = (word(watch, "labelSelector"), word(watch, "fieldSelector"));
        let ours = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
        ensure!(
            selected
                == match kind {
                    Kind::Service | Kind::EndpointSlice => (ours, ""),
                    Kind::Node | Kind::Vmi | Kind::Migration => ("", ""),
                    Kind::Pod => ("kubevirt.io=virt-launcher", ""),
                },
            "{selected:?}"
        );
    }
    Ok(())
}

#[test]
fn a_service_that_goes_to_another_proxy_is_left_and_one_that_comes_back_is_served() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    let mut other = service("s2", 30_002);
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    stage.server.put(other)?;
    stage.wait_current(SOON)?;
    ensure!(stage.follower.sync.services().iter().all(|service| service.name != "s2"));
    stage.server.put(service("s2", 30_002))?;
    stage.wait_current(SOON)?;
    ensure!(stage.follower.sync.services().iter().any(|service| service.name == "s2"));
    Ok(())
}

#[test]
fn bookmarks_carry_a_watch_over_a_compaction() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.server.behave(|faults| faults.bookmarks = Some(Duration::from_millis(50)));
    stage.server.strike(Blow::Cut);
    stage.wait_watching()?;
    // Events of slices only: the other watches know the version by bookmarks.
    for _ in 0..5 {
        stage.follows(SOON)?;
    }
    stage.stays(Duration::from_millis(300))?;
    stage.server.compact();
    let lists = |stage: &Stage| stage.follower.board.states().iter().map(|state| state.lists).sum::<u64>();
    let before = lists(&stage);
    stage.server.strike(Blow::Cut);
    stage.stays(Duration::from_millis(500))?;
    ensure!(lists(&stage) == before, "{before} lists became {}", lists(&stage));
    stage.follows(SOON).map(drop)
}

#[test]
fn a_token_that_was_rotated_is_read_again() -> Result<()> {
    let mut stage = Stage::set(Patience { silence: Duration::from_secs(90), ..quick() })?;
    for token in ["second", "third"] {
        stage.wait_watching()?;
        stage.server.rotate_token(token)?;
        stage.server.strike(Blow::Cut);
        let took = stage.follows(SOON)?;
        println!("current after {took:?}");
    }
    Ok(())
}

#[test]
fn a_token_file_that_comes_late_is_waited_for() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.wait_watching()?;
    stage.server.behave(|faults| faults.token = "second".to_owned());
    stage.server.strike(Blow::Cut);
    stage.stays(Duration::from_millis(700))?;
    stage.server.rotate_token("second")?;
    stage.wait_current(SOON)?;
    stage.follows(Duration::from_secs(4)).map(drop)
}

#[test]
fn staleness_grows_while_nobody_answers_and_short_failures_are_not_told() -> Result<()> {
    let mut stage = Stage::set(Patience { quiet: Duration::from_millis(900), ..quick() })?;
    stage.server.behave(|faults| faults.bookmarks = Some(Duration::from_millis(50)));
    stage.server.strike(Blow::End);
    stage.follower.run(Duration::from_millis(600))?;
    stage.wait_watching()?;
    stage.follower.run(Duration::from_millis(300))?;
    let fresh = stage.follower.board.staleness().context("every kind has been heard")?;
    ensure!(fresh < Duration::from_millis(300), "{fresh:?}");
    // Short cuts: nobody is told.
    for _ in 0..4 {
        stage.server.strike(Blow::Cut);
        stage.follower.run(Duration::from_millis(150))?;
        for state in stage.follower.board.states() {
            ensure!(state.error.is_none(), "{state:?}");
        }
    }
    ensure!(stage.follower.sync.warnings().is_empty(), "{:?}", stage.follower.sync.warnings());
    stage.server.away();
    let start = Instant::now();
    stage.follower.run(Duration::from_millis(2500))?;
    for state in stage.follower.board.states() {
        let stale = state.staleness().unwrap_or_default();
        ensure!(
            stale + Duration::from_millis(300) > start.elapsed(),
            "{stale:?} after {:?}",
            start.elapsed()
        );
        ensure!(state.phase == Phase::Retrying && state.failures > 1 && state.error.is_some(), "{state:?}");
    }
    let warnings = stage.follower.sync.warnings();
    ensure!(warnings.len() == 6 && warnings[0].remedy.contains("reached"), "{warnings:?}");
    stage.server.resume()?;
    stage.wait_current(SOON)?;
    stage.follower.run(Duration::from_millis(2500))?;
    for state in stage.follower.board.states() {
        ensure!((state.failures, state.error.is_none()) == (0, true), "{state:?}");
    }
    ensure!(stage.follower.sync.warnings().is_empty(), "{:?}", stage.follower.sync.warnings());
    Ok(())
}

#[test]
fn an_api_server_that_forbids_is_named_with_what_to_grant() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    stage.server.behave(|faults| faults.refuse = Some(403));
    stage.server.strike(Blow::Cut);
    stage.follower.run(Duration::from_millis(1500))?;
    let warnings: Vec<String> = stage.follower.sync.warnings().iter().map(ToString::to_string).collect();
    for plural in ["services", "endpointslices", "nodes", "pods"] {
        let verbs = if plural == "nodes" { "get, list and watch" } else { "list and watch" };
        let wanted = format!("grant {verbs} on {plural}");
        ensure!(
            warnings.iter().any(|warning| warning.contains(&wanted)),
            "{wanted:?} is not in {warnings:?}"
        );
    }
    Ok(())
}

/// Asks for nodes as the agent does before it starts.
fn find(server: &ApiServer, context: Option<&str>, name: &str) -> Result<()> {
    let flags = Flags { kubeconfig: Some(server.kubeconfig()), context: context.map(str::to_owned) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Access::open(flags).await?.find_node(name).await })
}

#[test]
fn a_node_that_is_not_there_is_an_error_that_names_those_that_are() -> Result<()> {
    let folder = Folder::new();
    let server = ApiServer::start(&folder.0)?;
    for name in [NODE, "n1"] {
        server.put(node(name, "192.0.2.1"))?;
    }
    find(&server, None, NODE)?;
    let said = |found: Result<()>| found.map_or_else(|error| format!("{error:#}"), |()| String::new());
    let error = said(find(&server, None, "n7"));
    ensure!(error.contains("\"n7\", but n0, n1;") && error.contains("--node-name"), "{error}");
    let error = said(find(&server, None, "Not a Node"));
    ensure!(error.contains("is not a node's name"), "{error}");
    // Nobody is there to ask: what is installed has to do.
    find(&server, Some("nobody"), "n7")?;
    let error = said(find(&server, Some("absent"), "n7"));
    ensure!(error.contains("absent"), "{error}");
    Ok(())
}

#[test]
fn a_certificate_of_another_authority_is_not_believed() -> Result<()> {
    let (one, other) = (Folder::new(), Folder::new());
    let server = ApiServer::start(&one.0)?;
    let stranger = ApiServer::start(&other.0)?;
    server.put(node(NODE, "192.0.2.1"))?;
    std::fs::copy(other.0.join("ca.crt"), one.0.join("ca.crt"))?;
    let mut stage = Stage::set(quick())?;
    drop(stranger);
    stage.follower = vmlb_tests::api_server::follower::Follower::start(
        &server.kubeconfig(),
        quick(),
        vmlb_agent::tables::memory::Memory::default(),
    )?;
    stage.follower.run(Duration::from_secs(1))?;
    for state in stage.follower.board.states() {
        let error = state.error.as_deref().unwrap_or_default();
        ensure!(state.contact == 0 && error.contains("certificate"), "{state:?}");
    }
    Ok(())
}

#[test]
fn every_endpoint_of_a_large_slice_arrives() -> Result<()> {
    let mut stage = Stage::set(quick())?;
    let endpoints: Vec<Endpoint> = (0..900).map(Endpoint::ready).collect();
    stage.server.put(service("big", 30_500))?;
    stage.server.put(slice("big-x", "big", &endpoints))?;
    stage.follower.run(Duration::from_millis(300))?;
    let listed = stage.follower.sync.services().into_iter().find(|service| service.name == "big");
    ensure!(listed.context("the Service")?.listed == 900);
    Ok(())
}

#[test]
fn a_cluster_without_kubevirt_is_served_and_what_comes_later_is_followed() -> Result<()> {
    let mut stage = Stage::set(Patience { absent: Duration::from_millis(300), ..quick() })?;
    stage.wait_watching()?;
    for (absent, forbidden) in [
        (vec!["kubevirt.io"], vec![]),
        (vec![], vec![("*", "virtualmachineinstances"), ("*", "virtualmachineinstancemigrations")]),
    ] {
        let is_forbidden = !forbidden.is_empty();
        stage.server.behave(|faults| {
            faults.absent = absent;
            faults.forbidden = forbidden;
        });
        stage.server.strike(Blow::End);
        let server = &stage.server;
        stage.follower.until(SOON, "four watches", |follower| {
            let absent = |kind| follower.board.state(kind).phase == Phase::Absent;
            server.watches() == 4 && Kind::KUBEVIRT.into_iter().all(absent)
        })?;
        for kind in Kind::KUBEVIRT {
            let state = stage.follower.board.state(kind);
            let why = state.error.unwrap_or_default();
            ensure!(
                why.contains(if is_forbidden { "may not be read" } else { "not in this cluster" }),
                "{why}"
            );
        }
        // Only who may grant it is told.
        let told = stage.follower.sync.warnings().iter().filter(|one| one.remedy.contains("grant")).count();
        ensure!(told == if is_forbidden { 2 } else { 0 }, "{:?}", stage.follower.sync.warnings());
        stage.follows(SOON)?;
        stage.server.behave(|faults| {
            faults.absent = Vec::new();
            faults.forbidden = Vec::new();
        });
        stage.wait_watching()?;
        stage.follower.until(SOON, "no warning", |follower| follower.sync.warnings().is_empty())?;
    }
    Ok(())
}
