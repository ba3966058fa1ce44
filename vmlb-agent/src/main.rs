//! The binary `vmlb`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use vmlb_agent::{agent, commands, logging};

/// A node-level packet load balancer for virtual machines on Kubernetes
#[derive(Parser, Debug)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve this node: load the programs, fill the maps, follow changes
    Agent(Box<agent::Options>),
    /// Show the node: agent, sync, devices, flow counts, and what was dropped or left to the stack
    Status(commands::status::Options),
    /// Show the ports of Services with their frontends and backends, and why any is left to the stack
    Services(commands::services::Options),
    /// Show the VMs and pods with their shares and their traffic
    Backends(commands::backends::Options),
    /// Show the flows
    Flows(commands::flows::Options),
    /// Show the live migrations of VMs, what was seen of them and what became of the flows
    Migrations(commands::migrations::Options),
    /// Show why packets were dropped or left to the node's stack
    Drops(commands::drops::Options),
    /// Take down programs, maps and neighbours: leave the node as it was found
    Detach(commands::detach::Options),
    /// Look at this node before vmlb is installed: what stands in the way, and what it would cost
    Check(commands::check::Options),
    /// Change what the running agent logs
    LogLevel(commands::log_level::Options),
    /// Put VMs and pods behind one Service (with a kubeconfig, from anywhere)
    Expose(commands::expose::Options),
    /// Take back what expose did
    Unexpose(commands::unexpose::Options),
}

/// Reads the command line. As a plugin the program is called `kubectl-vmlb`, and `kubectl vmlb` is what people type.
fn parse() -> Arguments {
    let called = std::env::args_os().next().map(PathBuf::from);
    let is_plugin = called.is_some_and(|path| path.file_name().is_some_and(|name| name == "kubectl-vmlb"));
    let command = Arguments::command().bin_name(if is_plugin { "kubectl vmlb" } else { "vmlb" });
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn main() -> ExitCode {
    let arguments = parse();
    match &arguments.command {
        Command::Agent(options) => logging::start(&options.logging),
        _ => logging::start_plain(),
    }
    let done = match &arguments.command {
        Command::Agent(options) => agent::run(options),
        Command::Status(options) => commands::status::run(options),
        Command::Services(options) => commands::services::run(options),
        Command::Backends(options) => commands::backends::run(options),
        Command::Flows(options) => commands::flows::run(options),
        Command::Migrations(options) => commands::migrations::run(options),
        Command::Drops(options) => commands::drops::run(options),
        Command::Detach(options) => commands::detach::run(options),
        Command::Check(options) => commands::check::run(options),
        Command::LogLevel(options) => commands::log_level::run(options),
        Command::Expose(options) => commands::expose::run(options),
        Command::Unexpose(options) => commands::unexpose::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match arguments.command {
                // Among the lines of its log.
                Command::Agent(_) => tracing::error!("{error:#}"),
                _ => eprintln!("vmlb: {error:#}"),
            }
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
