//! What this node does while VMs move: the datapath's arrivals are taken in, and a thread primes and probes the targets. A
//! thread, because neither may wait for the control plane: it may have a thousand Services to write, and a probe is due every few
//! milliseconds.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Interval, MissedTickBehavior, interval};
use vmlb_common::abi::{Arrival, Tunnel, Turn, names};

use crate::arrivals::Arrivals;
use crate::bpf::PinnedMap;
use crate::migration::{Moment, Task};
use crate::pins::PinRoot;
use crate::primer::flows::PinnedFlows;
use crate::primer::{Primed, Primer};
use crate::prober::Prober;
use crate::raw::{Packet, RawSockets};
use crate::settings::SettingsMap;

pub mod account;
pub mod check;
pub mod way;
mod words;

use check::{Check, Replies};
use way::Way;

/// The control plane's clock runs at least this often while VMs move.
const CLOCK: Duration = Duration::from_secs(1);

/// What packets are handed to.
pub trait Send {
    /// Hands over a packet, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: later.
    fn send(&self, packet: &Packet) -> io::Result<()>;
}

impl Send for RawSockets {
    fn send(&self, packet: &Packet) -> io::Result<()> {
        Self::send(self, packet)
    }
}

/// A task of the control plane, and the ways to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// The task.
    pub task: Task,
    /// One for each of its endpoints.
    pub ways: Vec<Way>,
}

/// What has been done for a migration, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Established flows of the VM on this node.
    pub flows: u64,
    /// Flows that the target was told of.
    pub primed: u64,
    /// Packets sent for it.
    pub packets: u64,
    /// Flows of which it cannot be told.
    pub left_out: u64,
    /// Packets that the kernel refused.
    pub refused: u64,
    /// Probes sent.
    pub probes: u64,
    /// Flows that went over to the target; absent: not yet.
    pub carried: Option<u64>,
    /// Flows whose clients have spoken since, and heard nothing; absent: not looked yet.
    pub silent: Option<u64>,
}

/// What has happened.
#[derive(Debug)]
pub enum Happened {
    /// The datapath has turned backends.
    Arrived(Vec<Arrival>),
    /// The targets of these migrations have been told of all flows; of none: there is something new to count.
    Primed(Vec<u64>),
    /// Time has passed.
    Nothing,
}

/// See the module.
pub struct Handover {
    arrivals: Arrivals,
    /// `None`: there is no right to send.
    orders: Option<Sender<Vec<Course>>>,
    news: UnboundedReceiver<Vec<u64>>,
    clock: Interval,
    tallies: Arc<Mutex<BTreeMap<u64, Tally>>>,
    courses: Vec<Course>,
}

impl Handover {
    /// Opens the maps under `root`, and begins. Without the right to send whole packets VMs move all the same, with less care.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a map is missing, or there can be no thread.
    pub fn start(root: &PinRoot) -> anyhow::Result<Self> {
        let (told, news) = unbounded_channel();
        let tallies = Arc::default();
        let orders = match RawSockets::open() {
            Ok(wire) => Some(Work::start(root, wire, told, &tallies)?),
            Err(error) => {
                tracing::warn!("targets of migrations are neither primed nor probed: {error:#}");
                None
            }
        };
        let mut clock = interval(CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { arrivals: Arrivals::open(root)?, orders, news, clock, tallies, courses: Vec::new() })
    }

    /// Waits until something happens, at most a second while VMs move. Nothing is lost where the future is dropped.
    ///
    /// # Errors
    /// When the datapath cannot be listened to.
    pub async fn happened(&mut self) -> anyhow::Result<Happened> {
        tokio::select! {
            arrivals = self.arrivals.next() => {
                Ok(Happened::Arrived(arrivals.context("arrivals of VMs are not heard of")?))
            }
            Some(numbers) = self.news.recv() => Ok(Happened::Primed(numbers)),
            _ = self.clock.tick(), if !self.courses.is_empty() => {
                let tasks: Vec<Task> = self.courses.iter().map(|course| course.task.clone()).collect();
                let missed = self.arrivals.missed(&tasks, Moment::now())?;
                Ok(if missed.is_empty() { Happened::Nothing } else { Happened::Arrived(missed) })
            }
        }
    }

    /// Does this from now on.
    pub fn follow(&mut self, courses: Vec<Course>) {
        if courses == self.courses {
            return;
        }
        self.courses.clone_from(&courses);
        if self.orders.as_ref().is_some_and(|orders| orders.send(courses).is_err()) {
            tracing::error!("flows of VMs that migrate are not primed: the thread for it has ended");
        }
    }

    /// What has been done for a migration.
    #[must_use]
    pub fn tally(&self, number: u64) -> Tally {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.get(&number).copied().unwrap_or_default()
    }

    /// Forgets what was done for others than these.
    pub fn keep(&self, numbers: impl Fn(u64) -> bool) {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).retain(|number, _| numbers(*number));
    }
}

/// The thread's own.
struct Work {
    root: PinRoot,
    flows: PinnedFlows,
    replies: Replies,
    turns: PinnedMap<u32, Turn>,
    wire: RawSockets,
    primer: Primer,
    prober: Prober,
    checks: BTreeMap<u64, Check>,
    tallies: Arc<Mutex<BTreeMap<u64, Tally>>>,
    told: UnboundedSender<Vec<u64>>,
}

impl Work {
    /// Begins; ends when what is returned is dropped.
    fn start(
        root: &PinRoot,
        wire: RawSockets,
        told: UnboundedSender<Vec<u64>>,
        tallies: &Arc<Mutex<BTreeMap<u64, Tally>>>,
    ) -> anyhow::Result<Sender<Vec<Course>>> {
        let (orders, taken) = channel();
        let work = Self {
            root: root.clone(),
            flows: PinnedFlows::open(root)?,
            replies: Replies::open(root)?,
            turns: PinnedMap::open(root, names::TURNS)?,
            wire,
            primer: Primer::new(Tunnel::default()),
            prober: Prober::new(0),
            checks: BTreeMap::new(),
            tallies: Arc::clone(tallies),
            told,
        };
        let thread = thread::Builder::new().name("handover".into());
        thread.spawn(move || work.run(&taken)).context("no thread for live migrations")?;
        Ok(orders)
    }

    /// Until the agent has gone.
    fn run(mut self, orders: &Receiver<Vec<Course>>) {
        loop {
            let due = [self.primer.due(), self.prober.due()].into_iter().flatten();
            let due = due.chain(self.checks.values().filter_map(Check::due)).min();
            let order = match due {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => orders.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(courses) => self.follow(&courses),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.work();
        }
    }

    fn follow(&mut self, courses: &[Course]) {
        match SettingsMap::open(&self.root) {
            Ok(settings) => {
                if let Some(settings) = settings.current() {
                    self.primer.set_tunnel(settings.tunnel);
                    self.prober.set_port(settings.probe_port);
                }
            }
            Err(error) => tracing::warn!("settings for live migrations: {error:#}"),
        }
        let now = Instant::now();
        self.prober.follow(courses, now);
        self.primer.follow(courses, now);
        for course in courses {
            if let Some(turned) = course.task.turned {
                let fresh = || Check::new(course.task.backend, turned, now);
                self.checks.entry(course.task.number).or_insert_with(fresh);
            }
        }
    }

    fn work(&mut self) {
        let now = Instant::now();
        let (primer, turns) = (&self.primer, &self.turns);
        let turn = |backend| turns.get(&backend).ok().flatten();
        self.prober.work(|number| primer.port(number), turn, &self.wire, now, Moment::now().monotonic);
        let primed = self.primer.work(&self.flows, &self.wire, now);
        let mut has_looked = false;
        for check in self.checks.values_mut() {
            has_looked |= check.work(&self.flows, &self.replies, now);
        }
        self.checks.retain(|_, check| check.due().is_some() || now < check.forget());
        self.count();
        if (has_looked || !primed.is_empty()) && self.told.send(primed).is_err() {
            tracing::debug!("nobody listens any more");
        }
    }

    fn count(&self) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, so_far) in self.primer.so_far() {
            let tally = tallies.entry(number).or_default();
            let Primed { flows, primed, packets, left_out, refused } = so_far;
            *tally = Tally {
                flows,
                primed,
                packets,
                left_out,
                refused,
                probes: self.prober.sent(number),
                ..*tally
            };
        }
        for (number, check) in &self.checks {
            let tally = tallies.entry(*number).or_default();
            (tally.carried, tally.silent) = (check.carried(), check.silent());
        }
    }
}
