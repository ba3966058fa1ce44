//! The BPF file system of the machine: mounted when it is not, unmounted if we did that and nobody has pinned since.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};

/// Where bpffs belongs.
pub const ROOT: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: FsType = FsType(0xcafe_4a11);

/// Whether this process mounted it.
static OURS: Mutex<bool> = Mutex::new(false);

/// Makes sure that bpffs is there and makes the folder `name` in it, one rig node's pin root. The folder also tells
/// other rigs of this process that bpffs is in use.
pub fn pin_root(name: &str) -> Result<PathBuf> {
    let mut ours = OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if statfs(ROOT).with_context(|| format!("looking at {ROOT}"))?.filesystem_type() != MAGIC {
        mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting bpffs on {ROOT}"))?;
        *ours = true;
    }
    let folder = Path::new(ROOT).join(name);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Called by each rig that goes: unmounts a bpffs that this process mounted once it is empty and unused, since
/// unmounting would take other people's pins with it.
pub fn release() {
    let mut ours = OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // A fresh bpffs holds the kernel's own `maps.debug` and `progs.debug`.
    let empty = fs::read_dir(ROOT).is_ok_and(|entries| {
        entries.flatten().all(|entry| entry.file_name().to_string_lossy().ends_with(".debug"))
    });
    if *ours && empty {
        *ours = umount2(ROOT, MntFlags::empty()).is_err();
    }
}
