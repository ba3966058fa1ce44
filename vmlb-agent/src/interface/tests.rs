use std::net::Ipv4Addr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::InfoKind;

use super::*;

fn link(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
    ];
    message
}

fn address(last: u8, flags: AddressFlags) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = 7;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(Ipv4Addr::new(192, 0, 2, last).into()), AddressAttribute::Flags(flags)];
    message
}

fn neighbour(state: NeighbourState, mac: Option<u8>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = 7;
    message.header.state = state;
    message.attributes =
        vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(192, 0, 2, 9)))];
    message.attributes.extend(mac.map(|octet| NeighbourAttribute::LinkLayerAddress(vec![octet; 6])));
    message
}

#[test]
fn a_link_that_says_the_same_again_voids_nothing() {
    let mut interfaces = Interfaces::default();
    assert!(interfaces.apply(&RouteNetlinkMessage::NewLink(link("eth0"))).voids_hops());
    let again = interfaces.apply(&RouteNetlinkMessage::NewLink(link("eth0")));
    assert!(!again.voids_hops() && again.has(Changed::FEATURES));
    assert!(interfaces.apply(&RouteNetlinkMessage::NewLink(link("eth1"))).has(Changed::LINKS));
    assert_eq!(
        interfaces.link_named("eth1").map(|link| (link.ifindex, link.kind.as_str())),
        Some((7, "veth"))
    );
    assert!(interfaces.apply(&RouteNetlinkMessage::DelLink(link("eth1"))).has(Changed::LINKS));
    assert!(interfaces.link(7).is_none());
}

#[test]
fn a_port_that_leaves_its_bridge_does_not_take_the_link_away() {
    let mut interfaces = Interfaces::default();
    interfaces.apply(&RouteNetlinkMessage::NewLink(link("eth0")));
    let mut port = link("eth0");
    port.header.interface_family = AddressFamily::Bridge;
    assert_eq!(interfaces.apply(&RouteNetlinkMessage::DelLink(port)), Changed::NOTHING);
    assert!(interfaces.link(7).is_some());
}

#[test]
fn addresses_keep_the_kernels_order_and_only_usable_ones_are_given() {
    let mut interfaces = Interfaces::default();
    for (last, flags) in [
        (1, AddressFlags::Permanent),
        (2, AddressFlags::Secondary),
        (3, AddressFlags::Tentative),
        (4, AddressFlags::Dadfailed),
    ] {
        assert_eq!(
            interfaces.apply(&RouteNetlinkMessage::NewAddress(address(last, flags))),
            Changed::ADDRESSES
        );
    }
    let renewed = interfaces.apply(&RouteNetlinkMessage::NewAddress(address(1, AddressFlags::Permanent)));
    assert_eq!(renewed, Changed::NOTHING);
    let found: Vec<_> = interfaces.addresses(7).map(|one| (one.address.to_string(), one.standing)).collect();
    let first = ("192.0.2.1".to_owned(), Standing::Primary);
    assert_eq!(found, [first, ("192.0.2.2".to_owned(), Standing::Secondary)]);
    let gone = RouteNetlinkMessage::DelAddress(address(1, AddressFlags::Permanent));
    assert_eq!(interfaces.apply(&gone), Changed::ADDRESSES);
    assert_eq!(interfaces.apply(&gone), Changed::NOTHING);
}

#[test]
fn only_another_link_layer_address_or_a_failure_voids_hops() {
    let mut interfaces = Interfaces::default();
    for (state, mac, voids) in [
        (NeighbourState::Incomplete, None, false),
        (NeighbourState::Reachable, Some(1), false),
        (NeighbourState::Stale, Some(1), false),
        (NeighbourState::Probe, Some(1), false),
        (NeighbourState::Reachable, Some(2), true),
        (NeighbourState::Failed, Some(2), true),
        (NeighbourState::Failed, None, false),
        (NeighbourState::Reachable, Some(2), false),
    ] {
        let changed = interfaces.apply(&RouteNetlinkMessage::NewNeighbour(neighbour(state, mac)));
        assert_eq!(changed.voids_hops(), voids, "{state:?} {mac:?}");
    }
    let gone =
        interfaces.apply(&RouteNetlinkMessage::DelNeighbour(neighbour(NeighbourState::Stale, Some(2))));
    assert!(gone.voids_hops());
}
