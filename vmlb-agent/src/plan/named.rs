//! Names by id: a [`Ledger`] that keeps a digest of what is installed. Names are hundreds of octets, there are tens of
//! thousands, and all that is asked of an installed one is whether it is the same.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::ledger::Ledger;

/// Names by id, and those to be written.
#[derive(Clone, Debug)]
pub struct Named<V> {
    digests: Ledger<u32, u64>,
    coming: BTreeMap<u32, V>,
}

impl<V: Hash> Named<V> {
    /// What was found installed; nothing is wanted yet.
    pub fn adopt(installed: &HashMap<u32, V>) -> Self {
        let digests = installed.iter().map(|(id, name)| (*id, digest(name))).collect();
        Self { digests: Ledger::adopt(digests), coming: BTreeMap::new() }
    }

    /// Sets the name of `id`.
    pub fn want(&mut self, id: u32, name: Option<V>) {
        self.digests.want(id, name.as_ref().map(digest));
        match name {
            Some(name) => self.coming.insert(id, name),
            None => self.coming.remove(&id),
        };
    }

    /// Names to write, by id.
    pub fn puts(&self) -> impl Iterator<Item = (u32, &V)> {
        self.digests.puts().filter_map(|(id, _)| Some((*id, self.coming.get(id)?)))
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
        assert_eq!(names.puts().collect::<Vec<_>>(), [(2, &"x"), (4, &"d")]);
        assert_eq!(names.removals().collect::<Vec<_>>(), [&3]);
        names.settle();
        names.want(2, Some("x"));
        assert_eq!((names.puts().count(), names.removals().count()), (0, 0));
        names.want(2, Some("b"));
        names.want(2, Some("x"));
        assert_eq!(names.puts().count(), 0);
    }
}
