//! Traffic of backends.

use std::collections::BTreeMap;

use vmlb_common::abi::{Traffic, names};

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

/// Map `traffic`, open.
#[derive(Debug)]
pub struct TrafficMap(PinnedMap<u32, Traffic>);

impl TrafficMap {
    /// Opens it.
    ///
    /// # Errors
    /// When it is not pinned or of another layout.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        Ok(Self(PinnedMap::open(root, names::TRAFFIC)?))
    }

    /// Begins to count a backend anew.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear(&self, id: u32) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(path))?;
        self.0.put_per_cpu(&id, &vec![Traffic::default(); cpus])
    }

    /// What each of the backends with ids below `end` has had, of all CPUs together; those without any are left out.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self, end: u32) -> anyhow::Result<BTreeMap<u32, Traffic>> {
        let mut sums = BTreeMap::new();
        self.0.each_per_cpu(end, |id, values| {
            let sum = values.iter().copied().reduce(add).unwrap_or_default();
            if sum != Traffic::default() {
                sums.insert(id, sum);
            }
        })?;
        Ok(sums)
    }
}

/// Both together.
#[must_use]
pub fn add(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        requests: one.requests.wrapping_add(other.requests),
        request_octets: one.request_octets.wrapping_add(other.request_octets),
        replies: one.replies.wrapping_add(other.replies),
        reply_octets: one.reply_octets.wrapping_add(other.reply_octets),
        opened: one.opened.wrapping_add(other.opened),
    }
}
