//! Packets that the agent sends by itself, whole: raw sockets of both families on which the kernel does nothing but route
//! (`IP_HDRINCL`). Nothing is ever received on them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

pub mod packet;

pub use packet::Packet;

/// Octets that may wait for devices; a burst of some thousand packets of the smallest kind.
const BUFFER: usize = 4 << 20;

/// The sockets. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct RawSockets {
    v4: Socket,
    /// `None`: the kernel has no IPv6.
    v6: Option<Socket>,
}

impl RawSockets {
    /// Opens them in the network namespace of this thread.
    ///
    /// # Errors
    /// When the right is missing.
    pub fn open() -> anyhow::Result<Self> {
        let refused = "cannot open a raw socket; this needs CAP_NET_RAW";
        Ok(Self {
            v4: socket(Domain::IPV4).context(refused)?,
            v6: match socket(Domain::IPV6) {
                Ok(socket) => Some(socket),
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
                Err(error) => return Err(error).context(refused),
            },
        })
    }

    /// Hands a packet to the kernel, which routes it by its destination. Does not wait.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when the device or the socket takes no more at the moment; else what the kernel says, as a
    /// route that is missing.
    pub fn send(&self, packet: &Packet) -> io::Result<()> {
        let to = SocketAddr::new(packet.next(), 0).into();
        let socket = match packet.next() {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(ErrorKind::Unsupported)?,
        };
        match socket.send_to(packet.octets(), &to) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        }
    }
}

/// A socket of protocol 255, which sends whole packets and receives none (raw(7)).
fn socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(BUFFER)?;
    Ok(socket)
}
