//! `cargo xtask demo`: builds everything and shows two VMs behind one NodePort in network namespaces.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::command;

/// Show two VMs behind one NodePort Service, with real traffic in network namespaces
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave it up, to look further
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what `--keep` left
    #[arg(long)]
    clean: bool,
}

/// The subcommand; its exit code is the demo's.
///
/// # Errors
/// A build fails, or there are no rights to make network namespaces.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let vmlb = build::agent(Profile::Dev)?;
    let demo = build::binary("vmlb-tests", "demo", Profile::Dev)?;
    if !command::is_root() {
        println!("The demo makes network namespaces and loads BPF programs: it runs through sudo.");
    }
    let mut command = command::as_root(demo, [("VMLB_BINARY", vmlb.as_os_str())])?;
    for (flag, given) in [("--keep", arguments.keep), ("--clean", arguments.clean)] {
        if given {
            command.arg(flag);
        }
    }
    let status = command.status().context("cannot start the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
