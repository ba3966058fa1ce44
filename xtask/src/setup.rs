//! `cargo xtask setup`: finds what the build, the demo and the tests need, installs what is missing, and says what
//! it found and did.

pub mod guests;
pub mod linker;
pub mod packages;
pub mod toolchain;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use toolchain::Toolchain;

/// Find or install the BPF toolchain and the commands that the demo and the tests use
#[derive(clap::Args)]
pub struct Arguments {
    /// Only report; exit code 1 if something is missing
    #[arg(long)]
    check: bool,
    /// Also what guests of the tests take: QEMU, and kernels that are unpacked into the cache
    #[arg(long)]
    guests: bool,
}

/// What builds the BPF object.
pub struct Bpf {
    /// Compiler with sources of `core`.
    pub toolchain: Toolchain,
    /// A bpf-linker that reads this compiler's LLVM bitcode.
    pub linker: PathBuf,
}

/// The subcommand.
///
/// # Errors
/// Something is missing and cannot be installed.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check {
        let tools = check();
        return Ok(if arguments.guests && !guests::check() { ExitCode::FAILURE } else { tools });
    }
    let bpf = ready()?;
    report(&bpf);
    if arguments.guests {
        guests::ready_for_tests()?;
        guests::check();
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; silent where nothing is.
///
/// # Errors
/// Something is missing and cannot be installed.
pub fn ready() -> Result<Bpf> {
    let missing = packages::missing_commands();
    if !missing.is_empty() {
        packages::install_commands(&missing)?;
    }
    for _ in 0..4 {
        let toolchains = toolchain::installed();
        if let Some(bpf) = complete(&toolchains) {
            return Ok(bpf);
        }
        approach(&toolchains)?;
    }
    bail!("the BPF toolchain is still incomplete; `cargo xtask setup --check` tells what was found")
}

/// The first toolchain that has everything.
fn complete(toolchains: &[Toolchain]) -> Option<Bpf> {
    toolchains.iter().filter(|toolchain| toolchain.obstacle().is_none()).find_map(|toolchain| {
        let linker = linker::find(toolchain.llvm)?;
        Some(Bpf { toolchain: toolchain.clone(), linker })
    })
}

/// One step nearer to a complete toolchain: a linker for a compiler that has sources, else the sources.
fn approach(toolchains: &[Toolchain]) -> Result<()> {
    packages::refresh()?;
    for toolchain in toolchains.iter().filter(|toolchain| toolchain.obstacle().is_none()) {
        if linker::can_build(toolchain) {
            return linker::build(toolchain);
        }
    }
    if let Some(names) = packages::rust_with_sources() {
        println!(
            "Rust: no compiler here has the sources of `core` and a linker; the distribution's has both."
        );
        return packages::install(&names);
    }
    for toolchain in toolchains.iter().filter(|toolchain| toolchain.lacks_only_sources()) {
        if toolchain.rustup.is_some()
            && linker::can_build(toolchain)
            && toolchain::add_sources(toolchain).is_ok()
        {
            return Ok(());
        }
    }
    let newest = toolchains.iter().map(|toolchain| toolchain.llvm).max();
    bail!(
        "no BPF toolchain, and none that could be installed.\n{}\
         Needed are a rustc {} or newer with sources (`rustup component add rust-src`) and, on the PATH, a \
         bpf-linker built for its LLVM{}: either LLVM's development packages from https://apt.llvm.org and this \
         command again, or a released binary (`cargo binstall bpf-linker`, or \
         https://github.com/aya-rs/bpf-linker/releases).",
        toolchains.iter().map(|toolchain| format!("  found: {toolchain}\n")).collect::<String>(),
        toolchain::MINIMUM,
        newest.map(|llvm| format!(" (LLVM {llvm} or newer)")).unwrap_or_default(),
    )
}

/// `--check`: one line a thing.
fn check() -> ExitCode {
    let missing = packages::missing_commands();
    for need in &packages::COMMANDS {
        match packages::locate(need) {
            Some(file) => println!("ok       {:10} {}", need.command, file.display()),
            None => println!("MISSING  {:10} package {}: {}", need.command, need.packages[0], need.purpose),
        }
    }
    let toolchains = toolchain::installed();
    for toolchain in &toolchains {
        println!("found    {:10} {toolchain}", "rustc");
    }
    let Some(bpf) = complete(&toolchains) else {
        if toolchains.iter().any(|toolchain| toolchain.obstacle().is_none()) {
            println!("MISSING  {:10} built for the LLVM of a compiler above that has sources", "bpf-linker");
        } else {
            println!("MISSING  {:10} {} or newer with the sources of `core`", "rustc", toolchain::MINIMUM);
        }
        println!("`cargo xtask setup` installs what is missing.");
        return ExitCode::FAILURE;
    };
    report(&bpf);
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What will build the object.
fn report(bpf: &Bpf) {
    println!("ok       {:10} {}", "rustc", bpf.toolchain);
    println!("ok       {:10} {} (reads LLVM {})", "bpf-linker", bpf.linker.display(), bpf.toolchain.llvm);
}
