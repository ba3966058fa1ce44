//! Backends on this node straight by their pod's device, the client's address kept and the stack passed by.

use vmlb_common::abi::DeviceFlags;
use vmlb_common::verdict::Reason;

use crate::packets::frame::{Frame, Says, Shape, Wrapping, between, icmp, tcp, udp};
use crate::packets::story::{At, Expect, NODE2, ROUTER, Story};
use crate::packets::world::{ETH0, LOCAL, Net, POD1, World, tag};

use Expect::{Delivered, Dropped, Passed, Sent, SentByTc};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![connection(net), as_begun(net), refused(net), errors(net), moved(net)]
}

/// Packets go straight to pods behind `POD1` or not, for flows that begin from now on.
fn direct(world: &mut World, yes: bool) {
    for ifindex in [ETH0, POD1] {
        let device = world.records.devices.get_mut(&ifindex).expect("a device of the world");
        device.flags =
            if yes { device.flags | DeviceFlags::DIRECT } else { device.flags & !DeviceFlags::DIRECT };
    }
}

fn begin(says: &'static str) -> Story {
    let mut story = Story::new(says);
    story.change("packets go straight to pods' devices", |world| direct(world, true));
    story
}

/// A request that TC sends into the pod's device.
fn straight(frame: &Frame) -> Expect {
    SentByTc(Reason::POD_DEVICE, frame.clone().ttl(63), POD1)
}

fn connection(net: Net) -> Story {
    let mut story = begin("a connection straight to a VM on this node");
    let pod = net.pod(1);
    for (client, frontend) in
        [(net.client(0, 40000), net.node(30001)), (net.client(1, 40000), net.node(LOCAL))]
    {
        let syn = tcp(client, frontend).syn(1000);
        story.wire("SYN: the source stays", syn.clone(), straight(&between(client, pod, &syn)));
        let answer = tcp(pod, client).syn(5000).ack(1001);
        story.packet("SYN-ACK: from the frontend, by the FIB", At::Pod(POD1), answer.clone(), {
            Sent(between(frontend, client, &answer).ttl(63), ROUTER)
        });
        let ack = tcp(client, frontend).at(1001).ack(5001);
        story.wire("ACK: proves the flow", ack.clone(), straight(&between(client, pod, &ack)));
        let request = ack.data(b"an odd number of octets");
        story.wire("data", request.clone(), straight(&between(client, pod, &request)));
        let data = tcp(pod, client).at(5001).ack(1024).data(&[0x5a; 1301]);
        story.packet("data from the VM", At::Pod(POD1), data.clone(), {
            Sent(between(frontend, client, &data).ttl(63), ROUTER)
        });
        story.egress("without our program at the pod's device", data.clone(), {
            Delivered(between(frontend, client, &data))
        });
    }
    story.flows(0, 2);
    let other = between(pod, net.client(0, 40001), &tcp(pod, net.client(0, 40000)).ack(1));
    story.packet("what is of no flow is the stack's", At::Pod(POD1), other, Passed);
    let ask = udp(net.client(0, 5353), net.vip(30001));
    story.wire("a datagram", ask.clone(), straight(&between(net.client(0, 5353), pod, &ask)));
    let answer = udp(pod, net.client(0, 5353)).data(b"answer");
    story.packet("and its answer", At::Pod(POD1), answer.clone(), {
        Sent(between(net.vip(30001), net.client(0, 5353), &answer).ttl(63), ROUTER)
    });
    story
}

fn as_begun(net: Net) -> Story {
    let mut story = Story::new("flows keep the way that they began with");
    let (frontend, pod) = (net.node(30001), net.pod(1));
    let [old, new] = [net.client(0, 40000), net.client(0, 40001)];
    let by_stack = tcp(old, frontend).syn(1000);
    story.wire("by the stack", by_stack.clone(), Delivered(between(old, pod, &by_stack)));
    story.change("packets go straight", |world| direct(world, true));
    story.wire("still by the stack", by_stack.clone(), Delivered(between(old, pod, &by_stack)));
    let answer = tcp(pod, old).syn(5000).ack(1001);
    story.packet("its answer too", At::Pod(POD1), answer.clone(), Passed);
    story.egress("on its way out", answer.clone(), Delivered(between(frontend, old, &answer)));
    let past = tcp(new, frontend).syn(1000);
    story.wire("a new one goes straight", past.clone(), straight(&between(new, pod, &past)));
    story.change("and no longer", |world| direct(world, false));
    story.wire("it still does", past.clone(), straight(&between(new, pod, &past)));
    let answer = tcp(pod, new).syn(5000).ack(1001);
    story.packet("its answer too", At::Pod(POD1), answer.clone(), {
        Sent(between(frontend, new, &answer).ttl(63), ROUTER)
    });
    story
}

fn refused(net: Net) -> Story {
    let mut story = begin("a device whose pods are not handed packets straight");
    let client = net.client(0, 40000);
    let syn = tcp(client, net.node(30008)).syn(1);
    story.wire("by the stack", syn.clone(), Delivered(between(client, net.pod(8), &syn)));
    let syn = tcp(client, net.node(30009)).syn(1);
    story.wire("nor is one that is not ours", syn.clone(), Delivered(between(client, net.pod(9), &syn)));
    story
}

fn errors(net: Net) -> Story {
    let mut story = begin("errors about flows straight to a VM");
    let (client, frontend, pod, router) =
        (net.client(0, 5353), net.node(30001), net.pod(1), net.routers_own());
    let ask = udp(client, frontend);
    let out = between(client, pod, &ask).ttl(63);
    story.wire("a flow is opened", ask.clone(), straight(&out));
    let told = icmp(frontend, client, Says::NoPort, &between(client, frontend, &out), 8).ttl(63);
    let refusal = icmp(pod, client, Says::NoPort, &out, 8);
    story.packet("the pod has trouble with a request", At::Pod(POD1), refusal, Sent(told, ROUTER));
    let seen = udp(frontend, client).ttl(9);
    story.wire("a router has trouble with a reply", icmp(router, frontend, Says::TooBig(1280), &seen, 8), {
        straight(&icmp(router, pod, Says::TooBig(1280), &between(pod, client, &seen), 8))
    });
    story
}

fn moved(net: Net) -> Story {
    let mut story = begin("a VM that packets go straight to leaves this node and comes back");
    let (client, frontend, here, there) =
        (net.client(0, 40000), net.vip(30001), net.pod(1), net.pod_beside(2, 0));
    story.change("nodes have a tunnel", |world| world.tunnel(Shape::Ip, 0));
    let syn = tcp(client, frontend).syn(1000);
    story.wire("SYN", syn.clone(), straight(&between(client, here, &syn)));
    let syn_ack = tcp(here, client).syn(5000).ack(1001);
    story.packet("SYN-ACK", At::Pod(POD1), syn_ack.clone(), {
        Sent(between(frontend, client, &syn_ack).ttl(63), ROUTER)
    });
    let request = tcp(client, frontend).at(1001).ack(5001).data(b"request");
    story.wire("a request", request.clone(), straight(&between(client, here, &request)));
    story.change("it has moved to node2", move |world| {
        world.expect(1, there, 2);
        world.turn(1);
    });
    let mark = 0x8000 | u16::try_from(tag(1)).expect("15 bits");
    let wrapping = Wrapping { shape: Shape::Ip, from: net.node(0).ip(), to: net.node_of(2), mark };
    story.wire("requests go there by the tunnel", request.clone(), {
        Sent(request.clone().ttl(63).wrapped(wrapping), NODE2)
    });
    let reset = tcp(here, client).at(5001).rst();
    story.packet("its old launcher has no say", At::Pod(POD1), reset, Dropped(Reason::NOT_PRESENT));
    story.change("it comes back", move |world| world.expect(1, here, 1));
    let back = tcp(here, client).at(5001).ack(1008).data(b"here");
    story.packet("it shows itself", At::Pod(POD1), back.clone(), {
        Sent(between(frontend, client, &back).ttl(63), ROUTER)
    });
    story.turned(1, 2, false);
    story.wire("requests go straight again", request.clone(), straight(&between(client, here, &request)));
    story
}
