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

#[test]
fn without_a_flag_uplinks_carry_a_default_route_or_the_nodes_address() {
    let node = node();
    let names = |routes: &[u32], internal: &[IpAddr]| -> Vec<(String, Mode)> {
        let routes = routes.iter().copied().collect();
        choose(&[], &node, &routes, internal)
            .into_iter()
            .map(|(link, mode)| (link.name.clone(), mode))
            .collect()
    };
    assert_eq!(names(&[2], &[]), [("eth0".to_owned(), Mode::Xdp)]);
    assert_eq!(names(&[], &[ip("198.51.100.1")]), [("eth1".to_owned(), Mode::Tc)]);
    assert_eq!(names(&[2], &[ip("10.255.0.1")]), [("eth0".to_owned(), Mode::Xdp)]);
    assert!(names(&[], &[]).is_empty());
}

#[test]
fn the_operators_word_on_devices_and_hooks_is_taken() -> anyhow::Result<()> {
    let node = node();
    let flags = ["eth1=xdp".parse()?, "eth0".parse()?, "eth9".parse()?];
    let chosen: Vec<_> = choose(&flags, &node, &BTreeSet::new(), &[])
        .into_iter()
        .map(|(link, mode)| (link.ifindex, mode))
        .collect();
    assert_eq!(chosen, [(3, Mode::Xdp), (2, Mode::Xdp)]);
    for text in ["", "=xdp", "eth0=native", "a/b", "0123456789abcdef", "a b", ".."] {
        assert!(text.parse::<DeviceFlag>().is_err(), "{text}");
    }
    Ok(())
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
