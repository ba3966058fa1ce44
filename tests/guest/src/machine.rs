//! QEMU's command line for a guest without disk and screen: the kernel and an initramfs, everything else by virtio.
//!
//! Guests are emulated (`tcg`): it works in every container and virtual machine, also where `/dev/kvm` opens but runs
//! nothing.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::kernel::Kernel;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// The kernel's console and the report go to different ports.
pub const CONSOLE: &str = "ttyS0";
/// The second serial port, where a test host reports.
pub const REPORT: &str = "ttyS1";

/// A guest to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    arguments: Vec<OsString>,
}

impl Machine {
    /// A machine with `memory` MiB that boots `kernel` with the initramfs at `initramfs`. What the kernel says goes to the file
    /// `console`; a panic ends QEMU.
    ///
    /// It has one processor. With two on threads of their own QEMU 7.2 let one of them run an instruction that the other had
    /// just patched (Linux 6.12 ends with "Oops: int3" while booting), and spinning on locks cost twice the time.
    #[must_use]
    pub fn new(kernel: &Kernel, initramfs: &Path, console: &Path, memory: u32) -> Self {
        let mut machine = Self { arguments: Vec::new() };
        machine
            .with(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            // `max` would have five levels of page tables, one more for the emulator to walk on every miss.
            .with(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max,la57=off"])
            .with(["-smp", "1", "-m", &memory.to_string()])
            .with(["-kernel"])
            .path("", &kernel.image)
            .with(["-initrd"])
            .path("", initramfs)
            .with(["-append", &parameters()])
            .with(["-serial"])
            .path("file:", console);
        machine
    }

    /// Adds arguments.
    pub fn with<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(OsString::from));
        self
    }

    /// Adds one argument made of `before` and a path.
    pub fn path(&mut self, before: &str, path: &Path) -> &mut Self {
        let mut argument = OsString::from(before);
        argument.push(path);
        self.arguments.push(argument);
        self
    }

    /// A second serial port that is QEMU's standard output.
    pub fn report(&mut self) -> &mut Self {
        self.with(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"])
    }

    /// Lets the guest read the folder `root` under the 9P tag `tag`.
    pub fn share(&mut self, root: &Path, tag: &str) -> &mut Self {
        let options = format!(",mount_tag={tag},security_model=none,readonly=on,multidevs=remap");
        let mut argument = OsString::from("local,path=");
        argument.push(root);
        argument.push(options);
        self.arguments.extend([OsString::from("-virtfs"), argument]);
        self
    }

    /// The command that starts it. QEMU ends with the thread that starts it, also where that is killed.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args(&self.arguments);
        // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe; no allocation, no lock.
        unsafe {
            command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        command
    }

    /// What to start [`QEMU`] with.
    #[must_use]
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }
}

/// The kernel's parameters.
fn parameters() -> String {
    // Mitigations cost an emulator much and protect nobody here; its clock runs unevenly, which is no reason to complain.
    format!("console={CONSOLE} loglevel=5 panic=-1 mitigations=off nokaslr nowatchdog tsc=reliable")
}

/// What is left of the kernel's words at the end of the file `console`.
#[must_use]
pub fn last_words(console: &Path, count: usize) -> String {
    let lines = words(console);
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// What the kernel says of itself, or of packets, that it never should: a bug, and a sum of a whole packet that was kept wrong
/// while the packet was rewritten. It says most of these once.
const COMPLAINTS: [&str; 4] = ["hw csum failure", "WARNING: ", "BUG: ", "Oops: "];

/// The kernel's complaints in the file `console`.
#[must_use]
pub fn complaints(console: &Path) -> Vec<String> {
    let mut lines = words(console);
    lines.retain(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
    lines
}

fn words(console: &Path) -> Vec<String> {
    let octets = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&octets);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_among_the_kernels_words() {
        let console = std::env::temp_dir().join(format!("vmlb-console-{}", std::process::id()));
        std::fs::write(
            &console,
            "[    0.04] tsc: Unable to calibrate\r\n\n[   60.26] eth0: hw csum failure\r\n",
        )
        .expect("a file");
        let (found, last) = (complaints(&console), last_words(&console, 1));
        std::fs::remove_file(&console).expect("removed");
        assert_eq!(found, ["[   60.26] eth0: hw csum failure"]);
        assert_eq!(last, "[   60.26] eth0: hw csum failure");
    }
}
