//! Small numbers for names, given out once and kept; an id that was given back rests until the plan that removed its last
//! trace has been carried out.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Ids from 1 up; 0 is what an empty map entry holds.
#[derive(Clone, Debug)]
pub struct Ids<K> {
    by_key: HashMap<K, u32>,
    limit: u32,
    next: u32,
    free: BTreeSet<u32>,
    resting: Vec<u32>,
}

impl<K: Hash + Eq + Clone> Ids<K> {
    /// Ids for a map of `limit` entries, some of which are given out and some of which are `blocked`: still in use by
    /// what has no name any more.
    pub fn adopt(limit: u32, by_key: HashMap<K, u32>, blocked: &BTreeSet<u32>) -> Self {
        let used: BTreeSet<u32> = by_key.values().chain(blocked).copied().collect();
        let next = used.last().map_or(1, |last| last.saturating_add(1));
        let free = (1..next.min(limit)).filter(|id| !used.contains(id)).collect();
        Self { by_key, limit, next, free, resting: Vec::new() }
    }

    /// The id of `key`.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The id of `key`, a new one if it has none. Ids that were never used come first, so that one that has been used
    /// rests as long as possible. `None`: all are taken.
    pub fn allocate(&mut self, key: &K) -> Option<u32> {
        if let Some(id) = self.get(key) {
            return Some(id);
        }
        let id = if self.next < self.limit {
            self.next += 1;
            self.next - 1
        } else {
            self.free.pop_first()?
        };
        self.by_key.insert(key.clone(), id);
        Some(id)
    }

    /// Gives back the id of `key`; it can be given out again after [`Self::settle`].
    pub fn release(&mut self, key: &K) -> Option<u32> {
        let id = self.by_key.remove(key)?;
        self.resting.push(id);
        Some(id)
    }

    /// An id that was blocked is no longer in use.
    pub fn unblock(&mut self, id: u32) {
        self.resting.push(id);
    }

    /// The plan has been carried out: ids given back are free. Tells whether any were.
    pub fn settle(&mut self) -> bool {
        let any = !self.resting.is_empty();
        self.free.extend(self.resting.drain(..));
        any
    }

    /// All ids that are given out.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.by_key.iter().map(|(key, id)| (key, *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_not_given_out_again_before_its_removal_is_settled() {
        let mut ids = Ids::adopt(3, HashMap::new(), &BTreeSet::new());
        assert_eq!((ids.allocate(&'a'), ids.allocate(&'b'), ids.allocate(&'c')), (Some(1), Some(2), None));
        assert_eq!(ids.release(&'a'), Some(1));
        assert_eq!(ids.allocate(&'c'), None);
        assert!(ids.settle());
        assert_eq!(ids.allocate(&'c'), Some(1));
    }

    #[test]
    fn adopted_ids_are_kept_and_blocked_ones_passed_over() {
        let mut ids = Ids::adopt(5, HashMap::from([('a', 3)]), &BTreeSet::from([1]));
        assert_eq!(ids.allocate(&'a'), Some(3));
        assert_eq!((ids.allocate(&'b'), ids.allocate(&'c'), ids.allocate(&'d')), (Some(4), Some(2), None));
    }
}
