use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};

use vmlb_common::abi::{Delivery, Flow, FlowKey, Seen, TunnelShape};
use vmlb_common::family::Address4;

use super::*;
use crate::handover::way::Way;
use crate::migration::{Endpoint, Moment, Stage, Task};
use crate::raw::Packet;

const IN_IP: Tunnel = Tunnel { shape: TunnelShape::IP, returns: 1, port: 0, network: 0 };
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Flows in memory, and what was sent.
#[derive(Default)]
struct World {
    flows: RefCell<BTreeMap<Key, Established>>,
    sent: RefCell<Vec<Packet>>,
    /// Packets that the device still takes.
    room: Cell<Option<usize>>,
    looks: Cell<usize>,
}

impl Flows for World {
    fn each(&self, visit: &mut dyn FnMut(&Established)) -> anyhow::Result<()> {
        self.looks.set(self.looks.get() + 1);
        self.flows.borrow().values().for_each(visit);
        Ok(())
    }

    fn get(&self, key: &Key) -> anyhow::Result<Option<Established>> {
        Ok(self.flows.borrow().get(key).copied())
    }
}

impl Send for World {
    fn send(&self, packet: &Packet) -> io::Result<()> {
        match self.room.get() {
            Some(0) => return Err(io::ErrorKind::WouldBlock.into()),
            Some(room) => self.room.set(Some(room - 1)),
            None => {}
        }
        self.sent.borrow_mut().push(packet.clone());
        Ok(())
    }
}

fn address(octets: [u8; 4]) -> Address4 {
    Address4 { octets }
}

fn flow(backend: u32, client_port: u16, protocol: u8, delivery: Delivery) -> Established {
    let client = address([198, 51, 100, 9]);
    let own = FlowKey {
        client,
        frontend: address([192, 0, 2, 1]),
        client_port,
        frontend_port: 80,
        protocol,
        pad: 0,
        pad2: 0,
    };
    let peer = if delivery == Delivery::KEPT { client } else { address([192, 0, 2, 101]) };
    let value = Flow {
        backend,
        peer,
        peer_port: if delivery == Delivery::KEPT { client_port } else { client_port ^ 0x1000 },
        target_port: 8080,
        delivery,
        next: 0x8000_0000,
        acknowledged: 77,
        ..Flow::default()
    };
    Established::new(Key::V4(own), &own, &value)
}

fn way(is_local: bool) -> Way {
    let node = Some([192, 0, 2, 2].into());
    Way {
        endpoint: Endpoint { address: [10, 244, 1, 5].into(), node, is_local },
        source: Some([192, 0, 2, 101].into()),
        outer: Some([192, 0, 2, 1].into()),
        hops: Some(if is_local { 1 } else { 2 }),
    }
}

fn course(number: u64, turned: bool) -> Course {
    let task = Task {
        number,
        backend: u32::try_from(number).unwrap(),
        side: 1,
        tag: 0x1234,
        stage: if turned { Stage::Turned } else { Stage::Known },
        is_installed: true,
        endpoints: vec![way(false).endpoint],
        known: Moment::default(),
        turned: turned.then(Moment::default),
        probe: None,
    };
    Course { task, ways: vec![way(false)] }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What another's code makes of an acknowledgment.
fn ack(source: SocketAddr, destination: SocketAddr, window: u16) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) else { panic!("IPv6") };
    let mut ip =
        etherparse::Ipv4Header::new(0, 64, etherparse::ip_number::TCP, from.octets(), to.octets()).unwrap();
    ip.dont_fragment = true;
    let mut octets = Vec::new();
    etherparse::PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .tcp(source.port(), destination.port(), 0x7fff_ffff, window)
        .ack(77)
        .write(&mut octets, &[])
        .unwrap();
    octets
}

fn datagram(source: SocketAddr, destination: SocketAddr, ttl: u8) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) else { panic!("IPv6") };
    let mut ip =
        etherparse::Ipv4Header::new(0, ttl, etherparse::ip_number::UDP, from.octets(), to.octets()).unwrap();
    ip.dont_fragment = true;
    let mut octets = Vec::new();
    etherparse::PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .udp(source.port(), destination.port())
        .write(&mut octets, &[])
        .unwrap();
    octets
}

#[test]
fn a_flow_with_snat_is_primed_as_the_target_will_see_it() {
    let packet = flow(1, 5000, TCP, Delivery::SNAT).packet(&[way(false)], 0x1234, IN_IP).unwrap();
    assert_eq!(packet.octets(), ack(socket("192.0.2.101:904"), socket("10.244.1.5:8080"), 1024));
    let packet = flow(1, 5000, UDP, Delivery::SNAT).packet(&[way(false)], 0x1234, IN_IP).unwrap();
    assert_eq!(packet.octets(), datagram(socket("192.0.2.101:904"), socket("10.244.1.5:8080"), 2));
}

#[test]
fn a_kept_client_is_primed_at_a_pod_of_this_node_under_its_own_address() {
    let packet = flow(1, 5000, TCP, Delivery::KEPT).packet(&[way(true)], 0x1234, IN_IP).unwrap();
    assert_eq!(packet.octets(), ack(socket("198.51.100.9:5000"), socket("10.244.1.5:8080"), 1024));
    let packet = flow(1, 5000, UDP, Delivery::KEPT).packet(&[way(true)], 0x1234, IN_IP).unwrap();
    assert_eq!(packet.octets(), datagram(socket("198.51.100.9:5000"), socket("10.244.1.5:8080"), 1));
}

#[test]
fn a_kept_client_is_primed_at_another_node_by_its_own_packet_in_the_tunnel() {
    for protocol in [TCP, UDP] {
        let packet = flow(1, 5000, protocol, Delivery::KEPT).packet(&[way(false)], 0x1234, IN_IP).unwrap();
        let (client, frontend) = (socket("198.51.100.9:5000"), socket("192.0.2.1:80"));
        let inner = if protocol == TCP { ack(client, frontend, 1024) } else { datagram(client, frontend, 2) };
        let length = u16::try_from(inner.len()).unwrap();
        let mut outer = etherparse::Ipv4Header::new(
            length,
            64,
            etherparse::ip_number::IPV4,
            [192, 0, 2, 1],
            [192, 0, 2, 2],
        )
        .unwrap();
        (outer.identification, outer.dont_fragment) = (0x9234, true);
        outer.header_checksum = outer.calc_header_checksum();
        assert_eq!(packet.octets(), [outer.to_bytes().as_slice(), &inner].concat());
        assert_eq!(packet.next(), IpAddr::from([192, 0, 2, 2]));
    }
}

#[test]
fn what_cannot_be_primed_says_why() {
    let tcp = flow(1, 5000, TCP, Delivery::SNAT);
    for flags in [Seen::CLIENT_FIN, Seen::BACKEND_FIN, Seen::RST] {
        assert_eq!(Established { flags, ..tcp }.packet(&[way(false)], 1, IN_IP), Err(Without::Closed));
    }
    assert_eq!(tcp.packet(&[], 1, IN_IP), Err(Without::Family));
    let unknown = Way { hops: None, ..way(false) };
    assert_eq!(flow(1, 5000, UDP, Delivery::SNAT).packet(&[unknown], 1, IN_IP), Err(Without::Hops));
    assert!(tcp.packet(&[unknown], 1, IN_IP).is_ok());
    let kept = flow(1, 5000, TCP, Delivery::KEPT);
    assert_eq!(kept.packet(&[way(false)], 1, Tunnel::default()), Err(Without::Tunnel));
    let nowhere = Way { outer: None, ..way(false) };
    assert_eq!(kept.packet(&[nowhere], 1, IN_IP), Err(Without::Tunnel));
    assert!(kept.packet(&[way(true)], 1, Tunnel::default()).is_ok());
    let in_udp = Tunnel { shape: TunnelShape::UDP, port: 44_789, ..IN_IP };
    assert!(kept.packet(&[way(false)], 1, in_udp).is_ok());
}

/// Works for as long as there is something to do before `end`; how many packets were sent meanwhile, and who was told of.
fn work(primer: &mut Primer, world: &World, from: Instant, end: Instant) -> (usize, Vec<u64>) {
    let before = world.sent.borrow().len();
    let (mut now, mut told) = (from, Vec::new());
    loop {
        told.extend(primer.work(world, world, now));
        match primer.due() {
            Some(due) if due.max(now + Duration::from_millis(1)) <= end => {
                now = due.max(now + Duration::from_millis(1))
            }
            _ => return (world.sent.borrow().len() - before, told),
        }
    }
}

fn world(flows: impl Iterator<Item = Established>) -> World {
    World { flows: RefCell::new(flows.map(|flow| (flow.key, flow)).collect()), ..World::default() }
}

#[test]
fn twenty_thousand_flows_are_primed_once_each_within_five_seconds() {
    let world = world((1..=20_000).map(|port| flow(1, port, TCP, Delivery::SNAT)));
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    let (sent, told) = work(&mut primer, &world, start, start + Duration::from_secs(1));
    assert!((9_000..=10_100).contains(&sent), "{sent} in a second");
    assert!(told.is_empty());
    let (rest, told) =
        work(&mut primer, &world, start + Duration::from_secs(1), start + Duration::from_secs(5));
    assert_eq!((sent + rest, told), (20_000, vec![1]));
    let different: std::collections::BTreeSet<Vec<u8>> =
        world.sent.borrow().iter().map(|packet| packet.octets().to_vec()).collect();
    assert_eq!(different.len(), 20_000);
    let so_far: Vec<_> = primer.so_far().collect();
    assert_eq!(
        so_far,
        [(1, Primed { flows: 20_000, primed: 20_000, packets: 20_000, left_out: 0, refused: 0 })]
    );
}

#[test]
fn flows_that_open_later_are_primed_too_and_others_are_left_alone() {
    let world = world([flow(1, 1, TCP, Delivery::SNAT), flow(2, 2, TCP, Delivery::SNAT)].into_iter());
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    assert_eq!(work(&mut primer, &world, start, start + Duration::from_secs(1)), (1, vec![1]));
    let later = flow(1, 3, TCP, Delivery::SNAT);
    world.flows.borrow_mut().insert(later.key, later);
    assert_eq!(
        work(&mut primer, &world, start + Duration::from_secs(1), start + Duration::from_secs(5)),
        (1, vec![])
    );
}

#[test]
fn flows_are_primed_again_before_their_entries_end_and_at_once_after_the_turn() {
    let world = world([flow(1, 1, TCP, Delivery::SNAT)].into_iter());
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
    let (early, _) = work(&mut primer, &world, start, minutes(1));
    assert_eq!(early, 3);
    // Never 120 seconds without a packet.
    let mut now = minutes(1);
    while now < minutes(30) {
        let next = now + Duration::from_secs(120);
        assert!(work(&mut primer, &world, now, next).0 >= 1);
        now = next;
    }
    primer.follow(&[course(1, true)], now);
    assert_eq!(work(&mut primer, &world, now, now + Duration::from_millis(5)).0, 1);
    // The VM's own packets keep it from now on.
    assert_eq!(
        work(&mut primer, &world, now + Duration::from_millis(5), now + Duration::from_secs(300)).0,
        0
    );
    primer.follow(&[], now);
    assert_eq!(primer.due(), None);
}

#[test]
fn flows_are_primed_again_when_the_copying_begins() {
    let world = world([flow(1, 1, TCP, Delivery::KEPT)].into_iter());
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    assert_eq!(work(&mut primer, &world, start, start + Duration::from_millis(5)).0, 1);
    let mut copying = course(1, false);
    copying.task.probe = Some(Moment::default());
    let later = start + Duration::from_secs(1);
    primer.follow(std::slice::from_ref(&copying), later);
    assert_eq!(work(&mut primer, &world, later, later + Duration::from_millis(5)).0, 1);
    primer.follow(&[copying], later + Duration::from_secs(1));
    let end = later + Duration::from_secs(5);
    assert_eq!(work(&mut primer, &world, later + Duration::from_secs(1), end).0, 0);
}

#[test]
fn a_device_that_takes_no_more_delays_packets_and_loses_none() {
    let world = world((1..=250).map(|port| flow(1, port, TCP, Delivery::SNAT)));
    world.room.set(Some(30));
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    assert_eq!(work(&mut primer, &world, start, start + Duration::from_millis(100)), (30, vec![]));
    world.room.set(None);
    let (sent, told) =
        work(&mut primer, &world, start + Duration::from_millis(100), start + Duration::from_secs(1));
    assert_eq!((sent, told), (220, vec![1]));
}

#[test]
fn nothing_is_sent_to_a_target_that_is_not_accepted_yet() {
    let world = world([flow(1, 1, TCP, Delivery::SNAT)].into_iter());
    let mut primer = Primer::new(IN_IP);
    let mut early = course(1, false);
    early.task.is_installed = false;
    primer.follow(&[early], Instant::now());
    assert_eq!(primer.due(), None);
    assert_eq!(world.looks.get(), 0);
}

#[test]
fn a_packet_says_what_is_so_when_it_is_sent() {
    let world = world((1..=300).map(|port| flow(1, port, TCP, Delivery::SNAT)));
    let mut primer = Primer::new(IN_IP);
    let start = Instant::now();
    primer.follow(&[course(1, false)], start);
    assert_eq!(work(&mut primer, &world, start, start).0, 100);
    world.flows.borrow_mut().values_mut().for_each(|flow| flow.flags = Seen::CLIENT_FIN);
    assert_eq!(work(&mut primer, &world, start, start + Duration::from_secs(1)).0, 0);
}
