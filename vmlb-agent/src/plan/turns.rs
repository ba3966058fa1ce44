//! Which of each backend's two endpoints is the present one: as it was last known, and as it is to be. The datapath turns
//! backends too; what is known here follows it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vmlb_common::abi::{Turn, Turned};

use crate::tables::{Change, Record};

/// Map `turns`. Backends that were never turned are not in it.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    known: HashMap<u32, Turned>,
    changes: BTreeMap<u32, Turned>,
    /// Those that are expected no more: the datapath may have turned them just before.
    doubtful: BTreeSet<u32>,
}

impl Turns {
    /// What was found.
    pub fn adopt(found: HashMap<u32, Turned>) -> Self {
        Self { known: found, ..Self::default() }
    }

    /// What is known to be there.
    pub fn known(&self, id: u32) -> Turned {
        self.known.get(&id).copied().unwrap_or_default()
    }

    /// What is to be there.
    pub fn wanted(&self, id: u32) -> Turned {
        self.changes.get(&id).copied().unwrap_or_else(|| self.known(id))
    }

    /// Sets what is to be there.
    pub fn want(&mut self, id: u32, turned: Turned) {
        if turned == self.known(id) {
            self.changes.remove(&id);
        } else {
            self.changes.insert(id, turned);
        }
    }

    /// This was read, or told by the datapath. Tells whether it has been turned since it was last known.
    pub fn learn(&mut self, id: u32, turned: Turned) -> bool {
        let known = self.known(id);
        // What is told may have been read before.
        let ahead = (turned.0 >> 8).wrapping_sub(known.0 >> 8) & 0x00ff_ffff;
        let is_news = (1..1 << 23).contains(&ahead);
        if is_news {
            self.known.insert(id, turned);
        }
        is_news
    }

    /// Backends whose other side is expected: the datapath may turn them at any moment.
    pub fn expected(&mut self) -> BTreeSet<u32> {
        let expected = self.known.iter().filter(|(_, turned)| turned.is_expected()).map(|(id, _)| *id);
        expected.chain(std::mem::take(&mut self.doubtful)).collect()
    }

    /// What is to be written.
    pub fn puts(&self) -> impl Iterator<Item = Change> {
        let turn = |turned: &Turned| Turn { word: turned.0, pad: 0, replied: 0 };
        self.changes.iter().map(move |(id, turned)| Change::Put(Record::Turn(*id, turn(turned))))
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        for (id, turned) in std::mem::take(&mut self.changes) {
            if self.known(id).is_expected() {
                self.doubtful.insert(id);
            }
            self.known.insert(id, turned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_that_are_older_than_what_is_known_change_nothing() {
        let mut turns = Turns::default();
        let (once, twice) = (Turned::default().turned(), Turned::default().turned().turned());
        assert!(turns.learn(1, twice) && !turns.learn(1, once) && !turns.learn(1, twice));
        assert_eq!(turns.known(1), twice);
        turns.want(1, twice.expecting(true));
        turns.settle();
        assert!(!turns.learn(1, twice), "the same turn again, told late");
        assert_eq!(turns.expected(), BTreeSet::from([1]));
    }
}
