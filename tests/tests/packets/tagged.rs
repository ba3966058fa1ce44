//! Frames at devices that carry others: every story again behind tags, and what is special to tags.

use vmlb_common::abi::{Carried, CarriedKey, Carrier};
use vmlb_common::host::{Hook, Node, Outcome};
use vmlb_common::verdict::{Reason, Verdict};
use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::{Bench, Host, State};
use vmlb_tests::packets::frame::{Frame, between, tcp, udp};
use vmlb_tests::packets::story::{self, Driver};
use vmlb_tests::packets::world::{ETH0, ETH2, NODE_MAC, Net, ROUTER_MAC, TUNNEL_PORT, World, neighbour, own};

/// The device on the wire under eth0, and the one under eth2.
const WIRE: u32 = 1100;
const OTHER_WIRE: u32 = 1101;

/// Two octets of TPID, two of priority and VLAN.
type Tag = [u8; 4];

/// VLAN 100 with priority 5.
const V100: Tag = [0x81, 0x00, 0xa0, 0x64];
/// Service VLAN 7.
const S7: Tag = [0x88, 0xa8, 0x00, 0x07];
/// Priority 3 and no VLAN.
const PRIORITY: Tag = [0x81, 0x00, 0x60, 0x00];
/// VLAN 200, as the agent has it.
const V200: Tag = [0x81, 0x00, 0x00, 0xc8];

/// A frame behind tags, the outer one first.
fn tagged(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &tags.concat(), rest].concat()
}

/// Takes tags off, which must be these.
fn untagged(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    let end = 12 + tags.concat().len();
    assert_eq!(frame.get(12..end), Some(&tags.concat()[..]), "tags of {frame:02x?}");
    [&frame[..12], &frame[end..]].concat()
}

/// Whether a frame is a fragment, another node's wrapping of one, or an error that quotes one as TC looks at it.
fn is_fragment(frame: &[u8]) -> bool {
    let Some(ip) = frame.get(14..) else { return false };
    let (is_piece, protocol, header) = match frame.get(12..14) {
        Some([0x08, 0x00]) if ip.len() >= 20 => (u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0, ip[9], 20),
        Some([0x86, 0xdd]) if ip.len() >= 40 => (ip[6] == 44, ip[6], 40),
        _ => return false,
    };
    let port = ip.get(header + 2..header + 4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let inside = match protocol {
        4 | 41 => header,
        // UDP, VXLAN, Ethernet.
        17 if port == Some(TUNNEL_PORT) => header + 8 + 8 + 14,
        // An ICMPv6 error, and what it quotes.
        58 if matches!(ip.get(header), Some(1..=4)) => header + 8,
        _ => return is_piece,
    };
    is_piece || is_fragment(&[&frame[..14], ip.get(inside..).unwrap_or_default()].concat())
}

/// A tag as maps have it.
fn named(tag: Option<&Tag>) -> u32 {
    match tag.map(|tag| u32::from_be_bytes(*tag)) {
        Some(tag) if tag & 0xfff != 0 => tag & 0xffff_0fff,
        _ => 0,
    }
}

/// A node whose eth0 is on [`WIRE`] behind these tags, and eth2 on [`OTHER_WIRE`] behind VLAN 200.
struct Trunk {
    host: Host,
    tags: &'static [Tag],
}

impl Trunk {
    fn new(tags: &'static [Tag]) -> Self {
        let mut host = Host::of_stories();
        let (outer, inner) = (named(tags.first()), named(tags.get(1)));
        let carried = |ifindex| Carried { ifindex, mac: NODE_MAC, pad: 0 };
        let v200 = named(Some(&V200));
        host.node.set_carried(
            [
                (CarriedKey { carrier: WIRE, outer, inner }, carried(ETH0)),
                (CarriedKey { carrier: OTHER_WIRE, outer: v200, inner: 0 }, carried(ETH2)),
            ],
            [
                (ETH0, Carrier { ifindex: WIRE, outer, inner }),
                (ETH2, Carrier { ifindex: OTHER_WIRE, outer: v200, inner: 0 }),
            ],
        );
        Self { host, tags }
    }

    fn wire(&mut self, octets: &[u8]) -> Outcome {
        self.host.receive(Hook::Carrier, WIRE, octets)
    }
}

impl Bench for Trunk {
    fn receive(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Outcome {
        let (wire, tags) = match device {
            ETH0 => (WIRE, self.tags),
            ETH2 => (OTHER_WIRE, &[V200][..]),
            _ => return self.host.receive(hook, device, frame),
        };
        // A frame to a crowd is for none of the devices alone, and a fragment is TC's.
        if hook != Hook::Xdp || frame.len() < 14 || frame[0] & 1 == 1 || is_fragment(frame) {
            return self.host.receive(hook, device, frame);
        }
        let mut outcome = self.host.receive(Hook::Carrier, wire, &tagged(frame, tags));
        if outcome.verdict.is_drop() {
            return outcome;
        }
        let named_tags: Vec<Tag> =
            self.tags.iter().map(|tag| [tag[0], tag[1], tag[2] & 0xf, tag[3]]).collect();
        let leaving = match outcome.device {
            Some(OTHER_WIRE) if wire != OTHER_WIRE => vec![V200],
            Some(WIRE) if wire != WIRE => {
                named_tags.into_iter().filter(|tag| named(Some(tag)) != 0).collect()
            }
            Some(device) if device != wire => Vec::new(),
            _ => tags.to_vec(),
        };
        outcome.octets = untagged(&outcome.octets, &leaving);
        outcome.device = outcome.device.map(|device| match device {
            WIRE => ETH0,
            OTHER_WIRE => ETH2,
            other => other,
        });
        outcome
    }

    fn change(&mut self, change: &dyn Fn(&mut World)) {
        self.host.change(change);
    }

    fn sweep(&mut self) {
        self.host.sweep();
    }

    fn state(&self) -> State {
        self.host.state()
    }

    fn set_state(&mut self, to: &State) {
        self.host.set_state(to);
    }

    fn has_host_sizes(&self) -> bool {
        true
    }

    fn node(&self) -> &Node {
        self.host.node()
    }
}

#[test]
fn every_story_comes_out_behind_tags_as_without() {
    let wires: [&[Tag]; 3] = [&[V100], &[S7, V100], &[PRIORITY]];
    for family in Family::ALL {
        for tags in wires {
            for story in story::all(family) {
                story.tell(&mut Trunk::new(tags), family, Driver::Xdp);
            }
        }
    }
}

/// A SYN to a VM on node2, and what becomes of it there.
fn syn(net: Net) -> (Frame, Frame) {
    let syn = tcp(net.client(0, 61001), net.node(30002)).syn(1);
    let out = between(net.node(61001), net.pod(2), &syn).ttl(63).macs(own(ETH0), neighbour(12));
    (syn, out)
}

#[test]
fn a_frame_sent_back_keeps_its_tags_and_priority() {
    for family in Family::ALL {
        let (syn, out) = syn(Net(family));
        for tags in [&[V100][..], &[S7, V100], &[PRIORITY]] {
            let outcome = Trunk::new(tags).wire(&tagged(&syn.octets(), tags));
            assert_eq!((outcome.verdict, outcome.device), (Verdict::TRANSMIT, Some(WIRE)));
            assert_eq!(outcome.octets, tagged(&out.octets(), tags), "{tags:02x?}");
        }
    }
}

#[test]
fn fragments_pass_with_their_tags_for_tc_to_serve() {
    for family in Family::ALL {
        let net = Net(family);
        let datagram = udp(net.client(0, 61001), net.node(30002)).data(&[7; 3000]);
        for piece in datagram.pieces(77, 1400) {
            let mut trunk = Trunk::new(&[V100]);
            let octets = tagged(&piece.octets(), &[V100]);
            assert!(is_fragment(&piece.octets()));
            let outcome = trunk.wire(&octets);
            assert_eq!((outcome.verdict, outcome.octets), (Verdict::PASS, octets));
        }
    }
}

#[test]
fn frames_of_other_vlans_pass_untouched_and_uncounted() {
    const V101: Tag = [0x81, 0x00, 0x00, 0x65];
    const AS_SERVICE: Tag = [0x88, 0xa8, 0x00, 0x64];
    for family in Family::ALL {
        let (syn, _) = syn(Net(family));
        let others: [&[Tag]; 6] =
            [&[], &[V101], &[AS_SERVICE], &[V100, V100], &[PRIORITY, V100], &[V100, PRIORITY]];
        for tags in others {
            let mut trunk = Trunk::new(&[V100]);
            let octets = tagged(&syn.octets(), tags);
            let outcome = trunk.wire(&octets);
            assert_eq!((outcome.verdict, outcome.octets), (Verdict::PASS, octets), "{tags:02x?}");
            assert_eq!(trunk.node().lookups().gate, 0, "{tags:02x?}");
        }
    }
}

#[test]
fn frames_to_other_mac_addresses_are_a_bridges_to_forward() {
    for family in Family::ALL {
        let (syn, _) = syn(Net(family));
        for tags in [&[V100][..], &[]] {
            let octets = tagged(&syn.clone().macs(ROUTER_MAC, neighbour(99)).octets(), tags);
            let outcome = Trunk::new(tags).wire(&octets);
            assert_eq!((outcome.verdict, outcome.octets), (Verdict::PASS, octets));
        }
    }
}

#[test]
fn a_device_that_carries_others_takes_for_itself_what_its_driver_gives_it() {
    for family in Family::ALL {
        let (syn, out) = syn(Net(family));
        let mut trunk = Trunk::new(&[V100]);
        let own = Carried { ifindex: ETH0, mac: NODE_MAC, pad: 0 };
        trunk.host.node.set_carried([(CarriedKey { carrier: ETH0, outer: 0, inner: 0 }, own)], []);
        let octets = syn.macs(ROUTER_MAC, neighbour(98)).octets();
        let outcome = trunk.host.receive(Hook::Carrier, ETH0, &octets);
        assert_eq!((outcome.verdict, outcome.octets), (Verdict::TRANSMIT, out.octets()));
    }
}

#[test]
fn frames_cut_within_their_tags_pass_untouched() {
    for family in Family::ALL {
        let (syn, _) = syn(Net(family));
        for tags in [&[V100][..], &[S7, V100]] {
            let whole = tagged(&syn.octets(), tags);
            for length in 0..whole.len().min(60) {
                let octets = &whole[..length];
                let outcome = Trunk::new(tags).wire(octets);
                let why = outcome.verdict.reason();
                assert!(!outcome.verdict.is_drop() || why == Reason::MALFORMED, "{length} octets: {why:?}");
                assert!(outcome.verdict.is_drop() || outcome.octets == octets, "{length} octets");
                assert_eq!(outcome.device, None, "{length} octets");
            }
        }
    }
}
