//! The binary `vmlb`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vmlb_agent::{agent, commands};

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
    /// Show why packets were dropped or left to the node's stack
    Drops(commands::drops::Options),
    /// Take down programs, maps and neighbours: leave the node as it was found
    Detach(commands::detach::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_timer(SystemTime)
        .finish()
        // The client reports every failed try; the watches say what lasts.
        .with(Targets::new().with_default(LevelFilter::INFO).with_target("kube_client", LevelFilter::OFF))
        .init();
    let done = match &arguments.command {
        Command::Agent(options) => agent::run(options),
        Command::Status(options) => commands::status::run(options),
        Command::Services(options) => commands::services::run(options),
        Command::Backends(options) => commands::backends::run(options),
        Command::Flows(options) => commands::flows::run(options),
        Command::Drops(options) => commands::drops::run(options),
        Command::Detach(options) => commands::detach::run(options),
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
