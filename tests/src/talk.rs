//! Conversations that have to outlive what a test does meanwhile.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};

use crate::address::Family;
use crate::cluster::Cluster;
use crate::requests::{self, Conversation};
use crate::servers;

/// Connections that have to live on where they are.
#[derive(Debug)]
pub struct Talk {
    conversations: Vec<(Conversation, String)>,
    datagrams: Vec<(UdpSocket, String, IpAddr)>,
}

impl Talk {
    /// Opens so many of TCP and of UDP to a Service, spread over families and nodes. Every other one comes from a port that
    /// vmlb may use for SNAT.
    pub fn open(cluster: &Cluster, service: &str, tcp: usize, udp: usize) -> Result<Self> {
        let mut talk = Self { conversations: Vec::new(), datagrams: Vec::new() };
        for number in 0..tcp.max(udp) {
            let family = Family::ALL[number % 2];
            let node = number / 2 % 2;
            let lines = cluster.frontend(service, servers::LINES, node, family)?;
            let echo = cluster.frontend(service, servers::ECHO, node, family)?;
            let low = number / 4 % 2 == 0;
            if number < tcp {
                talk.converse(cluster.client().run(|| connect(lines, low).and_then(Conversation::over))?)?;
            }
            if number < udp {
                talk.exchange(cluster.client().run(|| datagrams(echo, low))?)?;
            }
        }
        Ok(talk)
    }

    /// Opens so many of TCP and of UDP to each of these Services, by each family, through each of these nodes.
    pub fn with_each(
        cluster: &Cluster,
        services: &[&str],
        nodes: Range<usize>,
        tcp: usize,
        udp: usize,
    ) -> Result<Self> {
        let mut talk = Self { conversations: Vec::new(), datagrams: Vec::new() };
        for (family, service) in
            Family::ALL.into_iter().flat_map(|family| services.iter().map(move |service| (family, service)))
        {
            for node in nodes.clone() {
                let lines = cluster.frontend(service, servers::LINES, node, family)?;
                let echo = cluster.frontend(service, servers::ECHO, node, family)?;
                for _ in 0..tcp {
                    talk.converse(cluster.client().run(|| Conversation::open(lines))?)?;
                }
                for _ in 0..udp {
                    talk.exchange(cluster.client().run(|| requests::datagrams(echo))?)?;
                }
            }
        }
        Ok(talk)
    }

    fn converse(&mut self, mut conversation: Conversation) -> Result<()> {
        let pod = conversation.ask("first")?;
        self.conversations.push((conversation, pod));
        Ok(())
    }

    fn exchange(&mut self, socket: UdpSocket) -> Result<()> {
        let (pod, client) = requests::who(&socket)?;
        // The second datagram proves the flow.
        requests::who(&socket)?;
        self.datagrams.push((socket, pod, client));
        Ok(())
    }

    /// Asks on every connection; the same pods have to answer, and to see the same client.
    pub fn go_on(&mut self) -> Result<()> {
        for (conversation, pod) in &mut self.conversations {
            let found = conversation.ask("again")?;
            ensure!(found == *pod, "a connection moved from {pod} to {found}");
        }
        for (socket, pod, client) in &self.datagrams {
            let found = requests::who(socket)?;
            ensure!(found == (pod.clone(), *client), "a UDP flow moved from {pod} to {found:?}");
        }
        Ok(())
    }
}

/// A TCP connection, from a port among vmlb's SNAT ports if `low`.
fn connect(server: SocketAddr, low: bool) -> Result<TcpStream> {
    if !low {
        return requests::connect(server);
    }
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind_low(&socket, server)?;
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(server))
        .with_context(|| format!("connecting to {server}"))?;
    requests::prepared(TcpStream::from(socket))
}

fn datagrams(server: SocketAddr, low: bool) -> Result<UdpSocket> {
    if !low {
        return requests::datagrams(server);
    }
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    bind_low(&socket, server)?;
    let socket = UdpSocket::from(socket);
    socket.connect(server)?;
    socket.set_read_timeout(Some(requests::PATIENCE))?;
    Ok(socket)
}

/// Binds a socket to the first port from 20000 on that is free.
fn bind_low(socket: &std::os::fd::OwnedFd, server: SocketAddr) -> Result<()> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    for port in 20_000..30_000 {
        let address = SockaddrStorage::from(SocketAddr::new(any, port));
        if bind(std::os::fd::AsRawFd::as_raw_fd(socket), &address).is_ok() {
            return Ok(());
        }
    }
    bail!("no port is free")
}
