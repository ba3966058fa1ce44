//! Laws of translation, on random flows: what goes there and comes back is what it was, and sums are right.

use std::net::SocketAddr;

use etherparse::PacketHeaders;
use vmlb_common::host::Hook;
use vmlb_common::verdict::Verdict;
use vmlb_tests::address::Family;
use vmlb_tests::capture::check_sums;
use vmlb_tests::packets::bench::{Bench, Host};
use vmlb_tests::packets::frame::{Frame, tcp, udp};
use vmlb_tests::packets::random::Random;
use vmlb_tests::packets::world::{ETH0, ETH1, ETH2, FIRST_SNAT_PORT, LAST_SNAT_PORT, Net, POD1, RANDOM};

/// The two ends of a packet, read by etherparse.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    use etherparse::{NetHeaders, TransportHeader};
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a well-formed packet");
    let (source, destination) = match packet.net.expect("an IP header") {
        NetHeaders::Ipv4(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into()),
        other => panic!("{other:?}"),
    };
    let (from, to) = match packet.transport.expect("a transport header") {
        TransportHeader::Tcp(header) => (header.source_port, header.destination_port),
        TransportHeader::Udp(header) => (header.source_port, header.destination_port),
        other => panic!("{other:?}"),
    };
    (SocketAddr::new(source, from), SocketAddr::new(destination, to))
}

fn is_served(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::DELIVER | Verdict::TRANSMIT | Verdict::REDIRECT)
}

/// Sends by XDP, and by TC what XDP defers.
fn ingress(host: &mut Host, device: u32, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let first = host.receive(Hook::Xdp, device, frame);
    if !first.verdict.is_defer() {
        return (first.verdict, first.octets);
    }
    let second = host.receive(Hook::Ingress, device, frame);
    (second.verdict, second.octets)
}

fn random_data(random: &mut Random) -> Vec<u8> {
    (0..random.below(1400)).map(|_| random.octet()).collect()
}

/// Where the answer of the pod of a served request comes in, by the pod's address.
fn answer(host: &mut Host, net: Net, pod: SocketAddr, peer: SocketAddr, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let here = [1, 8, 9].into_iter().any(|id| net.pod(id) == pod);
    let ours = [net.node(0), net.node_on_eth1(0), net.node_on_eth2(0)].map(|address| address.ip());
    if here && ours.contains(&peer.ip()) {
        let outcome = host.receive(Hook::Pod, POD1, frame);
        return (outcome.verdict, outcome.octets);
    }
    if here {
        let outcome = host.receive(Hook::Egress, ETH0, frame);
        return (outcome.verdict, outcome.octets);
    }
    let device = if pod == net.pod(4) {
        ETH1
    } else if pod == net.pod(5) {
        ETH2
    } else {
        ETH0
    };
    ingress(host, device, frame)
}

#[test]
fn there_and_back_is_the_identity_and_sums_are_right() {
    let mut random = Random::announced("there_and_back_is_the_identity_and_sums_are_right");
    let mut round_trips = 0;
    for family in Family::ALL {
        let net = Net(family);
        let mut host = Host::of_stories();
        for number in 0..4000 {
            if number % 40 == 0 {
                host = Host::of_stories();
            }
            round_trips += u32::from(round_trip(&mut host, net, &mut random));
        }
    }
    assert!(round_trips > 4000, "only {round_trips} round trips");
}

fn round_trip(host: &mut Host, net: Net, random: &mut Random) -> bool {
    let client = net.client(u8::try_from(random.below(90)).expect("small"), random.short().max(1));
    let port = random.pick(&[30001, 30002, 30003, 30004, 30005, 30008, 30024]);
    let frontend = if random.once_in(2) { net.node(port) } else { net.vip(port) };
    let is_udp = random.once_in(2);
    let sequence = random.word();
    let shape = |from, to, frame: fn(Frame, u32) -> Frame, data: &[u8]| -> Vec<u8> {
        let frame = frame(if is_udp { udp(from, to) } else { tcp(from, to) }, sequence);
        if is_udp { frame.data(data).octets() } else { frame.octets() }
    };
    let data = random_data(random);
    let request = shape(client, frontend, |frame, sequence| frame.syn(sequence), &data);
    let (verdict, translated) = ingress(host, ETH0, &request);
    if !is_served(verdict) {
        return false;
    }
    check_sums(std::slice::from_ref(&translated)).expect("right sums of the request");
    let (peer, pod) = ends(&translated);
    assert_eq!(payload(&request), payload(&translated), "what is carried");
    let data = random_data(random);
    let reply = shape(pod, peer, |frame, sequence| frame.syn(sequence).ack(1), &data);
    let (verdict, reversed) = answer(host, net, pod, peer, &reply);
    assert!(is_served(verdict), "the answer to {client} from {pod}: {}", verdict.reason().name());
    check_sums(std::slice::from_ref(&reversed)).expect("right sums of the answer");
    assert_eq!(ends(&reversed), (frontend, client), "the ends come back");
    assert_eq!(payload(&reply), payload(&reversed), "what is carried back");
    true
}

fn payload(frame: &[u8]) -> Vec<u8> {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a well-formed packet");
    packet.payload.slice().to_vec()
}

/// Opens `count` flows from random clients to one VM on another node; returns the SNAT ports seen.
fn snat_ports(random: &mut Random, net: Net, count: usize) -> Vec<u16> {
    let mut host = Host::of_stories();
    let mut ports = Vec::new();
    for number in 0..count {
        // Nobody comes twice: that would be the same flow.
        let client = net.client(u8::try_from(number).expect("small"), random.short().max(1));
        let (verdict, octets) = ingress(&mut host, ETH0, &tcp(client, net.node(30002)).syn(1).octets());
        if is_served(verdict) {
            ports.push(ends(&octets).0.port());
        }
    }
    ports
}

#[test]
fn no_snat_port_is_given_twice_while_live() {
    let mut random = Random::announced("no_snat_port_is_given_twice_while_live");
    for family in Family::ALL {
        for _ in 0..50 {
            let mut ports = snat_ports(&mut random, Net(family), 60);
            let given = ports.len();
            assert!(ports.iter().all(|port| (FIRST_SNAT_PORT..=LAST_SNAT_PORT).contains(port)));
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), given, "a port was given twice");
            // 32 tries, the first perhaps for the client's own port, over 32 ports: nearly all are found.
            assert!((30..=32).contains(&given), "{given} of 32 ports");
        }
    }
}

#[test]
fn dice_draw_the_backend_where_the_service_says_so() {
    for family in Family::ALL {
        let net = Net(family);
        let mut host = Host::of_stories();
        for (number, backend) in [(0, 1), (1, 2), (6, 1), (u32::MAX, 2)] {
            host.node.set_dice(number);
            let client = net.client(0, 61001 + u16::try_from(number % 8).expect("small"));
            let (_, octets) = ingress(&mut host, ETH0, &tcp(client, net.node(RANDOM)).syn(1).octets());
            assert_eq!(ends(&octets).1, net.pod(backend), "dice {number}");
        }
    }
}
