//! Who gets how many new flows: from objects to slots by the control plane, and from flows to slots by the datapath's hash
//! and by dice.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::object::Kind;
use vmlb_agent::plan::text_of;
use vmlb_agent::serving::Serving;
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::tables::{Record, Tables};
use vmlb_agent::watch::{Event, document};
use vmlb_common::family::Address4;
use vmlb_common::flow::selection_hash;
use vmlb_common::packet::Transport;
use vmlb_common::wire::{Protocol, TcpFlags};
use vmlb_tests::packets::random::Random;

const FLOWS: usize = 1_000_000;

/// Numbers of backends, and the weights that they have in turn.
const CASES: [(usize, &[u32]); 9] = [
    (3, &[100]),
    (3, &[100, 50, 25]),
    (3, &[100, 100, 1]),
    (7, &[100]),
    (7, &[10, 20, 30, 40, 50, 60, 70]),
    (7, &[100, 0]),
    (100, &[100]),
    (100, &[100, 50]),
    (100, &[100, 99, 98, 7]),
];

fn weights(count: usize, cycle: &[u32]) -> Vec<u32> {
    cycle.iter().copied().cycle().take(count).collect()
}

/// A Service with so many VMs of these weights.
fn objects(weights: &[u32], algorithm: &str) -> Vec<Value> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "a", "annotations": {"vmlb.io/algorithm": algorithm}},
        "spec": {"type": "NodePort", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "nodePort": 30080}]},
    });
    let address = |place: usize| format!("10.0.{}.{}", place / 200, place % 200 + 1);
    let pods = weights.iter().enumerate().map(|(place, weight)| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("p{place}"), "namespace": "a", "uid": format!("pod-{place}"),
                "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": vmi(place)},
                "annotations": {"vmlb.io/weight": weight.to_string()},
            },
            "spec": {"nodeName": format!("n{}", place % 3)},
            "status": {"phase": "Running", "podIPs": [{"ip": address(place)}]},
        })
    });
    let endpoints: Vec<Value> = (0..weights.len())
        .map(|place| {
            json!({
                "addresses": [address(place)], "nodeName": format!("n{}", place % 3),
                "targetRef": {"kind": "Pod", "name": format!("p{place}"), "uid": format!("pod-{place}")},
            })
        })
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-a", "namespace": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080}], "endpoints": endpoints,
    });
    pods.chain([service, slice]).collect()
}

fn vmi(place: usize) -> String {
    format!("6f1c0000-0000-4000-8000-{place:012}")
}

/// Whose each slot is on a node that was told of the objects in this order: the VM's place among the weights.
fn slots(node: &str, objects: &[Value]) -> Vec<usize> {
    let mut sync = Sync::new(node, Serving::default());
    let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
    sync.facts(NodeFacts { addresses: vec![address], ..NodeFacts::default() });
    for object in objects {
        for object in document::read("", object.to_string().as_bytes()).objects {
            sync.apply(Event::Apply { source: "".into(), object });
        }
    }
    Kind::ALL.into_iter().for_each(|kind| sync.apply(Event::Listed(kind)));
    let mut tables = Memory::default();
    let report = sync.sync(&mut tables, Instant::now());
    assert!(report.error.is_none() && report.warnings.is_empty(), "{report:?}");
    let uids: BTreeMap<u32, String> = tables
        .read()
        .expect("tables in memory")
        .into_iter()
        .filter_map(|record| match record {
            Record::BackendName(id, name) => Some((id, text_of(&name.uid))),
            _ => None,
        })
        .collect();
    // The other is for what comes by the tunnel to other nodes' node ports.
    let served = tables.served().into_iter().filter(|((address, ..), _)| !address.is_unspecified());
    let served: Vec<_> = served.map(|(_, service)| service).collect();
    let [service] = &served[..] else { panic!("one frontend, not {}", served.len()) };
    let place = |uid: &String| uid[24..].parse().expect("a VM of ours");
    service.slots.iter().map(|target| place(&uids[&target.backend])).collect()
}

fn counts(owners: impl IntoIterator<Item = usize>, backends: usize) -> Vec<u64> {
    let mut counts = vec![0; backends];
    owners.into_iter().for_each(|owner| counts[owner] += 1);
    counts
}

#[test]
fn slots_are_within_a_per_cent_of_the_weights() {
    for (count, cycle) in CASES {
        let weights = weights(count, cycle);
        let slots = slots("n0", &objects(&weights, "maglev"));
        let sum: u32 = weights.iter().sum();
        for (got, weight) in counts(slots.iter().copied(), count).into_iter().zip(&weights) {
            let due = slots.len() as f64 * f64::from(*weight) / f64::from(sum);
            let off = (got as f64 - due).abs();
            // Nobody can have a part of a slot.
            assert!(off <= f64::max(1.0, due / 100.0), "{got} slots for {due:.1}: {count} of {cycle:?}");
            assert!(*weight > 0 || got == 0, "slots without a weight: {count} of {cycle:?}");
        }
    }
}

/// Clients as they come: from anywhere, from one large network, and sixteen that take one port after the other. A tuple
/// that came twice would not be another flow: the last kind is counted through.
struct Clients {
    random: Random,
    busy: u32,
}

impl Clients {
    const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), busy: 0 }
    }

    /// The hash of the next flow.
    fn hash(&mut self) -> u32 {
        let any = self.random.short();
        match self.random.below(3) {
            0 => hash(self.random.word(), any),
            1 => hash(0x0a00_0000 | self.random.word() & 0xf_ffff, any),
            _ => {
                self.busy += 1;
                hash(0xc000_0200 | self.busy & 0xf, (self.busy >> 4 & 0xffff) as u16)
            }
        }
    }
}

fn hash(client: u32, source_port: u16) -> u32 {
    let transport = Transport {
        source_port,
        destination_port: 30080,
        protocol: Protocol::TCP,
        flags: TcpFlags::SYN,
        sequence: 0,
        acknowledgment: 0,
        consumed: 0,
        octets: 60,
    };
    selection_hash(&Address4 { octets: client.to_be_bytes() }, &transport)
}

/// Pearson's statistic of `FLOWS` choices against what the slots promise, and the value that chance exceeds once in a
/// thousand times (Wilson and Hilferty's approximation, good to a per cent here).
fn chi_square(slots: &[usize], backends: usize, choices: impl FnMut() -> u32) -> (f64, f64) {
    let size = u32::try_from(slots.len()).expect("a table");
    let chosen = std::iter::repeat_with(choices).take(FLOWS).map(|number| slots[(number % size) as usize]);
    let (got, due) = (counts(chosen, backends), counts(slots.iter().copied(), backends));
    let terms = got.iter().zip(&due).filter(|(_, due)| **due > 0).map(|(got, due)| {
        let due = *due as f64 * FLOWS as f64 / slots.len() as f64;
        (*got as f64 - due).powi(2) / due
    });
    let freedom = due.iter().filter(|due| **due > 0).count() as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    (terms.sum(), freedom * (1.0 - spread + 3.090_232 * spread.sqrt()).powi(3))
}

#[test]
fn a_million_flows_follow_the_slots_by_maglev_and_at_random() {
    for (count, cycle) in CASES {
        let weights = weights(count, cycle);
        for algorithm in ["maglev", "random"] {
            let slots = slots("n0", &objects(&weights, algorithm));
            let (mut clients, mut dice) = (Clients::new(4), Random::new(4));
            let (statistic, limit) = match algorithm {
                "maglev" => chi_square(&slots, count, || clients.hash()),
                _ => chi_square(&slots, count, || dice.word()),
            };
            assert!(
                statistic < limit,
                "{algorithm}, {count} of {cycle:?}: {statistic:.1}, at most {limit:.1}"
            );
        }
    }
}

#[test]
fn a_choice_that_is_not_even_is_found_out() {
    let slots = slots("n0", &objects(&[100; 7], "maglev"));
    let (mut clients, mut random) = (Clients::new(4), Random::new(4));
    // One flow in two hundred goes to the first slot instead of its own.
    let (statistic, limit) = chi_square(&slots, 7, || if random.once_in(200) { 0 } else { clients.hash() });
    assert!(statistic > limit, "{statistic:.1}, at most {limit:.1}");
}

#[test]
fn two_nodes_with_the_same_objects_choose_alike_for_every_flow() {
    for (count, cycle) in CASES {
        let mut objects = objects(&weights(count, cycle), "maglev");
        let here = slots("n0", &objects);
        // Other ids, other places: what counts are the objects.
        objects.reverse();
        let turn = objects.len() / 3;
        objects.rotate_left(turn);
        assert_eq!(here, slots("n1", &objects), "{count} of {cycle:?}");
    }
}
