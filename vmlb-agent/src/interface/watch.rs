//! Netlink itself: dumps, routes looked up, and messages as things happen.

use std::net::IpAddr;

use anyhow::Context;
use futures_util::stream::TryStreamExt;
use futures_util::{FutureExt, Stream, StreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection};

use super::{Changed, Interfaces};

/// Addresses that no route but a default one covers: class E, and the first of the global unicast block (the default
/// route of some IPv6 networks is `2000::/3`). Asked one by one, not by dumping what may be a full BGP table.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(240, 0, 0, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)),
];

/// Octets of the socket's receive buffer: a node that restarts hundreds of pods speaks quickly.
const BUFFER: usize = 4 << 20;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Device they leave by.
    pub ifindex: u32,
    /// The neighbour there: the gateway, or the address itself.
    pub next_hop: IpAddr,
    /// Whether a gateway is in between.
    pub by_gateway: bool,
    /// The node's own address the kernel would use.
    pub source: Option<IpAddr>,
}

/// Connections to the kernel, in the network namespace of the thread that opened them: one listens, one asks. By one for both
/// an answer is lost where messages overrun the socket, and then waited for in vain, and a message that somebody's request
/// with the same number caused is taken for the answer.
pub struct Netlink {
    handle: Handle,
    /// The listening connection ends without it.
    _listening: Handle,
    messages: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin>,
}

impl Netlink {
    /// Connects, listening from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn connect() -> anyhow::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        const CANNOT: &str = "cannot open a netlink socket";
        let (mut connection, listening, messages) = new_multicast_connection(&groups).context(CANNOT)?;
        if let Err(error) = connection.socket_mut().socket_mut().set_rx_buf_sz(BUFFER) {
            tracing::debug!("netlink keeps its small buffer, what overruns is dumped again: {error}");
        }
        let (asking, handle, _) = new_connection().context(CANNOT)?;
        tokio::spawn(connection);
        tokio::spawn(asking);
        Ok(Self { handle, _listening: listening, messages: Box::new(messages.map(|(message, _)| message)) })
    }

    /// For requests of other kinds.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Everything there is.
    ///
    /// # Errors
    /// When the kernel refuses a dump.
    pub async fn dump(&self) -> anyhow::Result<Interfaces> {
        let mut interfaces = Interfaces::default();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.context("cannot list links")? {
            interfaces.apply(&RouteNetlinkMessage::NewLink(link));
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.context("cannot list addresses")? {
            interfaces.apply(&RouteNetlinkMessage::NewAddress(address));
        }
        let mut neighbours = self.handle.neighbours().get().execute();
        while let Some(neighbour) = neighbours.try_next().await.context("cannot list neighbours")? {
            interfaces.apply(&RouteNetlinkMessage::NewNeighbour(neighbour));
        }
        Ok(interfaces)
    }

    /// Waits for the next message, takes in all that are there, and says what they changed. `None`: messages were lost,
    /// dump again.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn changed(&mut self, interfaces: &mut Interfaces) -> anyhow::Result<Option<Changed>> {
        let gone = "the netlink connection is gone";
        let message = self.messages.next().await.context(gone)?;
        let mut changed = take(message, interfaces);
        while let Some(message) = self.messages.next().now_or_never() {
            let more = take(message.context(gone)?, interfaces);
            changed = changed.zip(more).map(|(before, more)| before.and(more));
        }
        Ok(changed)
    }

    /// Where packets of this node to `address` go; `None`: nowhere, or to the node itself.
    ///
    /// # Errors
    /// When the kernel answers something other than a route or "unreachable".
    pub async fn route(&self, address: IpAddr) -> anyhow::Result<Option<Route>> {
        let (length, family) =
            if address.is_ipv4() { (32, AddressFamily::Inet) } else { (128, AddressFamily::Inet6) };
        let mut message = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length)?.build();
        message.header.address_family = family;
        let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
        match routes.try_next().await {
            Ok(found) => Ok(found.and_then(|found| decode(&found, address))),
            Err(rtnetlink::Error::NetlinkError(error)) if is_unreachable(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot look up the route to {address}")),
        }
    }

    /// The default routes: at most one a family.
    ///
    /// # Errors
    /// As [`Netlink::route`].
    pub async fn default_routes(&self) -> anyhow::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for address in FAR {
            routes.extend(self.route(address).await?);
        }
        Ok(routes)
    }
}

fn is_unreachable(error: &rtnetlink::packet_core::ErrorMessage) -> bool {
    let number = -error.raw_code();
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ESRCH].contains(&number)
}

fn take(message: NetlinkMessage<RouteNetlinkMessage>, interfaces: &mut Interfaces) -> Option<Changed> {
    match message.payload {
        NetlinkPayload::InnerMessage(message) => Some(interfaces.apply(&message)),
        NetlinkPayload::Overrun(_) => None,
        _ => Some(Changed::NOTHING),
    }
}

fn decode(message: &RouteMessage, address: IpAddr) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = plain(address),
            // An IPv4 route by an IPv6 gateway (RFC 5549).
            RouteAttribute::Via(rtnetlink::packet_route::route::RouteVia::Inet6(address)) => {
                gateway = Some(IpAddr::V6(*address));
            }
            RouteAttribute::PrefSource(address) => source = plain(address),
            _ => {}
        }
    }
    Some(Route {
        ifindex: ifindex?,
        next_hop: gateway.unwrap_or(address),
        by_gateway: gateway.is_some(),
        source,
    })
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
