//! From the embedded object to programs in the kernel: maps are made or adopted, programs are always loaded afresh, and
//! [`attach`] swaps them into the links that are pinned.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use vmlb_common::abi::{self, Settings, names};

use crate::bpf::PinnedMap;
use crate::pins::{self, PinRoot};

pub mod adopt;
pub mod attach;
mod calls;
pub mod resize;
pub mod sizes;

use adopt::Layout;
use resize::{Fresh, Succession};
pub use sizes::Sizes;

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Names of the programs in the object.
pub mod programs {
    /// XDP of uplinks: the datapath.
    pub const XDP: &str = "vmlb_xdp";
    /// XDP of devices that carry uplinks: the datapath behind tags. Loaded when the first such device is there.
    pub const XDP_CARRIER: &str = "vmlb_xdp_carrier";
    /// TC ingress of uplinks beside XDP: what XDP marked.
    pub const INGRESS: &str = "vmlb_ingress";
    /// TC ingress of uplinks without XDP: the datapath.
    pub const INGRESS_FULL: &str = "vmlb_ingress_full";
    /// TC egress of uplinks: replies of this node's backends.
    pub const EGRESS: &str = "vmlb_egress";
    /// TC ingress of pods' host-side devices.
    pub const POD: &str = "vmlb_pod";
    /// TC ingress of overlays' devices.
    pub const OVERLAY: &str = "vmlb_overlay";
    /// TC ingress of tunnels in IP, whose packets have no Ethernet header.
    pub const OVERLAY_IP: &str = "vmlb_overlay_ip";
    /// One ageing pass over the flow tables; never attached.
    pub const SWEEP: &str = "vmlb_sweep";
    /// What XDP goes on with where it meets a fragment; never attached.
    pub const XDP_FRAGMENT: &str = "vmlb_xdp_fragment";
    /// The same for TC ingress of uplinks.
    pub const INGRESS_FRAGMENT: &str = "vmlb_ingress_fragment";
    /// The same for TC egress of uplinks.
    pub const EGRESS_FRAGMENT: &str = "vmlb_egress_fragment";
    /// The same for TC ingress of pods' host-side devices.
    pub const POD_FRAGMENT: &str = "vmlb_pod_fragment";
    /// All that every node needs.
    pub const ALL: [&str; 12] = [
        XDP,
        INGRESS,
        INGRESS_FULL,
        EGRESS,
        POD,
        OVERLAY,
        OVERLAY_IP,
        SWEEP,
        XDP_FRAGMENT,
        INGRESS_FRAGMENT,
        EGRESS_FRAGMENT,
        POD_FRAGMENT,
    ];
}

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
    ebpf: Ebpf,
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
        let mut ebpf = loader.load(object).context(
            "cannot load the BPF object; this needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN before 5.8), and in a \
             container a seccomp profile that allows bpf(2)",
        )?;
        for name in programs::ALL {
            let program =
                ebpf.program_mut(name).with_context(|| format!("the BPF object has no program {name}"))?;
            load_program(name, program)?;
        }
        let succession = fresh.put_in_place()?;
        for name in programs::ALL {
            if let Some(program) = ebpf.program_mut(name) {
                pin_program(program, &root.program(name))?;
            }
        }
        calls::fill(&ebpf, root)?;
        Ok(Self { ebpf, succession })
    }

    /// What is left of maps that were replaced, for whoever swaps the programs: [`Succession::begin`] right before,
    /// [`Succession::finish`] right after. `None`: the programs before use the same maps.
    pub fn succession(&mut self) -> Option<Succession> {
        self.succession.take()
    }

    /// The object, for attaching and for reading its log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// One ageing pass over the flow tables.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn sweep(&self) -> anyhow::Result<()> {
        let program = self.ebpf.program(programs::SWEEP).context("the BPF object has no sweep program")?;
        let program: &RawTracePoint = program.try_into()?;
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

fn load_program(name: &str, program: &mut Program) -> anyhow::Result<()> {
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        other => bail!(
            "program {name} of the BPF object is of kind {:?}, which vmlb does not use",
            other.prog_type()
        ),
    };
    let Err(error) = loaded else { return Ok(()) };
    if let ProgramError::LoadError { io_error, verifier_log } = &error {
        let log = verifier_log.to_string();
        bail!(
            "the kernel refuses program {name}: {io_error}\n{}\nvmlb needs Linux 5.17 or newer (bpf_loop). If it is, report these lines \
             with the output of `uname -a`",
            last_lines(&log, 20)
        );
    }
    Err(error).with_context(|| format!("cannot load program {name}"))
}

/// Loads and pins a program that most nodes do without, the first time somebody wants it.
///
/// # Errors
/// As [`Datapath::load`].
fn load_when_needed(name: &str, program: &mut Program, root: &PinRoot) -> anyhow::Result<()> {
    if program.fd().is_ok() {
        return Ok(());
    }
    load_program(name, program)?;
    pin_program(program, &root.program(name))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// Pins are for people and tests (`bpftool prog`, program runs); a pin of an earlier load is replaced.
fn pin_program(program: &mut Program, path: &Path) -> anyhow::Result<()> {
    pins::remove(path)?;
    program.pin(path).with_context(|| format!("cannot pin {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_last_words_are_kept() {
        assert_eq!(last_lines("a\nb\n\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }

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
