//! Backends on this node that cannot be reached with the client's address: SNAT into the pod's device, undone there.

use vmlb_common::verdict::Reason;

use crate::packets::frame::{between, tcp};
use crate::packets::story::{At, Exit, Expect, Story};
use crate::packets::world::{LOCAL, Net, OTHER0, POD1, neighbour};

use Expect::{Delivered, Dropped, Passed, Punted, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![connection(net), foreign_client(net), foreign_pod_device(net)]
}

fn connection(net: Net) -> Story {
    let mut story = Story::new("a connection by the pod's device");
    let (client, frontend) = (net.foreign_client(61007), net.vip(30001));
    let (us, pod) = (net.node(61007), net.pod(1));
    let syn = tcp(client, frontend).syn(200);
    story.wire("SYN", syn.clone(), SentByTc(Reason::POD_DEVICE, between(us, pod, &syn).ttl(63), POD1));
    let answer = tcp(pod, us).syn(7000).ack(201);
    story.packet(
        "its answer is reversed where the pod's device comes in",
        At::Pod(POD1),
        answer.clone(),
        Sent(between(frontend, client, &answer).ttl(63), Exit { device: OTHER0, next_hop: neighbour(9) }),
    );
    let ack = tcp(client, frontend).at(201).ack(7001);
    story.wire("it is proved by TC", ack.clone(), {
        SentByTc(Reason::POD_DEVICE, between(us, pod, &ack).ttl(63), POD1)
    });
    story.flows(0, 1);
    story.packet(
        "an answer to a port no flow holds",
        At::Pod(POD1),
        tcp(pod, net.node(61008)).ack(1),
        Passed,
    );
    story
}

fn foreign_client(net: Net) -> Story {
    let mut story = Story::new("a client to whom the route leads past our egress program");
    let (client, frontend) = (net.foreign_client(61010), net.node(30001));
    let syn = tcp(client, frontend).syn(5);
    story.wire("SYN: the pod answers to us instead", syn.clone(), {
        SentByTc(Reason::POD_DEVICE, between(net.node(61010), net.pod(1), &syn).ttl(63), POD1)
    });
    let answer = tcp(net.pod(1), net.node(61010)).syn(6).ack(6);
    story.packet(
        "the answer goes by whatever device leads to the client",
        At::Pod(POD1),
        answer.clone(),
        Sent(between(frontend, client, &answer).ttl(63), Exit { device: OTHER0, next_hop: neighbour(9) }),
    );
    story.change("no way leads there any more", |world| {
        world.silent.insert(POD1);
    });
    story.change("nor is any remembered", |world| world.records.settings.generation += 1);
    story.packet("the answer is not the stack's", At::Pod(POD1), answer, Dropped(Reason::FORWARDING_OFF));
    let syn = tcp(client, net.node(LOCAL)).syn(5);
    story.wire("policy Local does not take the source away", syn, Punted(Reason::SOURCE_NOT_KEPT));
    story
}

fn foreign_pod_device(net: Net) -> Story {
    let mut story = Story::new("a VM of this node behind a device that is not ours");
    let client = net.client(0, 61011);
    let syn = tcp(client, net.node(30009)).syn(5);
    story.wire("by the stack it can be reached", syn.clone(), Delivered(between(client, net.pod(9), &syn)));
    let other = tcp(net.foreign_client(61011), net.vip(30009)).syn(5);
    story.wire("with SNAT it cannot", other, Punted(Reason::FOREIGN_DEVICE));
    story.flows(1, 0);
    story
}
