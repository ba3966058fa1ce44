//! Backends on this node: DNAT by XDP, delivery by the stack, the reply's source put back at egress (ways 2 and 3).

use std::net::SocketAddr;

use vmlb_common::verdict::Reason;

use crate::packets::frame::{Says, between, tcp, udp};
use crate::packets::story::{At, Expect, Story};
use crate::packets::world::{ETH2, LOCAL, Net};

use Expect::{Answered, Delivered, Passed};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![
        connection(net),
        datagrams(net),
        udp_sums(net),
        local_policy(net),
        the_vip(net),
        collision(net),
        collision_of_datagrams(net),
    ]
}

fn connection(net: Net) -> Story {
    let mut story = Story::new("a connection to a VM on this node");
    let (client, frontend, pod) = (net.client(0, 40000), net.node(30001), net.pod(1));
    let syn = tcp(client, frontend).syn(1000);
    story.wire(
        "SYN: the destination becomes the pod, the source stays",
        syn.clone(),
        Delivered(between(client, pod, &syn)),
    );
    story.flows(1, 0);
    let syn_ack = tcp(pod, client).syn(5000).ack(1001);
    story.egress(
        "SYN-ACK: the source becomes the frontend",
        syn_ack.clone(),
        Delivered(between(frontend, client, &syn_ack)),
    );
    let ack = tcp(client, frontend).at(1001).ack(5001);
    story.wire("ACK: proves the flow", ack.clone(), Delivered(between(client, pod, &ack)));
    story.flows(0, 1);
    let request = ack.clone().data(b"GET / HTTP/1.1\r\nHost: vm\r\n\r\n");
    story.wire("data to the VM", request.clone(), Delivered(between(client, pod, &request)));
    let answer = tcp(pod, client).at(5001).ack(1029).data(&[0x5a; 1400]);
    story.egress("data from the VM, an odd number of them", answer.clone().data(&[7; 1399]), {
        Delivered(between(frontend, client, &answer.clone().data(&[7; 1399])))
    });
    story.egress("data from the VM", answer.clone(), Delivered(between(frontend, client, &answer)));
    let last_hop = request.clone().ttl(1);
    story.wire(
        "the stack counts the hop, not we",
        last_hop.clone(),
        Delivered(between(client, pod, &last_hop)),
    );
    story.egress("another port of the pod is not ours", between(net.pod(8), client, &answer), Passed);
    story
}

fn datagrams(net: Net) -> Story {
    let mut story = Story::new("datagrams to a VM on this node");
    let (client, frontend, pod) = (net.client(1, 5353), net.vip(30001), net.pod(1));
    let ask = udp(client, frontend);
    story.wire("the first datagram", ask.clone(), Delivered(between(client, pod, &ask)));
    story.wire(
        "a second before any answer proves nothing",
        ask.clone(),
        Delivered(between(client, pod, &ask)),
    );
    story.flows(1, 0);
    let answer = udp(pod, client).data(b"answer");
    story.egress("the answer", answer.clone(), Delivered(between(frontend, client, &answer)));
    story.flows(1, 0);
    story.wire("a datagram after the answer", ask.clone(), Delivered(between(client, pod, &ask)));
    story.flows(0, 1);
    story.egress("another answer", answer.clone(), Delivered(between(frontend, client, &answer)));
    let empty = ask.data(b"");
    story.wire("a datagram without data", empty.clone(), Delivered(between(client, pod, &empty)));
    story
}

fn udp_sums(net: Net) -> Story {
    let mut story = Story::new("UDP checksums of zero and of all ones");
    let (client, frontend, pod) = (net.client(2, 6000), net.node(30001), net.pod(1));
    if net.0 == crate::address::Family::V4 {
        let bare = udp(client, frontend).without_sum();
        story.wire("no checksum stays none", bare.clone(), Delivered(between(client, pod, &bare)));
        let answer = udp(pod, client).without_sum();
        story.egress(
            "nor does the answer get one",
            answer.clone(),
            Delivered(between(frontend, client, &answer)),
        );
    }
    // The sum over a packet with these data is zero after the translation.
    let after = udp(client, pod).with_sum_of_all_ones();
    story.wire(
        "a sum that comes out as zero is sent as all ones",
        between(client, frontend, &after),
        Delivered(after),
    );
    let back = udp(frontend, client).with_sum_of_all_ones();
    story.egress("on the way back too", between(pod, client, &back), Delivered(back));
    let before = udp(client, frontend).with_sum_of_all_ones();
    story.wire(
        "and all ones are a sum like any other",
        before.clone(),
        Delivered(between(client, pod, &before)),
    );
    story
}

fn local_policy(net: Net) -> Story {
    let mut story = Story::new("policy Local with a VM here keeps the source");
    let (client, frontend, pod) = (net.client(3, 40000), net.node(LOCAL), net.pod(1));
    let syn = tcp(client, frontend).syn(9);
    story.wire("SYN", syn.clone(), Delivered(between(client, pod, &syn)));
    story
}

fn the_vip(net: Net) -> Story {
    let mut story = Story::new("a client behind the second uplink, by the load-balancer address");
    let (client, frontend, pod) = (net.second_client(40000), net.vip(30001), net.pod(1));
    let syn = tcp(client, frontend).syn(9);
    story.packet("SYN", At::Uplink(ETH2), syn.clone(), Delivered(between(client, pod, &syn)));
    let answer = tcp(pod, client).syn(1).ack(10);
    story.packet("SYN-ACK", At::Egress(ETH2), answer.clone(), Delivered(between(frontend, client, &answer)));
    story
}

fn collision(net: Net) -> Story {
    let mut story = Story::new("one client port to two frontends of one VM");
    let (client, first, second) = (net.client(0, 40000), net.node(LOCAL), net.vip(LOCAL));
    story.change("one SNAT port is left", |world| world.records.use_snat_ports(61009, 61009));
    let (pod, other) = (net.pod(1), SocketAddr::new(client.ip(), 61009));
    let syn = tcp(client, first).syn(100);
    story.wire("the first keeps the client's port", syn.clone(), Delivered(between(client, pod, &syn)));
    let syn = tcp(client, second).syn(200);
    story.wire(
        "the second gets another port of the client's address",
        syn.clone(),
        Delivered(between(other, pod, &syn)),
    );
    story.flows(2, 0);
    let to_second = tcp(pod, other).syn(7000).ack(201);
    story.egress(
        "its answer goes to the client's own port",
        to_second.clone(),
        Delivered(between(second, client, &to_second)),
    );
    let to_first = tcp(pod, client).syn(8000).ack(101);
    story.egress(
        "and so does the first one's",
        to_first.clone(),
        Delivered(between(first, client, &to_first)),
    );
    let ack = tcp(client, second).at(201).ack(7001).data(b"two");
    story.wire("the second is proved", ack.clone(), Delivered(between(other, pod, &ack)));
    let ack = tcp(client, first).at(101).ack(8001).data(b"one");
    story.wire("the first too", ack.clone(), Delivered(between(client, pod, &ack)));
    story.flows(0, 2);
    story
}

fn collision_of_datagrams(net: Net) -> Story {
    let mut story = Story::new("one client port to two frontends of one VM, by UDP");
    story.change("one SNAT port is left", |world| world.records.use_snat_ports(61009, 61009));
    let (client, first, second) = (net.client(0, 5353), net.node(30001), net.vip(30001));
    let (pod, other) = (net.pod(1), SocketAddr::new(client.ip(), 61009));
    let ask = udp(client, first);
    story.wire("the first", ask.clone(), Delivered(between(client, pod, &ask)));
    let ask = udp(client, second);
    story.wire("the second", ask.clone(), Delivered(between(other, pod, &ask)));
    let answer = udp(pod, other);
    story.egress("its answer", answer.clone(), Delivered(between(second, client, &answer)));
    let third = udp(client, net.node(LOCAL));
    story.wire("a third finds no port", third.clone(), {
        Answered(Reason::SNAT_EXHAUSTED, third.refused(Says::NoPort))
    });
    story.flows(2, 0);
    story
}
