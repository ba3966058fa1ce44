use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, SlicedPacket, TransportSlice, ip_number,
};

use super::*;

const PROBE: Payload = Payload::Tcp { sequence: 1, acknowledgment: 0, flags: TcpFlags::SYN, window: 1024 };

fn ends(v6: bool, port: u16) -> (SocketAddr, SocketAddr) {
    if v6 {
        (
            SocketAddr::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into(), port),
            "[fd10:0:244:1::5]:8080".parse().unwrap(),
        )
    } else {
        (SocketAddr::new([192, 0, 2, 7].into(), port), "10.244.1.5:8080".parse().unwrap())
    }
}

/// The IP part of what another's code builds.
fn by_another(
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header =
                Ipv4Header::new(0, ttl, ip_number::TCP, source.octets(), destination.octets()).unwrap();
            header.dont_fragment = true;
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), ttl)
        }
        _ => panic!("two families"),
    }
}

fn written(builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> Vec<u8> {
    let mut octets = Vec::new();
    builder.write(&mut octets, &[]).unwrap();
    octets
}

#[test]
fn a_bare_ack_is_octet_by_octet_what_another_makes_of_it() {
    for v6 in [false, true] {
        // Numbers whose sums carry in different ways.
        for (number, port) in [(0, 1), (0xffff_ffff, 65_535), (0x8000_7fff, 40_000), (0x1234_5678, 1024)] {
            let (source, destination) = ends(v6, port);
            let flags = TcpFlags::ACK;
            let payload = Payload::Tcp { sequence: number, acknowledgment: !number, flags, window: 1024 };
            let packet = Packet::new(source, destination, TTL, payload).unwrap();
            let other = by_another(source, destination, TTL).tcp(port, 8080, number, 1024).ack(!number);
            assert_eq!(packet.octets(), written(other));
            assert_eq!(packet.next(), destination.ip());
        }
    }
}

#[test]
fn an_opening_and_a_reset_carry_their_flag_alone() {
    for v6 in [false, true] {
        let (source, destination) = ends(v6, 999);
        let builder = || by_another(source, destination, TTL).tcp(999, 8080, 1, 1024);
        assert_eq!(Packet::new(source, destination, TTL, PROBE).unwrap().octets(), written(builder().syn()));
        let reset = Payload::Tcp { sequence: 1, acknowledgment: 0, flags: TcpFlags::RST, window: 1024 };
        assert_eq!(Packet::new(source, destination, TTL, reset).unwrap().octets(), written(builder().rst()));
    }
}

#[test]
fn an_empty_datagram_has_as_many_hops_as_asked_for_and_a_checksum() {
    for v6 in [false, true] {
        for (ttl, port) in [(1, 53), (2, 65_000)] {
            let (source, destination) = ends(v6, port);
            let packet = Packet::new(source, destination, ttl, Payload::Udp).unwrap();
            let mut other = Vec::new();
            by_another(source, destination, ttl).udp(port, 8080).write(&mut other, &[]).unwrap();
            assert_eq!(packet.octets(), other);
        }
    }
}

#[test]
fn no_datagram_goes_without_a_checksum() {
    // Found by trying every port: this one's sum is zero, which would say that there is none.
    let destination: SocketAddr = "10.244.1.5:8080".parse().unwrap();
    let mut met = 0;
    for port in 1..=u16::MAX {
        let source = SocketAddr::new([192, 0, 2, 7].into(), port);
        let packet = Packet::new(source, destination, 1, Payload::Udp).unwrap();
        assert_ne!(packet.octets()[26..28], [0, 0]);
        met += usize::from(packet.octets()[26..28] == [0xff, 0xff]);
    }
    assert_eq!(met, 1);
}

#[test]
fn a_tunnelled_packet_is_untouched_within_a_header_that_names_the_backend() {
    let (client, frontend): (SocketAddr, SocketAddr) =
        ("198.51.100.9:5000".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
    let inner = Packet::new(client, frontend, TTL, PROBE).unwrap();
    let (here, node) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let packet = inner.within_ip(here.into(), node.into(), 0x1234).unwrap();
    let mut outer = Ipv4Header::new(40, TTL, ip_number::IPV4, here.octets(), node.octets()).unwrap();
    outer.identification = 0x9234;
    outer.dont_fragment = true;
    outer.header_checksum = outer.calc_header_checksum();
    assert_eq!(packet.octets(), [outer.to_bytes().as_slice(), inner.octets()].concat());
    assert_eq!(packet.next(), IpAddr::V4(node));
}

#[test]
fn over_ipv6_the_flow_label_names_the_backend() {
    let (client, frontend): (SocketAddr, SocketAddr) =
        ("[2001:db8::9]:5000".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap());
    let inner = Packet::new(client, frontend, TTL, PROBE).unwrap();
    let here: Ipv6Addr = "fd00::1".parse().unwrap();
    let node: Ipv6Addr = "fd00::2".parse().unwrap();
    let packet = inner.within_ip(here.into(), node.into(), 0x7fff).unwrap();
    let outer = Ipv6Header {
        flow_label: Ipv6FlowLabel::try_new(0xffff).unwrap(),
        payload_length: 60,
        next_header: ip_number::IPV6,
        hop_limit: TTL,
        source: here.octets(),
        destination: node.octets(),
        ..Ipv6Header::default()
    };
    assert_eq!(packet.octets(), [outer.to_bytes().as_slice(), inner.octets()].concat());
}

#[test]
fn in_the_udp_shape_the_words_before_the_network_name_the_backend() {
    let tunnel = Tunnel { shape: 2, returns: 0, port: 44_789, network: 0x0012_3456 };
    for (client, frontend, here, node) in [
        ("198.51.100.9:5000", "192.0.2.1:80", "192.0.2.1", "192.0.2.2"),
        ("[2001:db8::9]:5000", "[2001:db8::1]:80", "fd00::1", "fd00::2"),
    ] {
        let inner = Packet::new(client.parse().unwrap(), frontend.parse().unwrap(), TTL, PROBE).unwrap();
        let (here, node): (IpAddr, IpAddr) = (here.parse().unwrap(), node.parse().unwrap());
        let packet = inner.within_udp(here, node, 0x1234, tunnel).unwrap();
        let sliced = SlicedPacket::from_ip(packet.octets()).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.checksum()), (0xc000, 44_789, 0));
        assert_eq!(usize::from(udp.length()), 8 + 8 + 14 + inner.octets().len());
        let vxlan = [0x08, 0, 0x92, 0x34, 0x12, 0x34, 0x56, 0];
        let kind = if here.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        assert_eq!(udp.payload(), [vxlan.as_slice(), &[0; 12], &kind, inner.octets()].concat());
        assert_eq!(packet.next(), node);
    }
}

#[test]
fn ends_of_two_families_make_no_packet() {
    let (v4, v6) = (ends(false, 1), ends(true, 1));
    assert_eq!(Packet::new(v4.0, v6.1, TTL, PROBE), None);
    let packet = Packet::new(v4.0, v4.1, TTL, PROBE).unwrap();
    assert_eq!(packet.within_ip(v4.0.ip(), v6.1.ip(), 1), None);
    assert_eq!(packet.within_ip(v6.0.ip(), v6.1.ip(), 1), None);
}

#[test]
fn every_checksum_is_right_by_another_count() {
    for v6 in [false, true] {
        let (source, destination) = ends(v6, 31_000);
        for payload in [PROBE, Payload::Udp] {
            let packet = Packet::new(source, destination, 2, payload).unwrap();
            let sliced = SlicedPacket::from_ip(packet.octets()).unwrap();
            let right = match (&sliced.net, &sliced.transport) {
                (Some(etherparse::NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => {
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                        == Ok(tcp.checksum())
                }
                (Some(etherparse::NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                        == Ok(tcp.checksum())
                }
                (Some(_), Some(TransportSlice::Udp(udp))) => udp.length() == 8 && udp.checksum() != 0,
                _ => false,
            };
            assert!(right, "{packet:?}");
        }
    }
}
