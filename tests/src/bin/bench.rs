//! Measurements, called by `cargo xtask bench`, which builds what this needs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use vmlb_tests::bench::{self, Options, measure::Effort};
use vmlb_tests::skip;

/// Measures vmlb
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Packet(Packet),
}

/// Time the datapath by program runs: ns per packet and its ratio to one hash hit on the same machine
#[derive(clap::Args)]
struct Packet {
    /// Only rows whose names contain this; may be given several times
    #[arg(long = "row", value_name = "PART")]
    rows: Vec<String>,
    /// Rounds a row; figures are their medians
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Turns in a round of the empty, the yardstick and the measured program
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
    /// Packets of a turn
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    packets: u32,
    /// The CPU to stay on; the last one otherwise
    #[arg(long)]
    cpu: Option<usize>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Instead of measuring, run the packets of this row for --seconds, so that perf can look
    #[arg(long, value_name = "ROW")]
    profile: Option<String>,
    /// How long to run with --profile
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs, every round included
    Json,
}

fn main() -> ExitCode {
    let What::Packet(arguments) = Arguments::parse().what;
    if let Some(why) = skip::reason() {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    match packet(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn packet(arguments: &Packet) -> Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let options = Options {
        effort: Effort {
            rounds: arguments.rounds.into(),
            turns: arguments.turns,
            packets: arguments.packets,
        },
        only: arguments.rows.clone(),
        cpu: arguments.cpu.unwrap_or(last),
    };
    if let Some(row) = &arguments.profile {
        return bench::profile(&options, row, Duration::from_secs(arguments.seconds));
    }
    let report = bench::packet(&options, |report, figures| eprint!("{}", report.line(figures)))?;
    let folder = records()?;
    report.keep(&folder)?;
    match arguments.output {
        Output::Table => print!("\n{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report.json())?),
    }
    eprintln!("\nkept in {}/packet-latest.{{txt,json}}", folder.display());
    if !report.faults.is_empty() {
        bail!("{} rows are not valid: packets took another way than the row is about", report.faults.len());
    }
    let missed = report.missed();
    ensure!(missed.is_empty(), "{} targets are missed:\n{}", missed.len(), missed.join("\n"));
    Ok(())
}

/// Where records are kept: `target/bench`.
fn records() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ is in the workspace")?;
    Ok(workspace.join("target/bench"))
}
