//! The ageing of flows: the kernel program is run in fixed intervals, and watched.

use std::time::{Duration, Instant};

use crate::loader::Datapath;

/// Runs the ageing program and remembers how it went.
#[derive(Debug)]
pub struct Sweep {
    interval: Duration,
    failing: bool,
    slow: bool,
}

impl Sweep {
    /// A sweep in intervals of `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, failing: false, slow: false }
    }

    /// The interval.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// One pass. Trouble is logged when it begins and when it ends, not with every pass.
    pub fn pass(&mut self, datapath: &Datapath) {
        let begin = Instant::now();
        match datapath.sweep() {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("flows are aged again");
            }
            Ok(()) => {}
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!("flows are not aged, their tables will fill up: {error:#}");
            }
            Err(_) => {}
        }
        let slow = begin.elapsed() > self.interval / 2;
        if slow && !self.slow {
            tracing::warn!(
                "an ageing pass takes {} ms of every {} ms: choose a longer --sweep-interval",
                begin.elapsed().as_millis(),
                self.interval.as_millis()
            );
        }
        self.slow = slow;
    }
}
