//! What the control plane tells health and metrics.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::Sync;
use crate::facts::{NodeAddress, NodeFacts};
use crate::object::{Kind, ObjectRef};
use crate::serving::Serving;
use crate::tables::Capacity;
use crate::tables::memory::Memory;
use crate::watch::{Event, document};

fn events(object: &Value) -> Vec<Event> {
    let contents = document::read("", object.to_string().as_bytes());
    contents.objects.into_iter().map(|object| Event::Apply { source: "".into(), object }).collect()
}

fn tables() -> Memory {
    Memory::new(Capacity {
        services: 16,
        slots: 1 << 14,
        backends: 16,
        frontends: 16,
        pods: 16,
        targets: 16,
        eligible: 16,
        ranges: 16,
        tags: 256,
        nodes: 64,
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]},
    })
}

fn slice(address: &str, triggered: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
        },
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [address], "nodeName": "n1"}],
    })
}

fn begun(objects: &[Value]) -> Sync {
    let mut sync = Sync::new("n1", Serving::default());
    let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
    sync.facts(NodeFacts { addresses: vec![address], ..NodeFacts::default() });
    for event in objects.iter().flat_map(events).chain(Kind::ALL.map(Event::Listed)) {
        sync.apply(event);
    }
    sync
}

fn datagrams(ready: &[bool]) -> [Value; 2] {
    let mut service = service();
    service["spec"]["ports"][0]["protocol"] = "UDP".into();
    let mut slice = slice("10.0.0.1", "");
    slice["ports"][0]["protocol"] = "UDP".into();
    let endpoints = ready.iter().enumerate().map(|(place, ready)| {
        json!({"addresses": [format!("10.0.0.{}", place + 1)], "conditions": {"ready": ready}})
    });
    slice["endpoints"] = endpoints.collect();
    [service, slice]
}

#[test]
fn a_change_of_who_serves_datagrams_asks_for_an_ageing_pass_and_nothing_else_does() {
    let mut tables = tables();
    let mut sync = begun(&datagrams(&[true, false]));
    let now = Instant::now();
    let mut then = |ready: &[bool]| {
        datagrams(ready).iter().flat_map(events).for_each(|event| sync.apply(event));
        let report = sync.sync(&mut tables, now);
        assert!(report.error.is_none(), "{report:?}");
        report.moves_datagrams
    };
    assert!(then(&[true, false]));
    assert!(!then(&[true, false]));
    assert!(then(&[false, true]));
    let connections = |address| [service(), slice(address, "")];
    let (mut tables, mut sync) = (self::tables(), begun(&connections("10.0.0.1")));
    for address in ["10.0.0.1", "10.0.0.2"] {
        connections(address).iter().flat_map(events).for_each(|event| sync.apply(event));
        assert!(!sync.sync(&mut tables, now).moves_datagrams);
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn a_change_of_endpoints_tells_when_it_was_called_for_once_and_not_at_the_start() {
    let mut tables = tables();
    let mut sync = begun(&[service(), slice("10.0.0.1", "1970-01-01T00:00:07Z")]);
    let now = Instant::now();
    assert_eq!(sync.sync(&mut tables, now).triggered, []);
    let changed = slice("10.0.0.2", "1970-01-01T00:01:00.5Z");
    events(&changed).into_iter().for_each(|event| sync.apply(event));
    // A failed write brings nothing into force.
    tables.fail_after(Some(0));
    let report = sync.sync(&mut tables, now);
    assert!(report.error.is_some() && report.triggered.is_empty(), "{report:?}");
    tables.fail_after(None);
    assert_eq!(sync.sync(&mut tables, now).triggered, [at(60) + Duration::from_millis(500)]);
    // The same object again, as after a relist.
    events(&changed).into_iter().for_each(|event| sync.apply(event));
    assert_eq!(sync.sync(&mut tables, now).triggered, []);
    for garbled in ["", "yesterday", "9999999999999-01-01T00:00:00Z"] {
        events(&slice("10.0.0.1", garbled)).into_iter().for_each(|event| sync.apply(event));
        events(&slice("10.0.0.2", garbled)).into_iter().for_each(|event| sync.apply(event));
        assert_eq!(sync.sync(&mut tables, now).triggered, []);
    }
}

#[test]
fn a_node_is_eligible_until_it_leaves_or_is_gone_and_that_writes_nothing() {
    let node = |taints: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": taints}});
    let mut tables = tables();
    let mut sync = begun(&[service(), slice("10.0.0.1", "")]);
    let now = Instant::now();
    sync.sync(&mut tables, now);
    // With manifests there may be no Node object at all.
    assert!(sync.is_node_eligible());
    let leaving = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    for (taints, eligible) in [(json!([]), true), (leaving, false), (json!([]), true)] {
        events(&node(taints)).into_iter().for_each(|event| sync.apply(event));
        assert_eq!(sync.sync(&mut tables, now).written, 0);
        assert_eq!(sync.is_node_eligible(), eligible);
    }
    sync.apply(Event::Delete(ObjectRef::new(Kind::Node, "", "n1")));
    sync.sync(&mut tables, now);
    assert!(!sync.is_node_eligible());
}
