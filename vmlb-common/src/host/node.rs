//! The node: what exists once, whatever the family, and the knobs that a kernel does not offer.

use core::any::Any;
use core::cell::{Cell, RefCell, UnsafeCell};
use core::ffi::c_void;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::vec::Vec;

use crate::abi::{
    Arrival, Bucket, Carried, CarriedKey, Carrier, Device, EligibleKey, Gate, Service, Settings, TagKey,
    Target, TargetKey, Traffic, Tries, Turn,
};
use crate::family::{Address, Address4, Address6, Family, V4, V6};
use crate::kernel::{Carriers, Ends, Kernel, Query, Route, Search, Step};
use crate::live::Live;
use crate::packet::Packet;
use crate::verdict::Reason;
use crate::wire::Protocol;

use super::HostFamily;
use super::fib::Question;
use super::tables::Side;

/// How many entries the tables are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Established flows, per family.
    pub flows: u32,
    /// Half-open flows, per family.
    pub half_flows: u32,
    /// Connections that the stack carries, per family.
    pub inherited: u32,
    /// Backends.
    pub backends: u32,
    /// Services.
    pub services: u32,
    /// Slots of all selection tables together.
    pub slots: u32,
    /// Clients of services with session affinity, per family.
    pub affinity: u32,
    /// Datagrams in fragments, per family.
    pub fragments: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            flows: 65_536,
            half_flows: 65_536,
            inherited: 65_536,
            backends: 16_384,
            services: 16_384,
            slots: 1 << 20,
            affinity: 65_536,
            fragments: 8192,
        }
    }
}

/// A socket of the node's own that takes packets for an address and port from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address it is bound to.
    pub address: IpAddr,
    /// Port it is bound to.
    pub port: u16,
}

/// What packets have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Reads of the gate's bitmaps.
    pub gate: u64,
    /// Lookups, insertions and removals in any other table, `settings` excepted.
    pub tables: u64,
    /// Questions to the FIB.
    pub fib: u64,
    /// Searches for a socket.
    pub sockets: u64,
}

type Fib = Box<dyn Fn(&Question) -> Route>;

/// What another CPU does, and before which lookup from now on.
type Meanwhile = (u64, Box<dyn FnOnce(&Node)>);

/// A node, with all its tables, over collections. One thread's.
pub struct Node {
    capacities: Capacities,
    settings: Option<Settings>,
    gate: Vec<u64>,
    devices: BTreeMap<u32, Device>,
    services: BTreeMap<u32, Service>,
    slots: BTreeMap<u32, Target>,
    targets: BTreeSet<TargetKey>,
    eligible: BTreeSet<EligibleKey>,
    tags: BTreeMap<TagKey, Target>,
    carried: BTreeMap<CarriedKey, Carried>,
    carriers: BTreeMap<u32, Carrier>,
    turns: RefCell<BTreeMap<u32, Rc<UnsafeCell<Turn>>>>,
    arrivals: RefCell<Vec<Arrival>>,
    answers: Cell<Bucket>,
    tries: Cell<[u64; Tries::ENTRIES as usize]>,
    pub(super) v4: Side<Address4>,
    pub(super) v6: Side<Address6>,
    fib: Fib,
    sockets: BTreeSet<Socket>,
    now: Cell<u32>,
    dice: Cell<u32>,
    lookups: Cell<Lookups>,
    meanwhile: RefCell<Option<Meanwhile>>,
    reasons: RefCell<BTreeMap<Reason, u64>>,
    traffic: RefCell<BTreeMap<u32, Traffic>>,
    trace: RefCell<Vec<(Step, u32)>>,
}

impl core::fmt::Debug for Node {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Node").field("v4", &self.v4).field("v6", &self.v6).finish_non_exhaustive()
    }
}

impl Node {
    /// A node that serves nothing yet and has no route.
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            settings: None,
            gate: std::vec![0; Gate::ENTRIES as usize],
            devices: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            targets: BTreeSet::new(),
            eligible: BTreeSet::new(),
            tags: BTreeMap::new(),
            carried: BTreeMap::new(),
            carriers: BTreeMap::new(),
            turns: RefCell::default(),
            arrivals: RefCell::default(),
            answers: Cell::default(),
            tries: Cell::default(),
            v4: Side::new(&capacities),
            v6: Side::new(&capacities),
            fib: Box::new(|_| Route::None),
            sockets: BTreeSet::new(),
            now: Cell::new(0),
            dice: Cell::new(0),
            lookups: Cell::default(),
            meanwhile: RefCell::default(),
            reasons: RefCell::default(),
            traffic: RefCell::default(),
            trace: RefCell::default(),
        }
    }

    /// Entries the tables were made for.
    pub fn capacities(&self) -> &Capacities {
        &self.capacities
    }

    /// Writes the settings.
    pub fn set_settings(&mut self, to: Settings) {
        self.settings = Some(to);
    }

    /// Sets one bit of the gate.
    pub fn open_gate(&mut self, gate: Gate, bit: u16) {
        if let Some(entry) = self.gate.get_mut(gate.entry(bit) as usize) {
            *entry |= Gate::mask(bit);
        }
    }

    /// Writes one entry of the gate; entries past its end are nobody's.
    pub fn set_gate(&mut self, entry: u32, to: u64) {
        if let Some(place) = self.gate.get_mut(entry as usize) {
            *place = to;
        }
    }

    /// Writes or, with `None`, removes a device.
    pub fn set_device(&mut self, ifindex: u32, to: Option<Device>) {
        match to {
            Some(device) => self.devices.insert(ifindex, device),
            None => self.devices.remove(&ifindex),
        };
    }

    /// Writes a service.
    pub fn set_service(&mut self, id: u32, to: Service) {
        self.services.insert(id, to);
    }

    /// Writes one entry of a selection table.
    pub fn set_slot(&mut self, index: u32, to: Target) {
        self.slots.insert(index, to);
    }

    /// Replaces the targets that services select.
    pub fn set_targets(&mut self, to: impl IntoIterator<Item = TargetKey>) {
        self.targets = to.into_iter().collect();
    }

    /// Replaces the targets that services with session affinity may give new flows to.
    pub fn set_eligible(&mut self, to: impl IntoIterator<Item = EligibleKey>) {
        self.eligible = to.into_iter().collect();
    }

    /// Replaces what the tags of other nodes' tunnels mean.
    pub fn set_tags(&mut self, to: impl IntoIterator<Item = (TagKey, Target)>) {
        self.tags = to.into_iter().collect();
    }

    /// Replaces which devices carry which.
    pub fn set_carried(
        &mut self,
        carried: impl IntoIterator<Item = (CarriedKey, Carried)>,
        carriers: impl IntoIterator<Item = (u32, Carrier)>,
    ) {
        self.carried = carried.into_iter().collect();
        self.carriers = carriers.into_iter().collect();
    }

    /// Writes which endpoint of a backend is the present one.
    pub fn set_turn(&mut self, backend: u32, to: Turn) {
        let place = self.turn_of(backend);
        // SAFETY: no packet is under way while the node is borrowed exclusively.
        unsafe { place.write(to) };
    }

    /// Which endpoint of a backend is the present one.
    pub fn turn_now(&self, backend: u32) -> Turn {
        // SAFETY: the cell lives as long as the node; the value is copied whole.
        unsafe { self.turn_of(backend).read() }
    }

    fn turn_of(&self, backend: u32) -> NonNull<Turn> {
        let mut turns = self.turns.borrow_mut();
        let cell = turns.entry(backend).or_default();
        // The address of a cell behind a shared reference, never null.
        NonNull::new(cell.get()).expect("cells have addresses")
    }

    /// What the datapath has told of backends since the last call.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        self.arrivals.take()
    }

    /// Writes the bucket of answers.
    pub fn set_answers(&self, to: Bucket) {
        self.answers.set(to);
    }

    /// The bucket of answers.
    pub fn answers(&self) -> Bucket {
        self.answers.get()
    }

    /// Searches for a SNAT port so far, by [`Tries::index`].
    pub fn tries(&self) -> [u64; Tries::ENTRIES as usize] {
        self.tries.get()
    }

    /// Who answers questions of routing from now on.
    pub fn set_fib(&mut self, fib: impl Fn(&Question) -> Route + 'static) {
        self.fib = Box::new(fib);
    }

    /// Adds a socket of the node's own.
    pub fn add_socket(&mut self, socket: Socket) {
        self.sockets.insert(socket);
    }

    /// Sets the clock, in jiffies.
    pub fn set_clock(&self, jiffies: u32) {
        self.now.set(jiffies);
    }

    /// Sets what the dice show from now on.
    pub fn set_dice(&self, number: u32) {
        self.dice.set(number);
    }

    /// Packets counted under a reason so far.
    pub fn counted(&self, reason: Reason) -> u64 {
        self.reasons.borrow().get(&reason).copied().unwrap_or(0)
    }

    /// A backend's traffic so far.
    pub fn traffic(&self, backend: u32) -> Traffic {
        self.traffic.borrow().get(&backend).copied().unwrap_or_default()
    }

    /// Lookups so far.
    pub fn lookups(&self) -> Lookups {
        self.lookups.get()
    }

    /// The steps told since the last call, with their details.
    pub fn take_trace(&self) -> Vec<(Step, u32)> {
        self.trace.take()
    }

    /// Has another CPU do something right before the table lookup that is the `nth` from now on, the next being the first.
    pub fn meanwhile(&self, nth: u64, change: impl FnOnce(&Self) + 'static) {
        *self.meanwhile.borrow_mut() = Some((nth, Box::new(change)));
    }

    /// Takes back what [`Node::meanwhile`] has announced; whether it was still to come.
    pub fn is_undisturbed(&self) -> bool {
        self.meanwhile.take().is_some()
    }

    pub(super) fn looked_up(&self) {
        self.note(|lookups| lookups.tables += 1);
        let due = match &mut *self.meanwhile.borrow_mut() {
            Some((left, _)) => {
                *left -= 1;
                *left == 0
            }
            None => false,
        };
        let change = if due { self.meanwhile.take() } else { None };
        if let Some((_, change)) = change {
            change(self);
        }
    }

    fn note(&self, change: impl FnOnce(&mut Lookups)) {
        let mut lookups = self.lookups.get();
        change(&mut lookups);
        self.lookups.set(lookups);
    }
}

/// The address of either family, for those who know neither.
fn ip<A: Address>(address: &A) -> IpAddr {
    let any: &dyn Any = address;
    match (any.downcast_ref::<Address4>(), any.downcast_ref::<Address6>()) {
        (Some(v4), _) => V4::to_ip(v4),
        (_, Some(v6)) => V6::to_ip(v6),
        _ => unreachable!("the family trait is sealed"),
    }
}

impl Carriers for Node {
    fn carried(&self, key: &CarriedKey) -> Option<Carried> {
        self.carried.get(key).copied()
    }

    fn carrier(&self, ifindex: u32) -> Option<Carrier> {
        self.carriers.get(&ifindex).copied()
    }
}

impl Kernel for Node {
    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref().filter(|settings| settings.version != 0)
    }

    fn gate(&self, entry: u32) -> u64 {
        self.note(|lookups| lookups.gate += 1);
        self.gate.get(entry as usize).copied().unwrap_or(0)
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.looked_up();
        self.devices.get(&ifindex)
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.looked_up();
        (id < self.capacities.services).then(|| self.services.get(&id).copied().unwrap_or_default())
    }

    fn slot(&self, index: u32) -> Option<Target> {
        self.looked_up();
        (index < self.capacities.slots).then(|| self.slots.get(&index).copied().unwrap_or_default())
    }

    fn is_target(&self, key: &TargetKey) -> bool {
        self.looked_up();
        self.targets.contains(key)
    }

    fn is_eligible(&self, key: &EligibleKey) -> bool {
        self.looked_up();
        self.eligible.contains(key)
    }

    fn tagged(&self, key: &TagKey) -> Option<Target> {
        self.looked_up();
        self.tags.get(key).copied()
    }

    fn turn(&self, backend: u32) -> Option<Live<'_, Turn>> {
        self.looked_up();
        // SAFETY: the cell lives as long as the node.
        (backend < self.capacities.backends).then(|| unsafe { Live::new(self.turn_of(backend)) })
    }

    fn tell(&self, arrival: &Arrival) {
        self.arrivals.borrow_mut().push(*arrival);
    }

    fn clock(&self) -> u64 {
        // As at 250 Hz.
        u64::from(self.now.get()) * 4_000_000
    }

    fn spend(&self, take: impl FnOnce(&mut Bucket) -> bool) -> bool {
        let mut bucket = self.answers.get();
        let taken = take(&mut bucket);
        self.answers.set(bucket);
        taken
    }

    fn count_tries(&self, tries: Tries) {
        let mut counts = self.tries.get();
        if let Some(count) = counts.get_mut(tries.index() as usize) {
            *count += 1;
        }
        self.tries.set(counts);
    }

    fn account(&self, backend: u32, add: impl FnOnce(&mut Traffic)) {
        if backend < self.capacities.backends {
            add(self.traffic.borrow_mut().entry(backend).or_default());
        }
    }

    fn count(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        self.dice.get()
    }

    fn route<F: Family>(&self, _context: *mut c_void, ifindex: u32, query: &Query<'_, F::Address>) -> Route {
        self.note(|lookups| lookups.fib += 1);
        (self.fib)(&Question {
            device: ifindex,
            source: ip(query.source),
            destination: ip(query.destination),
            protocol: query.protocol,
        })
    }

    fn has_socket<F: Family>(
        &self,
        _context: *mut c_void,
        protocol: Protocol,
        ends: &Ends<F::Address>,
    ) -> bool {
        self.note(|lookups| lookups.sockets += 1);
        let (address, port) = (ip(&ends.destination), ends.destination_port);
        self.sockets.contains(&Socket { protocol, address, port })
    }

    fn search<S: Search<Self>>(&self, count: u32, search: &mut S) {
        for number in 0..count {
            if search.step(self, number) {
                return;
            }
        }
    }

    fn trace<P: Packet>(&self, _packet: &P, step: Step, detail: u32) {
        self.trace.borrow_mut().push((step, detail));
    }
}
