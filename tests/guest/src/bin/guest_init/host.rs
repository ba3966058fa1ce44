//! A test host: the file system of the machine outside, below a layer in memory, and one job after another in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chroot};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use vmlb_guest::job::{self, Job, Line};
use vmlb_guest::machine;

/// Where everything is put together before it becomes the root.
const ROOT: &str = "/root";

/// What the kernel calls when it wants a module.
const MODPROBE: &str = "/run/modprobe";

/// The folder that the jobs find empty: what the machine outside has there belongs to what runs outside. Folders for
/// temporary files are seen as they are, for the project itself may be in one.
const RUN: &str = "/run";

/// Runs the jobs and reports on the second serial port.
///
/// # Errors
/// The host's files cannot be seen, or the port cannot be written.
pub fn run() -> Result<()> {
    let report = Mutex::new(port()?);
    let jobs = jobs()?;
    let tree =
        fs::read_to_string(Path::new("/").join(job::TREE)).context("reading the place of the modules")?;
    change_root()?;
    load_on_demand(&tree)?;
    tell(&report, &Line::Ready(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()))?;
    for (number, command) in jobs.into_iter().enumerate() {
        tell(&report, &Line::Begin(number))?;
        let success = carry_out(command, &report).unwrap_or_else(|error| {
            // The job's own failure; the next one may do better.
            let _said = tell(&report, &Line::Error(format!("{error:#}")));
            false
        });
        tell(&report, &Line::End(number, success))?;
    }
    let port = report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    nix::sys::termios::tcdrain(&port).context("waiting for the last line to leave")
}

/// Says on the port, if there is one, why the guest ends.
pub fn report_broken(error: &anyhow::Error) {
    if let Ok(port) = port() {
        let _said = tell(&Mutex::new(port), &Line::Broken(format!("{error:#}").replace('\n', " ")));
    }
}

/// The serial port of the report, passing on octets as they are.
fn port() -> Result<File> {
    let port = File::options().read(true).write(true).open(Path::new("/dev").join(machine::REPORT))?;
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    Ok(port)
}

fn tell(report: &Mutex<File>, line: &Line) -> Result<()> {
    let mut port = report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    port.write_all((line.encode() + "\n").as_bytes()).context("writing to the serial port")
}

fn jobs() -> Result<Vec<Command>> {
    let entries = fs::read_dir(Path::new("/").join(job::FOLDER))?;
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    paths.iter().map(|path| Job::decode(&fs::read(path)?)).collect()
}

/// The host's root, read only, under a layer that takes what is written, becomes this process's root, and with it that of
/// the kernel's own calls to `modprobe`, which share it.
fn change_root() -> Result<()> {
    let host = Path::new("/").join(job::HOST);
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any";
    mount(Some(job::HOST), &host, Some("9p"), MsFlags::MS_RDONLY, Some(options))
        .context("mounting the host's root")?;
    mount(Some("upper"), "/upper", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("mounting memory")?;
    for folder in ["/upper/changes", "/upper/work"] {
        fs::create_dir(folder)?;
    }
    let layers = format!("lowerdir={},upperdir=/upper/changes,workdir=/upper/work", host.display());
    mount(Some("root"), ROOT, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .context("mounting a layer over the host's root")?;
    for place in ["dev", "proc", "sys"] {
        let target = Path::new(ROOT).join(place);
        fs::create_dir_all(&target)?;
        mount(Some(&Path::new("/").join(place)), &target, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("moving /{place}"))?;
    }
    std::env::set_current_dir(ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root")?;
    chroot(".").context("changing the root")?;
    std::env::set_current_dir("/")?;
    fs::create_dir_all(RUN)?;
    mount(Some("empty"), RUN, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting memory on {RUN}"))
}

/// Has the kernel find its modules in `tree`, which is not where `modprobe` would look.
fn load_on_demand(tree: &str) -> Result<()> {
    fs::write(MODPROBE, format!("#!/bin/sh\nexec /sbin/modprobe -d '{tree}' \"$@\"\n"))?;
    fs::set_permissions(MODPROBE, fs::Permissions::from_mode(0o755))?;
    fs::write("/proc/sys/kernel/modprobe", MODPROBE).context("telling the kernel how to load modules")
}

/// Runs a job to its end, passing on its lines; whether it ended well.
fn carry_out(mut command: Command, report: &Mutex<File>) -> Result<bool> {
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env(job::IN_GUEST, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let output = child.stdout.take().context("a pipe was asked for")?;
    let errors = child.stderr.take().context("a pipe was asked for")?;
    thread::scope(|scope| {
        scope.spawn(|| pass_on(output, report, Line::Output));
        scope.spawn(|| pass_on(errors, report, Line::Error));
        Ok(child.wait()?.success())
    })
}

fn pass_on(from: impl Read, report: &Mutex<File>, kind: fn(String) -> Line) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        if tell(report, &kind(String::from_utf8_lossy(&line).into_owned())).is_err() {
            return;
        }
    }
}
