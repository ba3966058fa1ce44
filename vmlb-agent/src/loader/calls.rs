//! Programs that others go on with. The arrays that name them are pinned and outlive the agent: the kernel empties one when
//! nobody holds it any more. A slot is exchanged in one step, so that programs of an earlier load go on with those of this one.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{Program, ProgramFd};
use vmlb_common::abi::{FragmentHook, names};

use super::programs;
use crate::pins::PinRoot;

/// Array, slot, program.
const CALLS: [(&str, u8, &str); 4] = [
    (names::XDP_CALLS, FragmentHook::XDP, programs::XDP_FRAGMENT),
    (names::TC_CALLS, FragmentHook::INGRESS, programs::INGRESS_FRAGMENT),
    (names::TC_CALLS, FragmentHook::EGRESS, programs::EGRESS_FRAGMENT),
    (names::TC_CALLS, FragmentHook::POD, programs::POD_FRAGMENT),
];

/// Puts the programs of this load into the arrays.
pub(super) fn fill(ebpf: &Ebpf, root: &PinRoot) -> anyhow::Result<()> {
    for (array, slot, name) in CALLS {
        let program = ebpf.program(name).with_context(|| format!("the BPF object has no program {name}"))?;
        let data = MapData::from_pin(root.map(array)).with_context(|| format!("cannot open map {array}"))?;
        let mut calls = ProgramArray::try_from(Map::ProgramArray(data))?;
        calls
            .set(u32::from(slot), descriptor(program)?, 0)
            .with_context(|| format!("cannot put program {name} into map {array}"))?;
    }
    Ok(())
}

fn descriptor(program: &Program) -> anyhow::Result<&ProgramFd> {
    Ok(match program {
        Program::Xdp(program) => program.fd()?,
        Program::SchedClassifier(program) => program.fd()?,
        other => anyhow::bail!("no program goes on with one of kind {:?}", other.prog_type()),
    })
}
