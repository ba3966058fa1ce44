//! Next hops: believed until something changes, and no longer than ten seconds.

use vmlb_common::verdict::Reason;

use crate::packets::frame::{between, tcp};
use crate::packets::story::{Exit, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, Net, neighbour};

use Expect::{Dropped, DroppedByTc, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![requests(net), replies(net), unknown(net), lost(net)]
}

/// The same hop with another MAC address.
fn replaced(exit: Exit) -> Exit {
    Exit { next_hop: neighbour(200), ..exit }
}

fn requests(net: Net) -> Story {
    let mut story = Story::new("the next hop to a VM is remembered");
    let node2 = net.routes().into_iter().find(|route| route.0 == network_of(net)).and_then(|route| route.2);
    let node2 = node2.expect("the world has a route to the pods of node2");
    let (client, frontend) = (net.client(0, 61021), net.node(30002));
    let (us, pod) = (net.node(61021), net.pod(2));
    let syn = tcp(client, frontend).syn(1);
    let out = between(us, pod, &syn).ttl(63);
    story.wire("SYN", syn.clone(), Sent(out.clone(), NODE2));
    story.change("node2 gets another MAC address, and nobody says so", move |world| {
        world.neighbours.insert((ETH0, node2), neighbour(200));
    });
    story.wire("the old one is believed", syn.clone(), Sent(out.clone(), NODE2));
    story.wait(9);
    story.wire("nine seconds later too", syn.clone(), Sent(out.clone(), NODE2));
    story.wait(2);
    story.wire("after ten it is asked for again", syn.clone(), Sent(out.clone(), replaced(NODE2)));
    story.change("it changes back, and the agent says so", move |world| {
        world.neighbours.insert((ETH0, node2), NODE2.next_hop);
        world.records.settings.generation += 1;
    });
    story.wire("the new one is asked for at once", syn.clone(), Sent(out.clone(), NODE2));
    story.change("the VM's next hop changes with its entry", move |world| {
        world.neighbours.insert((ETH0, node2), neighbour(200));
        for backend in world.records.v4.backends.values_mut() {
            backend.revision += 1;
        }
        for backend in world.records.v6.backends.values_mut() {
            backend.revision += 1;
        }
    });
    story.wire("a new revision is asked for too", syn, Sent(out, replaced(NODE2)));
    story
}

fn network_of(net: Net) -> std::net::IpAddr {
    let pod = net.pod(2).ip();
    let best = net.routes().into_iter().find(|route| share_network(route.0, pod));
    best.map_or(pod, |route| route.0)
}

fn share_network(network: std::net::IpAddr, address: std::net::IpAddr) -> bool {
    match (network, address) {
        (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

fn replies(net: Net) -> Story {
    let mut story = Story::new("the next hop to a client is remembered");
    let router = net.routes()[0].2.expect("the world has a route to clients");
    let (client, frontend) = (net.client(0, 61022), net.node(30002));
    let (us, pod) = (net.node(61022), net.pod(2));
    let syn = tcp(client, frontend).syn(1);
    story.wire("SYN", syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let answer = tcp(pod, us).syn(5).ack(2);
    let out = between(frontend, client, &answer).ttl(63);
    story.wire("SYN-ACK", answer.clone(), Sent(out.clone(), ROUTER));
    story.change("the router gets another MAC address, and nobody says so", move |world| {
        world.neighbours.insert((ETH0, router), neighbour(200));
    });
    story.wire("the old one is believed", answer.clone(), Sent(out.clone(), ROUTER));
    story.change("the agent says so", |world| world.records.settings.generation += 1);
    story.wire("the new one is asked for", answer.clone(), Sent(out.clone(), replaced(ROUTER)));
    let ack = tcp(client, frontend).at(2).ack(6);
    story.wire("ACK", ack.clone(), Sent(between(us, pod, &ack).ttl(63), NODE2));
    story.wire("an established flow keeps what it knew", answer, Sent(out, replaced(ROUTER)));
    story
}

fn unknown(net: Net) -> Story {
    let mut story = Story::new("a next hop whose MAC address is not known");
    let (client, frontend) = (net.client(0, 61023), net.node(30003));
    let (us, pod) = (net.node(61023), net.pod(3));
    let syn = tcp(client, frontend).syn(1);
    let out = between(us, pod, &syn).ttl(63);
    story.wire("XDP leaves it to TC, which has the kernel ask", syn.clone(), {
        SentByTc(Reason::NEIGHBOUR, out.clone(), ETH0)
    });
    story.flows(1, 0);
    let node3 = net.unknown_neighbour();
    story.change("the neighbour answers", move |world| {
        world.neighbours.insert((ETH0, node3), neighbour(13));
    });
    story.wire("now XDP sends", syn, Sent(out, Exit { device: ETH0, next_hop: neighbour(13) }));
    story.flows(1, 0);
    story
}

fn lost(net: Net) -> Story {
    let mut story = Story::new("a flow whose way is lost is not left to the stack");
    let (client, frontend) = (net.client(0, 61024), net.node(30002));
    let (us, pod) = (net.node(61024), net.pod(2));
    let syn = tcp(client, frontend).syn(1);
    story.wire("SYN", syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    story.change("the VM moves to where no route leads", move |world| world.rehome(2, net.stranger(0).ip()));
    story.wire("it would be answered by RST there", syn.clone(), Dropped(Reason::NO_ROUTE));
    story.change("the VM moves behind a device that is not ours", move |world| {
        world.remove_backend(6);
        world.rehome(2, net.pod(6).ip());
    });
    story.wire("nor there", syn.clone(), Dropped(Reason::FOREIGN_DEVICE));
    let answer = tcp(net.pod(6), us).syn(2).ack(2);
    story.change("eth0 is no uplink any more", |world| {
        world.records.devices.remove(&ETH0);
        world.records.settings.generation += 1;
    });
    let out = between(frontend, client, &answer).ttl(63);
    story.wire("answers go by the node's routing, by TC", answer, SentByTc(Reason::NO_TRANSMIT, out, ETH0));
    let early = tcp(client, net.node(30002)).syn(1).ttl(1);
    story.change("the VM is behind eth1, which XDP cannot use", move |world| {
        world.remove_backend(4);
        world.rehome(2, net.pod(4).ip());
    });
    story.wire("TTL 1 on a way by TC", early, DroppedByTc(Reason::NO_TRANSMIT, Reason::TTL_EXPIRED));
    story
}
