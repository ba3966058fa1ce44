//! How flows end: FIN, RST, silence; and what may come after.

use vmlb_common::verdict::Reason;

use crate::packets::frame::{Frame, between, tcp, udp};
use crate::packets::story::{Expect, NODE2, ROUTER, Story};
use crate::packets::world::Net;

use Expect::{Delivered, Punted, Sent};

pub(super) fn stories(net: Net) -> Vec<Story> {
    vec![
        closed(net),
        time_wait(net),
        reset(net),
        half_closed(net),
        idle(net),
        revived(net),
        opening(net),
        datagrams(net),
        brief(net),
        reused(net),
        reused_remote(net),
    ]
}

/// An established local flow, and what delivers to its two sides.
struct Connection {
    client: std::net::SocketAddr,
    frontend: std::net::SocketAddr,
    pod: std::net::SocketAddr,
}

impl Connection {
    fn open(net: Net, story: &mut Story, port: u16) -> Self {
        let this = Self { client: net.client(0, port), frontend: net.node(30001), pod: net.pod(1) };
        this.establish(story, 1);
        this
    }

    fn establish(&self, story: &mut Story, sequence: u32) {
        self.request(story, "SYN", |packet| packet.syn(sequence));
        self.answer(story, "SYN-ACK", |packet| packet.syn(100).ack(sequence + 1));
        self.request(story, "ACK", |packet| packet.at(sequence + 1).ack(101));
    }

    fn request(&self, story: &mut Story, says: &'static str, shape: impl Fn(Frame) -> Frame) {
        let packet = shape(tcp(self.client, self.frontend));
        story.wire(says, packet.clone(), Delivered(between(self.client, self.pod, &packet)));
    }

    fn answer(&self, story: &mut Story, says: &'static str, shape: impl Fn(Frame) -> Frame) {
        let packet = shape(tcp(self.pod, self.client));
        story.egress(says, packet.clone(), Delivered(between(self.frontend, self.client, &packet)));
    }
}

fn passes(story: &mut Story) {
    story.sweep();
    story.sweep();
}

fn closed(net: Net) -> Story {
    let mut story = Story::new("both sides say goodbye");
    let flow = Connection::open(net, &mut story, 41000);
    flow.request(&mut story, "FIN", |packet| packet.at(2).ack(101).fin());
    flow.answer(&mut story, "FIN", |packet| packet.at(101).ack(3).fin());
    flow.request(&mut story, "the last ACK still passes", |packet| packet.at(3).ack(102));
    passes(&mut story);
    story.flows(0, 1);
    story.wait(11);
    story.sweep();
    story.flows(0, 1);
    story.sweep();
    story.flows(0, 0);
    story.wire(
        "after that it is not ours",
        tcp(flow.client, flow.frontend).at(3).ack(102),
        Punted(Reason::MID_FLOW),
    );
    story
}

fn time_wait(net: Net) -> Story {
    let mut story = Story::new("the VM says goodbye first");
    let flow = Connection::open(net, &mut story, 41009);
    flow.answer(&mut story, "FIN of the VM", |packet| packet.at(101).ack(2).fin());
    flow.request(&mut story, "FIN", |packet| packet.at(2).ack(102).fin());
    story.wait(59);
    passes(&mut story);
    story.flows(0, 1);
    story.wait(2);
    passes(&mut story);
    story.flows(0, 0);
    let flow = Connection::open(net, &mut story, 41009);
    flow.answer(&mut story, "FIN of the VM", |packet| packet.at(101).ack(2).fin());
    flow.request(&mut story, "RST", |packet| packet.at(2).rst());
    story.wait(11);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn reset(net: Net) -> Story {
    let mut story = Story::new("one RST ends a flow");
    let flow = Connection::open(net, &mut story, 41001);
    flow.answer(&mut story, "RST", |packet| packet.at(101).rst());
    story.wait(11);
    passes(&mut story);
    story.flows(0, 0);
    let flow = Connection::open(net, &mut story, 41001);
    flow.request(&mut story, "RST of the client", |packet| packet.at(2).rst());
    story.wait(11);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn half_closed(net: Net) -> Story {
    let mut story = Story::new("one side has said goodbye");
    let flow = Connection::open(net, &mut story, 41002);
    flow.request(&mut story, "FIN", |packet| packet.at(2).ack(101).fin());
    story.wait(299);
    passes(&mut story);
    story.flows(0, 1);
    flow.answer(&mut story, "the other goes on talking", |packet| packet.at(101).ack(3).data(b"more"));
    story.wait(299);
    passes(&mut story);
    story.flows(0, 1);
    story.wait(2);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn idle(net: Net) -> Story {
    let mut story = Story::new("silence");
    let flow = Connection::open(net, &mut story, 41003);
    story.wait(7999);
    passes(&mut story);
    story.flows(0, 1);
    flow.answer(&mut story, "a keepalive, two hours later", |packet| packet.at(100).ack(2));
    story.wait(7999);
    passes(&mut story);
    story.flows(0, 1);
    story.wait(2);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn revived(net: Net) -> Story {
    let mut story = Story::new("a packet between two passes revives a flow");
    let flow = Connection::open(net, &mut story, 41004);
    story.wait(8001);
    story.sweep();
    flow.answer(&mut story, "a reply", |packet| packet.at(101).ack(2));
    passes(&mut story);
    story.flows(0, 1);
    story.wait(8001);
    story.sweep();
    flow.request(&mut story, "a request", |packet| packet.at(2).ack(101));
    passes(&mut story);
    story.flows(0, 1);
    story
}

fn opening(net: Net) -> Story {
    let mut story = Story::new("an opening that nobody answers");
    let syn = tcp(net.client(0, 41005), net.node(30001)).syn(1);
    story.wire("SYN", syn.clone(), Delivered(between(net.client(0, 41005), net.pod(1), &syn)));
    story.wait(29);
    passes(&mut story);
    story.flows(1, 0);
    story.wait(2);
    passes(&mut story);
    story.flows(0, 0);
    story.wire("SYN", syn.clone(), Delivered(between(net.client(0, 41005), net.pod(1), &syn)));
    story.lose_half_replies("its reply's side is evicted");
    story.wait(31);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn datagrams(net: Net) -> Story {
    let mut story = Story::new("datagrams stop");
    let (client, frontend, pod) = (net.client(0, 41006), net.node(30001), net.pod(1));
    let ask = udp(client, frontend);
    story.wire("a datagram", ask.clone(), Delivered(between(client, pod, &ask)));
    story.wait(31);
    passes(&mut story);
    story.flows(0, 0);
    story.wire("a datagram", ask.clone(), Delivered(between(client, pod, &ask)));
    let answer = udp(pod, client);
    story.egress("its answer", answer.clone(), Delivered(between(frontend, client, &answer)));
    story.wire("another", ask.clone(), Delivered(between(client, pod, &ask)));
    story.wait(179);
    passes(&mut story);
    story.flows(0, 1);
    story.wait(2);
    passes(&mut story);
    story.flows(0, 0);
    story
}

fn brief(net: Net) -> Story {
    let mut story = Story::new("the packet that proves a flow says goodbye as well");
    let flow = Connection { client: net.client(0, 41008), frontend: net.node(30001), pod: net.pod(1) };
    flow.request(&mut story, "SYN", |packet| packet.syn(1));
    flow.answer(&mut story, "SYN-ACK", |packet| packet.syn(100).ack(2));
    flow.request(&mut story, "ACK, data and FIN", |packet| packet.at(2).ack(101).fin().data(b"all of it"));
    story.flows(0, 1);
    flow.answer(&mut story, "FIN", |packet| packet.at(101).ack(12).fin());
    flow.request(&mut story, "SYN of the next", |packet| packet.syn(70_000));
    story.flows(1, 0);
    story
}

fn reused(net: Net) -> Story {
    let mut story = Story::new("a client uses the port of a closed connection again");
    let flow = Connection::open(net, &mut story, 41007);
    flow.request(&mut story, "a SYN in an open connection goes to the VM", |packet| packet.syn(900));
    story.flows(0, 1);
    flow.request(&mut story, "FIN", |packet| packet.at(2).ack(101).fin());
    flow.answer(&mut story, "FIN", |packet| packet.at(101).ack(3).fin());
    flow.request(&mut story, "SYN of the next", |packet| packet.syn(70_000));
    story.flows(1, 0);
    flow.answer(&mut story, "SYN-ACK", |packet| packet.syn(300).ack(70_001));
    flow.request(&mut story, "ACK", |packet| packet.at(70_001).ack(301));
    story.flows(0, 1);
    flow.request(&mut story, "RST", |packet| packet.at(70_001).rst());
    flow.request(&mut story, "SYN", |packet| packet.syn(80_000));
    flow.request(&mut story, "RST of one never answered", |packet| packet.at(80_001).rst());
    flow.request(&mut story, "SYN", |packet| packet.syn(90_000));
    story.flows(1, 0);
    story
}

fn reused_remote(net: Net) -> Story {
    let mut story = Story::new("the same towards another node");
    let (client, frontend) = (net.client(0, 61017), net.node(30002));
    let (us, pod) = (net.node(61017), net.pod(2));
    for sequence in [1, 1_000_000] {
        let requests = [
            tcp(client, frontend).syn(sequence),
            tcp(client, frontend).at(sequence + 1).ack(11),
            tcp(client, frontend).at(sequence + 1).ack(11).fin(),
        ];
        let answers = [
            tcp(pod, us).syn(10).ack(sequence + 1),
            tcp(pod, us).at(11).ack(sequence + 2),
            tcp(pod, us).at(11).ack(sequence + 2).fin(),
        ];
        for (request, answer) in requests.into_iter().zip(answers) {
            story.wire("request", request.clone(), Sent(between(us, pod, &request).ttl(63), NODE2));
            story.wire("answer", answer.clone(), Sent(between(frontend, client, &answer).ttl(63), ROUTER));
        }
        story.flows(0, 1);
    }
    story
}
