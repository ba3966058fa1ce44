//! `cargo xtask image`: the program, linked statically, in an OCI image with nothing else. No registry and no daemon is
//! asked: buildah makes the image from `deploy/Containerfile` and an empty base.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::build::Profile;
use crate::setup::packages::{self, Need};
use crate::setup::{self, Bpf};
use crate::{build_ebpf, command};

/// What an image may have at most, octets: it is loaded on every node.
const LIMIT: u64 = 25 << 20;

/// Build an OCI image of the agent, without a registry
#[derive(clap::Args)]
pub struct Arguments {
    /// Name and tag
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("vmlb:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Processor
    #[arg(long, value_enum, default_value_t = Architecture::HOST)]
    arch: Architecture,
    /// Also write the image to this file, as `podman load`, `ctr image import` and `k3s ctr image import` read it
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Build the program without optimisation, as the tests do
    #[arg(long)]
    dev: bool,
}

/// A processor that the image can be for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The linker for it where it is not the host's.
    const fn cross(self) -> Need {
        let (command, packages): (_, &[&str]) = match self {
            Self::Amd64 => ("x86_64-linux-gnu-gcc", &["gcc-x86-64-linux-gnu"]),
            Self::Arm64 => ("aarch64-linux-gnu-gcc", &["gcc-aarch64-linux-gnu"]),
        };
        Need { command, packages, purpose: "links the program for the other processor" }
    }
}

/// The subcommand.
///
/// # Errors
/// A build fails, or the image is larger than it may be.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let bpf = setup::ready()?;
    build_ebpf::build(&bpf)?;
    let profile = if arguments.dev { Profile::Dev } else { Profile::Release };
    let program = program(&bpf, arguments.arch, profile)?;
    let context = context(&program)?;
    let size = fs::metadata(context.join("vmlb"))?.len();
    println!("{}: {:.1} MiB, static", program.display(), size as f64 / f64::from(1 << 20));
    if profile == Profile::Release && size > LIMIT {
        bail!("the image may have {} MiB at most", LIMIT >> 20);
    }
    command::run_aloud(
        Command::new("buildah")
            .args([
                "build",
                "--quiet",
                "--layers=false",
                "--arch",
                arguments.arch.name(),
                "--tag",
                &arguments.tag,
            ])
            .arg("--file")
            .arg(command::workspace().join("deploy/Containerfile"))
            .arg(&context),
    )?;
    if let Some(archive) = &arguments.archive {
        let target = format!("oci-archive:{}:{}", archive.display(), arguments.tag);
        command::run_aloud(Command::new("buildah").args(["push", "--quiet", &arguments.tag, &target]))?;
    }
    println!("{} for {}", arguments.tag, arguments.arch.name());
    Ok(ExitCode::SUCCESS)
}

fn need(need: Need) -> Result<()> {
    if packages::locate(&need).is_some() {
        return Ok(());
    }
    // Needed by this command only, for the rest of the process.
    packages::install_commands(&[Box::leak(Box::new(need))])
}

/// Builds the program without anything that it would need of a base image.
///
/// glibc and not musl: the agent gives memory back by malloc_trim(3), which musl has not, and a static glibc resolves
/// names by files and DNS without a library of the base (since 2.34).
fn program(bpf: &Bpf, architecture: Architecture, profile: Profile) -> Result<PathBuf> {
    let is_cross = architecture != Architecture::HOST;
    let mut cargo = if is_cross { bpf.toolchain.cargo() } else { command::cargo() };
    cargo.current_dir(command::workspace()).args(["rustc", "--package", "vmlb-agent", "--bin", "vmlb"]);
    // Apart from the program for this machine, which has the same name.
    let mut folder = command::workspace().join(if profile == Profile::Release || is_cross {
        "target/image"
    } else {
        "target"
    });
    cargo.arg("--target-dir").arg(&folder);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    if is_cross {
        let linker = architecture.cross();
        let gcc = linker.command;
        need(linker)?;
        let variable = architecture.target().replace('-', "_");
        // The distribution has no standard library for it; its sources are here for the BPF object already.
        cargo.args(["-Z", "build-std=std,panic_unwind", "--target", architecture.target()]);
        cargo
            .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), gcc)
            .env(format!("CC_{variable}"), gcc);
        folder.push(architecture.target());
    }
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    command::run(&mut cargo)?;
    Ok(folder.join(if profile == Profile::Release { "release" } else { "debug" }).join("vmlb"))
}

/// A folder that holds the program, stripped, and nothing else.
fn context(program: &Path) -> Result<PathBuf> {
    let folder = command::workspace().join("target/image/context");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("vmlb");
    fs::copy(program, &copy).with_context(|| format!("copying {}", program.display()))?;
    // Another processor's program takes another strip; the release profile has stripped it as far as it goes.
    if command::output(Command::new("strip").arg(&copy)).is_none() {
        println!("    not stripped: no strip here knows it");
    }
    Ok(folder)
}
