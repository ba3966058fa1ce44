//! A hash table as the kernel's preallocated ones are: of fixed size, with entries that stay where they are while packets
//! hold pointers to them, and whose memory is given to the next entry when they go.

use core::cell::{RefCell, UnsafeCell};
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use crate::kernel::Refused;

/// What a full table does with a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// It refuses (`BPF_MAP_TYPE_HASH`).
    Refuse,
    /// It gives away the entry that was used least recently (`BPF_MAP_TYPE_LRU_HASH`, which is less exact).
    Evict,
}

/// Memory of an entry. `Rc`, not `Box`: pointers into a `Box` do not outlive its moves.
type Cell<V> = Rc<UnsafeCell<V>>;

#[derive(Debug)]
struct Entry<V> {
    cell: Cell<V>,
    used: u64,
}

#[derive(Debug)]
struct Inner<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    free: Vec<Cell<V>>,
    uses: u64,
}

/// The table. Ordered, so that passes over it repeat.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    capacity: usize,
    when_full: WhenFull,
    inner: RefCell<Inner<K, V>>,
}

impl<K: Ord + Copy, V: Copy> Table<K, V> {
    pub(super) fn new(capacity: usize, when_full: WhenFull) -> Self {
        let inner = Inner { entries: BTreeMap::new(), free: Vec::new(), uses: 0 };
        Self { capacity, when_full, inner: RefCell::new(inner) }
    }

    /// The place of a value; it stays valid memory as long as the table, whatever happens to the entry.
    pub(super) fn get(&self, key: &K) -> Option<NonNull<V>> {
        let inner = &mut *self.inner.borrow_mut();
        let entry = inner.entries.get_mut(key)?;
        inner.uses += 1;
        entry.used = inner.uses;
        NonNull::new(entry.cell.get())
    }

    /// Makes an entry where the key is free.
    pub(super) fn insert(&self, key: &K, value: &V) -> Result<(), Refused> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.entries.contains_key(key) {
            return Err(Refused::Exists);
        }
        if inner.entries.len() >= self.capacity {
            let eldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            match (self.when_full, eldest) {
                (WhenFull::Evict, Some(eldest)) => inner.remove(&eldest),
                _ => return Err(Refused::Full),
            }
        }
        inner.uses += 1;
        let used = inner.uses;
        let cell = match inner.free.pop() {
            Some(cell) => {
                // SAFETY: no reference into the cell exists, only pointers of the datapath, on this thread.
                unsafe { cell.get().write(*value) };
                cell
            }
            None => Rc::new(UnsafeCell::new(*value)),
        };
        inner.entries.insert(*key, Entry { cell, used });
        Ok(())
    }

    /// Makes an entry or replaces the one that is there, as `BPF_ANY` does: by another element.
    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), Refused> {
        self.remove(key);
        self.insert(key, value)
    }

    pub(super) fn remove(&self, key: &K) {
        self.inner.borrow_mut().remove(key);
    }

    /// Copies of all entries, by key.
    pub(super) fn copies(&self) -> Vec<(K, V)> {
        let inner = self.inner.borrow();
        // SAFETY: as in `insert`; the value is copied whole.
        inner.entries.iter().map(|(key, entry)| (*key, unsafe { entry.cell.get().read() })).collect()
    }

    /// Keys and places of all entries, for a pass that may remove them.
    pub(super) fn places(&self) -> Vec<(K, NonNull<V>)> {
        let inner = self.inner.borrow();
        inner
            .entries
            .iter()
            .filter_map(|(key, entry)| NonNull::new(entry.cell.get()).map(|value| (*key, value)))
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.inner.borrow().entries.len()
    }

    pub(super) fn clear(&self) {
        let inner = &mut *self.inner.borrow_mut();
        let cells = core::mem::take(&mut inner.entries).into_values().map(|entry| entry.cell);
        inner.free.extend(cells);
    }
}

impl<K: Ord, V> Inner<K, V> {
    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.free.push(entry.cell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_refuses_or_evicts_what_was_used_least_recently() {
        let strict = Table::new(1, WhenFull::Refuse);
        assert_eq!(strict.insert(&1, &10), Ok(()));
        assert_eq!(strict.insert(&1, &11), Err(Refused::Exists));
        assert_eq!(strict.insert(&2, &20), Err(Refused::Full));
        let lenient = Table::new(2, WhenFull::Evict);
        assert_eq!((lenient.insert(&1, &10), lenient.insert(&2, &20)), (Ok(()), Ok(())));
        assert!(lenient.get(&1).is_some());
        assert_eq!(lenient.insert(&3, &30), Ok(()));
        assert_eq!(lenient.copies(), [(1, 10), (3, 30)]);
    }

    #[test]
    fn memory_of_an_entry_that_went_is_the_next_ones() {
        let table = Table::new(8, WhenFull::Refuse);
        assert_eq!(table.insert(&1, &10), Ok(()));
        let place = table.get(&1);
        table.remove(&1);
        assert_eq!(table.insert(&2, &20), Ok(()));
        assert_eq!(table.get(&2), place);
        // SAFETY: the table lives.
        assert_eq!(place.map(|value| unsafe { value.read() }), Some(20));
    }
}
