//! A small world of objects that changes at random, and what the maps say of it apart from ids and places.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};
use vmlb_agent::desired::Frontend;
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::migration::Moment;
use vmlb_agent::object::{Kind, ObjectRef};
use vmlb_agent::plan::text_of;
use vmlb_agent::serving::{Serving, SourceRanges};
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::tables::{Capacity, Change, InFlows, Record, Tables, address4, address6};
use vmlb_agent::watch::{Event, document};
use vmlb_common::abi::{Arrival, Gate, Service, Target, TargetKey, Turn};
use vmlb_common::wire::Protocol;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A Service appears or changes.
    Service { name: u8, node_port: u8, policy: bool, algorithm: bool, kind: u8, created: u8, clients: u8 },
    /// A slice appears or changes: a family, a Service, endpoints.
    Slice { name: u8, service: u8, v6: bool, endpoints: Vec<(u8, u8)> },
    /// A pod appears or changes.
    Pod { name: u8, vm: u8, finished: bool, node: u8, address: u8, weight: u8 },
    /// KubeVirt says where a VM is, and of a migration to a pod: it has begun, it is over, it has failed.
    Vmi { vm: u8, node: u8, target: u8, word: u8 },
    /// The migration of a pod has failed, or not.
    Job { target: u8, failed: bool },
    /// A VM shows itself where it is expected, if one is; and the agent hears of it, or does not.
    Arrival { number: u8, heard: bool },
    /// Time passes, in steps of 20 s.
    Pass { times: u8 },
    /// A Node appears or changes.
    Node { name: u8, address: u8 },
    /// An object goes.
    Delete { kind: u8, name: u8 },
    /// The node's addresses change.
    Addresses { first: bool, second: bool },
    /// A client has a flow by one of the frontends that are served, and none by the others.
    Flow { frontend: u8 },
    /// What has happened is written.
    Write,
    /// The write after so many changes fails, and so do all until something is written again.
    Fail { after: u8 },
    /// Another agent takes over what is installed.
    Restart,
}

/// Any step.
pub fn step() -> impl Strategy<Value = Step> {
    let service = (0u8..4, 0u8..4, any::<(bool, bool)>(), 0u8..5, 0u8..3, 0u8..12).prop_map(
        |(name, node_port, (policy, algorithm), kind, created, clients)| Step::Service {
            name,
            node_port,
            policy,
            algorithm,
            kind,
            created,
            clients,
        },
    );
    let endpoints = proptest::collection::vec((0u8..6, 0u8..4), 0..5);
    let slice = (0u8..6, 0u8..4, any::<bool>(), endpoints)
        .prop_map(|(name, service, v6, endpoints)| Step::Slice { name, service, v6, endpoints });
    let pod = (0u8..6, 0u8..5, 0u8..8, 0u8..2, 0u8..7, 0u8..8).prop_map(
        |(name, vm, finished, node, address, weight)| Step::Pod {
            name,
            vm,
            finished: finished == 0,
            node,
            address,
            weight,
        },
    );
    prop_oneof![
        4 => service,
        6 => slice,
        6 => pod,
        4 => (0u8..6, 0u8..6).prop_map(|(kind, name)| Step::Delete { kind, name }),
        1 => any::<(bool, bool)>().prop_map(|(first, second)| Step::Addresses { first, second }),
        2 => (0u8..8).prop_map(|frontend| Step::Flow { frontend }),
        6 => Just(Step::Write),
        2 => (0u8..40).prop_map(|after| Step::Fail { after }),
        1 => Just(Step::Restart),
        2 => (0u8..3, 0u8..2, 0u8..6, 0u8..6).prop_map(|(vm, node, target, word)| Step::Vmi { vm, node, target, word }),
        1 => (0u8..6, any::<bool>()).prop_map(|(target, failed)| Step::Job { target, failed }),
        3 => (0u8..4, any::<bool>()).prop_map(|(number, heard)| Step::Arrival { number, heard }),
        1 => (0u8..5).prop_map(|times| Step::Pass { times }),
        1 => (0u8..3, 0u8..3).prop_map(|(name, address)| Step::Node { name, address }),
    ]
}

/// The objects as they are now, and the node's addresses.
#[derive(Clone, Debug, Default)]
pub struct World {
    objects: BTreeMap<ObjectRef, Value>,
    addresses: BTreeSet<IpAddr>,
    /// The time.
    pub now: Moment,
}

/// The kinds that can be deleted, and how their names begin.
const KINDS: [(Kind, &str); 6] = [
    (Kind::Service, "s"),
    (Kind::EndpointSlice, "e"),
    (Kind::Pod, "p"),
    (Kind::Node, "n"),
    (Kind::Vmi, "vm"),
    (Kind::Migration, "m"),
];

impl World {
    /// Takes a step; returns the event it makes, if it makes one.
    pub fn take(&mut self, step: &Step) -> Vec<Event> {
        let object = match step {
            Step::Delete { kind, name } => {
                let (kind, word) = KINDS[usize::from(*kind)];
                let namespace = if kind == Kind::Node { "" } else { "a" };
                return self.delete(&ObjectRef::new(kind, namespace, &format!("{word}{name}")));
            }
            Step::Addresses { first, second } => {
                let known = [(*first, [192, 0, 2, 1]), (*second, [192, 0, 2, 2])];
                self.addresses =
                    known.into_iter().filter(|(on, _)| *on).map(|(_, ip)| IpAddr::from(ip)).collect();
                self.addresses.insert(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]));
                return Vec::new();
            }
            Step::Service { name, node_port, policy, algorithm, kind, created, clients } => {
                let mut object = service(*name, *node_port, [*policy, *algorithm], *kind, *created);
                constrain(&mut object, *clients);
                object
            }
            Step::Slice { name, service, v6, endpoints } => slice(*name, *service, *v6, endpoints),
            Step::Pod { name, vm, finished, node, address, weight } => {
                pod(*name, *vm, *finished, *node, *address, *weight)
            }
            Step::Vmi { vm, node, target, word } => vmi(*vm, *node, *target, *word),
            Step::Job { target, failed } => json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": format!("m{target}"), "namespace": "a", "uid": format!("job-{target}")},
                "spec": {"vmiName": "vm"}, "status": {"phase": if *failed { "Failed" } else { "Running" }},
            }),
            Step::Node { name, address } => json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{name}")},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", 10 + address)}]},
            }),
            Step::Pass { times } => {
                let passed = u64::from(*times) * 20_000_000_000;
                self.now = self.now.at(self.now.monotonic + passed);
                return Vec::new();
            }
            Step::Arrival { .. } | Step::Flow { .. } | Step::Write | Step::Fail { .. } | Step::Restart => {
                return Vec::new();
            }
        };
        let events = events(&object);
        for event in &events {
            if let Event::Apply { object: decoded, .. } = event {
                self.objects.insert(decoded.reference(), object.clone());
            }
        }
        events
    }

    /// Deletes an object.
    pub fn delete(&mut self, object: &ObjectRef) -> Vec<Event> {
        self.objects.remove(object);
        vec![Event::Delete(object.clone())]
    }

    /// Everything as events, in the order given by `turn`.
    pub fn all(&self, turn: usize) -> Vec<Event> {
        let mut all: Vec<Event> = self.objects.values().flat_map(events).collect();
        if !all.is_empty() {
            let turn = turn % all.len();
            all.rotate_left(turn);
            if turn % 2 == 1 {
                all.reverse();
            }
        }
        all.extend(Kind::EVERY.map(Event::Listed));
        all
    }

    /// All pods.
    pub fn pods(&self) -> Vec<ObjectRef> {
        self.objects.keys().filter(|object| object.kind == Kind::Pod).cloned().collect()
    }

    /// A control plane that knows this world and has written nothing.
    pub fn sync(&self, turn: usize) -> Sync {
        let serving = Serving { external_ips: true, source_ranges: SourceRanges::All, ..Serving::default() };
        let mut sync = Sync::new("n0", serving);
        sync.facts(self.facts());
        sync.tick(self.now);
        for event in self.all(turn) {
            sync.apply(event);
        }
        sync
    }

    /// What the network side says of it.
    pub fn facts(&self) -> NodeFacts {
        let known =
            self.addresses.iter().map(|address| NodeAddress { address: *address, ifindex: 2, primary: true });
        NodeFacts { addresses: known.collect(), ..NodeFacts::default() }
    }
}

fn events(object: &Value) -> Vec<Event> {
    let contents = document::read("", object.to_string().as_bytes());
    assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
    contents.objects.into_iter().map(|object| Event::Apply { source: "".into(), object }).collect()
}

fn stamp(created: u8) -> String {
    format!("2026-11-20T10:00:{created:02}Z")
}

fn service(name: u8, node_port: u8, [policy, random]: [bool; 2], kind: u8, created: u8) -> Value {
    let kind = ["NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "ClusterIP"][usize::from(kind)];
    let ingress = if kind == "LoadBalancer" {
        json!([{"ip": format!("203.0.113.{}", node_port % 2)}, {"ip": "2001:db8:5::5"}])
    } else {
        json!([])
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": format!("s{name}"), "namespace": "a", "creationTimestamp": stamp(created),
            "annotations": {"vmlb.io/algorithm": if random { "random" } else { "maglev" }},
        },
        "spec": {
            "type": kind,
            "externalTrafficPolicy": if policy { "Local" } else { "Cluster" },
            "externalIPs": if node_port == 3 { json!(["198.51.100.7"]) } else { json!([]) },
            "ports": [
                {"name": "x", "port": 80, "nodePort": 30000 + i32::from(node_port)},
                {"name": "y", "port": 53, "protocol": "UDP", "nodePort": 30000 + i32::from(node_port)},
            ],
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// What a Service may say of its clients.
fn constrain(service: &mut Value, clients: u8) {
    let spec = &mut service["spec"];
    if clients % 3 == 1 {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10 * u32::from(clients)}});
    }
    spec["loadBalancerSourceRanges"] = match clients / 3 {
        0 => json!([]),
        1 => json!([" 10.0.0.0/8", "10.1.1.1/8"]),
        2 => json!(["10.1.0.0/16", "2001:db8::/32"]),
        _ => json!(["2001:db8::/32", "nowhere"]),
    };
}

fn address(v6: bool, pod: u8) -> String {
    if v6 { format!("fd00::{pod}") } else { format!("10.0.0.{}", 1 + pod) }
}

fn slice(name: u8, service: u8, v6: bool, endpoints: &[(u8, u8)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, condition)| {
            let mut endpoint = json!({
                "addresses": [address(v6, *pod + 1)],
                "nodeName": format!("n{}", pod % 2),
                "conditions": {"ready": *condition < 2, "serving": *condition < 3, "terminating": *condition == 2},
            });
            if *pod < 5 {
                endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("p{pod}"), "uid": format!("uid-{pod}")});
            }
            endpoint
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("e{name}"), "namespace": "a", "labels": {"kubernetes.io/service-name": format!("s{service}")}},
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "x", "port": 8080}, {"name": "y", "port": 5353, "protocol": "UDP"}],
        "endpoints": endpoints,
    })
}

fn vmi(vm: u8, node: u8, target: u8, word: u8) -> Value {
    let stamp = "2026-11-20T10:01:00Z";
    let state = match word {
        0 => json!({}),
        1 => json!({"startTimestamp": stamp}),
        2 => json!({"startTimestamp": stamp, "targetNodeDomainReadyTimestamp": stamp}),
        3 => json!({"startTimestamp": stamp, "completed": true}),
        4 => json!({"completed": true, "failed": true}),
        _ => json!({"startTimestamp": stamp, "abortRequested": true}),
    };
    let mut object = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": format!("vm{vm}"), "namespace": "a", "uid": format!("vmi-{vm}")},
        "status": {"nodeName": format!("n{node}"), "migrationState": state},
    });
    object["status"]["migrationState"]["targetPod"] = format!("p{target}").into();
    object
}

fn pod(name: u8, vm: u8, finished: bool, node: u8, place: u8, weight: u8) -> Value {
    // Half of them say nothing, one is wrong.
    let weights =
        [json!({"vmlb.io/weight": "0"}), json!({"vmlb.io/weight": "50"}), json!({"vmlb.io/weight": "x"})];
    let annotations = weights.get(usize::from(weight)).cloned().unwrap_or(json!({}));
    let labels = if vm < 3 {
        json!({"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": format!("vmi-{vm}"), "vm.kubevirt.io/name": format!("vm{vm}"), "kubevirt.io/migrationJobUID": format!("job-{name}")})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{name}"), "namespace": "a", "uid": format!("uid-{name}"), "labels": labels, "annotations": annotations, "creationTimestamp": stamp(name)},
        "spec": {"nodeName": format!("n{node}")},
        "status": {
            "phase": if finished { "Succeeded" } else { "Running" },
            "podIPs": [{"ip": address(false, place)}, {"ip": address(true, place)}],
        },
    })
}

/// Tables that look at themselves after every single change.
pub struct Watched(pub Memory);

impl Watched {
    /// Empty tables, with room for everything a walk can make.
    pub fn new() -> Self {
        Self(Memory::new(Capacity {
            services: 256,
            slots: 1 << 16,
            backends: 256,
            frontends: 256,
            pods: 256,
            targets: 512,
            eligible: 512,
            ranges: 256,
            tags: 512,
            nodes: 64,
        }))
    }

    /// A flow by one of the frontends, to whatever its first slot holds.
    pub fn open(&mut self, number: u8) {
        let served = self.0.served().into_iter();
        let served: Vec<_> = served
            .filter(|((address, ..), met)| !address.is_unspecified() && !met.slots.is_empty())
            .collect();
        let mut flows = InFlows::default();
        if !served.is_empty() {
            let ((address, port, protocol), met) = &served[usize::from(number) % served.len()];
            let Target { backend, port: target, .. } = met.slots[0];
            flows.backends.insert(backend);
            flows.targets.insert(TargetKey { backend, port: target, protocol: *protocol, pad: 0 });
            let protocol = Protocol::new(*protocol);
            flows.frontends.insert(Frontend { address: *address, port: *port, protocol });
        }
        self.0.set_flows(flows);
    }

    /// The datapath turns one of the backends that are expected elsewhere.
    pub fn arrive(&mut self, number: u8, at: u64) -> Option<Arrival> {
        let expected: Vec<u32> = (1..32).filter(|id| self.0.turned(*id).is_expected()).collect();
        let id = expected.get(usize::from(number) % expected.len().max(1))?;
        self.0.arrive(*id, at)
    }

    /// Endpoints that packets may go by at this moment are not written, and none is written as it is.
    fn keep_present(&self, change: &Change) {
        let (place, flags, address): (u32, u32, IpAddr) = match change {
            Change::Put(Record::Backend4(place, end)) => (*place, end.flags, end.address.octets.into()),
            Change::Put(Record::Backend6(place, end)) => (*place, end.flags, end.address.octets.into()),
            Change::Put(Record::Pod4(key, pod)) => {
                return assert_ne!(self.0.pod(key.octets.into()), Some(*pod), "{change:?} changes nothing");
            }
            Change::Put(Record::Pod6(key, pod)) => {
                return assert_ne!(self.0.pod(key.octets.into()), Some(*pod), "{change:?} changes nothing");
            }
            _ => return,
        };
        // What goes, goes by its flags, which are written first.
        if flags == 0 {
            return;
        }
        let (turned, there) = (self.0.turned(place / 2), self.0.endpoints(place / 2, place % 2));
        let is_empty = there.iter().all(|(known, _)| known.is_ipv4() != address.is_ipv4());
        assert!(turned.side() != place % 2 || is_empty, "{change:?} is written where packets go");
        assert!(!turned.is_expected(), "{change:?} is written where the VM may show itself");
    }

    /// A flow that is there and that the gate keeps out.
    fn shut_out(&self) -> Option<String> {
        let flows = self.0.in_flows().unwrap_or_default();
        let hash = |address: IpAddr| match address {
            IpAddr::V4(address) => Gate::hash(&address4(address)),
            IpAddr::V6(address) => Gate::hash(&address6(address)),
        };
        let passes = |frontend: &&Frontend| {
            self.0.gate(Gate::FRONTEND_PORTS, frontend.port)
                && self.0.gate(Gate::FRONTEND_ADDRESSES, hash(frontend.address))
        };
        let frontend = flows.frontends.iter().find(|frontend| !passes(frontend));
        let target = flows.targets.iter().find(|target| !self.0.gate(Gate::TARGET_PORTS, target.port));
        frontend.map(|frontend| format!("{frontend:?}")).or(target.map(|target| format!("{target:?}")))
    }
}

impl Tables for Watched {
    fn capacity(&self) -> Capacity {
        self.0.capacity()
    }

    fn read(&self) -> anyhow::Result<Vec<Record>> {
        self.0.read()
    }

    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let before = self.0.clone();
        let mut after = self.0.clone();
        after.fail_after(None);
        after.write(changes)?;
        let (was, will_be) = (before.served(), after.served());
        for change in changes {
            self.keep_present(change);
            let had_fault = self.0.fault().is_some();
            self.0.write(std::slice::from_ref(change))?;
            let fault = self.0.fault().filter(|_| !had_fault);
            assert!(fault.is_none(), "after {change:?}: {}", fault.unwrap_or_default());
            let shut_out = self.shut_out();
            assert!(shut_out.is_none(), "after {change:?} the gate is shut for a flow of {shut_out:?}");
            let shows = matches!(
                change,
                Change::Put(
                    Record::Slots(..) | Record::Service(..) | Record::Frontend4(..) | Record::Frontend6(..)
                )
            );
            for (frontend, met) in if shows { self.0.served() } else { BTreeMap::new() } {
                // Either the old or the new state of a service, never a mixture, and the right service.
                let is_whole = met == before.service(met.id) || met == after.service(met.id);
                let is_right = [was.get(&frontend), will_be.get(&frontend)];
                let is_right = is_right.into_iter().flatten().any(|service| service.name == met.name);
                assert!(is_whole && is_right, "after {change:?} a packet to {frontend:?} meets a mixture");
            }
        }
        Ok(())
    }

    fn turn(&self, id: u32) -> anyhow::Result<Turn> {
        self.0.turn(id)
    }

    fn in_flows(&self) -> anyhow::Result<InFlows> {
        self.0.in_flows()
    }
}

/// What the maps say, with names for ids and without revisions and offsets; sorted.
pub fn meaning(tables: &Memory) -> BTreeSet<String> {
    let records = tables.read().unwrap_or_default();
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut services: BTreeMap<u32, (String, Service)> = BTreeMap::new();
    let mut slots: BTreeMap<u32, Vec<Target>> = BTreeMap::new();
    for record in &records {
        match record {
            Record::BackendName(id, name) => drop(names.insert(*id, text_of(&name.uid))),
            Record::ServiceName(id, name) => {
                services.entry(*id).or_default().0 =
                    format!("{}:{}/{}", text_of(&name.name), name.port, name.protocol)
            }
            Record::Service(id, service) => services.entry(*id).or_default().1 = *service,
            Record::Slots(offset, targets) => drop(slots.insert(*offset, targets.slots())),
            _ => {}
        }
    }
    let name = |id: &u32| names.get(id).cloned().unwrap_or_else(|| format!("nameless {id}"));
    let served = |id: &u32| {
        let (text, service) = services.get(id).cloned().unwrap_or_default();
        let held = slots.get(&service.selection.offset).filter(|_| service.selection.size > 0);
        let held: Vec<String> = held
            .into_iter()
            .flatten()
            .map(|target| format!("{}:{}", name(&target.backend), target.port))
            .collect();
        let (flags, affinity) = (service.flags, service.affinity);
        format!("{text} flags {flags} affinity {affinity} of {} {held:?}", service.selection.size)
    };
    let mut said = BTreeSet::new();
    for record in &records {
        said.insert(match record {
            Record::Frontend4(key, value) => {
                format!("frontend {key:?} {} {}", value.flags, served(&value.service))
            }
            Record::Frontend6(key, value) => {
                format!("frontend {key:?} {} {}", value.flags, served(&value.service))
            }
            Record::Backend4(id, backend) => {
                format!("backend {} {:?} {}", name(&(id / 2)), backend.address, backend.flags)
            }
            Record::Backend6(id, backend) => {
                format!("backend {} {:?} {}", name(&(id / 2)), backend.address, backend.flags)
            }
            Record::Tag(key, target) => {
                format!(
                    "tag {} {:x} {}:{}",
                    served(&key.service),
                    key.tag,
                    name(&target.backend),
                    target.port
                )
            }
            Record::Node4(address) => format!("node {address:?}"),
            Record::Node6(address) => format!("node {address:?}"),
            Record::Pod4(address, pod) => format!("pod {address:?} {}", name(&pod.backend)),
            Record::Pod6(address, pod) => format!("pod {address:?} {}", name(&pod.backend)),
            Record::Target(key, count) => {
                format!("target {}:{}/{} {count}", name(&key.backend), key.port, key.protocol)
            }
            Record::Eligible(key) => {
                let (service, backend) = (served(&key.service), name(&key.backend));
                format!("eligible {service} {backend}:{} {}", key.port, key.role)
            }
            Record::Range4(key) => {
                let (service, length) = (served(&key.block.service), key.length);
                format!("range {service} {:?}/{length}", key.block.client)
            }
            Record::Range6(key) => {
                let (service, length) = (served(&key.block.service), key.length);
                format!("range {service} {:?}/{length}", key.block.client)
            }
            Record::Gate(entry, word) => format!("gate {entry} {word:x}"),
            Record::Device(index, device) => format!("device {index} {device:?}"),
            Record::Service(id, _) => format!("service {}", served(id)),
            Record::Turn(..) | Record::Slots(..) | Record::ServiceName(..) | Record::BackendName(..) => {
                continue;
            }
        });
    }
    said
}
