//! Kernels of the distribution, unpacked side by side into a folder of ours: nothing is installed, and the machine's own
//! boot menu stays as it is.

use std::fs;
use std::path::{Path, PathBuf};

/// The package that names the kernel with every driver there is: bonds, VLANs, tunnels, WireGuard, netem, SCTP.
pub const FULL: &str = "linux-image-amd64";

/// The package that names the kernel with what virtual machines need, small and quick to boot.
pub const CLOUD: &str = "linux-image-cloud-amd64";

/// The variable that names the folder of kernels, one subfolder for each package as [`FULL`] and [`CLOUD`] name it.
pub const FOLDER_VARIABLE: &str = "VMLB_GUEST_KERNELS";

/// The variable that names the program `guest-init`.
pub const INIT_VARIABLE: &str = "VMLB_GUEST_INIT";

/// An unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` will say in the guest.
    pub release: String,
    /// The compressed kernel that QEMU boots.
    pub image: PathBuf,
    /// The folder above `lib/modules`, as `modprobe -d` takes it.
    pub tree: PathBuf,
}

impl Kernel {
    /// The kernel unpacked at `tree`, if it is complete: `depmod` writes its lists last.
    #[must_use]
    pub fn at(tree: &Path) -> Option<Self> {
        let release = release(tree)?;
        let image = tree.join(format!("boot/vmlinuz-{release}"));
        let kernel = Self { release, image, tree: tree.to_owned() };
        (kernel.image.is_file() && kernel.modules().join("modules.dep").is_file()).then_some(kernel)
    }

    /// The folder of the modules and their lists.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.tree.join("lib/modules").join(&self.release)
    }
}

/// The release whose modules are at `tree`, by the folder's name.
#[must_use]
pub fn release(tree: &Path) -> Option<String> {
    fs::read_dir(tree.join("lib/modules")).ok()?.flatten().next()?.file_name().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_complete_once_depmod_has_run() {
        let tree = std::env::temp_dir().join(format!("vmlb-kernel-{}", std::process::id()));
        let modules = tree.join("lib/modules/6.1.0-1-amd64");
        fs::create_dir_all(&modules).expect("a folder");
        fs::create_dir_all(tree.join("boot")).expect("a folder");
        fs::write(tree.join("boot/vmlinuz-6.1.0-1-amd64"), "").expect("a file");
        let before = Kernel::at(&tree);
        fs::write(modules.join("modules.dep"), "").expect("a file");
        let after = Kernel::at(&tree).map(|kernel| kernel.release);
        fs::remove_dir_all(&tree).expect("removed");
        assert_eq!(before, None);
        assert_eq!(after.as_deref(), Some("6.1.0-1-amd64"));
    }
}
