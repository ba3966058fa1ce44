//! What the agent costs behind an API server, and what that is held to.

use std::fmt;
use std::time::Duration;

/// The table's head, to go with [`Figures`]' lines.
pub const HEAD: &str = "services      start  full sync        CPU change p50 change p90 change max   writes    restart \
                        rewrites  RSS MiB";

/// What a number of Services costs.
#[derive(Clone, Debug)]
pub struct Figures {
    /// So many, each of five endpoints.
    pub services: u16,
    /// From the start of the process to full maps.
    pub start: Duration,
    /// From the last page of the last list to full maps.
    pub full: Duration,
    /// CPU time of the agent until then, its start included: what a machine without neighbours would take at most.
    pub busy: Duration,
    /// From before the API server sends a change of one endpoint to its being in the maps; sorted, at least one.
    pub changes: Vec<Duration>,
    /// Map entries written for such a change, at most.
    pub writes: usize,
    /// From the start of a second agent to its being in step with what is installed.
    pub restart: Duration,
    /// Map entries it writes.
    pub rewrites: usize,
    /// Resident memory after all this, and at its peak, KiB.
    pub resident: [u64; 2],
}

/// All at once, from the arrival of the lists.
const FULL: Duration = Duration::from_secs(1);
/// A change of one endpoint. Nine of ten: the last one tells of the machine's other work.
const CHANGE: Duration = Duration::from_millis(10);
/// Map entries for a change of one endpoint: the table's slots, the service, and a gate's word or two.
const WRITES: usize = 8;

/// KiB that so many Services may take.
const fn memory(services: u16) -> u64 {
    if services <= 10 { 20 * 1024 } else { 60 * 1024 }
}

impl Figures {
    fn change(&self, percent: usize) -> Duration {
        let place = self.changes.len().saturating_sub(1) * percent / 100;
        self.changes.get(place).copied().unwrap_or(Duration::MAX)
    }

    /// The limits that are missed, in words.
    #[must_use]
    pub fn missed(&self) -> Vec<String> {
        let held = [
            (self.full <= FULL, format!("full maps {:.0?} after the lists, at most {FULL:?}", self.full)),
            (
                self.change(90) <= CHANGE,
                format!("nine of ten changes within {:.1?}, at most {CHANGE:?}", self.change(90)),
            ),
            (
                self.writes <= WRITES,
                format!("{} entries written for a change, at most {WRITES}", self.writes),
            ),
            (self.rewrites == 0, format!("{} entries written by a restart, none allowed", self.rewrites)),
            (
                self.restart <= self.start * 2,
                format!(
                    "in step {:.0?} after a restart, at most twice the first start's {:.0?}",
                    self.restart, self.start
                ),
            ),
            (
                self.resident[0] < memory(self.services),
                format!("{} KiB resident, less than {} allowed", self.resident[0], memory(self.services)),
            ),
        ];
        let missed = held.into_iter().filter(|(is_met, _)| !is_met);
        missed.map(|(_, what)| format!("{} services: {what}", self.services)).collect()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let mebibytes = self.resident.map(|kibibytes| kibibytes / 1024);
        write!(
            out,
            "{:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8} {:>10} {:>8} {:>8}",
            self.services,
            milliseconds(self.start),
            milliseconds(self.full),
            milliseconds(self.busy),
            milliseconds(self.change(50)),
            milliseconds(self.change(90)),
            milliseconds(self.change(100)),
            self.writes,
            milliseconds(self.restart),
            self.rewrites,
            format!("{}/{}", mebibytes[0], mebibytes[1]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            services: 5000,
            start: Duration::from_secs(2),
            full: FULL,
            busy: Duration::from_secs(1),
            changes: vec![CHANGE; 10],
            writes: WRITES,
            restart: Duration::from_secs(4),
            rewrites: 0,
            resident: [60 * 1024 - 1, 100_000],
        }
    }

    #[test]
    fn what_is_at_its_limit_is_met() {
        assert_eq!(figures().missed(), Vec::<String>::new());
        // The slowest of many changes is not judged.
        let mut changes = vec![CHANGE; 19];
        changes.push(Duration::from_secs(1));
        assert!(Figures { changes, ..figures() }.missed().is_empty());
    }

    #[test]
    fn each_figure_over_its_limit_is_missed_by_itself() {
        let more = Duration::from_nanos(1);
        for (figures, word) in [
            (Figures { full: FULL + more, ..figures() }, "after the lists"),
            (Figures { changes: vec![CHANGE + more; 10], ..figures() }, "nine of ten"),
            (Figures { writes: WRITES + 1, ..figures() }, "for a change"),
            (Figures { rewrites: 1, ..figures() }, "by a restart"),
            (Figures { restart: Duration::from_secs(5), ..figures() }, "in step"),
            (Figures { resident: [60 * 1024, 0], ..figures() }, "61440 KiB"),
            (Figures { services: 10, resident: [20 * 1024, 0], ..figures() }, "20480 KiB"),
        ] {
            let missed = figures.missed();
            assert!(missed.len() == 1 && missed[0].contains(word), "{word}: {missed:?}");
        }
    }

    #[test]
    fn the_head_stands_over_its_columns() {
        assert_eq!(HEAD.len(), figures().to_string().len());
    }
}
