//! The build of vmlb: `cargo xtask setup`, `build-ebpf`, `build`, `demo`, `test`, `image` and `bench`, one file each.
//! Every command first does what `setup` does where something is missing.

mod bench;
mod budget;
mod build;
mod build_ebpf;
mod command;
mod contract;
mod demo;
mod guest;
mod image;
mod object;
mod setup;
mod stack;
mod test;
mod test_output;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, shows and tests vmlb.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    Build,
    Demo(demo::Arguments),
    Test(test::Arguments),
    Image(image::Arguments),
    Bench(bench::Arguments),
    Guest(guest::Arguments),
    #[command(hide = true)]
    VerifyObject(verify::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Task::Build => build::run(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Guest(arguments) => guest::run(&arguments),
        Task::VerifyObject(arguments) => verify::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
