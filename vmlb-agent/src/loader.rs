//! From the embedded object to programs in the kernel: maps are made or adopted, programs are always loaded afresh, each
//! when the first device needs it, and [`attach`] swaps them into the links that are pinned.

use anyhow::{Context, bail, ensure};
use aya::maps::MapInfo;
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use vmlb_common::abi::{self, Settings, names};

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

pub mod adopt;
pub mod attach;
mod calls;
pub mod programs;
pub mod resize;
pub mod sizes;

use adopt::Layout;
use programs::Programs;
use resize::{Fresh, Succession};
pub use sizes::Sizes;

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Whether the programs write aya-log lines for each step of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The verifier removes the lines; they cost nothing.
    Off,
    /// Every step of every packet of ours.
    On,
}

/// The loaded object.
#[derive(Debug)]
pub struct Datapath {
    programs: Programs,
    succession: Option<Succession>,
}

impl Datapath {
    /// Loads `object` with its maps pinned under `root`: those that are pinned already are adopted if their layout is what
    /// this agent would make, otherwise nothing is touched. Maps of another size are replaced, with what they hold.
    ///
    /// # Errors
    /// With what to do about it: no object, a map that does not fit, the verifier's last words.
    pub fn load(object: &[u8], root: &PinRoot, sizes: &Sizes, trace: Trace) -> anyhow::Result<Self> {
        ensure!(
            !object.is_empty(),
            "this vmlb was built without its BPF object; build it with `cargo xtask build` (or `cargo xtask build-ebpf` \
             and then `cargo build`)"
        );
        let wanted = layouts(object, sizes)?;
        check_version(root)?;
        let fresh = Fresh::begin(root, adopt::check(root, &wanted)?)?;
        // Kernels before 5.11 count maps against this limit.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            tracing::debug!("the limit of locked memory stays: {error}");
        }
        let pins: Vec<_> = wanted.keys().map(|name| (name, fresh.pin(name))).collect();
        let trace = u8::from(trace == Trace::On);
        let mut loader = EbpfLoader::new();
        loader.override_global("TRACE", &trace, false);
        for (name, pin) in &pins {
            loader.map_pin_path(name.as_str(), pin.as_path());
        }
        for (name, layout) in &wanted {
            loader.map_max_entries(name, layout.max_entries);
        }
        let ebpf = loader.load(object).context(
            "cannot load the BPF object; this needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN before 5.8), and in a \
             container a seccomp profile that allows bpf(2)",
        )?;
        let mut programs = Programs::new(ebpf, root);
        let mut first = programs::EVERYWHERE.to_vec();
        if fresh.is_needed() {
            // Nothing opens a flow while programs are swapped for ones with other maps: the verifier has to be through by then.
            first.extend(programs.of_before());
        }
        let loaded = programs.verify(&first)?;
        let succession = fresh.put_in_place()?;
        programs.publish(&loaded)?;
        Ok(Self { programs, succession })
    }

    /// What is left of maps that were replaced, for whoever swaps the programs: [`Succession::begin`] right before,
    /// [`Succession::finish`] right after. `None`: the programs before use the same maps.
    pub fn succession(&mut self) -> Option<Succession> {
        self.succession.take()
    }

    /// The programs, for attaching.
    pub fn programs_mut(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// The object, for reading its log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        self.programs.ebpf_mut()
    }

    /// One ageing pass over the flow tables.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn sweep(&self) -> anyhow::Result<()> {
        let program: &RawTracePoint = self.programs.get(programs::SWEEP)?.try_into()?;
        program.test_run(RawTracePointRunOptions::new()).context("cannot run the ageing program")?;
        Ok(())
    }
}

/// The layouts of the maps that are pinned: those the ABI names. Others (read-only data, the log's ring) belong to one
/// load of the programs.
fn layouts(object: &[u8], sizes: &Sizes) -> anyhow::Result<adopt::Layouts> {
    let object = aya_obj::Object::parse(object).context("the BPF object is malformed; build it again")?;
    let mut layouts = adopt::Layouts::new();
    for (name, map) in &object.maps {
        if !is_pinned(name) {
            continue;
        }
        let max_entries = sizes.max_entries(name).unwrap_or(map.max_entries());
        let layout = Layout {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            flags: map.map_flags(),
            max_entries,
        };
        layouts.insert(name.clone(), layout);
    }
    Ok(layouts)
}

/// Whether the ABI knows a map of this name.
#[must_use]
pub fn is_pinned(name: &str) -> bool {
    map_names().any(|known| known == name)
}

/// The names of all pinned maps; frontends come first: that is the order of taking down.
pub fn map_names() -> impl Iterator<Item = &'static str> {
    let twins = [
        names::FRONTENDS,
        names::FLOWS,
        names::REPLIES,
        names::HALF_FLOWS,
        names::HALF_REPLIES,
        names::PODS,
        names::NODES,
        names::BACKENDS,
        names::HOPS,
        names::TUNNEL_HOPS,
        names::INHERITED,
        names::RANGES,
        names::AFFINITY,
        names::NEW_AFFINITY,
        names::FRAGMENTS,
    ];
    let single = [
        names::SERVICES,
        names::SLOTS,
        names::TARGETS,
        names::ELIGIBLE,
        names::SERVICE_NAMES,
        names::BACKEND_NAMES,
        names::NEIGHBOURS,
        names::TURNS,
        names::ARRIVALS,
        names::TAGS,
        names::TRAFFIC,
        names::REASONS,
        names::ANSWERS,
        names::SNAT_TRIES,
        names::XDP_CALLS,
        names::TC_CALLS,
        names::CARRIED,
        names::CARRIERS,
        names::DEVICES,
        names::GATE,
        names::SETTINGS,
    ];
    twins.into_iter().flatten().chain(single)
}

/// Refuses the maps of an agent with another ABI before anything is opened by a layout that is not theirs.
fn check_version(root: &PinRoot) -> anyhow::Result<()> {
    let path = root.map(names::SETTINGS);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path).with_context(|| format!("cannot look at map {}", path.display()))?;
    if info.value_size() as usize != size_of::<Settings>() {
        // The layout check names both sizes.
        return Ok(());
    }
    let map: PinnedMap<u32, Settings> = PinnedMap::open(root, names::SETTINGS)?;
    let found = map.get(&0)?.map_or(0, |settings| settings.version);
    if found != 0 && found != abi::VERSION {
        bail!(
            "the maps under {} have layout version {found}, this vmlb has {}: run the vmlb that made them, or take them \
             down with `vmlb detach --pin-root {}` (cuts the connections vmlb carries) and start again",
            root.path().display(),
            abi::VERSION,
            root.path().display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_map_of_the_abi_is_pinned_and_nothing_else() {
        assert_eq!(map_names().count(), 51);
        assert!(is_pinned("flows_v6") && is_pinned("settings"));
        assert!(!is_pinned(".rodata") && !is_pinned("AYA_LOGS"));
    }

    #[test]
    fn a_binary_without_an_object_says_how_to_build_one() {
        let root = PinRoot::new(Path::new("/nonexistent"));
        let error = Datapath::load(&[], &root, &Sizes::default(), Trace::Off).err();
        assert!(error.is_some_and(|error| error.to_string().contains("cargo xtask build")));
    }
}
