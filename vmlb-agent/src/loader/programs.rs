//! The programs of the object: which there are, and how each comes into the kernel. The verifier takes its time over the
//! large ones, so a program is loaded when the first device needs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow, bail};
use aya::Ebpf;
use aya::programs::{Program, ProgramError, RawTracePoint, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;

use super::calls;
use crate::pins::{self, PinRoot};

/// XDP of uplinks: the datapath.
pub const XDP: &str = "vmlb_xdp";
/// XDP of devices that carry uplinks: the datapath behind tags.
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
/// The same for TC ingress of overlays' devices.
pub const OVERLAY_FRAGMENT: &str = "vmlb_overlay_fragment";

/// All that are attached or run by name. Those for fragments come with the ones that go on with them.
pub const ALL: [&str; 9] = [XDP, XDP_CARRIER, INGRESS, INGRESS_FULL, EGRESS, POD, OVERLAY, OVERLAY_IP, SWEEP];

/// Loaded at once. The first VM that moves to a node is not to wait for the verifier.
pub(super) const EVERYWHERE: [&str; 2] = [SWEEP, POD];

/// The programs of one loaded object.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    root: PinRoot,
}

impl Programs {
    pub(super) fn new(ebpf: Ebpf, root: &PinRoot) -> Self {
        Self { ebpf, root: root.clone() }
    }

    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Loads and pins those of `names` that are not loaded yet, and the programs they go on with.
    ///
    /// # Errors
    /// With the verifier's last words, when the kernel refuses one.
    pub fn load(&mut self, names: &[&'static str]) -> anyhow::Result<()> {
        let loaded = self.verify(names)?;
        self.publish(&loaded)
    }

    /// A program, loaded or not.
    ///
    /// # Errors
    /// When the object has none of that name.
    pub fn get(&self, name: &str) -> anyhow::Result<&Program> {
        self.ebpf.program(name).with_context(|| format!("the BPF object has no program {name}"))
    }

    /// An XDP program, loaded now if it is not.
    ///
    /// # Errors
    /// As [`Programs::load`].
    pub fn xdp(&mut self, name: &'static str) -> anyhow::Result<&mut Xdp> {
        Ok(self.loaded(name)?.try_into()?)
    }

    /// A program of TC, loaded now if it is not.
    ///
    /// # Errors
    /// As [`Programs::load`].
    pub fn classifier(&mut self, name: &'static str) -> anyhow::Result<&mut SchedClassifier> {
        Ok(self.loaded(name)?.try_into()?)
    }

    /// Lets go what an earlier agent has left of programs that this one has not loaded. Its links must be gone.
    ///
    /// # Errors
    /// When a pin or a slot stays.
    pub fn forget_those_of_before(&self) -> anyhow::Result<()> {
        for name in ALL {
            if !is_loaded(self.get(name)?) {
                pins::remove(&self.root.program(name))?;
            }
        }
        for call in &calls::CALLS {
            if !is_loaded(self.get(call.program)?) {
                call.empty(&self.root)?;
                pins::remove(&self.root.program(call.program))?;
            }
        }
        Ok(())
    }

    /// The programs an earlier agent has used.
    pub(super) fn of_before(&self) -> Vec<&'static str> {
        ALL.into_iter().filter(|name| self.root.program(name).exists()).collect()
    }

    /// Loads those of `names` that are not loaded, and the programs they go on with, side by side: each takes one CPU up to
    /// half a second. The names of those that were loaded; nobody sees them before [`Programs::publish`].
    pub(super) fn verify(&mut self, names: &[&'static str]) -> anyhow::Result<BTreeSet<&'static str>> {
        let mut missing: BTreeSet<&'static str> = names.iter().copied().collect();
        missing.extend(calls::CALLS.iter().filter(|call| call.is_of(names)).map(|call| call.program));
        for name in missing.clone() {
            if is_loaded(self.get(name)?) {
                missing.remove(name);
            }
        }
        let wanted = self.ebpf.programs_mut().filter(|(name, _)| missing.contains(name));
        thread::scope(|scope| {
            let loads: Vec<_> =
                wanted.map(|(name, program)| scope.spawn(move || load(name, program))).collect();
            loads
                .into_iter()
                .try_for_each(|load| load.join().map_err(|_| anyhow!("loading a program has failed"))?)
        })?;
        Ok(missing)
    }

    /// Pins programs that [`Programs::verify`] has loaded, and puts them where others go on with them.
    pub(super) fn publish(&mut self, loaded: &BTreeSet<&'static str>) -> anyhow::Result<()> {
        for name in loaded {
            let path = self.root.program(name);
            pin(self.get_mut(name)?, &path)?;
        }
        for call in calls::CALLS.iter().filter(|call| loaded.contains(call.program)) {
            call.fill(self.get(call.program)?, &self.root)?;
        }
        Ok(())
    }

    fn loaded(&mut self, name: &'static str) -> anyhow::Result<&mut Program> {
        self.load(&[name])?;
        self.get_mut(name)
    }

    fn get_mut(&mut self, name: &str) -> anyhow::Result<&mut Program> {
        self.ebpf.program_mut(name).with_context(|| format!("the BPF object has no program {name}"))
    }
}

fn is_loaded(program: &Program) -> bool {
    program.fd().is_ok()
}

fn load(name: &str, program: &mut Program) -> anyhow::Result<()> {
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

/// Pins are for people and tests (`bpftool prog`, program runs); a pin of an earlier load is replaced. What is kept is the
/// pin's: it is without the instructions, which have no use any more.
fn pin(program: &mut Program, path: &Path) -> anyhow::Result<()> {
    pins::remove(path)?;
    program.pin(path).with_context(|| format!("cannot pin {}", path.display()))?;
    let pinned = match program {
        Program::Xdp(_) => Xdp::from_pin(path, XdpAttachType::Interface).map(Program::Xdp),
        Program::SchedClassifier(_) => SchedClassifier::from_pin(path).map(Program::SchedClassifier),
        Program::RawTracePoint(_) => RawTracePoint::from_pin(path).map(Program::RawTracePoint),
        _ => return Ok(()),
    };
    *program = pinned.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_last_words_are_kept() {
        assert_eq!(last_lines("a\nb\n\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
