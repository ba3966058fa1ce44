//! `cargo xtask build-ebpf`: makes target/bpf/vmlb.bpf.o, refuses one that cannot load, and prints what the verifier
//! thinks of each program.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::object::Program;
use crate::setup::Bpf;
use crate::verify::Verdict;
use crate::{budget, command, object, setup, verify};

/// Build the BPF object, check it, and compare it with the verifier budget
#[derive(clap::Args)]
pub struct Arguments {
    /// Load it and compare with the budget even if that takes sudo (as root this is the default)
    #[arg(long)]
    verify: bool,
    /// Do not load it
    #[arg(long, conflicts_with_all = ["verify", "raise_budget"])]
    no_verify: bool,
    /// Set the budget to what this kernel measures plus a tenth
    #[arg(long)]
    raise_budget: bool,
    /// Print the deepest chain of calls of each program, with the frames
    #[arg(long)]
    stack: bool,
    /// Build the crate in this folder instead of vmlb-ebpf (its binary has the package's name); the budget is not used
    #[arg(long, hide = true)]
    source: Option<PathBuf>,
}

/// The subcommand.
///
/// # Errors
/// The build fails, the object or the kernel's judgement is not acceptable.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let bpf = setup::ready()?;
    if let Some(source) = &arguments.source {
        let object = compile(&bpf, source)?;
        return judge(&object, &fs::read(&object)?, arguments);
    }
    let object = build(&bpf)?;
    judge(&object, &fs::read(&object)?, arguments)
}

/// Where the object is put, and where vmlb-agent's build finds it.
pub fn path() -> PathBuf {
    command::workspace().join("target/bpf/vmlb.bpf.o")
}

/// Builds the object and puts it into its place, untouched if nothing changed, so that the agent is not built again.
///
/// # Errors
/// The build fails, or the object holds a panic path or no BTF.
pub fn build(bpf: &Bpf) -> Result<PathBuf> {
    let built = compile(bpf, &command::workspace().join("vmlb-ebpf"))?;
    let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
    object::programs(&bytes).with_context(|| built.display().to_string())?;
    let bytes = object::without_debug_information(&bytes).with_context(|| built.display().to_string())?;
    let path = path();
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(path);
    }
    let folder = path.parent().context("the object has a folder")?;
    fs::create_dir_all(folder)?;
    // Never half an object: another cargo may be embedding it.
    let new = folder.join(format!(".vmlb.bpf.o.{}", std::process::id()));
    fs::write(&new, &bytes)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// Builds the object of the bench: the programs around the measured one.
///
/// # Errors
/// The build fails, or the object holds a panic path or no BTF.
pub fn build_bench(bpf: &Bpf) -> Result<PathBuf> {
    let built = compile(bpf, &command::workspace().join("tests/bench-ebpf"))?;
    object::programs(&fs::read(&built)?).with_context(|| built.display().to_string())?;
    Ok(built)
}

/// Compiles the crate in `source`; returns the linked object.
fn compile(bpf: &Bpf, source: &Path) -> Result<PathBuf> {
    let manifest = source.join("Cargo.toml");
    let text = match fs::read_to_string(&manifest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{} does not exist", manifest.display())
        }
        text => text?,
    };
    let name = text.lines().find_map(|line| line.strip_prefix("name = ")).context("no package name")?;
    let target = command::workspace().join("target/ebpf");
    let mut cargo = bpf.toolchain.cargo();
    cargo
        .args(["build", "--release", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(bpf).join("\x1f"))
        // One module for LLVM, and nothing that could panic: DESIGN laws, not the choice of a Cargo.toml.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false");
    run_condensed(&mut cargo)?;
    Ok(target.join("bpfel-unknown-none/release").join(name.trim().trim_matches('"')))
}

/// Runs cargo, saying once per function what LLVM says for every instruction that reaches below the stack.
fn run_condensed(cargo: &mut Command) -> Result<()> {
    if io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = cargo.stderr(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut told = BTreeSet::new();
    for line in BufReader::new(child.stderr.take().context("standard error is piped")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match beyond_stack(&line) {
            Some(function) if !told.insert(function.clone()) => {}
            Some(function) => eprintln!("stack of 512 octets exceeded in {function}"),
            None if told.is_empty() || !line.trim().is_empty() => eprintln!("{line}"),
            None => {}
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", command::show(cargo));
    }
    Ok(())
}

/// The function that LLVM complains about in a line on the stack limit.
fn beyond_stack(line: &str) -> Option<String> {
    let (before, _) = line.split_once(": Looks like the BPF stack limit is exceeded")?;
    let function = before.rsplit_once("in function ")?.1.split(' ').next()?;
    Some(format!("{:#}", rustc_demangle::demangle(function)))
}

/// Compiler flags: BTF needs debug information; cpu v3 has 32-bit arithmetic and jumps (kernel 5.1).
fn flags(bpf: &Bpf) -> Vec<String> {
    let linker = format!("-Clinker={}", bpf.linker.display());
    // The same object from every clone: line information must not tell where it was built.
    let remap = format!("--remap-path-prefix={}=.", command::workspace().display());
    vec![linker, remap, "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into(), "-Ctarget-cpu=v3".into()]
}

/// Prints the object's figures and, where wanted, the verifier's.
fn judge(object: &Path, bytes: &[u8], arguments: &Arguments) -> Result<ExitCode> {
    let programs = object::programs(bytes).with_context(|| object.display().to_string())?;
    println!("{}: {} octets, {} programs, no panic path", object.display(), bytes.len(), programs.len());
    if arguments.stack {
        print!("{}", chains(&programs));
    }
    let wanted = arguments.verify || arguments.raise_budget || command::is_root();
    if arguments.no_verify || !wanted {
        print!("{}", table(&programs, &[]));
        if !arguments.no_verify {
            println!("not loaded: `--verify` does so through sudo");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let verdicts = verify::verdicts(object)?;
    print!("{}", table(&programs, &verdicts));
    if arguments.source.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.raise_budget {
        budget::raise(&verify::figures(&verdicts))?;
        println!("wrote {}", budget::path().display());
    }
    let differences = budget::compare(&verify::figures(&verdicts))?;
    if differences.is_empty() {
        println!("within the verifier budget");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", over_budget(&differences));
    Ok(ExitCode::FAILURE)
}

/// The deepest chain of calls of each program.
fn chains(programs: &[Program]) -> String {
    let mut text = String::new();
    for program in programs {
        text += &format!("{}: {} octets of stack\n", program.name, program.stack());
        for (function, frame) in &program.chain {
            text += &format!("  {frame:>5} {:#}\n", rustc_demangle::demangle(function));
        }
    }
    text
}

/// What to do about programs that cost the verifier more than they may.
pub fn over_budget(differences: &[String]) -> String {
    format!(
        "not within the verifier budget ({}):\n  {}\nIf that is meant, `cargo xtask build-ebpf --raise-budget` and \
         say why in the commit.",
        budget::path().display(),
        differences.join("\n  ")
    )
}

/// One line a program.
fn table(programs: &[Program], verdicts: &[(String, Verdict)]) -> String {
    let budget = budget::read().unwrap_or_default();
    let mut text = format!(
        "{:18} {:16} {:>9} {:>9} {:>12} {:>9} {:>9} {:>9} {:>8}\n",
        "program",
        "section",
        "instr.",
        "functions",
        "stack of 512",
        "verified",
        "budget",
        "jitted",
        "load ms"
    );
    for program in programs {
        let verdict = verdicts.iter().find(|(name, _)| *name == program.name).map(|(_, verdict)| verdict);
        let limit = budget.get(&program.name);
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        text += &format!(
            "{:18} {:16} {:>9} {:>9} {:>12} {:>9} {:>9} {:>9} {:>8}\n",
            program.name,
            program.section,
            program.instructions,
            program.functions,
            program.stack(),
            cell(verdict.map(|verdict| verdict.verified.to_string())),
            cell(limit.map(u64::to_string)),
            cell(verdict.map(|verdict| verdict.machine_code.to_string())),
            cell(verdict.map(|verdict| verdict.took.as_millis().to_string())),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::beyond_stack;

    #[test]
    fn a_function_beyond_its_stack_is_named_for_people() {
        let line = "  ERROR llvm: src/abi.rs:472:9: in function _RNvNtCs1_1a4open4open i32 (ptr): Looks like the BPF \
                    stack limit is exceeded. Please move large on stack variables";
        assert_eq!(beyond_stack(line).as_deref(), Some("a::open::open"));
        assert_eq!(beyond_stack("error: linking failed"), None);
    }
}
