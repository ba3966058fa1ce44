//! ICMP errors about packets of flows, and packets that are too big for their way.

use std::net::SocketAddr;

use vmlb_common::verdict::Reason;
use vmlb_common::wire::Protocol;

use super::fragments::cut;
use crate::address::Family;
use crate::packets::frame::{Frame, Says, between, icmp, tcp, udp};
use crate::packets::story::{At, BEHIND_ETH2, Exit, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH2, Net, OTHER0, POD1, SMALL_MTU, neighbour};

use Expect::{Delivered, Dropped, Passed, Sent, SentByTc, TooBig};

/// What errors say, and how many octets they quote behind the IP header.
const ERRORS: [(Says, usize); 4] =
    [(Says::TooBig(1280), 8), (Says::TooBig(576), 500), (Says::NoPort, 8), (Says::TooLong, 20)];

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![
        local(net),
        moved_port(net),
        remote(net),
        device(net),
        foreign(net),
        too_big(net),
        too_big_reply(net),
        too_big_by_device(net),
        about_fragments(net),
        about_fragments_by_device(net),
    ]
}

/// Octets of a header between the IP header and the ports of a fragment.
const fn more(net: Net) -> usize {
    if matches!(net.0, Family::V4) { 0 } else { 8 }
}

/// The first fragment of a datagram.
pub(super) fn first(frame: &Frame) -> Frame {
    let [first, ..] = cut(frame, 77, 1360);
    first
}

/// An error that quotes the first fragment of a datagram.
pub(super) fn about_first(net: Net, from: SocketAddr, to: SocketAddr, says: Says, frame: &Frame) -> Frame {
    icmp(from, to, says, &first(frame), more(net) + 20)
}

/// The same client by both protocols.
fn packets(source: SocketAddr, destination: SocketAddr) -> [Frame; 2] {
    [tcp(source, destination).at(77).ack(78).data(&[7; 900]), udp(source, destination).data(&[9; 901])]
}

fn opening(source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Frame {
    if protocol == Protocol::TCP { tcp(source, destination).syn(1) } else { udp(source, destination) }
}

fn local(net: Net) -> Story {
    let mut story = Story::new("errors about flows to a VM on this node");
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let router = net.routers_own();
    for (to_client, to_pod) in packets(pod, client).into_iter().zip(packets(client, pod)) {
        let open = opening(client, frontend, to_client.protocol);
        story.wire("a flow is opened", open.clone(), Delivered(between(client, pod, &open)));
        for (says, octets) in ERRORS {
            let seen = between(frontend, client, &to_client).ttl(9);
            story.wire(
                "a router has trouble with a reply: the pod learns of its own packet",
                icmp(router, frontend, says, &seen, octets),
                Delivered(icmp(router, pod, says, &between(pod, client, &seen), octets)),
            );
            let translated = icmp(frontend, client, says, &between(client, frontend, &to_pod), octets);
            story.egress(
                "the pod has trouble with a request: the client learns of its own packet",
                icmp(pod, client, says, &to_pod, octets),
                Delivered(translated),
            );
            story.egress(
                "the node's stack has: the client learns of the frontend too",
                icmp(net.node(0), client, says, &to_pod, octets),
                Delivered(icmp(net.node(0), client, says, &between(client, frontend, &to_pod), octets)),
            );
        }
    }
    if net.0 == Family::V4 {
        let bare = udp(pod, client).without_sum();
        let seen = between(frontend, client, &bare);
        story.wire(
            "a quoted checksum of zero stays",
            icmp(router, frontend, Says::NoPort, &seen, 8),
            Delivered(icmp(router, pod, Says::NoPort, &bare, 8)),
        );
    }
    story
}

fn moved_port(net: Net) -> Story {
    let mut story = Story::new("errors about a flow whose client got another port");
    story.change("one SNAT port is left", |world| world.records.use_snat_ports(61009, 61009));
    let (client, first, second) = (net.client(0, 5353), net.node(30001), net.vip(30001));
    let (pod, other) = (net.pod(1), SocketAddr::new(client.ip(), 61009));
    let ask = udp(client, first);
    story.wire("the first", ask.clone(), Delivered(between(client, pod, &ask)));
    let ask = udp(client, second);
    story.wire("the second", ask.clone(), Delivered(between(other, pod, &ask)));
    let refused = icmp(pod, client, Says::NoPort, &between(other, pod, &ask), 8);
    story.egress("the client learns of its own port", refused, {
        Delivered(icmp(second, client, Says::NoPort, &ask, 8))
    });
    let router = net.routers_own();
    let answer = udp(second, client);
    story.wire("and the pod of the port it knows", icmp(router, second, Says::TooLong, &answer, 8), {
        Delivered(icmp(router, pod, Says::TooLong, &between(pod, other, &answer), 8))
    });
    story
}

fn remote(net: Net) -> Story {
    let mut story = Story::new("errors about flows to a VM on another node");
    let (client, frontend, pod) = (net.client(0, 61010), net.node(30002), net.pod(2));
    let (us, router) = (net.node(61010), net.routers_own());
    for (to_client, to_pod) in packets(frontend, client).into_iter().zip(packets(us, pod)) {
        let open = opening(client, frontend, to_client.protocol);
        story.wire("a flow is opened", open.clone(), Sent(between(us, pod, &open).ttl(63), NODE2));
        for (says, octets) in ERRORS {
            let seen = to_client.clone().ttl(9);
            story.wire(
                "a router has trouble with a reply",
                icmp(router, frontend, says, &seen, octets),
                Sent(icmp(us, pod, says, &between(pod, us, &seen), octets).ttl(63), NODE2),
            );
            for sender in [pod, net.second_client(0)] {
                story.wire(
                    "the pod, or a router before it, has trouble with a request",
                    icmp(sender, us, says, &to_pod, octets),
                    Sent(
                        icmp(frontend, client, says, &between(client, frontend, &to_pod), octets).ttl(63),
                        ROUTER,
                    ),
                );
            }
        }
    }
    let seen = udp(frontend, client);
    let last = icmp(router, frontend, Says::TooLong, &seen, 8).ttl(1);
    story.wire("an error without hops left", last, Dropped(Reason::TTL_EXPIRED));
    story.change("the VM is gone", |world| world.remove_backend(2));
    let late = icmp(router, frontend, Says::TooLong, &seen, 8);
    story.wire("an error for nobody", late, Dropped(Reason::BACKEND_GONE));
    story
}

fn device(net: Net) -> Story {
    let mut story = Story::new("errors about flows by a pod's device");
    let (client, frontend) = (net.foreign_client(61010), net.node(30001));
    let (us, pod, router) = (net.node(61010), net.pod(1), net.routers_own());
    let ask = udp(client, frontend);
    let out = between(us, pod, &ask).ttl(63);
    story.wire("a flow is opened", ask.clone(), SentByTc(Reason::POD_DEVICE, out.clone(), POD1));
    story.packet(
        "the pod has trouble with a request",
        At::Pod(POD1),
        icmp(pod, us, Says::NoPort, &out, 8),
        Sent(
            icmp(frontend, client, Says::NoPort, &between(client, frontend, &out), 8).ttl(63),
            Exit { device: OTHER0, next_hop: neighbour(9) },
        ),
    );
    let seen = udp(frontend, client);
    story.wire("a router has trouble with a reply", icmp(router, frontend, Says::TooLong, &seen, 8), {
        let told = icmp(us, pod, Says::TooLong, &between(pod, us, &seen), 8).ttl(63);
        SentByTc(Reason::POD_DEVICE, told, POD1)
    });
    story
}

fn foreign(net: Net) -> Story {
    let mut story = Story::new("ICMP that is not ours");
    let (client, frontend, router) = (net.client(0, 40000), net.node(30001), net.routers_own());
    let seen = udp(frontend, client);
    story.wire(
        "an echo request to a frontend's address",
        icmp(client, frontend, Says::Echo, &seen, 8),
        Passed,
    );
    story.wire("an error about nothing of ours", icmp(router, frontend, Says::NoPort, &seen, 8), Passed);
    story.wire("one that quotes too little", icmp(router, frontend, Says::NoPort, &seen, 7), Passed);
    story.egress(
        "the node's own",
        icmp(net.node(0), client, Says::TooLong, &udp(client, net.node(9)), 8),
        Passed,
    );
    let inner = icmp(client, frontend, Says::Echo, &seen, 8);
    story.wire("about an echo", icmp(router, frontend, Says::TooLong, &inner, 8), Passed);
    story
}

fn too_big(net: Net) -> Story {
    let mut story = Story::new("a request that is too big for the way to its VM");
    let (client, frontend, us) = (net.client(0, 61011), net.node(30005), net.node_on_eth2(61011));
    let headers = if net.0 == Family::V4 { 28 } else { 48 };
    let datagram = |octets: u16| udp(client, frontend).data(&vec![5; usize::from(octets) - headers]);
    let sent = |frame: &Frame| between(us, net.pod(5), frame).ttl(63);
    let fits = datagram(SMALL_MTU);
    story.wire("as many octets as the way takes", fits.clone(), Sent(sent(&fits), BEHIND_ETH2));
    let big = datagram(SMALL_MTU + 1);
    story.wire("one more", big.clone(), TooBig(big.refused(Says::TooBig(SMALL_MTU))));
    if net.0 == Family::V4 {
        let cuttable = big.cuttable();
        story.wire("one that may be cut", cuttable.clone(), Dropped(Reason::UNCUTTABLE));
    }
    story
}

fn too_big_reply(net: Net) -> Story {
    let mut story = Story::new("a reply that is too big for the way to its client");
    let (client, frontend) = (net.second_client(61012), net.node(30002));
    let (us, pod) = (net.node(61012), net.pod(2));
    let syn = tcp(client, frontend).syn(1);
    story.packet("SYN", At::Uplink(ETH2), syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let big = tcp(pod, us).at(5).ack(2).data(&[3; 1440]);
    story.wire("1,440 octets", big.clone(), TooBig(big.refused(Says::TooBig(SMALL_MTU))));
    story
}

fn too_big_by_device(net: Net) -> Story {
    let mut story = Story::new("a reply by a pod's device that is too big for the way to its client");
    let (client, frontend) = (net.foreign_client(61013), net.node(30001));
    let (us, pod) = (net.node(61013), net.pod(1));
    let syn = tcp(client, frontend).syn(1);
    story.wire("SYN", syn.clone(), SentByTc(Reason::POD_DEVICE, between(us, pod, &syn).ttl(63), POD1));
    let big = tcp(pod, us).at(5).ack(2).data(&[3; 1500]);
    story.packet("the stack would reset it", At::Pod(POD1), big, Dropped(Reason::TOO_BIG));
    story
}

fn about_fragments(net: Net) -> Story {
    let mut story = Story::new("errors about a datagram's first fragment");
    let (client, router) = (net.client(0, 61010), net.routers_own());
    let about = |from, to, says, frame: &Frame| about_first(net, from, to, says, frame);
    let (frontend, pod) = (net.vip(30001), net.pod(1));
    let open = udp(client, frontend);
    story.wire("a flow to a VM of this node", open.clone(), Delivered(between(client, pod, &open)));
    for says in [Says::TooBig(1280), Says::TooLong] {
        story.wire(
            "a router has trouble with a reply",
            about(router, frontend, says, &udp(frontend, client)),
            Delivered(about(router, pod, says, &udp(pod, client))),
        );
        story.egress("the pod has with a request", about(pod, client, says, &udp(client, pod)), {
            Delivered(about(frontend, client, says, &udp(client, frontend)))
        });
        let stack = net.node(0);
        story.egress("so has the node's stack", about(stack, client, says, &udp(client, pod)), {
            Delivered(about(stack, client, says, &udp(client, frontend)))
        });
    }
    let (frontend, us, pod) = (net.node(30002), net.node(61010), net.pod(2));
    let open = udp(client, frontend);
    story.wire("a flow to one of another node", open.clone(), Sent(between(us, pod, &open).ttl(63), NODE2));
    for says in [Says::TooBig(1280), Says::TooLong] {
        story.wire(
            "a router has trouble with a reply",
            about(router, frontend, says, &udp(frontend, client)),
            Sent(about(us, pod, says, &udp(pod, us)).ttl(63), NODE2),
        );
        story.wire("the pod has with a request", about(pod, us, says, &udp(us, pod)), {
            Sent(about(frontend, client, says, &udp(client, frontend)).ttl(63), ROUTER)
        });
    }
    let [_, second, _] = cut(&udp(frontend, client), 77, 1360);
    let later = icmp(router, frontend, Says::TooBig(1280), &second, more(net) + 20);
    story.wire("one about the second fragment", later, Passed);
    let nobodys = about(router, frontend, Says::TooLong, &udp(frontend, net.client(1, 1)));
    story.wire("one about nothing of ours", nobodys, Passed);
    story
}

fn about_fragments_by_device(net: Net) -> Story {
    let mut story = Story::new("errors about first fragments by a pod's device");
    let (client, frontend) = (net.foreign_client(61010), net.node(30001));
    let (us, pod, router) = (net.node(61010), net.pod(1), net.routers_own());
    let about = |from, to, frame: &Frame| about_first(net, from, to, Says::TooLong, frame);
    let ask = udp(client, frontend);
    story.wire(
        "a flow is opened",
        ask.clone(),
        SentByTc(Reason::POD_DEVICE, between(us, pod, &ask).ttl(63), POD1),
    );
    story.packet("the pod has trouble with a request", At::Pod(POD1), about(pod, us, &udp(us, pod)), {
        let exit = Exit { device: OTHER0, next_hop: neighbour(9) };
        Sent(about(frontend, client, &udp(client, frontend)).ttl(63), exit)
    });
    story.wire("a router has trouble with a reply", about(router, frontend, &udp(frontend, client)), {
        SentByTc(Reason::POD_DEVICE, about(us, pod, &udp(pod, us)).ttl(63), POD1)
    });
    story
}
