//! Datagrams cut by hand: a client that sends the fragments it likes in the order it likes.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use nix::unistd::Pid;

use crate::packets::frame::Frame;

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;

/// Sends packets with headers of its own.
#[derive(Debug)]
pub struct Sender(OwnedFd);

impl Sender {
    /// For packets to `server`, from the namespace of the calling thread, which stays on this CPU from now on: on their way
    /// from another one packets overtake each other.
    pub fn open(server: SocketAddr) -> Result<Self> {
        let mut cpu = CpuSet::new();
        cpu.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &cpu).context("staying on one CPU")?;
        let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        // Of protocol "raw": the packets have their IP headers.
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Ok(Self(raw.context("opening a raw socket")?))
    }

    /// Sends these in this order.
    pub fn send<'a>(&self, frames: impl IntoIterator<Item = &'a Frame>) -> Result<()> {
        for frame in frames {
            let mut to = frame.destination;
            to.set_port(0);
            let octets = frame.octets();
            sendto(self.0.as_raw_fd(), &octets[ETHERNET..], &SockaddrStorage::from(to), MsgFlags::empty())
                .context("sending a fragment")?;
        }
        Ok(())
    }
}
