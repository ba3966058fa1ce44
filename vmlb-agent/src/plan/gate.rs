//! The gate's bits, counted: a bit is set while anything wants it, before that appears and until after it is gone.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use vmlb_common::abi::Gate;

use crate::tables::{Change, Record, address4, address6};

/// The gate as it is to be and as it is.
#[derive(Clone, Debug)]
pub struct Gates {
    counts: HashMap<u32, u32>,
    wanted: Vec<u64>,
    installed: Vec<u64>,
    dirty: BTreeSet<u32>,
}

impl Gates {
    /// The gate as it was found; nothing is wanted yet.
    pub fn adopt(words: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let mut gates = Self {
            counts: HashMap::new(),
            wanted: vec![0; Gate::ENTRIES as usize],
            installed: vec![0; Gate::ENTRIES as usize],
            dirty: BTreeSet::new(),
        };
        for (entry, word) in words {
            if let Some(installed) = gates.installed.get_mut(entry as usize) {
                *installed = word;
                gates.dirty.insert(entry);
            }
        }
        gates
    }

    /// One more wants the bit of an address.
    pub fn want_address(&mut self, gate: Gate, address: IpAddr) {
        self.want_port(gate, hash(address));
    }

    /// One less wants the bit of an address.
    pub fn drop_address(&mut self, gate: Gate, address: IpAddr) {
        self.drop_port(gate, hash(address));
    }

    /// One more wants the bit of a port.
    pub fn want_port(&mut self, gate: Gate, port: u16) {
        let count = self.counts.entry(place(gate, port)).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.flip(gate.entry(port), Gate::mask(port));
        }
    }

    /// One less wants the bit of a port.
    pub fn drop_port(&mut self, gate: Gate, port: u16) {
        let place = place(gate, port);
        let Some(count) = self.counts.get_mut(&place) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&place);
            self.flip(gate.entry(port), Gate::mask(port));
        }
    }

    fn flip(&mut self, entry: u32, mask: u64) {
        if let Some(word) = self.wanted.get_mut(entry as usize) {
            *word ^= mask;
            self.dirty.insert(entry);
        }
    }

    /// Writes that set bits; those to be cleared stay set.
    pub fn raise(&self) -> impl Iterator<Item = Change> {
        let words = self.words().filter(|(_, wanted, installed)| wanted & !installed != 0);
        words.map(|(entry, wanted, installed)| Change::Put(Record::Gate(entry, wanted | installed)))
    }

    /// Writes that clear bits, after [`Self::raise`].
    pub fn lower(&self) -> impl Iterator<Item = Change> {
        let words = self.words().filter(|(_, wanted, installed)| installed & !wanted != 0);
        words.map(|(entry, wanted, _)| Change::Put(Record::Gate(entry, wanted)))
    }

    fn words(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let words = self.dirty.iter().filter_map(|entry| {
            let place = *entry as usize;
            Some((*entry, *self.wanted.get(place)?, *self.installed.get(place)?))
        });
        words.filter(|(_, wanted, installed)| wanted != installed)
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        for entry in std::mem::take(&mut self.dirty) {
            let place = entry as usize;
            if let (Some(wanted), Some(installed)) = (self.wanted.get(place), self.installed.get_mut(place)) {
                *installed = *wanted;
            }
        }
    }
}

fn hash(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(address) => Gate::hash(&address4(address)),
        IpAddr::V6(address) => Gate::hash(&address6(address)),
    }
}

fn place(gate: Gate, bit: u16) -> u32 {
    gate.entry(bit) * 64 + (u32::from(bit) & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_two_want_is_cleared_only_when_both_are_gone() {
        let mut gates = Gates::adopt([]);
        gates.want_port(Gate::FRONTEND_PORTS, 80);
        gates.want_port(Gate::FRONTEND_PORTS, 80);
        assert_eq!(gates.raise().collect::<Vec<_>>(), [Change::Put(Record::Gate(1, 1 << 16))]);
        gates.settle();
        gates.drop_port(Gate::FRONTEND_PORTS, 80);
        assert_eq!((gates.raise().count(), gates.lower().count()), (0, 0));
        gates.drop_port(Gate::FRONTEND_PORTS, 80);
        assert_eq!(gates.lower().collect::<Vec<_>>(), [Change::Put(Record::Gate(1, 0))]);
    }

    #[test]
    fn bits_are_set_before_others_of_the_same_word_are_cleared() {
        let mut gates = Gates::adopt([(0, 0b0110)]);
        gates.want_port(Gate::FRONTEND_PORTS, 0);
        gates.want_port(Gate::FRONTEND_PORTS, 1);
        assert_eq!(gates.raise().collect::<Vec<_>>(), [Change::Put(Record::Gate(0, 0b0111))]);
        assert_eq!(gates.lower().collect::<Vec<_>>(), [Change::Put(Record::Gate(0, 0b0011))]);
    }
}
