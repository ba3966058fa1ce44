//! Who gets how much of the selection tables.

use std::collections::{BTreeMap, HashMap};

use vmlb_common::abi::{Service, Target, names};

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;
use crate::tables::selection_of;

/// Maps `services` and `slots`, open.
pub(super) struct Selections {
    services: PinnedMap<u32, Service>,
    slots: PinnedMap<u32, Target>,
}

/// One Service port's table.
pub(super) struct Selection {
    /// [`vmlb_common::abi::ServiceFlags`].
    pub flags: u32,
    /// Seconds for which a client stays with a target; 0: it does not.
    pub affinity: u32,
    /// How many slots each target has, by backend and port.
    pub targets: BTreeMap<Target, usize>,
    /// All of them.
    pub size: usize,
}

impl Selections {
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        Ok(Self {
            services: PinnedMap::open(root, names::SERVICES)?,
            slots: PinnedMap::open(root, names::SLOTS)?,
        })
    }

    /// The table of a service id.
    pub fn read(&self, id: u32) -> anyhow::Result<Selection> {
        let service = self.services.get(&id)?.unwrap_or_default();
        let slots = match selection_of(&service) {
            Some(selection) => self.slots.run(selection.offset, selection.size)?,
            None => Vec::new(),
        };
        // Counted by hash, sorted once: a table has far more slots than targets.
        let mut counts: HashMap<Target, usize> = HashMap::new();
        for target in &slots {
            *counts.entry(*target).or_insert(0) += 1;
        }
        Ok(Selection {
            flags: service.flags,
            affinity: service.affinity,
            targets: counts.into_iter().collect(),
            size: slots.len(),
        })
    }
}

/// A part of a whole in percent, to a tenth.
pub(super) fn percent(part: usize, whole: usize) -> f64 {
    let tenths = u32::try_from(part.saturating_mul(1000) / whole.max(1)).unwrap_or(1000);
    f64::from(tenths) / 10.0
}
