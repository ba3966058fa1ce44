//! A story: what happens to a node, packet by packet, and what must come of it. Each is told four times: IPv4 and IPv6,
//! by XDP and by TC.

use std::net::SocketAddr;

use vmlb_common::abi::Turned;
use vmlb_common::family::{V4, V6};
use vmlb_common::host::{Hook, HostFamily, Outcome};
use vmlb_common::verdict::{Reason, Verdict};
use vmlb_common::wire::Protocol;

use super::bench::{Bench, Tally, count_pairs};
use super::frame::Frame;
use super::world::{ETH0, ETH2, Net, World, neighbour, neighbours_of, own};
use crate::address::Family;

/// Where the kernel sends a finished packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Device it leaves by.
    pub device: u32,
    /// The next hop's MAC address; at TC the kernel writes it again.
    pub next_hop: [u8; 6],
}

/// To the router, where clients are.
pub const ROUTER: Exit = Exit { device: ETH0, next_hop: neighbour(1) };
/// To node2.
pub const NODE2: Exit = Exit { device: ETH0, next_hop: neighbour(12) };
/// To the node behind eth2.
pub const BEHIND_ETH2: Exit = Exit { device: ETH2, next_hop: neighbour(15) };

/// What must become of a packet.
#[derive(Clone, Debug)]
pub enum Expect {
    /// To the stack, untouched, without a reason.
    Passed,
    /// The same, and nothing but the gate was looked at.
    Foreign,
    /// To the stack like this.
    Delivered(Frame),
    /// Out like this.
    Sent(Frame, Exit),
    /// XDP leaves it to TC for this reason, which sends it like this by this device.
    SentByTc(Reason, Frame, u32),
    /// To the stack, untouched, for this reason.
    Punted(Reason),
    /// XDP leaves it to TC for the first reason, which drops it for the second.
    DroppedByTc(Reason, Reason),
    /// XDP makes it these octets and sends it back, for this reason; TC leaves it to the stack.
    Answered(Reason, Vec<u8>),
    /// XDP makes it these octets and sends it back, because it is too big for its way; TC drops it.
    TooBig(Vec<u8>),
    /// XDP makes it these octets and sends it back, because it has no hops left; TC drops it.
    Expired(Vec<u8>),
    /// Refused, but by XDP without an answer, for this reason; TC leaves it to the stack.
    Unanswered(Reason),
    /// Gone, for this reason.
    Dropped(Reason),
    /// Gone, for this reason, after it was taken out of a tunnel's wrapping.
    DroppedBare(Reason),
}

/// Which programs an uplink has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// XDP, and TC for what it defers.
    Xdp,
    /// TC alone.
    Tc,
}

/// A place of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In by this uplink.
    Uplink(u32),
    /// Out by this uplink.
    Egress(u32),
    /// In by this pod's device.
    Pod(u32),
    /// In by this overlay's device.
    Overlay(u32),
}

type Change = Box<dyn Fn(&mut World)>;

enum Step {
    Packet { says: &'static str, at: At, packet: Frame, expect: Box<Expect>, also: Option<Reason> },
    Raw { says: &'static str, at: At, octets: Vec<u8>, expect: Box<Expect> },
    Change { says: &'static str, change: Change },
    Age(u32),
    Sweep,
    Pairs { half: (usize, usize), established: (usize, usize), size: Size },
    LoseHalfReplies,
    Inherit { protocol: Protocol, source: SocketAddr, destination: SocketAddr },
    Turned { backend: u32, turned: Turned },
    Arrivals(Vec<(u32, u32)>),
    Tracked { client: SocketAddr, next: u32, acknowledged: u32 },
}

/// Whose tables a count holds for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Any bench's.
    Any,
    /// Those of [`super::bench::Host::of_stories`].
    Host,
}

/// A story in one family.
pub struct Story {
    /// What it is about.
    pub name: &'static str,
    steps: Vec<Step>,
}

impl Story {
    /// An empty story.
    pub fn new(name: &'static str) -> Self {
        Self { name, steps: Vec::new() }
    }

    /// A packet from a client or another node, by eth0.
    pub fn wire(&mut self, says: &'static str, packet: Frame, expect: Expect) {
        self.packet(says, At::Uplink(ETH0), packet, expect);
    }

    /// A packet on its way out by eth0.
    pub fn egress(&mut self, says: &'static str, packet: Frame, expect: Expect) {
        self.packet(says, At::Egress(ETH0), packet, expect);
    }

    /// A packet anywhere.
    pub fn packet(&mut self, says: &'static str, at: At, packet: Frame, expect: Expect) {
        self.steps.push(Step::Packet { says, at, packet, expect: Box::new(expect), also: None });
    }

    /// A packet by eth0 that counts a reason although it is served.
    pub fn wire_counting(&mut self, says: &'static str, also: Reason, packet: Frame, expect: Expect) {
        let (at, expect) = (At::Uplink(ETH0), Box::new(expect));
        self.steps.push(Step::Packet { says, at, packet, expect, also: Some(also) });
    }

    /// The backend's sides of all half-open flows are evicted.
    pub fn lose_half_replies(&mut self, _says: &'static str) {
        self.steps.push(Step::LoseHalfReplies);
    }

    /// Octets from a client or another node, by eth0.
    pub fn raw(&mut self, says: &'static str, octets: Vec<u8>, expect: Expect) {
        self.steps.push(Step::Raw { says, at: At::Uplink(ETH0), octets, expect: Box::new(expect) });
    }

    /// The world changes.
    pub fn change(&mut self, says: &'static str, change: impl Fn(&mut World) + 'static) {
        self.steps.push(Step::Change { says, change: Box::new(change) });
    }

    /// Nothing happens for so many seconds.
    pub fn wait(&mut self, seconds: u32) {
        self.steps.push(Step::Age(seconds));
    }

    /// The stack carries this direction of a connection since before vmlb came.
    pub fn inherit(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) {
        self.steps.push(Step::Inherit { protocol, source, destination });
    }

    /// A backend is at this side, has turned so often, and is expected at the other or not.
    pub fn turned(&mut self, backend: u32, times: u8, expected: bool) {
        let turned = (0..times).fold(Turned(0), |turned, _| turned.turned()).expecting(expected);
        self.steps.push(Step::Turned { backend, turned });
    }

    /// The datapath has told of these arrivals since the last time: backends, and values of
    /// [`vmlb_common::abi::ArrivalSign`].
    pub fn arrivals(&mut self, arrivals: &[(u32, u32)]) {
        self.steps.push(Step::Arrivals(arrivals.to_vec()));
    }

    /// What is remembered of the numbers in a client's last packet, by the client's end.
    pub fn tracked(&mut self, client: SocketAddr, next: u32, acknowledged: u32) {
        self.steps.push(Step::Tracked { client, next, acknowledged });
    }

    /// An ageing pass.
    pub fn sweep(&mut self) {
        self.steps.push(Step::Sweep);
    }

    /// So many pairs are half open, and so many established.
    pub fn flows(&mut self, half: usize, established: usize) {
        self.count(half, established, Size::Any);
    }

    /// The same, where it depends on the size of the host's tables.
    pub fn host_flows(&mut self, half: usize, established: usize) {
        self.count(half, established, Size::Host);
    }

    fn count(&mut self, half: usize, established: usize, size: Size) {
        let (half, established) = ((half, half), (established, established));
        self.steps.push(Step::Pairs { half, established, size });
    }

    /// Tells the story.
    ///
    /// # Panics
    /// At the first step that comes out otherwise.
    pub fn tell(&self, bench: &mut impl Bench, family: Family, driver: Driver) {
        for (number, step) in self.steps.iter().enumerate() {
            let place = format!("{} ({family}, {driver:?}), step {}", self.name, number + 1);
            match step {
                Step::Packet { says, at, packet, expect, also } => {
                    let place = format!("{place}: {says}");
                    Meeting { place, at: *at, driver, also: *also }.hold(bench, &packet.octets(), expect);
                }
                Step::Raw { says, at, octets, expect } => {
                    let place = format!("{place}: {says}");
                    Meeting { place, at: *at, driver, also: None }.hold(bench, octets, expect);
                }
                Step::Inherit { protocol, source, destination } => {
                    bench.inherit(*protocol, *source, *destination);
                }
                Step::LoseHalfReplies => bench.lose_half_replies(),
                Step::Turned { backend, turned } => {
                    let found = Turned(bench.node().turn_now(*backend).word);
                    assert_eq!(found, *turned, "{place}: where backend {backend} is");
                }
                Step::Arrivals(expected) => {
                    let told = bench.node().take_arrivals();
                    let told: Vec<_> = told.iter().map(|arrival| (arrival.backend, arrival.sign)).collect();
                    assert_eq!(told, *expected, "{place}: arrivals");
                }
                Step::Tracked { client, next, acknowledged } => {
                    let found = numbers(bench, *client);
                    assert_eq!(found, [(*next, *acknowledged)], "{place}: numbers of the flows of {client}");
                }
                Step::Pairs { size: Size::Host, .. } if !bench.has_host_sizes() => {}
                Step::Change { change, .. } => bench.change(change),
                Step::Age(seconds) => bench.age(*seconds),
                Step::Sweep => bench.sweep(),
                Step::Pairs { half, established, .. } => {
                    let expected = [*half, *established];
                    assert_eq!(
                        count_pairs(bench.node(), family),
                        expected,
                        "{place}: half open, established"
                    );
                }
            }
        }
    }

    /// What happens in the story, for people.
    pub fn lines(&self) -> Vec<&'static str> {
        let line = |step: &Step| match step {
            Step::Packet { says, .. } | Step::Raw { says, .. } | Step::Change { says, .. } => Some(*says),
            _ => None,
        };
        self.steps.iter().filter_map(line).collect()
    }
}

/// What is remembered of the numbers in the last packet of each flow of a client.
fn numbers(bench: &impl Bench, client: SocketAddr) -> Vec<(u32, u32)> {
    let state = bench.state();
    let v4 = state.v4.half.flows.into_iter().chain(state.v4.established.flows);
    let v4 = v4.map(|(key, flow)| {
        (SocketAddr::new(V4::to_ip(&key.client), key.client_port), flow.next, flow.acknowledged)
    });
    let v6 = state.v6.half.flows.into_iter().chain(state.v6.established.flows);
    let v6 = v6.map(|(key, flow)| {
        (SocketAddr::new(V6::to_ip(&key.client), key.client_port), flow.next, flow.acknowledged)
    });
    v4.chain(v6)
        .filter(|found| found.0 == client)
        .map(|(_, next, acknowledged)| (next, acknowledged))
        .collect()
}

/// All stories, as told in one family.
pub fn all(family: Family) -> Vec<Story> {
    super::stories::all(Net(family))
}

/// Stories for the host alone: its clock moves where the story says so.
pub fn of_moments(family: Family) -> Vec<Story> {
    super::stories::of_moments(Net(family))
}

/// A packet meets the datapath.
struct Meeting {
    place: String,
    at: At,
    driver: Driver,
    also: Option<Reason>,
}

impl Meeting {
    fn hold(&self, bench: &mut impl Bench, octets: &[u8], expect: &Expect) {
        let (hook, device) = match (self.at, self.driver) {
            (At::Uplink(device), Driver::Xdp) => (Hook::Xdp, device),
            (At::Uplink(device), Driver::Tc) => (Hook::Ingress, device),
            (At::Egress(device), _) => (Hook::Egress, device),
            (At::Pod(device), _) => (Hook::Pod, device),
            (At::Overlay(device), _) => (Hook::Overlay, device),
        };
        let place = &self.place;
        let first = observe(bench, hook, device, octets);
        let deferral = match expect {
            Expect::SentByTc(reason, ..) | Expect::DroppedByTc(reason, _) if hook == Hook::Xdp => {
                Some(*reason)
            }
            _ => None,
        };
        let Some(reason) = deferral else {
            return self.judge(hook, device, octets, expect, &first);
        };
        assert_eq!(first.outcome.verdict, Verdict::defer(reason), "{place}: verdict of XDP");
        assert_eq!(first.outcome.octets, octets, "{place}: a deferred packet is untouched");
        assert_eq!(first.counted, [reason], "{place}: reasons of XDP");
        let second = observe(bench, Hook::Ingress, device, octets);
        self.judge(Hook::Ingress, device, octets, expect, &second);
    }
}

/// What was seen of one run of the datapath.
struct Observed {
    outcome: Outcome,
    counted: Vec<Reason>,
    lookups: u64,
}

fn observe(bench: &mut impl Bench, hook: Hook, device: u32, octets: &[u8]) -> Observed {
    let before = Tally::of(bench.node());
    let outcome = bench.receive(hook, device, octets);
    let after = Tally::of(bench.node());
    Observed { outcome, counted: after.counted_since(&before), lookups: after.lookups_since(&before) }
}

/// What TC sends to that next hop or to another neighbour of the device, or to none where none is known yet: the kernel writes
/// the MAC addresses again.
fn addressed(frame: &Frame, exit: Exit, seen: &Observed) -> Frame {
    let mut hops = neighbours_of(exit.device).into_iter().chain([exit.next_hop]);
    match hops.find(|hop| *hop != [0; 6] && seen.outcome.octets.starts_with(hop)) {
        Some(hop) => frame.clone().macs(own(exit.device), hop),
        None => frame.clone().macs([0; 6], [0; 6]),
    }
}

impl Meeting {
    fn judge(&self, hook: Hook, device: u32, octets: &[u8], expect: &Expect, seen: &Observed) {
        let place = &self.place;
        let by_xdp = hook == Hook::Xdp;
        let (verdict, out, exit) = match expect {
            Expect::Passed | Expect::Foreign => (Verdict::PASS, octets.to_vec(), None),
            Expect::Delivered(frame) => (Verdict::DELIVER, frame.octets(), None),
            Expect::Sent(frame, exit) if by_xdp => {
                let sent = frame.clone().macs(own(exit.device), exit.next_hop);
                let verdict = if exit.device == device { Verdict::TRANSMIT } else { Verdict::REDIRECT };
                (verdict, sent.octets(), Some(exit.device))
            }
            Expect::TooBig(answer) if by_xdp => (Verdict::answer(Reason::TOO_BIG), answer.clone(), None),
            Expect::Expired(answer) if by_xdp => (Verdict::answer(Reason::TTL_EXPIRED), answer.clone(), None),
            Expect::Expired(_) => (Verdict::drop(Reason::TTL_EXPIRED), octets.to_vec(), None),
            Expect::TooBig(_) => (Verdict::drop(Reason::TOO_BIG), octets.to_vec(), None),
            Expect::Sent(frame, exit) => {
                let sent = addressed(frame, *exit, seen);
                (Verdict::REDIRECT, sent.octets(), Some(exit.device))
            }
            Expect::SentByTc(_, frame, device) => {
                let sent = addressed(frame, Exit { device: *device, next_hop: [0; 6] }, seen);
                (Verdict::REDIRECT, sent.octets(), Some(*device))
            }
            Expect::Answered(reason, octets) if by_xdp => (Verdict::answer(*reason), octets.clone(), None),
            Expect::Unanswered(reason) if by_xdp => (Verdict::drop(*reason), octets.to_vec(), None),
            Expect::Punted(reason) | Expect::Answered(reason, _) | Expect::Unanswered(reason) => {
                (Verdict::punt(*reason), octets.to_vec(), None)
            }
            Expect::Dropped(reason) | Expect::DroppedByTc(_, reason) => {
                (Verdict::drop(*reason), octets.to_vec(), None)
            }
            // What it looks like then is nobody's concern.
            Expect::DroppedBare(reason) => {
                assert_ne!(seen.outcome.octets, octets, "{place}: still wrapped");
                (Verdict::drop(*reason), seen.outcome.octets.clone(), None)
            }
        };
        let found = seen.outcome.verdict;
        assert_eq!(
            found,
            verdict,
            "{place}: verdict {} ({}), not {} ({})",
            found.name(),
            found.reason().name(),
            verdict.name(),
            verdict.reason().name()
        );
        assert_eq!(seen.outcome.device, exit, "{place}: device");
        assert!(
            seen.outcome.octets == out,
            "{place}: octets\n {:02x?}\nnot\n {out:02x?}",
            seen.outcome.octets
        );
        let own = Some(verdict.reason()).filter(|reason| *reason != Reason::NONE);
        let reasons: Vec<Reason> = own.into_iter().chain(self.also).collect();
        assert_eq!(seen.counted, reasons, "{place}: reasons counted");
        if matches!(expect, Expect::Foreign) {
            assert_eq!(seen.lookups, 0, "{place}: lookups besides the gate's");
        }
    }
}
