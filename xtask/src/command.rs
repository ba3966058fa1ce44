//! Other programs: where they are, how they are run, with which rights.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The cargo that runs this program, for what is built for the host.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    // What `cargo run` tells of xtask is not so of what is built here; build scripts that look at it would run anew whenever
    // cargo is started by hand in between.
    let of_xtask = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_xtask)) {
        cargo.env_remove(name);
    }
    cargo
}

/// `program` with root's rights and the variables given: itself where we have them, else through sudo.
///
/// # Errors
/// Neither root nor a sudo.
pub fn as_root<'v>(
    program: impl AsRef<OsStr>,
    variables: impl IntoIterator<Item = (&'v str, &'v OsStr)>,
) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(variables);
        return Ok(command);
    }
    let Some(sudo) = find("sudo") else {
        bail!("{} needs root: run this command as root, or install sudo", program.as_ref().display());
    };
    let mut command = Command::new(sudo);
    // Through env(1), because a sudo policy may forbid keeping the environment.
    command.args(["--", "env"]);
    for (name, value) in variables {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        command.arg(word);
    }
    command.arg(program);
    Ok(command)
}

/// Folders that hold commands: those of `PATH`, and those of the administrator, which a user's `PATH` often lacks.
pub fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = Vec::new();
    for folder in env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
    {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The first command of that name.
pub fn find(name: &str) -> Option<PathBuf> {
    folders().into_iter().map(|folder| folder.join(name)).find(|file| is_executable(file))
}

/// Whether `file` can be run.
pub fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a command in the foreground.
///
/// # Errors
/// It does not start, or ends with another code than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Says what is run, and runs it.
///
/// # Errors
/// As [`run`].
pub fn run_aloud(command: &mut Command) -> Result<()> {
    println!("    $ {}", show(command));
    run(command)
}

/// What a command prints, or nothing if it fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// A program that cargo has built.
pub struct Artifact {
    /// Name of the target.
    pub target: String,
    /// The file.
    pub executable: PathBuf,
    /// The package's folder.
    pub package: PathBuf,
}

/// Runs a cargo that builds, and returns the programs it names.
///
/// # Errors
/// The build fails.
pub fn artifacts(mut cargo: Command) -> Result<Vec<Artifact>> {
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let shown = show(&cargo);
    let output = cargo.spawn().with_context(|| format!("cannot start {shown}"))?.wait_with_output()?;
    if !output.status.success() {
        bail!("{shown} ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

/// The program in one of cargo's messages, if it is about one.
fn artifact(line: &str) -> Option<Artifact> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    Some(Artifact {
        target: message.get("target")?.get("name")?.as_str()?.to_owned(),
        executable: message.get("executable")?.as_str()?.into(),
        package: manifest.parent()?.to_path_buf(),
    })
}
