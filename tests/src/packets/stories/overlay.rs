//! VMs of other nodes behind an overlay: out by TC with SNAT to the overlay's address, undone where its device comes in.

use vmlb_common::abi::{Device, DeviceFlags};
use vmlb_common::family::{V4, V6};
use vmlb_common::host::HostFamily;
use vmlb_common::verdict::Reason;

use super::errors::about_first;
use super::fragments::{WIRE, three, whole};
use crate::address::Family;
use crate::packets::frame::{Says, between, icmp, tcp, udp};
use crate::packets::story::{At, Exit, Expect, ROUTER, Story};
use crate::packets::world::{Net, OTHER0, neighbour};

use Expect::{Dropped, Passed, Punted, Sent, SentByTc};

/// What leads into the overlay.
const INTO: Exit = Exit { device: OTHER0, next_hop: neighbour(9) };

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![connection(net), fragments(net), error(net), others(net)]
}

fn begin(says: &'static str) -> Story {
    let mut story = Story::new(says);
    story.change("other0 is an overlay's device", |world| {
        let own = |family| Net(family).node_on_overlay(0).ip();
        let device = Device {
            flags: DeviceFlags::OVERLAY,
            snat_v4: V4::from_ip(own(Family::V4)).unwrap_or_default(),
            snat_v6: V6::from_ip(own(Family::V6)).unwrap_or_default(),
        };
        world.records.devices.insert(OTHER0, device);
        world.records.settings.generation += 1;
    });
    story
}

fn connection(net: Net) -> Story {
    let mut story = begin("a connection through an overlay");
    let (client, frontend) = (net.client(0, 61014), net.node(30006));
    let (us, pod) = (net.node_on_overlay(61014), net.pod(6));
    let syn = tcp(client, frontend).syn(200);
    story.wire(
        "SYN",
        syn.clone(),
        SentByTc(Reason::NO_TRANSMIT, between(us, pod, &syn).ttl(63), INTO.device),
    );
    let answer = tcp(pod, us).syn(7000).ack(201);
    let answered = between(frontend, client, &answer).ttl(63);
    story.packet("its answer", At::Overlay(OTHER0), answer, Sent(answered, ROUTER));
    let ack = tcp(client, frontend).at(201).ack(7001);
    let sent = between(us, pod, &ack).ttl(63);
    story.wire("its proof", ack.clone(), SentByTc(Reason::NO_TRANSMIT, sent, INTO.device));
    story.flows(0, 1);
    story
}

fn fragments(net: Net) -> Story {
    let mut story = begin("fragments through an overlay");
    let (client, frontend) = (net.client(0, 61014), net.node(30006));
    let (us, pod) = (net.node_on_overlay(61014), net.pod(6));
    let (ask, out) = (udp(client, frontend), udp(us, pod).ttl(63));
    let (answer, back) = (udp(pod, us), udp(frontend, client).ttl(63));
    for number in [7, 8] {
        whole(&mut story, WIRE, number, &ask, &out, |frame| {
            SentByTc(Reason::NO_TRANSMIT, frame, INTO.device)
        });
        whole(&mut story, At::Overlay(OTHER0), number, &answer, &back, |frame| Sent(frame, ROUTER));
    }
    story.flows(0, 1);
    let [first, second, last] = three(&answer, 9);
    story.packet("an answer's last fragment first", At::Overlay(OTHER0), last, Punted(Reason::FRAGMENT));
    for late in [first, second] {
        story.packet("others are too late", At::Overlay(OTHER0), late, Dropped(Reason::FRAGMENT_ORDER));
    }
    for piece in three(&udp(pod, net.node_on_overlay(9)), 10) {
        story.packet("of nobody's", At::Overlay(OTHER0), piece, Passed);
    }
    story
}

fn error(net: Net) -> Story {
    let mut story = begin("an error about a request through an overlay");
    let (client, frontend) = (net.client(0, 61015), net.node(30006));
    let (us, pod) = (net.node_on_overlay(61015), net.pod(6));
    let syn = tcp(client, frontend).syn(1);
    let sent = between(us, pod, &syn).ttl(63);
    story.wire("SYN", syn.clone(), SentByTc(Reason::NO_TRANSMIT, sent.clone(), INTO.device));
    let quoting = icmp(pod, us, Says::TooBig(1280), &sent, 8);
    let told = between(client, frontend, &sent);
    let told = icmp(frontend, client, Says::TooBig(1280), &told, 8).ttl(63);
    story.packet("too big", At::Overlay(OTHER0), quoting, Sent(told, ROUTER));
    let ask = udp(client, frontend);
    let sent = between(us, pod, &ask).ttl(63);
    story.wire("a datagram", ask.clone(), SentByTc(Reason::NO_TRANSMIT, sent, INTO.device));
    let quoting = about_first(net, pod, us, Says::TooBig(1280), &udp(us, pod));
    let told = about_first(net, frontend, client, Says::TooBig(1280), &ask).ttl(63);
    story.packet("a fragment is", At::Overlay(OTHER0), quoting, Sent(told, ROUTER));
    story
}

fn others(net: Net) -> Story {
    let mut story = begin("what an overlay brings besides");
    let (us, pod) = (net.node_on_overlay(61016), net.pod(6));
    let other = tcp(pod, us).at(5).ack(1);
    story.packet("an answer to a port no flow holds", At::Overlay(OTHER0), other, Passed);
    let request = tcp(pod, net.node(30006)).syn(1);
    story.packet("a pod as a client is the stack's", At::Overlay(OTHER0), request, Passed);
    story
}
