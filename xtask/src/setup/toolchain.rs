//! Rust compilers on this machine, and which of them can build `core` for BPF.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;

/// The oldest compiler that builds vmlb.
pub const MINIMUM: Release = Release(1, minor(env!("CARGO_PKG_RUST_VERSION")));

/// A compiler's version without its patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The second number of a version such as `1.92`.
const fn minor(version: &str) -> u32 {
    let bytes = version.as_bytes();
    let mut at = 2;
    let mut number = 0;
    while at < bytes.len() && bytes[at].is_ascii_digit() {
        number = number * 10 + (bytes[at] - b'0') as u32;
        at += 1;
    }
    number
}

/// A rustc and the cargo beside it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// Its cargo, if it has one.
    cargo: Option<PathBuf>,
    /// The name rustup knows it by, if it is rustup's.
    pub rustup: Option<String>,
    release: Release,
    nightly: bool,
    /// Major version of its LLVM.
    pub llvm: u32,
    sources: bool,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Release(major, minor) = self.release;
        write!(f, "{} {major}.{minor}, LLVM {}", self.rustc.display(), self.llvm)?;
        match self.obstacle() {
            Some(obstacle) => write!(f, ", unusable: {obstacle}"),
            None => write!(f, ", with the sources of `core`"),
        }
    }
}

impl Toolchain {
    /// Why it cannot build the object.
    pub fn obstacle(&self) -> Option<String> {
        if self.release < MINIMUM {
            return Some(format!("older than {MINIMUM}"));
        }
        if self.cargo.is_none() {
            return Some("no cargo beside it".into());
        }
        (!self.sources).then(|| "no sources of `core`".into())
    }

    /// Whether its sources are all that is missing.
    pub fn lacks_only_sources(&self) -> bool {
        Self { sources: true, ..self.clone() }.obstacle().is_none() && !self.sources
    }

    /// Its cargo, free of what the cargo around us and the user's host builds have put into the environment.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(self.cargo.as_deref().unwrap_or(Path::new("cargo")));
        for (name, _) in env::vars_os() {
            if name.to_str().is_none_or(steers_another_build) {
                cargo.env_remove(name);
            }
        }
        cargo.env("RUSTC", &self.rustc).env("PATH", self.path());
        if !self.nightly {
            // Building `core` is an unstable option of cargo; the compiler is the same.
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        cargo
    }

    /// `PATH` with the toolchain's own folder in front.
    fn path(&self) -> std::ffi::OsString {
        let own = self.rustc.parent().map(Path::to_path_buf);
        env::join_paths(own.into_iter().chain(command::folders())).unwrap_or_default()
    }
}

/// Variables that a cargo sets for its children or reads as configuration of a build. Where packages come from and
/// how they are fetched stays the user's.
fn steers_another_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    if kept.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    let dropped =
        ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "OUT_DIR"];
    dropped.iter().any(|dropped| name.starts_with(dropped))
}

/// Every toolchain on this machine; rustup's nightlies first, then its others, then the distribution's, newer before
/// older.
pub fn installed() -> Vec<Toolchain> {
    let mut toolchains: Vec<_> = rustup_toolchains().into_iter().chain(system_toolchains()).collect();
    toolchains.sort_by_key(|toolchain| {
        std::cmp::Reverse((toolchain.nightly, toolchain.rustup.is_some(), toolchain.release))
    });
    toolchains
}

/// Toolchains in rustup's folder. Read from there: asking rustup takes longer, and its proxies may install things.
fn rustup_toolchains() -> Vec<Toolchain> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let Some(folders) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let found = folders.flatten().filter_map(|folder| {
        let mut toolchain = inspect(&folder.path().join("bin/rustc"))?;
        toolchain.rustup = Some(folder.file_name().to_string_lossy().into_owned());
        Some(toolchain)
    });
    found.collect()
}

/// Compilers on the `PATH` that are not rustup's proxies, with the distribution's versioned ones (`rustc-1.93`).
fn system_toolchains() -> Vec<Toolchain> {
    let mut real = Vec::new();
    for folder in command::folders() {
        if folder.join("rustup").exists() {
            continue;
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| is_compiler(&entry.file_name())) {
            let Ok(file) = entry.path().canonicalize() else { continue };
            if command::is_executable(&entry.path()) && !real.iter().any(|(known, _)| *known == file) {
                real.push((file, entry.path()));
            }
        }
    }
    real.iter().filter_map(|(_, path)| inspect(path)).collect()
}

/// Whether a file name is that of a compiler: `rustc`, `rustc-1.93`.
fn is_compiler(name: &OsStr) -> bool {
    let Some(suffix) = name.to_str().and_then(|name| name.strip_prefix("rustc")) else { return false };
    suffix.is_empty() || suffix.strip_prefix("-1.").is_some_and(|minor| minor.parse::<u32>().is_ok())
}

/// Asks a compiler what it is.
fn inspect(rustc: &Path) -> Option<Toolchain> {
    let version = command::output(Command::new(rustc).arg("-vV").env_remove("LD_LIBRARY_PATH"))?;
    let sysroot =
        command::output(Command::new(rustc).args(["--print", "sysroot"]).env_remove("LD_LIBRARY_PATH"))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    let name = rustc.file_name()?.to_str()?.replace("rustc", "cargo");
    let (release, llvm) = parse_version(&version)?;
    Some(Toolchain {
        cargo: Some(rustc.with_file_name(name)).filter(|cargo| command::is_executable(cargo)),
        rustc: rustc.to_path_buf(),
        rustup: None,
        release,
        nightly: version.lines().any(|line| line.starts_with("release:") && line.contains("nightly")),
        llvm,
        sources: library.join("core/Cargo.toml").exists() && library.join("Cargo.lock").exists(),
    })
}

/// Release and LLVM major from what `rustc -vV` prints.
fn parse_version(text: &str) -> Option<(Release, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut release = field("release:")?.split('.');
    let release = Release(release.next()?.parse().ok()?, release.next()?.parse().ok()?);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// Has rustup fetch the sources.
///
/// # Errors
/// rustup cannot.
pub fn add_sources(toolchain: &Toolchain) -> Result<()> {
    let name = toolchain.rustup.as_deref().unwrap_or_default();
    println!("Rust: fetching the sources of `core` for rustup's {name}.");
    command::run_aloud(
        Command::new("rustup")
            .args(["component", "add", "rust-src", "--toolchain", name])
            .env_remove("RUSTUP_TOOLCHAIN"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (9ec5d5f32 2026-04-21)\nbinary: rustc\nrelease: 1.97.0-nightly\n\
                           LLVM version: 22.1.4\n";

    #[test]
    fn release_and_llvm_are_read_from_a_nightly() {
        assert_eq!(parse_version(NIGHTLY), Some((Release(1, 97), 22)));
    }

    #[test]
    fn a_compiler_without_llvm_is_not_one_of_ours() {
        assert_eq!(parse_version("rustc 1.97.0\nrelease: 1.97.0\n"), None);
    }

    #[test]
    fn compilers_are_told_from_their_neighbours() {
        let names = ["rustc", "rustc-1.93", "rustc-web", "rustc-1.93.old", "rustdoc"];
        let compilers: Vec<_> = names.into_iter().filter(|name| is_compiler(OsStr::new(name))).collect();
        assert_eq!(compilers, ["rustc", "rustc-1.93"]);
    }

    #[test]
    fn flags_of_the_outer_build_do_not_reach_the_bpf_build() {
        for name in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR", "RUSTC_WRAPPER"]
        {
            assert!(steers_another_build(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_REGISTRIES_CRATES_IO_INDEX", "RUSTUP_HOME", "HOME"]
        {
            assert!(!steers_another_build(name), "{name}");
        }
    }

    #[test]
    fn the_minimum_is_the_workspaces() {
        assert_eq!(MINIMUM.to_string(), env!("CARGO_PKG_RUST_VERSION"));
    }
}
