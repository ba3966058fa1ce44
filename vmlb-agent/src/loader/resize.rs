//! Maps of another size than those that are pinned: made beside them, filled while the programs of the agent before go on
//! with theirs, put in their place, and filled again with what has changed until the programs were swapped.
//!
//! Under the folder of pins, `fresh/` holds maps that are being made, and `retired/N/` those that were replaced but that
//! programs may still use. An agent that is killed in between leaves these folders; the next one throws `fresh/` away
//! and takes over whatever `retired/` holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use aya::maps::MapInfo;
use vmlb_common::abi::{Selection, Service, ServiceFlags, names};

use super::{Sizes, map_names};
use crate::bpf::{self, PinnedMap};
use crate::pins::{self, PinRoot};

mod copy;
mod merge;

const FRESH: &str = "fresh";
const RETIRED: &str = "retired";

/// What packets change, beside flows.
const COUNTED: [&str; 10] = [
    names::INHERITED[0],
    names::INHERITED[1],
    names::AFFINITY[0],
    names::AFFINITY[1],
    names::NEW_AFFINITY[0],
    names::NEW_AFFINITY[1],
    names::TURNS,
    names::TRAFFIC,
    names::REASONS,
    names::SNAT_TRIES,
];

/// Maps that are being made for the place of pinned ones.
#[derive(Debug)]
pub struct Fresh {
    root: PinRoot,
    folder: PinRoot,
    names: BTreeSet<&'static str>,
}

impl Fresh {
    /// Makes ready for maps in the place of `names`; what an unfinished attempt left is thrown away.
    ///
    /// # Errors
    /// When the folders cannot be made or emptied.
    pub fn begin(root: &PinRoot, mut names: BTreeSet<&'static str>) -> anyhow::Result<Self> {
        let folder = PinRoot::new(&root.path().join(FRESH));
        remove_folder(folder.path())?;
        if names.iter().any(|name| is_flow_table(name)) {
            // A flow goes from one table to another, and what programs of before and of now share would be gone for one of
            // them.
            names.extend(map_names().filter(|name| is_flow_table(name)));
            // With a table of services of their own the old programs can be told to open nothing any more.
            names.insert(names::SERVICES);
        }
        if !names.is_empty() {
            fs::create_dir(folder.path())
                .with_context(|| format!("cannot create {}", folder.path().display()))?;
        }
        Ok(Self { root: root.clone(), folder, names })
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.names.is_empty()
    }

    /// Where a map of that name is to be pinned by the loader.
    #[must_use]
    pub fn pin(&self, name: &str) -> PathBuf {
        if self.names.contains(name) { self.folder.map(name) } else { self.root.map(name) }
    }

    /// Fills the maps and puts them in the place of the old ones.
    ///
    /// # Errors
    /// When what is in use has no room (nothing has changed then), or a pin cannot be moved.
    pub fn put_in_place(self) -> anyhow::Result<Option<Succession>> {
        for name in &self.names {
            if let Err(error) = copy::mirror(name, &self.root, &self.folder) {
                remove_folder(self.folder.path())?;
                let entries = look_at(&self.root.map(name))?.max_entries();
                let remedy = Sizes::flag(name).map_or_else(
                    || "detach first".to_owned(),
                    |flag| {
                        format!("keep it with {flag} {}, or detach first", Sizes::flag_value(name, entries))
                    },
                );
                return Err(error
                    .context(format!("the maps cannot have these sizes (nothing was changed): {remedy}")));
            }
        }
        if !self.names.is_empty() {
            let retired = next_generation(&self.root)?;
            // Services first: where they are retired the old programs can be told to open nothing.
            let order = map_names().filter(|name| self.names.contains(name));
            let services = self.names.get(names::SERVICES).copied();
            for name in services.into_iter().chain(order.filter(|name| *name != names::SERVICES)) {
                let (old, new) = (self.root.map(name), self.folder.map(name));
                fs::hard_link(&old, retired.map(name))
                    .and_then(|()| fs::rename(&new, &old))
                    .with_context(|| format!("cannot put {} in its place", new.display()))?;
            }
            remove_folder(self.folder.path())?;
        }
        Succession::adopt(&self.root, &self.names)
    }
}

/// Retired maps, until no program uses them any more.
#[derive(Debug)]
pub struct Succession {
    root: PinRoot,
    /// Oldest first.
    retired: Vec<PinRoot>,
    /// Replaced by this very agent: no packet meets their successors yet.
    replaced: BTreeSet<&'static str>,
    halted: Vec<Halted>,
}

impl Succession {
    fn adopt(root: &PinRoot, replaced: &BTreeSet<&'static str>) -> anyhow::Result<Option<Self>> {
        let retired = generations(root)?;
        for folder in &retired {
            for name in map_names().filter(|name| folder.map(name).exists()) {
                // The agent was killed between the two steps of retiring it: it is the one in use.
                if look_at(&folder.map(name))?.id() == look_at(&root.map(name))?.id() {
                    pins::remove(&folder.map(name))?;
                }
            }
        }
        if retired.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { root: root.clone(), retired, replaced: replaced.clone(), halted: Vec::new() }))
    }

    /// To be called right before the programs are swapped: from now on the old ones open no flow (a client tries again a
    /// second later), and what they have opened is in the new tables. A packet in mid-flow that a new program does not know
    /// would be punted, and the stack answers a reset.
    pub fn begin(&mut self) {
        for folder in self.retired.iter().filter(|folder| folder.map(names::SERVICES).exists()) {
            match PinnedMap::open(folder, names::SERVICES).and_then(Halted::halt) {
                Ok(halted) => self.halted.push(halted),
                Err(error) => tracing::warn!("connections that open now may be cut: {error:#}"),
            }
        }
        // One that has read its service before is about to open a flow.
        bpf::wait_for_programs();
        let Some((newest, older)) = self.retired.split_last() else { return };
        for name in self.replaced.iter().filter(|name| COUNTED.contains(name)) {
            if let Err(error) = copy::mirror(name, newest, &self.root) {
                tracing::warn!("what was counted in the last moments is lost: {error:#}");
            }
        }
        if self.replaced.iter().any(|name| is_flow_table(name))
            && let Err(error) = merge::mirror(newest, &self.root)
        {
            tracing::warn!("flows of the last moments may be cut: {error:#}");
        }
        let unmirrored = if self.replaced.is_empty() { Some(newest) } else { None };
        for folder in older.iter().chain(unmirrored) {
            self.complain(folder, merge::merge(folder, &self.root));
        }
    }

    /// Flows are what this is about, but an agent that does not start for a lack of room for some would cost all.
    fn complain(&self, folder: &PinRoot, done: anyhow::Result<usize>) -> usize {
        done.unwrap_or_else(|error| {
            tracing::warn!(
                "flows may be cut: those of {} are not all taken over: {error:#}",
                folder.path().display()
            );
            0
        })
    }

    /// To be called when the programs have been swapped: takes over what became of the flows meanwhile, and lets the retired
    /// maps go.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn finish(mut self) -> anyhow::Result<()> {
        // Those that were swapped may still be running.
        bpf::wait_for_programs();
        let late = self.retired.iter();
        let late: usize = late.map(|folder| self.complain(folder, merge::catch_up(folder, &self.root))).sum();
        // No program looks there any more.
        self.halted.clear();
        for folder in &self.retired {
            remove_folder(folder.path())?;
        }
        remove_folder(&self.root.path().join(RETIRED))?;
        tracing::info!("the maps have their new sizes; {late} flows were proved at the last moment");
        Ok(())
    }
}

impl Drop for Succession {
    /// The programs were not swapped: the old ones go on as before.
    fn drop(&mut self) {
        for Halted { map, services } in &self.halted {
            for (id, service) in services {
                if let Err(error) = map.put(id, service) {
                    tracing::error!("service {id} takes no connections until the next start: {error:#}");
                }
            }
        }
    }
}

/// Services of the old programs, told to open nothing.
#[derive(Debug)]
struct Halted {
    map: PinnedMap<u32, Service>,
    /// As they were before.
    services: Vec<(u32, Service)>,
}

impl Halted {
    /// Has every service drop what would open a flow.
    fn halt(map: PinnedMap<u32, Service>) -> anyhow::Result<Self> {
        let mut services = map.all()?;
        services.retain(|(_, service)| *service != Service::default());
        for (id, service) in &services {
            let flags = service.flags | ServiceFlags::DROP_IF_EMPTY;
            map.put(id, &Service { selection: Selection::default(), flags, ..*service })?;
        }
        Ok(Self { map, services })
    }
}

fn is_flow_table(name: &str) -> bool {
    [names::FLOWS, names::REPLIES, names::HALF_FLOWS, names::HALF_REPLIES]
        .iter()
        .flatten()
        .any(|one| *one == name)
}

fn look_at(pin: &Path) -> anyhow::Result<MapInfo> {
    MapInfo::from_pin(pin).with_context(|| format!("cannot look at map {}", pin.display()))
}

fn generations(root: &PinRoot) -> anyhow::Result<Vec<PinRoot>> {
    let folder = root.path().join(RETIRED);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers.into_iter().map(|number| PinRoot::new(&folder.join(number.to_string()))).collect())
}

fn next_generation(root: &PinRoot) -> anyhow::Result<PinRoot> {
    let newest = generations(root)?.pop();
    let newest = newest.and_then(|root| root.path().file_name()?.to_str()?.parse::<u32>().ok()).unwrap_or(0);
    let path = root.path().join(RETIRED).join((newest + 1).to_string());
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(PinRoot::new(&path))
}

/// Every folder of maps under `root` beside the maps in use: an unfinished change of sizes.
///
/// # Errors
/// When a folder cannot be read.
pub fn leftovers(root: &PinRoot) -> anyhow::Result<Vec<PinRoot>> {
    let fresh = PinRoot::new(&root.path().join(FRESH));
    let mut folders: Vec<PinRoot> = fresh.exists().then_some(fresh).into_iter().collect();
    folders.extend(generations(root)?);
    Ok(folders)
}

/// Removes what [`leftovers`] finds.
///
/// # Errors
/// When something stays.
pub fn remove_leftovers(root: &PinRoot) -> anyhow::Result<()> {
    for folder in leftovers(root)? {
        remove_folder(folder.path())?;
    }
    remove_folder(&root.path().join(RETIRED))
}

fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        pins::remove(&entry?.path())?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
