//! What a selection table holds, as it lies in memory until it is written.

use vmlb_common::abi::Target;

/// A run of slots. At a start the tables of all Services are made at once, so the few targets that take turns in a table
/// stand there once, and each slot has two octets for which of them it is.
#[derive(Clone, Debug)]
pub struct Run(Held);

#[derive(Clone, Debug)]
enum Held {
    Turns { targets: Vec<Target>, places: Vec<u16> },
    Whole(Vec<Target>),
}

impl Run {
    /// Of each place in `places` the target there; a place that is none of `targets` has no slot.
    #[must_use]
    pub fn of_places(targets: Vec<Target>, places: &[u32]) -> Self {
        let known = places.iter().filter(|place| (**place as usize) < targets.len());
        let narrow: Result<Vec<u16>, _> = known.clone().map(|place| u16::try_from(*place)).collect();
        Self(match narrow {
            Ok(places) => Held::Turns { targets, places },
            Err(_) => Held::Whole(known.map(|place| targets[*place as usize]).collect()),
        })
    }

    /// How many slots.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Turns { places, .. } => places.len(),
            Held::Whole(slots) => slots.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slots.
    #[must_use]
    pub fn slots(&self) -> Vec<Target> {
        match &self.0 {
            Held::Turns { targets, places } => {
                places.iter().map(|place| targets[usize::from(*place)]).collect()
            }
            Held::Whole(slots) => slots.clone(),
        }
    }
}

impl From<Vec<Target>> for Run {
    fn from(slots: Vec<Target>) -> Self {
        Self(Held::Whole(slots))
    }
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self.slots() == other.slots()
    }
}

impl Eq for Run {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_its_slots_however_it_is_held() {
        let targets: Vec<Target> =
            (0..70_000).map(|backend| Target { backend, ..Target::default() }).collect();
        for places in [&[1, 0, 1, 2][..], &[], &[69_999, 3]] {
            let run = Run::of_places(targets.clone(), places);
            let slots: Vec<Target> = places.iter().map(|place| targets[*place as usize]).collect();
            assert_eq!((run.len(), run.is_empty()), (slots.len(), slots.is_empty()));
            assert_eq!(run.slots(), slots);
            assert_eq!(run, Run::from(slots));
        }
        assert_eq!(Run::of_places(targets, &[70_000, 5]).len(), 1);
    }
}
