use super::super::Address;
use super::*;

/// Index, name, kind, addresses.
type Row<'a> = (u32, &'a str, &'a str, &'a [(&'a str, Standing)]);

fn interfaces(rows: &[Row<'_>]) -> Interfaces {
    let mut interfaces = Interfaces::default();
    for (ifindex, name, kind, addresses) in rows {
        let link = Link {
            ifindex: *ifindex,
            name: (*name).into(),
            kind: (*kind).into(),
            up: true,
            ..Link::default()
        };
        interfaces.links.insert(*ifindex, link);
        let addresses = addresses.iter().filter_map(|(address, standing)| {
            Some(Address { address: address.parse().ok()?, standing: *standing })
        });
        interfaces.addresses.insert(*ifindex, addresses.collect());
    }
    interfaces
}

fn node() -> Interfaces {
    use Standing::{Primary, Secondary, Unusable};
    interfaces(&[
        (1, "lo", "", &[("127.0.0.1", Unusable), ("10.255.0.1", Primary)]),
        (2, "eth0", "", &[("192.0.2.9", Secondary), ("192.0.2.1", Primary), ("2001:db8::1", Primary)]),
        (3, "eth1", "veth", &[("198.51.100.1", Primary)]),
    ])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn uplink() -> Crossing {
    Crossing { flags: DeviceFlags::UPLINK, ..Crossing::default() }
}

/// Names and hooks of the uplinks chosen.
fn chosen(
    flags: &[&str],
    node: &Interfaces,
    routes: &[u32],
    internal: &[IpAddr],
    without_metadata: &[u32],
) -> Vec<(String, Mode)> {
    let flags: Vec<DeviceFlag> = flags.iter().filter_map(|flag| flag.parse().ok()).collect();
    let (routes, without) = (routes.iter().copied().collect(), without_metadata.iter().copied().collect());
    let choices = choose(&flags, node, &routes, internal, &without).into_iter();
    choices
        .inspect(|choice| assert_eq!(choice.reason.is_some(), choice.mode == Mode::Tc, "{choice:?}"))
        .map(|choice| (choice.link.name.clone(), choice.mode))
        .collect()
}

fn by(name: &str, mode: Mode) -> (String, Mode) {
    (name.to_owned(), mode)
}

#[test]
fn without_a_flag_uplinks_carry_a_default_route_or_the_nodes_address() {
    let node = node();
    assert_eq!(chosen(&[], &node, &[2], &[], &[]), [by("eth0", Mode::Xdp)]);
    assert_eq!(chosen(&[], &node, &[], &[ip("198.51.100.1")], &[]), [by("eth1", Mode::Tc)]);
    assert_eq!(chosen(&[], &node, &[2], &[ip("10.255.0.1")], &[]), [by("eth0", Mode::Xdp)]);
    assert!(chosen(&[], &node, &[], &[], &[]).is_empty());
}

#[test]
fn the_operators_word_on_devices_and_hooks_is_taken() {
    let named = chosen(&["eth1=xdp", "eth0", "eth9"], &node(), &[], &[], &[]);
    assert_eq!(named, [by("eth0", Mode::Xdp), by("eth1", Mode::Xdp)]);
}

#[test]
fn a_pattern_takes_every_device_but_those_with_a_word_of_their_own() {
    let node = node();
    let all = [by("eth0", Mode::Tc), by("eth1", Mode::Tc)];
    assert_eq!(chosen(&["*=tc"], &node, &[], &[], &[]), all);
    assert_eq!(chosen(&["eth?=tc", "*=xdp"], &node, &[], &[], &[]), all);
    let exception = [by("eth0", Mode::Tc), by("eth1", Mode::Xdp)];
    assert_eq!(chosen(&["eth*=tc", "eth1=xdp"], &node, &[], &[], &[]), exception);
    assert!(chosen(&["en*"], &node, &[2], &[], &[]).is_empty());
}

#[test]
fn devices_without_metadata_are_those_that_the_map_tells_of() {
    let device = |flags| Device { flags, ..Device::default() };
    let devices = BTreeMap::from([
        (2, device(DeviceFlags::UPLINK | DeviceFlags::XDP_TRANSMIT)),
        (3, device(DeviceFlags::UPLINK | DeviceFlags::NO_METADATA)),
    ]);
    assert_eq!(without_metadata(&devices), BTreeSet::from([3]));
}

#[test]
fn a_device_without_metadata_gets_tc_whatever_was_asked() {
    let node = node();
    assert_eq!(chosen(&["eth0=xdp"], &node, &[], &[], &[2]), [by("eth0", Mode::Tc)]);
    assert_eq!(chosen(&[], &node, &[2, 3], &[], &[2]), [by("eth0", Mode::Tc), by("eth1", Mode::Tc)]);
    assert_eq!(chosen(&["eth0", "eth1=xdp"], &node, &[], &[], &[2])[1], by("eth1", Mode::Xdp));
}

/// SNAT by some ports, with nothing installed yet.
fn fresh() -> Snat {
    Snat { ports: vec![PortRange { first: 1024, last: 2047 }], ..Snat::default() }
}

/// What SNAT takes on an uplink, as the control plane is told, and noted for the next look.
fn taken(interfaces: &Interfaces, ifindex: u32, snat: &mut Snat) -> Vec<IpAddr> {
    let facts = facts(interfaces, &BTreeMap::from([(ifindex, uplink())]), snat, &[]);
    snat.note(&facts);
    facts.devices.get(&ifindex).into_iter().flat_map(snat_addresses).collect()
}

#[test]
fn snat_takes_a_devices_first_primary_address() {
    assert_eq!(taken(&node(), 2, &mut fresh()), [ip("192.0.2.1"), ip("2001:db8::1")]);
    assert_eq!(taken(&node(), 3, &mut fresh()), [ip("198.51.100.1")]);
}

#[test]
fn snat_keeps_its_address_when_the_kernel_lists_a_newer_one_first() {
    use Standing::{Primary, Secondary};
    let mut snat = fresh();
    let before = interfaces(&[(2, "eth0", "", &[("2001:db8::1", Primary)])]);
    assert_eq!(taken(&before, 2, &mut snat), [ip("2001:db8::1")]);
    let both = interfaces(&[(2, "eth0", "", &[("2001:db8::2", Primary), ("2001:db8::1", Primary)])]);
    assert_eq!(taken(&both, 2, &mut snat), [ip("2001:db8::1")]);
    // Nor does the address on which node ports are served by default move.
    let primary = |interfaces: &Interfaces, snat: &Snat| {
        let facts = facts(interfaces, &BTreeMap::from([(2, uplink())]), snat, &[]);
        facts.addresses.into_iter().find(|known| known.primary).map(|known| known.address)
    };
    assert_eq!(primary(&both, &snat), Some(ip("2001:db8::1")));
    // A deprecated one takes no new flows, but the gate stays open for those it has; so with one that is gone.
    let aged = interfaces(&[(2, "eth0", "", &[("2001:db8::2", Primary), ("2001:db8::1", Secondary)])]);
    assert_eq!(taken(&aged, 2, &mut snat), [ip("2001:db8::2")]);
    let after = interfaces(&[(2, "eth0", "", &[("2001:db8::3", Primary)])]);
    assert_eq!(taken(&after, 2, &mut snat), [ip("2001:db8::3")]);
    let told = facts(&after, &BTreeMap::from([(2, uplink())]), &snat, &[]);
    assert_eq!(told.held_addresses, ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(ip).into());
}

#[test]
fn a_borrowed_address_is_kept_while_the_node_has_it() {
    use Standing::Primary;
    let mut snat = fresh();
    let borrowed = |node: &Interfaces, source: &str, snat: &mut Snat| {
        let crossing =
            Crossing { flags: DeviceFlags::POD_SIDE, source_v6: Some(ip(source)), ..Crossing::default() };
        let facts = facts(node, &BTreeMap::from([(5, crossing)]), snat, &[]);
        snat.note(&facts);
        facts.devices.get(&5).map(|device| IpAddr::from(device.snat_v6.octets))
    };
    let node = interfaces(&[
        (2, "eth0", "", &[("2001:db8::2", Primary), ("2001:db8::1", Primary)]),
        (5, "cali1", "veth", &[]),
    ]);
    assert_eq!(borrowed(&node, "2001:db8::1", &mut snat), Some(ip("2001:db8::1")));
    assert_eq!(borrowed(&node, "2001:db8::2", &mut snat), Some(ip("2001:db8::1")));
    let node = interfaces(&[(2, "eth0", "", &[("2001:db8::2", Primary)]), (5, "cali1", "veth", &[])]);
    assert_eq!(borrowed(&node, "2001:db8::2", &mut snat), Some(ip("2001:db8::2")));
}

#[test]
fn the_internal_address_is_primary_also_on_a_loopback() {
    let crossings = BTreeMap::from([(2, uplink())]);
    let facts = facts(&node(), &crossings, &fresh(), &[ip("10.255.0.1")]);
    let primary: Vec<_> = facts.addresses.iter().filter(|one| one.primary).map(|one| one.address).collect();
    assert_eq!(primary, [ip("2001:db8::1"), ip("10.255.0.1")]);
    assert_eq!(facts.addresses.len(), 4);
}

#[test]
fn the_tunnel_is_told_the_address_by_which_the_cluster_knows_the_node() {
    let told = |internal: &[IpAddr]| {
        let facts = facts(&node(), &BTreeMap::from([(2, uplink())]), &fresh(), internal);
        facts.devices.get(&Device::NODE).map(|node| snat_addresses(node).collect::<Vec<_>>())
    };
    assert_eq!(told(&[]), None);
    assert_eq!(told(&[ip("203.0.113.9")]), None, "an address that the node does not have");
    assert_eq!(told(&[ip("198.51.100.1"), ip("192.0.2.1")]), Some(vec![ip("198.51.100.1")]));
    let both = [ip("2001:db8::1"), ip("10.255.0.1")];
    assert_eq!(told(&both), Some(vec![ip("10.255.0.1"), ip("2001:db8::1")]));
}

#[test]
fn without_a_node_object_the_first_uplinks_first_address_is_primary() {
    let crossings = BTreeMap::from([(2, uplink()), (3, uplink())]);
    let facts = facts(&node(), &crossings, &Snat::default(), &[]);
    let primary: Vec<_> = facts.addresses.iter().filter(|one| one.primary).map(|one| one.address).collect();
    assert_eq!(primary, [ip("192.0.2.1"), ip("2001:db8::1")]);
}

#[test]
fn without_snat_ports_no_device_has_a_snat_address() {
    let crossings = BTreeMap::from([(2, uplink())]);
    let facts = facts(&node(), &crossings, &Snat::default(), &[]);
    let device = facts.devices.get(&2).copied().unwrap_or_default();
    assert_eq!(device, Device { flags: DeviceFlags::UPLINK, ..Device::default() });
}

#[test]
fn a_pods_device_without_an_address_lends_the_one_of_the_route() {
    let node = interfaces(&[(5, "cali1", "veth", &[])]);
    let crossing =
        Crossing { flags: DeviceFlags::POD_SIDE, source_v4: Some(ip("192.0.2.1")), source_v6: None };
    let facts = facts(&node, &BTreeMap::from([(5, crossing)]), &fresh(), &[]);
    let device = facts.devices.get(&5).copied().unwrap_or_default();
    assert_eq!((device.snat_v4.octets, device.snat_v6), ([192, 0, 2, 1], Address6::default()));
    assert!(facts.addresses.is_empty());
}
