//! Connections that the node's own conntrack carries and translates, by ctnetlink.

use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, bail};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Status, Tuple as Part,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// Multicast group of new connections, as a bit (`NF_NETLINK_CONNTRACK_NEW`).
const NEW: u32 = 1;

/// A tuple as a packet carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// What conntrack has on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IANA protocol number.
    pub protocol: u8,
    /// The client's packets as they came.
    pub original: Tuple,
    /// The answers as they come.
    pub reply: Tuple,
    /// Whether and how it is translated.
    pub status: Status,
}

/// New connections, from the moment it is made until it is dropped.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel has no conntrack or does not tell of it.
    pub fn subscribe() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).context("cannot open a netfilter socket")?;
        socket.bind(&SocketAddr::new(0, NEW)).context("cannot listen to new connections")?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(4usize << 20)?;
        Ok(Self { socket })
    }

    /// The connections that began since the last call.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub fn take(&mut self) -> anyhow::Result<Vec<Connection>> {
        let mut connections = Vec::new();
        loop {
            match self.socket.recv_from_full() {
                Ok((octets, _)) => drop(parse(&octets, &mut connections)?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(connections),
                // Events were lost: their connections are in the list by now.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    connections.extend(translated()?)
                }
                Err(error) => return Err(error).context("cannot read new connections"),
            }
        }
    }
}

/// Every connection of both families whose destination the kernel translates.
///
/// # Errors
/// When the kernel has no conntrack, or does not list its connections.
pub fn translated() -> anyhow::Result<Vec<Connection>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let question = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        // Kernels that do not filter by status list them all.
        ConntrackMessage::Get(vec![ConntrackAttribute::CtaStatus(Status::DstNat)]),
    );
    let mut question = NetlinkMessage::new(header, NetlinkPayload::from(question));
    question.finalize();
    let mut octets = vec![0; question.buffer_len()];
    question.serialize(&mut octets);
    socket.send(&octets, 0).context("cannot ask for connections")?;
    let mut connections = Vec::new();
    loop {
        let (octets, _) = socket.recv_from_full().context("cannot list connections")?;
        if parse(&octets, &mut connections)? == Stream::Done {
            connections.retain(|connection| connection.status.contains(Status::DstNat));
            return Ok(connections);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Open,
    Done,
}

/// Takes the messages of one datagram apart.
fn parse(octets: &[u8], connections: &mut Vec<Connection>) -> anyhow::Result<Stream> {
    let mut rest = octets;
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .context("malformed message of netfilter")?;
        // Messages are padded to four octets.
        let length = usize::try_from(message.header.length)?.next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(Stream::Done),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                bail!("the kernel does not list connections: {}", error.to_io());
            }
            NetlinkPayload::InnerMessage(message) => {
                if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner {
                    connections.extend(connection(&attributes));
                }
            }
            _ => {}
        }
    }
    Ok(Stream::Open)
}

fn connection(attributes: &[ConntrackAttribute]) -> Option<Connection> {
    let (mut original, mut reply, mut status) = (None, None, Status::empty());
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = tuple(parts),
            ConntrackAttribute::CtaStatus(bits) => status = *bits,
            _ => {}
        }
    }
    let (protocol, original) = original?;
    Some(Connection { protocol, original, reply: reply?.1, status })
}

fn tuple(parts: &[Part]) -> Option<(u8, Tuple)> {
    let (mut source, mut destination, mut source_port, mut destination_port, mut protocol) =
        (None, None, None, None, None);
    for part in parts {
        match part {
            Part::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Part::Proto(ports) => {
                for port in ports {
                    match port {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let tuple = Tuple {
        source: source?,
        destination: destination?,
        source_port: source_port?,
        destination_port: destination_port?,
    };
    Some((protocol?, tuple))
}
