//! What services know of clients: the blocks of them that are admitted, the targets that they may stay with.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use vmlb_common::abi::{EligibleKey, RangeKey};

use super::family_of;
use super::ledger::Ledger;
use crate::facts::Cidr;
use crate::tables::{Capacity, Change, Record, RecordKey, address4, address6};

/// A block of clients that a service admits.
pub type Range = (u32, Cidr);

/// Maps `eligible` and `ranges_*`, and whose their entries are.
#[derive(Clone, Debug)]
pub struct Clients {
    eligible: Ledger<EligibleKey, ()>,
    /// By family, as the maps are.
    ranges: [Ledger<Range, ()>; 2],
    eligible_of: HashMap<u32, Vec<EligibleKey>>,
    ranges_of: HashMap<u32, Vec<Cidr>>,
}

impl Clients {
    /// What was found; nothing is wanted yet.
    pub fn adopt(eligible: HashSet<EligibleKey>, ranges: HashSet<Range>) -> Self {
        let (v4, v6) = ranges.into_iter().partition::<HashSet<_>, _>(|(_, range)| range.address().is_ipv4());
        let ledger =
            |ranges: HashSet<Range>| Ledger::adopt(ranges.into_iter().map(|range| (range, ())).collect());
        Self {
            eligible: Ledger::adopt(eligible.into_iter().map(|key| (key, ())).collect()),
            ranges: [v4, v6].map(ledger),
            eligible_of: HashMap::new(),
            ranges_of: HashMap::new(),
        }
    }

    /// A service admits these. `false`: there is no room for all of them, and it admits nobody.
    #[must_use]
    pub fn admit(&mut self, service: u32, ranges: &[Cidr], capacity: &Capacity) -> bool {
        let known = self.ranges_of.remove(&service).unwrap_or_default();
        for range in known.iter().filter(|range| !ranges.contains(range)) {
            self.ledger(range).want((service, *range), None);
        }
        for (place, range) in ranges.iter().enumerate() {
            let ledger = self.ledger(range);
            if !ledger.fits(&(service, *range), capacity.ranges) {
                for range in &ranges[..place] {
                    self.ledger(range).want((service, *range), None);
                }
                return false;
            }
            ledger.want((service, *range), Some(()));
        }
        if !ranges.is_empty() {
            self.ranges_of.insert(service, ranges.to_vec());
        }
        true
    }

    /// A service may use these targets. `false`: there is no room for all of them, and it may use none.
    #[must_use]
    pub fn allow(&mut self, service: u32, targets: Vec<EligibleKey>, capacity: &Capacity) -> bool {
        for gone in self.eligible_of.remove(&service).unwrap_or_default() {
            if !targets.contains(&gone) {
                self.eligible.want(gone, None);
            }
        }
        for (place, key) in targets.iter().enumerate() {
            if !self.eligible.fits(key, capacity.eligible) {
                for key in &targets[..place] {
                    self.eligible.want(*key, None);
                }
                return false;
            }
            self.eligible.want(*key, Some(()));
        }
        if !targets.is_empty() {
            self.eligible_of.insert(service, targets);
        }
        true
    }

    /// A service is gone.
    pub fn forget(&mut self, service: u32) {
        for range in self.ranges_of.remove(&service).unwrap_or_default() {
            self.ledger(&range).want((service, range), None);
        }
        for key in self.eligible_of.remove(&service).unwrap_or_default() {
            self.eligible.want(key, None);
        }
    }

    fn ledger(&mut self, range: &Cidr) -> &mut Ledger<Range, ()> {
        &mut self.ranges[family_of(range.address())]
    }

    /// What is to be written, before what makes packets look at it.
    pub fn puts(&self) -> impl Iterator<Item = Change> {
        let eligible = self.eligible.puts().map(|(key, ())| Change::Put(Record::Eligible(*key)));
        let ranges = self.ranges.iter().flat_map(Ledger::puts);
        eligible.chain(ranges.map(|(range, ())| Change::Put(range_record(range))))
    }

    /// What is to go, after packets have no reason to look at it any more.
    pub fn removals(&self) -> impl Iterator<Item = Change> {
        let eligible = self.eligible.removals().map(|key| Change::Remove(RecordKey::Eligible(*key)));
        let ranges = self.ranges.iter().flat_map(Ledger::removals);
        eligible.chain(ranges.map(|range| Change::Remove(range_key(range))))
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        self.eligible.settle();
        self.ranges.iter_mut().for_each(Ledger::settle);
    }
}

fn range_record((service, range): &Range) -> Record {
    let bits = u32::from(range.length());
    match range.address() {
        IpAddr::V4(address) => Record::Range4(RangeKey::new(*service, address4(address), bits)),
        IpAddr::V6(address) => Record::Range6(RangeKey::new(*service, address6(address), bits)),
    }
}

fn range_key((service, range): &Range) -> RecordKey {
    let bits = u32::from(range.length());
    match range.address() {
        IpAddr::V4(address) => RecordKey::Range4(RangeKey::new(*service, address4(address), bits)),
        IpAddr::V6(address) => RecordKey::Range6(RangeKey::new(*service, address6(address), bits)),
    }
}

/// The block of a key that was found; `None`: its length is none of ours.
pub fn range_of(service: u32, address: IpAddr, length: u32) -> Option<Range> {
    let bits = u8::try_from(length.checked_sub(32)?).ok()?;
    Some((service, Cidr::new(address, bits)?))
}

#[cfg(test)]
mod tests {
    use vmlb_common::abi::Role;

    use super::*;

    fn capacity(entries: u32) -> Capacity {
        Capacity {
            services: 8,
            slots: 8,
            backends: 8,
            frontends: 8,
            pods: 8,
            targets: 8,
            eligible: entries,
            ranges: entries,
            tags: 8,
            nodes: 8,
        }
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn new_blocks_are_written_before_old_ones_go() {
        let mut clients = Clients::adopt(HashSet::new(), HashSet::new());
        assert!(clients.admit(1, &[cidr("192.0.2.0/24")], &capacity(8)));
        clients.settle();
        assert!(clients.admit(1, &[cidr("192.0.2.0/25"), cidr("2001:db8::/32")], &capacity(8)));
        assert_eq!((clients.puts().count(), clients.removals().count()), (2, 1));
        clients.settle();
        clients.forget(1);
        assert_eq!((clients.puts().count(), clients.removals().count()), (0, 2));
    }

    #[test]
    fn blocks_that_do_not_all_fit_admit_nobody() {
        let mut clients = Clients::adopt(HashSet::new(), HashSet::new());
        let ranges = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"].map(cidr);
        assert!(!clients.admit(1, &ranges, &capacity(2)));
        assert_eq!(clients.puts().count(), 0);
        assert!(clients.admit(2, &ranges[..2], &capacity(2)), "nothing was left behind");
    }

    #[test]
    fn a_block_that_was_found_and_is_wanted_is_not_written_again() {
        let found = range_of(1, [192, 0, 2, 0].into(), 32 + 24).into_iter().collect();
        let mut clients = Clients::adopt(HashSet::new(), found);
        assert!(clients.admit(1, &[cidr("192.0.2.9/24")], &capacity(1)));
        assert_eq!((clients.puts().count(), clients.removals().count()), (0, 0));
        assert_eq!(range_of(1, [192, 0, 2, 0].into(), 31), None);
    }

    #[test]
    fn targets_that_do_not_all_fit_are_none_and_come_when_others_have_gone() {
        let keys = |backends: &[u32]| {
            let key =
                |backend: &u32| EligibleKey { service: 1, backend: *backend, port: 80, role: Role::OPEN };
            backends.iter().map(key).collect::<Vec<_>>()
        };
        let mut clients = Clients::adopt(HashSet::new(), HashSet::new());
        assert!(!clients.allow(1, keys(&[1, 2, 3]), &capacity(2)));
        assert_eq!(clients.puts().count(), 0);
        assert!(clients.allow(1, keys(&[1, 2]), &capacity(2)));
        clients.settle();
        assert!(!clients.allow(1, keys(&[2, 3]), &capacity(2)), "those that go still take their room");
        clients.settle();
        assert!(clients.allow(1, keys(&[2, 3]), &capacity(2)));
        assert_eq!(clients.puts().count(), 2);
    }
}
