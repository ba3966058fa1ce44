//! Laws of pairs: whatever packets, passes, evictions and changes come in whatever order, no entry is left that could
//! rewrite a packet wrongly.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use vmlb_common::abi::{BackendFlags, Delivery, FlowKey, Reply, ReplyKey, Turn};
use vmlb_common::family::{V4, V6};
use vmlb_common::host::{Capacities, Hook, HostFamily, Node, Pairs};
use vmlb_common::kernel::{Stage, Tables};
use vmlb_common::wire::Protocol;
use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::{Bench, Host};
use vmlb_tests::packets::frame::{Frame, tcp, udp};
use vmlb_tests::packets::random::Random;
use vmlb_tests::packets::world::{ETH0, FIRST_SNAT_PORT, Net, POD1, TARGET_PORT, World};

/// What packets of a walk were seen to do.
#[derive(Debug, Default)]
struct Walk {
    established: usize,
    removed: usize,
    evicted: usize,
}

#[test]
fn established_flows_are_pairs_and_no_tuple_is_shared() {
    let mut random = Random::announced("established_flows_are_pairs_and_no_tuple_is_shared");
    let mut sum = Walk::default();
    for round in 0..16 {
        let (hz, now) = (100, random.word());
        let capacities = Capacities { flows: 12, half_flows: 10 + round, ..Capacities::default() };
        let mut world = World::new(hz);
        world.records.use_snat_ports(FIRST_SNAT_PORT, FIRST_SNAT_PORT + 7);
        let mut host = Host::new(world, capacities, now);
        for _ in 0..1500 {
            walk::<V4>(&mut host, Net(Family::V4), &mut random, &mut sum);
            walk::<V6>(&mut host, Net(Family::V6), &mut random, &mut sum);
        }
    }
    println!("{sum:?}");
    assert!(sum.established > 120 && sum.removed > 60 && sum.evicted > 300, "{sum:?}");
}

fn walk<F: HostFamily>(host: &mut Host, net: Net, random: &mut Random, sum: &mut Walk) {
    let before = host.node.pairs::<F>(Stage::Established).flows.len();
    let half = host.node.pairs::<F>(Stage::Half).flows.len();
    let passes = match random.below(40) {
        0 => {
            host.age(random.pick(&[5, 31, 200, 301, 8001]));
            false
        }
        1..3 => {
            host.sweep();
            true
        }
        3 => {
            let id = random.pick(&[1, 2, 5, 8]);
            let fresh = World::new(1).records;
            host.change(&|world| {
                if world.records.v4.backends.contains_key(&Turn::place(id, 0)) {
                    world.remove_backend(id);
                } else {
                    world.records.v4 = fresh.v4.clone();
                    world.records.v6 = fresh.v6.clone();
                }
            });
            false
        }
        4..18 => {
            answer::<F>(host, random);
            false
        }
        _ => {
            request(host, net, random);
            false
        }
    };
    check::<F>(&host.node);
    let after = host.node.pairs::<F>(Stage::Established).flows.len();
    sum.established += after.saturating_sub(before);
    sum.removed += if passes { before.saturating_sub(after) } else { 0 };
    let pairs = host.node.pairs::<F>(Stage::Half);
    sum.evicted +=
        usize::from(!passes && pairs.flows.len() == half && pairs.flows.len() != pairs.replies.len());
}

fn request(host: &mut Host, net: Net, random: &mut Random) {
    let client =
        net.client(u8::try_from(random.below(3)).expect("small"), random.pick(&[61001, 61002, 5000, 5001]));
    let port = random.pick(&[30001, 30002, 30005, 30008, 30024]);
    let frontend = if random.once_in(2) { net.node(port) } else { net.vip(port) };
    let frame = if random.once_in(2) { udp(client, frontend) } else { shape(tcp(client, frontend), random) };
    let octets = frame.octets();
    if host.receive(Hook::Xdp, ETH0, &octets).verdict.is_defer() {
        host.receive(Hook::Ingress, ETH0, &octets);
    }
}

/// The backend answers one of the flows that are there.
fn answer<F: HostFamily>(host: &mut Host, random: &mut Random) {
    let stage = random.pick(&[Stage::Half, Stage::Half, Stage::Established]);
    let replies: Vec<_> = host.node.pairs::<F>(stage).replies.into_iter().collect();
    if replies.is_empty() {
        return;
    }
    let (key, reply) = &replies[random.below(replies.len())];
    let Some(Answerer { pod, peer, hook, device }) = Answerer::of::<F>(&host.node, key, reply) else {
        return;
    };
    let is_udp = key.protocol == Protocol::UDP.number();
    let frame = if is_udp { udp(pod, peer) } else { shape(tcp(pod, peer), random) };
    host.receive(hook, device, &frame.octets());
}

/// Where a flow's answers come from.
pub(super) struct Answerer {
    pub(super) pod: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) hook: Hook,
    pub(super) device: u32,
}

impl Answerer {
    /// `None` where the backend is gone.
    pub(super) fn of<F: HostFamily>(
        node: &Node,
        key: &ReplyKey<F::Address>,
        reply: &Reply<F::Address>,
    ) -> Option<Self> {
        let backend = Tables::<F>::endpoint(node, Turn::place(key.backend, 0)).copied()?;
        let (hook, device) = match reply.delivery {
            Delivery::KEPT => (Hook::Egress, ETH0),
            Delivery::SNAT | Delivery::PEER if backend.flags & BackendFlags::LOCAL != 0 => (Hook::Pod, POD1),
            _ => (Hook::Xdp, ETH0),
        };
        let pod = SocketAddr::new(F::to_ip(&backend.address), key.target_port);
        let peer = SocketAddr::new(F::to_ip(&key.peer), key.peer_port);
        Some(Self { pod, peer, hook, device })
    }
}

/// TCP of any kind, with numbers so that a SYN-ACK is often acknowledged rightly.
fn shape(frame: Frame, random: &mut Random) -> Frame {
    let number = random.pick(&[1, 1, 1, 70_000_000]);
    match random.below(8) {
        0 | 1 => frame.syn(0),
        2 | 3 => frame.syn(number - 1).ack(number),
        4 | 5 => frame.at(1).ack(number),
        6 => frame.at(1).ack(number).fin(),
        _ => frame.at(1).rst(),
    }
}

/// The invariants.
pub(super) fn check<F: HostFamily>(node: &Node) {
    let (half, established) = (node.pairs::<F>(Stage::Half), node.pairs::<F>(Stage::Established));
    for (key, flow) in &established.flows {
        let reply_key = flow.reply_key(key.protocol);
        let reply = established.replies.get(&reply_key);
        assert_eq!(reply.map(|reply| reply.flow), Some(*key), "the reply of {key:?}");
        assert_eq!(reply.map(|reply| reply.delivery), Some(flow.delivery));
        assert_eq!(reply.map(|reply| reply.address_sum), Some(flow.address_sum));
    }
    for (key, reply) in &established.replies {
        let flow = established.flows.get(&reply.flow);
        assert_eq!(flow.map(|flow| flow.reply_key(reply.flow.protocol)), Some(*key), "the flow of {key:?}");
    }
    whole_half_pairs::<F>(&half);
    for key in half.flows.keys() {
        assert!(!established.flows.contains_key(key), "{key:?} is half open and established");
    }
    for key in half.replies.keys() {
        assert!(!established.replies.contains_key(key), "{key:?} is reserved twice");
        assert!(key.target_port == TARGET_PORT);
    }
}

/// Half-open entries may lose their other side, but those that have one have it alone.
fn whole_half_pairs<F: HostFamily>(half: &Pairs<F::Address>) {
    let mut owners: BTreeMap<ReplyKey<F::Address>, FlowKey<F::Address>> = BTreeMap::new();
    for (key, flow) in &half.flows {
        let reply_key = flow.reply_key(key.protocol);
        if half.replies.get(&reply_key).is_some_and(|reply| reply.flow == *key) {
            let other = owners.insert(reply_key, *key);
            assert_eq!(other, None, "{reply_key:?} has two owners");
        }
    }
}
