//! What services know of clients: source ranges and session affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::abi::{Affinity, ClientKey};
use crate::datapath::sweep;
use crate::family::Address;
use crate::kernel::{Refused, Stage};

use super::HostFamily;
use super::node::{Capacities, Node};
use super::table::{Table, WhenFull};

/// A block of clients: the service, the block's address and its prefix length.
pub type Range<A> = (ClientKey<A>, u32);

/// The tables of one family.
#[derive(Debug)]
pub struct Clients<A> {
    ranges: BTreeSet<Range<A>>,
    proved: Table<ClientKey<A>, Affinity>,
    new: Table<ClientKey<A>, Affinity>,
}

impl<A: Address + Ord> Clients<A> {
    pub(super) fn new(capacities: &Capacities) -> Self {
        let capacity = capacities.affinity as usize;
        Self {
            ranges: BTreeSet::new(),
            proved: Table::new(capacity, WhenFull::Refuse),
            new: Table::new(capacity, WhenFull::Evict),
        }
    }

    fn table(&self, stage: Stage) -> &Table<ClientKey<A>, Affinity> {
        match stage {
            Stage::Established => &self.proved,
            Stage::Half => &self.new,
        }
    }

    pub(super) fn get(&self, stage: Stage, key: &ClientKey<A>) -> Option<&Affinity> {
        // SAFETY: memory of the table, which outlives the borrow; the datapath keeps no reference across a change.
        self.table(stage).get(key).map(|known| unsafe { known.as_ref() })
    }

    pub(super) fn set(&self, stage: Stage, key: &ClientKey<A>, to: &Affinity) -> Result<(), Refused> {
        self.table(stage).set(key, to)
    }

    pub(super) fn remove(&self, stage: Stage, key: &ClientKey<A>) {
        self.table(stage).remove(key);
    }

    pub(super) fn clear(&self) {
        self.proved.clear();
        self.new.clear();
    }
}

impl<A: Address + Ord> Clients<A> {
    /// Whether a range of the service holds the client, by the addresses' leading bits.
    pub(super) fn is_in_ranges(&self, key: &ClientKey<A>, to_ip: impl Fn(&A) -> IpAddr) -> bool {
        let client = bits(to_ip(&key.client));
        self.ranges.iter().filter(|(range, _)| range.service == key.service).any(|(range, length)| {
            let apart = client ^ bits(to_ip(&range.client));
            apart.checked_shr(128 - length).unwrap_or(0) == 0
        })
    }
}

/// The address's bits, the first one highest.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Node {
    /// Replaces the source ranges of all services.
    pub fn set_ranges<F: HostFamily>(&mut self, to: impl IntoIterator<Item = Range<F::Address>>) {
        F::side_mut(self).clients.ranges = to.into_iter().collect();
    }

    /// The targets that clients stay with.
    pub fn affinities<F: HostFamily>(&self, stage: Stage) -> BTreeMap<ClientKey<F::Address>, Affinity> {
        F::side(self).clients.table(stage).copies().into_iter().collect()
    }

    /// Writes the target that a client stays with.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn put_affinity<F: HostFamily>(
        &mut self,
        stage: Stage,
        key: &ClientKey<F::Address>,
        to: &Affinity,
    ) -> Result<(), Refused> {
        F::side(self).clients.set(stage, key, to)
    }

    pub(super) fn sweep_clients<F: HostFamily>(&self) {
        for (key, known) in F::side(self).clients.proved.copies() {
            sweep::client::<F, _>(self, &key, &known);
        }
    }
}
