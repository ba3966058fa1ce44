//! Names by id: a [`Ledger`] that keeps a digest of what is installed. Names are hundreds of octets, there are tens of
//! thousands, and all that is asked of an installed one is whether it is the same.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::ledger::Ledger;

/// Names by id, and those to be written.
#[derive(Clone, Debug)]
pub struct Named<V> {
    digests: Ledger<u32, u64>,
    /// Those that differ from what is installed.
    coming: BTreeMap<u32, Box<V>>,
}

impl<V: Hash> Named<V> {
    /// What was found installed; nothing is wanted yet.
    pub fn adopt(installed: &HashMap<u32, V>) -> Self {
        let digests = installed.iter().map(|(id, name)| (*id, digest(name))).collect();
        Self { digests: Ledger::adopt(digests), coming: BTreeMap::new() }
    }

    /// Sets the name of `id`.
    pub fn want(&mut self, id: u32, name: Option<V>) {
        let digest = name.as_ref().map(digest);
        self.digests.want(id, digest);
        match name.filter(|_| self.digests.installed(&id) != digest.as_ref()) {
            Some(name) => self.coming.insert(id, Box::new(name)),
            None => self.coming.remove(&id),
        };
    }

    /// Names to write, by id; they are not kept.
    pub fn take_puts(&mut self) -> impl Iterator<Item = (u32, Box<V>)> + use<V> {
        std::mem::take(&mut self.coming).into_iter()
    }

    /// Ids whose names are to go, in order.
    pub fn removals(&self) -> impl Iterator<Item = &u32> {
        self.digests.removals()
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        self.digests.settle();
        self.coming.clear();
    }
}

fn digest<V: Hash>(name: &V) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_differ_are_written_and_after_that_none() {
        let mut names = Named::adopt(&HashMap::from([(1, "a"), (2, "b"), (3, "c")]));
        names.want(1, Some("a"));
        names.want(2, Some("x"));
        names.want(4, Some("d"));
        assert_eq!(names.take_puts().collect::<Vec<_>>(), [(2, Box::new("x")), (4, Box::new("d"))]);
        assert_eq!(names.removals().collect::<Vec<_>>(), [&3]);
        names.settle();
        names.want(2, Some("x"));
        assert_eq!((names.take_puts().count(), names.removals().count()), (0, 0));
        names.want(2, Some("b"));
        names.want(2, Some("x"));
        assert_eq!(names.take_puts().count(), 0);
    }
}
