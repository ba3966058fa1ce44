//! Timed rounds: empty, yardstick and measured program in turn, packet by packet the same course.

use anyhow::Result;

use super::flows::{Kind, Order};
use super::harness::{Harness, PASS, Run, Target};
use super::row::Row;
use super::site::Site;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds, from which the medians are.
    pub rounds: usize,
    /// Turns of each program in a round.
    pub turns: u32,
    /// Packets of a turn.
    pub packets: u32,
}

/// What one round showed, ns per packet, net of the empty program.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The wrapper with the empty program itself.
    pub empty: f64,
    /// The yardstick.
    pub yardstick: f64,
    /// The measured program.
    pub measured: f64,
}

/// A middle value and how far the others lie from it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The first quartile.
    pub low: f64,
    /// The third quartile.
    pub high: f64,
}

impl Spread {
    /// Of `values`, at least one.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarter: usize| sorted.get((sorted.len() - 1) * quarter / 4).copied().unwrap_or(f64::NAN);
        Self { median: at(2), low: at(1), high: at(3) }
    }
}

/// A row's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The row.
    pub row: Row,
    /// ns per packet.
    pub nanoseconds: Spread,
    /// ns of the yardstick in the same rounds.
    pub yardstick: Spread,
    /// Yardsticks per packet, by rounds.
    pub ratio: Spread,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// Why the figures do not count: some packets took another way than the row is about.
    pub fault: Option<String>,
}

/// Measures a row whose flows are established; in the node's namespace.
///
/// # Errors
/// Packets looked at one by one before did not take the way that the row is about.
pub fn measure(site: &Site, harness: &mut Harness, row: Row, effort: Effort) -> Result<Figures> {
    let effort = row.scaled(effort);
    let before = site.counts()?;
    let mut count = examine(harness, &row)?;
    harness.set_course(&row.packets.course(row.phase(), START, row.flows, row.order))?;
    let mut rounds = Vec::new();
    // The first round warms caches and is left out.
    for _ in 0..=effort.rounds {
        rounds.push(round(harness, effort)?);
        count += u64::from(effort.turns) * u64::from(effort.packets);
    }
    rounds.remove(0);
    let fault = row.check_counts(count, &site.counts()?.since(&before)).err();
    Ok(Figures {
        row,
        nanoseconds: Spread::of(rounds.iter().map(|round| round.measured)),
        yardstick: Spread::of(rounds.iter().map(|round| round.yardstick)),
        ratio: Spread::of(rounds.iter().map(|round| round.measured / round.yardstick)),
        rounds,
        fault: fault.map(|error| error.to_string()),
    })
}

/// Number of the first packet of a measurement; those before are examined one by one.
const START: u64 = 1 << 20;

/// Looks at single packets before time is taken; returns their count.
fn examine(harness: &mut Harness, row: &Row) -> Result<u64> {
    // Numbers that never come back in rows of new flows.
    let first = if row.packets.kind == Kind::New { START - 64 } else { 0 };
    let mut numbers: Vec<u64> = (first..first + 16.min(row.flows)).collect();
    if row.packets.kind != Kind::New && row.flows > 16 {
        numbers.extend([row.flows / 3, row.flows / 2, row.flows - 1]);
    }
    for number in &numbers {
        harness.set_course(&row.packets.course(row.phase(), *number, row.flows, Order::Opened))?;
        let run = harness.run(Target::Measured, 1)?;
        row.check(*number, &run)?;
    }
    Ok(numbers.len() as u64)
}

fn round(harness: &mut Harness, effort: Effort) -> Result<Round> {
    let (mut empty, mut yardstick, mut measured) = (0, 0, 0);
    for _ in 0..effort.turns {
        empty += expect_pass(harness.run(Target::Empty, effort.packets)?)?;
        yardstick += expect_pass(harness.run(Target::Yardstick, effort.packets)?)?;
        measured += harness.run(Target::Measured, effort.packets)?.nanoseconds;
    }
    let packets = f64::from(effort.turns) * f64::from(effort.packets);
    let net = |total: u64| (total as f64 - empty as f64) / packets;
    Ok(Round { empty: empty as f64 / packets, yardstick: net(yardstick), measured: net(measured) })
}

fn expect_pass(run: Run) -> Result<u64> {
    anyhow::ensure!(run.action == PASS, "the bench's own program ended with action {}", run.action);
    Ok(run.nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn quartiles_are_members() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0].into_iter());
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 3.0, 4.0));
    }
}
