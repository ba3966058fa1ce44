//! A sorted map for few entries. Where tens of thousands of keys have a map of one entry each, a node of a B-tree, made
//! for eleven, is most of what the control plane would hold.

/// Entries in the order of their keys, in exactly the memory they take; a single one in place. Inserting and removing cost
/// a move of those behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<K, V = ()>(Held<K, V>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Held<K, V> {
    One((K, V)),
    /// None, or more than one.
    Many(Vec<(K, V)>),
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Held::Many(Vec::new()))
    }
}

impl<K, V> Few<K, V> {
    fn entries(&self) -> &[(K, V)] {
        match &self.0 {
            Held::One(entry) => std::slice::from_ref(entry),
            Held::Many(entries) => entries,
        }
    }

    fn entries_mut(&mut self) -> &mut [(K, V)] {
        match &mut self.0 {
            Held::One(entry) => std::slice::from_mut(entry),
            Held::Many(entries) => entries,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// The entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries().iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries().iter().map(|(_, value)| value)
    }

    /// Takes the entries out, as many as there are in memory of their own.
    fn take(&mut self) -> Vec<(K, V)> {
        match std::mem::take(self).0 {
            Held::One(entry) => vec![entry],
            Held::Many(entries) => entries,
        }
    }

    fn put_back(&mut self, mut entries: Vec<(K, V)>) {
        self.0 = match entries.pop() {
            Some(entry) if entries.is_empty() => Held::One(entry),
            last => {
                entries.extend(last);
                entries.shrink_to_fit();
                Held::Many(entries)
            }
        };
    }
}

impl<K: Ord, V> Few<K, V> {
    fn place(&self, key: &K) -> Result<usize, usize> {
        self.entries().binary_search_by(|(known, _)| known.cmp(key))
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.place(key).ok().map(|place| &self.entries()[place].1)
    }

    /// The value of `key`, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.place(key).ok().map(|place| &mut self.entries_mut()[place].1)
    }

    /// Sets the value of `key`; returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(place) => Some(std::mem::replace(&mut self.entries_mut()[place].1, value)),
            Err(place) => {
                let mut entries = self.take();
                entries.reserve_exact(1);
                entries.insert(place, (key, value));
                self.put_back(entries);
                None
            }
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.place(key).ok()?;
        let mut entries = self.take();
        let (_, value) = entries.remove(place);
        self.put_back(entries);
        Some(value)
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    /// Of entries with the same key one of them.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        entries.dedup_by(|(one, _), (other, _)| one == other);
        let mut few = Self::default();
        few.put_back(entries);
        few
    }
}

impl<K: Ord> FromIterator<K> for Few<K> {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        keys.into_iter().map(|key| (key, ())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_tree_does(steps in proptest::collection::vec((0u8..9, any::<Option<u8>>()), 0..60)) {
            let (mut few, mut tree) = (Few::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(few.insert(key, value), tree.insert(key, value)),
                    None => prop_assert_eq!(few.remove(&key), tree.remove(&key)),
                }
                prop_assert_eq!(few.get(&key), tree.get(&key));
                prop_assert_eq!(few.is_empty(), tree.is_empty());
                prop_assert!(few.keys().eq(tree.keys()) && few.values().eq(tree.values()));
                prop_assert_eq!(few.len(), tree.len());
                prop_assert_eq!(&few, &tree.iter().rev().map(|(key, value)| (*key, *value)).collect());
            }
        }
    }
}
