//! The distribution's packages: the commands that the demo and the tests use, compilers, LLVM.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use super::toolchain::{MINIMUM, Release};
use crate::command;

/// A command that must be there.
pub struct Need {
    /// Its name.
    pub command: &'static str,
    /// Packages that hold it; the first that the distribution has is installed.
    pub packages: &'static [&'static str],
    /// What it is for.
    pub purpose: &'static str,
}

/// The commands that the build, the demo and the tests use.
pub const COMMANDS: [Need; 12] = [
    Need { command: "cc", packages: &["gcc"], purpose: "links programs of the host" },
    Need {
        command: "ip",
        packages: &["iproute2"],
        purpose: "makes the namespaces of the demo and the tests",
    },
    Need { command: "nft", packages: &["nftables"], purpose: "kube-proxy's rules beside vmlb in the tests" },
    Need { command: "ethtool", packages: &["ethtool"], purpose: "turns offloads of test devices on and off" },
    Need { command: "bpftool", packages: &["bpftool", "linux-tools-generic"], purpose: "shows the maps" },
    Need { command: "curl", packages: &["curl"], purpose: "the demo's client" },
    Need { command: "sysctl", packages: &["procps"], purpose: "forwarding inside test namespaces" },
    Need {
        command: "nsenter",
        packages: &["util-linux"],
        purpose: "enters a namespace and keeps bpffs visible",
    },
    Need { command: "buildah", packages: &["buildah"], purpose: "makes the image" },
    Need { command: "podman", packages: &["podman"], purpose: "runs the image in the tests" },
    Need {
        command: "runc",
        packages: &["runc"],
        purpose: "podman's runtime: it knows both generations of cgroups",
    },
    Need { command: "promtool", packages: &["prometheus"], purpose: "checks metrics and alerts" },
];

/// Where a needed command is.
pub fn locate(need: &Need) -> Option<PathBuf> {
    command::find(need.command)
}

/// Those of [`COMMANDS`] that are not here.
pub fn missing_commands() -> Vec<&'static Need> {
    COMMANDS.iter().filter(|need| locate(need).is_none()).collect()
}

/// Installs the packages of commands.
///
/// # Errors
/// No apt-get, no rights, or apt-get fails.
pub fn install_commands(missing: &[&'static Need]) -> Result<()> {
    refresh()?;
    let mut names = Vec::new();
    for need in missing {
        let name = need.packages.iter().find(|name| candidate(name).is_some()).unwrap_or(&need.packages[0]);
        println!("{}: missing; {}.", need.command, need.purpose);
        names.push((*name).to_owned());
    }
    install(&names)
}

const APT_GET: &str = "/usr/bin/apt-get";

/// What building bpf-linker for one LLVM takes.
pub fn llvm(major: u32) -> Vec<String> {
    vec![format!("llvm-{major}-dev"), format!("libpolly-{major}-dev"), "g++".into()]
}

/// The distribution's newest compiler with its sources and cargo, if it is new enough: Debian's `rustc-web`, Ubuntu's
/// versioned ones, or the plain one.
pub fn rust_with_sources() -> Option<Vec<String>> {
    let listed = command::output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        "^rustc(-web|-1[.][0-9]+)?$",
    ]));
    let names = listed.unwrap_or_default();
    let mut compilers: Vec<_> = names
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("rustc"))
        .filter_map(|suffix| Some((candidate(&format!("rustc{suffix}"))?, suffix)))
        .filter(|(release, _)| *release >= MINIMUM)
        .collect();
    compilers.sort();
    let (_, suffix) = compilers.last()?;
    let packages = ["rustc", "cargo"].map(|name| format!("{name}{suffix}"));
    Some(packages.into_iter().chain([format!("rust{suffix}-src")]).collect())
}

/// The version, as far as [`Release`] tells, that apt would install.
pub fn candidate(name: &str) -> Option<Release> {
    parse_candidate(&command::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"))?)
}

/// The candidate in what `apt-cache policy` prints; a version without a minor number counts as `.0`.
fn parse_candidate(policy: &str) -> Option<Release> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    let upstream = version.split_once(':').map_or(version, |(_, upstream)| upstream);
    let mut numbers = upstream.split(|byte: char| !byte.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    Some(Release(major, numbers.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// Whether a package is installed.
pub fn is_installed(name: &str) -> bool {
    let status = command::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", name]));
    status.is_some_and(|status| status == "installed")
}

/// Brings apt's lists up to date, once a run.
///
/// # Errors
/// No rights. A source that cannot be reached is only said; without apt there is nothing to refresh.
pub fn refresh() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !Path::new(APT_GET).exists() || DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    if let Err(error) = command::run_aloud(apt_get()?.args(["-q", "update"])) {
        println!("    {error:#}; going on with the lists as they are");
    }
    Ok(())
}

/// Installs packages.
///
/// # Errors
/// No apt-get, no rights, or apt-get fails.
pub fn install(names: &[String]) -> Result<()> {
    refresh()?;
    command::run_aloud(apt_get()?.args(["-q", "install", "-y", "--no-install-recommends"]).args(names))
}

/// apt-get with root's rights, asking nothing.
fn apt_get() -> Result<Command> {
    if !Path::new(APT_GET).exists() {
        bail!(
            "only apt-get is known here; install by hand what `cargo xtask setup --check` lists, and a bpf-linker for \
             the LLVM that `rustc -vV` names"
        );
    }
    command::as_root(APT_GET, [("DEBIAN_FRONTEND", OsStr::new("noninteractive"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_read_without_epoch_and_debian_revision() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n";
        assert_eq!(parse_candidate(policy), Some(Release(1, 96)));
        assert_eq!(parse_candidate("llvm:\n  Candidate: 1:22.1.8-1\n"), Some(Release(22, 1)));
    }

    #[test]
    fn a_package_that_only_others_name_has_no_candidate() {
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    }
}
