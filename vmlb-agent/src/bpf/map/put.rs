//! Writes that are more than a replacement.

use anyhow::{Context, ensure};

use super::PinnedMap;
use crate::bpf::{EntryAttr, MAP_UPDATE_ELEM, Plain, bpf, descriptor};

/// `BPF_NOEXIST`.
const ONLY_NEW: u64 = 1;

impl<K: Plain + std::fmt::Debug, V: Plain> PinnedMap<K, V> {
    /// Writes `value` under `key` unless something is there; whether it was written.
    ///
    /// # Errors
    /// As [`PinnedMap::put`].
    pub fn put_new(&self, key: &K, value: &V) -> anyhow::Result<bool> {
        match self.put_at(key, std::slice::from_ref(value), ONLY_NEW) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error).with_context(|| {
                format!("cannot write map {} ({} entries) at {key:?}", self.name, self.entries)
            }),
        }
    }

    /// Writes the values of all possible CPUs under `key` of a per-CPU map.
    ///
    /// # Errors
    /// When the kernel refuses, or it has another number of CPUs than there are values.
    pub fn put_per_cpu(&self, key: &K, values: &[V]) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(path))?;
        ensure!(values.len() == cpus, "{} values for {cpus} CPUs", values.len());
        ensure!(size_of::<V>().is_multiple_of(8), "the kernel pads values of {} octets", size_of::<V>());
        self.put_at(key, values, 0).with_context(|| format!("cannot write map {} at {key:?}", self.name))
    }

    fn put_at(&self, key: &K, values: &[V], flags: u64) -> std::io::Result<()> {
        let mut attr = EntryAttr {
            map_fd: descriptor(self.fd())?,
            key: std::ptr::from_ref(key).expose_provenance() as u64,
            value: values.as_ptr().expose_provenance() as u64,
            flags,
            ..EntryAttr::default()
        };
        bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
    }
}
