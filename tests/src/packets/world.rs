//! The world of the stories: one node with its devices, routes, neighbours and services, small enough to know by heart.
//!
//! ```text
//! clients 192.0.2.10…     ── router .1 ── eth0 172.18.0.11 ┐
//! pods 10.244.2.0/24      ── node2  .12 ──┘                ├ node ── pod1 10.244.1.10 (backend 1)
//! pods 10.244.3.0/24      ── node3  .13 (MAC unknown)      │      ── pod2 10.244.1.11 (backend 8)
//! pods 10.244.4.0/24      ── .14 ── eth1 (no XDP transmit) ┤
//! pods 10.244.5.0/24, clients 203.0.113.0/24 ── .15 ── eth2 ┤
//! pods 10.244.9.0/24, clients 198.51.100.0/24 ── other0 (not ours)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use vmlb_common::abi::{
    Backend, BackendFlags, ClientKey, Device, DeviceFlags, EligibleKey, Frontend, FrontendFlags, FrontendKey,
    Gate, Pod, Role, Selection, Service, ServiceFlags, TagKey, Target, TargetKey, Tunnel, TunnelShape, Turn,
    Turned,
};
use vmlb_common::family::{V4, V6};
use vmlb_common::host::{Gateway, HostFamily, Routes, Socket};
use vmlb_common::wire::Protocol;

use super::frame::Shape;
use super::records::{Addressed, Records};
use crate::address::{self, Family};

/// MAC address of the router, and of every other neighbour by its last octet.
pub const ROUTER_MAC: [u8; 6] = neighbour(1);
/// MAC address of the node's `eth0`.
pub const NODE_MAC: [u8; 6] = own(ETH0);
/// Uplink towards clients and most nodes.
pub const ETH0: u32 = 1002;
/// Uplink that XDP cannot send through.
pub const ETH1: u32 = 1003;
/// Uplink that XDP can send through.
pub const ETH2: u32 = 1004;
/// Pod-side device of backend 1.
pub const POD1: u32 = 1005;
/// Pod-side device of backend 8.
pub const POD2: u32 = 1006;
/// A device that vmlb does not manage.
pub const OTHER0: u32 = 1007;

/// All devices, by name.
pub const DEVICES: [(&str, u32); 6] =
    [("eth0", ETH0), ("eth1", ETH1), ("eth2", ETH2), ("pod1", POD1), ("pod2", POD2), ("other0", OTHER0)];

/// Target port of every backend.
pub const TARGET_PORT: u16 = 8080;
/// Port of the service without backends, whose packets are the stack's.
pub const EMPTY: u16 = 30020;
/// Port of the service of policy Local without local backends.
pub const EMPTY_LOCAL: u16 = 30021;
/// Port of a service of policy Local with backend 1.
pub const LOCAL: u16 = 30022;
/// Port of a service that draws between backends 1 and 2.
pub const RANDOM: u16 = 30023;
/// Port of a service with backends 1, 2, 5 and 8.
pub const MANY: u16 = 30024;
/// Port of a service with the same backends, with which clients stay for [`STAY`] seconds.
pub const STICKY: u16 = 30025;
/// Seconds for which clients stay.
pub const STAY: u32 = 100;
/// Port of a service with backend 1, for some clients only: see [`Net::block`].
pub const RANGED: u16 = 30026;
/// The first SNAT port.
pub const FIRST_SNAT_PORT: u16 = 61000;
/// The last SNAT port.
pub const LAST_SNAT_PORT: u16 = 61031;
/// The port from which the agent probes, once [`World::probe`] says so.
pub const PROBE_PORT: u16 = 61040;
/// The port of the tunnel's UDP shape.
pub const TUNNEL_PORT: u16 = 61041;
/// The network of the tunnel's UDP shape.
pub const TUNNEL_NETWORK: u32 = 0x0012_3456;

/// MAC address of a neighbour.
pub const fn neighbour(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// MAC address of a device of the node.
pub const fn own(device: u32) -> [u8; 6] {
    [2, 0, 0, 0, 2, (device % 256) as u8]
}

/// MAC addresses of a device's neighbours.
pub fn neighbours_of(device: u32) -> Vec<[u8; 6]> {
    let routers = Net(Family::V4).routers().into_iter().filter(|(at, ..)| *at == device);
    routers.map(|(.., number)| neighbour(number)).collect()
}

/// MTU of a device of the node.
pub const fn mtu(device: u32) -> u32 {
    if device == ETH2 { SMALL_MTU as u32 } else { 1500 }
}

/// MTU of `eth2`.
pub const SMALL_MTU: u16 = 1400;

/// Addresses of one family. The functions say whose they are.
#[derive(Clone, Copy, Debug)]
pub struct Net(pub Family);

impl Net {
    /// Those of the family of `address`.
    pub const fn of(address: IpAddr) -> Self {
        Self(if address.is_ipv4() { Family::V4 } else { Family::V6 })
    }

    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        match self.0 {
            Family::V4 => v4.parse(),
            Family::V6 => v6.parse(),
        }
        .expect("addresses of the world are well formed")
    }

    /// Client number `index` behind the router.
    pub fn client(self, index: u8, port: u16) -> SocketAddr {
        address::client(index).socket(self.0, port)
    }

    /// A client to whom the route leads through a device that is not ours.
    pub fn foreign_client(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.7", "2001:db8:51::7"), port)
    }

    /// A client behind eth2.
    pub fn second_client(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("203.0.113.7", "2001:db8:71::7"), port)
    }

    /// The node, on eth0.
    pub fn node(self, port: u16) -> SocketAddr {
        address::node(0).socket(self.0, port)
    }

    /// The node, on eth1.
    pub fn node_on_eth1(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("172.19.0.11", "fd00:19::11"), port)
    }

    /// The node, on other0 where that is an overlay's device.
    pub fn node_on_overlay(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("172.21.0.11", "fd00:21::11"), port)
    }

    /// The node, on eth2.
    pub fn node_on_eth2(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("172.20.0.11", "fd00:20::11"), port)
    }

    /// The load-balancer address, a second frontend of every service.
    pub fn vip(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.18.0.1", "2001:db8:f::1"), port)
    }

    /// The pod of a backend.
    pub fn pod(self, backend: u32) -> SocketAddr {
        let (node, index) = HOMES[backend as usize];
        address::pod(node, index).socket(self.0, TARGET_PORT)
    }

    /// The node of a backend.
    pub fn node_of(self, backend: u32) -> IpAddr {
        match HOMES[backend as usize].0 {
            0 => self.node(0).ip(),
            1 => self.routers()[1].1,
            2 => self.unknown_neighbour(),
            3 => self.routers()[2].1,
            4 => self.routers()[3].1,
            index => address::node(index).of(self.0),
        }
    }

    /// A second pod for a VM, number `index` of the node of `backend`.
    pub fn pod_beside(self, backend: u32, index: u8) -> SocketAddr {
        address::pod(HOMES[backend as usize].0, 50 + index).socket(self.0, TARGET_PORT)
    }

    /// The clients that [`RANGED`] admits: numbers 0 to 63, and their prefix length.
    pub fn block(self) -> (IpAddr, u32) {
        match self.0 {
            Family::V4 => (mask(self.client(0, 0).ip(), 26), 26),
            Family::V6 => (mask(self.client(0, 0).ip(), 122), 122),
        }
    }

    /// The router's own address, towards the node.
    pub fn routers_own(self) -> SocketAddr {
        SocketAddr::new(self.routers()[0].1, 0)
    }

    /// An address that no packet on a wire comes from.
    pub fn loopback(self) -> IpAddr {
        self.pick("127.0.0.1", "::1")
    }

    /// Somebody who has nothing to do with vmlb.
    pub fn stranger(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("100.64.0.77", "2001:db8:99::9"), port)
    }

    fn routers(self) -> [(u32, IpAddr, u8); 8] {
        [
            (ETH0, self.pick("172.18.0.1", "fd00:18::1"), 1),
            (ETH0, self.pick("172.18.0.12", "fd00:18::12"), 12),
            (ETH1, self.pick("172.19.0.14", "fd00:19::14"), 14),
            (ETH2, self.pick("172.20.0.15", "fd00:20::15"), 15),
            (POD1, self.pod(1).ip(), 101),
            (POD2, self.pod(8).ip(), 108),
            (POD2, self.pod_beside(8, 0).ip(), 109),
            (OTHER0, self.pick("172.21.0.9", "fd00:21::9"), 9),
        ]
    }

    /// The neighbour whose MAC address is not known.
    pub fn unknown_neighbour(self) -> IpAddr {
        self.pick("172.18.0.13", "fd00:18::13")
    }

    /// Networks, prefix lengths, gateways and devices.
    pub fn routes(self) -> Vec<(IpAddr, u32, Option<IpAddr>, u32)> {
        let [router, node2, fourth, fifth, pod1, pod2, pod3, other] =
            self.routers().map(|(_, address, _)| address);
        let (subnet, host) = match self.0 {
            Family::V4 => (24, 32),
            Family::V6 => (64, 128),
        };
        let pods = |node| address::pod(node, 0).of(self.0);
        let network = |address: IpAddr| mask(address, subnet);
        vec![
            (network(self.client(0, 0).ip()), subnet, Some(router), ETH0),
            (network(router), subnet, None, ETH0),
            (network(fourth), subnet, None, ETH1),
            (network(fifth), subnet, None, ETH2),
            (network(other), subnet, None, OTHER0),
            (pod1, host, None, POD1),
            (pod2, host, None, POD2),
            (pod3, host, None, POD2),
            (network(pods(1)), subnet, Some(node2), ETH0),
            (network(pods(2)), subnet, Some(self.unknown_neighbour()), ETH0),
            (network(pods(3)), subnet, Some(fourth), ETH1),
            (network(pods(4)), subnet, Some(fifth), ETH2),
            (network(pods(8)), subnet, Some(other), OTHER0),
            (self.pod(9).ip(), host, Some(other), OTHER0),
            (network(self.second_client(0).ip()), subnet, Some(fifth), ETH2),
            (network(self.foreign_client(0).ip()), subnet, Some(other), OTHER0),
        ]
    }
}

fn mask(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & (u32::MAX << (32 - bits))).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << (128 - bits))).into()),
    }
}

/// Node and number of each backend's pod in the rig's address plan, by backend id. 1 and 8 are here, each behind a
/// device; 9 is here, behind a device that is not ours; 2 is on node2; 3 behind a neighbour that is not known; 4 behind
/// eth1; 5 behind eth2; 6 behind a foreign device; 7 has no route; 10 is gone.
const HOMES: [(u8, u8); 11] =
    [(0, 200), (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (8, 0), (7, 0), (0, 1), (0, 9), (1, 99)];

/// Backends that are present.
pub const PRESENT: [u32; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

/// Everything a node knows and is surrounded by.
#[derive(Clone, Debug)]
pub struct World {
    /// Its maps.
    pub records: Records,
    /// MAC addresses of neighbours, by device and address.
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Devices on which forwarding is off.
    pub silent: BTreeSet<u32>,
    /// The node's own sockets.
    pub sockets: BTreeSet<Socket>,
}

impl World {
    /// The world as each story begins; `hz` jiffies a second.
    pub fn new(hz: u32) -> Self {
        let mut world = Self {
            records: Records::new(hz),
            neighbours: BTreeMap::new(),
            silent: BTreeSet::new(),
            sockets: BTreeSet::new(),
        };
        world.records.use_snat_ports(FIRST_SNAT_PORT, LAST_SNAT_PORT);
        world.add_devices();
        world.add_services();
        for family in Family::ALL {
            let net = Net(family);
            for (device, address, number) in net.routers() {
                world.neighbours.insert((device, address), neighbour(number));
            }
            world.add_frontends(net);
        }
        add_backends::<V4>(&mut world.records.v4, Net(Family::V4));
        add_backends::<V6>(&mut world.records.v6, Net(Family::V6));
        add_ranges::<V4>(&mut world.records.v4, Net(Family::V4));
        add_ranges::<V6>(&mut world.records.v6, Net(Family::V6));
        world
    }

    fn add_devices(&mut self) {
        let own = |address: fn(Net, u16) -> SocketAddr| Device {
            flags: DeviceFlags::UPLINK,
            snat_v4: V4::from_ip(address(Net(Family::V4), 0).ip()).unwrap_or_default(),
            snat_v6: V6::from_ip(address(Net(Family::V6), 0).ip()).unwrap_or_default(),
        };
        let pod = Device { flags: DeviceFlags::POD_SIDE, ..Device::default() };
        let (eth0, eth1, eth2) = (own(Net::node), own(Net::node_on_eth1), own(Net::node_on_eth2));
        let transmitting =
            |device: Device| Device { flags: device.flags | DeviceFlags::XDP_TRANSMIT, ..device };
        let devices =
            [(ETH0, transmitting(eth0)), (ETH1, eth1), (ETH2, transmitting(eth2)), (POD1, pod), (POD2, pod)];
        self.records.devices = devices.into();
    }

    fn add_services(&mut self) {
        for port in (1..=10).map(|backend| 30000 + backend) {
            self.select(port, 0, &[u32::from(port) - 30000]);
        }
        self.select(EMPTY, 0, &[]);
        self.select(EMPTY_LOCAL, ServiceFlags::DROP_IF_EMPTY, &[]);
        self.select(LOCAL, ServiceFlags::LOCAL, &[1]);
        self.select(RANDOM, ServiceFlags::RANDOM, &[1, 2]);
        self.select(MANY, 0, &[1, 2, 5, 8, 2, 1, 5]);
        self.select(STICKY, 0, &[1, 2, 5, 8, 2, 1, 5]);
        self.stick(STICKY, STAY, &[1, 2, 5, 8]);
        self.select(RANGED, 0, &[1]);
    }

    /// Clients stay for so many seconds with one of these backends of the services of `port`.
    pub fn stick(&mut self, port: u16, seconds: u32, backends: &[u32]) {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let service = service_id(port, protocol);
            self.records.services.entry(service).or_default().affinity = seconds;
            self.records.eligible.retain(|key| key.service != service || key.role != Role::NEW);
            let key = |backend: &u32| EligibleKey {
                service,
                backend: *backend,
                port: TARGET_PORT,
                role: Role::NEW,
            };
            self.records.eligible.extend(backends.iter().map(key));
        }
    }

    /// A backend serves no more for the services of `port`, though it is there, and goes on for others.
    pub fn stop_serving(&mut self, port: u16, backend: u32) {
        let services = [Protocol::TCP, Protocol::UDP].map(|protocol| service_id(port, protocol));
        self.records.eligible.retain(|key| key.backend != backend || !services.contains(&key.service));
    }

    /// Gives the services (TCP and UDP) of `port` these backends, one slot each.
    pub fn select(&mut self, port: u16, flags: u32, backends: &[u32]) {
        let records = &mut self.records;
        let offset = u32::from(port - 30000) * 8;
        for (&backend, index) in backends.iter().zip(offset..) {
            records.slots.insert(index, Target { backend, port: TARGET_PORT, pad: 0 });
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let protocol = protocol.number();
                records.targets.insert(TargetKey { backend, port: TARGET_PORT, protocol, pad: 0 });
            }
            let service = service_id(port, Protocol::UDP);
            records.eligible.insert(EligibleKey { service, backend, port: TARGET_PORT, role: Role::OPEN });
        }
        let size = u32::try_from(backends.len()).expect("a service of the world has at most 8 slots");
        let service = Service { selection: Selection { offset, size }, flags, affinity: 0 };
        for protocol in [Protocol::TCP, Protocol::UDP] {
            records.services.insert(service_id(port, protocol), service);
        }
        records.open(Gate::FRONTEND_PORTS, port);
        records.open(Gate::TARGET_PORTS, TARGET_PORT);
    }

    fn add_frontends(&mut self, net: Net) {
        for port in (30001..=30010).chain([EMPTY, EMPTY_LOCAL, LOCAL, RANDOM, MANY, STICKY, RANGED]) {
            for frontend in [net.node(port), net.vip(port)] {
                match net.0 {
                    Family::V4 => add_frontend::<V4>(&mut self.records.v4, frontend),
                    Family::V6 => add_frontend::<V6>(&mut self.records.v6, frontend),
                }
            }
        }
        let gates = [
            (Gate::FRONTEND_ADDRESSES, net.node(0)),
            (Gate::FRONTEND_ADDRESSES, net.vip(0)),
            (Gate::SNAT_ADDRESSES, net.node(0)),
            (Gate::SNAT_ADDRESSES, net.node_on_eth1(0)),
            (Gate::SNAT_ADDRESSES, net.node_on_eth2(0)),
            (Gate::SNAT_ADDRESSES, net.node_on_overlay(0)),
            (Gate::LOCAL_PODS, net.pod(1)),
            (Gate::LOCAL_PODS, net.pod(8)),
            (Gate::LOCAL_PODS, net.pod(9)),
        ];
        for (gate, address) in gates {
            self.records.open(gate, gate_bit(address.ip()));
        }
    }

    /// A backend is gone: its VM was stopped.
    pub fn remove_backend(&mut self, id: u32) {
        self.records.v4.backends.remove(&Turn::place(id, 0));
        self.records.v6.backends.remove(&Turn::place(id, 0));
        self.records.v4.pods.retain(|_, pod| pod.backend != id);
        self.records.v6.pods.retain(|_, pod| pod.backend != id);
    }

    /// The VM of a backend is in another pod from now on, as another host of the same network may be.
    pub fn rehome(&mut self, id: u32, pod: IpAddr) {
        match pod {
            IpAddr::V4(_) => rehome::<V4>(&mut self.records.v4, id, pod),
            IpAddr::V6(_) => rehome::<V6>(&mut self.records.v6, id, pod),
        }
    }

    /// The VM of a backend may show itself in this pod too, from now on; on the node of `beside`.
    pub fn expect(&mut self, id: u32, pod: SocketAddr, beside: u32) {
        let side = self.turned(id).side() ^ 1;
        self.add_endpoint(id, side, pod, beside);
        self.set_expected(id, true);
    }

    /// The VM of a backend is expected at its other endpoint, or not.
    pub fn set_expected(&mut self, id: u32, yes: bool) {
        let word = self.turned(id).expecting(yes).0;
        self.records.turns.entry(id).or_default().word = word;
    }

    /// The agent turns a backend to its other endpoint.
    pub fn turn(&mut self, id: u32) {
        let word = self.turned(id).turned().0;
        self.records.turns.entry(id).or_default().word = word;
    }

    fn turned(&self, id: u32) -> Turned {
        Turned(self.records.turns.get(&id).map_or(0, |turn| turn.word))
    }

    /// Writes an endpoint of a backend, on the node of `beside`.
    fn add_endpoint(&mut self, id: u32, side: u32, pod: SocketAddr, beside: u32) {
        let node = Net::of(pod.ip()).node_of(beside);
        match pod.ip() {
            IpAddr::V4(_) => add_endpoint::<V4>(&mut self.records.v4, Turn::place(id, side), pod.ip(), node),
            IpAddr::V6(_) => add_endpoint::<V6>(&mut self.records.v6, Turn::place(id, side), pod.ip(), node),
        }
        self.records.open(Gate::LOCAL_PODS, gate_bit(pod.ip()));
    }

    /// The pod at a backend's other endpoint is no more.
    pub fn forget_other(&mut self, id: u32) {
        let side = self.turned(id).side() ^ 1;
        self.set_expected(id, false);
        self.records.v4.backends.remove(&Turn::place(id, side));
        self.records.v6.backends.remove(&Turn::place(id, side));
        self.records.v4.pods.retain(|_, pod| *pod != Pod { backend: id, side });
        self.records.v6.pods.retain(|_, pod| *pod != Pod { backend: id, side });
    }

    /// A backend's pod gets this address, which another has had.
    pub fn give_address(&mut self, id: u32, pod: SocketAddr) {
        let side = self.turned(id).side();
        self.add_endpoint(id, side, pod, id);
    }

    /// The agent probes from [`PROBE_PORT`].
    pub fn probe(&mut self) {
        self.records.settings.probe_port = PROBE_PORT;
        self.records.open(Gate::SNAT_PORTS, PROBE_PORT);
        self.know_nodes();
    }

    /// Nodes have a tunnel of this shape between them, replies come back by it always (1) or once (0), and all services
    /// keep their clients' addresses.
    pub fn tunnel(&mut self, shape: Shape, returns: u8) {
        let shape = if shape == Shape::Ip { TunnelShape::IP } else { TunnelShape::UDP };
        self.records.settings.tunnel = Tunnel { shape, returns, port: TUNNEL_PORT, network: TUNNEL_NETWORK };
        self.records.open(Gate::SNAT_PORTS, TUNNEL_PORT);
        for (&id, service) in &mut self.records.services {
            service.flags |= ServiceFlags::DSR;
            let slots = (service.selection.offset..).take(service.selection.size as usize);
            for target in slots.filter_map(|slot| self.records.slots.get(&slot)) {
                self.records.tags.insert(TagKey { service: id, tag: tag(target.backend) }, *target);
            }
        }
        self.know_nodes();
    }

    fn know_nodes(&mut self) {
        self.records.v4.join_nodes::<V4>(Net(Family::V4));
        self.records.v6.join_nodes::<V6>(Net(Family::V6));
    }

    /// The FIB of this world.
    pub fn fib(&self) -> Routes {
        let mut routes = Routes::default();
        for (_, device) in DEVICES {
            routes.add_device(device, own(device), mtu(device));
        }
        for family in Family::ALL {
            for (network, bits, router, device) in Net(family).routes() {
                routes.add(network, bits, router.map_or(Gateway::OnLink, Gateway::Via), device);
            }
        }
        for (&(device, address), &mac) in &self.neighbours {
            routes.learn(device, address, mac);
        }
        self.silent.iter().for_each(|device| routes.stop_forwarding(*device));
        routes
    }
}

impl<A: vmlb_common::family::Address + Ord> Addressed<A> {
    /// Node addresses, those of backends' nodes, and the node ports of other nodes.
    fn join_nodes<F: HostFamily<Address = A>>(&mut self, net: Net) {
        let address = |ip: IpAddr| F::from_ip(ip).unwrap_or_default();
        for id in PRESENT {
            self.nodes.insert(address(net.node_of(id)));
        }
        for (&place, backend) in &mut self.backends {
            let id = place / 2;
            backend.tag = tag(id);
            if backend.node == F::Address::default() {
                backend.node = address(net.node_of(id));
            }
        }
        let any = F::Address::default();
        let ports =
            self.frontends.iter().map(|(key, frontend)| (FrontendKey { address: any, ..*key }, *frontend));
        self.frontends.extend(ports.collect::<Vec<_>>());
    }
}

/// The tag of a backend.
pub const fn tag(backend: u32) -> u32 {
    0x2a00 + backend
}

/// The service of a frontend's port.
pub fn service_id(port: u16, protocol: Protocol) -> u32 {
    u32::from(port - 30000) + if protocol == Protocol::UDP { 100 } else { 0 }
}

/// The bit of an address in the gate.
pub fn gate_bit(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => Gate::hash(&V4::from_ip(address).unwrap_or_default()),
        IpAddr::V6(_) => Gate::hash(&V6::from_ip(address).unwrap_or_default()),
    }
}

fn add_frontend<F: HostFamily>(tables: &mut Addressed<F::Address>, frontend: SocketAddr) {
    let address = F::from_ip(frontend.ip()).unwrap_or_default();
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let service = service_id(frontend.port(), protocol);
        let flags = if frontend.port() == RANGED { FrontendFlags::RANGES } else { 0 };
        let key = FrontendKey::new(address, frontend.port(), protocol);
        tables.frontends.insert(key, Frontend { service, flags });
    }
}

fn add_ranges<F: HostFamily>(tables: &mut Addressed<F::Address>, net: Net) {
    let (block, length) = net.block();
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let client = F::from_ip(block).unwrap_or_default();
        tables.ranges.insert((ClientKey { service: service_id(RANGED, protocol), client }, length));
    }
}

fn add_backends<F: HostFamily>(tables: &mut Addressed<F::Address>, net: Net) {
    for id in PRESENT {
        let address = F::from_ip(net.pod(id).ip()).unwrap_or_default();
        let here = if [1, 8, 9].contains(&id) { BackendFlags::LOCAL } else { 0 };
        let flags = BackendFlags::PRESENT | here;
        let backend = Backend { flags, revision: 1, address, ..Backend::default() };
        tables.backends.insert(Turn::place(id, 0), backend);
        tables.pods.insert(address, Pod { backend: id, side: 0 });
    }
}

fn add_endpoint<F: HostFamily>(tables: &mut Addressed<F::Address>, place: u32, pod: IpAddr, node: IpAddr) {
    let net = Net::of(pod);
    let address = F::from_ip(pod).unwrap_or_default();
    let here = if node == net.node(0).ip() { BackendFlags::LOCAL } else { 0 };
    let revision = tables.backends.get(&place).map_or(1, |backend| backend.revision + 1);
    let id = place / 2;
    let backend = Backend {
        flags: BackendFlags::PRESENT | here,
        revision,
        address,
        node: F::from_ip(node).unwrap_or_default(),
        tag: tag(id),
    };
    tables.backends.insert(place, backend);
    let whose = Pod { backend: id, side: place % 2 };
    tables.pods.retain(|_, pod| *pod != whose);
    tables.pods.insert(address, whose);
}

fn rehome<F: HostFamily>(tables: &mut Addressed<F::Address>, id: u32, pod: IpAddr) {
    let address = F::from_ip(pod).unwrap_or_default();
    if let Some(backend) = tables.backends.get_mut(&Turn::place(id, 0)) {
        backend.address = address;
        backend.revision += 1;
        tables.pods.retain(|_, pod| pod.backend != id);
        tables.pods.insert(address, Pod { backend: id, side: 0 });
    }
}
