//! Packets that want to do harm: whatever they claim, they leave as they came, or are dropped by a counted reason, or are
//! served right. Never half rewritten, never lost without a count.

use vmlb_common::host::{Hook, Outcome};
use vmlb_common::verdict::{Reason, Verdict};
use vmlb_tests::address::Family;
use vmlb_tests::capture::check_sums;
use vmlb_tests::packets::bench::{Bench, Host, Tally};
use vmlb_tests::packets::frame::{Frame, Says, between, icmp, tcp, udp};
use vmlb_tests::packets::random::Random;
use vmlb_tests::packets::world::{EMPTY, EMPTY_LOCAL, ETH0, LOCAL, Net, OTHER0, POD1, RANGED, STICKY};
use vmlb_tests::packets::wrapped;

const HOOKS: [(Hook, u32); 5] = [
    (Hook::Xdp, ETH0),
    (Hook::Ingress, ETH0),
    (Hook::Egress, ETH0),
    (Hook::Pod, POD1),
    (Hook::Overlay, OTHER0),
];

/// Packets of every kind that the datapath looks at.
fn samples(net: Net) -> Vec<Frame> {
    let client = net.client(0, 61001);
    let mut samples = vec![tcp(net.pod(2), net.node(61001)).syn(5).ack(1), udp(net.pod(2), net.node(61001))];
    for port in [30001, 30002, 30003, 30005, LOCAL, EMPTY, EMPTY_LOCAL, STICKY, RANGED] {
        samples.push(tcp(client, net.node(port)).syn(1));
        samples.push(tcp(client, net.vip(port)).at(2).ack(6).data(b"some data"));
        samples.push(udp(client, net.node(port)));
    }
    let (ask, answer) = (udp(client, net.node(30001)), udp(net.pod(1), client));
    samples.push(icmp(net.routers_own(), net.node(0), Says::TooBig(1280), &udp(net.node(30001), client), 8));
    samples.push(icmp(net.pod(1), client, Says::NoPort, &between(client, net.pod(1), &ask), 8));
    samples.push(icmp(
        net.pod(2),
        net.node(0),
        Says::NoPort,
        &between(net.node(61001), net.pod(2), &answer),
        8,
    ));
    for pod in [1, 8] {
        samples.push(tcp(net.pod(pod), client).syn(5).ack(2));
        samples.push(udp(net.pod(pod), net.node(61002)));
    }
    for whole in [udp(client, net.node(30001)), udp(client, net.vip(30002)), udp(net.pod(1), client)] {
        samples.extend(whole.data(&[0xa5; 50]).pieces(9, 24));
    }
    samples
}

/// Those, and some in wrappings that are not ours to open.
fn packets(net: Net) -> Vec<Vec<u8>> {
    samples(net).iter().map(Frame::octets).chain(wrapped::all(net)).collect()
}

/// A verdict that leaves the packet alone leaves its octets alone, and every drop and punt is counted.
fn meets_the_law(host: &mut Host, hook: Hook, device: u32, octets: &[u8]) -> Outcome {
    let before = Tally::of(host.node());
    let outcome = host.receive(hook, device, octets);
    let counted = Tally::of(host.node()).counted_since(&before);
    let verdict = outcome.verdict;
    if verdict.is_answer() {
        assert_eq!(
            check_sums(std::slice::from_ref(&outcome.octets)).expect("right sums"),
            1,
            "{:02x?}",
            outcome.octets
        );
        return outcome;
    }
    assert_eq!(outcome.octets.len(), octets.len());
    let rewritten = matches!(verdict, Verdict::DELIVER | Verdict::TRANSMIT | Verdict::REDIRECT);
    if !rewritten {
        assert!(outcome.octets == octets, "{} changed {octets:02x?} at {hook:?}", verdict.name());
    }
    let reason = verdict.reason();
    if reason != Reason::NONE {
        assert!(counted.contains(&reason), "{} is not counted", reason.name());
    }
    assert_eq!(verdict.is_drop() || verdict.is_punt() || verdict.is_defer(), reason != Reason::NONE);
    outcome
}

#[test]
fn every_prefix_of_a_packet_leaves_whole_or_not_at_all() {
    for family in Family::ALL {
        for octets in packets(Net(family)) {
            let mut host = Host::of_stories();
            for (hook, device) in HOOKS {
                for length in 0..octets.len() {
                    let outcome = meets_the_law(&mut host, hook, device, &octets[..length]);
                    let untouched =
                        [Verdict::PASS, Verdict::punt(Reason::OPTIONS), Verdict::punt(Reason::FRAGMENT)];
                    assert!(
                        untouched.contains(&outcome.verdict)
                            || outcome.verdict == Verdict::drop(Reason::MALFORMED),
                        "{} for {length} octets of {octets:02x?}",
                        outcome.verdict.name()
                    );
                }
                meets_the_law(&mut host, hook, device, &octets);
            }
        }
    }
}

#[test]
fn any_one_octet_may_lie() {
    for family in Family::ALL {
        for right in packets(Net(family)) {
            let mut host = Host::of_stories();
            for (hook, device) in HOOKS {
                for at in 0..right.len() {
                    for lie in [0, 1, 0x7f, 0x80, 0xff, right[at] ^ 1, right[at] ^ 0x10] {
                        let mut octets = right.clone();
                        octets[at] = lie;
                        meets_the_law(&mut host, hook, device, &octets);
                    }
                }
            }
        }
    }
}

#[test]
fn random_damage_is_survived() {
    let mut random = Random::announced("random_damage_is_survived");
    let mut served = 0;
    for family in Family::ALL {
        let samples = packets(Net(family));
        let mut host = Host::of_stories();
        for _ in 0..20_000 {
            let (hook, device) = random.pick(&HOOKS);
            let mut octets = samples[random.below(samples.len())].clone();
            for _ in 0..random.below(4) {
                let at = random.below(octets.len());
                octets[at] = random.octet();
            }
            if random.once_in(4) {
                octets.truncate(random.below(octets.len() + 1));
            } else if random.once_in(4) {
                octets.resize(octets.len() + random.below(64), random.octet());
            }
            let outcome = meets_the_law(&mut host, hook, device, &octets);
            served += u32::from(outcome.octets != octets);
            if random.once_in(500) {
                host.age(u32::from(random.octet()));
                host.sweep();
            }
        }
    }
    assert!(served > 1000, "only {served} packets were served");
}

#[test]
fn wrapped_packets_are_the_stacks_as_they_came() {
    for family in Family::ALL {
        let mut host = Host::of_stories();
        for octets in wrapped::all(Net(family)) {
            for (hook, device) in HOOKS {
                let outcome = meets_the_law(&mut host, hook, device, &octets);
                let is_passed = outcome.verdict == Verdict::PASS || outcome.verdict.is_punt();
                assert!(is_passed, "{} for {octets:02x?}", outcome.verdict.name());
            }
        }
    }
}

#[test]
fn padding_behind_a_short_packet_stays_and_does_not_count() {
    for family in Family::ALL {
        let net = Net(family);
        for packet in
            [udp(net.client(0, 4), net.node(30001)).data(b""), tcp(net.client(0, 4), net.node(30001)).syn(1)]
        {
            let right = packet.octets();
            let mut padded = right.clone();
            padded.extend([0xee; 31]);
            for hook in [Hook::Xdp, Hook::Ingress] {
                let outcome = meets_the_law(&mut Host::of_stories(), hook, ETH0, &padded);
                assert_eq!(outcome.verdict, Verdict::DELIVER);
                assert_eq!(outcome.octets[right.len()..], [0xee; 31]);
                let checked = check_sums(&[outcome.octets[..right.len()].to_vec()]).expect("right sums");
                assert_eq!(checked, 1);
            }
        }
    }
}
