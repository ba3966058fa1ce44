//! The prober: asks the target of a migration whether the VM is there, by opening a connection to a port on which it serves.
//! The datapath takes the answer; here is only asked, and the connection that the guest has half opened taken back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmlb_common::abi::Turn;
use vmlb_common::wire::TcpFlags;

use crate::handover::{Course, Send};
use crate::raw::Packet;
use crate::raw::packet::{Payload, TTL};

/// Between two looks at whether VMs have fallen silent, and between two probes of one that has.
pub const TICK: Duration = Duration::from_millis(15);
/// Between two probes of one of which nothing of the kind is known.
pub const PAUSE: Duration = Duration::from_millis(100);
/// Probes in one tick, of all VMs together.
pub const BATCH: usize = 32;
/// A VM that answers less often than this is not talking: its silence says nothing.
const TALKS: u64 = 250_000_000;
/// Silence of a talking VM is at least this long,
const SILENCE: u64 = 30_000_000;
/// and this many times what usually is between its answers.
const USUAL: u64 = 3;
/// After this long a silence has another cause.
const LASTING: u64 = 5_000_000_000;
/// The reset is sent once more after this time: a probe may have been on its way behind the first.
const AGAIN: Duration = Duration::from_millis(200);
/// Window of a probe.
const WINDOW: u16 = 1024;

/// How a VM answers, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Talk {
    replied: u64,
    /// What is between two answers, as far as ticks show it; 0: not known.
    usual: u64,
}

impl Talk {
    /// Takes note of when the VM last answered. One in four counts, so that a few answers make a habit and one does not.
    fn note(&mut self, replied: u64) {
        if replied > self.replied {
            if self.replied != 0 {
                let gap = replied - self.replied;
                self.usual = if self.usual == 0 { gap } else { (3 * self.usual + gap) / 4 };
            }
            self.replied = replied;
        }
    }

    /// Whether a VM that was talking has fallen silent by `now`.
    fn has_fallen_silent(&self, now: u64) -> bool {
        let silence = now.saturating_sub(self.replied);
        let talked = self.usual != 0 && self.usual < TALKS;
        talked && (SILENCE.max(USUAL * self.usual)..LASTING).contains(&silence)
    }
}

/// The probes of one migration.
#[derive(Debug)]
struct Probing {
    course: Course,
    talk: Talk,
    next: Instant,
    /// Where to, and from where.
    ends: Option<(SocketAddr, SocketAddr)>,
    sent: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Prober {
    /// Source port of probes; 0: there is none, and nothing is probed.
    port: u16,
    probing: BTreeMap<u64, Probing>,
    resets: Vec<(Instant, Packet)>,
    sent: BTreeMap<u64, u64>,
    tick: Option<Instant>,
    /// Whose turn it is, where there are more than a batch.
    turn: u64,
}

impl Prober {
    /// Nothing to do yet.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self {
            port,
            probing: BTreeMap::new(),
            resets: Vec::new(),
            sent: BTreeMap::new(),
            tick: None,
            turn: 0,
        }
    }

    /// The source port of the settings in force.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Replaces what there is to do. A guest that has turned up is freed of what the probes have opened.
    pub fn follow(&mut self, courses: &[Course], now: Instant) {
        self.sent.retain(|number, _| courses.iter().any(|course| course.task.number == *number));
        let wanted = |course: &&Course| {
            self.port != 0
                && course.task.is_installed
                && course.task.turned.is_none()
                && course.task.probe.is_some()
        };
        for course in courses.iter().filter(wanted) {
            let fresh =
                || Probing { course: course.clone(), talk: Talk::default(), next: now, ends: None, sent: 0 };
            self.probing.entry(course.task.number).or_insert_with(fresh).course = course.clone();
        }
        let over: Vec<u64> = self
            .probing
            .keys()
            .filter(|number| !courses.iter().filter(wanted).any(|course| course.task.number == **number))
            .copied()
            .collect();
        for number in over {
            let Some(gone) = self.probing.remove(&number) else { continue };
            let has_turned =
                courses.iter().any(|course| course.task.number == number && course.task.turned.is_some());
            if let Some(packet) = gone.reset().filter(|_| has_turned) {
                self.resets.extend([(now, packet.clone()), (now + AGAIN, packet)]);
            }
        }
        self.tick = (!self.probing.is_empty()).then(|| self.tick.unwrap_or(now));
    }

    /// When there is something to do next.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.resets.iter().map(|(at, _)| *at).chain(self.tick).min()
    }

    /// Asks where it is time to. `port` tells on which port a VM with flows here serves, `turn` what the datapath has on a
    /// backend, `clock` is `CLOCK_MONOTONIC` in nanoseconds.
    pub fn work(
        &mut self,
        port: impl Fn(u64) -> Option<u16>,
        turn: impl Fn(u32) -> Option<Turn>,
        wire: &dyn Send,
        now: Instant,
        clock: u64,
    ) {
        self.resets.retain(|(at, packet)| {
            let waits = *at > now;
            if !waits && let Err(error) = wire.send(packet) {
                tracing::debug!("cannot take back a probe of {}: {error}", packet.next());
            }
            waits
        });
        if self.tick.is_none_or(|due| due > now) {
            return;
        }
        self.tick = Some(now + TICK);
        let mut left = BATCH;
        let (before, after): (Vec<_>, Vec<_>) =
            self.probing.iter_mut().partition(|(number, _)| **number < self.turn);
        self.turn = 0;
        for (number, probing) in after.into_iter().chain(before) {
            if left == 0 {
                self.turn = *number;
                break;
            }
            if let Some(turn) = turn(probing.course.task.backend) {
                probing.talk.note(turn.replied);
            }
            let is_silent = probing.talk.has_fallen_silent(clock);
            if !is_silent && probing.next > now {
                continue;
            }
            probing.next = now + PAUSE;
            // Where no flow is there is nothing to hurry for.
            let Some(packet) = port(*number).and_then(|port| probing.probe(self.port, port)) else {
                continue;
            };
            left -= 1;
            match wire.send(&packet) {
                Ok(()) => {
                    probing.sent += 1;
                    self.sent.insert(*number, probing.sent);
                }
                Err(error) => tracing::debug!("cannot probe {}: {error}", packet.next()),
            }
        }
    }

    /// Probes sent for a migration.
    #[must_use]
    pub fn sent(&self, number: u64) -> u64 {
        self.sent.get(&number).copied().unwrap_or(0)
    }
}

impl Probing {
    /// Always the same segment: the guest answers it again, instead of opening another connection.
    fn probe(&mut self, source_port: u16, port: u16) -> Option<Packet> {
        let ends = self.course.ways.iter().find_map(|way| {
            let source = SocketAddr::new(way.source?, source_port);
            Some((source, SocketAddr::new(way.endpoint.address, port)))
        });
        self.ends = ends;
        let (source, target) = ends?;
        Packet::new(source, target, TTL, self.segment(TcpFlags::SYN))
    }

    /// The reset that a guest takes which has answered the probe (RFC 9293 section 3.10.7.4: it is exactly what is expected
    /// next).
    fn reset(&self) -> Option<Packet> {
        let (source, target) = self.ends?;
        Packet::new(source, target, TTL, self.segment(TcpFlags::RST))
    }

    fn segment(&self, flags: TcpFlags) -> Payload {
        // Of two migrations in a row the second must not meet what the first has left (RFC 6528 asks no more of it here).
        let first = self.course.task.known.monotonic / 1000;
        let first = u32::try_from(first & u64::from(u32::MAX)).unwrap_or(0);
        let sequence = if flags.any(TcpFlags::SYN) { first } else { first.wrapping_add(1) };
        Payload::Tcp { sequence, acknowledgment: 0, flags, window: WINDOW }
    }
}

#[cfg(test)]
mod tests;
