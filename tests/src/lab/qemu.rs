//! A real VM: the distribution's cloud kernel with [`crate::servers`] in its initramfs, emulated, and migrated by QEMU's own
//! protocol over a socket between the two processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use vmlb_guest::kernel::{self, Kernel};
use vmlb_guest::machine::{self, Machine};
use vmlb_guest::vm;

use super::launcher::{BRIDGE, Launcher};
use super::qmp::Qmp;
use super::{Guest, Switch};
use crate::namespace::Namespace;
use crate::topology::Topology;

/// The guest's memory in MiB: what it takes, and no more to copy.
const MEMORY: u32 = 96;

/// The link-layer address of the guest, which it keeps.
const MAC: &str = "02:00:00:00:0a:02";

/// The guest's device in the launcher.
const TAP: &str = "tap0";

/// Limits on a busy machine: of booting, and of a whole migration.
const BOOT: Duration = Duration::from_secs(120);
const MIGRATION: Duration = Duration::from_secs(60);

/// Why there can be no such VM here, if so.
pub fn reason() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(machine::QEMU).exists()) {
        return Some(format!("the program `{}` is not installed", machine::QEMU));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("this kernel has no TUN devices".to_owned());
    }
    parts().err().map(|error| format!("{error:#}; `cargo xtask setup --guests` gets what guests take"))
}

/// The kernel and the program that is process 1, as `cargo xtask test` names them.
fn parts() -> Result<(Kernel, Vec<u8>)> {
    let given = |variable: &str| {
        std::env::var_os(variable).map(PathBuf::from).with_context(|| format!("{variable} is not set"))
    };
    let tree = given(kernel::FOLDER_VARIABLE)?.join(kernel::CLOUD);
    let kernel = Kernel::at(&tree).with_context(|| format!("there is no kernel in {}", tree.display()))?;
    let init = given(kernel::INIT_VARIABLE)?;
    Ok((kernel, std::fs::read(&init).with_context(|| format!("reading {}", init.display()))?))
}

/// A running VM. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    /// Octets a second at which its memory is copied by its next migrations; `None`: QEMU's own limit.
    pub bandwidth: Option<u64>,
    kernel: Kernel,
    folder: PathBuf,
    processes: u32,
    process: Process,
}

/// One QEMU.
#[derive(Debug)]
struct Process {
    qmp: Qmp,
    emulator: Emulator,
}

/// The process and its device.
#[derive(Debug)]
struct Emulator {
    child: Child,
    place: Namespace,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        // The launcher may have gone with it.
        let _absent = self.place.ip(&format!("link del {TAP}\n"));
    }
}

impl Vm {
    /// Starts the VM `name` in `launcher` and waits until it serves.
    pub fn boot(topology: &Topology, name: &str, launcher: &Launcher) -> Result<Self> {
        let (kernel, init) = parts()?;
        let folder = topology.folder(name)?;
        std::fs::write(initramfs(&folder), vm::initramfs(&kernel, &init, name)?)?;
        let process = start(&kernel, &folder, 0, launcher, None)?;
        let vm = Self { bandwidth: None, kernel, folder, processes: 1, process };
        if !launcher.guest_answers(BOOT) {
            bail!("the VM does not serve; its kernel's last words:\n{}", vm.last_words());
        }
        Ok(vm)
    }

    /// Begins to move the VM to `target`; it goes on running where it is.
    pub fn begin(&mut self, target: &Launcher) -> Result<Migration<'_>> {
        let number = self.processes;
        self.processes += 1;
        let stream = self.folder.join(format!("migration{number}"));
        let next = start(&self.kernel, &self.folder, number, target, Some(&stream))?;
        let source = &mut self.process.qmp;
        if let Some(octets) = self.bandwidth {
            source.execute("migrate-set-parameters", &json!({"max-bandwidth": octets}))?;
        }
        source.execute("migrate", &json!({"uri": format!("unix:{}", stream.display())}))?;
        Ok(Migration { vm: self, next })
    }

    /// Stops the guest where it is.
    pub fn pause(&mut self) -> Result<()> {
        self.process.qmp.execute("stop", &json!({})).map(drop)
    }

    /// Lets a paused guest run on.
    pub fn resume(&mut self) -> Result<()> {
        self.process.qmp.execute("cont", &json!({})).map(drop)
    }

    /// The process id of the QEMU that runs the VM now: a node that dies takes it along.
    pub fn process(&self) -> u32 {
        self.process.emulator.child.id()
    }

    /// What the guest's kernel said last, at the place where it booted.
    pub fn last_words(&self) -> String {
        machine::last_words(&console(&self.folder, 0), 20)
    }
}

impl Guest for Vm {
    fn migrate(&mut self, target: &Launcher) -> Result<Switch> {
        self.begin(target)?.wait()
    }
}

/// A migration under way. Dropping it without [`Migration::wait`] or [`Migration::cancel`] ends the target's QEMU, which the
/// source survives.
#[derive(Debug)]
pub struct Migration<'a> {
    vm: &'a mut Vm,
    next: Process,
}

impl Migration<'_> {
    /// Waits until the VM runs at the target; the source's QEMU then ends.
    ///
    /// # Errors
    /// QEMU gives up, or it takes too long.
    pub fn wait(self) -> Result<Switch> {
        let Self { vm, mut next } = self;
        match settle(&mut vm.process.qmp)?.as_str() {
            "completed" => {}
            other => bail!("the migration ended as {other}"),
        }
        let stopped = vm.process.qmp.wait("STOP", MIGRATION)?.at;
        let resumed = next.qmp.wait("RESUME", MIGRATION)?.at;
        vm.process = next;
        Ok(Switch { stopped, resumed })
    }

    /// Gives the migration up; the VM stays where it is.
    ///
    /// # Errors
    /// It was too late.
    pub fn cancel(self) -> Result<()> {
        let source = &mut self.vm.process.qmp;
        source.execute("migrate_cancel", &json!({}))?;
        match settle(source)?.as_str() {
            "cancelled" => Ok(()),
            other => bail!("the migration ended as {other}"),
        }
    }
}

/// Waits until the source's migration has ended, and says how.
fn settle(source: &mut Qmp) -> Result<String> {
    let start = Instant::now();
    loop {
        let status =
            source.execute("query-migrate", &json!({}))?["status"].as_str().unwrap_or("none").to_owned();
        match status.as_str() {
            "completed" | "failed" | "cancelled" => return Ok(status),
            _ if start.elapsed() > MIGRATION => bail!("the migration is {status} after {MIGRATION:?}"),
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn initramfs(folder: &Path) -> PathBuf {
    folder.join("initramfs")
}

fn console(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("console{number}"))
}

/// Starts QEMU number `number` in `launcher`: booting, or waiting for the stream of a migration.
fn start(
    kernel: &Kernel,
    folder: &Path,
    number: u32,
    launcher: &Launcher,
    incoming: Option<&Path>,
) -> Result<Process> {
    let place = Namespace::open(launcher.namespace().name())?;
    place
        .ip(&format!("tuntap add dev {TAP} mode tap\nlink set {TAP} master {BRIDGE}\nlink set {TAP} up\n"))?;
    let socket = folder.join(format!("qmp{number}"));
    let mut machine = Machine::new(kernel, &initramfs(folder), &console(folder, number), MEMORY);
    machine
        .with(["-netdev", &format!("tap,id=lan,ifname={TAP},script=no,downscript=no")])
        // Without a boot ROM, which is in another package.
        .with(["-device", &format!("virtio-net-pci,netdev=lan,mac={MAC},romfile=")])
        .with(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
    if let Some(stream) = incoming {
        machine.with(["-incoming", &format!("unix:{}", stream.display())]);
    }
    // A target whose migration is cancelled complains.
    let complaints = folder.join(format!("qemu{number}"));
    let child = place
        .command(machine::QEMU)
        .args(machine.arguments())
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&complaints)?)
        .spawn()
        .context("starting QEMU")?;
    let emulator = Emulator { child, place };
    let qmp = Qmp::open(&socket).with_context(|| {
        format!("QEMU says: {}", std::fs::read_to_string(&complaints).unwrap_or_default())
    })?;
    Ok(Process { qmp, emulator })
}
