//! What a selection table holds, as it lies in memory until it is written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vmlb_common::abi::Target;

/// A run of slots. At a start the tables of all Services are made at once, so the few targets that take turns in a table
/// stand there once, and each slot has two octets for which of them it is.
#[derive(Clone, Debug)]
pub struct Run(Held);

#[derive(Clone, Debug)]
enum Held {
    Turns {
        targets: Vec<Target>,
        places: Vec<u16>,
    },
    /// The same, the places among those of others.
    Shelved {
        targets: Vec<Target>,
        shelf: Arc<Vec<u16>>,
        places: Range<usize>,
    },
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
            Held::Shelved { places, .. } => places.len(),
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
        let turns = |targets: &[Target], places: &[u16]| {
            places.iter().map(|place| targets[usize::from(*place)]).collect()
        };
        match &self.0 {
            Held::Turns { targets, places } => turns(targets, places),
            Held::Shelved { targets, shelf, places } => turns(targets, &shelf[places.clone()]),
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

/// Runs by offset that wait to be written. Their places lie in one piece of memory: in thousands of pieces, whatever small
/// thing came to lie between them would keep a page each after they are gone.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    places: Vec<u16>,
    runs: BTreeMap<u32, (Vec<Target>, Range<usize>)>,
    others: BTreeMap<u32, Run>,
}

impl Shelf {
    /// Puts a run here.
    pub fn put(&mut self, offset: u32, run: Run) {
        let Held::Turns { targets, places } = run.0 else {
            self.others.insert(offset, run);
            return;
        };
        let start = self.places.len();
        self.places.extend(places);
        self.runs.insert(offset, (targets, start..self.places.len()));
    }

    /// Takes all of them.
    pub fn take(&mut self) -> impl Iterator<Item = (u32, Run)> + use<> {
        let Self { places, runs, others } = std::mem::take(self);
        let shelf = Arc::new(places);
        let shelved = runs.into_iter().map(move |(offset, (targets, places))| {
            (offset, Run(Held::Shelved { targets, shelf: shelf.clone(), places }))
        });
        shelved.chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_from_a_shelf_is_what_was_put_there() {
        let targets: Vec<Target> =
            (0..70_000).map(|backend| Target { backend, ..Target::default() }).collect();
        let mut shelf = Shelf::default();
        let runs = [(40, &[1, 0, 1, 2][..]), (7, &[3, 3]), (90, &[69_999, 0]), (60, &[])];
        let run = |places: &[u32]| Run::of_places(targets.clone(), places);
        for (offset, places) in runs {
            shelf.put(offset, run(places));
        }
        let taken: BTreeMap<u32, Run> = shelf.take().collect();
        assert_eq!(taken, runs.into_iter().map(|(offset, places)| (offset, run(places))).collect());
        assert!(taken.iter().all(|(_, run)| run.len() == run.slots().len()));
        assert_eq!(shelf.take().count(), 0);
    }

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
