//! The primer: before a VM arrives at its migration's target, the target's connection tracking is told of the VM's flows by a
//! packet for each that means nothing to the guest. Otherwise what the guest or a client says first there could be a FIN,
//! which no connection tracking takes for a beginning, and would be lost for good.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use vmlb_common::abi::Tunnel;
use vmlb_common::wire::Protocol;

use crate::handover::{Course, Send};

pub mod flow;
pub mod flows;

pub use flow::{Established, Key, Without};
pub use flows::Flows;

/// Packets go out in batches in this interval,
pub const TICK: Duration = Duration::from_millis(10);
/// of so many: 10,000 a second at most.
pub const BATCH: usize = 100;
/// Between two looks for flows that are new, at the least; each passes over the flow tables.
const LOOK: Duration = Duration::from_secs(2);
/// The pause is this many times what the last look cost, if that is more.
const SHARE: u32 = 20;
/// Between the first rounds: entries that a launcher made before its translation was in place are gone after ten seconds
/// (`nf_conntrack_tcp_timeout_close`).
const EARLY: Duration = Duration::from_secs(12);
/// How many rounds are early ones.
const EARLY_ROUNDS: u32 = 3;
/// Between the later rounds: entries that nobody uses last 300 s at least, those of UDP 120 s once they are answered.
const REFRESH: Duration = Duration::from_secs(100);

/// What has been done for a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Primed {
    /// Established flows of the VM at the last look.
    pub flows: u64,
    /// Flows that a packet was sent for.
    pub primed: u64,
    /// Packets sent.
    pub packets: u64,
    /// Flows for which none can be sent, at the last look.
    pub left_out: u64,
    /// Packets that the kernel refused.
    pub refused: u64,
}

/// The rounds of one migration.
#[derive(Debug)]
struct Round {
    course: Course,
    /// Flows that were primed before it are to be primed again.
    begun: Instant,
    count: u32,
    is_turned: bool,
    /// By the hash of a flow's key.
    primed: HashMap<u64, Instant>,
    so_far: Primed,
    /// A TCP port on which the VM is known to serve.
    port: Option<u16>,
    /// Whether its flows have been looked for.
    has_looked: bool,
    /// Whether the control plane knows that the flows have been primed.
    is_told: bool,
}

impl Round {
    fn new(course: Course, now: Instant) -> Self {
        Self {
            is_turned: course.task.turned.is_some(),
            course,
            begun: now,
            count: 1,
            primed: HashMap::new(),
            so_far: Primed::default(),
            port: None,
            has_looked: false,
            is_told: false,
        }
    }

    fn begin(&mut self, now: Instant) {
        self.begun = now;
        self.count += 1;
    }

    /// When the next round begins; after the turn the VM's own packets keep what there is.
    fn due(&self) -> Option<Instant> {
        let pause = if self.count < EARLY_ROUNDS { EARLY } else { REFRESH };
        (!self.is_turned).then(|| self.begun + pause)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Primer {
    rounds: BTreeMap<u64, Round>,
    queue: VecDeque<(u64, Key)>,
    hasher: RandomState,
    tunnel: Tunnel,
    look: Option<Instant>,
    /// When the next batch may go.
    ready: Option<Instant>,
}

impl Primer {
    /// Nothing to do yet.
    #[must_use]
    pub fn new(tunnel: Tunnel) -> Self {
        Self {
            rounds: BTreeMap::new(),
            queue: VecDeque::new(),
            hasher: RandomState::new(),
            tunnel,
            look: None,
            ready: None,
        }
    }

    /// The tunnel of the settings in force.
    pub fn set_tunnel(&mut self, tunnel: Tunnel) {
        self.tunnel = tunnel;
    }

    /// Replaces what there is to do. A VM that has turned since the last call is primed once more, at once, and so is one whose
    /// memory is being copied now.
    pub fn follow(&mut self, courses: &[Course], now: Instant) {
        self.rounds.retain(|number, _| courses.iter().any(|course| course.task.number == *number));
        if self.rounds.is_empty() {
            self.queue.clear();
            self.look = None;
        }
        for course in courses.iter().filter(|course| course.task.is_installed) {
            let number = course.task.number;
            let Some(round) = self.rounds.get_mut(&number) else {
                self.rounds.insert(number, Round::new(course.clone(), now));
                self.look = Some(now);
                continue;
            };
            let turns = course.task.turned.is_some() && !round.is_turned;
            // Where packets go has changed: those that went elsewhere do not count.
            let moves = course.ways != round.course.ways;
            // By now the target's node has heard of it too, and takes what it may have thrown away in the first round.
            let starts = course.task.probe.is_some() && round.course.task.probe.is_none();
            round.is_turned |= turns;
            round.course = course.clone();
            if turns || moves || starts {
                round.begin(now);
                // What waits was for before.
                self.queue.clear();
                self.look = Some(now);
            }
        }
    }

    /// When there is something to do next.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        if self.queue.is_empty() { self.look } else { self.ready }
    }

    /// Looks for flows where that is due, and sends a batch. Returns the migrations all of whose flows have been primed for the
    /// first time.
    pub fn work(&mut self, flows: &dyn Flows, wire: &dyn Send, now: Instant) -> Vec<u64> {
        if self.queue.is_empty() && self.look.is_some_and(|due| due <= now) {
            self.look(flows, now);
        }
        if !self.queue.is_empty() && self.ready.is_none_or(|ready| ready <= now) {
            self.batch(flows, wire, now);
            self.ready = Some(now + TICK);
        }
        if !self.queue.is_empty() {
            return Vec::new();
        }
        let untold = self.rounds.iter_mut().filter(|(_, round)| round.has_looked && !round.is_told);
        untold.map(|(number, round)| (round.is_told = true, *number).1).collect()
    }

    fn look(&mut self, flows: &dyn Flows, now: Instant) {
        let begun = Instant::now();
        for round in self.rounds.values_mut() {
            if round.due().is_some_and(|due| due <= now) {
                round.begin(now);
            }
            (round.so_far.flows, round.so_far.left_out) = (0, 0);
            round.has_looked = true;
        }
        let rounds = &mut self.rounds;
        let by_backend: HashMap<u32, u64> =
            rounds.iter().map(|(number, round)| (round.course.task.backend, *number)).collect();
        let (queue, hasher, tunnel) = (&mut self.queue, &self.hasher, self.tunnel);
        let read = flows.each(&mut |flow| {
            let Some(number) = by_backend.get(&flow.backend) else { return };
            let Some(round) = rounds.get_mut(number).filter(|_| flow.is_open()) else { return };
            round.so_far.flows += 1;
            if flow.protocol == Protocol::TCP {
                round.port = Some(flow.target_port);
            }
            if flow.packet(&round.course.ways, round.course.task.tag, tunnel).is_err() {
                round.so_far.left_out += 1;
                return;
            }
            let last = round.primed.get(&hasher.hash_one(flow.key));
            if last.is_none_or(|last| *last < round.begun) {
                queue.push_back((*number, flow.key));
            }
        });
        if let Err(error) = read {
            tracing::warn!("flows of VMs that migrate are not all primed: {error:#}");
        }
        let pause = LOOK.max(begun.elapsed() * SHARE);
        // Flows that open after the turn need none.
        self.look = self.rounds.values().any(|round| !round.is_turned).then_some(now + pause);
    }

    /// Each flow is read again, so that its packet says what is so now.
    fn batch(&mut self, flows: &dyn Flows, wire: &dyn Send, now: Instant) {
        for _ in 0..BATCH {
            let Some((number, key)) = self.queue.front().copied() else { return };
            if let Some(round) = self.rounds.get_mut(&number)
                && let Ok(Some(flow)) = flows.get(&key)
                && flow.backend == round.course.task.backend
                && let Ok(packet) = flow.packet(&round.course.ways, round.course.task.tag, self.tunnel)
            {
                match wire.send(&packet) {
                    Ok(()) => {
                        round.so_far.packets += 1;
                        round.primed.insert(self.hasher.hash_one(key), now);
                        round.so_far.primed = round.primed.len() as u64;
                    }
                    // The rest waits for the next batch.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Err(error) => {
                        round.so_far.refused += 1;
                        tracing::debug!("cannot prime {}: {error}", packet.next());
                    }
                }
            }
            self.queue.pop_front();
        }
    }

    /// What has been done, by number.
    pub fn so_far(&self) -> impl Iterator<Item = (u64, Primed)> {
        self.rounds.iter().map(|(number, round)| (*number, round.so_far))
    }

    /// A TCP port on which a VM with established flows serves; `None`: there are no flows, or none of TCP.
    #[must_use]
    pub fn port(&self, number: u64) -> Option<u16> {
        self.rounds.get(&number).filter(|round| round.so_far.flows > 0).and_then(|round| round.port)
    }
}

#[cfg(test)]
mod tests;
