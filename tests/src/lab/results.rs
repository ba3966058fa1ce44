//! What clients met while a VM migrated, as a table and as a verdict.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Switch;
use super::blackout::Answers;
use super::flows::{INTERVAL, Kind, Seen};

/// The longest gap of an active flow beyond the guest's own pause.
pub const LONGEST_GAP: Duration = Duration::from_millis(500);

/// The longest time that a connection which speaks after the switch, or a new one, may take: a SYN that the pause swallowed is
/// sent again after a second, and what meets the present side a moment too early is sent again twice.
const SLOWEST: Duration = Duration::from_secs(2);

/// UDP loss allowed, in a thousand.
const UDP_LOSS: u64 = 20;

/// A client at its end.
#[derive(Debug)]
pub struct Outcome {
    /// Its way to talk.
    pub kind: Kind,
    /// The same as text.
    pub name: String,
    /// The way in that it took.
    pub via: String,
    /// What it met, or why its connection is lost.
    pub seen: Result<Seen>,
}

impl Outcome {
    /// Whether it was over before the VM switched, and tells nothing: the emulator took its time.
    fn was_too_early(&self, switches: &[Switch]) -> bool {
        let last = self.seen.as_ref().ok().and_then(|seen| seen.times.last());
        last.zip(switches.first()).is_some_and(|(last, switch)| *last < switch.stopped)
    }

    /// The longest time without an answer.
    fn gap(&self) -> Duration {
        self.seen.as_ref().map_or(Duration::ZERO, |seen| Answers::at(&seen.times).longest_gap_alone())
    }
}

/// What the clients of one trial met.
#[derive(Debug, Default)]
pub struct Results {
    outcomes: Vec<Outcome>,
}

impl Results {
    pub(super) fn new(outcomes: Vec<Outcome>) -> Self {
        Self { outcomes }
    }

    /// Those of another group of clients too.
    pub fn extend(&mut self, others: Self) {
        self.outcomes.extend(others.outcomes);
    }

    /// Every client.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.outcomes.len()
    }

    /// The longest gap of any active client.
    pub fn longest_gap(&self) -> Duration {
        let active = self.outcomes.iter().filter(|outcome| outcome.kind.is_active());
        active.map(Outcome::gap).max().unwrap_or_default()
    }

    /// The longest gap of clients that have nothing to do with the VM: what the machine itself does to them. None of them may be
    /// lost, be silent throughout or lose a datagram.
    pub fn hiccup(&self) -> Result<Duration> {
        for outcome in &self.outcomes {
            match &outcome.seen {
                Err(error) => bail!("{} of another pod is lost: {error:#}", outcome.name),
                Ok(seen) => {
                    ensure!(seen.times.len() > 1, "{} of another pod heard nothing", outcome.name);
                    let lost = if is_udp(outcome.kind) { seen.lost } else { 0 };
                    ensure!(lost == 0, "{} of another pod lost {lost} datagrams", outcome.name);
                }
            }
        }
        Ok(self.longest_gap())
    }

    /// Datagrams sent by either side, and lost.
    pub fn datagrams(&self) -> (u64, u64) {
        let of_udp = self.outcomes.iter().filter(|outcome| is_udp(outcome.kind));
        let seen = of_udp.filter_map(|outcome| outcome.seen.as_ref().ok());
        seen.fold((0, 0), |(sent, lost), seen| (sent + seen.sent, lost + seen.lost))
    }

    /// Whether every flow lived on, and was silent no longer than the VM's pauses in `switches` and `hiccup`, the longest gap of
    /// a client that has nothing to do with the VM, allow.
    pub fn judge(&self, switches: &[Switch], hiccup: Duration) -> Result<()> {
        let pause = switches.iter().map(Switch::pause).max().unwrap_or_default();
        let slack = pause + hiccup.saturating_sub(INTERVAL);
        let mut faults = String::new();
        for outcome in &self.outcomes {
            if let Err(fault) = judge(outcome, switches, slack) {
                writeln!(faults, "  {} by {}: {fault:#}", outcome.name, outcome.via)?;
            }
        }
        for early in self.outcomes.iter().filter(|outcome| outcome.was_too_early(switches)) {
            println!("  {} by {} was over before the switch", early.name, early.via);
        }
        println!("{self}the VM stood still for {pause:?}; a client of another pod saw a gap of {hiccup:?}");
        if !faults.is_empty() {
            bail!("of {} clients these did not get through:\n{faults}", self.outcomes.len());
        }
        Ok(())
    }
}

fn is_udp(kind: Kind) -> bool {
    matches!(kind, Kind::Datagrams | Kind::PushedDatagrams(_))
}

fn judge(outcome: &Outcome, switches: &[Switch], slack: Duration) -> Result<()> {
    let seen = match &outcome.seen {
        Ok(seen) => seen,
        Err(error) => bail!("{error:#}"),
    };
    let last = switches.iter().map(|switch| switch.resumed).max();
    let goes_on = last.is_none_or(|last| Answers::at(&seen.times).any_after(last));
    if outcome.kind.waits_for_the_server() && outcome.was_too_early(switches) {
        return Ok(());
    }
    if outcome.kind != Kind::ClientResets && !goes_on {
        bail!("nothing came after the switch");
    }
    if outcome.kind.is_active() && outcome.gap() > LONGEST_GAP + slack {
        bail!("a gap of {:?}", outcome.gap());
    }
    if seen.slowest > SLOWEST + slack {
        bail!("an answer took {:?}", seen.slowest);
    }
    if is_udp(outcome.kind) && seen.lost * 1000 > seen.sent * UDP_LOSS + lost_while(slack, switches) {
        bail!("{} of {} datagrams are lost", seen.lost, seen.sent);
    }
    Ok(())
}

/// Datagrams that the VM cannot have answered because it stood still, in thousandths.
fn lost_while(pause: Duration, switches: &[Switch]) -> u64 {
    let each = u64::try_from(pause.as_millis() / INTERVAL.as_millis()).unwrap_or(u64::MAX);
    each.saturating_mul(switches.len() as u64).saturating_mul(1000)
}

impl fmt::Display for Results {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "  {:26} {:12} {:>7} {:>9} {:>5} {:>9}",
            "client", "by", "answers", "gap", "lost", "slowest"
        )?;
        for outcome in &self.outcomes {
            write!(out, "  {:26} {:12} ", outcome.name, outcome.via)?;
            match &outcome.seen {
                Ok(seen) => writeln!(
                    out,
                    "{:7} {:6} ms {:5} {:6} ms",
                    seen.times.len(),
                    outcome.gap().as_millis(),
                    seen.lost,
                    seen.slowest.as_millis()
                )?,
                Err(error) => writeln!(out, "lost: {error:#}")?,
            }
        }
        Ok(())
    }
}
