//! The tables that exist once per family.

use core::cell::{RefCell, UnsafeCell};
use core::ptr::NonNull;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::abi::{
    Affinity, Backend, BackendFlags, ClientKey, Device, Flow, FlowKey, Fragment, FragmentKey, Frontend,
    FrontendKey, Hop, Inherited, Pod, Reply, ReplyKey, Turn, WireKey,
};
use crate::datapath::sweep;
use crate::family::{Address, V4, V6};
use crate::kernel::{Datagram, Parcel, Refused, Stage, Tables};
use crate::live::{Live, Slot, Word};

use super::HostFamily;
use super::clients::Clients;
use super::node::{Capacities, Node};
use super::table::{Table, WhenFull};

/// The tables of one family.
#[derive(Debug)]
pub struct Side<A> {
    pub(super) frontends: BTreeMap<FrontendKey<A>, Frontend>,
    /// By [`Turn::place`].
    pub(super) backends: BTreeMap<u32, Backend<A>>,
    nodes: BTreeSet<A>,
    pub(super) pods: BTreeMap<A, Pod>,
    hops: RefCell<BTreeMap<u32, Rc<UnsafeCell<Hop>>>>,
    tunnel_hops: RefCell<BTreeMap<u32, Rc<UnsafeCell<Hop>>>>,
    parcel: RefCell<Parcel<A>>,
    parcel_hop: UnsafeCell<Hop>,
    established: Pair<A>,
    half: Pair<A>,
    inherited: Table<WireKey<A>, Inherited>,
    fragments: Table<FragmentKey<A>, Fragment<A>>,
    datagram: RefCell<Datagram<A>>,
    pub(super) clients: Clients<A>,
}

#[derive(Debug)]
struct Pair<A> {
    flows: Table<FlowKey<A>, Flow<A>>,
    replies: Table<ReplyKey<A>, Reply<A>>,
}

impl<A: Address + Ord> Pair<A> {
    fn new(capacity: u32, when_full: WhenFull) -> Self {
        let capacity = capacity as usize;
        Self { flows: Table::new(capacity, when_full), replies: Table::new(capacity, when_full) }
    }
}

impl<A: Address + Ord> Side<A> {
    pub(super) fn new(capacities: &Capacities) -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            nodes: BTreeSet::new(),
            pods: BTreeMap::new(),
            hops: RefCell::default(),
            tunnel_hops: RefCell::default(),
            parcel: RefCell::new(Parcel::default()),
            parcel_hop: UnsafeCell::new(Hop::default()),
            established: Pair::new(capacities.flows, WhenFull::Refuse),
            half: Pair::new(capacities.half_flows, WhenFull::Evict),
            inherited: Table::new(capacities.inherited as usize, WhenFull::Refuse),
            fragments: Table::new(capacities.fragments as usize, WhenFull::Evict),
            datagram: RefCell::default(),
            clients: Clients::new(capacities),
        }
    }

    fn pair(&self, stage: Stage) -> &Pair<A> {
        match stage {
            Stage::Established => &self.established,
            Stage::Half => &self.half,
        }
    }

    fn hop(&self, id: u32) -> NonNull<Hop> {
        place(&self.hops, id)
    }

    fn tunnel_hop(&self, id: u32) -> NonNull<Hop> {
        place(&self.tunnel_hops, id)
    }
}

fn place(hops: &RefCell<BTreeMap<u32, Rc<UnsafeCell<Hop>>>>, id: u32) -> NonNull<Hop> {
    let mut hops = hops.borrow_mut();
    let cell = hops.entry(id).or_default();
    // The address of a cell behind a shared reference, never null.
    NonNull::new(cell.get()).expect("cells have addresses")
}

/// Both tables of a stage, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs<A> {
    /// Client sides.
    pub flows: BTreeMap<FlowKey<A>, Flow<A>>,
    /// Backend sides.
    pub replies: BTreeMap<ReplyKey<A>, Reply<A>>,
}

impl<A: Ord> Default for Pairs<A> {
    fn default() -> Self {
        Self { flows: BTreeMap::new(), replies: BTreeMap::new() }
    }
}

impl Node {
    /// Writes or, with `None`, removes a frontend.
    pub fn set_frontend<F: HostFamily>(&mut self, key: FrontendKey<F::Address>, to: Option<Frontend>) {
        replace(&mut F::side_mut(self).frontends, key, to);
    }

    /// Writes or removes a backend's first endpoint, which is the present one until the backend turns.
    pub fn set_backend<F: HostFamily>(&mut self, id: u32, to: Option<Backend<F::Address>>) {
        self.set_endpoint::<F>(id, 0, to);
    }

    /// Writes or removes one of a backend's endpoints.
    pub fn set_endpoint<F: HostFamily>(&mut self, id: u32, side: u32, to: Option<Backend<F::Address>>) {
        replace(&mut F::side_mut(self).backends, Turn::place(id, side), to);
    }

    /// Makes an address that of a node of the cluster, or not.
    pub fn set_node<F: HostFamily>(&mut self, address: F::Address, is_one: bool) {
        let nodes = &mut F::side_mut(self).nodes;
        let _changed = if is_one { nodes.insert(address) } else { nodes.remove(&address) };
    }

    /// Writes or removes a pod's address.
    pub fn set_pod<F: HostFamily>(&mut self, address: F::Address, to: Option<Pod>) {
        replace(&mut F::side_mut(self).pods, address, to);
    }

    /// Writes the cached next hop to a backend.
    pub fn set_hop<F: HostFamily>(&mut self, id: u32, to: Hop) {
        let place = F::side(self).hop(id);
        // SAFETY: no packet is under way while the node is borrowed exclusively.
        unsafe { place.write(to) };
    }

    /// The cached next hop to a backend.
    pub fn hop<F: HostFamily>(&self, id: u32) -> Hop {
        // SAFETY: the cell lives as long as the node; the value is copied whole.
        unsafe { F::side(self).hop(id).read() }
    }

    /// Writes the cached next hop of the tunnel to a backend's node.
    pub fn set_hop_to_node<F: HostFamily>(&mut self, id: u32, to: Hop) {
        let place = F::side(self).tunnel_hop(id);
        // SAFETY: no packet is under way while the node is borrowed exclusively.
        unsafe { place.write(to) };
    }

    /// The cached next hop of the tunnel to a backend's node.
    pub fn hop_to_node<F: HostFamily>(&self, id: u32) -> Hop {
        // SAFETY: the cell lives as long as the node; the value is copied whole.
        unsafe { F::side(self).tunnel_hop(id).read() }
    }

    /// Writes a flow's client side alone.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn put_flow<F: HostFamily>(
        &mut self,
        stage: Stage,
        key: &FlowKey<F::Address>,
        flow: &Flow<F::Address>,
    ) -> Result<(), Refused> {
        F::side(self).pair(stage).flows.insert(key, flow)
    }

    /// Writes a flow's backend side alone.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn put_reply<F: HostFamily>(
        &mut self,
        stage: Stage,
        key: &ReplyKey<F::Address>,
        reply: &Reply<F::Address>,
    ) -> Result<(), Refused> {
        F::side(self).pair(stage).replies.insert(key, reply)
    }

    /// Writes a connection that the stack carries.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn put_inherited<F: HostFamily>(
        &mut self,
        key: &WireKey<F::Address>,
        value: &Inherited,
    ) -> Result<(), Refused> {
        F::side(self).inherited.insert(key, value)
    }

    /// What is known of datagrams in fragments.
    pub fn fragments<F: HostFamily>(&self) -> BTreeMap<FragmentKey<F::Address>, Fragment<F::Address>> {
        F::side(self).fragments.copies().into_iter().collect()
    }

    /// Writes what is known of a datagram in fragments.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn put_fragment<F: HostFamily>(
        &mut self,
        key: &FragmentKey<F::Address>,
        value: &Fragment<F::Address>,
    ) -> Result<(), Refused> {
        F::side(self).fragments.set(key, value)
    }

    /// The connections that the stack carries.
    pub fn inherited_connections<F: HostFamily>(&self) -> BTreeMap<WireKey<F::Address>, Inherited> {
        F::side(self).inherited.copies().into_iter().collect()
    }

    /// What the tables of a stage hold.
    pub fn pairs<F: HostFamily>(&self, stage: Stage) -> Pairs<F::Address> {
        let pair = F::side(self).pair(stage);
        Pairs {
            flows: pair.flows.copies().into_iter().collect(),
            replies: pair.replies.copies().into_iter().collect(),
        }
    }

    /// Entries in the tables of a stage: client sides, backend sides.
    pub fn count_pairs<F: HostFamily>(&self, stage: Stage) -> (usize, usize) {
        let pair = F::side(self).pair(stage);
        (pair.flows.len(), pair.replies.len())
    }

    /// Forgets all flows, inherited connections, affinities and cached hops of a family.
    pub fn clear_flows<F: HostFamily>(&mut self) {
        let side = F::side_mut(self);
        for pair in [&side.established, &side.half] {
            pair.flows.clear();
            pair.replies.clear();
        }
        side.inherited.clear();
        side.fragments.clear();
        side.clients.clear();
        side.hops.borrow_mut().clear();
        side.tunnel_hops.borrow_mut().clear();
    }

    /// One ageing pass over all flow tables, in the order of the BPF program.
    pub fn sweep(&self) {
        for stage in [Stage::Established, Stage::Half] {
            self.sweep_flows::<V4>(stage);
            self.sweep_flows::<V6>(stage);
        }
        for stage in [Stage::Established, Stage::Half] {
            self.sweep_replies::<V4>(stage);
            self.sweep_replies::<V6>(stage);
        }
        self.sweep_inherited::<V4>();
        self.sweep_inherited::<V6>();
        self.sweep_clients::<V4>();
        self.sweep_clients::<V6>();
    }

    fn sweep_flows<F: HostFamily>(&self, stage: Stage) {
        for (key, place) in F::side(self).pair(stage).flows.places() {
            // SAFETY: memory of the table, which outlives the call.
            sweep::flow::<F, _>(self, stage, &key, unsafe { Live::new(place) });
        }
    }

    fn sweep_replies<F: HostFamily>(&self, stage: Stage) {
        for (key, place) in F::side(self).pair(stage).replies.places() {
            // SAFETY: as above.
            sweep::reply::<F, _>(self, stage, &key, unsafe { Live::new(place) });
        }
    }
}

impl Node {
    fn sweep_inherited<F: HostFamily>(&self) {
        for (key, _) in F::side(self).inherited.places() {
            if let Some(seen) = Tables::<F>::inherited(self, &key) {
                sweep::inherited::<F, _>(self, &key, seen);
            }
        }
    }
}

fn replace<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, to: Option<V>) {
    match to {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl<F: HostFamily> Tables<F> for Node {
    fn frontend(&self, key: &FrontendKey<F::Address>) -> Option<Frontend> {
        self.looked_up();
        F::side(self).frontends.get(key).copied()
    }

    fn endpoint(&self, place: u32) -> Option<&Backend<F::Address>> {
        self.looked_up();
        F::side(self).backends.get(&place).filter(|backend| backend.flags & BackendFlags::PRESENT != 0)
    }

    fn backend_hop(&self, id: u32) -> Option<Slot> {
        self.looked_up();
        // SAFETY: the cell lives as long as the node.
        (id < self.capacities().backends).then(|| unsafe { Slot::new(F::side(self).hop(id)) })
    }

    fn tunnel_hop(&self, id: u32) -> Option<Slot> {
        self.looked_up();
        // SAFETY: the cell lives as long as the node.
        (id < self.capacities().backends).then(|| unsafe { Slot::new(F::side(self).tunnel_hop(id)) })
    }

    fn with_parcel(&self, use_it: impl FnOnce(&mut Parcel<F::Address>)) {
        use_it(&mut F::side(self).parcel.borrow_mut());
    }

    fn parcel_hop(&self) -> Option<Slot> {
        // SAFETY: the cell lives as long as the node.
        NonNull::new(F::side(self).parcel_hop.get()).map(|hop| unsafe { Slot::new(hop) })
    }

    fn fragment(&self, key: &FragmentKey<F::Address>) -> Option<Live<'_, Fragment<F::Address>>> {
        self.looked_up();
        // SAFETY: memory of the table, which outlives the borrow.
        F::side(self).fragments.get(key).map(|fragment| unsafe { Live::new(fragment) })
    }

    fn note_fragment(&self, key: &FragmentKey<F::Address>, to: &Fragment<F::Address>) {
        self.looked_up();
        // The least recently used entry makes room.
        let _never_refused = F::side(self).fragments.set(key, to);
    }

    fn add_fragment(&self, key: &FragmentKey<F::Address>, to: &Fragment<F::Address>) -> Result<(), Refused> {
        self.looked_up();
        F::side(self).fragments.insert(key, to)
    }

    fn with_datagram(&self, use_it: impl FnOnce(&mut Datagram<F::Address>)) {
        use_it(&mut F::side(self).datagram.borrow_mut());
    }

    fn pod(&self, address: &F::Address) -> Option<Pod> {
        self.looked_up();
        F::side(self).pods.get(address).copied()
    }

    fn is_node(&self, address: &F::Address) -> bool {
        self.looked_up();
        F::side(self).nodes.contains(address)
    }

    fn flow(&self, stage: Stage, key: &FlowKey<F::Address>) -> Option<Live<'_, Flow<F::Address>>> {
        self.looked_up();
        // SAFETY: memory of the table, which outlives the borrow.
        F::side(self).pair(stage).flows.get(key).map(|flow| unsafe { Live::new(flow) })
    }

    fn reply(&self, stage: Stage, key: &ReplyKey<F::Address>) -> Option<Live<'_, Reply<F::Address>>> {
        self.looked_up();
        // SAFETY: as above.
        F::side(self).pair(stage).replies.get(key).map(|reply| unsafe { Live::new(reply) })
    }

    fn add_flow(
        &self,
        stage: Stage,
        key: &FlowKey<F::Address>,
        flow: &Flow<F::Address>,
    ) -> Result<(), Refused> {
        self.looked_up();
        F::side(self).pair(stage).flows.insert(key, flow)
    }

    fn add_reply(
        &self,
        stage: Stage,
        key: &ReplyKey<F::Address>,
        reply: &Reply<F::Address>,
    ) -> Result<(), Refused> {
        self.looked_up();
        F::side(self).pair(stage).replies.insert(key, reply)
    }

    fn remove_flow(&self, stage: Stage, key: &FlowKey<F::Address>) {
        self.looked_up();
        F::side(self).pair(stage).flows.remove(key);
    }

    fn remove_reply(&self, stage: Stage, key: &ReplyKey<F::Address>) {
        self.looked_up();
        F::side(self).pair(stage).replies.remove(key);
    }

    fn inherited(&self, key: &WireKey<F::Address>) -> Option<Word<'_>> {
        self.looked_up();
        let place = F::side(self).inherited.get(key)?.as_ptr();
        // SAFETY: a word of the table's memory, which outlives the borrow; a field's address is not null.
        Some(unsafe { Word::new(NonNull::new_unchecked(&raw mut (*place).seen)) })
    }

    fn remove_inherited(&self, key: &WireKey<F::Address>) {
        self.looked_up();
        F::side(self).inherited.remove(key);
    }

    fn is_in_ranges(&self, key: &ClientKey<F::Address>) -> bool {
        self.looked_up();
        F::side(self).clients.is_in_ranges(key, F::to_ip)
    }

    fn affinity(&self, stage: Stage, key: &ClientKey<F::Address>) -> Option<&Affinity> {
        self.looked_up();
        F::side(self).clients.get(stage, key)
    }

    fn set_affinity(&self, stage: Stage, key: &ClientKey<F::Address>, to: &Affinity) {
        self.looked_up();
        // Without effect where the table is full, as promised.
        let _refused = F::side(self).clients.set(stage, key, to);
    }

    fn remove_affinity(&self, stage: Stage, key: &ClientKey<F::Address>) {
        self.looked_up();
        F::side(self).clients.remove(stage, key);
    }

    fn snat_address<'a>(&self, device: &'a Device) -> &'a F::Address {
        F::snat(device)
    }
}

// The datapath wants both at once.
const _: () = {
    const fn serves_both<N: Tables<V4> + Tables<V6>>() {}
    serves_both::<Node>();
};
