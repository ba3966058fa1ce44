//! An overlay in user space: TUN devices of two nodes, and a thread each way that carries packets over, as flannel's UDP
//! backend and WireGuard's programs do. Its packets have no Ethernet header.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;

/// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` of linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUN: u16 = 1;
const NO_PI: u16 = 0x1000;

/// `struct ifreq` as `TUNSETIFF` reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Carries packets while it lives.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Makes the TUN device `name` on both nodes, down and without addresses, and joins them.
    pub fn start(nodes: [&Namespace; 2], name: &str) -> Result<Self> {
        let [one, other] = nodes.map(|node| node.run(|| open(name)));
        let (one, other) = (one?, other?);
        let stop = Arc::new(AtomicBool::new(false));
        let pairs = [(one.try_clone()?, other.try_clone()?), (other, one)];
        let threads = pairs.map(|(from, to)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || carry(from, to, &stop))
        });
        Ok(Self { stop, threads: threads.into() })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn open(name: &str) -> Result<File> {
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: TUN | NO_PI, rest: [0; 22] };
    request.name.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    // SAFETY: the kernel reads and writes a `struct ifreq`, which lives here and has its 40 octets.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    ensure!(made == 0, "making TUN device {name}: {}", std::io::Error::last_os_error());
    Ok(file)
}

fn carry(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut packet = [0; 65_536];
    while !stop.load(Ordering::Acquire) {
        match from.read(&mut packet) {
            // A packet for which there is no room is lost, as on any wire.
            Ok(length) => drop(to.write(&packet[..length])),
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}
