//! Process 1 of guests: loads modules, mounts file systems, and then runs the jobs of a test host or the servers of a VM,
//! whichever the initramfs holds.

mod host;
mod network;

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use vmlb_guest::{job, modules, servers, vm};

fn main() {
    let is_host = Path::new("/").join(job::FOLDER).exists();
    let outcome = prepare().and_then(|()| if is_host { host::run() } else { serve() });
    if let Err(error) = outcome {
        eprintln!("guest-init: {error:#}");
        host::report_broken(&error);
    }
    // With -no-reboot this ends QEMU; process 1 must not return.
    let refused = reboot(RebootMode::RB_AUTOBOOT);
    eprintln!("guest-init: cannot end: {refused:?}");
}

/// The kernel's own file systems, and the modules that the initramfs carries.
fn prepare() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {place}"))?;
    }
    let entries = fs::read_dir(Path::new("/").join(modules::FOLDER)).context("looking for modules")?;
    let mut modules: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for path in modules {
        load(&path).with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

fn load(path: &Path) -> Result<()> {
    // `MODULE_INIT_COMPRESSED_FILE` of linux/module.h, which nix does not name.
    const COMPRESSED: u32 = 4;
    let compressed = path.extension().is_some_and(|suffix| suffix != "ko");
    let flags = ModuleInitFlags::from_bits_retain(if compressed { COMPRESSED } else { 0 });
    finit_module(File::open(path)?, &CString::default(), flags).map_err(Into::into)
}

/// The VM: an address of each family and the servers of every pod.
fn serve() -> Result<()> {
    let name = fs::read_to_string(Path::new("/").join(vm::NAME)).context("reading the VM's name")?;
    network::configure().context("configuring the network")?;
    servers::serve(&name)
}
