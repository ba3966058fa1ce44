//! Which devices carry which, in maps `carried` and `carriers`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use vmlb_common::abi::{Carried, CarriedKey, Carrier, names};

use crate::bpf::{PinnedMap, Plain};
use crate::interface::footing::{Footing, Seat};
use crate::interface::{Interfaces, Link};
use crate::pins::PinRoot;

/// Both maps, and what is in them.
#[derive(Debug)]
pub struct Carriage {
    carried: Table<CarriedKey, Carried>,
    carriers: Table<u32, Carrier>,
}

impl Carriage {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When they are not pinned or cannot be read.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        Ok(Self {
            carried: Table::open(root, names::CARRIED)?,
            carriers: Table::open(root, names::CARRIERS)?,
        })
    }

    /// Has the maps say that of these uplinks. What is not written now is tried again the next time.
    pub fn set<'a>(
        &mut self,
        interfaces: &Interfaces,
        uplinks: impl Iterator<Item = (&'a Link, &'a Footing, Seat)>,
    ) {
        let (mut carried, mut carriers) = (BTreeMap::new(), BTreeMap::new());
        for (link, footing, seat) in uplinks {
            carried.extend(footing.carried(interfaces, link, seat));
            carriers.insert(link.ifindex, footing.carrier());
        }
        let written = self.carriers.set(carriers).and_then(|()| self.carried.set(carried));
        if let Err(error) = written {
            tracing::error!("{error:#}");
        }
    }
}

#[derive(Debug)]
struct Table<K, V> {
    map: PinnedMap<K, V>,
    entries: BTreeMap<K, V>,
}

impl<K: Plain + Debug + Ord, V: Plain + PartialEq> Table<K, V> {
    fn open(root: &PinRoot, name: &'static str) -> anyhow::Result<Self> {
        let map: PinnedMap<K, V> = PinnedMap::open(root, name)?;
        let entries = map.all()?.into_iter().collect();
        Ok(Self { map, entries })
    }

    fn set(&mut self, wanted: BTreeMap<K, V>) -> anyhow::Result<()> {
        let gone: BTreeSet<K> =
            self.entries.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.map.remove(&key)?;
            self.entries.remove(&key);
        }
        for (key, value) in wanted {
            if self.entries.get(&key) != Some(&value) {
                self.map.put(&key, &value)?;
                self.entries.insert(key, value);
            }
        }
        Ok(())
    }
}
