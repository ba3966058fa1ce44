//! `vmlb drops`.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::print::{Listing, Row, Wide, answer};
use super::{Reading, help};
use crate::counts::{Outcome, reasons};
use crate::pins::PinRoot;

/// Options of `vmlb drops`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb drops
  vmlb drops --watch 1
  vmlb drops --all --output json

Packets since the maps were made: dropped, punted (left to the node's stack as they came), deferred (from XDP to TC), or
served and counted for another reason. With --watch, RATE is packets a second since the answer before."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
    /// Also reasons without packets
    #[arg(long)]
    pub all: bool,
}

#[derive(Serialize)]
struct ReasonRow {
    reason: &'static str,
    number: u32,
    outcome: &'static str,
    packets: u64,
    /// Packets a second; absent: nothing to compare with yet.
    rate: Option<f64>,
    explanation: &'static str,
}

/// Runs the command.
///
/// # Errors
/// When the maps cannot be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut last = None;
    answer(&options.reading, |root, out| list(root, out, options, &mut last))
}

/// An earlier look: when, and packets by number of the reason.
type Look = (Instant, BTreeMap<u32, u64>);

fn list(
    root: &PinRoot,
    out: &mut dyn Write,
    options: &Options,
    last: &mut Option<Look>,
) -> anyhow::Result<()> {
    let counts = reasons::read(root)?;
    let now = Instant::now();
    let mut listing = Listing::begin::<ReasonRow>(out, &options.reading);
    for count in counts.iter().filter(|count| options.all || count.packets > 0) {
        let number = count.reason.number();
        let rate = last.as_ref().map(|(then, packets)| {
            let grown = count.packets.saturating_sub(packets.get(&number).copied().unwrap_or(0));
            rate(grown, now.duration_since(*then).as_secs_f64())
        });
        listing.row(&ReasonRow {
            reason: count.reason.name(),
            number,
            outcome: Outcome::of(count.reason).name(),
            packets: count.packets,
            rate,
            explanation: count.reason.explanation(),
        })?;
    }
    *last = Some((now, counts.iter().map(|count| (count.reason.number(), count.packets)).collect()));
    listing.end()
}

/// Packets a second, to a tenth.
#[expect(clippy::cast_precision_loss, reason = "a rate of 2^53 packets is beyond any link")]
fn rate(packets: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (packets as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

impl Row for ReasonRow {
    fn heads(_: Wide) -> Vec<&'static str> {
        vec!["REASON", "OUTCOME", "PACKETS", "RATE", "EXPLANATION"]
    }

    fn cells(&self, _: Wide) -> Vec<String> {
        vec![
            self.reason.to_owned(),
            self.outcome.to_owned(),
            self.packets.to_string(),
            self.rate.map(|rate| format!("{rate:.1}")).unwrap_or_default(),
            self.explanation.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_packets_a_second() {
        assert!((rate(25, 2.0) - 12.5).abs() < f64::EPSILON);
        assert!(rate(25, 0.0).abs() < f64::EPSILON);
    }
}
