//! Backends on other nodes: both rewrites in one step each way (ways 4 and 5).

use vmlb_common::verdict::Reason;

use crate::packets::frame::{Says, between, tcp, udp};
use crate::packets::story::{At, BEHIND_ETH2, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH1, ETH2, Net};

use Expect::{Expired, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![connection(net), datagrams(net), other_uplink(net), second_client(net), deferred(net), last_hop(net)]
}

fn connection(net: Net) -> Story {
    let mut story = Story::new("a connection to a VM on another node");
    // A client port that is a SNAT port is kept, which makes the packets easy to follow.
    let (client, frontend) = (net.client(0, 61001), net.node(30002));
    let (us, pod) = (net.node(61001), net.pod(2));
    let syn = tcp(client, frontend).syn(1000);
    story.wire(
        "SYN: both ends change, one hop is taken",
        syn.clone(),
        Sent(between(us, pod, &syn).ttl(63), NODE2),
    );
    story.flows(1, 0);
    let syn_ack = tcp(pod, us).syn(5000).ack(1001);
    story.wire(
        "SYN-ACK: both are undone",
        syn_ack.clone(),
        Sent(between(frontend, client, &syn_ack).ttl(63), ROUTER),
    );
    let ack = tcp(client, frontend).at(1001).ack(5001);
    story.wire("ACK: proves the flow", ack.clone(), Sent(between(us, pod, &ack).ttl(63), NODE2));
    story.flows(0, 1);
    let request = ack.data(b"SSH-2.0-client\r\n");
    story.wire("data to the VM", request.clone(), Sent(between(us, pod, &request).ttl(63), NODE2));
    let answer = tcp(pod, us).at(5001).ack(1017).data(&[0xa5; 1337]);
    story.wire("data from the VM", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), ROUTER));
    story
}

fn datagrams(net: Net) -> Story {
    let mut story = Story::new("datagrams to a VM on another node");
    let (client, frontend) = (net.client(1, 61002), net.vip(30002));
    let (us, pod) = (net.node(61002), net.pod(2));
    let ask = udp(client, frontend);
    story.wire("a datagram", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    let answer = udp(pod, us).data(b"answer");
    story.wire("its answer", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), ROUTER));
    story.wire("the next one proves the flow", ask.clone(), Sent(between(us, pod, &ask).ttl(63), NODE2));
    story.flows(0, 1);
    if net.0 == crate::address::Family::V4 {
        let bare = ask.without_sum();
        story.wire("no checksum stays none", bare.clone(), Sent(between(us, pod, &bare).ttl(63), NODE2));
    }
    let after = udp(us, pod).with_sum_of_all_ones();
    story.wire(
        "a sum of zero is sent as all ones",
        between(client, frontend, &after),
        Sent(after.ttl(63), NODE2),
    );
    story
}

fn other_uplink(net: Net) -> Story {
    let mut story = Story::new("a VM behind the second uplink");
    let (client, frontend) = (net.client(0, 61003), net.node(30005));
    let (us, pod) = (net.node_on_eth2(61003), net.pod(5));
    let syn = tcp(client, frontend).syn(1);
    story.wire(
        "SYN: that uplink's address and MAC",
        syn.clone(),
        Sent(between(us, pod, &syn).ttl(63), BEHIND_ETH2),
    );
    let answer = tcp(pod, us).syn(2).ack(2);
    story.packet("SYN-ACK by the second uplink, out by the first", At::Uplink(ETH2), answer.clone(), {
        Sent(between(frontend, client, &answer).ttl(63), ROUTER)
    });
    story
}

fn second_client(net: Net) -> Story {
    let mut story = Story::new("a client behind the second uplink, a VM behind the first");
    let (client, frontend) = (net.second_client(61004), net.vip(30002));
    let (us, pod) = (net.node(61004), net.pod(2));
    let syn = tcp(client, frontend).syn(1);
    story.packet("SYN", At::Uplink(ETH2), syn.clone(), Sent(between(us, pod, &syn).ttl(63), NODE2));
    let answer = tcp(pod, us).syn(2).ack(2);
    story.wire("SYN-ACK", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), BEHIND_ETH2));
    story
}

fn deferred(net: Net) -> Story {
    let mut story = Story::new("what XDP cannot send itself is sent by TC");
    let (client, us, pod) = (net.client(0, 61005), net.node_on_eth1(61005), net.pod(4));
    let syn = tcp(client, net.node(30004)).syn(1);
    story.wire("a device that XDP cannot send through", syn.clone(), {
        SentByTc(Reason::NO_TRANSMIT, between(us, pod, &syn).ttl(63), ETH1)
    });
    let answer = tcp(pod, us).syn(2).ack(2);
    let answered = between(net.node(30004), client, &answer).ttl(63);
    story.packet("its answer goes out by XDP", At::Uplink(ETH1), answer, Sent(answered, ROUTER));
    story.flows(1, 0);
    let ack = tcp(client, net.node(30004)).at(2).ack(3);
    story.wire("the flow is proved by a packet that waits for TC", ack.clone(), {
        SentByTc(Reason::NO_TRANSMIT, between(us, pod, &ack).ttl(63), ETH1)
    });
    story.flows(0, 1);
    story
}

fn last_hop(net: Net) -> Story {
    let mut story = Story::new("a packet whose hops are used up");
    let (client, frontend) = (net.client(0, 61006), net.node(30002));
    let syn = tcp(client, frontend).syn(1);
    for (ttl, what) in [(1, "TTL 1"), (0, "TTL 0")] {
        let last = syn.clone().ttl(ttl);
        story.wire(what, last.clone(), Expired(last.refused(Says::TooLong)));
    }
    story.wire("TTL 2", syn.clone().ttl(2), Sent(between(net.node(61006), net.pod(2), &syn).ttl(1), NODE2));
    let answer = tcp(net.pod(2), net.node(61006)).syn(2).ack(2).ttl(1);
    story.wire("an answer with TTL 1", answer.clone(), Expired(answer.refused(Says::TooLong)));
    story
}
