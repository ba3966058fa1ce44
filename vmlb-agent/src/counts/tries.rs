//! Searches for SNAT ports by how many ports they tried: the first sign that ports run short.

use serde::Serialize;
use vmlb_common::abi::{Tries, names};

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

/// Searches since the maps were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SearchCount {
    /// The most ports that these searches tried; absent: all that may be tried, and none was free.
    pub tries: Option<u32>,
    /// Searches, of all CPUs.
    pub searches: u64,
}

impl SearchCount {
    /// The word of a label: a number of tries, or `exhausted`.
    #[must_use]
    pub fn word(&self) -> String {
        self.tries.map_or_else(|| "exhausted".to_owned(), |tries| tries.to_string())
    }
}

/// All of them, by tries.
///
/// # Errors
/// When the map cannot be read.
pub fn read(root: &PinRoot) -> anyhow::Result<Vec<SearchCount>> {
    let map: PinnedMap<u32, u64> = PinnedMap::open(root, names::SNAT_TRIES)?;
    let mut counts = vec![0; Tries::ENTRIES as usize];
    map.each_per_cpu(Tries::ENTRIES, |index, values| {
        if let Some(sum) = counts.get_mut(index as usize) {
            *sum = values.iter().sum();
        }
    })?;
    let bounds = Tries::BOUNDS.into_iter().map(Some).chain([None]);
    Ok(bounds.zip(counts).map(|(tries, searches)| SearchCount { tries, searches }).collect())
}
