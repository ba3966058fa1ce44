//! `vmlb agent`: loads, attaches, and keeps the maps in step with the objects and the node until it is told to stop.
//! What it leaves behind keeps working.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::OptionFuture;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use vmlb_common::abi::{PortRange, Settings, Tunnel, TunnelShape};

use crate::cluster::{Decoded, Judged};
use crate::handover::{Course, Handover, Happened};
use crate::index::Entry;
use crate::inherit::Inheritance;
use crate::interface::uplinks::Snat;
use crate::loader::attach::TcMethod;
use crate::loader::{self, Datapath, OBJECT, Trace};
use crate::logging;
use crate::migration::Moment;
use crate::pins::{Lock, PinRoot};
use crate::serving::Serving;
use crate::settings::{self, SettingsMap, Wanted, ports};
use crate::sweep::Sweep;
use crate::sync::{Report, Sync};
use crate::tables::pinned::PinnedTables;
use crate::watch::{Event, Object};

mod carriage;
mod heap;
mod network;
mod options;
mod publish;
mod sides;
mod source;
mod trace;

pub use options::Options;
pub use source::SourceFlags;

use network::{Network, Places};
use publish::Publisher;
use source::Source;

/// Netlink messages come in bursts; they are answered once, this long after the first.
const SETTLE: Duration = Duration::from_millis(10);
/// Ids of backends that are gone come back by a sync in this interval.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; later trouble is logged and tried again.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Agent::start(options).await?.run().await })
}

struct Agent {
    datapath: Datapath,
    settings: SettingsMap,
    network: Network,
    sync: Sync,
    tables: PinnedTables,
    sweep: Sweep,
    /// Between looks at what netlink may not have told, and at neighbours the kernel does not probe by itself.
    review_interval: Duration,
    publisher: Publisher,
    internal: Vec<IpAddr>,
    source: Source,
    snat: Snat,
    again: Option<Instant>,
    /// What an earlier agent left, until the control plane knows better.
    inherited: Option<Arc<Places>>,
    /// Where the control plane's backends are.
    places: Arc<Places>,
    /// What the stack carried before vmlb came.
    inheritance: Inheritance,
    /// What is done while VMs move.
    handover: Handover,
    publish_again: Option<Instant>,
    _lock: Lock,
}

impl Agent {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let root = PinRoot::new(&options.pin_root);
        let lock = root.lock()?;
        logging::follow(&root);
        let source = Source::open(&options.source).await?;
        root.create()?;
        let trace = if options.trace { Trace::On } else { Trace::Off };
        let mut datapath = Datapath::load(OBJECT, &root, &options.sizes, trace)?;
        heap::let_go(OBJECT);
        if trace == Trace::On {
            trace::print(datapath.ebpf_mut())?;
        }
        let choice =
            ports::choose(options.snat_ports.as_ref(), settings::local_ports()?, options.node_port_range);
        if let Some(advice) = &choice.advice {
            tracing::warn!("{advice}");
        }
        let tunnel = options.tunnel.settings(&choice.ranges)?;
        let settings = put_settings(&root, options, &source.node, &choice.ranges, tunnel)?;
        let inheritance = Inheritance::open(&root, &choice.ranges)?;
        let method = if options.clsact { TcMethod::Clsact } else { TcMethod::Tcx };
        let mut network =
            Network::start(&root, method, options.devices.clone(), options.local_delivery).await?;
        let publisher = Publisher::start(&root, options, &source, choice.advice)?;
        let tables = PinnedTables::open(&root)?;
        let snat = snat(choice.ranges, &tables, tunnel)?;
        network.lacks_metadata(&snat.devices);
        Ok(Self {
            inheritance,
            inherited: Some(Arc::new(tables.installed_backends()?.into_iter().collect())),
            snat,
            tables,
            sync: Sync::new(
                &source.node,
                Serving { has_tunnel: tunnel.shape != TunnelShape::NONE, ..options.serving.clone() },
            ),
            sweep: Sweep::new(options.sweep_interval),
            review_interval: options.review_interval,
            source,
            internal: Vec::new(),
            again: None,
            places: Arc::default(),
            handover: Handover::start(&root)?,
            publish_again: None,
            _lock: lock,
            datapath,
            settings,
            network,
            publisher,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut sweep = interval(self.sweep.interval().max(Duration::from_millis(10)));
        let mut review = interval(self.review_interval.max(Duration::from_millis(10)));
        for timer in [&mut sweep, &mut review] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer.tick().await;
        }
        let board = self.source.board().cloned();
        self.begin().await?;
        self.publish();
        loop {
            let again = self.again.map(|at| sleep_until(at.into()));
            let publish_again = self.publish_again.map(|at| sleep_until(at.into()));
            tokio::select! {
                batch = self.source.events.recv() => {
                    let batch = batch.context("the source of objects has stopped")?;
                    self.take_events(batch).await;
                }
                changed = self.network.changed() => {
                    sleep(SETTLE).await;
                    let changed = self.network.settle(changed?).await?;
                    if changed.voids_hops() && let Err(error) = self.settings.raise_generation() {
                        tracing::error!("cached next hops stay for up to ten seconds: {error:#}");
                    }
                    self.refresh().await.unwrap_or_else(|error| tracing::error!("{error:#}"));
                }
                _ = sweep.tick() => {
                    self.sweep.pass(&self.datapath);
                    self.leave_xdp_without_metadata().await;
                }
                happened = self.handover.happened() => self.take_happened(happened?).await,
                _ = review.tick() => self.review().await,
                Some(()) = OptionFuture::from(again) => self.synchronise().await,
                Some(()) = OptionFuture::from(publish_again) => {}
                // For the state file alone.
                () = source::watches_changed(board.as_ref()) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            self.publish();
        }
        tracing::info!("stopping; programs and maps stay, traffic goes on (`vmlb detach` takes them down)");
        Ok(())
    }

    /// Tells those who ask that the loop has come round, and how things are.
    fn publish(&mut self) {
        self.publish_again = self.publisher.publish(&self.sync, &self.network, &self.source, &self.handover);
    }

    /// Swaps the programs of an earlier agent for this one's.
    async fn begin(&mut self) -> anyhow::Result<()> {
        let Some(mut succession) = self.datapath.succession() else { return self.refresh().await };
        // What takes its time is done before anybody has to wait.
        self.network.look_up(self.inherited.clone().unwrap_or_default()).await;
        succession.begin();
        self.refresh().await?;
        succession.finish()
    }

    async fn take_events(&mut self, batch: Vec<Event>) {
        self.publisher.queue(batch.len());
        self.sync.tick(Moment::now());
        let before = self.internal.clone();
        for event in batch {
            self.observe(&event);
            self.sync.apply(event);
        }
        if before == self.internal {
            self.synchronise().await;
        } else {
            self.refresh().await.unwrap_or_else(|error| tracing::error!("{error:#}"));
        }
    }

    /// The node's own object tells which of its addresses are the main ones.
    fn observe(&mut self, event: &Event) {
        let judged = match event {
            Event::Apply { object: object @ Object::Node(_), .. } => &Judged::of(object),
            Event::Judged(judged) => judged,
            _ => return,
        };
        if let Decoded::Use(entry) = &judged.decoded
            && let Entry::Node(node) = &**entry
            && *node.name == *self.source.node
        {
            self.internal.clone_from(&node.addresses);
        }
    }

    /// Brings programs to the devices that need them, and tells the control plane what there is.
    async fn refresh(&mut self) -> anyhow::Result<()> {
        // Otherwise a restart would take programs and next hops away for a moment.
        let backends = self.inherited.as_ref().unwrap_or(&self.places).clone();
        let programs = self.datapath.programs_mut();
        let facts = self.network.refresh(programs, backends, &self.internal, &mut self.snat).await?;
        self.sync.facts(facts);
        self.synchronise().await;
        Ok(())
    }

    /// Takes in what was seen of VMs that move.
    async fn take_happened(&mut self, happened: Happened) {
        self.sync.tick(Moment::now());
        match happened {
            Happened::Arrived(arrivals) => arrivals.iter().for_each(|arrival| self.sync.arrived(arrival)),
            Happened::Primed(numbers) => numbers.into_iter().for_each(|number| self.sync.primed(number)),
            Happened::Nothing => {}
        }
        self.synchronise().await;
    }

    /// Has done what the control plane asks for VMs that move.
    async fn hand_over(&mut self) {
        let mut courses = Vec::new();
        for task in self.sync.tasks() {
            let ways = self.network.ways(&task.endpoints, &self.snat.devices).await;
            courses.push(Course { task, ways });
        }
        self.handover.follow(courses);
    }

    async fn synchronise(&mut self) {
        let report = self.bring_up();
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        self.source.tell(&report.warnings);
        if report.written > 0 {
            tracing::info!("wrote {} changes", report.written);
        }
        if report.written > heap::PEAK {
            heap::give_back();
        }
        let wait = report.again.unwrap_or(HOUSEKEEPING).min(HOUSEKEEPING);
        self.again = Some(Instant::now() + wait);
        if report.waiting.is_none() && report.error.is_none() {
            if report.backends_changed || self.inherited.is_some() {
                self.after_sync().await;
            }
            self.network.release_devices();
        }
        self.hand_over().await;
    }

    /// Brings the maps to what objects and facts call for, and tells how that went.
    fn bring_up(&mut self) -> Report {
        let had_work = self.sync.is_dirty();
        let begun = Instant::now();
        self.sync.tick(Moment::now());
        let mut tables = self.inheritance.over(&mut self.tables, &mut self.settings);
        let report = self.sync.sync(&mut tables, begun);
        if report.moves_datagrams {
            self.sweep.pass(&self.datapath);
        }
        self.publisher.take(&report, had_work.then(|| begun.elapsed()), &mut self.sync);
        report
    }

    /// Backends may be on devices that have no program yet, and on ones that need theirs no more.
    async fn after_sync(&mut self) {
        self.places = Arc::new(self.sync.places().collect());
        let first = self.inherited.take().is_some();
        if self.network.wants(&self.places) {
            let programs = self.datapath.programs_mut();
            match self.network.refresh(programs, self.places.clone(), &self.internal, &mut self.snat).await {
                Ok(facts) => {
                    self.sync.facts(facts);
                    self.bring_up();
                }
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        if first && let Err(error) = self.let_go_of_before() {
            tracing::warn!("links or programs of an earlier agent stay: {error:#}");
        }
        if first {
            heap::give_back();
        }
    }

    fn let_go_of_before(&mut self) -> anyhow::Result<()> {
        self.network.prune()?;
        self.datapath.programs_mut().forget_those_of_before()
    }

    /// Moves uplinks to TC on which the XDP program has found that it cannot mark packets for TC.
    async fn leave_xdp_without_metadata(&mut self) {
        match self.tables.installed_devices() {
            Ok(devices) if self.network.lacks_metadata(&devices) => {
                self.refresh().await.unwrap_or_else(|error| tracing::error!("{error:#}"));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("whether drivers give XDP metadata is not seen: {error:#}"),
        }
    }

    async fn review(&mut self) {
        if let Err(error) = self.inheritance.review(&mut self.settings) {
            tracing::warn!("connections that are left to the stack: {error:#}");
        }
        self.network.probe().await;
        let changed = self.network.resume().await;
        if changed.voids_hops()
            && let Err(error) = self.settings.raise_generation()
        {
            tracing::error!("{error:#}");
        }
        self.refresh().await.unwrap_or_else(|error| tracing::error!("{error:#}"));
    }
}

/// Puts the settings in force; those that an earlier agent left are only written where they differ.
fn put_settings(
    root: &PinRoot,
    options: &Options,
    node: &str,
    ranges: &[PortRange],
    tunnel: Tunnel,
) -> anyhow::Result<SettingsMap> {
    let mut map = SettingsMap::open(root)?;
    let (snat_ports, probe_port) = ports::reserve(ranges);
    let wanted = Wanted {
        node: node.to_owned(),
        snat_ports,
        probe_port,
        timeouts: options.timeout.0,
        reject_rate: options.reject_rate,
        tunnel,
        clamp_mss: options.clamp_mss.0,
        hz: settings::hz()?,
    };
    let old: Option<Settings> = map.current().copied();
    let new = wanted.settings(old.as_ref(), settings::secret()?)?;
    map.set(new)?;
    match old {
        None => tracing::info!("made {} maps under {}", loader::map_names().count(), root.path().display()),
        Some(old) => {
            tracing::info!(
                "adopted the maps under {} ({} settings written)",
                root.path().display(),
                map.writes()
            );
            for (name, (old, new)) in settings::differences(&old, &new) {
                tracing::info!("setting {name}: {old} becomes {new}");
            }
        }
    }
    Ok(map)
}

/// What SNAT takes: `ranges`, the addresses that devices have already, and the ports and addresses that flows of an earlier
/// agent with others still hold. The gate has to let their replies in.
fn snat(mut ranges: Vec<PortRange>, tables: &PinnedTables, tunnel: Tunnel) -> anyhow::Result<Snat> {
    let devices = tables.installed_devices()?;
    if ranges.is_empty() {
        return Ok(Snat { devices, ..Snat::default() });
    }
    let mut held = tables.snat_in_flows()?;
    held.ports.retain(|port| !ranges.iter().any(|range| (range.first..=range.last).contains(port)));
    if !held.ports.is_empty() {
        tracing::info!("{} SNAT ports of an earlier agent are still in use by flows", held.ports.len());
    }
    if tunnel.port != 0 {
        // By the gate the tunnel's packets are replies.
        ranges.push(PortRange { first: tunnel.port, last: tunnel.port });
    }
    ranges.extend(held.ports.into_iter().map(|port| PortRange { first: port, last: port }));
    Ok(Snat { ports: ranges, devices, held: held.addresses })
}
