//! Programs that others go on with. The arrays that name them are pinned and outlive the agent: the kernel empties one when
//! nobody holds it any more. A slot is exchanged in one step, so that programs of an earlier load go on with those of this one.

use anyhow::{Context, bail};
use aya::maps::{Map, MapData, MapError, ProgramArray};
use aya::programs::Program;
use vmlb_common::abi::{FragmentHook, names};

use super::programs;
use crate::pins::PinRoot;

/// A slot and who uses it.
#[derive(Debug)]
pub(super) struct Call {
    array: &'static str,
    slot: u8,
    /// What is in the slot.
    pub(super) program: &'static str,
    by: &'static [&'static str],
}

pub(super) const CALLS: [Call; 5] = [
    Call {
        array: names::XDP_CALLS,
        slot: FragmentHook::XDP,
        program: programs::XDP_FRAGMENT,
        by: &[programs::XDP, programs::XDP_CARRIER],
    },
    Call {
        array: names::TC_CALLS,
        slot: FragmentHook::INGRESS,
        program: programs::INGRESS_FRAGMENT,
        by: &[programs::INGRESS, programs::INGRESS_FULL],
    },
    Call {
        array: names::TC_CALLS,
        slot: FragmentHook::EGRESS,
        program: programs::EGRESS_FRAGMENT,
        by: &[programs::EGRESS],
    },
    Call {
        array: names::TC_CALLS,
        slot: FragmentHook::POD,
        program: programs::POD_FRAGMENT,
        by: &[programs::POD],
    },
    Call {
        array: names::TC_CALLS,
        slot: FragmentHook::slot(FragmentHook::OVERLAY),
        program: programs::OVERLAY_FRAGMENT,
        by: &[programs::OVERLAY, programs::OVERLAY_IP],
    },
];

impl Call {
    /// Whether one of these programs goes on with it.
    pub(super) fn is_of(&self, names: &[&str]) -> bool {
        self.by.iter().any(|by| names.contains(by))
    }

    /// Puts the program of this load into the slot.
    pub(super) fn fill(&self, program: &Program, root: &PinRoot) -> anyhow::Result<()> {
        let descriptor = match program {
            Program::Xdp(program) => program.fd()?,
            Program::SchedClassifier(program) => program.fd()?,
            other => bail!("no program goes on with one of kind {:?}", other.prog_type()),
        };
        self.open(root)?
            .set(u32::from(self.slot), descriptor, 0)
            .with_context(|| format!("cannot put program {} into map {}", self.program, self.array))
    }

    /// Empties the slot; an empty one is fine.
    pub(super) fn empty(&self, root: &PinRoot) -> anyhow::Result<()> {
        match self.open(root)?.clear_index(&u32::from(self.slot)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot take program {} out of map {}", self.program, self.array)),
        }
    }

    fn open(&self, root: &PinRoot) -> anyhow::Result<ProgramArray<MapData>> {
        let data = MapData::from_pin(root.map(self.array))
            .with_context(|| format!("cannot open map {}", self.array))?;
        Ok(ProgramArray::try_from(Map::ProgramArray(data))?)
    }
}
