//! Room in the flat array of selection tables. A slice that is no longer pointed to is left as it is for a while: a packet
//! that has just read the old selection still finds its backends there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use vmlb_common::abi::Selection;

/// How long a slice is left alone; a program runs for microseconds.
pub const GRACE: Duration = Duration::from_millis(20);

/// Which slots are free.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    by_offset: BTreeMap<u32, u32>,
    by_size: BTreeSet<(u32, u32)>,
    taken: HashMap<u32, u32>,
    retired: Vec<(Selection, Instant)>,
}

impl Slots {
    /// An array of `count` free slots.
    pub fn new(count: u32) -> Self {
        let mut slots = Self::default();
        slots.insert(0, count);
        slots
    }

    /// Takes a given slice, if all of it is free.
    pub fn reserve(&mut self, wanted: Selection) -> bool {
        let Some((&offset, &size)) = self.by_offset.range(..=wanted.offset).next_back() else { return false };
        let (end, wanted_end) =
            (u64::from(offset) + u64::from(size), u64::from(wanted.offset) + u64::from(wanted.size));
        if wanted.size == 0 || wanted_end > end {
            return false;
        }
        self.remove(offset, size);
        self.insert(offset, wanted.offset - offset);
        self.insert(wanted.offset + wanted.size, (end - wanted_end) as u32);
        self.taken.insert(wanted.offset, wanted.size);
        true
    }

    /// Takes `size` slots from the smallest gap that holds them.
    pub fn allocate(&mut self, size: u32) -> Option<Selection> {
        let &(_, offset) = self.by_size.range((size, 0)..).next()?;
        let selection = Selection { offset, size };
        self.reserve(selection).then_some(selection)
    }

    /// A slice is no longer pointed to once the present plan is carried out.
    pub fn retire(&mut self, selection: Selection, now: Instant) {
        if self.taken.get(&selection.offset) == Some(&selection.size) {
            self.retired.push((selection, now));
        }
    }

    /// Frees what was retired long enough ago; tells whether that was anything.
    pub fn collect(&mut self, now: Instant) -> bool {
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|(_, since)| now.saturating_duration_since(*since) >= GRACE);
        self.retired = rest;
        for (selection, _) in &due {
            self.taken.remove(&selection.offset);
            self.free(*selection);
        }
        !due.is_empty()
    }

    /// Whether anything waits to be freed.
    pub fn is_waiting(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Takes over from an array whose plan has failed: slices of it that packets may still be looking at rest here too,
    /// those that were retired before until their own grace is over.
    pub fn inherit(&mut self, previous: &Self, now: Instant) {
        let since: BTreeMap<u32, Instant> =
            previous.retired.iter().map(|(selection, since)| (selection.offset, *since)).collect();
        for (offset, size) in &previous.taken {
            let selection = Selection { offset: *offset, size: *size };
            let since = since.get(offset).copied().unwrap_or(now);
            if now.saturating_duration_since(since) < GRACE && self.reserve(selection) {
                self.retire(selection, since);
            }
        }
    }

    fn free(&mut self, selection: Selection) {
        let (mut offset, mut size) = (selection.offset, selection.size);
        let before = self.by_offset.range(..offset).next_back();
        if let Some((&before, &length)) = before.filter(|(before, length)| **before + **length == offset) {
            self.remove(before, length);
            (offset, size) = (before, length + size);
        }
        if let Some(&length) = self.by_offset.get(&(offset + size)) {
            self.remove(offset + size, length);
            size += length;
        }
        self.insert(offset, size);
    }

    fn insert(&mut self, offset: u32, size: u32) {
        if size > 0 {
            self.by_offset.insert(offset, size);
            self.by_size.insert((size, offset));
        }
    }

    fn remove(&mut self, offset: u32, size: u32) {
        self.by_offset.remove(&offset);
        self.by_size.remove(&(size, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_retired_slice_comes_back_only_after_its_grace() {
        let (mut slots, now) = (Slots::new(10), Instant::now());
        let all = slots.allocate(10).unwrap_or_default();
        assert_eq!(all, Selection { offset: 0, size: 10 });
        slots.retire(all, now);
        assert!(!slots.collect(now) && slots.allocate(1).is_none());
        assert!(slots.collect(now + GRACE) && slots.allocate(10).is_some());
    }

    #[test]
    fn a_slice_that_overlaps_another_cannot_be_reserved() {
        let mut slots = Slots::new(10);
        assert!(slots.reserve(Selection { offset: 2, size: 4 }));
        for (offset, size) in [(0, 3), (5, 1), (3, 2), (8, 3), (u32::MAX, 2), (7, 0)] {
            assert!(!slots.reserve(Selection { offset, size }), "{offset}+{size}");
        }
        assert!(
            slots.reserve(Selection { offset: 6, size: 4 })
                && slots.reserve(Selection { offset: 0, size: 2 })
        );
    }

    #[test]
    fn a_plan_that_fails_again_and_again_does_not_eat_up_the_slots() {
        let (mut slots, mut now) = (Slots::new(100), Instant::now());
        for _ in 0..50 {
            let failed = slots.clone();
            slots = Slots::new(100);
            slots.inherit(&failed, now);
            assert!(slots.allocate(40).is_some());
            now += GRACE;
        }
    }

    proptest! {
        #[test]
        fn slices_never_overlap_and_all_room_comes_back(steps in proptest::collection::vec((any::<bool>(), 1u32..40), 1..200)) {
            let (mut slots, mut now) = (Slots::new(200), Instant::now());
            let mut held: Vec<Selection> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(new) = slots.allocate(number) {
                        let apart = |old: &Selection| old.offset + old.size <= new.offset || new.offset + new.size <= old.offset;
                        prop_assert!(held.iter().all(apart) && new.offset + new.size <= 200);
                        held.push(new);
                    }
                } else if !held.is_empty() {
                    let gone = held.remove(number as usize % held.len());
                    slots.retire(gone, now);
                    now += GRACE;
                    slots.collect(now);
                }
            }
            for gone in held {
                slots.retire(gone, now);
            }
            slots.collect(now + GRACE);
            prop_assert_eq!(slots.allocate(200), Some(Selection { offset: 0, size: 200 }));
        }
    }
}
