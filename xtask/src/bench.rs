//! `cargo xtask bench`: measurements, by the binary `bench` of the tests.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::{build_ebpf, command, setup};

/// Measure; `packet` times the datapath by program runs, `control` the agent behind an API server
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure, and its options
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The subcommand; its exit code is the bench's.
///
/// # Errors
/// A build fails, or there are no rights to load BPF programs.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let [what, rest @ ..] = arguments.arguments.as_slice()
        && what == "control"
    {
        return control(rest);
    }
    // What is measured runs in the kernel: the fast build of everything else serves, and the object is new in seconds.
    let bpf = setup::ready()?;
    build_ebpf::build(&bpf)?;
    let object = build_ebpf::build_bench(&bpf)?;
    let vmlb = build::binary("vmlb-agent", "vmlb", Profile::Dev)?;
    let bench = build::binary("vmlb-tests", "bench", Profile::Dev)?;
    let variables = [("VMLB_BINARY", vmlb.as_os_str()), ("VMLB_BENCH_OBJECT", object.as_os_str())];
    let mut command = command::as_root(bench, variables)?;
    let status = command.args(&arguments.arguments).status().context("cannot start the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The agent as it is delivered, behind a scripted API server.
fn control(arguments: &[String]) -> Result<ExitCode> {
    let vmlb = build::agent(Profile::Release)?;
    let bench = build::binary("vmlb-tests", "bench-control", Profile::Release)?;
    let mut command = command::as_root(bench, [("VMLB_BINARY", vmlb.as_os_str())])?;
    let status = command.args(arguments).status().context("cannot start the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
