//! How long a watch waits: for answers, for octets, and between two tries.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The times of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until an answer begins, and between two pieces of a list.
    pub answer: Duration,
    /// Without an octet on a watch. API servers send a bookmark once a minute; a watch that is silent for longer may be
    /// dead, or wait for a version that will never come.
    pub silence: Duration,
    /// How long the API server is asked to keep a watch open, at least; up to twice as long, so that the nodes of a
    /// cluster do not come back all at once.
    pub lasting: Duration,
    /// Before the first retry.
    pub first: Duration,
    /// Between two tries where nobody listens: that costs nobody anything.
    pub away: Duration,
    /// Between two tries where the API server answers with errors.
    pub errors: Duration,
    /// Between two looks for a kind that the cluster does not have, or that may not be read: KubeVirt may come later.
    pub absent: Duration,
    /// Objects on a page of a list.
    pub page: u32,
    /// A failure that lasts longer than this is told.
    pub quiet: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(90),
            lasting: Duration::from_secs(300),
            first: Duration::from_millis(100),
            away: Duration::from_secs(1),
            errors: Duration::from_secs(10),
            absent: Duration::from_secs(30),
            page: 200,
            quiet: Duration::from_secs(5),
        }
    }
}

impl Patience {
    /// The pause before try number `failures` + 1: doubled each time up to `limit`, then shortened by up to a half at
    /// random.
    #[must_use]
    pub fn pause(&self, failures: u32, limit: Duration) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(limit).mul_f64(0.5 + dice() / 2.0)
    }

    /// How long the next watch is asked to last, in whole seconds.
    #[must_use]
    pub fn lasting_seconds(&self) -> u64 {
        self.lasting.mul_f64(1.0 + dice()).as_secs().max(1)
    }
}

/// From 0 up to 1. The standard library's hasher is seeded by the kernel; a retry needs no better dice.
fn dice() -> f64 {
    let high = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    f64::from(high) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_differ() {
        let patience = Patience::default();
        for failures in 1..40 {
            let pause = patience.pause(failures, patience.errors);
            let whole = Duration::from_millis(100 << (failures - 1).min(16)).min(patience.errors);
            assert!(pause <= whole && pause >= whole / 2, "{failures}: {pause:?}");
        }
        let pauses: std::collections::BTreeSet<_> =
            (0..16).map(|_| patience.pause(9, patience.errors)).collect();
        assert!(pauses.len() > 8, "{pauses:?}");
    }
}
