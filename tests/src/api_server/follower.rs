//! The agent's control plane at the end of a watch of the API server: the real source, the real [`Sync`], and tables that
//! count what is written.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::object::Kind;
use vmlb_agent::serving::Serving;
use vmlb_agent::sync::{RECYCLE, Sync};
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::tables::{Capacity, Change, InFlows, Record, RecordKey, Tables};
use vmlb_agent::watch::kube::{Access, Board, Flags, Kube, Patience};
use vmlb_agent::watch::{Event, document};
use vmlb_common::abi::{Backend, Service, Turn};

use super::objects::NODE;

/// Between two looks while nothing comes.
const LOOK: Duration = Duration::from_millis(10);

/// Tables that count changes, and among them those that change nothing.
#[derive(Debug)]
pub struct Counted<T> {
    /// The tables themselves.
    pub tables: T,
    /// Changes carried out.
    pub writes: usize,
    /// Changes that wrote what was there already.
    pub idle: Vec<Change>,
    known: HashMap<String, Record>,
}

impl<T> Counted<T> {
    /// Empty tables.
    pub fn new(tables: T) -> Self {
        Self { tables, writes: 0, idle: Vec::new(), known: HashMap::new() }
    }
}

/// What tells a record from others; `None` for slots, which are written anew at places that were free.
fn key(record: &Record) -> Option<String> {
    Some(match record {
        Record::Slots(..) => return None,
        Record::Gate(entry, _) => format!("gate {entry}"),
        Record::Device(index, _) => format!("device {index}"),
        Record::Service(id, _) => format!("service {id}"),
        Record::Frontend4(key, _) => format!("frontend {key:?}"),
        Record::Frontend6(key, _) => format!("frontend {key:?}"),
        Record::Backend4(id, _) => format!("backend4 {id}"),
        Record::Backend6(id, _) => format!("backend6 {id}"),
        Record::Pod4(address, _) => format!("pod {address:?}"),
        Record::Pod6(address, _) => format!("pod {address:?}"),
        Record::Target(key, _) => format!("target {key:?}"),
        Record::ServiceName(id, _) => format!("service name {id}"),
        Record::BackendName(id, _) => format!("backend name {id}"),
        Record::Eligible(key) => format!("eligible {key:?}"),
        Record::Range4(key) => format!("range {key:?}"),
        Record::Range6(key) => format!("range {key:?}"),
        Record::Turn(id, _) => format!("turn {id}"),
        Record::Tag(key, _) => format!("tag {key:?}"),
        Record::Node4(address) => format!("node {address:?}"),
        Record::Node6(address) => format!("node {address:?}"),
    })
}

/// Entries of arrays go by being written as zeros.
fn is_removal(record: &Record) -> bool {
    match record {
        Record::Service(_, service) => *service == Service::default(),
        Record::Backend4(_, backend) => *backend == Backend::default(),
        Record::Backend6(_, backend) => *backend == Backend::default(),
        _ => false,
    }
}

/// The same for a removal.
fn removed(key: &RecordKey) -> String {
    match key {
        RecordKey::Device(index) => format!("device {index}"),
        RecordKey::Frontend4(key) => format!("frontend {key:?}"),
        RecordKey::Frontend6(key) => format!("frontend {key:?}"),
        RecordKey::Pod4(address) => format!("pod {address:?}"),
        RecordKey::Pod6(address) => format!("pod {address:?}"),
        RecordKey::Target(key) => format!("target {key:?}"),
        RecordKey::ServiceName(id) => format!("service name {id}"),
        RecordKey::BackendName(id) => format!("backend name {id}"),
        RecordKey::Eligible(key) => format!("eligible {key:?}"),
        RecordKey::Range4(key) => format!("range {key:?}"),
        RecordKey::Range6(key) => format!("range {key:?}"),
        RecordKey::Tag(key) => format!("tag {key:?}"),
        RecordKey::Node4(address) => format!("node {address:?}"),
        RecordKey::Node6(address) => format!("node {address:?}"),
    }
}

impl<T: Tables> Tables for Counted<T> {
    fn capacity(&self) -> Capacity {
        self.tables.capacity()
    }

    fn read(&self) -> Result<Vec<Record>> {
        self.tables.read()
    }

    fn write(&mut self, changes: &[Change]) -> Result<()> {
        self.writes += changes.len();
        for change in changes {
            match change {
                Change::Put(record) => {
                    let Some(key) = key(record) else { continue };
                    if is_removal(record) {
                        self.known.remove(&key);
                        continue;
                    }
                    if self.known.insert(key, record.clone()).as_ref() == Some(record) {
                        self.idle.push(change.clone());
                    }
                }
                Change::Remove(key) => drop(self.known.remove(&removed(key))),
            }
        }
        self.tables.write(changes)
    }

    fn turn(&self, id: u32) -> Result<Turn> {
        self.tables.turn(id)
    }

    fn in_flows(&self) -> Result<InFlows> {
        self.tables.in_flows()
    }
}

/// The node's network as the network side would tell it.
pub fn facts() -> NodeFacts {
    let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
    NodeFacts { addresses: vec![address], ..NodeFacts::default() }
}

/// A control plane that follows an API server.
pub struct Follower<T> {
    /// What it writes to.
    pub tables: Counted<T>,
    /// How its watches are.
    pub board: Board,
    /// The control plane.
    pub sync: Sync,
    events: mpsc::Receiver<Vec<Event>>,
    runtime: Runtime,
    /// Runs ahead of the clock, so that graces need not be waited for.
    ahead: Duration,
}

impl<T: Tables> Follower<T> {
    /// Begins to follow as the agent of [`NODE`] would.
    pub fn start(kubeconfig: &Path, patience: Patience, tables: T) -> Result<Self> {
        // The watches go on while the test does something else.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let flags = Flags { kubeconfig: Some(kubeconfig.to_owned()), context: None };
        let (board, events) = runtime.block_on(async {
            let access = Access::open(flags).await?;
            anyhow::Ok(Kube::start(access, NODE, patience).split())
        })?;
        let mut sync = Sync::new(NODE, Serving::default());
        sync.facts(facts());
        let tables = Counted::new(tables);
        Ok(Self { tables, board, sync, events, runtime, ahead: Duration::ZERO })
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    /// Writes what is due.
    pub fn synchronise(&mut self) -> Result<usize> {
        let now = self.now();
        let report = self.sync.sync(&mut self.tables, now);
        match report.error {
            Some(error) => Err(error),
            None => Ok(report.written),
        }
    }

    /// Takes in the next batch and writes; `false`: none came in time.
    pub fn step(&mut self, patience: Duration) -> Result<bool> {
        let events = &mut self.events;
        let next = self.runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await });
        let Ok(batch) = next else { return Ok(false) };
        let Some(batch) = batch else { bail!("the source has stopped") };
        for event in batch {
            self.sync.apply(event);
        }
        self.synchronise()?;
        Ok(true)
    }

    /// Follows for a while.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.step(left.min(LOOK))?;
        }
        Ok(())
    }

    /// Follows until `is_reached`, asked whenever nothing comes; returns how long that took.
    pub fn until(
        &mut self,
        patience: Duration,
        what: &str,
        mut is_reached: impl FnMut(&mut Self) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if !self.step(LOOK)? && is_reached(self) {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < patience, "not within {patience:?}: {what}; {:?}", self.board.states());
        }
    }

    /// Follows until the tables mean `wanted`; returns how long that took. Bits of the gate may stay longer than what set
    /// them, for the sake of flows, until somebody has looked whether there are any.
    pub fn until_current(
        &mut self,
        patience: Duration,
        what: &str,
        wanted: &BTreeSet<String>,
        meaning: impl Fn(&T) -> BTreeSet<String>,
    ) -> Result<Duration> {
        let took = self.until(patience, what, |follower| {
            let found = meaning(&follower.tables.tables);
            found.symmetric_difference(wanted).all(|line| line.starts_with("gate "))
        })?;
        if meaning(&self.tables.tables) != *wanted {
            self.settle()?;
        }
        let found = meaning(&self.tables.tables);
        let wrong: Vec<&String> = found.symmetric_difference(wanted).collect();
        ensure!(wrong.is_empty(), "{what}: {wrong:#?}");
        Ok(took)
    }

    /// Lets graces and ids of the past end.
    pub fn settle(&mut self) -> Result<()> {
        for _ in 0..6 {
            self.ahead += RECYCLE;
            if self.synchronise()? == 0 {
                return Ok(());
            }
        }
        bail!("it goes on writing")
    }
}

/// What a control plane that never saw anything else makes of these objects.
pub fn from_scratch(objects: &[Value]) -> Result<Memory> {
    let mut sync = Sync::new(NODE, Serving::default());
    sync.facts(facts());
    for object in objects.iter().filter(|object| is_ours(object)) {
        for event in events(object) {
            sync.apply(event);
        }
    }
    for kind in Kind::ALL {
        sync.apply(Event::Listed(kind));
    }
    let mut tables = Memory::default();
    let now = Instant::now();
    for turn in 0..3 {
        let report = sync.sync(&mut tables, now + RECYCLE * turn);
        if let Some(error) = report.error {
            return Err(error);
        }
    }
    Ok(tables)
}

/// Whether the agent would ask for the object (CONTRACT §1).
fn is_ours(object: &Value) -> bool {
    let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
    match object["kind"].as_str() {
        Some("Pod") => label("kubevirt.io") == Some("virt-launcher"),
        Some("Node") => true,
        _ => label("service.kubernetes.io/service-proxy-name").is_none(),
    }
}

/// The object as an event, read as a manifest would be: not by the code under test.
fn events(object: &Value) -> impl Iterator<Item = Event> {
    let contents = document::read("", object.to_string().as_bytes());
    contents.objects.into_iter().map(|object| Event::Apply { source: "".into(), object })
}
