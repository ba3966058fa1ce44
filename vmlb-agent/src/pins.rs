//! Where vmlb keeps what outlives its process: the folder of pins on bpffs, and beside it a folder under `/run/vmlb`
//! with what cannot be pinned (the lock of the running agent, its last known state).

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where pins are unless `--pin-root` says otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/vmlb";
const BPFFS: &str = "/sys/fs/bpf";
const RUN: &str = "/run/vmlb";

/// Where on a device a program of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP of an uplink.
    Xdp,
    /// TC ingress of an uplink.
    Ingress,
    /// TC egress of an uplink.
    Egress,
    /// TC ingress of a pod's host-side device.
    Pod,
    /// TC ingress of a device by which pods of other nodes are reached, but no clients.
    Overlay,
}

impl Hook {
    /// Every hook, in the order in which they are taken off a device.
    pub const ALL: [Self; 5] = [Self::Xdp, Self::Ingress, Self::Pod, Self::Overlay, Self::Egress];

    /// The word in the name of the pin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Pod => "pod",
            Self::Overlay => "overlay",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }
}

/// The folder of pins of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRoot {
    path: PathBuf,
}

impl PinRoot {
    /// The pins under `path`; nothing is touched.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything of vmlb is pinned here.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder of links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// The pin of a device's link.
    #[must_use]
    pub fn link(&self, device: &str, hook: Hook) -> PathBuf {
        self.links().join(format!("{}-{}", encode(device), hook.name()))
    }

    /// Device and hook of a pin in [`PinRoot::links`]; `None`: not a name we give.
    #[must_use]
    pub fn link_from_name(name: &str) -> Option<(String, Hook)> {
        let (device, hook) = name.rsplit_once('-')?;
        Some((decode(device)?, Hook::from_name(hook)?))
    }

    /// The folder of programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.path.join("programs")
    }

    /// The pin of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Makes the folders, and mounts bpffs on `/sys/fs/bpf` where it is not mounted and the folder lies there.
    ///
    /// # Errors
    /// When the folder is not on a bpffs and cannot be brought there.
    pub fn create(&self) -> anyhow::Result<()> {
        if !is_on_bpffs(&self.path) {
            if !self.path.starts_with(BPFFS) {
                bail!(
                    "{} is not on a BPF file system; choose a --pin-root under {BPFFS}, or mount one there: \
                     mount -t bpf bpf DIR",
                    self.path.display()
                );
            }
            tracing::info!("mounting the BPF file system on {BPFFS}: it was not mounted");
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(
                || format!("cannot mount the BPF file system on {BPFFS}; this needs root (CAP_SYS_ADMIN)"),
            )?;
        }
        for folder in [self.path.clone(), self.links(), self.programs()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(())
    }

    /// The folder for what cannot be pinned: `/run/vmlb/` and a hash of the pin root's path.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        Path::new(RUN).join(format!("{:016x}", fingerprint(self.path.as_os_str().as_encoded_bytes())))
    }

    /// Takes the place of the one agent of this pin root, for as long as the answer lives.
    ///
    /// # Errors
    /// When another agent has it (the error names its process), or the folder under `/run/vmlb` cannot be written.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let folder = self.runtime();
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}; the agent needs root", folder.display()))?;
        let path = folder.join("lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!(
                "a vmlb agent with pin root {} is running already: process {}",
                self.path.display(),
                read(&mut file)
            );
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Lock { _file: file })
    }

    /// The process of the agent that runs with this pin root, if one does.
    #[must_use]
    pub fn running_agent(&self) -> Option<u32> {
        let mut file = File::open(self.runtime().join("lock")).ok()?;
        match file.try_lock_shared() {
            Ok(()) => None,
            Err(_) => read(&mut file).parse().ok(),
        }
    }
}

/// Proof of being the one agent of a pin root; the kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

fn read(file: &mut File) -> String {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(length) if length > 0 => text,
        _ => "unknown".to_owned(),
    }
}

/// Removes `/run/vmlb` when nothing is in it: the last agent of this node has been taken down.
pub fn forget_runtime_folder() {
    if let Err(error) = fs::remove_dir(RUN) {
        tracing::debug!("{RUN} stays: {error}");
    }
}

/// Whether the folder, or the nearest one above it that exists, is on bpffs.
fn is_on_bpffs(path: &Path) -> bool {
    let Some(folder) = path.ancestors().find(|folder| folder.exists()) else { return false };
    statfs(folder).is_ok_and(|about| about.filesystem_type() == BPF_FS_MAGIC)
}

/// Removes a pin or a file; one that is gone already is fine.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// bpffs refuses names with dots (reserved by the kernel), and VLAN devices have them.
fn encode(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> Option<String> {
    let decoded = name.replace("%2e", ".").replace("%25", "%");
    (encode(&decoded) == name).then_some(decoded)
}

/// FNV-1a, 64 bits: stable over versions of the agent and of Rust, which the standard hashers are not.
fn fingerprint(octets: &[u8]) -> u64 {
    octets
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_dots_and_percents_keeps_its_name() {
        let root = PinRoot::new(Path::new(DEFAULT_ROOT));
        for device in ["eth0", "eth0.100", "a%b", "veth-a-1", "50%25.2e"] {
            let pin = root.link(device, Hook::Egress);
            let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(!name.contains('.'), "{name}");
            assert_eq!(PinRoot::link_from_name(name), Some((device.to_owned(), Hook::Egress)));
        }
    }

    #[test]
    fn a_foreign_pin_among_the_links_is_not_taken_for_ours() {
        for name in ["", "eth0", "eth0-sideways", "eth0%zz-"] {
            assert_eq!(PinRoot::link_from_name(name), None, "{name}");
        }
    }

    #[test]
    fn two_pin_roots_have_different_runtime_folders_that_never_change() {
        let runtime = PinRoot::new(Path::new(DEFAULT_ROOT)).runtime();
        assert_eq!(runtime, PinRoot::new(Path::new(DEFAULT_ROOT)).runtime());
        assert_ne!(runtime, PinRoot::new(Path::new("/sys/fs/bpf/other")).runtime());
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325);
    }
}
