//! Loads an object into this machine's kernel to hear the verifier's judgement, and unloads it again. Runs as root,
//! so `build-ebpf` starts it as a process of its own, through sudo where needed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use crate::budget::Figures;
use crate::command;

/// Load an object and print what the verifier counted, one line a program
#[derive(clap::Args)]
pub struct Arguments {
    object: PathBuf,
}

/// The hidden subcommand: lines of name, verified instructions, octets of machine code, microseconds to load.
///
/// # Errors
/// The kernel refuses the object; the error ends with the verifier's last lines.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut object = load(&arguments.object)?;
    let btf = Btf::from_sys_fs().ok();
    let mut names: Vec<_> = object.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    for name in names {
        let program = object.program_mut(&name).context("listed, but not there")?;
        let start = Instant::now();
        verify(program, &name, btf.as_ref()).map_err(|error| explain(&name, error))?;
        let took = start.elapsed();
        let info = program.info()?;
        let count =
            info.verified_instruction_count().context("this kernel (before 5.16) does not tell counts")?;
        println!("{name} {count} {} {}", info.size_jitted(), took.as_micros());
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates the object's maps. Pinned ones would stay, and would meet those of a running agent: an object that asks
/// for pins gets a folder that is removed at once.
fn load(path: &Path) -> Result<Ebpf> {
    let pins = PathBuf::from(format!("/sys/fs/bpf/vmlb-verify-{}", std::process::id()));
    let made = std::fs::create_dir(&pins).is_ok();
    let mut loader = EbpfLoader::new();
    if made {
        loader.default_map_pin_directory(&pins);
    }
    let object = loader.load_file(path).with_context(|| format!("cannot load {}", path.display()));
    if made {
        for pin in std::fs::read_dir(&pins).into_iter().flatten().flatten() {
            std::fs::remove_file(pin.path()).with_context(|| pin.path().display().to_string())?;
        }
        std::fs::remove_dir(&pins).with_context(|| pins.display().to_string())?;
    }
    object
}

/// Loads one program by its type.
fn verify(program: &mut Program, name: &str, btf: Option<&Btf>) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::SocketFilter(program) => program.load(),
        Program::FEntry(program) => match btf {
            Some(btf) => program.load(name, btf),
            None => Err(ProgramError::UnexpectedProgramType),
        },
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The verifier's last lines are the ones that say what is wrong.
fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return anyhow::Error::from(error).context(format!("program {name}"));
    };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(25)..].join("\n");
    anyhow::anyhow!("the kernel refuses program {name}: {io_error}\n{last}")
}

/// What the kernel said about one program.
pub struct Verdict {
    /// Instructions the verifier walked through.
    pub verified: u64,
    /// Octets of machine code; 0 without a JIT.
    pub machine_code: u64,
    /// Time the load took.
    pub took: Duration,
}

/// Has a process with root's rights load the object.
///
/// # Errors
/// No rights, or the kernel refuses it.
pub fn verdicts(object: &Path) -> Result<Vec<(String, Verdict)>> {
    let mut command = command::as_root(env::current_exe()?, [])?;
    let output = command.arg("verify-object").arg(object).stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{} does not pass this kernel's verifier", object.display());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| parse(line).with_context(|| format!("unexpected line `{line}`"))).collect()
}

fn parse(line: &str) -> Option<(String, Verdict)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let verified = words.next()?.parse().ok()?;
    let machine_code = words.next()?.parse().ok()?;
    let took = Duration::from_micros(words.next()?.parse().ok()?);
    Some((name, Verdict { verified, machine_code, took }))
}

/// The part of the verdicts that the budget limits.
pub fn figures(verdicts: &[(String, Verdict)]) -> Figures {
    verdicts.iter().map(|(name, verdict)| (name.clone(), verdict.verified)).collect()
}
