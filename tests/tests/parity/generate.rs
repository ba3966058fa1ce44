//! Random pairs of packet and tables that mean something: most packets belong to a flow that is there, and every flow is
//! in some state that real ones reach, or is damaged as eviction and other agents' errors damage it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use vmlb_common::abi::{
    Affinity, ClientKey, Delivery, Flow, FlowKey, Hop, Inherited, Life, Reply, ReplyKey, Seen, Target,
    TunnelShape, Turn, Turned, WireKey,
};
use vmlb_common::checksum::Delta;
use vmlb_common::family::Address;
use vmlb_common::host::{Hook, HostFamily};
use vmlb_common::wire::Protocol;
use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::Flows;
use vmlb_tests::packets::frame::{Frame, Says, Shape, Wrapping, between, icmp, tcp, udp};
use vmlb_tests::packets::random::Random;
use vmlb_tests::packets::world::{
    EMPTY, EMPTY_LOCAL, ETH0, ETH1, ETH2, LOCAL, MANY, Net, OTHER0, POD1, PROBE_PORT, RANGED, STICKY,
    TARGET_PORT, World, neighbour, own, service_id, tag,
};

use super::kernel::CAPACITIES;

/// A state of the node that pairs are generated for.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) change: fn(&mut World),
    filling: Filling,
}

/// How full the established tables are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filling {
    Sparse,
    Full,
}

const fn scene(name: &'static str, change: fn(&mut World)) -> Scene {
    Scene { name, change, filling: Filling::Sparse }
}

/// All of them.
pub(crate) const SCENES: [Scene; 16] = [
    scene("as stories begin", |_| {}),
    scene("backends 1 and 2 are gone", |world| {
        world.remove_backend(1);
        world.remove_backend(2);
    }),
    scene("two SNAT ports", |world| world.records.use_snat_ports(61001, 61002)),
    scene("no SNAT ports", |world| world.records.settings.snat_port_count = 0),
    scene("no SNAT addresses", |world| {
        for device in world.records.devices.values_mut() {
            device.snat_v4 = Default::default();
            device.snat_v6 = Default::default();
        }
    }),
    scene("eth0 is not ours", |world| {
        world.records.devices.remove(&ETH0);
    }),
    scene("forwarding is off on eth0", |world| {
        world.silent.insert(ETH0);
    }),
    scene("inherited connections", |world| world.records.settings.inherited = 1),
    scene("backend 2 serves no more", |world| {
        for port in [MANY, STICKY, 30002] {
            world.stop_serving(port, 2);
        }
        world.records.targets.retain(|key| key.backend != 2);
        world.select(MANY, 0, &[1, 8]);
        world.select(STICKY, 0, &[5, 8]);
    }),
    scene("answers are the stack's", |world| world.records.settings.reject_rate = 0),
    scene("no settings", |world| world.records.settings.version = 0),
    scene("migrations", migrate),
    scene("migrations, and a tunnel in IP", |world| {
        world.tunnel(Shape::Ip, 0);
        migrate(world);
    }),
    scene("migrations, and a tunnel in UDP", |world| {
        world.tunnel(Shape::Udp, 0);
        migrate(world);
    }),
    scene("a tunnel by which replies go back", |world| world.tunnel(Shape::Ip, 1)),
    Scene { name: "full tables", change: |_| {}, filling: Filling::Full },
];

/// Some VMs have a second pod, on another node and on this one.
fn migrate(world: &mut World) {
    world.probe();
    for net in [Net(Family::V4), Net(Family::V6)] {
        for (id, pod, beside) in seconds(net) {
            world.expect(id, pod, beside);
        }
    }
}

/// Second pods: of which backend, and next to which.
fn seconds(net: Net) -> [(u32, SocketAddr, u32); 4] {
    [
        (1, net.pod_beside(2, 0), 2),
        (2, net.pod_beside(5, 0), 5),
        (5, net.pod_beside(8, 0), 8),
        (8, net.pod_beside(5, 1), 5),
    ]
}

/// A frame at a hook, and what flows have left before.
pub(crate) struct Pair<F: HostFamily> {
    pub(crate) hook: Hook,
    pub(crate) device: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) flows: Flows<F::Address>,
    pub(crate) turns: BTreeMap<u32, Turn>,
}

/// Client and frontend of a packet, and where its flow leads.
struct Ends {
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: u32,
    peer: SocketAddr,
    delivery: Delivery,
}

/// A random pair.
pub(crate) fn pair<F: HostFamily>(
    scene: &Scene,
    world: &World,
    net: Net,
    now: u32,
    random: &mut Random,
) -> Pair<F> {
    let mut flows = Flows::default();
    let mut known = Vec::new();
    for _ in 0..random.below(6) {
        let ends = ends(world, net, random);
        let sequence = add_flow::<F>(&mut flows, &ends, world, now, random);
        known.push((ends, sequence));
    }
    for id in [1, 2, 3, 4, 5, 8] {
        if random.once_in(2) {
            flows.hops.insert(id, hop(world, 1, now, random));
        }
        if random.once_in(2) {
            flows.tunnel_hops.insert(id, hop(world, 1, now, random));
        }
    }
    for (ends, _) in known.iter().filter(|(ends, _)| ends.frontend.port() == STICKY) {
        stay::<F>(&mut flows, ends, world, now, random);
    }
    if scene.filling == Filling::Full {
        fill::<F>(&mut flows, net, now);
    }
    let hook = random.pick(&[
        Hook::Xdp,
        Hook::Xdp,
        Hook::Ingress,
        Hook::Ingress,
        Hook::Egress,
        Hook::Pod,
        Hook::Overlay,
    ]);
    let (frame, device) = packet(&known, world, net, hook, random);
    if world.records.settings.inherited != 0 && random.once_in(2) {
        inherit::<F>(&mut flows, &frame, now);
    }
    let octets = damaged(hook, frame.octets(), random);
    Pair { hook, device, frame: octets, flows, turns: turns(world, random) }
}

/// Where backends are: at either of their endpoints, the other expected or not.
fn turns(world: &World, random: &mut Random) -> BTreeMap<u32, Turn> {
    let mut turns = BTreeMap::new();
    for &id in world.records.turns.keys() {
        let times = random.pick(&[0, 0, 1, 1, 2, 255, 256]);
        let turned = (0..times).fold(Turned(0), |turned, _| turned.turned());
        let word = turned.expecting(random.once_in(2)).0;
        turns.insert(id, Turn { word, ..Turn::default() });
    }
    turns
}

fn ends(world: &World, net: Net, random: &mut Random) -> Ends {
    let port = random.pick(&[61001, 61002, 61003, 40000]);
    // Number 90 is outside the range of RANGED.
    let number = random.pick(&[0, 1, 2, 90]);
    let client = match random.below(12) {
        0 => net.second_client(port),
        1 => net.foreign_client(port),
        2 => net.stranger(port),
        _ => net.client(number, port),
    };
    let service = random.pick(&[
        30001,
        30001,
        30002,
        30002,
        30003,
        30004,
        30005,
        30006,
        30007,
        30008,
        30009,
        30010,
        EMPTY,
        EMPTY_LOCAL,
        LOCAL,
        LOCAL,
        LOCAL,
        MANY,
        STICKY,
        STICKY,
        RANGED,
    ]);
    let frontend = if random.once_in(2) { net.node(service) } else { net.vip(service) };
    let backend = match service {
        30001..=30009 => u32::from(service) - 30000,
        _ => random.pick(&[1, 2, 5, 8]),
    };
    let here = [1, 8, 9].contains(&backend);
    let delivery = match random.below(10) {
        0 => Delivery(random.octet() % 5),
        1..=3 if here => random.pick(&[Delivery::SNAT, Delivery::PEER]),
        _ if here => Delivery::KEPT,
        _ if world.records.settings.tunnel.shape != 0 && !random.once_in(4) => Delivery::KEPT,
        _ => Delivery::SNAT,
    };
    let snat = random.pick(&[61000, 61001, 61002, 61003]);
    let peer = match (delivery, backend) {
        (Delivery::KEPT | Delivery::PEER, _) => client,
        (_, 4) => net.node_on_eth1(snat),
        (_, 5) => net.node_on_eth2(snat),
        _ => net.node(snat),
    };
    let protocol = random.pick(&[Protocol::TCP, Protocol::UDP]);
    Ends { protocol, client, frontend, backend, peer, delivery }
}

fn key<F: HostFamily>(ends: &Ends) -> FlowKey<F::Address> {
    FlowKey {
        client: F::from_ip(ends.client.ip()).unwrap_or_default(),
        frontend: F::from_ip(ends.frontend.ip()).unwrap_or_default(),
        client_port: ends.client.port(),
        frontend_port: ends.frontend.port(),
        protocol: ends.protocol.number(),
        pad: 0,
        pad2: 0,
    }
}

/// Adds a flow in some state; returns the acknowledgment that would prove it.
fn add_flow<F: HostFamily>(
    flows: &mut Flows<F::Address>,
    ends: &Ends,
    world: &World,
    now: u32,
    random: &mut Random,
) -> u32 {
    let key = key::<F>(ends);
    let peer = F::from_ip(ends.peer.ip()).unwrap_or_default();
    let address_sum =
        Delta::ZERO.without(key.client.sum()).without(key.frontend.sum()).with(peer.sum()).fold();
    let flags = random.pick(&[
        0,
        Seen::ANSWERED,
        Seen::ANSWERED,
        Seen::ANSWERED | Seen::CLIENT_FIN,
        Seen::BACKEND_FIN | Seen::BACKEND_FIRST,
        Seen::BACKEND_FIN | Seen::BACKEND_FIRST | Seen::CLIENT_FIN,
        Seen::ANSWERED | Seen::CLIENT_FIN | Seen::BACKEND_FIN,
        Seen::ANSWERED | Seen::HEARD,
        Seen::RST,
    ]);
    let life = random.pick(&[
        Life::LIVE,
        Life::LIVE,
        Life::LIVE,
        Life::LIVE,
        Life::MARKED,
        Life::MARKED,
        Life::DEAD,
    ]);
    let flow = Flow {
        backend: ends.backend,
        service: service_id(ends.frontend.port(), ends.protocol),
        life,
        flags: flags & !Seen::ANSWERED,
        seen: ago(world, now, random),
        peer,
        peer_port: ends.peer.port(),
        target_port: TARGET_PORT,
        delivery: ends.delivery,
        turn: random.pick(&[0, 0, 0, 1, 255]),
        address_sum,
        next: random.word(),
        acknowledged: 0,
    };
    let mut reply = Reply {
        flow: key,
        life: if random.once_in(6) { random.pick(&[Life::LIVE, Life::MARKED, Life::DEAD]) } else { life },
        flags,
        seen: ago(world, now, random),
        sequence: random.word(),
        delivery: ends.delivery,
        pad: 0,
        address_sum,
        hop: hop(world, 0, now, random),
        via: if world.records.settings.tunnel.shape != 0 && random.once_in(2) {
            let net = Net::of(ends.client.ip());
            F::from_ip(net.node_of(random.pick(&[2, 3, 5]))).unwrap_or_default()
        } else {
            F::Address::default()
        },
    };
    if random.once_in(12) {
        reply.flow.client_port ^= 1;
    }
    let sequence = reply.sequence;
    let [half, established] = flows.pairs_mut();
    let pairs = if random.once_in(2) { half } else { established };
    if !random.once_in(10) {
        pairs.flows.insert(key, flow);
    }
    if !random.once_in(10) {
        let reply_key: ReplyKey<F::Address> = flow.reply_key(key.protocol);
        pairs.replies.insert(reply_key, reply);
    }
    sequence
}

/// The client stays with some target, perhaps one that is no choice any more.
fn stay<F: HostFamily>(
    flows: &mut Flows<F::Address>,
    ends: &Ends,
    world: &World,
    now: u32,
    random: &mut Random,
) {
    let key = ClientKey {
        service: service_id(STICKY, ends.protocol),
        client: F::from_ip(ends.client.ip()).unwrap_or_default(),
    };
    let backend = random.pick(&[1, 2, 5, 8, 3]);
    let target = Target { backend, port: TARGET_PORT, pad: 0 };
    let known = Affinity { target, seen: ago(world, now, random) };
    if random.once_in(2) {
        flows.affinity.insert(key, known);
    }
    if random.once_in(2) {
        flows.new_affinity.insert(key, known);
    }
}

/// A time in the past, not near any timeout.
fn ago(world: &World, now: u32, random: &mut Random) -> u32 {
    let seconds = random.pick(&[5, 20, 90, 250, 1000, 9000]);
    now.wrapping_sub(seconds * world.records.settings.hz)
}

/// A cached next hop: empty, of this generation for either hook, of an older one, or too old.
fn hop(world: &World, revision: u32, now: u32, random: &mut Random) -> Hop {
    let settings = &world.records.settings;
    let stamp = (settings.generation + revision) * 2;
    let stamp = random.pick(&[0, stamp, stamp, stamp | 1 << 31, stamp | 1 << 31, stamp + 1]);
    if stamp == 0 {
        return Hop::default();
    }
    let filled = now.wrapping_sub(random.pick(&[4, 4, 4, 15]) * settings.hz);
    let ifindex = random.pick(&[ETH0, ETH0, ETH2]);
    let mtu = random.pick(&[1500, 1400, 80]);
    Hop { stamp, filled, ifindex, source: own(ifindex), destination: neighbour(random.octet()), mtu }
}

/// Flows of others, until the established tables have no room.
fn fill<F: HostFamily>(flows: &mut Flows<F::Address>, net: Net, now: u32) {
    let others = (0..200).map(|number| Ends {
        protocol: Protocol::UDP,
        client: net.client(90, 1000 + number),
        frontend: net.node(30001),
        backend: 1,
        peer: net.client(90, 1000 + number),
        delivery: Delivery::KEPT,
    });
    let room = CAPACITIES.flows as usize;
    for ends in others {
        let established = &mut flows.established;
        let key = key::<F>(&ends);
        let peer = F::from_ip(ends.peer.ip()).unwrap_or_default();
        let flow = Flow {
            backend: 1,
            seen: now,
            peer,
            peer_port: ends.peer.port(),
            target_port: TARGET_PORT,
            delivery: Delivery::KEPT,
            ..Flow::default()
        };
        if established.flows.len() < room {
            established.flows.insert(key, flow);
        }
        if established.replies.len() < room {
            let reply = Reply { flow: key, seen: now, delivery: Delivery::KEPT, ..Reply::default() };
            established.replies.insert(flow.reply_key(key.protocol), reply);
        }
    }
}

fn inherit<F: HostFamily>(flows: &mut Flows<F::Address>, frame: &Frame, now: u32) {
    let key = WireKey {
        source: F::from_ip(frame.source.ip()).unwrap_or_default(),
        destination: F::from_ip(frame.destination.ip()).unwrap_or_default(),
        source_port: frame.source.port(),
        destination_port: frame.destination.port(),
        protocol: frame.protocol.number(),
        pad: 0,
        pad2: 0,
    };
    flows.inherited.insert(key, Inherited { seen: now.wrapping_sub(50_000) });
}

/// A packet, mostly of one of the flows, and the device it crosses.
fn packet(known: &[(Ends, u32)], world: &World, net: Net, hook: Hook, random: &mut Random) -> (Frame, u32) {
    let uplink = random.pick(&[ETH0, ETH0, ETH0, ETH1, ETH2]);
    let device = if hook == Hook::Pod { random.pick(&[POD1, POD1, OTHER0]) } else { uplink };
    let fresh = (ends(world, net, random), random.word());
    let fitting: Vec<&(Ends, u32)> = known.iter().filter(|(ends, _)| fits(hook, ends.delivery)).collect();
    let (ends, sequence) =
        if fitting.is_empty() || random.once_in(5) { &fresh } else { fitting[random.below(fitting.len())] };
    let is_reply = matches!(hook, Hook::Egress | Hook::Pod | Hook::Overlay) || random.once_in(3);
    let wrapping = wrapping(world, net, hook, ends.backend, is_reply, random);
    let pod = pod_of(world, net, ends.backend, random);
    let (source, destination) = match random.below(30) {
        0 => (net.stranger(random.short().max(1)), net.node(random.short().max(1))),
        1 => (net.pod(random.pick(&[1, 2, 5, 8])), net.node(random.pick(&[61000, 61005, 61031]))),
        2 if is_reply && world.records.settings.probe_port != 0 => (pod, net.node(PROBE_PORT)),
        _ if is_reply && wrapping.is_some() => (ends.frontend, ends.client),
        _ if is_reply => (pod, ends.peer),
        _ => (ends.client, ends.frontend),
    };
    let udp_or_tcp = if ends.protocol == Protocol::UDP { udp } else { tcp };
    let frame = udp_or_tcp(source, destination);
    let frame = if ends.protocol == Protocol::TCP { flags(frame, *sequence, random) } else { frame };
    let frame = frame.ttl(random.pick(&[64, 64, 64, 255, 2, 1, 0]));
    let data: Vec<u8> = (0..random.pick(&[0, 1, 5, 100, 1299, 1300])).map(|_| random.octet()).collect();
    let frame = frame.data(&data);
    let frame = if random.once_in(12) { frame.without_sum() } else { frame };
    let frame = if random.once_in(4) { frame.cuttable() } else { frame };
    let frame = if random.once_in(8) { about(frame, net, random) } else { frame };
    (
        match wrapping {
            Some(wrapping) => frame.wrapped(wrapping),
            None => frame,
        },
        device,
    )
}

/// One of the backend's pods.
fn pod_of(world: &World, net: Net, backend: u32, random: &mut Random) -> SocketAddr {
    let second = seconds(net).into_iter().find(|second| second.0 == backend);
    match second {
        Some((id, pod, _)) if world.records.turns.contains_key(&id) && random.once_in(2) => pod,
        _ => net.pod(backend),
    }
}

/// Half of the packets from the wire come by the tunnel, where there is one, and most of those say what is so.
fn wrapping(
    world: &World,
    net: Net,
    hook: Hook,
    backend: u32,
    is_reply: bool,
    random: &mut Random,
) -> Option<Wrapping> {
    let shape = match world.records.settings.tunnel.shape {
        TunnelShape::IP => Shape::Ip,
        TunnelShape::UDP => Shape::Udp,
        _ => return None,
    };
    if !matches!(hook, Hook::Xdp | Hook::Ingress) || random.once_in(2) {
        return None;
    }
    let proved = random.pick(&[0, 0x8000]);
    let mark = match random.below(12) {
        0 => random.short(),
        1 => mark_of(random.pick(&[1, 2, 5, 8])),
        _ if is_reply => 0,
        _ => mark_of(backend) | proved,
    };
    let strangers = net.stranger(0).ip();
    let (two, five) = (net.node_of(2), net.node_of(5));
    let from = random.pick(&[two, two, two, two, five, five, strangers]);
    Some(Wrapping { shape, from, to: net.node(0).ip(), mark })
}

/// An error about the packet that would be the answer to this one, as somebody on its way back would send it.
fn about(frame: Frame, net: Net, random: &mut Random) -> Frame {
    let says = random.pick(&[Says::NoPort, Says::TooBig(1280), Says::TooLong, Says::Echo]);
    let octets = random.pick(&[7, 8, 8, 19, 20, 60]);
    let seen = between(frame.destination, frame.source, &frame);
    let sender = random.pick(&[frame.source, frame.source, net.routers_own(), net.node(0)]);
    icmp(sender, frame.destination, says, &seen, octets).ttl(random.pick(&[64, 64, 64, 1]))
}

/// Whether packets of such flows cross the hook.
fn fits(hook: Hook, delivery: Delivery) -> bool {
    match hook {
        Hook::Xdp | Hook::Carrier | Hook::Ingress => true,
        Hook::Egress => delivery.keeps_source(),
        Hook::Pod => delivery != Delivery::KEPT,
        Hook::Overlay => delivery == Delivery::SNAT,
    }
}

fn flags(frame: Frame, sequence: u32, random: &mut Random) -> Frame {
    let right = sequence.wrapping_add(random.pick(&[0, 1, 1000, 0x000f_ffff, 0x0010_0000, u32::MAX]));
    match random.below(10) {
        0..=2 => frame.syn(random.word()),
        3 => frame.syn(random.word()).ack(random.word()),
        4..=6 => frame.at(random.word()).ack(right),
        7 => frame.at(random.word()).ack(right).fin(),
        8 => frame.at(random.word()).rst(),
        _ => frame,
    }
}

/// One in four frames is not as it should be.
fn damaged(hook: Hook, mut octets: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let is_v4 = octets[12] == 8;
    // What program runs take: at TC no less than an IP header.
    let shortest = if hook == Hook::Xdp {
        14
    } else if is_v4 {
        34
    } else {
        54
    };
    match random.below(36) {
        0..=3 => {
            let at = random.below(octets.len().min(74));
            octets[at] = random.octet();
        }
        4 => octets.truncate(shortest + random.below(octets.len() - shortest)),
        5 => octets.resize(octets.len() + 1 + random.below(60), 0),
        // Options and fragments; over IPv6 a fragment header's number and a payload length.
        6 if is_v4 => octets[14] = 0x40 | random.pick(&[4, 6, 15]),
        7 if is_v4 => octets[20] = 0x20,
        7 => octets[20] = 44,
        8 => octets.splice(12..12, [0x81, 0, 0, 7]).for_each(drop),
        _ => {}
    }
    octets
}

fn mark_of(backend: u32) -> u16 {
    u16::try_from(tag(backend)).unwrap_or_default()
}
