//! What the agent tells about itself: the state file for the commands, health for balancers, metrics for scrapers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::network::Network;
use super::options::Options;
use super::source::Source;
use crate::handover::Handover;
use crate::handover::account::Account;
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::pins::PinRoot;
use crate::state::{Gist, MigrationState, State, millis};
use crate::sync::{Report, Sync};
use crate::watch::kube::events::NONE_MADE;

/// Between two looks at what the state file should hold, and so between two writes, at the least.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause is this many times what the last look and write cost, if that is more: a cluster in which much is odd makes
/// a large file.
const SHARE: u32 = 50;
/// The file is written this often as a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// See the module.
pub(super) struct Publisher {
    root: PinRoot,
    state: State,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    listeners: http::Board,
    /// What has been told of live migrations.
    account: Account,
    /// [`Sync::revision`] of the warnings and left ports in `state`.
    revision: Option<u64>,
    looked: Option<Instant>,
    written: Option<Instant>,
    /// What stands in the file.
    gist: Option<(Gist, Option<u64>)>,
    pause: Duration,
}

impl Publisher {
    /// Begins to answer health checks and metrics.
    ///
    /// # Errors
    /// When there can be no thread for them.
    pub fn start(
        root: &PinRoot,
        options: &Options,
        source: &Source,
        advice: Option<String>,
    ) -> anyhow::Result<Self> {
        let health = Arc::new(Health::new(options.http.max_sync_delay));
        let metrics =
            Arc::new(Metrics::new(root, &source.node, options.http.metrics_detail, health.clone())?);
        source.board().cloned().into_iter().for_each(|board| metrics.show_watches(board));
        let state = State {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: source.node.clone(),
            advice: advice.into_iter().collect(),
            ..State::default()
        };
        Ok(Self {
            listeners: http::start(&options.http, health.clone(), metrics.clone())?,
            root: root.clone(),
            state,
            health,
            metrics,
            account: Account::default(),
            revision: None,
            looked: None,
            written: None,
            gist: None,
            pause: PAUSE,
        })
    }

    /// So many changes wait for the maps from now on.
    pub fn queue(&self, changes: usize) {
        self.health.queue(changes as u64, Instant::now());
    }

    /// Takes in what a sync did that took so long; `None`: there was nothing to do.
    pub fn take(&mut self, report: &Report, took: Option<Duration>, sync: &mut Sync) {
        self.note(report);
        if report.error.is_some() {
            self.metrics.failed();
            self.health.failed(Instant::now());
        } else if report.waiting.is_none() {
            let now = SystemTime::now();
            if let Some(took) = took {
                self.metrics.synced(took, report.written, &report.triggered, now);
            }
            self.state.synced = millis(now);
            if report.written > 0 {
                self.state.changed = self.state.synced;
            }
            self.health.set_node_eligible(sync.is_node_eligible());
            self.health.set_checks(sync.take_health_changes());
            self.health.synced(now);
        }
    }

    fn note(&mut self, report: &Report) {
        let error = report.error.as_ref().map(|error| format!("{error:#}"));
        if let Some(error) = error.as_ref().filter(|error| self.state.error.as_ref() != Some(error)) {
            tracing::error!("the maps are behind: {error}");
        }
        self.state.error = error;
        let waiting = report.waiting.map(|waiting| format!("{waiting:?}"));
        if self.state.waiting.is_some() && waiting.is_none() {
            tracing::info!("the maps follow the objects now");
        }
        self.state.waiting = waiting;
    }

    /// The loop has come round: brings the file up to date where it is not, and tells what is new of live migrations, at most
    /// once in a pause. Returns when to call again even if nothing happens before.
    pub fn publish(
        &mut self,
        sync: &Sync,
        network: &Network,
        source: &Source,
        handover: &Handover,
    ) -> Option<Instant> {
        let now = Instant::now();
        self.health.come_round(now);
        if let Some(due) = self.looked.map(|at| at + self.pause).filter(|due| *due > now) {
            return Some(due);
        }
        self.look(sync, network, source);
        let migrations = sync.migrations();
        let (counts, notices) = self.account.take(&migrations, |number| handover.tally(number));
        handover.keep(|number| migrations.iter().any(|migration| migration.number == number));
        self.metrics.migrated(&counts);
        source.note(notices);
        self.state.migrations = migrations
            .into_iter()
            .map(|migration| MigrationState { tally: handover.tally(migration.number), migration })
            .collect();
        let gist = Some((self.state.gist(), self.revision));
        if self.gist != gist || self.written.is_none_or(|at| at.elapsed() >= SIGN_OF_LIFE) {
            (self.gist, self.written) = (gist, Some(now));
            if let Err(error) = self.state.write(&self.root) {
                tracing::warn!("{error:#}");
            }
        }
        self.looked = Some(now);
        self.pause = PAUSE.max(now.elapsed() * SHARE);
        None
    }

    fn look(&mut self, sync: &Sync, network: &Network, source: &Source) {
        let state = &mut self.state;
        state.devices = network.devices();
        state.neighbours = network.neighbours();
        network.method_name().clone_into(&mut state.tc);
        state.watches = source.watches();
        state.listeners = self.listeners.states();
        state.queued = self.health.queued();
        state.advice.retain(|advice| !advice.starts_with(NONE_MADE));
        state.advice.extend(source.refusal());
        let revision = Some(sync.revision());
        if self.revision != revision {
            self.revision = revision;
            state.warnings = sync.warnings();
            state.left = sync.left();
            self.metrics.set_left(state.left.len());
        }
    }
}
