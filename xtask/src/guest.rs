//! `cargo xtask test guest`: the tests of the rig under another kernel. A guest sees this machine's files, runs the same
//! test binaries and reports line by line; they are counted as if they ran here.
//!
//! Test binaries named `guest_…` need what many kernels lack and run in guests only.

mod emulator;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use vmlb_guest::ARCHITECTURE;
use vmlb_guest::job::{self, Job};
use vmlb_guest::kernel::{self, Kernel};
use vmlb_guest::machine::{self, Machine};

use crate::build_ebpf;
use crate::command::{self, Artifact};
use crate::setup::guests;
use crate::test_output::Tally;

/// Run a command in a guest, to look at another kernel
#[derive(clap::Args)]
pub struct Arguments {
    /// The package that names the kernel
    #[arg(long, default_value = kernel::FULL)]
    kernel: String,
    /// The command, as found in the guest: this machine's files under a layer in memory
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The subcommand; it fails if the command does, or if the kernel complains.
///
/// # Errors
/// The guest cannot be made.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kernel = guests::ready(&arguments.kernel)?;
    let folder = text(&std::env::current_dir()?)?;
    let words = ["/usr/bin/env".to_owned()].into_iter().chain(arguments.command.iter().cloned()).collect();
    let work = Work { title: arguments.command.join(" "), job: Job { folder, variables: Vec::new(), words } };
    let tally = boot(&kernel, &init()?, vec![work])?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which tests run in the guest.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// Those that run nowhere else, in a few minutes.
    Own,
    /// All of the rig, or those that contain the filter in the name of the test or of its binary.
    Rig(Option<&'a str>),
}

impl<'a> Selection<'a> {
    fn filter(self) -> Option<&'a str> {
        match self {
            Self::Own => None,
            Self::Rig(filter) => filter,
        }
    }
}

/// A guest's memory in MiB. Tests keep agents with small tables; this is enough for two nodes, twice.
const MEMORY: u32 = 1536;

/// The name of the test that loads the object.
const VERIFIER: &str = "the_object_passes_the_verifier";

/// Binaries that cannot run in a guest: two start guests themselves, one measures time, one takes a real API server.
const ELSEWHERE: [&str; 4] = ["vm_lab", "vm_migration", "migration", "cluster"];

/// Whether a test binary is for guests only.
pub fn is_for_guests(target: &str) -> bool {
    target.starts_with("guest_")
}

/// Boots the kernel that the package `name` stands for and runs the selected tests of `artifacts` in it.
///
/// # Errors
/// The guest cannot be made; what happens in it is counted.
pub fn test(name: &str, selection: Selection<'_>, artifacts: &[Artifact], vmlb: &Path) -> Result<Tally> {
    let kernel = guests::ready(name)?;
    let init = init()?;
    let jobs = jobs(selection, artifacts, vmlb)?;
    boot(&kernel, &init, jobs)
}

/// A job, and the name under which its results are shown.
struct Work {
    title: String,
    job: Job,
}

/// The program `guest-init`, linked statically: it runs before there is a file system with libraries in it.
///
/// # Errors
/// The build fails.
pub fn init() -> Result<PathBuf> {
    let target = format!("{ARCHITECTURE}-unknown-linux-gnu");
    let mut cargo = command::cargo();
    cargo.args(["build", "--release", "--package", "vmlb-guest", "--bin", "guest-init", "--target", &target]);
    cargo.arg("--config").arg(format!("target.{target}.rustflags=[\"-Ctarget-feature=+crt-static\"]"));
    // Other flags than the workspace's would have cargo build everything anew each time.
    cargo.arg("--target-dir").arg(command::workspace().join("target/guest"));
    let built = command::artifacts(cargo)?;
    built.into_iter().next().map(|artifact| artifact.executable).context("cargo names no program guest-init")
}

/// What tests that start VMs themselves find in their environment. Nothing where the kernels are not there: those tests say
/// how to get them.
pub fn variables() -> &'static [(&'static str, OsString)] {
    static VARIABLES: OnceLock<Vec<(&str, OsString)>> = OnceLock::new();
    VARIABLES.get_or_init(|| {
        if !guests::are_there() {
            return Vec::new();
        }
        match init() {
            Ok(init) => vec![
                (kernel::FOLDER_VARIABLE, guests::folder().into()),
                (kernel::INIT_VARIABLE, init.into_os_string()),
            ],
            Err(error) => {
                eprintln!("the program of guests cannot be built: {error:#}");
                Vec::new()
            }
        }
    })
}

/// The object against the guest's verifier, and the selected binaries.
fn jobs(selection: Selection<'_>, artifacts: &[Artifact], vmlb: &Path) -> Result<Vec<Work>> {
    let mut jobs = Vec::new();
    let filter = selection.filter();
    if filter.is_none_or(|filter| VERIFIER.contains(filter)) {
        let this = std::env::current_exe()?;
        let words = [text(&this)?, "verify-object".to_owned(), text(&build_ebpf::path())?];
        let job = Job { folder: text(&command::workspace())?, variables: Vec::new(), words: words.to_vec() };
        jobs.push(Work { title: VERIFIER.to_owned(), job });
    }
    for artifact in artifacts.iter().filter(|artifact| is_selected(selection, artifact)) {
        let mut words = vec![text(&artifact.executable)?];
        // The name of a binary stands for all of its tests.
        words.extend(filter.filter(|filter| !artifact.target.contains(filter)).map(str::to_owned));
        words.push("--show-output".to_owned());
        let variables = [("VMLB_BINARY", vmlb), ("CARGO_MANIFEST_DIR", artifact.package.as_path())];
        let variables = variables.into_iter().map(|(name, path)| Ok(format!("{name}={}", text(path)?)));
        let job =
            Job { folder: text(&artifact.package)?, variables: variables.collect::<Result<_>>()?, words };
        jobs.push(Work { title: artifact.target.clone(), job });
    }
    Ok(jobs)
}

fn is_selected(selection: Selection<'_>, artifact: &Artifact) -> bool {
    match selection {
        Selection::Own => is_for_guests(&artifact.target),
        Selection::Rig(_) if ELSEWHERE.contains(&artifact.target.as_str()) => false,
        Selection::Rig(Some(filter)) if artifact.target.contains(filter) => true,
        Selection::Rig(filter) => holds_tests(&artifact.executable, filter),
    }
}

/// Whether a test binary has a test of that name, asked here, since starting a large program in a guest takes seconds.
fn holds_tests(executable: &Path, filter: Option<&str>) -> bool {
    let mut list = Command::new(executable);
    let listed = command::output(list.args(filter).args(["--list", "--format", "terse"]));
    // A binary with a harness of its own lists nothing and runs all the same.
    listed.is_none_or(|tests| tests.lines().any(|line| line.ends_with(": test")))
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not written in UTF-8", path.display()))
}

/// A failure if the guest's kernel complained, which no test sees.
fn complaints(console: &Path) -> Tally {
    let complaints = machine::complaints(console);
    if complaints.is_empty() {
        return Tally::default();
    }
    println!("the guest's kernel complained:\n{}", complaints.join("\n"));
    Tally::one_failed()
}

/// Runs the jobs in a guest of their own and counts what they report; a kernel that complains is a failure.
fn boot(kernel: &Kernel, init: &Path, work: Vec<Work>) -> Result<Tally> {
    let folder = command::workspace().join("target/guest");
    let own = |suffix: &str| folder.join(format!("{}-{}.{suffix}", kernel.release, std::process::id()));
    let (initramfs, console) = (own("initramfs"), own("console"));
    let (titles, jobs): (Vec<_>, Vec<_>) = work.into_iter().map(|work| (work.title, work.job)).unzip();
    std::fs::write(&initramfs, job::initramfs(kernel, &std::fs::read(init)?, &jobs)?)?;
    let mut machine = Machine::new(kernel, &initramfs, &console, MEMORY);
    machine.report().share(Path::new("/"), job::HOST);
    let tally = emulator::run(&machine, &kernel.release, &titles, &console);
    std::fs::remove_file(&initramfs)?;
    let mut tally = tally?;
    tally += complaints(&console);
    if tally.failed == 0 {
        std::fs::remove_file(&console)?;
    } else {
        println!("what the guest's kernel said is in {}", console.display());
    }
    Ok(tally)
}
