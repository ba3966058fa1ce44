//! The tunnel between nodes: clients' addresses kept, wherever the backend is.

use std::net::SocketAddr;

use vmlb_common::abi::{Device, Tunnel};
use vmlb_common::verdict::Reason;

use crate::address::Family;
use crate::packets::frame::{Frame, Says, Shape, Wrapping, between, icmp, tcp, udp};
use crate::packets::story::{Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, ETH1, Net, TUNNEL_PORT, neighbour, tag};

use Expect::{Delivered, Dropped, DroppedBare, Expired, Passed, Sent, SentByTc, TooBig};

/// The bit of a mark that says that the flow is proved.
pub(super) const PROVED: u16 = 0x8000;

pub(super) fn stories(net: Net) -> Vec<Story> {
    let of_shape: [fn(Net, Shape) -> Story; 18] = [
        addressed_here,
        datagrams_addressed_here,
        backend_here,
        datagrams_to_a_backend_here,
        always_back,
        segment_sizes,
        middle_of_a_flow,
        close_in_the_middle,
        other_nodes_port,
        known_by_another_address,
        not_ours,
        unknown_targets,
        deferred,
        returned_by_tc,
        too_big,
        errors,
        no_circles,
        arriving_here,
    ];
    let mut stories: Vec<Story> =
        Shape::ALL.into_iter().flat_map(|shape| of_shape.map(|story| story(net, shape))).collect();
    stories.extend([without_a_tunnel(net), tunnel_port(net)]);
    stories
}

/// This node and node2.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    net: Net,
    shape: Shape,
}

impl Ends {
    /// From node2.
    pub(super) fn from(self, mark: u16) -> Wrapping {
        let (from, to) = (self.net.node_of(2), self.net.node(0).ip());
        Wrapping { shape: self.shape, from, to, mark }
    }

    /// To node2.
    pub(super) fn to(self, mark: u16) -> Wrapping {
        let (from, to) = (self.net.node(0).ip(), self.net.node_of(2));
        Wrapping { shape: self.shape, from, to, mark }
    }

    /// A request on its way to backend 2.
    pub(super) fn carried(self, frame: &Frame, mark: u16) -> Expect {
        Sent(frame.clone().ttl(63).wrapped(self.to(mark | mark_of(2))), NODE2)
    }

    /// A reply on its way back to node2, which the client has addressed.
    pub(super) fn back(self, frame: Frame) -> Expect {
        Sent(frame.wrapped(self.to(0)), NODE2)
    }
}

pub(super) fn mark_of(backend: u32) -> u16 {
    u16::try_from(tag(backend)).expect("15 bits")
}

pub(super) fn begin(says: &'static str, net: Net, shape: Shape, returns: u8) -> (Story, Ends) {
    let mut story = Story::new(says);
    story.change("nodes have a tunnel", move |world| world.tunnel(shape, returns));
    (story, Ends { net, shape })
}

fn addressed_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a connection by the tunnel to a VM on another node", net, shape, 0);
    let (client, frontend) = (net.client(0, 40000), net.vip(30002));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN: as it came, wrapped", syn.clone(), ends.carried(&syn, 0));
    story.flows(1, 0);
    story.wire("SYN again", syn.clone(), ends.carried(&syn, 0));
    story.tracked(client, 1001, 0);
    let syn_ack = tcp(frontend, client).syn(5000).ack(1001);
    story.wire("SYN-ACK: out of its wrapping, to the client", syn_ack.clone().wrapped(ends.from(0)), {
        Sent(syn_ack.ttl(63), ROUTER)
    });
    let ack = tcp(client, frontend).at(1001).ack(5001);
    story.wire("ACK: proves the flow, and says so", ack.clone(), ends.carried(&ack, PROVED));
    story.flows(0, 1);
    let request = ack.data(b"an odd number of octets");
    story.wire("data", request.clone(), ends.carried(&request, PROVED));
    story.tracked(client, 1024, 5001);
    let answer = tcp(frontend, client).at(5001).ack(1024).data(&[0x5a; 1301]);
    story.wire(
        "data from the VM",
        answer.clone().wrapped(ends.from(0)),
        Sent(answer.clone().ttl(63), ROUTER),
    );
    let last = request.clone().ttl(1);
    story.wire("no hops left", last.clone(), Expired(last.refused(Says::TooLong)));
    story.wire("nor on the way back", answer.ttl(1).wrapped(ends.from(0)), DroppedBare(Reason::TTL_EXPIRED));
    let reset = tcp(frontend, client).at(5001).rst();
    story.wire("a reset", reset.clone().wrapped(ends.from(0)), Sent(reset.ttl(63), ROUTER));
    let again = tcp(client, frontend).syn(70_000);
    story.wire("a new connection of the same port", again.clone(), ends.carried(&again, 0));
    story.flows(1, 0);
    story
}

fn known_by_another_address(net: Net, shape: Shape) -> Story {
    let (mut story, ends) =
        begin("a node with several uplinks, known by the address of the other one", net, shape, 0);
    let known = net.node_on_eth1(0).ip();
    story.change("the cluster knows it by eth1's address", |world| {
        let node = Device { flags: 0, ..world.records.devices[&ETH1] };
        world.records.devices.insert(Device::NODE, node);
    });
    let (client, frontend) = (net.client(0, 40000), net.vip(30002));
    let syn = tcp(client, frontend).syn(1000);
    let carried = Wrapping { from: known, ..ends.to(mark_of(2)) };
    story.wire("a request: from that address, by eth0", syn.clone(), {
        Sent(syn.ttl(63).wrapped(carried), NODE2)
    });
    let (frontend, pod) = (net.vip(30001), net.pod(1));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("a request from node2", syn.clone().wrapped(ends.from(mark_of(1))), {
        Delivered(between(client, pod, &syn))
    });
    let answer = tcp(pod, client).syn(5000).ack(1001);
    let back = Wrapping { from: known, ..ends.to(0) };
    story.egress("its answer: from that address too", answer.clone(), {
        Sent(between(frontend, client, &answer).wrapped(back), NODE2)
    });
    story
}

fn datagrams_addressed_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("datagrams by the tunnel to a VM on another node", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.node(30002));
    let ask = udp(client, frontend).data(b"odd");
    story.wire("a datagram", ask.clone(), ends.carried(&ask, 0));
    story.wire("one more", ask.clone(), ends.carried(&ask, 0));
    story.flows(1, 0);
    let answer = udp(frontend, client).data(b"answer");
    story.wire("an answer", answer.clone().wrapped(ends.from(0)), Sent(answer.ttl(63), ROUTER));
    story.wire("proves the flow", ask.clone(), ends.carried(&ask, PROVED));
    story.flows(0, 1);
    if net.0 == Family::V4 {
        let bare = ask.without_sum();
        story.wire("no checksum stays none", bare.clone(), ends.carried(&bare, PROVED));
    }
    story
}

fn backend_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a connection by the tunnel to a VM of this node", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let syn = tcp(client, frontend).syn(1000).ttl(63);
    story.wire("SYN: unwrapped and translated", syn.clone().wrapped(open), {
        Delivered(between(client, pod, &syn))
    });
    story.flows(1, 0);
    let syn_ack = tcp(pod, client).syn(5000).ack(1001);
    let answered = between(frontend, client, &syn_ack);
    story.egress(
        "SYN-ACK: by the node that the client addressed",
        syn_ack.clone(),
        ends.back(answered.clone()),
    );
    story.wire("SYN again: the answer was lost", syn.clone().wrapped(open), {
        Delivered(between(client, pod, &syn))
    });
    story.egress("so it goes there again", syn_ack, ends.back(answered));
    let ack = tcp(client, frontend).at(1001).ack(5001).ttl(63);
    story.wire("ACK: that node has seen it", ack.clone().wrapped(proved), {
        Delivered(between(client, pod, &ack))
    });
    story.flows(0, 1);
    let answer = tcp(pod, client).at(5001).ack(1001).data(&[0xa5; 1401]);
    story.egress("all else goes to the client itself", answer.clone(), {
        Delivered(between(frontend, client, &answer))
    });
    let request = ack.data(b"request");
    story.wire("data", request.clone().wrapped(proved), Delivered(between(client, pod, &request)));
    story.tracked(client, 1008, 5001);
    story
}

fn datagrams_to_a_backend_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("datagrams by the tunnel to a VM of this node", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 5353), net.vip(30001), net.pod(1));
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let (ask, answer) = (udp(client, frontend).ttl(63), udp(pod, client).data(b"odd"));
    let there = || Delivered(between(client, pod, &ask));
    story.wire("a datagram", ask.clone().wrapped(open), there());
    story.egress("its answer", answer.clone(), ends.back(between(frontend, client, &answer)));
    story.wire("one that crossed it", ask.clone().wrapped(open), there());
    story.egress("another answer", answer.clone(), ends.back(between(frontend, client, &answer)));
    story.wire("the other node knows", ask.clone().wrapped(proved), there());
    story.flows(0, 1);
    story.egress(
        "this one goes to the client",
        answer.clone(),
        Delivered(between(frontend, client, &answer)),
    );
    story
}

fn always_back(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("replies that come back as requests went", net, shape, 1);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let request = tcp(client, frontend).at(1001).ack(5001).data(b"request").ttl(63);
    let answer = tcp(pod, client).at(5001).ack(1008).data(b"answer");
    for says in ["the first", "the second", "the third"] {
        story.wire("a request", request.clone().wrapped(proved), Delivered(between(client, pod, &request)));
        story.egress(says, answer.clone(), ends.back(between(frontend, client, &answer)));
    }
    story.flows(0, 1);
    let direct = tcp(net.client(1, 40000), frontend).syn(1);
    story.wire("a client that has addressed this node", direct.clone(), {
        Delivered(between(net.client(1, 40000), pod, &direct))
    });
    let answer = tcp(pod, net.client(1, 40000)).syn(1).ack(2);
    story.egress("is answered by this node", answer.clone(), {
        Delivered(between(frontend, net.client(1, 40000), &answer))
    });
    story
}

fn segment_sizes(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("segment sizes of connections by the tunnel", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let size = |octets: u16| [2, 4, (octets >> 8) as u8, octets as u8];
    let headers = if net.0 == Family::V4 { 40 } else { 60 };
    let fitting = 1500 - headers - shape.overhead(client.ip());
    let syn = tcp(client, frontend).syn(1000).ttl(63).options(&size(1460));
    story.wire("a SYN from node2: as it came", syn.clone().wrapped(ends.from(mark_of(1))), {
        Delivered(between(client, pod, &syn))
    });
    let answer = tcp(pod, client).syn(5000).ack(1001).options(&size(1460));
    let fits = answer.clone().options(&size(fitting));
    story.egress("its answer: what the client sends comes by the tunnel", answer, {
        ends.back(between(frontend, client, &fits))
    });
    let syn = tcp(client, net.vip(30002)).syn(1000).options(&size(1460));
    story.wire("a SYN to node2: what the VM sends goes to the client", syn.clone(), ends.carried(&syn, 0));
    story.change("replies come back as requests went", move |world| world.tunnel(shape, 1));
    let fits = syn.clone().options(&size(fitting));
    story.wire("a SYN to node2: what the VM sends comes back by the tunnel", syn, ends.carried(&fits, 0));
    story
}

fn middle_of_a_flow(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a flow that comes by the tunnel in its middle", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let primer = tcp(client, frontend).at(1007).ack(5001).ttl(63);
    story.wire("a primer", primer.clone().wrapped(proved), Delivered(between(client, pod, &primer)));
    story.flows(0, 1);
    story.wire("and another", primer.clone().wrapped(proved), Delivered(between(client, pod, &primer)));
    let answer = tcp(pod, client).at(5001).ack(1008).data(b"answer");
    story.egress("its first reply tells the other node of it", answer.clone(), {
        ends.back(between(frontend, client, &answer))
    });
    let request = tcp(client, frontend).at(1008).ack(5007).data(b"request").ttl(63);
    story.wire("a request", request.clone().wrapped(proved), Delivered(between(client, pod, &request)));
    story.egress("then the way is short", answer.clone(), Delivered(between(frontend, client, &answer)));
    story.sweep();
    story.sweep();
    story.flows(0, 1);
    story
}

fn close_in_the_middle(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a flow that comes by the tunnel with its end", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let last = tcp(client, frontend).at(1008).ack(5001).data(b"last words").ttl(63);
    let fin = last.clone().fin();
    story.wire("no FIN first", fin.clone().wrapped(proved), Delivered(between(client, pod, &last)));
    story.tracked(client, 1018, 5001);
    story.wire("then the FIN", fin.clone().wrapped(proved), Delivered(between(client, pod, &fin)));
    story.tracked(client, 1019, 5001);
    story
}

fn other_nodes_port(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a node port of another node", net, shape, 0);
    let (client, pod) = (net.client(0, 40000), net.pod(1));
    let frontend = SocketAddr::new(net.node_of(2), 30001);
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let syn = tcp(client, frontend).syn(1000).ttl(63);
    story.wire("SYN", syn.clone().wrapped(open), Delivered(between(client, pod, &syn)));
    let syn_ack = tcp(pod, client).syn(5000).ack(1001);
    story.egress("SYN-ACK, from that node", syn_ack.clone(), ends.back(between(frontend, client, &syn_ack)));
    let ack = tcp(client, frontend).at(1001).ack(5001).ttl(63);
    story.wire("ACK", ack.clone().wrapped(proved), Delivered(between(client, pod, &ack)));
    story.flows(0, 1);
    story.wire("such packets come by the tunnel only", ack.clone(), Passed);
    let nobodys = tcp(client, SocketAddr::new(net.stranger(0).ip(), 30001)).syn(1);
    story.wire("and no other address is like that", nobodys.wrapped(open), Passed);
    story
}

fn not_ours(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("packets between nodes that are not the tunnel's", net, shape, 0);
    let (client, frontend) = (net.client(0, 40000), net.vip(30001));
    let open = ends.from(mark_of(1));
    let forged = Wrapping { from: net.stranger(0).ip(), ..open };
    let syn = tcp(client, frontend).syn(1);
    story.wire("from no node of the cluster", syn.clone().wrapped(forged), Dropped(Reason::TUNNEL_SOURCE));
    let reply = tcp(frontend, client).at(1).ack(1);
    story.wire(
        "nor is a reply",
        reply.wrapped(Wrapping { mark: 0, ..forged }),
        Dropped(Reason::TUNNEL_SOURCE),
    );
    story.wire("between pods", tcp(net.pod(2), net.pod(1)).syn(1).wrapped(open), Passed);
    story.wire("between pods, by a stranger", udp(net.pod(2), net.pod(1)).wrapped(forged), Passed);
    story.wire("to a node's own port", tcp(net.pod(2), net.node(22)).syn(1).wrapped(open), Passed);
    story.wire("an echo", icmp(net.pod(2), net.pod(1), Says::Echo, &syn, 8).wrapped(open), Passed);
    let to_stranger = Wrapping { to: net.stranger(0).ip(), ..open };
    story.wire("for another node", syn.clone().wrapped(to_stranger), Passed);
    let other = Wrapping { shape: if shape == Shape::Ip { Shape::Udp } else { Shape::Ip }, ..open };
    story.wire("of the other shape", syn.wrapped(other), Passed);
    story.flows(0, 0);
    story
}

fn unknown_targets(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("packets by the tunnel whose target is not here", net, shape, 0);
    let (client, frontend) = (net.client(0, 40000), net.vip(30001));
    let syn = tcp(client, frontend).syn(1);
    let ask = |tag| syn.clone().wrapped(ends.from(tag));
    story.wire("a tag of nobody's", ask(0x7fff), DroppedBare(Reason::TUNNEL_TARGET));
    story.wire("a tag of another service's", ask(mark_of(5)), DroppedBare(Reason::TUNNEL_TARGET));
    let elsewhere = tcp(client, net.vip(30005)).syn(1).wrapped(ends.from(PROVED | mark_of(5)));
    story.wire("a VM that is not here", elsewhere, DroppedBare(Reason::TUNNEL_TARGET));
    let reply = tcp(frontend, client).at(1).ack(1);
    story.wire("a reply of no flow", reply.wrapped(ends.from(0)), DroppedBare(Reason::TUNNEL_FRONTEND));
    let cut = tcp(client, frontend).syn(1).data(&[1; 100]).wrapped(ends.from(mark_of(1))).octets();
    story.raw("one that ends early", cut[..cut.len() - 1].to_vec(), DroppedBare(Reason::MALFORMED));
    story.flows(0, 0);
    story.wire("a client that stays away", ask(mark_of(1)), Delivered(between(client, net.pod(1), &syn)));
    story.flows(1, 0);
    story.change("the VM is gone", |world| world.remove_backend(1));
    story.wire("a late packet", ask(mark_of(1)), DroppedBare(Reason::BACKEND_GONE));
    story
}

fn deferred(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("what XDP cannot send to the other node is sent by TC", net, shape, 0);
    let client = net.client(0, 40000);
    let syn = tcp(client, net.vip(30003)).syn(1);
    let wrapping = Wrapping { to: net.node_of(3), ..ends.to(mark_of(3)) };
    let out = syn.clone().ttl(63).wrapped(wrapping);
    story.wire("a node whose MAC address is not known", syn, SentByTc(Reason::NEIGHBOUR, out, ETH0));
    let syn = tcp(client, net.vip(30004)).syn(1);
    let wrapping = Wrapping { from: net.node_on_eth1(0).ip(), to: net.node_of(4), ..ends.to(mark_of(4)) };
    let out = syn.clone().ttl(63).wrapped(wrapping);
    story.wire("a device that XDP cannot send through", syn, SentByTc(Reason::NO_TRANSMIT, out, ETH1));
    story.flows(2, 0);
    story
}

fn returned_by_tc(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a reply by the tunnel that XDP cannot send to the client", net, shape, 0);
    let (client, frontend) = (net.client(0, 40000), net.vip(30002));
    let router = net.routes()[0].2.expect("the world has a route to clients");
    story.change("nobody knows the router's MAC address", move |world| {
        world.neighbours.remove(&(ETH0, router));
    });
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), ends.carried(&syn, 0));
    let syn_ack = tcp(frontend, client).syn(5000).ack(1001);
    story.wire("SYN-ACK: left to TC as it is", syn_ack.clone().wrapped(ends.from(0)), {
        SentByTc(Reason::NEIGHBOUR, syn_ack.clone().ttl(63), ETH0)
    });
    let ack = tcp(client, frontend).at(1001).ack(5001);
    story.wire("it has been seen", ack.clone(), ends.carried(&ack, PROVED));
    story.flows(0, 1);
    story.change("the router answers", move |world| {
        world.neighbours.insert((ETH0, router), neighbour(1));
        world.records.settings.generation += 1;
    });
    let answer = tcp(frontend, client).at(5001).ack(1001);
    story.wire("XDP sends", answer.clone().wrapped(ends.from(0)), Sent(answer.ttl(63), ROUTER));
    story
}

fn too_big(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a request that is too big for the tunnel", net, shape, 0);
    let (client, frontend) = (net.client(0, 5353), net.vip(30002));
    let headers = if net.0 == Family::V4 { 28 } else { 48 };
    let room = 1500 - shape.overhead(client.ip());
    let datagram = |octets: u16| udp(client, frontend).data(&vec![5; usize::from(octets) - headers]);
    let fits = datagram(room);
    story.wire("as many octets as the tunnel takes", fits.clone(), ends.carried(&fits, 0));
    let big = datagram(room + 1);
    story.wire("one more", big.clone(), TooBig(big.refused(Says::TooBig(room))));
    if net.0 == Family::V4 {
        story.wire("one that may be cut", big.cuttable(), Dropped(Reason::UNCUTTABLE));
    }
    let seen = udp(frontend, client).data(&vec![5; usize::from(room)]);
    let error = icmp(net.routers_own(), frontend, Says::TooLong, &seen, usize::from(room) - headers);
    story.wire("an error that is too big is answered by nobody", error, Dropped(Reason::TOO_BIG));
    story
}

fn errors(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("errors about replies, by the tunnel", net, shape, 0);
    let (client, router) = (net.client(0, 5353), net.routers_own());
    let frontend = net.vip(30002);
    let ask = udp(client, frontend);
    story.wire("a flow to a VM on another node", ask.clone(), ends.carried(&ask, 0));
    let seen = udp(frontend, client).data(&[7; 300]).ttl(9);
    for (says, octets) in [(Says::TooBig(1280), 8), (Says::TooLong, 200)] {
        let error = icmp(router, frontend, says, &seen, octets);
        story.wire("a router has trouble with a reply", error.clone(), ends.carried(&error, PROVED));
    }
    let last = icmp(router, frontend, Says::TooLong, &seen, 8).ttl(1);
    story.wire("an error without hops left", last, Dropped(Reason::TTL_EXPIRED));

    let (frontend, pod) = (net.vip(30001), net.pod(1));
    let (open, proved) = (ends.from(mark_of(1)), ends.from(PROVED | mark_of(1)));
    let ask = udp(client, frontend);
    story.wire("a flow to a VM of this node", ask.clone().wrapped(open), {
        Delivered(between(client, pod, &ask))
    });
    let seen = udp(frontend, client).data(&[7; 300]).ttl(9);
    for (says, octets) in [(Says::TooBig(1280), 8), (Says::TooLong, 200)] {
        let error = icmp(router, frontend, says, &seen, octets);
        let told = icmp(router, pod, says, &between(pod, client, &seen), octets);
        story.wire("its pod learns of its own packet", error.wrapped(proved), Delivered(told));
    }
    let refused = icmp(pod, client, Says::NoPort, &between(client, pod, &ask), 8);
    story.egress("the pod has trouble with a request", refused, {
        Delivered(icmp(frontend, client, Says::NoPort, &ask, 8))
    });
    let nobodys = icmp(router, frontend, Says::NoPort, &udp(frontend, net.client(1, 1)), 8);
    story.wire("an error about no flow", nobodys.wrapped(proved), DroppedBare(Reason::TUNNEL_FRONTEND));
    let echo = icmp(client, frontend, Says::Echo, &seen, 8);
    story.wire("an echo", echo.wrapped(proved), DroppedBare(Reason::TUNNEL_FRONTEND));
    story
}

fn no_circles(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("nothing goes by the tunnel twice", net, shape, 0);
    let (client, frontend, pod) = (net.client(0, 40000), net.vip(30001), net.pod(1));
    let proved = ends.from(PROVED | mark_of(1));
    let request = tcp(client, frontend).at(1008).ack(5001).data(b"request");
    let there = || Delivered(between(client, pod, &request));
    story.wire("a flow", request.clone().wrapped(proved), there());
    story.change("its VM leaves for node2", move |world| {
        world.expect(1, net.pod_beside(2, 0), 2);
        world.turn(1);
    });
    story.wire("a node that does not know yet", request.clone().wrapped(proved), there());
    let router = net.routers_own();
    let error = icmp(router, frontend, Says::TooLong, &tcp(frontend, client).at(1).ack(1), 8);
    story.wire("nor are errors sent on", error.wrapped(proved), DroppedBare(Reason::TUNNEL_FRONTEND));
    story.change("the old pod is gone", |world| world.forget_other(1));
    story.wire(
        "such packets go nowhere",
        request.clone().wrapped(proved),
        DroppedBare(Reason::TUNNEL_TARGET),
    );
    let syn = tcp(client, net.node(30001)).syn(1).wrapped(ends.from(mark_of(1)));
    story.wire("nor do new flows", syn, DroppedBare(Reason::TUNNEL_TARGET));
    story
}

fn arriving_here(net: Net, shape: Shape) -> Story {
    let (mut story, ends) = begin("a VM comes to this node, and its flows by the tunnel", net, shape, 0);
    let (client, frontend, here) = (net.client(0, 40000), net.vip(30002), net.pod_beside(8, 0));
    let proved = ends.from(PROVED | mark_of(2));
    story.change("it is expected", move |world| world.expect(2, here, 8));
    let primer = tcp(client, frontend).at(1007).ack(5001).ttl(63);
    story.wire("a primer for the place where it is expected", primer.clone().wrapped(proved), {
        Delivered(between(client, here, &primer))
    });
    story.flows(0, 1);
    story.turned(2, 0, true);
    let reset = tcp(here, client).at(5001).rst();
    story.egress("its launcher's reset", reset, Dropped(Reason::NOT_PRESENT));
    let push = tcp(here, client).at(5001).ack(1008).data(b"push");
    story.egress("the VM shows itself, by the other node", push.clone(), {
        ends.back(between(frontend, client, &push))
    });
    story.turned(2, 1, false);
    story.arrivals(&[(2, vmlb_common::abi::ArrivalSign::FLOW)]);
    let request = tcp(client, frontend).at(1008).ack(5005).data(b"request").ttl(63);
    story.wire("a request", request.clone().wrapped(proved), Delivered(between(client, here, &request)));
    story.egress("the way is short", push.clone(), Delivered(between(frontend, client, &push)));
    story.arrivals(&[]);
    story
}

fn without_a_tunnel(net: Net) -> Story {
    let (mut story, ends) = begin("a tunnel that is taken away", net, Shape::Ip, 0);
    let (client, frontend) = (net.client(0, 40000), net.vip(30002));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), ends.carried(&syn, 0));
    story.change("there is no tunnel", |world| world.records.settings.tunnel = Tunnel::default());
    story.wire("its flow has no way", syn, Dropped(Reason::NO_TUNNEL));
    let reply = tcp(frontend, client).syn(1).ack(1001).wrapped(ends.from(0));
    story.wire("what comes by it is nobody's", reply, Passed);
    let syn = tcp(net.client(0, 61001), frontend).syn(1);
    story.change("nobody keeps addresses", |world| {
        for service in world.records.services.values_mut() {
            service.flags = 0;
        }
    });
    story.wire("a new flow goes with SNAT", syn.clone(), {
        Sent(between(net.node(61001), net.pod(2), &syn).ttl(63), NODE2)
    });
    story
}

fn tunnel_port(net: Net) -> Story {
    let mut story = Story::new("a client's port that is the tunnel's");
    story.change("one SNAT port, and the tunnel's", |world| {
        world.records.use_snat_ports(61009, 61009);
        world.tunnel(Shape::Udp, 0);
        for service in world.records.services.values_mut() {
            service.flags = 0;
        }
    });
    let (client, us) = (net.client(0, TUNNEL_PORT), net.node(61009));
    let ask = udp(client, net.node(30002));
    story.wire("SNAT does not keep it", ask.clone(), Sent(between(us, net.pod(2), &ask).ttl(63), NODE2));
    story
}
