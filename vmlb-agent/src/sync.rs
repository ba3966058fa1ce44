//! The control plane's driver: takes events and facts, and when asked brings the tables to what they call for. One owner,
//! no threads, no clock of its own; whoever drives it (the agent's loop, a test) passes both in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use vmlb_common::abi::{Arrival, ArrivalSign, Role, Turned};

use crate::cluster::{Decoded, Judged};
use crate::desired::health::HealthCheck;
use crate::desired::{Desired, Here};
use crate::facts::NodeFacts;
use crate::identity::Identity;
use crate::index::Index;
use crate::index::pod::{Node, Pod};
use crate::migration::fleet::{Circumstances, Fleet};
use crate::migration::machine::Progress;
use crate::migration::{Endpoint, Migration, Moment, Sign, Stage, Task};
use crate::object::{Kind, Name, ObjectRef};
use crate::plan::Installation;
use crate::serving::Serving;
use crate::tables::pinned::Whereabouts;
use crate::tables::{Change, Record, RecordKey, Tables};
use crate::warning::{Subject, Warning, Warnings};
use crate::watch::Event;

mod left;
mod state;
#[cfg(test)]
mod tests;

pub use left::LeftState;
pub use state::{BackendState, FrontendState, ServiceState};

use left::LeftPorts;

/// Why nothing is written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// This kind has not been listed yet: what is installed may still be right.
    Listing(crate::object::Kind),
    /// The node's addresses are not known yet.
    Facts,
}

/// What a call of [`Sync::sync`] did.
#[derive(Debug, Default)]
pub struct Report {
    /// Nothing was looked at, for this reason; what an earlier agent left keeps working.
    pub waiting: Option<Waiting>,
    /// Changes carried out.
    pub written: usize,
    /// Other targets serve for UDP: the next ageing pass ends flows that are to move. It should come at once.
    pub moves_datagrams: bool,
    /// The tables could not be read or written; what is missing is tried again by the next call.
    pub error: Option<anyhow::Error>,
    /// Call again after this time even if nothing happens before: something waits for its grace or for a retry.
    pub again: Option<Duration>,
    /// Whether [`Sync::backends`] may differ from what it was before this call; looking costs what the cluster holds.
    pub backends_changed: bool,
    /// Warnings that have appeared since the last call, for the log.
    pub warnings: Vec<Warning>,
    /// When the changes of endpoints were called for that are in force since this call. Those that were there when the
    /// control plane began are left out.
    pub triggered: Vec<SystemTime>,
}

/// A target that stops has its flows moved if there are others; one that comes takes those that could not move before.
fn moves_datagrams(change: &Change) -> bool {
    match change {
        Change::Remove(RecordKey::Eligible(key)) | Change::Put(Record::Eligible(key)) => {
            key.role == Role::OPEN
        }
        _ => false,
    }
}

/// Between two tries after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Plans that one call carries out at most.
const STEPS: usize = 5;
/// Between two looks for what no flow names any more; each reads the flow tables.
pub const RECYCLE: Duration = Duration::from_secs(60);

/// The control plane of one node.
pub struct Sync {
    here: Here,
    has_facts: bool,
    listed: BTreeSet<Kind>,
    index: Index,
    desired: Desired,
    warnings: Warnings,
    /// `None`: what is installed is not known, at the start or after a failed write.
    installation: Option<Installation>,
    failed: Option<Installation>,
    facts_changed: bool,
    all_changed: bool,
    nodes_changed: bool,
    own_node: Option<Node>,
    node_was_known: bool,
    left: LeftPorts,
    triggered: Vec<SystemTime>,
    /// Whether tables have been brought to what is called for at least once.
    has_synced: bool,
    recycled: Option<Instant>,
    now: Moment,
    fleet: Fleet,
    /// The datapath has told something since the last sync.
    has_news: bool,
}

impl Sync {
    /// A control plane for the node of that name (`--node-name`).
    #[must_use]
    pub fn new(node: &str, serving: Serving) -> Self {
        Self {
            here: Here { node: node.to_owned(), serving, facts: NodeFacts::default() },
            has_facts: false,
            listed: BTreeSet::new(),
            index: Index::default(),
            desired: Desired::default(),
            warnings: Warnings::default(),
            installation: None,
            failed: None,
            facts_changed: false,
            all_changed: false,
            nodes_changed: false,
            own_node: None,
            node_was_known: false,
            left: LeftPorts::default(),
            triggered: Vec::new(),
            has_synced: false,
            recycled: None,
            now: Moment::default(),
            fleet: Fleet::default(),
            has_news: false,
        }
    }

    /// Takes in one event of the watch stream. Costs what the object costs; writes nothing.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Apply { source, object } => self.take(source, Judged::of(&object)),
            Event::Judged(judged) => self.take("".into(), judged),
            Event::Keep(object) => self.index.keep(object.kind, &object.name),
            Event::Delete(object) => {
                self.index.delete(&object);
                self.forget(object);
            }
            Event::Listing(kind) => self.index.reset(kind),
            Event::Listed(kind) => {
                for object in self.index.listed(kind) {
                    self.forget(object);
                }
                self.listed.insert(kind);
            }
            Event::Warnings { source, warnings } => {
                self.warnings.set(Subject::Source(source.to_string()), warnings);
            }
        }
    }

    fn take(&mut self, source: Arc<str>, judged: Judged) {
        let Judged { object: reference, decoded, warnings, triggered } = judged;
        let warnings = warnings.into_iter().map(|warning| warning.from_source(&source)).collect();
        self.warnings.locate(&reference, Some(source));
        self.warnings.set(Subject::Object(reference.clone()), warnings);
        self.index.keep(reference.kind, &reference.name);
        match decoded {
            Decoded::Use(entry) => {
                if self.index.apply(*entry) && self.has_synced {
                    self.triggered.extend(triggered);
                }
            }
            Decoded::Skip => self.index.delete(&reference),
            Decoded::Refuse => {}
        }
    }

    fn forget(&mut self, object: ObjectRef) {
        self.warnings.locate(&object, None);
        self.warnings.set(Subject::Object(object), Vec::new());
    }

    /// Takes in what the network side knows; call it whenever that may have changed. Writes nothing.
    pub fn facts(&mut self, facts: NodeFacts) {
        self.has_facts = true;
        if self.here.facts == facts {
            return;
        }
        let old = &self.here.facts;
        self.all_changed |= old.addresses != facts.addresses
            || old.unreached != facts.unreached
            || old.is_ovn != facts.is_ovn;
        self.facts_changed = true;
        self.here.facts = facts;
    }

    /// Brings `tables` to what events and facts call for. Before every kind has been listed and the facts are known it
    /// touches nothing. Costs what has changed since the last call. Call it after every batch of events, and at least
    /// once a minute so that ids of backends that are gone come back.
    pub fn sync(&mut self, tables: &mut dyn Tables, now: Instant) -> Report {
        let mut report = Report { waiting: self.waiting(), ..Report::default() };
        // A backend that both moves and changes takes several steps, each of which the datapath can serve.
        for _ in 0..STEPS {
            if report.waiting.is_some() || !self.step(tables, now, &mut report) {
                break;
            }
        }
        report.warnings = self.warnings.take_fresh();
        report
    }

    /// One plan, carried out. Tells whether another is to follow.
    fn step(&mut self, tables: &mut dyn Tables, now: Instant, report: &mut Report) -> bool {
        let done = self.take_over(tables, now).and_then(|()| {
            self.refresh();
            let waits =
                self.installation.as_ref().is_none_or(|installation| installation.unplaced.is_waiting());
            report.backends_changed |= waits || !self.desired.dirty.backends.is_empty();
            self.carry_out(tables, now)
        });
        match done {
            Ok(changes) => {
                report.written += changes.len();
                report.moves_datagrams |= changes.iter().any(moves_datagrams);
                report.again = self.again();
                report.triggered.append(&mut self.triggered);
                self.has_synced = true;
                self.installation.as_ref().is_some_and(Installation::is_unfinished)
            }
            Err(error) => {
                report.error = Some(error);
                report.again = Some(RETRY);
                false
            }
        }
    }

    fn waiting(&self) -> Option<Waiting> {
        let unlisted = Kind::ALL.into_iter().find(|kind| !self.listed.contains(kind));
        unlisted.map(Waiting::Listing).or((!self.has_facts).then_some(Waiting::Facts))
    }

    fn again(&self) -> Option<Duration> {
        let installation = self.installation.as_ref()?;
        if installation.is_unfinished() || (installation.unplaced.is_waiting() && installation.is_retiring())
        {
            return Some(crate::plan::GRACE);
        }
        let due = self.fleet.due().map(|due| due.saturating_sub(self.now.monotonic));
        let due = due.map(|due| Duration::from_nanos(due).max(crate::plan::GRACE));
        [due, installation.is_lingering().then_some(RECYCLE)].into_iter().flatten().min()
    }

    fn carry_out(&mut self, tables: &mut dyn Tables, now: Instant) -> anyhow::Result<Vec<Change>> {
        let Some(mut installation) = self.installation.take() else { return Ok(Vec::new()) };
        // What goes by this call waits for the next: flows may begin until it is carried out.
        let due = self.recycled.is_none_or(|last| now.saturating_duration_since(last) >= RECYCLE);
        if due && installation.is_lingering() {
            // A flow table that cannot be read costs only this: ids and gate bits come back later.
            if let Ok(in_flows) = tables.in_flows() {
                installation.recycle(&in_flows);
            }
            self.recycled = Some(now);
        }
        if std::mem::take(&mut self.facts_changed) {
            installation.resolve_facts(&self.here.facts);
        }
        if std::mem::take(&mut self.nodes_changed) {
            let nodes = self.index.nodes().flat_map(|node| node.addresses.iter().copied());
            installation.resolve_nodes(&nodes.collect());
        }
        self.left.mark(&self.desired, &installation);
        installation.resolve(&mut self.desired, &mut self.warnings, now);
        let changes = installation.changes();
        if let Err(error) = tables.write(&changes) {
            self.failed = Some(installation);
            return Err(error.context("the maps could not be written; what is missing is tried again"));
        }
        installation.settle();
        self.left.refresh(&self.desired, &installation);
        self.installation = Some(installation);
        Ok(changes)
    }

    /// Computes anew whatever events and facts have touched.
    fn refresh(&mut self) {
        self.has_news = false;
        let mut touched = self.index.take_touched();
        let mut vms: BTreeSet<Identity> = touched.backends.clone();
        vms.extend(self.fleet.identities());
        self.place(&vms);
        let moved = self.index.take_touched();
        touched.backends.extend(moved.backends);
        touched.services.extend(moved.services);
        if !touched.hosts.is_empty() {
            self.nodes_changed = true;
            touched.backends.extend(self.desired.backends_on(&touched.hosts));
        }
        let own_node = self.index.node(&self.here.node);
        if touched.nodes && own_node != self.own_node.as_ref() {
            // Whether the node is on its way out changes nothing that is served.
            let place = |node: Option<&Node>| node.map(|node| (node.zone.clone(), node.addresses.clone()));
            self.all_changed |= place(own_node) != place(self.own_node.as_ref());
            self.own_node = own_node.cloned();
            self.node_was_known |= self.own_node.is_some();
        }
        let mut services = touched.services;
        if std::mem::take(&mut self.all_changed) {
            services.extend(self.index.service_names().cloned());
        }
        for name in services {
            self.desired.refresh_service(&self.index, &self.here, &name);
            self.left.touch(&name);
            let warnings = self.desired.service(&name).map(|view| view.warnings.clone());
            self.warnings.set(Subject::Service(name), warnings.unwrap_or_default());
        }
        for identity in touched.backends {
            self.desired.refresh_backend(&self.index, &self.here, &identity);
        }
    }

    /// Says where VMs with several pods are.
    fn place(&mut self, vms: &BTreeSet<Identity>) {
        let Self { fleet, index, desired, installation, has_synced, .. } = self;
        let installed = |index: &Index, identity: &Identity| {
            let ends = installation.as_ref()?.installed_ends(identity);
            present_pod(index, identity, &ends)
        };
        let is_usable = |index: &Index, identity: &Identity| match desired.backend(identity) {
            Some(_) if *has_synced => desired.is_chosen(identity),
            // Nobody knows how it was before: the gates aside, its pod does.
            _ => index.pods_of(identity).0.is_none_or(|pod| pod.contained != Some(false)),
        };
        let around = Circumstances { installed: &installed, is_usable: &is_usable, now: self.now };
        for identity in vms {
            fleet.observe(index, identity, &around);
        }
    }

    /// What is installed is known after this, and which backends the datapath has turned.
    fn take_over(&mut self, tables: &dyn Tables, now: Instant) -> anyhow::Result<()> {
        let Some(installation) = &mut self.installation else {
            let installation = self.adopt(tables, now)?;
            self.installation = Some(installation);
            return Ok(());
        };
        let turned = installation.look(tables).context("map turns could not be read")?;
        for (identity, turn) in turned {
            let replied = (turn.replied != 0).then(|| self.now.at(turn.replied));
            if let Some(machine) = self.fleet.machine(&identity) {
                // By what it was turned is told by its arrival.
                machine.arrived(Sign::Flow, self.now, replied);
            }
        }
        Ok(())
    }

    /// Takes over what is installed; everything is to be compared with it.
    fn adopt(&mut self, tables: &dyn Tables, now: Instant) -> anyhow::Result<Installation> {
        let records = tables.read().context("the maps could not be read")?;
        let in_flows = tables.in_flows().context("the flow tables could not be read")?;
        let previous = self.failed.as_ref();
        let installation = Installation::adopt(records, tables.capacity(), &in_flows, previous, now);
        self.failed = None;
        // What has just been read need not be read again at once.
        self.recycled = Some(now);
        let known = installation.known();
        for identity in &known.draining {
            self.desired.hold(identity);
            self.desired.refresh_backend(&self.index, &self.here, identity);
        }
        self.desired.touch_all();
        self.desired.dirty.tables.extend(known.tables);
        self.desired.dirty.backends.extend(known.backends);
        self.facts_changed = true;
        self.nodes_changed = true;
        Ok(installation)
    }

    /// Whether a call of [`Sync::sync`] would have something to do.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        let is_due = self.fleet.due().is_some_and(|due| due <= self.now.monotonic);
        let is_unfinished = self.installation.as_ref().is_none_or(Installation::is_unfinished);
        is_unfinished
            || is_due
            || self.has_news
            || self.all_changed
            || self.facts_changed
            || self.index.is_touched()
    }

    /// Whether this node should get new clients. One that was known and is gone should not.
    #[must_use]
    pub fn is_node_eligible(&self) -> bool {
        match self.index.node(&self.here.node) {
            Some(node) => !node.leaving,
            None => !self.node_was_known,
        }
    }

    /// What balancers outside are to be told of Services from now on, as far as it has changed since the last call.
    pub fn take_health_changes(&mut self) -> Vec<(Name, Option<HealthCheck>)> {
        self.desired.take_health_changes()
    }

    /// Ports that are left to the node's stack, sorted by Service. Kept up with every sync, so that looking costs what it
    /// returns.
    #[must_use]
    pub fn left(&self) -> Vec<LeftState> {
        self.left.list()
    }

    /// Raised whenever [`Sync::left`] or [`Sync::warnings`] may have changed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.left.revision() + self.warnings.revision()
    }

    /// Every warning whose cause is still there, for `vmlb status`.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.list()
    }

    /// Every port of every Service of type NodePort or LoadBalancer, sorted, for `vmlb services`.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceState> {
        let ports =
            self.desired.services().flat_map(|(_, view)| view.ports.iter().map(move |port| (view, port)));
        ports
            .map(|(view, port)| state::service(&self.desired, self.installation.as_ref(), view, port))
            .collect()
    }

    /// Where the backends are, or may be at any moment: addresses, and whether they are on this node.
    pub fn places(&self) -> impl Iterator<Item = (IpAddr, Whereabouts)> {
        let views = self.installation.iter().flat_map(|installation| {
            let placed = self.desired.backends();
            placed.filter(|(identity, _)| installation.backend_id(identity).is_some()).map(|(_, view)| view)
        });
        views.flat_map(|view| {
            view.ends().flat_map(|end| {
                let place = if end.is_local { Whereabouts::Here } else { Whereabouts::Elsewhere };
                end.addresses.keys().map(move |address| (*address, place))
            })
        })
    }

    /// Every backend with its present addresses, sorted by id: whose devices and next hops the network side looks after.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendState> {
        let Some(installation) = &self.installation else { return Vec::new() };
        let placed = self.desired.backends();
        let placed =
            placed.filter_map(|(identity, view)| Some((installation.backend_id(identity)?, identity, view)));
        let mut backends: Vec<BackendState> =
            placed.map(|(id, identity, view)| state::backend(id, identity, view)).collect();
        backends.sort_unstable_by_key(|backend| backend.id);
        backends
    }
}

/// Live migration.
impl Sync {
    /// What time it is: call it before [`Self::apply`] and [`Self::sync`].
    pub fn tick(&mut self, now: Moment) {
        self.now = now;
    }

    /// The datapath has turned a backend to its other side. Call [`Self::sync`] after it.
    pub fn arrived(&mut self, arrival: &Arrival) {
        let Some(installation) = &mut self.installation else { return };
        let is_new = installation.learn(arrival.backend, Turned(arrival.word));
        let Some(identity) = installation.identity(arrival.backend) else { return };
        let sign = if arrival.sign == ArrivalSign::PROBE { Sign::Probe } else { Sign::Flow };
        let replied = (arrival.replied != 0).then(|| self.now.at(arrival.replied));
        if let Some(machine) = self.fleet.machine(&identity) {
            let at = self.now.at(arrival.at);
            // What is not new was read from the map, or done by ourselves.
            if is_new { machine.arrived(sign, at, replied) } else { machine.explain(sign, at, replied) }
        }
        self.has_news = true;
    }

    /// The target of a migration ([`Migration::number`]) has been told of all flows.
    pub fn primed(&mut self, number: u64) {
        self.fleet.primed(number, self.now);
    }

    /// What is to be done now for VMs that move, sorted by number. Changes with [`Self::sync`] only.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        let Some(installation) = &self.installation else { return Vec::new() };
        let task = |(identity, progress): (&Identity, &Progress)| {
            let backend = installation.backend_id(identity)?;
            let view = self.desired.backend(identity)?;
            let is_turned = progress.stage == Stage::Turned;
            let end = if is_turned { &view.present } else { &view.other.as_ref()?.end };
            let present = installation.present_side(backend);
            let endpoint = |address: &IpAddr| Endpoint {
                address: *address,
                node: end.hosts.beside(*address),
                is_local: end.is_local,
            };
            Some(Task {
                number: progress.number,
                backend,
                side: if is_turned { present } else { 1 - present },
                tag: identity.tag(),
                stage: progress.stage,
                is_installed: is_turned || installation.expects(backend).is_some(),
                endpoints: end.addresses.keys().map(endpoint).collect(),
                known: progress.known,
                turned: progress.turned,
                probe: progress.probe(self.index.vmi(identity).is_some()),
            })
        };
        let mut tasks: Vec<Task> = self.fleet.under_way().filter_map(task).collect();
        tasks.sort_unstable_by_key(|task| task.number);
        tasks
    }

    /// Migrations that are under way, and the last that are over, sorted by number. Changes with [`Self::sync`] only.
    #[must_use]
    pub fn migrations(&self) -> Vec<Migration> {
        let id = |identity: &Identity| self.installation.as_ref()?.backend_id(identity);
        self.fleet.migrations(&self.here.node, |identity| id(identity).unwrap_or(0))
    }
}

/// The pod of a VM that is at these addresses; of several with one address the one on the node that has the other.
fn present_pod(index: &Index, identity: &Identity, ends: &[(IpAddr, Option<IpAddr>)]) -> Option<Name> {
    let pods = index.live_pods(identity);
    let is_at = |pod: &&&Pod| !ends.is_empty() && ends.iter().all(|(address, _)| index.is_at(pod, *address));
    let at: Vec<&Pod> = pods.iter().filter(is_at).copied().collect();
    if let [pod] = at[..] {
        return Some(pod.name.clone());
    }
    let is_on = |pod: &&&Pod| {
        let hosts = index.hosts(pod.node.as_deref()).or(pod.hosts);
        ends.iter().any(|(address, node)| node.is_some() && hosts.beside(*address) == *node)
    };
    // Of several there, the one that counts without a past: what is installed is right for each of them.
    at.iter().rfind(is_on).map(|pod| pod.name.clone())
}
