//! One map: what is in it, and what is to be different. Kept as differences, since all but a few entries are as they are
//! to be, and there are tens of thousands.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A map and the changes it waits for.
#[derive(Clone, Debug)]
pub struct Ledger<K, V> {
    installed: HashMap<K, V>,
    /// Keys whose entry is to be another, or to go; none that is to be what it is.
    changes: BTreeMap<K, Option<V>>,
    /// Entries that are to be and are not.
    coming: usize,
}

impl<K, V> Default for Ledger<K, V> {
    fn default() -> Self {
        Self { installed: HashMap::new(), changes: BTreeMap::new(), coming: 0 }
    }
}

impl<K: Ord + Hash + Clone, V: PartialEq + Clone> Ledger<K, V> {
    /// A ledger of what was found installed; nothing is wanted yet, so all of it would go.
    pub fn adopt(installed: HashMap<K, V>) -> Self {
        let changes = installed.keys().map(|key| (key.clone(), None)).collect();
        Self { installed, changes, coming: 0 }
    }

    /// Sets what is to be at `key`; returns what was to be there before.
    pub fn want(&mut self, key: K, value: Option<V>) -> Option<V> {
        let old = self.wanted(&key).cloned();
        if old == value {
            return old;
        }
        let installed = self.installed.get(&key);
        match (old.is_some(), value.is_some()) {
            (false, true) if installed.is_none() => self.coming += 1,
            (true, false) if installed.is_none() => self.coming -= 1,
            _ => {}
        }
        if installed == value.as_ref() {
            self.changes.remove(&key);
        } else {
            self.changes.insert(key, value);
        }
        old
    }

    /// What is to be at `key`.
    pub fn wanted(&self, key: &K) -> Option<&V> {
        match self.changes.get(key) {
            Some(change) => change.as_ref(),
            None => self.installed.get(key),
        }
    }

    /// What is at `key`.
    pub fn installed(&self, key: &K) -> Option<&V> {
        self.installed.get(key)
    }

    /// Everything that is to be.
    pub fn all_wanted(&self) -> impl Iterator<Item = (&K, &V)> {
        let kept = self.installed.iter().filter(|(key, _)| !self.changes.contains_key(*key));
        kept.chain(self.puts())
    }

    /// Whether the map has room for `key` besides what is to be and what still is.
    pub fn fits(&self, key: &K, capacity: u32) -> bool {
        // An entry that is on its way out still takes its place while the new one is written, and may have it again.
        self.wanted(key).is_some()
            || self.installed.contains_key(key)
            || self.installed.len() + self.coming < capacity as usize
    }

    /// Entries to write, in the order of their keys.
    pub fn puts(&self) -> impl Iterator<Item = (&K, &V)> {
        self.changes.iter().filter_map(|(key, change)| Some((key, change.as_ref()?)))
    }

    /// Keys to remove, in order.
    pub fn removals(&self) -> impl Iterator<Item = &K> {
        self.changes.iter().filter(|(_, change)| change.is_none()).map(|(key, _)| key)
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        self.coming = 0;
        for (key, change) in std::mem::take(&mut self.changes) {
            match change {
                Some(value) => self.installed.insert(key, value),
                None => self.installed.remove(&key),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_after_that_nothing() {
        let mut ledger = Ledger::adopt(HashMap::from([(1, 'a'), (2, 'b'), (3, 'c')]));
        ledger.want(1, Some('a'));
        ledger.want(2, Some('x'));
        ledger.want(4, Some('d'));
        assert_eq!(ledger.puts().collect::<Vec<_>>(), [(&2, &'x'), (&4, &'d')]);
        assert_eq!(ledger.removals().collect::<Vec<_>>(), [&3]);
        ledger.settle();
        assert_eq!((ledger.puts().count(), ledger.removals().count()), (0, 0));
    }

    #[test]
    fn what_is_wanted_back_as_it_is_needs_no_change() {
        let mut ledger = Ledger::adopt(HashMap::from([(1, 'a')]));
        assert_eq!(
            (ledger.want(1, Some('b')), ledger.want(1, None), ledger.want(2, Some('c'))),
            (None, Some('b'), None)
        );
        assert_eq!(ledger.want(2, None), Some('c'));
        assert_eq!(ledger.want(1, Some('a')), None);
        assert_eq!(
            (ledger.puts().count(), ledger.removals().count(), ledger.all_wanted().count()),
            (0, 0, 1)
        );
    }

    #[test]
    fn an_entry_that_is_leaving_still_takes_room() {
        let mut ledger = Ledger::adopt(HashMap::from([(1, 'a')]));
        assert!(!ledger.fits(&2, 1) && ledger.fits(&1, 1));
        ledger.settle();
        assert!(ledger.fits(&2, 1));
        ledger.want(2, Some('b'));
        assert!(ledger.fits(&2, 1) && !ledger.fits(&3, 1));
    }
}
