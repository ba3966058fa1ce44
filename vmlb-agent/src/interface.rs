//! The node's own links, addresses and neighbours as netlink tells them, and what of a message matters to vmlb.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    BondMode, BridgeStpState, InfoBond, InfoBridge, InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteFlags;

pub mod features;
pub mod flag;
pub mod footing;
pub mod generic;
pub mod hooks;
pub mod offloads;
pub mod overlays;
pub mod policy;
pub mod straight;
pub mod uplinks;
pub mod watch;

/// What a packet on a device begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// The IP header: tunnels in IP.
    Ip,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `veth`, `bridge`, …; empty for hardware.
    pub kind: String,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// Link-layer address.
    pub address: Vec<u8>,
    /// Index of the bridge, bond or VRF it belongs to.
    pub controller: Option<u32>,
    /// Largest packet, octets.
    pub mtu: u32,
    /// What packets begin with.
    pub framing: Framing,
    /// Index of the device that a VLAN is on, in this network namespace.
    pub parent: Option<u32>,
    /// A VLAN's tag: TPID in the upper half, VLAN in the lower one.
    pub tag: Option<u32>,
    /// A bridge that does not take every frame: it runs STP, or filters VLANs.
    pub is_choosy: bool,
    /// A bond that keeps members in reserve: the kernel drops what comes by those.
    pub has_reserve: bool,
}

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// How far it reaches and whether it may be used.
    pub standing: Standing,
}

/// What an address is good for; better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Global, and the first choice for packets of the node.
    Primary,
    /// Global, but secondary, temporary or deprecated.
    Secondary,
    /// Not global, or not proved to be unique (yet): not for us.
    Unusable,
}

/// What a message changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed(u8);

impl Changed {
    /// Nothing that matters.
    pub const NOTHING: Self = Self(0);
    /// A link appeared, vanished or changed.
    pub const LINKS: Self = Self(1);
    /// A link was spoken of; what netlink does not tell with it (XDP features) may have changed.
    pub const FEATURES: Self = Self(2);
    /// Addresses.
    pub const ADDRESSES: Self = Self(4);
    /// Routes or routing rules.
    pub const ROUTES: Self = Self(8);
    /// A neighbour's link-layer address, or that it is reachable at all.
    pub const NEIGHBOURS: Self = Self(16);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether anything of `other` is in it.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a next hop that the FIB gave earlier may be wrong now.
    #[must_use]
    pub const fn voids_hops(self) -> bool {
        self.has(Self(Self::LINKS.0 | Self::ADDRESSES.0 | Self::ROUTES.0 | Self::NEIGHBOURS.0))
    }
}

/// Everything netlink has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<Address>>,
    neighbours: BTreeMap<(u32, IpAddr), Vec<u8>>,
}

impl Interfaces {
    /// The links, by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The link of that index.
    #[must_use]
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// The link of that name.
    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The usable addresses of a link, as the kernel orders them.
    pub fn addresses(&self, ifindex: u32) -> impl Iterator<Item = &Address> {
        self.addresses
            .get(&ifindex)
            .into_iter()
            .flatten()
            .filter(|address| address.standing != Standing::Unusable)
    }

    /// The link that carries an address.
    #[must_use]
    pub fn link_of(&self, address: IpAddr) -> Option<&Link> {
        let (ifindex, _) =
            self.addresses.iter().find(|(_, carried)| carried.iter().any(|one| one.address == address))?;
        self.links.get(ifindex)
    }

    /// Whether the kernel may have no entry for a neighbour behind a device that is up: none with a link-layer address is
    /// known.
    #[must_use]
    pub fn may_lack(&self, ifindex: u32, neighbour: IpAddr) -> bool {
        self.link(ifindex).is_some_and(|link| link.up) && !self.neighbours.contains_key(&(ifindex, neighbour))
    }

    /// Takes in a message, from a dump or as it happens.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Changed {
        match message {
            // A bridge speaks of its ports in the same words.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family != rtnetlink::packet_route::AddressFamily::Unspec =>
            {
                Changed::NOTHING
            }
            RouteNetlinkMessage::NewLink(link) => self.put_link(link),
            RouteNetlinkMessage::DelLink(link) => self.remove_link(link.header.index),
            RouteNetlinkMessage::NewAddress(address) => self.put_address(address),
            RouteNetlinkMessage::DelAddress(address) => self.remove_address(address),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.put_neighbour(neighbour),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.forget_neighbour(neighbour),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                if !route.header.flags.contains(RouteFlags::Cloned) =>
            {
                Changed::ROUTES
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Changed::ROUTES,
            _ => Changed::NOTHING,
        }
    }

    fn put_link(&mut self, message: &LinkMessage) -> Changed {
        let link = decode_link(message);
        let old = self.links.insert(link.ifindex, link);
        if old.as_ref() == self.links.get(&message.header.index) { Changed::FEATURES } else { Changed::LINKS }
    }

    fn remove_link(&mut self, ifindex: u32) -> Changed {
        self.addresses.remove(&ifindex);
        self.neighbours.retain(|(of, _), _| *of != ifindex);
        if self.links.remove(&ifindex).is_some() { Changed::LINKS } else { Changed::NOTHING }
    }

    fn put_address(&mut self, message: &AddressMessage) -> Changed {
        let Some(address) = decode_address(message) else { return Changed::NOTHING };
        let carried = self.addresses.entry(message.header.index).or_default();
        match carried.iter_mut().find(|one| one.address == address.address) {
            // Lifetimes are renewed by the minute; only what we look at counts.
            Some(old) if *old == address => return Changed::NOTHING,
            Some(old) => *old = address,
            None => carried.push(address),
        }
        Changed::ADDRESSES
    }

    fn remove_address(&mut self, message: &AddressMessage) -> Changed {
        let Some(gone) = decode_address(message) else { return Changed::NOTHING };
        let Some(carried) = self.addresses.get_mut(&message.header.index) else { return Changed::NOTHING };
        let before = carried.len();
        carried.retain(|one| one.address != gone.address);
        if carried.len() == before { Changed::NOTHING } else { Changed::ADDRESSES }
    }

    fn put_neighbour(&mut self, message: &NeighbourMessage) -> Changed {
        let Some(key) = neighbour_key(message) else { return Changed::NOTHING };
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => Some(address.clone()),
            _ => None,
        });
        let usable = !matches!(
            message.header.state,
            NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
        );
        match address.filter(|_| usable) {
            // One that is new was in no hop; one that moves through its states keeps its address.
            Some(address) => match self.neighbours.insert(key, address.clone()) {
                Some(old) if old != address => Changed::NEIGHBOURS,
                _ => Changed::NOTHING,
            },
            None => self.drop_neighbour(key),
        }
    }

    fn forget_neighbour(&mut self, message: &NeighbourMessage) -> Changed {
        neighbour_key(message).map_or(Changed::NOTHING, |key| self.drop_neighbour(key))
    }

    fn drop_neighbour(&mut self, key: (u32, IpAddr)) -> Changed {
        if self.neighbours.remove(&key).is_some() { Changed::NEIGHBOURS } else { Changed::NOTHING }
    }
}

fn decode_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        framing: match message.header.link_layer_type {
            LinkLayerType::Ether | LinkLayerType::Loopback => Framing::Ethernet,
            _ => Framing::Ip,
        },
        ..Link::default()
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => link.address.clone_from(address),
            LinkAttribute::Controller(controller) => {
                link.controller = Some(*controller).filter(|index| *index != 0)
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(parent) => link.parent = Some(*parent).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(about) => about.iter().for_each(|about| note_kind(&mut link, about)),
            _ => {}
        }
    }
    if elsewhere {
        link.parent = None;
    }
    link
}

fn note_kind(link: &mut Link, about: &LinkInfo) {
    match about {
        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
        LinkInfo::Data(InfoData::Vlan(about)) => {
            let (mut kind, mut vlan) = (0x8100, 0);
            for about in about {
                match about {
                    InfoVlan::Id(id) => vlan = u32::from(*id),
                    InfoVlan::Protocol(protocol) => kind = u32::from(u16::from(*protocol)),
                    _ => {}
                }
            }
            link.tag = Some(kind << 16 | vlan);
        }
        LinkInfo::Data(InfoData::Bridge(about)) => {
            link.is_choosy = about.iter().any(|about| match about {
                InfoBridge::VlanFiltering(filters) => *filters,
                InfoBridge::StpState(state) => *state != BridgeStpState::Disabled,
                _ => false,
            });
        }
        LinkInfo::Data(InfoData::Bond(about)) => {
            link.has_reserve = about
                .iter()
                .any(|about| matches!(about, InfoBond::Mode(BondMode::ActiveBackup | BondMode::Ieee8023Ad)));
        }
        _ => {}
    }
}

fn decode_address(message: &AddressMessage) -> Option<Address> {
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the other attribute is the far end.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(other)?;
    let unproved = AddressFlags::Dadfailed | AddressFlags::Tentative;
    let second_choice = AddressFlags::Secondary | AddressFlags::Deprecated;
    let standing = match header.scope {
        AddressScope::Universe | AddressScope::Site
            if flags.intersects(unproved) && !flags.contains(AddressFlags::Optimistic) =>
        {
            Standing::Unusable
        }
        AddressScope::Universe | AddressScope::Site if flags.intersects(second_choice) => Standing::Secondary,
        AddressScope::Universe | AddressScope::Site => Standing::Primary,
        _ => Standing::Unusable,
    };
    Some(Address { address, standing })
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    Some((message.header.ifindex, address))
}

// The header's flags are the low octet of the attribute's.
const _: () = assert!(AddressHeaderFlags::Tentative.bits() as u32 == AddressFlags::Tentative.bits());

#[cfg(test)]
mod tests;
