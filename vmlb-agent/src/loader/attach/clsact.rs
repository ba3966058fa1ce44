//! TC programs as filters of a clsact qdisc, for kernels before 6.6. A filter stays without a pin; a later agent replaces
//! it in place by its priority and handle.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use aya::programs::links::Link;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use crate::pins::{Hook, PinRoot};

/// Of our filters: behind those of a CNI that wants to be first (Cilium takes 1), before those of nobody in particular.
const PRIORITY: u16 = 10;
/// Of our filters: `vm`, as a number that no automatic choice gives.
const HANDLE: TcHandle = TcHandle::new(0, NUMBER);
const NUMBER: u16 = 0x766d;

/// Whether a filter of this priority and handle is ours; a dump also has each priority's head, whose handle is 0.
#[must_use]
pub const fn is_ours(priority: u32, handle: u16) -> bool {
    priority == PRIORITY as u32 && (handle == NUMBER || handle == 0)
}

const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Egress => TcAttachType::Egress,
        Hook::Ingress | Hook::Pod | Hook::Overlay | Hook::Xdp => TcAttachType::Ingress,
    }
}

/// Puts the program's filter on the device, or the program into the filter of ours that is there (the kernel swaps the
/// program under its lock, no packet meets none).
///
/// # Errors
/// When the kernel refuses the qdisc or the filter.
pub fn attach(program: &mut SchedClassifier, device: &str, hook: Hook, root: &PinRoot) -> anyhow::Result<()> {
    match qdisc_add_clsact(device) {
        Ok(()) => remember(device, root)?,
        // There is one already, ours or another's.
        Err(error) if tc_number(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot add a clsact qdisc to {device}")),
    }
    let old = SchedClassifierLink::attached(device, direction(hook), PRIORITY, HANDLE, None)
        .with_context(|| format!("there is no device {device}"))?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
            program
                .attach_with_options(device, direction(hook), TcAttachOptions::Netlink(options))
                .with_context(|| format!("cannot add a TC {} filter to {device}", hook.name()))?
        }
    };
    // Dropping the link would remove the filter; it is to stay.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes the filters of ours at a hook; none there is fine.
///
/// # Errors
/// When one is there and stays.
pub fn remove(device: &str, hook: Hook) -> anyhow::Result<()> {
    let filter = SchedClassifierLink::attached(device, direction(hook), PRIORITY, HANDLE, None);
    let Err(error) = filter.map_err(ProgramError::from).and_then(Link::detach) else { return Ok(()) };
    match number(&error) {
        // No such filter, no clsact qdisc there at all, or no such device.
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV | libc::ENXIO) => Ok(()),
        _ => Err(error).with_context(|| format!("cannot remove the TC {} filter from {device}", hook.name())),
    }
}

/// What the system said.
fn number(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::TcError(error) => tc_number(error),
        ProgramError::NetlinkError(error) => error.raw_os_error(),
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}

fn tc_number(error: &TcError) -> Option<i32> {
    match error {
        TcError::IoError(error) => error.raw_os_error(),
        TcError::NetlinkError(error) => error.raw_os_error(),
        _ => None,
    }
}

/// Whether a failed operation means that the device is not there (any more).
#[must_use]
pub fn is_absent_device(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let number = match cause.downcast_ref::<ProgramError>() {
            Some(error) => number(error),
            None => cause.downcast_ref::<TcError>().and_then(tc_number),
        };
        number == Some(libc::ENODEV)
    })
}

fn record(root: &PinRoot) -> PathBuf {
    root.runtime().join("clsact")
}

/// Devices to which vmlb has added a clsact qdisc, for `vmlb detach`.
#[must_use]
pub fn added(root: &PinRoot) -> BTreeSet<String> {
    fs::read_to_string(record(root)).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn remember(device: &str, root: &PinRoot) -> anyhow::Result<()> {
    let mut devices = added(root);
    devices.insert(device.to_owned());
    let path = record(root);
    let lines: Vec<String> = devices.into_iter().collect();
    fs::create_dir_all(root.runtime())
        .and_then(|()| fs::write(&path, lines.join("\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}
