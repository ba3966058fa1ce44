//! `cargo xtask test`: builds everything, runs every test, and ends with one line that sums them up.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use vmlb_guest::kernel;

use crate::build::Profile;
use crate::command::{self, Artifact};
use crate::guest::{self, Selection};
use crate::setup::guests;
use crate::test_output::{Outcomes, Reader, Tally};
use crate::{budget, build, build_ebpf, contract, verify};

/// Run every test: of each crate on the host, of the object in the kernel, end to end in network namespaces
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this; `cluster`: only the suite against the etcd and kube-apiserver in the folder
    /// that KUBEBUILDER_ASSETS names; `guest`: the rig's tests under another kernel, in an emulated machine; `migration`: a
    /// real VM that migrates again and again
    filter: Option<String>,
    /// After `guest`: only tests whose name contains this; after `migration`: how often the VM migrates, 20 times as a rule
    within: Option<String>,
    /// After `guest`: the package that names the kernel
    #[arg(long, default_value = kernel::FULL)]
    kernel: String,
}

/// The argument of guests.
const GUEST: &str = "guest";

/// The argument, and the test binary, of real clusters.
const CLUSTER: &str = "cluster";

/// The argument of a VM's migrations, their test binary, the variable with their number, and the rule.
const MIGRATION: &str = "migration";
const VM_MIGRATION: &str = "vm_migration";
const MIGRATIONS: &str = "VMLB_MIGRATIONS";
const OFTEN: &str = "20";

/// Packages in the order of their tests, fastest first.
const PACKAGES: [Package; 5] = [
    Package { name: "vmlb-common", rights: Rights::Own },
    Package { name: "vmlb-guest", rights: Rights::Own },
    Package { name: "vmlb-agent", rights: Rights::Own },
    Package { name: "xtask", rights: Rights::Own },
    Package { name: "vmlb-tests", rights: Rights::Root },
];

struct Package {
    name: &'static str,
    rights: Rights,
}

/// Whose rights a package's tests take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    Own,
    /// They make namespaces and load programs.
    Root,
}

/// The subcommand; the last line is always `N passed, N failed, N skipped`.
///
/// # Errors
/// A build fails, or there are no rights to run what needs root.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let vmlb = build::agent(Profile::Dev)?;
    let (mut tally, mut outcomes) = (Tally::default(), Outcomes::default());
    if arguments.filter.as_deref() == Some(GUEST) {
        let selection = Selection::Rig(arguments.within.as_deref());
        tally += guest::test(&arguments.kernel, selection, &rig()?, &vmlb)?;
        println!("{tally}");
        return Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if arguments.filter.as_deref() == Some(MIGRATION) {
        tally += migrations(&vmlb, arguments.within.as_deref().unwrap_or(OFTEN))?;
        println!("{tally}");
        return Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if arguments.filter.as_deref() == Some(CLUSTER) {
        tally += cluster(&vmlb)?;
        println!("{tally}");
        return Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if arguments.filter.is_none() {
        tally += verifier_budget();
        if let Err(error) = guests::ready_for_tests() {
            println!("guests: {error:#}; what takes them is skipped");
        }
    }
    for package in &PACKAGES {
        let mut cargo = command::cargo();
        cargo.args(["test", "--no-run", "--package", package.name]);
        for artifact in command::artifacts(cargo)? {
            if is_test(&artifact) && !guest::is_for_guests(&artifact.target) {
                let (counts, of_tests) =
                    run_binary(&artifact, package, &vmlb, arguments.filter.as_deref(), &[])?;
                tally += counts;
                outcomes.extend(of_tests);
            }
        }
    }
    if arguments.filter.is_none() {
        tally += guest(&vmlb);
        tally += contract::tally(&outcomes);
    }
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether cargo's artifact is a test binary: programs that tests start are named like the package's targets too, but only
/// test binaries live in `deps`.
fn is_test(artifact: &Artifact) -> bool {
    artifact.executable.parent().is_some_and(|folder| folder.ends_with("deps"))
}

/// The test binaries of the rig.
fn rig() -> Result<Vec<Artifact>> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-run", "--package", "vmlb-tests"]);
    Ok(command::artifacts(cargo)?.into_iter().filter(is_test).collect())
}

/// What runs in guests only. Where guests cannot be made at all, that is said and counted as one skipped test.
fn guest(vmlb: &Path) -> Tally {
    if let Err(error) = guests::ready(kernel::FULL) {
        println!("\nSKIPPED: guests: {error:#}");
        return Tally { skipped: 1, ..Tally::default() };
    }
    let ran = rig().and_then(|artifacts| guest::test(kernel::FULL, Selection::Own, &artifacts, vmlb));
    ran.unwrap_or_else(|error| {
        println!("test guests ... FAILED\n{error:#}");
        Tally::one_failed()
    })
}

/// The tests against a real API server; they need no rights.
fn cluster(vmlb: &Path) -> Result<Tally> {
    one_binary(&Package { name: "vmlb-tests", rights: Rights::Own }, CLUSTER, vmlb, &[])
}

/// A real VM that migrates so often.
fn migrations(vmlb: &Path, count: &str) -> Result<Tally> {
    guests::ready_for_tests()?;
    let package = Package { name: "vmlb-tests", rights: Rights::Root };
    one_binary(&package, VM_MIGRATION, vmlb, &[(MIGRATIONS, OsStr::new(count))])
}

/// All tests of one test binary, with these variables.
fn one_binary(
    package: &Package,
    target: &str,
    vmlb: &Path,
    variables: &[(&'static str, &OsStr)],
) -> Result<Tally> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-run", "--package", package.name, "--test", target]);
    let artifacts = command::artifacts(cargo)?;
    let mut ours = artifacts.iter().filter(|artifact| artifact.target == target);
    ours.try_fold(Tally::default(), |mut tally, artifact| {
        tally += run_binary(artifact, package, vmlb, None, variables)?.0;
        Ok(tally)
    })
}

/// The object against the kernel's verifier and the budget, counted as one test.
fn verifier_budget() -> Tally {
    let judged = verify::verdicts(&build_ebpf::path())
        .and_then(|verdicts| budget::compare(&verify::figures(&verdicts)))
        .map(|differences| (!differences.is_empty()).then(|| build_ebpf::over_budget(&differences)));
    let complaint = judged.unwrap_or_else(|error| Some(format!("{error:#}")));
    println!(
        "test object_is_within_the_verifier_budget ... {}",
        complaint.as_ref().map_or("ok", |_| "FAILED")
    );
    let Some(complaint) = complaint else { return Tally::one_passed() };
    println!("{complaint}");
    Tally::one_failed()
}

/// Runs one test binary, passing its lines on as they come. Binaries run one after another: several use the same
/// cores and measure time.
fn run_binary(
    artifact: &Artifact,
    package: &Package,
    vmlb: &Path,
    filter: Option<&str>,
    more: &[(&'static str, &OsStr)],
) -> Result<(Tally, Outcomes)> {
    println!("\n{} {}", package.name, artifact.target);
    let mut variables =
        vec![("VMLB_BINARY", vmlb.as_os_str()), ("CARGO_MANIFEST_DIR", artifact.package.as_os_str())];
    variables.extend(more);
    let mut command = match package.rights {
        Rights::Own => Command::new(&artifact.executable),
        Rights::Root => {
            variables.extend(guest::variables().iter().map(|(name, value)| (*name, value.as_os_str())));
            command::as_root(&artifact.executable, variables.iter().copied())?
        }
    };
    command.envs(variables).args(filter).arg("--show-output");
    command.current_dir(&artifact.package).stdout(Stdio::piped());
    if let Some(threads) = env::var_os("VMLB_TEST_THREADS") {
        command.arg("--test-threads").arg(threads);
    }
    let mut child = command.spawn().with_context(|| format!("cannot start {}", command::show(&command)))?;
    let mut reader = Reader::default();
    for line in BufReader::new(child.stdout.take().context("standard output is piped")?).split(b'\n') {
        if let Some(line) = reader.read(&String::from_utf8_lossy(&line?)) {
            println!("{line}");
        }
    }
    std::io::stdout().flush()?;
    let status = child.wait()?;
    let outcomes = reader.outcomes();
    Ok((reader.finish(status.success()), outcomes))
}
