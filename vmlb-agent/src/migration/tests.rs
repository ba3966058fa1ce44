//! Migrations as a node sees them, from objects and arrivals to maps: one table a story, a row a moment. Each row says what
//! happens and what the maps hold after it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmlb_common::abi::{Arrival, Turn};

use super::{Migration, Moment, Sign, Stage};
use crate::facts::{NodeAddress, NodeFacts};
use crate::object::{Kind, ObjectRef};
use crate::serving::Serving;
use crate::sync::Sync;
use crate::tables::memory::Memory;
use crate::tables::{Capacity, Change, InFlows, Record, Tables};
use crate::watch::{Event, document};

/// A pod: name, last octets of address and node, seconds of its age.
type Pod = (&'static str, u8, u8);

const A: Pod = ("a", 1, 1);
const B: Pod = ("b", 2, 2);
const C: Pod = ("c", 3, 1);

/// What happens.
enum Happens {
    /// A launcher pod of the VM is there.
    Pod(Pod),
    /// The same, with the annotation of a target at which the VM has arrived.
    Annotated(Pod),
    /// It has ended.
    Ended(Pod),
    /// It is gone.
    Gone(Pod),
    /// The slice lists these, each ready or not.
    Slice(&'static [(Pod, bool)]),
    /// The VMI says its node and the state of a migration to this pod.
    Vmi(u8, Pod, Value),
    /// The migration of this pod has failed.
    Failed(Pod),
    /// The VM shows itself to the datapath, and the agent hears of it.
    Shows,
    /// The same, and the agent does not hear of it.
    ShowsUnheard,
    /// The agent is another process.
    Restart,
    /// Only time passes.
    Nothing,
}

use Happens::{Annotated, Ended, Failed, Gone, Nothing, Restart, Shows, ShowsUnheard, Slice, Vmi};

struct World {
    sync: Sync,
    tables: Guarded,
    objects: BTreeMap<String, Value>,
    begun: Instant,
    now: Moment,
}

const CAPACITY: Capacity = Capacity {
    services: 8,
    slots: 2048,
    backends: 8,
    frontends: 8,
    pods: 16,
    targets: 16,
    eligible: 16,
    ranges: 8,
    tags: 16,
    nodes: 8,
};

/// Tables that accept no write to where packets go, and none that changes nothing.
struct Guarded(Memory);

impl Tables for Guarded {
    fn capacity(&self) -> Capacity {
        self.0.capacity()
    }

    fn read(&self) -> anyhow::Result<Vec<Record>> {
        self.0.read()
    }

    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        for change in changes {
            if let Change::Put(Record::Backend4(place, backend)) = change {
                let (id, side) = (place / 2, place % 2);
                let present = self.0.turned(id);
                let is_new = self.0.endpoints(id, side).is_empty();
                let goes = backend.flags == 0;
                assert!(present.side() != side || is_new || goes, "written where packets go: {change:?}");
                assert!(!present.is_expected() || goes, "written where the VM may show itself: {change:?}");
            }
            let before = self.0.clone();
            self.0.write(std::slice::from_ref(change))?;
            assert!(
                self.0.dump() != before.dump() || !matches!(change, Change::Put(Record::Turn(..))),
                "{change:?} changes nothing"
            );
        }
        Ok(())
    }

    fn turn(&self, id: u32) -> anyhow::Result<Turn> {
        self.0.turn(id)
    }

    fn in_flows(&self) -> anyhow::Result<InFlows> {
        self.0.in_flows()
    }
}

fn address(octet: u8) -> String {
    format!("10.0.0.{octet}")
}

fn pod((name, octet, node): Pod, vm: &str, phase: &str, annotations: Value) -> Value {
    let age = name.bytes().next().unwrap_or_default() - b'a';
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "d", "uid": format!("uid-{name}"), "annotations": annotations,
            "creationTimestamp": format!("2026-11-20T10:00:{age:02}Z"),
            "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": vm, "vm.kubevirt.io/name": "vm",
                "kubevirt.io/migrationJobUID": format!("job-{name}")},
        },
        "spec": {"nodeName": format!("n{node}")},
        "status": {"phase": phase, "podIP": address(octet), "hostIP": format!("192.0.2.{node}")},
    })
}

fn slice(listed: &[(Pod, bool)]) -> Value {
    let endpoint = |((name, octet, node), ready): &(Pod, bool)| {
        json!({
            "addresses": [address(*octet)], "nodeName": format!("n{node}"),
            "conditions": {"ready": ready, "serving": ready},
            "targetRef": {"kind": "Pod", "name": name, "uid": format!("uid-{name}")},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"port": 80}], "endpoints": listed.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "d"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]},
    })
}

fn vmi(node: u8, target: Pod, mut state: Value) -> Value {
    state["targetPod"] = target.0.into();
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "d", "uid": "vm-1"},
        "status": {"nodeName": format!("n{node}"), "migrationState": state},
    })
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            sync: Sync::new("n1", Serving::default()),
            tables: Guarded(Memory::new(CAPACITY)),
            objects: BTreeMap::new(),
            begun: Instant::now(),
            now: Moment { monotonic: 1_000_000_000_000, wall: 1_800_000_000_000 },
        };
        world.restart();
        world.put(service());
        world
    }

    fn restart(&mut self) {
        self.sync = Sync::new("n1", Serving::default());
        let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
        self.sync.facts(NodeFacts { addresses: vec![address], ..NodeFacts::default() });
        self.sync.tick(self.now);
        for object in self.objects.clone().into_values() {
            self.put(object);
        }
        Kind::EVERY.into_iter().for_each(|kind| self.sync.apply(Event::Listed(kind)));
    }

    fn put(&mut self, object: Value) {
        let contents = document::read("", object.to_string().as_bytes());
        assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
        for decoded in contents.objects {
            self.objects.insert(decoded.reference().to_string(), object.clone());
            self.sync.apply(Event::Apply { source: "".into(), object: decoded });
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.at(self.now.monotonic + milliseconds * 1_000_000);
        self.sync.tick(self.now);
    }

    fn settle(&mut self) {
        let since = Duration::from_nanos(self.now.monotonic - 1_000_000_000_000);
        let report = self.sync.sync(&mut self.tables, self.begun + since);
        assert!(report.error.is_none() && report.waiting.is_none(), "{report:?}");
        // Bits of the gate go last, and once.
        for _ in 0..2 {
            self.sync.sync(&mut self.tables, self.begun + since);
        }
        assert_eq!(self.sync.sync(&mut self.tables, self.begun + since).written, 0, "it goes on writing");
        assert_eq!(self.tables.0.fault(), None);
    }

    fn arrive(&mut self) -> Option<Arrival> {
        let at = self.now.monotonic;
        self.tables.0.arrive(1, at)
    }

    fn take(&mut self, happens: &Happens) {
        match happens {
            Happens::Pod(one) => self.put(pod(*one, "vm-1", "Running", json!({}))),
            Annotated(one) => {
                let stamp = json!({"kubevirt.io/migration-target-ready-timestamp": "2026-11-20T10:01:00Z"});
                self.put(pod(*one, "vm-1", "Running", stamp));
            }
            Ended(one) => self.put(pod(*one, "vm-1", "Succeeded", json!({}))),
            Gone(one) => {
                let gone = ObjectRef::new(Kind::Pod, "d", one.0);
                self.objects.remove(&gone.to_string());
                self.sync.apply(Event::Delete(gone));
            }
            Slice(listed) => self.put(slice(listed)),
            Vmi(node, target, state) => self.put(vmi(*node, *target, state.clone())),
            Failed(target) => self.put(json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": format!("m-{}", target.0), "namespace": "d", "uid": format!("job-{}", target.0)},
                "spec": {"vmiName": "vm"}, "status": {"phase": "Failed"},
            })),
            Shows => {
                let arrival = self.arrive();
                self.sync.arrived(&arrival.expect("the VM is expected"));
            }
            ShowsUnheard => assert!(self.arrive().is_some(), "the VM is expected"),
            Restart => self.restart(),
            Nothing => {}
        }
    }

    /// `at 1 expects 2 knows 1 2 serves`, with the last octets of addresses.
    fn show(&self) -> String {
        let tables = &self.tables.0;
        let turned = tables.turned(1);
        let octet = |address: &IpAddr| address.to_string().rsplit('.').next().unwrap_or_default().to_owned();
        let side = |side: u32| -> Vec<String> {
            tables.endpoints(1, side).iter().map(|(at, _)| octet(at)).collect()
        };
        let mut shown = format!("at {}", side(turned.side()).join(","));
        if turned.is_expected() {
            write!(shown, " expects {}", side(1 - turned.side()).join(",")).unwrap();
        }
        for last in 1..=9u8 {
            if let Some(pod) = tables.pod([10, 0, 0, last].into()).filter(|pod| pod.backend == 1) {
                let is_present = pod.side == turned.side();
                write!(shown, " {}{last}", if is_present { "+" } else { "-" }).unwrap();
            }
        }
        let served = tables.served();
        let serves = served.values().any(|met| met.slots.iter().any(|target| target.backend == 1));
        shown + if serves { " serves" } else { "" }
    }

    fn last(&self) -> Migration {
        self.sync.migrations().pop().expect("a migration")
    }
}

/// Plays rows of milliseconds since the last, what happens, and what is shown after it.
fn play(rows: &[(u64, Happens, &str)]) -> World {
    let mut world = World::new();
    for (row, (milliseconds, happens, shows)) in rows.iter().enumerate() {
        world.pass(*milliseconds);
        world.take(happens);
        world.settle();
        assert_eq!(&world.show(), shows, "row {row}");
    }
    world
}

/// The VM is in pod a.
macro_rules! story {
    ($($row:expr),* $(,)?) => {
        play(&[
            (0, Happens::Pod(A), "at "),
            (0, Slice(&[(A, true)]), "at 1 +1 serves"),
            $($row),*
        ])
    };
}

fn state(fields: &[(&str, Value)]) -> Value {
    Value::Object(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn started() -> Value {
    json!({"startTimestamp": "2026-11-20T10:00:30Z"})
}

#[test]
fn a_migration_as_it_should_be() {
    let world = story![
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (100, Slice(&[(A, true), (B, false)]), "at 1 expects 2 +1 -2 serves"),
        (9_000, Vmi(1, B, started()), "at 1 expects 2 +1 -2 serves"),
        (5_000, Shows, "at 2 -1 +2 serves"),
        (900, Annotated(B), "at 2 -1 +2 serves"),
        (100, Vmi(2, B, json!({"completed": true})), "at 2 -1 +2 serves"),
        (500, Slice(&[(A, false), (B, true)]), "at 2 -1 +2 serves"),
        (500, Ended(A), "at 2 +2 serves"),
        (500, Slice(&[(B, true)]), "at 2 +2 serves"),
    ];
    let migration = world.last();
    assert_eq!((migration.stage, migration.turned_by), (Stage::Settled, Some(Sign::Flow)));
    assert_eq!((migration.source.pod.as_str(), migration.target.pod.as_str()), ("a", "b"));
    let signs: Vec<Sign> = migration.signals.iter().map(|signal| signal.sign).collect();
    let expected = [
        Sign::TargetPod,
        Sign::Started,
        Sign::Flow,
        Sign::Annotation,
        Sign::NodeName,
        Sign::Completed,
        Sign::SourceGone,
    ];
    assert!(expected.iter().all(|sign| signs.contains(sign)) && signs.len() == expected.len(), "{signs:?}");
    assert_eq!(migration.turned.map(|turned| turned.since(migration.known)), Some(14_100_000_000));
    assert!(world.sync.tasks().is_empty());
}

#[test]
fn the_api_is_six_seconds_late() {
    story![
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (5_000, Shows, "at 2 -1 +2 serves"),
        (100, Slice(&[(A, false), (B, false)]), "at 2 -1 +2 serves"),
        (6_000, Annotated(B), "at 2 -1 +2 serves"),
        (0, Slice(&[(A, false), (B, true)]), "at 2 -1 +2 serves"),
        (0, Ended(A), "at 2 +2 serves"),
    ];
}

#[test]
fn the_slice_lists_the_target_three_seconds_early() {
    story![
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (100, Slice(&[(B, true)]), "at 1 expects 2 +1 -2 serves"),
        (3_000, Shows, "at 2 -1 +2 serves"),
    ];
}

#[test]
fn neither_side_is_ready_for_five_seconds() {
    story![
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (100, Slice(&[(A, false), (B, false)]), "at 1 expects 2 +1 -2 serves"),
        (2_500, Shows, "at 2 -1 +2 serves"),
        (500, Ended(A), "at 2 +2 serves"),
        (2_000, Slice(&[(B, false)]), "at 2 +2 serves"),
        (0, Slice(&[(B, true)]), "at 2 +2 serves"),
        // It is over: now readiness counts as it does for everybody.
        (60_000, Slice(&[(B, false)]), "at 2 +2"),
    ];
}

#[test]
fn a_target_that_is_never_listed_as_ready_is_believed_for_five_minutes() {
    story![
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Shows, "at 2 -1 +2 serves"),
        (0, Ended(A), "at 2 +2 serves"),
        (0, Slice(&[(B, false)]), "at 2 +2 serves"),
        (299_000, Nothing, "at 2 +2 serves"),
        (1_000, Nothing, "at 2 +2"),
    ];
}

#[test]
fn a_vm_that_was_not_ready_before_does_not_become_so_by_migrating() {
    story![
        (0, Slice(&[(A, false)]), "at 1 +1"),
        (100, Happens::Pod(B), "at 1 expects 2 +1 -2"),
        (100, Slice(&[(A, false), (B, false)]), "at 1 expects 2 +1 -2"),
    ];
}

#[test]
fn an_aborted_migration_turns_nothing() {
    let failed = || json!({"startTimestamp": "2026-11-20T10:00:30Z", "completed": true, "failed": true});
    for how in [Vmi(1, B, failed()), Failed(B), Ended(B), Gone(B)] {
        let mut world = story![
            (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
            (100, Vmi(1, B, started()), "at 1 expects 2 +1 -2 serves"),
            (100, Slice(&[(A, true), (B, false)]), "at 1 expects 2 +1 -2 serves"),
            (3_000, how, "at 1 +1 serves"),
        ];
        assert_eq!((world.last().stage, world.last().turned_by), (Stage::Aborted, None));
        // The target's pod goes later, and the next migration is another.
        for (happens, shows) in [
            (Gone(B), "at 1 +1 serves"),
            (Happens::Pod(C), "at 1 expects 3 +1 -3 serves"),
            (Shows, "at 3 -1 +3 serves"),
        ] {
            world.take(&happens);
            world.settle();
            assert_eq!(world.show(), shows);
        }
        assert_eq!(world.last().number, 2);
    }
}

#[test]
fn the_api_alone_turns_where_no_packet_shows_it() {
    for (how, sign) in [
        (Annotated(B), Sign::Annotation),
        (Vmi(1, B, json!({"targetNodeDomainReadyTimestamp": "2026-11-20T10:01:00Z"})), Sign::DomainReady),
        (Vmi(2, B, started()), Sign::NodeName),
        (Vmi(1, B, json!({"completed": true})), Sign::Completed),
        (Ended(A), Sign::SourceGone),
        (Gone(A), Sign::SourceGone),
    ] {
        let known = if sign == Sign::SourceGone { "at 2 +2 serves" } else { "at 2 -1 +2 serves" };
        let world = story![
            (0, Vmi(1, A, json!({})), "at 1 +1 serves"),
            (100, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
            (100, Slice(&[(A, true), (B, false)]), "at 1 expects 2 +1 -2 serves"),
            (1_000, how, known),
        ];
        assert_eq!(world.last().turned_by, Some(sign));
    }
}

#[test]
fn two_migrations_in_a_row() {
    let world = story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Vmi(1, B, started()), "at 1 expects 2 +1 -2 serves"),
        (1_000, Shows, "at 2 -1 +2 serves"),
        // The source is still there, the API has not said anything of the first, and its node is the next target's.
        (1_000, Happens::Pod(C), "at 2 expects 3 +2 -3 serves"),
        (0, Ended(A), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(2, B, json!({"completed": true})), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(2, C, started()), "at 2 expects 3 +2 -3 serves"),
        (1_000, Shows, "at 3 -2 +3 serves"),
        (1_000, Ended(B), "at 3 +3 serves"),
    ];
    let stages: Vec<Stage> = world.sync.migrations().iter().map(|migration| migration.stage).collect();
    assert_eq!(stages, [Stage::Settled, Stage::Settled]);
}

#[test]
fn what_the_api_says_late_of_the_first_does_not_turn_the_second() {
    story![
        (0, Vmi(1, B, started()), "at 1 +1 serves"),
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Shows, "at 2 -1 +2 serves"),
        (0, Happens::Pod(C), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(1, B, json!({"completed": true})), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(2, B, json!({"completed": true})), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(2, C, started()), "at 2 expects 3 +2 -3 serves"),
        (0, Vmi(1, C, started()), "at 3 -2 +3 serves"),
    ];
}

#[test]
fn a_source_that_dies_and_of_which_nobody_says_so_is_forgotten_after_a_minute() {
    let world = story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Shows, "at 2 -1 +2 serves"),
        (59_000, Nothing, "at 2 -1 +2 serves"),
        (1_000, Nothing, "at 2 +2 serves"),
        // Its pod is no target of anything.
        (60_000, Happens::Pod(A), "at 2 +2 serves"),
    ];
    assert_eq!(world.last().stage, Stage::Settled);
}

#[test]
fn a_target_that_dies_after_the_turn_leaves_the_vm_to_its_source() {
    story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Shows, "at 2 -1 +2 serves"),
        (1_000, Gone(B), "at 1 +1 serves"),
    ];
}

#[test]
fn a_restart_goes_on_where_the_maps_are() {
    story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Slice(&[(A, false), (B, false)]), "at 1 expects 2 +1 -2 serves"),
        (1_000, Restart, "at 1 expects 2 +1 -2 serves"),
        (1_000, Shows, "at 2 -1 +2 serves"),
        (1_000, Restart, "at 2 -1 +2 serves"),
        (60_000, Nothing, "at 2 +2 serves"),
    ];
}

#[test]
fn a_turn_while_no_agent_runs_is_found_by_the_next() {
    let world = story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (1_000, ShowsUnheard, "at 2 -1 +2 serves"),
        (0, Restart, "at 2 -1 +2 serves"),
        (0, Ended(A), "at 2 +2 serves"),
    ];
    assert_eq!(world.last().stage, Stage::Settled);
    // And where the agent is there and the ring was full.
    let mut world = story![(0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves")];
    world.take(&ShowsUnheard);
    world.take(&Slice(&[(A, true), (B, false)]));
    world.settle();
    assert_eq!(world.show(), "at 2 -1 +2 serves");
}

#[test]
fn an_abort_and_the_vm_itself_at_the_same_moment() {
    // The datapath has turned when the agent hears that the migration has failed: the VM is where it shows itself.
    let mut world = story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Slice(&[(A, true), (B, false)]), "at 1 expects 2 +1 -2 serves"),
    ];
    let arrival = world.arrive().expect("the VM is expected");
    world.take(&Failed(B));
    world.settle();
    world.sync.arrived(&arrival);
    world.settle();
    assert_eq!(world.show(), "at 2 -1 +2 serves");
}

#[test]
fn the_address_may_stay_and_the_node_change() {
    const STAYS: Pod = ("b", 1, 2);
    let mut world = story![
        // One address, one side: replies from it are the present side's, and only the API tells of the move.
        (0, Happens::Pod(STAYS), "at 1 expects 1 +1 serves"),
        (1_000, Vmi(1, STAYS, started()), "at 1 expects 1 +1 serves"),
        (1_000, Restart, "at 1 expects 1 +1 serves"),
    ];
    let node = |world: &World| world.sync.backends()[0].node.clone();
    assert_eq!(node(&world), "n1");
    world.take(&Annotated(STAYS));
    world.settle();
    assert_eq!((world.show().as_str(), node(&world).as_str()), ("at 1 +1 serves", "n2"));
    world.take(&Ended(A));
    world.settle();
    assert_eq!(world.show(), "at 1 +1 serves");
}

#[test]
fn the_sources_address_belongs_to_whoever_gets_it_next() {
    let mut world =
        story![(0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"), (0, Shows, "at 2 -1 +2 serves"),];
    // A second later, and nobody has said that pod a has ended: another VM's pod, known by its Service.
    world.pass(1_000);
    world.put(pod(("x", 1, 1), "vm-2", "Running", json!({})));
    let mut listed = slice(&[(B, true), (("x", 1, 1), true)]);
    listed["metadata"]["name"] = "s-2".into();
    world.put(listed);
    world.settle();
    let owner = world.tables.0.pod([10, 0, 0, 1].into()).expect("an owner");
    assert_eq!((owner.backend, world.tables.0.turned(2).side()), (2, owner.side));
    // And a plain pod of which only the slice tells.
    let mut world =
        story![(0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"), (0, Shows, "at 2 -1 +2 serves"),];
    world.put(slice(&[(B, true), (("y", 1, 1), true)]));
    world.settle();
    assert_eq!(world.tables.0.pod([10, 0, 0, 1].into()).map(|pod| pod.backend), Some(2));
}

#[test]
fn a_vm_that_is_started_again_is_another_backend() {
    let mut world = story![];
    world.tables.0.set_flows(InFlows { backends: [1].into(), ..InFlows::default() });
    world.take(&Ended(A));
    world.put(pod(("z", 1, 1), "vm-1-again", "Running", json!({})));
    world.put(slice(&[(("z", 1, 1), true)]));
    world.settle();
    assert_eq!(world.tables.0.pod([10, 0, 0, 1].into()).map(|pod| pod.backend), Some(2));
    assert!(world.tables.0.endpoints(1, 0).is_empty() && world.tables.0.endpoints(1, 1).is_empty());
    assert!(world.sync.migrations().is_empty());
}

#[test]
fn two_vms_that_exchange_addresses_keep_their_flows_apart() {
    let mut world = World::new();
    let pods = |one: u8, other: u8| {
        [pod(("p", one, 1), "vm-1", "Running", json!({})), pod(("q", other, 1), "vm-2", "Running", json!({}))]
    };
    let listed = |one: u8, other: u8| {
        let mut listed = slice(&[(("p", 1, 1), true), (("q", 1, 1), true)]);
        listed["endpoints"][0]["addresses"] = json!([address(one)]);
        listed["endpoints"][1]["addresses"] = json!([address(other)]);
        listed
    };
    for (one, other) in [(1, 2), (2, 1), (1, 2)] {
        pods(one, other).into_iter().for_each(|pod| world.put(pod));
        world.put(listed(one, other));
        world.settle();
        let at = |id: u32| world.tables.0.endpoints(id, world.tables.0.turned(id).side());
        let owner = |octet: u8| {
            let pod = world.tables.0.pod([10, 0, 0, octet].into()).expect("an owner");
            (pod.backend, pod.side == world.tables.0.turned(pod.backend).side())
        };
        assert_eq!((owner(one), owner(other)), ((1, true), (2, true)));
        assert_eq!(at(1)[0].0, IpAddr::from([10, 0, 0, one]));
        assert_eq!(at(2)[0].0, IpAddr::from([10, 0, 0, other]));
    }
}

#[test]
fn a_target_of_which_nobody_says_anything_is_not_expected_for_ever() {
    let mut world = story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (3_599_000, Nothing, "at 1 expects 2 +1 -2 serves"),
        (1_000, Nothing, "at 1 +1 serves"),
    ];
    assert_eq!(world.last().stage, Stage::TimedOut);
    // It comes all the same.
    world.take(&Annotated(B));
    world.settle();
    assert_eq!(world.show(), "at 2 -1 +2 serves");
    story![
        (0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves"),
        (0, Vmi(1, B, started()), "at 1 expects 2 +1 -2 serves"),
        (9_000_000, Nothing, "at 1 expects 2 +1 -2 serves"),
    ];
}

#[test]
fn a_task_says_where_to_prime_and_since_when_to_probe() {
    let mut world = story![(0, Vmi(1, A, state(&[])), "at 1 +1 serves")];
    assert!(world.sync.tasks().is_empty());
    world.take(&Happens::Pod(B));
    world.settle();
    let [task] = &world.sync.tasks()[..] else { panic!("one task") };
    assert_eq!((task.backend, task.side, task.stage, task.is_installed), (1, 1, Stage::Known, true));
    let endpoint = task.endpoints[0];
    assert_eq!((endpoint.address, endpoint.node), ([10, 0, 0, 2].into(), Some([192, 0, 2, 2].into())));
    assert!(!endpoint.is_local && task.probe.is_none() && task.turned.is_none());
    let number = task.number;
    world.pass(1_000);
    world.take(&Vmi(1, B, started()));
    world.sync.primed(number);
    world.settle();
    let [task] = &world.sync.tasks()[..] else { panic!("one task") };
    assert_eq!((task.stage, task.probe), (Stage::Primed, Some(world.now)));
    world.take(&Shows);
    world.settle();
    let [task] = &world.sync.tasks()[..] else { panic!("one task") };
    assert_eq!((task.stage, task.side, task.probe), (Stage::Turned, 1, None));
    assert_eq!((task.turned, task.endpoints[0].address), (Some(world.now), [10, 0, 0, 2].into()));
    world.take(&Ended(A));
    world.settle();
    assert!(world.sync.tasks().is_empty());
    // Without VMIs there is no word of the start.
    let mut world = story![];
    world.take(&Happens::Pod(B));
    world.settle();
    assert_eq!(world.sync.tasks()[0].probe, Some(world.now));
}

#[test]
fn an_arrival_tells_when_and_by_what_and_for_how_long_nobody_was_heard() {
    let mut world = story![(0, Happens::Pod(B), "at 1 expects 2 +1 -2 serves")];
    world.pass(5_000);
    let mut arrival = world.arrive().expect("the VM is expected");
    arrival.replied = arrival.at - 48_000_000;
    // The map is read before the ring.
    world.pass(100);
    world.take(&Slice(&[(A, true), (B, false)]));
    world.settle();
    world.sync.arrived(&arrival);
    world.settle();
    let migration = world.last();
    assert_eq!(migration.blackout(), Some(48_000_000));
    assert_eq!(migration.turned.map(|turned| turned.monotonic), Some(arrival.at));
}
