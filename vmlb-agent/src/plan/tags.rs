//! What packets from other nodes' tunnels are for: by service and the 15 bits that stand for a backend, of the backends that
//! are here. The less of two identities has a tag that both have.

use std::collections::{BTreeMap, HashMap};

use vmlb_common::abi::{TagKey, Target};

use super::Installation;
use super::ledger::Ledger;
use crate::desired::Desired;
use crate::desired::service::PortView;
use crate::tables::{Change, Record, RecordKey};

/// Map `tags`, and whose its entries are.
#[derive(Clone, Debug)]
pub struct Tags {
    entries: Ledger<TagKey, Target>,
    of: HashMap<u32, Vec<TagKey>>,
}

impl Tags {
    /// What was found; nothing is wanted yet.
    pub fn adopt(found: HashMap<TagKey, Target>) -> Self {
        Self { entries: Ledger::adopt(found), of: HashMap::new() }
    }

    /// A service's tags are these. `false`: there is no room for all of them.
    #[must_use]
    pub fn set(&mut self, service: u32, tags: BTreeMap<TagKey, Target>, capacity: u32) -> bool {
        for gone in self.of.remove(&service).unwrap_or_default() {
            if !tags.contains_key(&gone) {
                self.entries.want(gone, None);
            }
        }
        let mut kept = Vec::new();
        let mut fit = true;
        for (key, target) in tags {
            if self.entries.fits(&key, capacity) {
                self.entries.want(key, Some(target));
                kept.push(key);
            } else {
                fit = false;
            }
        }
        if !kept.is_empty() {
            self.of.insert(service, kept);
        }
        fit
    }

    /// A service is gone.
    pub fn forget(&mut self, service: u32) {
        for key in self.of.remove(&service).unwrap_or_default() {
            self.entries.want(key, None);
        }
    }

    /// What is to be written.
    pub fn puts(&self) -> impl Iterator<Item = Change> {
        self.entries.puts().map(|(key, target)| Change::Put(Record::Tag(*key, *target)))
    }

    /// What is to go.
    pub fn removals(&self) -> impl Iterator<Item = Change> {
        self.entries.removals().map(|key| Change::Remove(RecordKey::Tag(*key)))
    }

    /// What was to be is.
    pub fn settle(&mut self) {
        self.entries.settle();
    }
}

impl Installation {
    /// The tags of a port's targets that are here.
    pub(super) fn tags_of(
        &self,
        desired: &Desired,
        service: u32,
        port: &PortView,
    ) -> BTreeMap<TagKey, Target> {
        let mut tags = BTreeMap::new();
        for (identity, number) in port.targets.keys() {
            let is_here = desired.backend(identity).is_some_and(|view| view.is_here());
            let Some(backend) = self.placed(identity).filter(|_| is_here) else { continue };
            let target = Target { backend, port: *number, pad: 0 };
            tags.entry(TagKey { service, tag: identity.tag() }).or_insert(target);
        }
        tags
    }
}
