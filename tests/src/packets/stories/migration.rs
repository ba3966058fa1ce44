//! A VM migrates: its backend turns once, to where it shows itself, and its flows go on.

use std::net::SocketAddr;

use vmlb_common::abi::ArrivalSign;
use vmlb_common::verdict::Reason;

use crate::packets::frame::{Frame, Says, Shape, Wrapping, between, icmp, tcp, udp};
use crate::packets::story::{At, BEHIND_ETH2, Exit, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, ETH2, Net, POD2, PROBE_PORT, tag};

use Expect::{Delivered, Dropped, DroppedBare, Passed, Sent, SentByTc};

const FLOW: u32 = ArrivalSign::FLOW;
const PROBE: u32 = ArrivalSign::PROBE;

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![
        between_nodes(net),
        both_flows(net),
        unexpected(net),
        by_the_api(net),
        datagrams(net),
        probe(net),
        probed_port(net),
        close(net),
        close_of_a_new_flow(net),
        called_off(net),
        on_one_node(net),
        by_device(net),
        kept(net),
        twice(net),
        address_again(net),
        address_along(net),
    ]
}

/// One flow with SNAT.
struct Flow {
    client: SocketAddr,
    frontend: SocketAddr,
    us: SocketAddr,
}

impl Flow {
    /// To backend 2, with the client's port for its SNAT port.
    fn new(net: Net, port: u16) -> Self {
        Self { client: net.client(0, port), frontend: net.node(30002), us: net.node(port) }
    }

    fn request(&self) -> Frame {
        tcp(self.client, self.frontend).at(1001).ack(5001).data(b"request")
    }

    /// What the pod gets.
    fn at(&self, pod: SocketAddr, request: &Frame) -> Frame {
        between(self.us, pod, request).ttl(63)
    }

    fn reply(&self, pod: SocketAddr) -> Frame {
        tcp(pod, self.us).at(5001).ack(1008).data(b"reply")
    }

    /// What the client gets.
    fn back(&self, reply: &Frame) -> Frame {
        between(self.frontend, self.client, reply).ttl(63)
    }

    /// The handshake, with backend 2 on node2.
    fn open(&self, story: &mut Story, pod: SocketAddr) {
        let syn = tcp(self.client, self.frontend).syn(1000);
        story.wire("SYN", syn.clone(), Sent(self.at(pod, &syn), NODE2));
        let syn_ack = tcp(pod, self.us).syn(5000).ack(1001);
        story.wire("SYN-ACK", syn_ack.clone(), Sent(self.back(&syn_ack), ROUTER));
        let ack = tcp(self.client, self.frontend).at(1001).ack(5001);
        story.wire("ACK", ack.clone(), Sent(self.at(pod, &ack), NODE2));
    }
}

fn between_nodes(net: Net) -> Story {
    let mut story = Story::new("a VM migrates from one node to another");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    let by_eth2 = At::Uplink(ETH2);
    let syn = tcp(flow.client, flow.frontend).syn(1000);
    story.wire("SYN", syn.clone(), Sent(flow.at(old, &syn), NODE2));
    story.tracked(flow.client, 1001, 0);
    flow.open(&mut story, old);
    story.tracked(flow.client, 1001, 5001);
    let (request, reply) = (flow.request(), flow.reply(new));
    story.wire("a request", request.clone(), Sent(flow.at(old, &request), NODE2));
    story.tracked(flow.client, 1008, 5001);
    story.packet("nobody knows the target yet", by_eth2, reply.clone(), Passed);
    story.turned(2, 0, false);

    story.change("a migration to the node behind eth2 begins", move |world| world.expect(2, new, 5));
    story.wire("requests go where the VM is", request.clone(), Sent(flow.at(old, &request), NODE2));
    let late = flow.reply(old);
    story.wire("from where replies come", late.clone(), Sent(flow.back(&late), ROUTER));
    let reset = tcp(new, flow.us).at(5001).rst();
    story.packet(
        "the target's launcher knows nothing of it",
        by_eth2,
        reset.clone(),
        Dropped(Reason::NOT_PRESENT),
    );
    let about = |pod| icmp(pod, flow.us, Says::NoPort, &flow.at(pod, &flow.request()), 8);
    story.packet("nor has it a port", by_eth2, about(new), Dropped(Reason::NOT_PRESENT));
    story.turned(2, 0, true);
    story.arrivals(&[]);

    story.packet("the VM shows itself", by_eth2, reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 1, false);
    story.packet("and again", by_eth2, reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 1, false);
    story.arrivals(&[(2, FLOW)]);
    story.wire("requests go to its new place", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    story.wire("what was under way from the old one comes", late.clone(), Sent(flow.back(&late), ROUTER));
    let reset = tcp(old, flow.us).at(5001).rst();
    story.wire("the old launcher's reset does not", reset, Dropped(Reason::NOT_PRESENT));
    story.wire("nor its error", about(old), Dropped(Reason::NOT_PRESENT));
    story.turned(2, 1, false);
    story.flows(0, 1);
    let quoted = between(flow.client, flow.frontend, &flow.request()).ttl(63);
    let error = icmp(flow.frontend, flow.client, Says::NoPort, &quoted, 8).ttl(63);
    story.packet("an error from where the VM is does", by_eth2, about(new), Sent(error, ROUTER));
    story.change("the old pod is gone", |world| world.forget_other(2));
    story.wire("nobody knows it", late, Passed);
    let syn = tcp(net.client(1, 61002), flow.frontend).syn(1);
    let sent = between(net.node_on_eth2(61002), new, &syn).ttl(63);
    story.wire("a new flow", syn, Sent(sent, BEHIND_ETH2));
    let end = tcp(new, flow.us).at(5006).rst();
    story.packet("its own reset is its own", by_eth2, end.clone(), Sent(flow.back(&end), ROUTER));
    story.arrivals(&[]);
    story
}

fn both_flows(net: Net) -> Story {
    let mut story = Story::new("one flow's packet turns all flows of a VM");
    let (first, second) = (Flow::new(net, 61001), Flow::new(net, 61002));
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    first.open(&mut story, old);
    second.open(&mut story, old);
    story.change("a migration begins", move |world| world.expect(2, new, 5));
    let stranger = tcp(new, net.node(61003)).at(1).ack(1);
    story.packet("a packet of no flow turns nothing", At::Uplink(ETH2), stranger, Passed);
    story.turned(2, 0, true);
    let end = first.reply(new).fin();
    story.packet("the VM shows itself by a FIN", At::Uplink(ETH2), end.clone(), {
        Sent(first.back(&end), ROUTER)
    });
    story.arrivals(&[(2, FLOW)]);
    for flow in [&first, &second] {
        let request = flow.request();
        story.wire("its flows are there", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    }
    story
}

fn unexpected(net: Net) -> Story {
    let mut story = Story::new("a VM that is not expected anywhere stays");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    flow.open(&mut story, old);
    story.change("a second pod, where it is not expected", move |world| {
        world.expect(2, new, 5);
        world.set_expected(2, false);
    });
    let reply = flow.reply(new);
    story.packet("what it says is of the flow", At::Uplink(ETH2), reply.clone(), {
        Sent(flow.back(&reply), ROUTER)
    });
    story.turned(2, 0, false);
    let reset = tcp(new, flow.us).at(5001).rst();
    story.packet("but for a reset", At::Uplink(ETH2), reset, Dropped(Reason::NOT_PRESENT));
    let request = flow.request();
    story.wire("requests go where they went", request.clone(), Sent(flow.at(old, &request), NODE2));
    story.arrivals(&[]);
    story
}

fn by_the_api(net: Net) -> Story {
    let mut story = Story::new("the agent turns a VM that does not speak");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    flow.open(&mut story, old);
    story.change("a migration begins", move |world| world.expect(2, new, 5));
    story.change("and the API says that it is over", |world| world.turn(2));
    story.turned(2, 1, false);
    let (request, reply) = (flow.request(), flow.reply(new));
    story.wire("requests go there", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    story.packet("the VM answers", At::Uplink(ETH2), reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 1, false);
    story.arrivals(&[]);
    story
}

fn datagrams(net: Net) -> Story {
    let mut story = Story::new("datagrams of a VM that migrates");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    let ask = udp(flow.client, flow.frontend);
    let answer = |pod| udp(pod, flow.us).data(b"answer");
    story.wire("a datagram", ask.clone(), Sent(flow.at(old, &ask), NODE2));
    story.change("a migration begins before the answer", move |world| world.expect(2, new, 5));
    story.wire("one more", ask.clone(), Sent(flow.at(old, &ask), NODE2));
    story.packet("the answer comes from the target", At::Uplink(ETH2), answer(new), {
        Sent(flow.back(&answer(new)), ROUTER)
    });
    story.turned(2, 1, false);
    story.arrivals(&[(2, FLOW)]);
    story.wire("the next goes there", ask.clone(), Sent(flow.at(new, &ask), BEHIND_ETH2));
    story.wire("a late answer", answer(old), Sent(flow.back(&answer(old)), ROUTER));
    story.turned(2, 1, false);
    story.flows(0, 1);
    story.arrivals(&[]);
    story
}

fn probe(net: Net) -> Story {
    let mut story = Story::new("the answer to a probe says where the VM is");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    let probe = net.node(PROBE_PORT);
    flow.open(&mut story, old);
    story.change("the agent may probe", |world| world.probe());
    let answer = |pod| tcp(pod, probe).syn(7).ack(8);
    story.wire("an answer that nobody waits for", answer(old), Dropped(Reason::PROBE));
    story.change("a migration begins", move |world| world.expect(2, new, 5));
    let by_eth2 = At::Uplink(ETH2);
    for (says, packet) in [
        ("no: a reset", tcp(new, probe).rst().ack(8)),
        ("no: an ACK", tcp(new, probe).at(8).ack(8)),
        ("no: a SYN", tcp(new, probe).syn(8)),
        ("no: a datagram", udp(new, probe)),
        ("no: from where the VM has been", answer(old)),
        ("no: another VM", answer(net.pod(5))),
    ] {
        story.packet(says, by_eth2, packet, Dropped(Reason::PROBE));
    }
    story.packet("somebody else's business", by_eth2, answer(net.pod_beside(5, 1)), Passed);
    story.turned(2, 0, true);
    story.arrivals(&[]);
    story.packet("a SYN-ACK", by_eth2, answer(new), Dropped(Reason::PROBE));
    story.turned(2, 1, false);
    story.packet("a second one", by_eth2, answer(new), Dropped(Reason::PROBE));
    story.packet("a late one of the old pod", by_eth2, answer(old), Dropped(Reason::PROBE));
    story.turned(2, 1, false);
    story.arrivals(&[(2, PROBE)]);
    let request = flow.request();
    story.wire("requests go there", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    story.change("the VM comes to this node", move |world| world.expect(2, net.pod_beside(8, 0), 8));
    story.packet("and answers here", At::Pod(POD2), answer(net.pod_beside(8, 0)), Dropped(Reason::PROBE));
    story.turned(2, 2, false);
    story.arrivals(&[(2, PROBE)]);
    let others = SocketAddr::new(net.node_of(2), PROBE_PORT);
    let to_another = tcp(net.pod_beside(8, 0), others).syn(7).ack(8);
    story.packet("and to another node's agent", At::Pod(POD2), to_another, Passed);
    story
}

fn probed_port(net: Net) -> Story {
    let mut story = Story::new("a client's port that is the probes'");
    story.change("one SNAT port, and the probes'", |world| {
        world.records.use_snat_ports(61009, 61009);
        world.probe();
    });
    let (client, us) = (net.client(0, PROBE_PORT), net.node(61009));
    let syn = tcp(client, net.node(30002)).syn(1);
    story.wire("SNAT does not keep it", syn.clone(), Sent(between(us, net.pod(2), &syn).ttl(63), NODE2));
    story
}

fn close(net: Net) -> Story {
    let mut story = Story::new("a client closes while the VM moves");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    flow.open(&mut story, old);
    story.change("a migration begins", move |world| world.expect(2, new, 5));
    story.change("and ends", |world| world.turn(2));
    let fin = flow.request().fin();
    story.wire("the first packet there is no FIN", fin.clone(), {
        Sent(flow.at(new, &flow.request()), BEHIND_ETH2)
    });
    story.tracked(flow.client, 1008, 5001);
    story.wire("the second may be", fin.clone(), Sent(flow.at(new, &fin), BEHIND_ETH2));
    story.tracked(flow.client, 1009, 5001);
    let reply = flow.reply(new).fin();
    story.packet("the VM closes too", At::Uplink(ETH2), reply.clone(), Sent(flow.back(&reply), ROUTER));
    let again = tcp(flow.client, flow.frontend).syn(9000);
    story.wire("a new connection of the same port", again.clone(), {
        Sent(between(net.node_on_eth2(61001), new, &again).ttl(63), BEHIND_ETH2)
    });
    story.flows(1, 0);
    story
}

fn close_of_a_new_flow(net: Net) -> Story {
    let mut story = Story::new("a flow that has been to the VM's place closes as ever");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    flow.open(&mut story, old);
    story.change("the VM has moved", move |world| {
        world.expect(2, new, 5);
        world.turn(2);
    });
    let request = flow.request();
    story.wire("a request", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    let fin = tcp(flow.client, flow.frontend).at(1008).ack(5001).fin();
    story.wire("a FIN", fin.clone(), Sent(flow.at(new, &fin), BEHIND_ETH2));
    let (client, us) = (net.client(1, 61004), net.node_on_eth2(61004));
    let syn = tcp(client, flow.frontend).syn(1);
    story.wire("a new connection", syn.clone(), Sent(between(us, new, &syn).ttl(63), BEHIND_ETH2));
    let fin = tcp(client, flow.frontend).at(2).ack(7).fin();
    story.wire("closes at once", fin.clone(), Sent(between(us, new, &fin).ttl(63), BEHIND_ETH2));
    story
}

fn called_off(net: Net) -> Story {
    let mut story = Story::new("a migration that is called off");
    let flow = Flow::new(net, 61001);
    let (old, new, other) = (net.pod(2), net.pod_beside(5, 0), net.pod_beside(5, 1));
    flow.open(&mut story, old);
    story.change("a migration begins", move |world| world.expect(2, new, 5));
    story.change("and is called off", |world| world.forget_other(2));
    story.packet("its target is nobody's", At::Uplink(ETH2), flow.reply(new), Passed);
    let request = flow.request();
    story.wire("requests go where they went", request.clone(), Sent(flow.at(old, &request), NODE2));
    story.change("another begins", move |world| world.expect(2, other, 5));
    let reply = flow.reply(other);
    story.packet("and the VM moves", At::Uplink(ETH2), reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 1, false);
    story.wire("requests follow", request.clone(), Sent(flow.at(other, &request), BEHIND_ETH2));
    story
}

fn on_one_node(net: Net) -> Story {
    let mut story = Story::new("a VM migrates within its node");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(2, 0));
    flow.open(&mut story, old);
    story.change("a migration begins", move |world| world.expect(2, new, 2));
    let (request, reply) = (flow.request(), flow.reply(new));
    story.wire("the VM shows itself", reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.wire("requests follow", request.clone(), Sent(flow.at(new, &request), NODE2));
    story.arrivals(&[(2, FLOW)]);
    story
}

fn by_device(net: Net) -> Story {
    let mut story = Story::new("a VM comes to this node and leaves it, with SNAT");
    let flow = Flow::new(net, 61001);
    let (there, here, then) = (net.pod(2), net.pod_beside(8, 0), net.pod_beside(5, 0));
    flow.open(&mut story, there);
    let (request, reply) = (flow.request(), flow.reply(here));
    story.packet("a pod of this node that nobody knows", At::Pod(POD2), reply.clone(), Passed);
    story.change("a migration to this node begins", move |world| world.expect(2, here, 8));
    let reset = tcp(here, flow.us).at(5001).rst();
    story.packet("its launcher's reset", At::Pod(POD2), reset, Dropped(Reason::NOT_PRESENT));
    let about = icmp(here, flow.us, Says::NoPort, &flow.at(here, &request), 8);
    story.packet("and its error", At::Pod(POD2), about, Dropped(Reason::NOT_PRESENT));
    story.wire("requests go where the VM is", request.clone(), Sent(flow.at(there, &request), NODE2));
    story.packet("the VM shows itself", At::Pod(POD2), reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 1, false);
    story.arrivals(&[(2, FLOW)]);
    let by_tc = |frame: &Frame| SentByTc(Reason::POD_DEVICE, flow.at(here, frame), POD2);
    story.wire("requests go into its device", request.clone(), by_tc(&request));
    let late = flow.reply(there);
    story.wire("what was under way comes", late.clone(), Sent(flow.back(&late), ROUTER));

    story.change("it leaves for the node behind eth2", move |world| world.expect(2, then, 5));
    story.wire("not yet", request.clone(), by_tc(&request));
    story.packet("it answers from here", At::Pod(POD2), reply.clone(), Sent(flow.back(&reply), ROUTER));
    let away = flow.reply(then);
    story.packet("it shows itself there", At::Uplink(ETH2), away.clone(), Sent(flow.back(&away), ROUTER));
    story.turned(2, 2, false);
    story.arrivals(&[(2, FLOW)]);
    story.wire("requests follow", request.clone(), Sent(flow.at(then, &request), BEHIND_ETH2));
    let reset = tcp(here, flow.us).at(5001).rst();
    story.packet("the launcher here has no say", At::Pod(POD2), reset, Dropped(Reason::NOT_PRESENT));
    story.flows(0, 1);
    story
}

fn kept(net: Net) -> Story {
    let mut story = Story::new("a VM leaves this node and comes back, its clients' addresses kept");
    let (client, frontend, here, there) =
        (net.client(0, 40000), net.vip(30001), net.pod(1), net.pod_beside(2, 0));
    let (node, node2) = (net.node(0).ip(), net.node_of(2));
    story.change("nodes have a tunnel", |world| world.tunnel(Shape::Ip, 0));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), Delivered(between(client, here, &syn)));
    let syn_ack = tcp(here, client).syn(5000).ack(1001);
    story.egress("SYN-ACK", syn_ack.clone(), Delivered(between(frontend, client, &syn_ack)));
    let request = tcp(client, frontend).at(1001).ack(5001).data(b"request");
    story.wire("a request", request.clone(), Delivered(between(client, here, &request)));
    story.tracked(client, 1008, 5001);
    story.change("a migration to node2 begins", move |world| world.expect(1, there, 2));
    let from_there = Wrapping { shape: Shape::Ip, from: node2, to: node, mark: 0 };
    let reset = tcp(frontend, client).at(5001).rst();
    story.wire("a reset of its launcher", reset.wrapped(from_there), DroppedBare(Reason::NOT_PRESENT));
    story.wire("requests stay", request.clone(), Delivered(between(client, here, &request)));
    story.turned(1, 0, true);
    let reply = tcp(frontend, client).at(5001).ack(1008).data(b"reply");
    story.wire("the VM shows itself there", reply.clone().wrapped(from_there), {
        Sent(reply.clone().ttl(63), ROUTER)
    });
    story.turned(1, 1, false);
    story.arrivals(&[(1, FLOW)]);
    let mark = 0x8000 | u16::try_from(tag(1)).expect("15 bits");
    let to_there = Wrapping { shape: Shape::Ip, from: node, to: node2, mark };
    story.wire("requests go there", request.clone(), Sent(request.clone().ttl(63).wrapped(to_there), NODE2));
    let late = tcp(here, client).at(5001).ack(1008);
    story.egress("what was under way comes", late.clone(), Delivered(between(frontend, client, &late)));
    let reset = tcp(here, client).at(5001).rst();
    story.egress("the launcher here has no say", reset, Dropped(Reason::NOT_PRESENT));
    let about = icmp(here, client, Says::NoPort, &between(client, here, &request), 8);
    story.egress("nor its error", about, Dropped(Reason::NOT_PRESENT));
    story.turned(1, 1, false);

    story.change("it comes back", move |world| world.expect(1, here, 1));
    story.wire("not yet", request.clone(), Sent(request.clone().ttl(63).wrapped(to_there), NODE2));
    let back = tcp(here, client).at(5006).ack(1008).data(b"here");
    story.egress("it shows itself", back.clone(), Delivered(between(frontend, client, &back)));
    story.turned(1, 2, false);
    story.arrivals(&[(1, FLOW)]);
    let fin = request.clone().fin();
    story.wire("no FIN first", fin.clone(), Delivered(between(client, here, &request)));
    story.wire("then the FIN", fin.clone(), Delivered(between(client, here, &fin)));
    story.flows(0, 1);
    story
}

fn twice(net: Net) -> Story {
    let mut story = Story::new("a VM migrates there and back");
    let flow = Flow::new(net, 61001);
    let (first, second) = (net.pod(2), net.pod_beside(5, 0));
    let exits = [(first, 2, NODE2, At::Uplink(ETH0)), (second, 5, BEHIND_ETH2, At::Uplink(ETH2))];
    flow.open(&mut story, first);
    for times in 1..=5u8 {
        let (pod, beside, exit, at): (_, _, Exit, _) = exits[usize::from(times % 2)];
        story.change("a migration begins", move |world| world.expect(2, pod, beside));
        let reply = flow.reply(pod);
        story.packet("the VM shows itself", at, reply.clone(), Sent(flow.back(&reply), ROUTER));
        story.turned(2, times, false);
        story.arrivals(&[(2, FLOW)]);
        let request = flow.request();
        story.wire("requests follow", request.clone(), Sent(flow.at(pod, &request), exit));
    }
    story
}

fn address_again(net: Net) -> Story {
    let mut story = Story::new("another VM's pod gets the address of one that has moved");
    let flow = Flow::new(net, 61001);
    let (old, new) = (net.pod(2), net.pod_beside(5, 0));
    flow.open(&mut story, old);
    story.change("the VM has moved, and its old address is another's", move |world| {
        world.expect(2, new, 5);
        world.turn(2);
        world.forget_other(2);
        world.give_address(3, old);
    });
    let request = flow.request();
    story.wire("the flow follows the VM", request.clone(), Sent(flow.at(new, &request), BEHIND_ETH2));
    story.wire("the other VM has no part in it", flow.reply(old), Passed);
    let reset = tcp(old, flow.us).at(5001).rst();
    story.wire("and cannot end it", reset, Passed);
    let syn = tcp(net.client(1, 61005), net.node(30003)).syn(1);
    story.wire("it has flows of its own", syn.clone(), {
        Sent(between(net.node(61005), old, &syn).ttl(63), NODE2)
    });
    story.flows(1, 1);
    story
}

fn address_along(net: Net) -> Story {
    let mut story =
        Story::new("a VM takes its address along: errors of either launcher are nobody's meanwhile");
    let flow = Flow::new(net, 61001);
    let pod = net.pod(2);
    flow.open(&mut story, pod);
    let about = icmp(pod, flow.us, Says::NoPort, &flow.at(pod, &flow.request()), 8);
    let quoted = between(flow.client, flow.frontend, &flow.request()).ttl(63);
    let error = icmp(flow.frontend, flow.client, Says::NoPort, &quoted, 8).ttl(63);
    story.wire("before, the VM's error reaches the client", about.clone(), Sent(error.clone(), ROUTER));
    story.change("the same address on another node", move |world| {
        world.expect(2, pod, 5);
        let of_vm = world.records.v4.pods.values_mut().chain(world.records.v6.pods.values_mut());
        of_vm.filter(|pod| pod.backend == 2).for_each(|pod| pod.side = 0);
    });
    story.wire("whose error is it?", about.clone(), Dropped(Reason::NOT_PRESENT));
    let reply = flow.reply(pod);
    story.wire("replies are the VM's wherever it is", reply.clone(), Sent(flow.back(&reply), ROUTER));
    story.turned(2, 0, true);
    story.change("the API has said where it is", |world| world.turn(2));
    story.change("and the old pod is gone", move |world| {
        world.forget_other(2);
        let of_vm = world.records.v4.pods.values_mut().chain(world.records.v6.pods.values_mut());
        of_vm.filter(|pod| pod.backend == 2).for_each(|pod| pod.side = 1);
    });
    story.turned(2, 1, false);
    story
}
