//! The node as the datapath sees it: tables, clock, dice, sockets and FIB. The BPF object implements it over maps and
//! helpers, tests over collections.

use core::ffi::c_void;

use crate::abi::{
    Affinity, Arrival, Backend, Bucket, Carried, CarriedKey, Carrier, ClientKey, Device, EligibleKey, Flow,
    FlowKey, Fragment, FragmentKey, Frontend, FrontendKey, Pod, Reply, ReplyKey, Service, Settings, TagKey,
    Target, TargetKey, Traffic, Tries, Turn, WireKey,
};
use crate::family::{Address, Family};
use crate::live::{Live, Slot, Word};
use crate::packet::Packet;
use crate::verdict::Reason;
use crate::wire::Protocol;

/// Which of two tables an entry is in, of flows or of what is known of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not proved yet; the least recently used entry makes room for a new one.
    Half,
    /// Proved in both directions; never evicted.
    Established,
}

/// Why an entry was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// The tables that exist once per family. Entries are made only where the key is free.
pub trait Tables<F: Family> {
    /// The frontend of this key.
    fn frontend(&self, key: &FrontendKey<F::Address>) -> Option<Frontend>;
    /// The endpoint at [`Turn::place`], if there is one in this family.
    fn endpoint(&self, place: u32) -> Option<&Backend<F::Address>>;
    /// Where the next hop to this backend is cached.
    fn backend_hop(&self, id: u32) -> Option<Slot>;
    /// Where the next hop of the tunnel to this backend's node is cached.
    fn tunnel_hop(&self, id: u32) -> Option<Slot>;
    /// What stages tell each other of the packet at hand; one a CPU.
    fn with_parcel(&self, use_it: impl FnOnce(&mut Parcel<F::Address>));
    /// The parcel's next hop.
    fn parcel_hop(&self) -> Option<Slot>;
    /// What is known of a datagram in fragments.
    fn fragment(&self, key: &FragmentKey<F::Address>) -> Option<Live<'_, Fragment<F::Address>>>;
    /// Notes what becomes of a datagram in fragments; the least recently used entry makes room.
    fn note_fragment(&self, key: &FragmentKey<F::Address>, to: &Fragment<F::Address>);
    /// The same where nothing is known of it yet.
    ///
    /// # Errors
    /// As [`Refused`] says.
    fn add_fragment(&self, key: &FragmentKey<F::Address>, to: &Fragment<F::Address>) -> Result<(), Refused>;
    /// What is known so far of the datagram of the fragment at hand; one a CPU.
    fn with_datagram(&self, use_it: impl FnOnce(&mut Datagram<F::Address>));
    /// Whose this address is.
    fn pod(&self, address: &F::Address) -> Option<Pod>;
    /// Whether this address is that of a node of the cluster.
    fn is_node(&self, address: &F::Address) -> bool;
    /// A flow by its client's side.
    fn flow(&self, stage: Stage, key: &FlowKey<F::Address>) -> Option<Live<'_, Flow<F::Address>>>;
    /// A flow by its backend's side.
    fn reply(&self, stage: Stage, key: &ReplyKey<F::Address>) -> Option<Live<'_, Reply<F::Address>>>;
    /// Makes the client's side.
    ///
    /// # Errors
    /// As [`Refused`] says.
    fn add_flow(
        &self,
        stage: Stage,
        key: &FlowKey<F::Address>,
        flow: &Flow<F::Address>,
    ) -> Result<(), Refused>;
    /// Makes the backend's side.
    ///
    /// # Errors
    /// As [`Refused`] says.
    fn add_reply(
        &self,
        stage: Stage,
        key: &ReplyKey<F::Address>,
        reply: &Reply<F::Address>,
    ) -> Result<(), Refused>;
    /// Removes the client's side.
    fn remove_flow(&self, stage: Stage, key: &FlowKey<F::Address>);
    /// Removes the backend's side.
    fn remove_reply(&self, stage: Stage, key: &ReplyKey<F::Address>);
    /// When the last packet of an inherited connection passed, if this tuple is one.
    fn inherited(&self, key: &WireKey<F::Address>) -> Option<Word<'_>>;
    /// Forgets an inherited connection.
    fn remove_inherited(&self, key: &WireKey<F::Address>);
    /// Whether the client is in one of the service's source ranges.
    fn is_in_ranges(&self, key: &ClientKey<F::Address>) -> bool;
    /// The target that a client stays with.
    fn affinity(&self, stage: Stage, key: &ClientKey<F::Address>) -> Option<&Affinity>;
    /// Writes the target that a client stays with; without effect where the table is full.
    fn set_affinity(&self, stage: Stage, key: &ClientKey<F::Address>, to: &Affinity);
    /// Forgets the target that a client stays with.
    fn remove_affinity(&self, stage: Stage, key: &ClientKey<F::Address>);
    /// The address that SNAT takes on `device`.
    fn snat_address<'a>(&self, device: &'a Device) -> &'a F::Address;
}

/// What stages tell each other of a packet that comes or goes by the tunnel, beside what it says itself. In a map of its own,
/// because the BPF stack has no room for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Parcel<A> {
    /// The other node.
    pub via: A,
    /// Whom a request is for.
    pub backend: u32,
    /// The tunnel's mark; 0: the packet has come from the client itself.
    pub mark: u32,
}

/// An entry of maps `fragments_*` that is being made. In a map of its own, because the BPF stack has no room for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Datagram<A> {
    /// Its key.
    pub key: FragmentKey<A>,
    /// Its value.
    pub fragment: Fragment<A>,
}

/// What a FIB lookup asks.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a, A: Address> {
    /// Source address of the packet to route.
    pub source: &'a A,
    /// Its destination.
    pub destination: &'a A,
    /// IANA protocol number, for policy routing.
    pub protocol: u8,
}

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Ends<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

/// What a FIB lookup answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Device and both MAC addresses.
    Found {
        /// Device to leave by.
        ifindex: u32,
        /// Its MAC address.
        source: [u8; 6],
        /// The next hop's MAC address.
        destination: [u8; 6],
        /// Octets that a packet may have there, from the IP header on.
        mtu: u32,
    },
    /// Device known, next hop's MAC address not (yet).
    NoNeighbour {
        /// Device to leave by.
        ifindex: u32,
        /// Octets that a packet may have on it, from the IP header on; the route may allow less. [`u32::MAX`]: not known.
        mtu: u32,
    },
    /// IP forwarding is off on the device the packet came in by.
    ForwardingOff,
    /// No usable route.
    None,
}

/// Which devices carry which.
pub trait Carriers {
    /// The device to which such frames belong.
    fn carried(&self, key: &CarriedKey) -> Option<Carried>;
    /// How frames leave by a device that another carries.
    fn carrier(&self, ifindex: u32) -> Option<Carrier>;
}

/// A step of a bounded search.
pub trait Search<K> {
    /// Takes the step of this number; `true` ends the search.
    fn step(&mut self, kernel: &K, number: u32) -> bool;
}

/// The node, but for the tables that exist once per family.
pub trait Kernel {
    /// The node's settings; `None` before the agent has written them.
    fn settings(&self) -> Option<&Settings>;
    /// One entry of the gate's bitmaps.
    fn gate(&self, entry: u32) -> u64;
    /// A device of ours.
    fn device(&self, ifindex: u32) -> Option<&Device>;
    /// A service.
    fn service(&self, id: u32) -> Option<Service>;
    /// An entry of a selection table.
    fn slot(&self, index: u32) -> Option<Target>;
    /// Whether a service selects this target.
    fn is_target(&self, key: &TargetKey) -> bool;
    /// Whether new flows of a service with session affinity may be given to this target.
    fn is_eligible(&self, key: &EligibleKey) -> bool;
    /// The target that another node's tunnel means.
    fn tagged(&self, key: &TagKey) -> Option<Target>;
    /// Which endpoint of a backend is the present one.
    fn turn(&self, backend: u32) -> Option<Live<'_, Turn>>;
    /// Tells the agent that a backend has turned.
    fn tell(&self, arrival: &Arrival);
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    fn clock(&self) -> u64;
    /// Takes from this CPU's bucket of answers; what `take` says, `false` where there is no bucket.
    fn spend(&self, take: impl FnOnce(&mut Bucket) -> bool) -> bool;
    /// Counts a search for a SNAT port.
    fn count_tries(&self, tries: Tries);
    /// Adds to a backend's traffic on this CPU.
    fn account(&self, backend: u32, add: impl FnOnce(&mut Traffic));
    /// Counts a packet under a reason.
    fn count(&self, reason: Reason);
    /// Jiffies, the low 32 bits.
    fn now(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// Routes a packet from `context`'s device.
    fn route<F: Family>(&self, context: *mut c_void, ifindex: u32, query: &Query<'_, F::Address>) -> Route;
    /// Whether a socket of the node's own would take a packet of these ends.
    fn has_socket<F: Family>(
        &self,
        context: *mut c_void,
        protocol: Protocol,
        ends: &Ends<F::Address>,
    ) -> bool;
    /// Takes steps 0 to `count` - 1, until one ends the search. A loop whose body the BPF verifier walks once.
    fn search<S: Search<Self>>(&self, count: u32, search: &mut S)
    where
        Self: Sized;
    /// Tells a step of this packet in trace mode; free otherwise.
    fn trace<P: Packet>(&self, packet: &P, step: Step, detail: u32);
}

/// The steps that trace mode tells; a newtype so that log lines carry its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Step(pub u32);

impl Step {
    /// The gate let the packet in; detail: destination port.
    pub const GATE: Self = Self(1);
    /// An established flow was found; detail: backend id.
    pub const ESTABLISHED: Self = Self(2);
    /// A half-open flow was found; detail: backend id.
    pub const HALF_OPEN: Self = Self(3);
    /// A backend was chosen; detail: backend id.
    pub const CHOSEN: Self = Self(4);
    /// The flow's two sides were made; detail: SNAT port or client's port.
    pub const OPENED: Self = Self(5);
    /// Proved in both directions; detail: backend id.
    pub const PROMOTED: Self = Self(6);
    /// A reply was matched; detail: backend id.
    pub const REPLY: Self = Self(7);
    /// The FIB was asked; detail: device.
    pub const ROUTED: Self = Self(8);
    /// The verdict; detail: [`crate::verdict::Verdict::number`].
    pub const VERDICT: Self = Self(9);

    /// A packet was taken out of a tunnel's wrapping; detail: whether it is a request (bit 31) or a reply (bit 30).
    pub const UNWRAPPED: Self = Self(11);
    /// A packet goes by the tunnel; detail: backend id.
    pub const CARRIED: Self = Self(12);
    /// An ICMP error quotes a packet of a flow; detail: backend id.
    pub const QUOTED: Self = Self(10);

    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GATE => "gate",
            Self::ESTABLISHED => "established",
            Self::HALF_OPEN => "half-open",
            Self::CHOSEN => "chosen",
            Self::OPENED => "opened",
            Self::PROMOTED => "promoted",
            Self::REPLY => "reply",
            Self::ROUTED => "routed",
            Self::VERDICT => "verdict",
            Self::QUOTED => "quoted",
            Self::UNWRAPPED => "unwrapped",
            Self::CARRIED => "carried",
            _ => "?",
        }
    }
}
