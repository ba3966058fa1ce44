//! `cargo xtask build`: the BPF object and the agent that carries it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{build_ebpf, command, setup};

/// The subcommand.
///
/// # Errors
/// As [`agent`].
pub fn run() -> Result<ExitCode> {
    println!("{}", agent(Profile::Release)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the object and the agent; returns the binary `vmlb`.
///
/// # Errors
/// Something is missing and cannot be installed, or a build fails.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    let bpf = setup::ready()?;
    build_ebpf::build(&bpf)?;
    binary("vmlb-agent", "vmlb", profile)
}

/// How a program is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quickly, and with what the tests' build has compiled already. What packets meet is the same: it runs in the kernel.
    Dev,
    /// To be used or measured.
    Release,
}

/// Builds one program of a package; returns where it is.
///
/// # Errors
/// The build fails.
pub fn binary(package: &str, name: &str, profile: Profile) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", package, "--bin", name]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let executables = command::artifacts(cargo)?;
    match executables.into_iter().find(|artifact| artifact.target == name) {
        Some(artifact) => Ok(artifact.executable),
        None => bail!("cargo built {package}, but names no executable {name}"),
    }
}
