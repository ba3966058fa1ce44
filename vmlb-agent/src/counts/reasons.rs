//! Packets by reason.

use vmlb_common::abi::names;
use vmlb_common::verdict::Reason;

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

/// What a reason says has become of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// They are gone.
    Dropped,
    /// Their sender was told that they are refused, or the node's stack was left to tell.
    Rejected,
    /// They went to the node's stack as they came.
    Punted,
    /// They went on from XDP to TC.
    Deferred,
    /// They were served; something else about them was worth counting.
    Counted,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Dropped, Self::Rejected, Self::Punted, Self::Deferred, Self::Counted];

    /// The word for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Rejected => "rejected",
            Self::Punted => "punted",
            Self::Deferred => "deferred",
            Self::Counted => "counted",
        }
    }

    /// The outcome of a reason, which its explanation begins with. A reason that this version does not know is counted.
    #[must_use]
    pub fn of(reason: Reason) -> Self {
        let word = reason.explanation().split([' ', ':']).next().unwrap_or_default();
        Self::ALL
            .into_iter()
            .find(|outcome| word.eq_ignore_ascii_case(outcome.name()))
            .unwrap_or(Self::Counted)
    }
}

/// Packets of one reason since the maps were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// The reason.
    pub reason: Reason,
    /// Packets, of all CPUs.
    pub packets: u64,
}

/// Every reason that this version knows, by number, also those without packets.
///
/// # Errors
/// When the map cannot be read.
pub fn read(root: &PinRoot) -> anyhow::Result<Vec<ReasonCount>> {
    let map: PinnedMap<u32, u64> = PinnedMap::open(root, names::REASONS)?;
    let mut packets = vec![0; map.entries() as usize];
    map.each_per_cpu(map.entries(), |number, counts| {
        if let Some(sum) = packets.get_mut(number as usize) {
            *sum = counts.iter().sum();
        }
    })?;
    let known = Reason::ALL.iter().filter(|reason| **reason != Reason::NONE);
    let count = |reason: &Reason| packets.get(reason.number() as usize).copied().unwrap_or(0);
    Ok(known.map(|reason| ReasonCount { reason: *reason, packets: count(reason) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_explanation_begins_with_its_outcome() {
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NONE) {
            let said = reason.explanation().to_lowercase();
            assert!(said.starts_with(Outcome::of(*reason).name()), "{}: {said}", reason.name());
        }
    }
}
