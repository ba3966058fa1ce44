//! Metrics in Prometheus' text format. What the agent's loop does is counted as it happens; what the datapath does is
//! read from the maps when somebody asks, the flow tables at most now and then ([`maps`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use prometheus::core::{Collector, GenericGauge};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::handover::account::Counts;
use crate::health::Health;
use crate::pins::PinRoot;
use crate::watch::kube::Board;

mod maps;
mod migrations;

use maps::Maps;
use migrations::Migrations;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From a change of endpoints to the maps: within milliseconds from a live watch, minutes after an outage.
const PROGRAMMING: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// A sync of one change takes some 0.1 ms, that of a whole large cluster a second.
const SYNC: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// All metrics of one agent. Shared between the loop that counts and the thread that is asked.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    programming: Histogram,
    sync: Histogram,
    errors: IntCounter,
    writes: IntCounter,
    left: IntGauge,
    queued: IntGauge,
    last_sync: Gauge,
    scrape_errors: IntCounter,
    migrations: Migrations,
    maps: Mutex<Maps>,
    health: Arc<Health>,
    watches: Mutex<Option<Board>>,
}

impl Metrics {
    /// Nothing counted yet. At most `detail` Services and as many backends get series of their own.
    ///
    /// # Errors
    /// When two metrics have one name, which is a mistake in this file.
    pub fn new(root: &PinRoot, node: &str, detail: usize, health: Arc<Health>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let about =
            Opts::new("vmlb_agent_info", "Version of the agent and name of its node; the value is always 1.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("node", node);
        let about = IntGauge::with_opts(about)?;
        about.set(1);
        let metrics = Self {
            programming: histogram(
                "vmlb_network_programming_duration_seconds",
                "Time from a change of endpoints (annotation endpoints.kubernetes.io/last-change-trigger-time) until the maps held it.",
                &PROGRAMMING,
            )?,
            sync: histogram(
                "vmlb_sync_duration_seconds",
                "Time a sync took that had something to do.",
                &SYNC,
            )?,
            errors: IntCounter::new(
                "vmlb_sync_errors_total",
                "Syncs that failed; what was missing was tried again.",
            )?,
            writes: IntCounter::new("vmlb_sync_map_writes_total", "Map entries written or removed.")?,
            left: gauge("vmlb_ports_left_to_stack", "Ports of Services that are left to the node's stack.")?,
            queued: gauge("vmlb_sync_queued_changes", "Changes of objects that are not in the maps yet.")?,
            last_sync: Gauge::new(
                "vmlb_sync_last_success_timestamp_seconds",
                "When the maps last followed the objects, seconds since 1970; 0: never.",
            )?,
            scrape_errors: IntCounter::new("vmlb_scrape_errors_total", "Scrapes that could not read a map.")?,
            migrations: Migrations::new()?,
            maps: Mutex::new(Maps::new(root, detail)),
            watches: Mutex::new(None),
            health,
            registry,
        };
        let all: [Box<dyn Collector>; 9] = [
            Box::new(about),
            Box::new(metrics.programming.clone()),
            Box::new(metrics.sync.clone()),
            Box::new(metrics.errors.clone()),
            Box::new(metrics.writes.clone()),
            Box::new(metrics.left.clone()),
            Box::new(metrics.queued.clone()),
            Box::new(metrics.last_sync.clone()),
            Box::new(metrics.scrape_errors.clone()),
        ];
        for metric in all.into_iter().chain(metrics.migrations.collectors()) {
            metrics.registry.register(metric)?;
        }
        Ok(metrics)
    }

    /// Tells also how the watches are.
    pub fn show_watches(&self, board: Board) {
        *self.watches.lock().unwrap_or_else(PoisonError::into_inner) = Some(board);
    }

    /// A sync has brought `written` changes into the maps, among them those called for at `triggered`.
    pub fn synced(&self, took: Duration, written: usize, triggered: &[SystemTime], now: SystemTime) {
        self.sync.observe(took.as_secs_f64());
        self.writes.inc_by(written as u64);
        for called in triggered {
            // A clock that is behind the API server's tells nothing.
            if let Ok(delay) = now.duration_since(*called) {
                self.programming.observe(delay.as_secs_f64());
            }
        }
    }

    /// A sync has failed.
    pub fn failed(&self) {
        self.errors.inc();
    }

    /// So many ports are left to the node's stack.
    pub fn set_left(&self, ports: usize) {
        self.left.set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    /// Adds what is new of live migrations.
    pub fn migrated(&self, counts: &Counts) {
        self.migrations.add(counts);
    }

    /// Everything, as a scraper takes it.
    ///
    /// # Errors
    /// When it cannot be written as text; maps that cannot be read are left out and counted.
    pub fn text(&self) -> anyhow::Result<String> {
        self.queued.set(i64::try_from(self.health.queued()).unwrap_or(i64::MAX));
        let last = self.health.last_sync().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        self.last_sync.set(last.map_or(0.0, |since| since.as_secs_f64()));
        let of_maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner).gather();
        let mut families = match of_maps {
            Ok(families) => families,
            Err(error) => {
                self.scrape_errors.inc();
                tracing::debug!("a scrape is without the maps: {error:#}");
                Vec::new()
            }
        };
        families.extend(self.registry.gather());
        families.extend(self.watch_metrics()?.gather());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).context("metrics as text")?;
        Ok(String::from_utf8(text)?)
    }

    fn watch_metrics(&self) -> anyhow::Result<Registry> {
        let registry = Registry::new();
        let Some(board) = self.watches.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Ok(registry);
        };
        let gauge = |name: &str, help: &str| -> anyhow::Result<IntGaugeVec> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["kind"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let staleness = prometheus::GaugeVec::new(
            Opts::new(
                "vmlb_watch_staleness_seconds",
                "Time since the API server was last heard about this kind of object.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(staleness.clone()))?;
        let failures = gauge(
            "vmlb_watch_failures",
            "Tries to watch this kind of object that failed since the last success.",
        )?;
        let lists = counter_vec(
            &registry,
            "vmlb_watch_lists_total",
            "Complete lists of this kind of object.",
            &["kind"],
        )?;
        for state in board.states() {
            let labels = [state.kind.as_str()];
            if let Some(age) = state.staleness() {
                staleness.with_label_values(&labels).set(age.as_secs_f64());
            }
            GenericGauge::set(&failures.with_label_values(&labels), i64::from(state.failures));
            lists.with_label_values(&labels).inc_by(state.lists);
        }
        Ok(registry)
    }
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

/// A family of counters for one scrape.
fn counter_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<prometheus::IntCounterVec> {
    let counters = prometheus::IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

/// A family of gauges for one scrape.
fn gauge_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}
