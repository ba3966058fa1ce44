//! Virtual machines for tests: what is needed to boot one of the distribution's kernels under QEMU without a disk.
//!
//! Two kinds of guest share this. A **test host** ([`job`]) sees the file system of the machine that runs it and runs the
//! same test binaries under another kernel; `cargo xtask test guest` makes it. A **VM** ([`vm`]) is what KubeVirt would
//! run in a launcher pod: 96 MiB, one network device, the [`servers`] of every pod; the tests' `lab` makes it and
//! migrates it.
//!
//! [`kernel`] finds a kernel and its modules, [`archive`] writes the initramfs, [`machine`] starts QEMU, and the program
//! `guest-init`, linked statically, is process 1 of both kinds.

pub mod archive;
pub mod job;
pub mod kernel;
pub mod machine;
pub mod modules;
pub mod servers;
pub mod vm;

/// The architecture that the guests' kernels and programs are for; on others there are no guests.
pub const ARCHITECTURE: &str = "x86_64";
