//! bpf-linker: one that reads the bitcode of a given LLVM, found or built.
//!
//! LLVM reads bitcode of its own and of older versions, so a linker of the compiler's LLVM or a newer one will do.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use object::{Object as _, ObjectSection as _};

use super::packages;
use super::toolchain::Toolchain;
use crate::command;

/// The release that is built; the BTF of others may differ.
const VERSION: &str = "0.13.0";

/// The LLVM majors that this release can be built for.
const SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;

/// A linker for the bitcode of LLVM `llvm`: ours, else one on the `PATH` or in cargo's folder.
pub fn find(llvm: u32) -> Option<PathBuf> {
    let ours = folder(llvm).join("bin/bpf-linker");
    if starts(&ours) {
        return Some(ours);
    }
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let folders = command::folders().into_iter().chain(cargo.map(|home| home.join("bin")));
    let mut linkers =
        folders.map(|folder| folder.join("bpf-linker")).filter(|file| command::is_executable(file));
    linkers.find(|file| llvm_of(file).is_some_and(|found| found >= llvm) && starts(file))
}

/// Where we keep the linker for one LLVM.
fn folder(llvm: u32) -> PathBuf {
    cache().join(format!("bpf-linker-{VERSION}-llvm-{llvm}"))
}

/// Where we keep what takes long to build or download: outside `target`, so that `cargo clean` and a second clone do not
/// cost it again.
pub fn cache() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    cache.map_or_else(|| command::workspace().join("target/tools"), |cache| cache.join("vmlb"))
}

/// Whether it runs at all: its LLVM library may have been removed since.
fn starts(linker: &Path) -> bool {
    command::is_executable(linker)
        && command::output(Command::new(linker).arg("--version").env_remove("LD_LIBRARY_PATH")).is_some()
}

/// The LLVM that a linker is built with, which it does not tell when asked: by the library it loads, or by the
/// identification that an LLVM linked in would write into bitcode.
fn llvm_of(linker: &Path) -> Option<u32> {
    let bytes = fs::read(linker).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    let sections =
        [".dynstr", ".rodata"].into_iter().filter_map(|name| file.section_by_name(name)?.data().ok());
    sections.into_iter().find_map(llvm_in_strings)
}

/// The major version in `libLLVM.so.22.1`, `libLLVM-22.so` or `LLVM22.1.8`.
fn llvm_in_strings(strings: &[u8]) -> Option<u32> {
    let after =
        strings.windows(4).enumerate().filter(|(_, word)| word == b"LLVM").map(|(at, _)| &strings[at + 4..]);
    after.into_iter().find_map(|rest| {
        let rest = rest.strip_prefix(b".so.").or_else(|| rest.strip_prefix(b"-")).unwrap_or(rest);
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let ends = rest.get(digits).is_some_and(|&byte| byte == b'.');
        let number = std::str::from_utf8(&rest[..digits]).ok()?;
        number.parse().ok().filter(|major| ends && (10..100).contains(major))
    })
}

/// Whether [`build`] can get what it needs for this toolchain.
pub fn can_build(toolchain: &Toolchain) -> bool {
    SUPPORTED.contains(&toolchain.llvm)
        && (has_development_files(toolchain.llvm)
            || packages::candidate(&packages::llvm(toolchain.llvm)[0]).is_some())
}

/// Whether LLVM's headers and `llvm-config` are here.
fn has_development_files(llvm: u32) -> bool {
    let prefix = prefix(llvm);
    prefix.join("bin/llvm-config").exists() && prefix.join("include/llvm-c/Core.h").exists()
}

/// Where Debian and Ubuntu (and apt.llvm.org) put one LLVM.
fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// Builds the linker for the LLVM of `toolchain` with that toolchain.
///
/// # Errors
/// Packages cannot be installed, or the build fails.
pub fn build(toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm;
    println!("bpf-linker: none here reads LLVM {llvm}; building {VERSION} for it (a minute or two).");
    let needed = packages::llvm(llvm);
    if !needed.iter().all(|name| packages::is_installed(name)) {
        packages::install(&needed)?;
    }
    let root = folder(llvm);
    fs::create_dir_all(&root)?;
    let mut cargo = toolchain.cargo();
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&root)
        // Away from the workspace, whose configuration is not meant for this.
        .current_dir(&root)
        .env("LLVM_PREFIX", prefix(llvm));
    command::run_aloud(&mut cargo)
}

#[cfg(test)]
mod tests {
    use super::llvm_in_strings;

    #[test]
    fn a_shared_llvm_is_told_by_its_librarys_name() {
        assert_eq!(llvm_in_strings(b"\0libc.so.6\0libLLVM.so.22.1\0LLVM_22.1\0"), Some(22));
        assert_eq!(llvm_in_strings(b"\0libLLVM-19.so.1\0"), Some(19));
    }

    #[test]
    fn a_static_llvm_is_told_by_the_identification_it_writes() {
        assert_eq!(llvm_in_strings(b"Invalid LLVM file, LLVM IR\0LLVM23.1.0-rust\0"), Some(23));
    }

    #[test]
    fn text_about_llvm_is_no_version() {
        assert_eq!(llvm_in_strings(b"LLVM ERROR: LLVM-\0LLVM1\0LLVM"), None);
    }
}
