//! Two CPUs have packets of one flow at the same time.

use vmlb_common::family::{V4, V6};
use vmlb_common::host::{Hook, HostFamily, Node};
use vmlb_common::kernel::Stage;
use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::Host;
use vmlb_tests::packets::frame::{Frame, tcp, udp};
use vmlb_tests::packets::world::{ETH0, Net};

use crate::pairs::{Answerer, check};

/// Ways that a flow can go from here.
const PORTS: [u16; 2] = [30001, 30002];

#[test]
fn a_packet_of_a_flow_that_another_cpu_proves_at_this_moment_is_never_the_stacks() {
    let mut moments = 0;
    for port in PORTS {
        for is_udp in [false, true] {
            moments += prove_meanwhile::<V4>(Net(Family::V4), port, is_udp);
            moments += prove_meanwhile::<V6>(Net(Family::V6), port, is_udp);
        }
    }
    assert!(moments > 30, "{moments} moments");
}

/// How many moments there were.
fn prove_meanwhile<F: HostFamily>(net: Net, port: u16, is_udp: bool) -> u64 {
    for moment in 1.. {
        let host = Host::of_stories();
        let (proof, next) = half_open::<F>(&host.node, net, port, is_udp);
        let proof = proof.octets();
        host.node.meanwhile(moment, move |node| {
            assert!(is_served(node, &proof));
        });
        let next = next.octets();
        let outcome = host.node.receive(Hook::Xdp, ETH0, &next);
        if host.node.is_undisturbed() {
            return moment - 1;
        }
        let (verdict, is_translated) = (outcome.verdict, outcome.octets != next);
        assert!(!verdict.is_punt() && (is_translated || verdict.is_drop()), "{port}, {moment}: {verdict:?}");
        check::<F>(&host.node);
        let established = host.node.pairs::<F>(Stage::Established);
        assert_eq!(established.flows.len(), 1);
        assert!(host.node.pairs::<F>(Stage::Half).flows.is_empty(), "{port}, {moment}");
        assert!(is_served(&host.node, &next), "{port}, {moment}");
    }
    unreachable!("a packet takes so many lookups and no more")
}

/// Whether a request goes on its way to a backend.
fn is_served(node: &Node, request: &[u8]) -> bool {
    let outcome = node.receive(Hook::Xdp, ETH0, request);
    !outcome.verdict.is_punt() && !outcome.verdict.is_drop() && outcome.octets != request
}

/// A flow with its answer; the packet that proves it, and the one after that.
fn half_open<F: HostFamily>(node: &Node, net: Net, port: u16, is_udp: bool) -> (Frame, Frame) {
    let (client, frontend) = (net.client(0, 61001), net.node(port));
    let opening = if is_udp { udp(client, frontend) } else { tcp(client, frontend).syn(0) };
    assert!(is_served(node, &opening.octets()));
    let replies = node.pairs::<F>(Stage::Half).replies;
    let (key, reply) = replies.iter().next().expect("the flow is there");
    let Answerer { pod, peer, hook, device } = Answerer::of::<F>(node, key, reply).expect("its backend is");
    let answer = if is_udp { udp(pod, peer) } else { tcp(pod, peer).syn(0).ack(1) };
    node.receive(hook, device, &answer.octets());
    if is_udp {
        return (udp(client, frontend), udp(client, frontend));
    }
    let packet = tcp(client, frontend).at(1).ack(1);
    (packet.clone(), packet)
}
