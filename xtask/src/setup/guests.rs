//! What guests of the tests need: QEMU, and kernels of the distribution, which are downloaded and unpacked but not
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use vmlb_guest::kernel::{self, Kernel};
use vmlb_guest::{ARCHITECTURE, machine};

use super::linker;
use super::packages::{self, Need};
use crate::command;

/// The commands that guests take, beyond those of every test.
const COMMANDS: [Need; 2] = [
    Need { command: machine::QEMU, packages: &["qemu-system-x86"], purpose: "runs the guests of the tests" },
    Need { command: "depmod", packages: &["kmod"], purpose: "finds the modules of a guest's kernel" },
];

/// The folder of kernels, one subfolder for each package that names one.
pub fn folder() -> PathBuf {
    linker::cache().join("kernels")
}

/// The kernel that the package `name` stands for and QEMU, installed or downloaded where missing.
///
/// # Errors
/// Something is missing and cannot be had here.
pub fn ready(name: &str) -> Result<Kernel> {
    if std::env::consts::ARCH != ARCHITECTURE {
        bail!("guests are made for {ARCHITECTURE} only, this machine is {}", std::env::consts::ARCH);
    }
    let missing: Vec<_> = COMMANDS.iter().filter(|need| packages::locate(need).is_none()).collect();
    if !missing.is_empty() {
        packages::install_commands(&missing)?;
    }
    let tree = folder().join(name);
    match Kernel::at(&tree) {
        Some(kernel) => Ok(kernel),
        None => download(name, &tree).with_context(|| format!("getting a kernel for guests ({name})")),
    }
}

/// The kernels that every test takes.
///
/// # Errors
/// As [`ready`].
pub fn ready_for_tests() -> Result<Vec<Kernel>> {
    [kernel::FULL, kernel::CLOUD].into_iter().map(ready).collect()
}

/// Whether everything is there.
pub fn are_there() -> bool {
    let kernels = [kernel::FULL, kernel::CLOUD].iter().all(|name| Kernel::at(&folder().join(name)).is_some());
    kernels && COMMANDS.iter().all(|need| packages::locate(need).is_some())
}

/// Prints what is there, one line a thing; whether it is all.
pub fn check() -> bool {
    let mut complete = true;
    for need in &COMMANDS {
        match packages::locate(need) {
            Some(file) => println!("ok       {:10} {}", need.command, file.display()),
            None => {
                println!("MISSING  {:10} package {}: {}", need.command, need.packages[0], need.purpose);
                complete = false;
            }
        }
    }
    for name in [kernel::FULL, kernel::CLOUD] {
        let tree = folder().join(name);
        match Kernel::at(&tree) {
            Some(kernel) => println!("ok       {:10} {} in {}", "kernel", kernel.release, tree.display()),
            None => {
                println!("MISSING  {:10} {name}, unpacked into {}", "kernel", tree.display());
                complete = false;
            }
        }
    }
    complete
}

/// Downloads the package that `name` depends on and unpacks it to `tree`.
fn download(name: &str, tree: &Path) -> Result<Kernel> {
    let package = match image(name) {
        Some(package) => package,
        None => {
            packages::refresh()?;
            image(name).context("apt knows no such kernel; guests run those of Debian and take apt-get")?
        }
    };
    println!("kernel for guests: {package} is unpacked into {} (it is not installed).", tree.display());
    let new = tree.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&new)?;
    let unpacked = fetch(&package, &new);
    if unpacked.is_ok() {
        // What an interrupted run left is in the way of the new one.
        let _absent = fs::remove_dir_all(tree);
        fs::rename(&new, tree)?;
    } else {
        let _absent = fs::remove_dir_all(&new);
    }
    unpacked?;
    Kernel::at(tree).with_context(|| format!("{package} has no kernel where it was expected"))
}

/// The package of the kernel itself.
fn image(name: &str) -> Option<String> {
    let mut depends = Command::new("apt-cache");
    let listed = command::output(depends.args(["depends", "--important", name]).env("LC_ALL", "C"))?;
    listed
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|rest| format!("linux-image-{rest}"))
}

/// Fills the folder `tree` with the contents of `package` and the lists of its modules.
fn fetch(package: &str, tree: &Path) -> Result<()> {
    let mut download = Command::new("apt-get");
    download.args(["-q", "download", package]).current_dir(tree);
    if command::run_aloud(&mut download).is_err() {
        // A list that is older than the archive names files that have gone.
        packages::refresh()?;
        command::run_aloud(&mut download)?;
    }
    let archive = fs::read_dir(tree)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some("deb".as_ref()));
    let archive = archive.with_context(|| format!("apt-get downloaded no {package}"))?;
    command::run_aloud(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(tree))?;
    fs::remove_file(archive)?;
    let release = kernel::release(tree).with_context(|| format!("{package} has no modules"))?;
    let depmod = command::find("depmod").context("kmod was installed, but there is no depmod")?;
    command::run_aloud(Command::new(depmod).arg("-b").arg(tree).arg(release))
}
