//! What the control plane takes for one endpoint of many. How long the agent takes for all at once is for
//! `cargo xtask bench control`.

use std::time::{Duration, Instant};

use serde_json::json;
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::object::Kind;
use vmlb_agent::serving::Serving;
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::tables::{Capacity, Tables};
use vmlb_agent::watch::{Event, document};

/// What a change takes.
#[derive(Debug)]
pub struct Figures {
    /// A sync after one endpoint of one Service has changed, with taking in the event; the median of several.
    pub change: Duration,
    /// Map entries that such a change writes, at most.
    pub written: usize,
    /// Entries that a new agent writes, which finds everything in place.
    pub rewritten: usize,
}

fn event(object: &serde_json::Value) -> impl Iterator<Item = Event> {
    let contents = document::read("", object.to_string().as_bytes());
    contents.objects.into_iter().map(|object| Event::Apply { source: "".into(), object })
}

fn slice(service: usize, endpoints: usize, unready: Option<usize>) -> serde_json::Value {
    let address = |place: usize| {
        let number = service * endpoints + place;
        format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255)
    };
    let endpoints: Vec<_> = (0..endpoints)
        .map(|place| {
            json!({
                "addresses": [address(place)], "nodeName": format!("n{}", place % 3),
                "conditions": {"ready": unready != Some(place)},
                "targetRef": {"kind": "Pod", "name": format!("p{service}-{place}"), "uid": format!("6f1c0000-0000-4000-8000-{service:08}{place:04}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("s{service}-1"), "namespace": "a", "labels": {"kubernetes.io/service-name": format!("s{service}")}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

/// Measures so many Services of so many endpoints.
pub fn run(services: usize, endpoints: usize) -> Figures {
    let mut events: Vec<Event> = Vec::new();
    for number in 0..services {
        events.extend(event(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}"), "namespace": "a"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000 + number}]},
        })));
        events.extend(event(&slice(number, endpoints, None)));
    }
    events.extend(Kind::ALL.map(Event::Listed));
    let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
    let facts = NodeFacts { addresses: vec![address], ..NodeFacts::default() };
    let count = u32::try_from(services * endpoints + 2).unwrap_or(u32::MAX);
    let capacity = Capacity {
        services: count,
        slots: 1 << 23,
        backends: count,
        frontends: count,
        pods: count,
        targets: count,
        eligible: count,
        ranges: count,
        tags: 1 << 16,
        nodes: 64,
    };
    let mut tables = Memory::new(capacity);
    let begin = || {
        let mut sync = Sync::new("n0", Serving::default());
        sync.facts(facts.clone());
        for event in events.clone() {
            sync.apply(event);
        }
        sync
    };
    let mut sync = begin();
    let report = sync.sync(&mut tables, Instant::now());
    assert!(report.error.is_none() && report.warnings.is_empty(), "{report:?}");
    let (mut changes, mut written) = (Vec::new(), 0);
    for round in 0..41 {
        let service = (round * 97) % services;
        let unready = (round % 2 == 0).then_some(round % endpoints);
        let events: Vec<Event> = event(&slice(service, endpoints, unready)).collect();
        let started = Instant::now();
        for event in events {
            sync.apply(event);
        }
        let report = sync.sync(&mut tables, Instant::now());
        changes.push(started.elapsed());
        written = written.max(report.written);
        std::thread::sleep(Duration::from_millis(1));
    }
    changes.sort_unstable();
    let now = Instant::now() + Duration::from_secs(1);
    for number in 0..services {
        event(&slice(number, endpoints, None)).for_each(|event| sync.apply(event));
    }
    sync.sync(&mut tables, now);
    assert!(tables.read().is_ok_and(|records| !records.is_empty()));
    let mut next = begin();
    let report = next.sync(&mut tables, now);
    Figures { change: changes[changes.len() / 2], written, rewritten: report.written }
}
