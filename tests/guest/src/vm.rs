//! A VM as KubeVirt runs it behind the masquerade binding: its addresses, and the initramfs that serves there.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::archive::Archive;
use crate::kernel::Kernel;
use crate::modules;

/// The guest's IPv4 address in every launcher pod.
pub const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The launcher's bridge, the guest's gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Length of the IPv4 prefix.
pub const PREFIX_V4: u8 = 24;
/// The guest's IPv6 address in every launcher pod.
pub const V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
/// The launcher's bridge, the guest's gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1);
/// Length of the IPv6 prefix.
pub const PREFIX_V6: u8 = 120;
/// The guest's network device.
pub const DEVICE: &str = "eth0";

/// Where the archive keeps the VM's name.
pub const NAME: &str = "vm";

/// What it takes to have a network device.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// The initramfs of the VM `name`: `init` is the program `guest-init`, which runs the servers there.
///
/// # Errors
/// A module is missing.
pub fn initramfs(kernel: &Kernel, init: &[u8], name: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys"] {
        archive.folder(folder);
    }
    archive.program("init", init);
    archive.file(NAME, name.as_bytes());
    modules::add(&mut archive, kernel, &MODULES)?;
    Ok(archive.finish())
}
