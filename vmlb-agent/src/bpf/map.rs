//! A pinned map by the ABI types of its keys and values.

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use aya::maps::MapData;

use super::{MAPPABLE, Plain, Span, delete, lookup, memory, update, update_batch, walk};
use crate::pins::PinRoot;

mod put;

/// A map that is open.
#[derive(Debug)]
pub struct PinnedMap<K, V> {
    name: &'static str,
    data: MapData,
    entries: u32,
    is_mappable: bool,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain + std::fmt::Debug, V: Plain> PinnedMap<K, V> {
    /// Opens the pin `name` under `root`.
    ///
    /// # Errors
    /// When there is no such pin, it may not be opened, or its key or value is not of this size.
    pub fn open(root: &PinRoot, name: &'static str) -> anyhow::Result<Self> {
        let path: PathBuf = root.map(name);
        let data = MapData::from_pin(&path)
            .with_context(|| format!("cannot open map {}; this needs root (CAP_BPF)", path.display()))?;
        let info = data.info()?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        ensure!(
            (key, value) == (size_of::<K>(), size_of::<V>()),
            "map {} has keys of {key} and values of {value} octets, this vmlb knows {} and {}: another version made it, use \
             that one",
            path.display(),
            size_of::<K>(),
            size_of::<V>()
        );
        let is_mappable = info.map_flags() & MAPPABLE != 0;
        Ok(Self { name, entries: info.max_entries(), is_mappable, data, types: PhantomData })
    }

    /// How many entries the map was made for.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.data.fd().as_fd()
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self, key: &K) -> anyhow::Result<Option<V>> {
        lookup(self.fd(), key).with_context(|| format!("cannot read map {} at {key:?}", self.name))
    }

    /// Writes `value` under `key`, whether something is there or not.
    ///
    /// # Errors
    /// When the kernel refuses; a full hash map says "Argument list too long".
    pub fn put(&self, key: &K, value: &V) -> anyhow::Result<()> {
        update(self.fd(), key, value)
            .with_context(|| format!("cannot write map {} ({} entries) at {key:?}", self.name, self.entries))
    }

    /// Removes `key` from a hash map; whether it was there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> anyhow::Result<bool> {
        delete(self.fd(), key).with_context(|| format!("cannot remove {key:?} from map {}", self.name))
    }

    /// Every entry.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all(&self) -> anyhow::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.each(|key, value| {
            entries.push((key, *value));
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    /// Visits entries without keeping them, until `visit` says that it has seen enough.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn each(&self, mut visit: impl FnMut(K, &V) -> ControlFlow<()>) -> anyhow::Result<()> {
        let complete = walk(self.fd(), Span::All, 1, |key: K, values: &[V]| match values.first() {
            Some(value) => visit(key, value),
            None => ControlFlow::Continue(()),
        });
        if complete.with_context(|| format!("cannot read map {}", self.name))? {
            return Ok(());
        }
        for key in self.keys()? {
            if let Some(value) = self.get(&key)?
                && visit(key, &value).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    /// Every entry of a per-CPU map, with the values of all possible CPUs.
    ///
    /// # Errors
    /// When the map cannot be read, or the kernel (before 5.13) cannot read it by batches.
    pub fn all_per_cpu(&self) -> anyhow::Result<Vec<(K, Vec<V>)>> {
        let mut entries = Vec::new();
        self.walk_per_cpu(Span::All, |key, values| entries.push((key, values.to_vec())))?;
        Ok(entries)
    }

    fn walk_per_cpu(&self, span: Span, mut visit: impl FnMut(K, &[V])) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(path))?;
        let complete = walk(self.fd(), span, cpus, |key: K, values: &[V]| {
            visit(key, values);
            ControlFlow::Continue(())
        })
        .with_context(|| format!("cannot read map {}", self.name))?;
        ensure!(complete, "this kernel cannot read map {} by batches; Linux 5.13 is needed", self.name);
        Ok(())
    }

    /// The keys of a hash map, without batches.
    fn keys(&self) -> anyhow::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut key = super::next_key(self.fd(), None)?;
        while let Some(found) = key {
            keys.push(found);
            // A hash whose current key vanishes starts over; what is there twice is read twice.
            ensure!(
                keys.len() <= 2 * self.entries as usize,
                "map {} changes faster than it can be read",
                self.name
            );
            key = super::next_key(self.fd(), Some(&found))?;
        }
        Ok(keys)
    }
}

impl<V: Plain> PinnedMap<u32, V> {
    /// `count` entries of an array from index `first` on.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn run(&self, first: u32, count: u32) -> anyhow::Result<Vec<V>> {
        let mut run = Vec::new();
        let complete = walk(self.fd(), Span::Run(first, count), 1, |_: u32, values: &[V]| {
            run.extend(values.first().copied());
            ControlFlow::Continue(())
        })
        .with_context(|| format!("cannot read {count} entries of map {} from {first}", self.name))?;
        if complete {
            return Ok(run);
        }
        (first..first.saturating_add(count)).filter_map(|index| self.get(&index).transpose()).collect()
    }

    /// Visits the first `count` entries of a per-CPU array with the values of all possible CPUs.
    ///
    /// # Errors
    /// When the map cannot be read, or the kernel (before 5.13) cannot read it by batches.
    pub fn each_per_cpu(&self, count: u32, visit: impl FnMut(u32, &[V])) -> anyhow::Result<()> {
        self.walk_per_cpu(Span::Run(0, count.min(self.entries)), visit)
    }

    /// Writes a run of entries of an array from index `first` on.
    ///
    /// # Errors
    /// When the kernel refuses, or the run does not fit.
    pub fn put_run(&self, first: u32, values: &[V]) -> anyhow::Result<()> {
        let count = u32::try_from(values.len())?;
        let end = first.checked_add(count).filter(|end| *end <= self.entries);
        let end = end.with_context(|| {
            format!("{count} entries from {first} do not fit into map {} of {}", self.name, self.entries)
        })?;
        if self.is_mappable {
            return memory::store(self.fd(), first, values)
                .with_context(|| format!("cannot write {count} entries of map {} from {first}", self.name));
        }
        let keys: Vec<u32> = (first..end).collect();
        let written = update_batch(self.fd(), &keys, values)
            .with_context(|| format!("cannot write {count} entries of map {} from {first}", self.name))?;
        if written.is_none() {
            for (key, value) in keys.iter().zip(values) {
                self.put(key, value)?;
            }
        }
        Ok(())
    }
}
