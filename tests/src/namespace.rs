//! A network namespace as a guard: made by name, entered by `setns` on a thread of its own, removed when dropped.
//!
//! `ip netns exec` is not used because it mounts a fresh `/sys`, in which bpffs and every pin are missing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Where iproute2 keeps namespaces by name.
pub const FOLDER: &str = "/run/netns";

/// A named network namespace. Dropping it kills, by id, the processes that still live in it and removes it with every
/// device that is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
    owner: Owner,
}

/// Who removes a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This guard.
    Us,
    /// Another one.
    Other,
}

impl Namespace {
    /// Makes the namespace `name` with its loopback up and IPv6 addresses usable at once (no duplicate address
    /// detection). Fails if the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let mut namespace = Self::open(name)?;
        namespace.owner = Owner::Us;
        for (key, value) in [
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ] {
            namespace.set_sysctl(key, value)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace `name` that another guard keeps.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { name: name.to_owned(), handle: Arc::new(handle), owner: Owner::Other })
    }

    /// The name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file to give to `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Runs `work` on a thread inside the namespace and hands its result on. Sockets made there stay there.
    ///
    /// # Panics
    /// If the namespace cannot be entered, and with the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter().expect("entering a namespace that this process made");
                    work()
                })
                .join()
        });
        inside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread that lives inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let handle = Arc::clone(&self.handle);
        std::thread::spawn(move || {
            setns(&*handle, CloneFlags::CLONE_NEWNET).expect("entering a namespace that this process made");
            work()
        })
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> Result<()> {
        setns(&*self.handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns to {}", self.name))
    }

    /// A command that will run inside the namespace, in a process group of its own (so that an interrupt at the
    /// terminal reaches the rig first, which then stops it).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let handle = Arc::clone(&self.handle);
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: between fork and exec only setns(2) and sigprocmask(2) are called, which are async-signal-safe; no
        // allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                setns(&*handle, CloneFlags::CLONE_NEWNET)
                    // Signals that this program waits for in a thread of its own are nothing to the child.
                    .and_then(|()| SigSet::empty().thread_set_mask())
                    .map_err(|error| io::Error::from_raw_os_error(error as i32))
            });
        }
        command
    }

    /// Runs `program` with `arguments` inside and returns what it printed. Fails with its standard error.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments)).with_context(|| format!("in namespace {}", self.name))
    }

    /// Octets that a device has received.
    pub fn received(&self, device: &str) -> Result<u64> {
        let text = self.output("ip", &["-s", "-j", "link", "show", "dev", device])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["rx"]["bytes"].as_u64().with_context(|| format!("no counter in {text}"))
    }

    /// Carries out lines of `ip -batch`, all or up to the first that fails, which the error names.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Runs `program` with `input` on its standard input.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        child.stdin.take().context("a pipe was asked for")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} in namespace {} says: {}\ninput was:\n{input}", self.name, said.trim());
        }
        Ok(())
    }

    /// Switches offloads of `device` by `ethtool -K`, e.g. `["tx", "off"]`.
    pub fn offloads(&self, device: &str, settings: &[&str]) -> Result<()> {
        self.output("ethtool", &[&["-K", device], settings].concat()).map(drop)
    }

    /// Writes a sysctl by its path under `/proc/sys`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))
            .with_context(|| format!("setting {key} to {value} in {}", self.name))
    }

    /// Reads a file as a thread inside the namespace sees it, e.g. `/proc/thread-self/net/snmp`.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(|| fs::read_to_string(path)).with_context(|| format!("reading {path} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owner == Owner::Us {
            remove(&self.name);
        }
    }
}

/// Removes the namespace `name` as far as it is there: its processes by id, its devices, its name.
pub fn remove(name: &str) {
    let path = Path::new(FOLDER).join(name);
    for pid in processes(&path) {
        // The process may have ended by itself in between: nothing is lost then.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let removed = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    if removed.is_ok_and(|status| !status.success()) {
        // A name without a mounted namespace: what an interrupted `ip netns add` leaves behind.
        let _absent = fs::remove_file(&path);
    }
}

/// Processes whose network namespace is the one at `path`.
fn processes(path: &Path) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(path).map(|found| (found.dev(), found.ino())) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|found| (found.dev(), found.ino()) == wanted)
        })
        .filter(|pid| *pid != i32::try_from(std::process::id()).unwrap_or(0))
        .collect()
}

/// Runs a command to its end and returns its standard output; fails with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("starting `{shown}` (is it installed?)"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
