//! Backends on this node that cannot be reached with the client's address: SNAT into the pod's device, undone there.

use vmlb_common::verdict::Reason;

use crate::packets::frame::{between, tcp, udp};
use crate::packets::story::{At, Expect, ROUTER, Story};
use crate::packets::world::{LOCAL, Net, POD1};

use Expect::{Delivered, Dropped, Passed, Punted, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![collision(net), datagrams(net), foreign_client(net), foreign_pod_device(net)]
}

fn collision(net: Net) -> Story {
    let mut story = Story::new("one client port to two frontends of one VM");
    let (client, first, second) = (net.client(0, 61007), net.node(30001), net.vip(30001));
    let (us, pod) = (net.node(61007), net.pod(1));
    let syn = tcp(client, first).syn(100);
    story.wire("the first keeps the client's address", syn.clone(), Delivered(between(client, pod, &syn)));
    let syn = tcp(client, second).syn(200);
    story.wire("the second gets a tuple of its own, into the pod's device", syn.clone(), {
        SentByTc(Reason::POD_DEVICE, between(us, pod, &syn).ttl(63), POD1)
    });
    story.flows(2, 0);
    let to_second = tcp(pod, us).syn(7000).ack(201);
    story.packet(
        "its answer is reversed where the pod's device comes in",
        At::Pod(POD1),
        to_second.clone(),
        Sent(between(second, client, &to_second).ttl(63), ROUTER),
    );
    let to_first = tcp(pod, client).syn(8000).ack(101);
    story.packet("the first one's answer goes through the stack", At::Pod(POD1), to_first.clone(), Passed);
    story.egress(
        "and is reversed on its way out",
        to_first.clone(),
        Delivered(between(first, client, &to_first)),
    );
    let ack = tcp(client, second).at(201).ack(7001);
    story.wire("the second is proved by TC", ack.clone(), {
        SentByTc(Reason::POD_DEVICE, between(us, pod, &ack).ttl(63), POD1)
    });
    story.flows(1, 1);
    story.packet(
        "an answer to a port no flow holds",
        At::Pod(POD1),
        tcp(pod, net.node(61008)).ack(1),
        Passed,
    );
    story
}

fn datagrams(net: Net) -> Story {
    let mut story = Story::new("one client port to two frontends of one VM, by UDP");
    let (client, first, second) = (net.client(0, 61009), net.node(30001), net.vip(30001));
    let (us, pod) = (net.node(61009), net.pod(1));
    let ask = udp(client, first);
    story.wire("the first", ask.clone(), Delivered(between(client, pod, &ask)));
    let ask = udp(client, second);
    story.wire("the second", ask.clone(), SentByTc(Reason::POD_DEVICE, between(us, pod, &ask).ttl(63), POD1));
    let answer = udp(pod, us);
    story.packet(
        "its answer",
        At::Pod(POD1),
        answer.clone(),
        Sent(between(second, client, &answer).ttl(63), ROUTER),
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
        "the answer finds no uplink to the client",
        At::Pod(POD1),
        answer,
        Dropped(Reason::FOREIGN_DEVICE),
    );
    let syn = tcp(client, net.node(LOCAL)).syn(5);
    story.wire("policy Local does not take the source away", syn, Punted(Reason::SOURCE_NOT_KEPT));
    story
}

fn foreign_pod_device(net: Net) -> Story {
    let mut story = Story::new("a VM of this node behind a device that is not ours");
    let client = net.client(0, 61011);
    let syn = tcp(client, net.node(30009)).syn(5);
    story.wire("by the stack it can be reached", syn.clone(), Delivered(between(client, net.pod(9), &syn)));
    story.wire("with SNAT it cannot", tcp(client, net.vip(30009)).syn(5), Punted(Reason::FOREIGN_DEVICE));
    story.flows(1, 0);
    story
}
