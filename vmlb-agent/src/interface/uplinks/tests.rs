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

#[test]
fn snat_takes_a_devices_first_primary_address() {
    let (v4, v6) = snat_addresses(&node(), 2);
    assert_eq!(v4.octets, [192, 0, 2, 1]);
    assert_eq!(IpAddr::from(v6.octets), ip("2001:db8::1"));
    assert_eq!(snat_addresses(&node(), 3).1, Address6::default());
}

#[test]
fn the_internal_address_is_primary_also_on_a_loopback() {
    let crossings = BTreeMap::from([(2, uplink())]);
    let ports = [PortRange { first: 1024, last: 2047 }];
    let facts = facts(&node(), &crossings, &ports, &[ip("10.255.0.1")]);
    let primary: Vec<_> = facts.addresses.iter().filter(|one| one.primary).map(|one| one.address).collect();
    assert_eq!(primary, [ip("2001:db8::1"), ip("10.255.0.1")]);
    assert_eq!(facts.addresses.len(), 4);
}

#[test]
fn without_a_node_object_the_first_uplinks_first_address_is_primary() {
    let crossings = BTreeMap::from([(2, uplink()), (3, uplink())]);
    let facts = facts(&node(), &crossings, &[], &[]);
    let primary: Vec<_> = facts.addresses.iter().filter(|one| one.primary).map(|one| one.address).collect();
    assert_eq!(primary, [ip("192.0.2.1"), ip("2001:db8::1")]);
}

#[test]
fn without_snat_ports_no_device_has_a_snat_address() {
    let crossings = BTreeMap::from([(2, uplink())]);
    let facts = facts(&node(), &crossings, &[], &[]);
    let device = facts.devices.get(&2).copied().unwrap_or_default();
    assert_eq!(device, Device { flags: DeviceFlags::UPLINK, ..Device::default() });
}

#[test]
fn a_pods_device_without_an_address_lends_the_one_of_the_route() {
    let node = interfaces(&[(5, "cali1", "veth", &[])]);
    let crossing =
        Crossing { flags: DeviceFlags::POD_SIDE, source_v4: Some(ip("192.0.2.1")), source_v6: None };
    let ports = [PortRange { first: 1024, last: 2047 }];
    let facts = facts(&node, &BTreeMap::from([(5, crossing)]), &ports, &[]);
    let device = facts.devices.get(&5).copied().unwrap_or_default();
    assert_eq!((device.snat_v4.octets, device.snat_v6), ([192, 0, 2, 1], Address6::default()));
    assert!(facts.addresses.is_empty());
}
