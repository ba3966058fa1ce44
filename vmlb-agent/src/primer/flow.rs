//! An established flow, and the packet that tells its target's connection tracking of it.

use std::net::{IpAddr, SocketAddr};

use vmlb_common::abi::{Delivery, Flow, FlowKey, Life, Seen, Tunnel, TunnelShape};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::{Protocol, TcpFlags};

use crate::counts::Family;
use crate::handover::way::Way;
use crate::raw::Packet;
use crate::raw::packet::{Payload, TTL};

/// A window that neither closes nor opens a door: the segment is not acceptable (RFC 9293 section 3.10.7.4), so that nobody
/// goes by it.
const WINDOW: u16 = 1024;

/// The key of a flow of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// IPv4.
    V4(FlowKey<Address4>),
    /// IPv6.
    V6(FlowKey<Address6>),
}

/// A flow as far as a packet is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// Its key.
    pub key: Key,
    /// Backend id.
    pub backend: u32,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// [`Seen`].
    pub flags: u32,
    /// [`Life`].
    pub life: u32,
    /// When the client's last packet passed, jiffies.
    pub seen: u32,
    /// The client.
    pub client: SocketAddr,
    /// What it addressed.
    pub frontend: SocketAddr,
    /// Whom the backend sees.
    pub peer: SocketAddr,
    /// Port on the backend.
    pub target_port: u16,
    /// What the backend sees as the client.
    pub delivery: Delivery,
    /// Sequence number of the client's next octet.
    pub next: u32,
    /// The client's last acknowledgment.
    pub acknowledged: u32,
}

/// Why a flow gets no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It is about to end: what it still has to say it says by itself.
    Closed,
    /// The target has no endpoint of its family.
    Family,
    /// Its client's address is kept, the target is on another node, and there is no way there by tunnel.
    Tunnel,
    /// An empty datagram could reach the guest: how many hops are in between is not known.
    Hops,
}

impl Established {
    /// As the map has it.
    #[must_use]
    pub fn new<F: Family>(key: Key, own: &FlowKey<F>, flow: &Flow<F>) -> Self {
        Self {
            key,
            backend: flow.backend,
            protocol: Protocol::new(own.protocol),
            flags: flow.flags,
            life: flow.life,
            seen: flow.seen,
            client: SocketAddr::new(own.client.ip(), own.client_port),
            frontend: SocketAddr::new(own.frontend.ip(), own.frontend_port),
            peer: SocketAddr::new(flow.peer.ip(), flow.peer_port),
            target_port: flow.target_port,
            delivery: flow.delivery,
            next: flow.next,
            acknowledged: flow.acknowledged,
        }
    }

    /// Whether it has something to lose by a migration.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.life != Life::DEAD && self.flags & (Seen::CLIENT_FIN | Seen::BACKEND_FIN | Seen::RST) == 0
    }

    /// The packet that goes to the target at the end of one of `ways`.
    ///
    /// # Errors
    /// When there is to be none.
    pub fn packet(&self, ways: &[Way], tag: u32, tunnel: Tunnel) -> Result<Packet, Without> {
        if !self.is_open() {
            return Err(Without::Closed);
        }
        let is_v4 = self.client.is_ipv4();
        let way = ways.iter().find(|way| way.endpoint.address.is_ipv4() == is_v4).ok_or(Without::Family)?;
        let target = SocketAddr::new(way.endpoint.address, self.target_port);
        if self.delivery.keeps_source() && !way.endpoint.is_local {
            return self.tunnelled(way, tag, tunnel);
        }
        let ttl = if self.protocol == Protocol::UDP { way.hops.ok_or(Without::Hops)? } else { TTL };
        Packet::new(self.peer, target, ttl, self.payload()).ok_or(Without::Family)
    }

    /// The client's packet as it would come, on its way to the node where it is to be delivered. That node forwards what it
    /// has taken out of the tunnel: the second hop is the launcher.
    fn tunnelled(&self, way: &Way, tag: u32, tunnel: Tunnel) -> Result<Packet, Without> {
        let ttl = if self.protocol == Protocol::UDP { 2 } else { TTL };
        let inner = Packet::new(self.client, self.frontend, ttl, self.payload()).ok_or(Without::Family)?;
        let ends: Option<(IpAddr, IpAddr)> = way.outer.zip(way.endpoint.node);
        let (outer, node) = ends.ok_or(Without::Tunnel)?;
        let tag = u16::try_from(tag & 0x7fff).unwrap_or(0);
        match tunnel.shape {
            TunnelShape::IP => inner.within_ip(outer, node, tag).ok_or(Without::Tunnel),
            TunnelShape::UDP => inner.within_udp(outer, node, tag, tunnel).ok_or(Without::Tunnel),
            _ => Err(Without::Tunnel),
        }
    }

    /// Below the window by one, as a keepalive probe is: whoever knows the connection answers with what it waits for.
    fn payload(&self) -> Payload {
        if self.protocol == Protocol::UDP {
            return Payload::Udp;
        }
        Payload::Tcp {
            sequence: self.next.wrapping_sub(1),
            acknowledgment: self.acknowledged,
            flags: TcpFlags::ACK,
            window: WINDOW,
        }
    }
}
