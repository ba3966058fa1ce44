//! The agent's rights: exactly those that it asks for, and what it says where one is missing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_agent::object::Kind;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::warning::Warning;
use vmlb_agent::watch::kube::{Access, Events, Flags, Patience};
use vmlb_tests::api_server::follower::Follower;
use vmlb_tests::api_server::kubevirt::{launcher_of, vmi};
use vmlb_tests::api_server::objects::{Endpoint, NODE, launcher, node, service, slice};
use vmlb_tests::api_server::{ApiServer, Blow, Right};
use vmlb_tests::deploy::{Role, ensure_exactly, rights};

const SOON: Duration = Duration::from_secs(5);

struct Stage {
    server: ApiServer,
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Stage {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}

impl Stage {
    fn set(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("vmlb-rights-{}-{name}", std::process::id()));
        let server = ApiServer::start(&folder)?;
        server.put(node(NODE, "192.0.2.1"))?;
        server.put(service("s", 30_000))?;
        server.put(slice("s-x", "s", &[Endpoint::ready(0)]))?;
        server.put(launcher(0))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { server, folder, runtime })
    }

    fn access(&self) -> Result<Access> {
        let flags = Flags { kubeconfig: Some(self.server.kubeconfig()), context: None };
        self.runtime.block_on(Access::open(flags))
    }

    /// What the agent asks before it starts.
    fn find_node(&self, name: &str) -> Result<()> {
        let access = self.access()?;
        self.runtime.block_on(access.find_node(name))
    }

    fn follow(&self) -> Result<Follower<Memory>> {
        let patience = Patience {
            quiet: Duration::from_millis(200),
            absent: Duration::from_secs(1),
            ..Patience::default()
        };
        Follower::start(&self.server.kubeconfig(), patience, Memory::default())
    }

    /// Hands warnings in as the agent on `node` would, and waits until Events satisfy `is_told`.
    fn tell(
        &self,
        node: &str,
        warnings: &[Warning],
        is_told: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let access = self.access()?;
        let events = self.runtime.block_on(async { Events::start(access, node) });
        events.tell(warnings);
        let start = Instant::now();
        loop {
            let mut all = self.server.objects();
            all.retain(|object| object["kind"] == "Event");
            if is_told(&all) {
                return Ok(all);
            }
            ensure!(start.elapsed() < SOON, "{all:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn warning(object: &str, message: &str) -> Warning {
    Warning { object: object.to_owned(), message: message.to_owned(), ..Warning::default() }
}

#[test]
fn the_role_grants_exactly_what_the_agent_asks_for() -> Result<()> {
    let stage = Stage::set("exact")?;
    stage.find_node(NODE)?;
    // For the message that names those that are there.
    ensure!(stage.find_node("absent").is_err());
    let mut follower = stage.follow()?;
    follower.until(SOON, "six watches", |_| stage.server.watches() == 6)?;
    stage.tell(NODE, &[warning("Service a/s", "is odd")], |events| events.len() == 1)?;
    ensure_exactly(Role::Agent, &stage.server.take_rights())
}

#[test]
fn without_a_right_the_agent_names_it_and_follows_everything_else() -> Result<()> {
    for Right { verb, resource, .. } in rights(Role::Agent)? {
        if resource == "events" {
            continue;
        }
        let stage = Stage::set(&format!("{verb}-{resource}"))?;
        stage.server.behave(|faults| faults.forbidden = vec![(verb, resource)]);
        // The question about the node is one that may go unanswered.
        stage.find_node(NODE)?;
        let mut follower = stage.follow()?;
        if verb == "get" {
            follower.until(SOON, "six watches", |_| stage.server.watches() == 6)?;
            continue;
        }
        let said = |follower: &Follower<Memory>| -> Vec<String> {
            follower.sync.warnings().iter().map(ToString::to_string).collect()
        };
        let wanted = format!("list and watch on {resource} by a ClusterRole");
        follower.until(SOON, "the right is named", |follower| {
            said(follower).iter().any(|one| one.contains(&wanted))
        })?;
        let cannot = format!("cannot {verb} resource \"{resource}\"");
        ensure!(said(&follower).iter().any(|one| one.contains(&cannot)), "{:?}", said(&follower));
        follower.until(SOON, "five watches", |_| stage.server.watches() == 5)?;
        for kind in Kind::ALL {
            let (state, is_hurt) =
                (follower.board.state(kind), format!("{}s", kind.name().to_lowercase()) == resource);
            ensure!(state.error.is_some() == is_hurt && (is_hurt || state.lists > 0), "{state:?}");
        }
        // With the right it recovers by itself.
        stage.server.behave(|faults| faults.forbidden = Vec::new());
        follower.until(Duration::from_secs(15), "six watches", |_| stage.server.watches() == 6)?;
    }
    Ok(())
}

#[test]
fn without_the_right_to_make_events_the_agent_says_so() -> Result<()> {
    let stage = Stage::set("no-events")?;
    stage.server.behave(|faults| faults.forbidden = vec![("create", "events")]);
    let access = stage.access()?;
    let events = stage.runtime.block_on(async { Events::start(access, NODE) });
    let wait = |is_refused: bool| -> Result<String> {
        events.tell(&[warning("Service a/s", "is odd")]);
        let start = Instant::now();
        while events.refusal().is_some() != is_refused {
            ensure!(start.elapsed() < SOON, "{:?}", events.refusal());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(events.refusal().unwrap_or_default())
    };
    let said = wait(true)?;
    ensure!(said.contains("grant create on events of events.k8s.io"), "{said}");
    stage.server.behave(|faults| faults.forbidden = Vec::new());
    wait(false).map(drop)
}

#[test]
fn what_was_known_stays_when_a_right_is_taken_away() -> Result<()> {
    let stage = Stage::set("kept")?;
    let mut follower = stage.follow()?;
    follower.until(SOON, "the Service is served", |follower| !follower.sync.services().is_empty())?;
    stage.server.behave(|faults| faults.forbidden = vec![("*", "services")]);
    stage.server.strike(Blow::Cut);
    follower.until(SOON, "the right is named", |follower| !follower.sync.warnings().is_empty())?;
    ensure!(follower.sync.services()[0].name == "s");
    // Endpoints still follow.
    stage.server.put(slice("s-x", "s", &[Endpoint::ready(0), Endpoint::ready(1)]))?;
    follower
        .until(SOON, "the endpoint is there", |follower| follower.sync.services()[0].listed == 2)
        .map(drop)
}

#[test]
fn events_stand_at_the_service_the_vmi_and_the_node_once_for_all_agents() -> Result<()> {
    let stage = Stage::set("events")?;
    stage.server.put(vmi("vm01", None))?;
    let mut pod = launcher_of("vm01", 7);
    pod["metadata"]["ownerReferences"] = serde_json::json!([
        {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm01", "uid": "vmi-vm01", "controller": true},
    ]);
    stage.server.put(pod)?;
    let uid = stage.server.object("Service", "a", "s").context("s")?["metadata"]["uid"].clone();
    let warnings = [
        warning("Service a/s", "spec.sessionAffinity is not served"),
        warning("Pod a/virt-launcher-vm01-7", "has no address"),
        warning("Node n0", "has no address"),
        // Nothing of this is an object of the cluster.
        warning("nodes", "are stale"),
        warning("Service a/gone", "is gone by now"),
    ];
    for (turn, node) in ["n0", "n1", "n0"].into_iter().enumerate() {
        // Events are made one after another, so that the last one tells that the others have been tried.
        let last = warning("Service a/s", &format!("last of turn {turn}"));
        let note = |event: &Value| event["note"] == last.message.as_str();
        stage.tell(node, &[&warnings[..], std::slice::from_ref(&last)].concat(), |events| {
            events.iter().any(note)
        })?;
    }
    let mut events = stage.tell("n2", &[], |_| true)?;
    events.retain(|event| event["note"].as_str().is_some_and(|note| !note.starts_with("last")));
    ensure!(events.len() == 3, "{events:#?}");
    let about: BTreeSet<(&str, &str)> = events
        .iter()
        .filter_map(|event| Some((event["regarding"]["kind"].as_str()?, event["regarding"]["uid"].as_str()?)))
        .collect();
    let uid = uid.as_str().context("a UID")?;
    ensure!(
        about == BTreeSet::from([("Service", uid), ("VirtualMachineInstance", "vmi-vm01"), ("Node", "n0")]),
        "{about:?}"
    );
    ensure!(events.iter().all(|event| event["type"] == "Warning" && event["reason"] == "NotServed"));
    Ok(())
}
