//! The map ABI: keys and values of the pinned maps, as the kernel program, the agent and `bpftool` see them.
//!
//! Addresses are octets in network order, ports are numbers in host order, times are jiffies of this boot, padding is
//! explicit and zero. What a packet changes while others look (`life`, `flags`, `seen`, `sequence`) is an aligned
//! `u32`, accessed through [`crate::live::Live`]. A change of any size, offset or meaning raises [`VERSION`].

use crate::family::{Address, Address4, Address6};
use crate::wire::Protocol;

mod fragment;

pub use fragment::{Fragment, FragmentFlags, FragmentHook, FragmentKey};

/// The ABI number in [`Settings::version`]; agents refuse pinned maps of another.
pub const VERSION: u32 = 3;

/// Names of the maps, which are also the names of their pins; at most 15 characters (kernel `BPF_OBJ_NAME_LEN`).
pub mod names {
    /// One [`super::Settings`].
    pub const SETTINGS: &str = "settings";
    /// Bitmaps, see [`super::Gate`].
    pub const GATE: &str = "gate";
    /// Interface index, or [`super::Device::NODE`] → [`super::Device`].
    pub const DEVICES: &str = "devices";
    /// [`super::CarriedKey`] → [`super::Carried`]: whose a frame on a device is that carries others.
    pub const CARRIED: &str = "carried";
    /// Interface index of a device that another carries → [`super::Carrier`].
    pub const CARRIERS: &str = "carriers";
    /// Service id → [`super::Service`].
    pub const SERVICES: &str = "services";
    /// Selection tables, each a slice of this one array of [`super::Target`].
    pub const SLOTS: &str = "slots";
    /// [`super::TargetKey`] → services that select it.
    pub const TARGETS: &str = "targets";
    /// [`super::EligibleKey`] → 1; for services with session affinity, and those of UDP.
    pub const ELIGIBLE: &str = "eligible";
    /// Service id → [`super::ServiceName`]; read by people and by the agent after a restart.
    pub const SERVICE_NAMES: &str = "service_names";
    /// Backend id → [`super::BackendName`]; read by people and by the agent after a restart.
    pub const BACKEND_NAMES: &str = "backend_names";
    /// Backend id → [`super::Turn`].
    pub const TURNS: &str = "turns";
    /// Ring of [`super::Arrival`]: what the datapath tells the agent.
    pub const ARRIVALS: &str = "arrivals";
    /// [`super::TagKey`] → [`super::Target`]: what a packet from another node's tunnel is for.
    pub const TAGS: &str = "tags";
    /// Next hops the agent keeps fresh, so that a later agent or `vmlb detach` can release them.
    pub const NEIGHBOURS: &str = "neighbours";
    /// Backend id → [`super::Traffic`], per CPU.
    pub const TRAFFIC: &str = "traffic";
    /// Reason number → packets, per CPU.
    pub const REASONS: &str = "reasons";
    /// One [`super::Bucket`] per CPU: answers that may still be given.
    pub const ANSWERS: &str = "answers";
    /// [`super::Tries`] → flows, per CPU: how many ports the search for a SNAT port tried.
    pub const SNAT_TRIES: &str = "snat_tries";
    /// Tables that exist once per family carry these suffixes.
    pub const FAMILIES: [&str; 2] = ["v4", "v6"];
    /// [`super::FrontendKey`] → [`super::Frontend`].
    pub const FRONTENDS: [&str; 2] = ["frontends_v4", "frontends_v6"];
    /// [`super::Turn::place`] → [`super::Backend`].
    pub const BACKENDS: [&str; 2] = ["backends_v4", "backends_v6"];
    /// Address of a node of the cluster → 1: whose tunnels are listened to.
    pub const NODES: [&str; 2] = ["nodes_v4", "nodes_v6"];
    /// Pod address → [`super::Pod`].
    pub const PODS: [&str; 2] = ["pods_v4", "pods_v6"];
    /// [`super::RangeKey`] → 1: source ranges of services, by longest prefix.
    pub const RANGES: [&str; 2] = ["ranges_v4", "ranges_v6"];
    /// [`super::ClientKey`] → [`super::Affinity`], of clients that have shown themselves.
    pub const AFFINITY: [&str; 2] = ["affinity_v4", "affinity_v6"];
    /// [`super::ClientKey`] → [`super::Affinity`], evictable.
    pub const NEW_AFFINITY: [&str; 2] = ["new_affinity_v4", "new_affinity_v6"];
    /// [`super::WireKey`] → [`super::Inherited`].
    pub const INHERITED: [&str; 2] = ["inherited_v4", "inherited_v6"];
    /// [`super::FlowKey`] → [`super::Flow`], established.
    pub const FLOWS: [&str; 2] = ["flows_v4", "flows_v6"];
    /// [`super::ReplyKey`] → [`super::Reply`], established.
    pub const REPLIES: [&str; 2] = ["replies_v4", "replies_v6"];
    /// [`super::FlowKey`] → [`super::Flow`], evictable.
    pub const HALF_FLOWS: [&str; 2] = ["half_flows_v4", "half_flows_v6"];
    /// [`super::ReplyKey`] → [`super::Reply`], evictable.
    pub const HALF_REPLIES: [&str; 2] = ["half_replies_v4", "half_replies_v6"];
    /// Backend id → [`super::Hop`] of the tunnel to its node, per CPU.
    pub const TUNNEL_HOPS: [&str; 2] = ["tunnel_hops_v4", "tunnel_hops_v6"];
    /// [`super::FragmentKey`] → [`super::Fragment`], evictable.
    pub const FRAGMENTS: [&str; 2] = ["fragments_v4", "fragments_v6"];
    /// Programs for fragments, which XDP programs go on with.
    pub const XDP_CALLS: &str = "xdp_calls";
    /// Programs for fragments, which TC programs go on with; by [`super::FragmentHook`].
    pub const TC_CALLS: &str = "tc_calls";
    /// Backend id → [`super::Hop`], per CPU.
    pub const HOPS: [&str; 2] = ["hops_v4", "hops_v6"];
}

/// Values of the ABI for which zeros are the empty value.
///
/// # Safety
/// Zeros are a value of the type, and size and alignment are multiples of four octets.
pub unsafe trait Plain: Sized {
    /// Makes an empty value in place. Written word by word: LLVM makes a call of `memset`, a loop over octets in BPF, of
    /// anything else, also of a value that is moved.
    #[inline(always)]
    fn emptied(space: &mut core::mem::MaybeUninit<Self>) -> &mut Self {
        let mut at = 0;
        while at < size_of::<Self>() / 4 {
            // SAFETY: inside the value, which is aligned to four.
            unsafe { space.as_mut_ptr().cast::<u32>().add(at).write_volatile(0) };
            at += 1;
        }
        // SAFETY: every octet has been written with zero, which is a value.
        unsafe { space.assume_init_mut() }
    }
}

// SAFETY: numbers only.
unsafe impl<A: Address> Plain for Flow<A> {}
// SAFETY: numbers only.
unsafe impl<A: Address> Plain for Reply<A> {}

/// A run of ports, both ends included. `first` 0 marks an unused entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Ports in the range; 0 for an unused entry.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        if self.first == 0 || self.last < self.first { 0 } else { (self.last - self.first) as u32 + 1 }
    }
}

/// How long a flow without packets is kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// TCP, before the handshake is proved.
    pub tcp_opening: u32,
    /// TCP, established; the default is a little over the two hours after which a keepalive shows.
    pub tcp: u32,
    /// TCP, one side has sent FIN.
    pub tcp_half_closed: u32,
    /// TCP, both sides have sent FIN, the client first, or one has sent RST.
    pub tcp_closed: u32,
    /// TCP, both sides have sent FIN, the backend first: it holds the tuple in TIME_WAIT (60 seconds in Linux) and turns
    /// away a SYN from a reused port whose timestamp is older.
    pub tcp_time_wait: u32,
    /// UDP, not answered yet.
    pub udp_opening: u32,
    /// UDP, packets seen in both directions.
    pub udp: u32,
}

impl Timeouts {
    /// What the agent uses unless told otherwise.
    pub const DEFAULT: Self = Self {
        tcp_opening: 30,
        tcp: 8000,
        tcp_half_closed: 300,
        tcp_closed: 10,
        tcp_time_wait: 60,
        udp_opening: 30,
        udp: 180,
    };
}

/// The node's own settings: the one entry of map `settings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`VERSION`] of whoever made the maps.
    pub version: u32,
    /// Raised by the agent whenever a route, a neighbour or a link changes; cached next hops of other generations
    /// are looked up again.
    pub generation: u32,
    /// Jiffies a second, the kernel's `CONFIG_HZ`.
    pub hz: u32,
    /// Secret of this node: where the search for a SNAT port begins.
    pub secret: u32,
    /// Ports that SNAT may use.
    pub snat_ports: [PortRange; 4],
    /// Ports in `snat_ports` together.
    pub snat_port_count: u32,
    /// When flows end.
    pub timeouts: Timeouts,
    /// Whether the tables of inherited connections are to be asked: 0 where nothing was inherited.
    pub inherited: u32,
    /// Refusals (TCP RST, ICMP port unreachable) that one CPU may send in a second, at most 100,000; 0: all are left to
    /// the stack.
    pub reject_rate: u32,
    /// How packets are carried to a backend's node with the client's address kept.
    pub tunnel: Tunnel,
    /// The port from which the agent asks a migration's target whether the VM is there; SNAT does not use it. 0: none.
    pub probe_port: u16,
    /// What TCP's maximum segment size is lowered to.
    pub clamp_mss: ClampMss,
    /// The node's name, cut at 63 octets, padded with zeros.
    pub node: [u8; 64],
}

impl Settings {
    /// Whether SNAT must not use a port although it is among those that replies come to: there come answers to probes, and
    /// the tunnel's packets.
    #[inline(always)]
    pub const fn is_taken(&self, port: u16) -> bool {
        port == self.probe_port || port == self.tunnel.port
    }
}

/// What TCP's maximum segment size is lowered to in SYN and SYN-ACK; a newtype, because it is read from a map. 0, which maps had
/// here before, is [`ClampMss::AUTO`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ClampMss(pub u16);

impl ClampMss {
    /// To what fits the way that a packet takes.
    pub const AUTO: Self = Self(0);
    /// To nothing: it stays.
    pub const OFF: Self = Self(1);
    /// The least that the operator may choose, in octets: what every IPv4 host takes (RFC 9293 section 3.7.1).
    pub const LEAST: u16 = 536;

    /// The most that may be said on a way that takes `fitting` octets of data.
    #[inline(always)]
    pub const fn least(self, fitting: u32) -> u32 {
        match self {
            Self::AUTO => fitting,
            Self::OFF => u32::MAX,
            Self(octets) if (octets as u32) < fitting => octets as u32,
            _ => fitting,
        }
    }
}

/// The tunnel between the cluster's nodes: the same on each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tunnel {
    /// [`TunnelShape`].
    pub shape: u8,
    /// 1: replies go back to the client through the node that it addressed; 0: from the backend's node.
    pub returns: u8,
    /// Destination port of the UDP shape.
    pub port: u16,
    /// VXLAN network identifier of the UDP shape, 24 bits.
    pub network: u32,
}

/// Values of [`Tunnel::shape`].
pub struct TunnelShape;

impl TunnelShape {
    /// No tunnel: clients' addresses are kept on this node only.
    pub const NONE: u8 = 0;
    /// IP in IP: protocol 4 (RFC 2003), or 41 (RFC 2473). The tag is in the IPv4 header's identification, which means
    /// nothing in a datagram that is not to be cut (RFC 6864 section 4.1), or in the IPv6 flow label's low half.
    pub const IP: u8 = 1;
    /// VXLAN's shape (RFC 7348), where networks filter other protocols. The tag is in the low half of the header's
    /// first reserved field.
    pub const UDP: u8 = 2;
}

/// Bits that tell a foreign packet without a hash lookup: arrays of 65,536 bits each, one behind the other in map
/// `gate`, 64 bits an entry. Ports are exact; addresses are hashed by [`Gate::hash`], so a set bit says "maybe".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate(u32);

impl Gate {
    /// Ports of frontends.
    pub const FRONTEND_PORTS: Self = Self(0);
    /// Ports that SNAT uses.
    pub const SNAT_PORTS: Self = Self(1);
    /// Addresses of frontends.
    pub const FRONTEND_ADDRESSES: Self = Self(2);
    /// Addresses that SNAT uses.
    pub const SNAT_ADDRESSES: Self = Self(3);
    /// Addresses of this node's backends.
    pub const LOCAL_PODS: Self = Self(4);
    /// Ports of targets.
    pub const TARGET_PORTS: Self = Self(5);
    /// Entries of the map.
    pub const ENTRIES: u32 = 6 * 1024;

    /// The map entry that holds bit `bit`.
    #[inline(always)]
    pub const fn entry(self, bit: u16) -> u32 {
        self.0 * 1024 + (bit as u32 >> 6)
    }

    /// The mask of bit `bit` within its entry.
    #[inline(always)]
    pub const fn mask(bit: u16) -> u64 {
        1 << (bit as u32 & 63)
    }

    /// The bit of an address.
    #[inline(always)]
    pub fn hash<A: Address>(address: &A) -> u16 {
        (address.fold().wrapping_mul(0x9e37_79b1) >> 16) as u16
    }
}

/// A network device that packets of ours cross.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// [`DeviceFlags`].
    pub flags: u32,
    /// The IPv4 address that SNAT takes when a packet leaves here; zeros: none.
    pub snat_v4: Address4,
    /// The IPv6 address that SNAT takes when a packet leaves here; zeros: none.
    pub snat_v6: Address6,
}

impl Device {
    /// The index, which no device has, under which map `devices` holds the node's own addresses as the cluster knows them: the
    /// tunnel's outer source, whichever device it leaves by. Zeros: the leaving device's will do.
    pub const NODE: u32 = 0;
}

/// Bits of [`Device::flags`].
pub struct DeviceFlags;

impl DeviceFlags {
    /// Clients and other nodes are reached through it, and our programs are on it, the egress program included.
    pub const UPLINK: u32 = 1;
    /// XDP can send out of it (`ndo_xdp_xmit`, and for a veth a peer that listens).
    pub const XDP_TRANSMIT: u32 = 2;
    /// Pods of this node are behind it, and our reverse program is at its TC ingress.
    pub const POD_SIDE: u32 = 4;
    /// Any device will do, also one that is not ours; in no map.
    pub const ANY: u32 = 0;
    /// Of an uplink: flows to this node's pods may be handed straight to their devices. Of a pods' device: those of its pods are.
    pub const DIRECT: u32 = 16;
    /// Its driver gives XDP no metadata. Set by the XDP program when it finds out; the agent moves the device to TC.
    pub const NO_METADATA: u32 = 8;
    /// Pods of other nodes are reached through it (VXLAN, IPIP, WireGuard and the like), and our reverse program is at its TC
    /// ingress.
    pub const OVERLAY: u32 = 32;
    /// Either kind by which pods of other nodes are reached.
    pub const OUTWARD: u32 = Self::UPLINK | Self::OVERLAY;
    /// Another device carries it, out of which XDP can send: the carrier's program puts its tags on ([`Carrier`]).
    pub const CARRIED: u32 = 64;
}

/// Key of map `carried`: a device on the wire, and the tags of a frame there. A tag is its TPID in the upper half and its VLAN
/// in the lower one; 0: none, or one that names no VLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CarriedKey {
    /// Interface index of the device by which the frame came.
    pub carrier: u32,
    /// The first tag.
    pub outer: u32,
    /// The second tag.
    pub inner: u32,
}

/// The device to which such frames belong: a VLAN device, or the bond or bridge of which the carrier is a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Carried {
    /// Its interface index.
    pub ifindex: u32,
    /// Its MAC address: frames to others are not the node's own.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: u16,
}

/// How frames leave by a device that another carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Carrier {
    /// Interface index of the device to send out of.
    pub ifindex: u32,
    /// The first tag, as in [`CarriedKey`].
    pub outer: u32,
    /// The second tag.
    pub inner: u32,
}

/// A frontend's key: what a client addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendKey<A> {
    /// Address the client uses.
    pub address: A,
    /// Port the client uses.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl<A: Address> FrontendKey<A> {
    /// A key.
    #[inline(always)]
    pub const fn new(address: A, port: u16, protocol: Protocol) -> Self {
        Self { address, port, protocol: protocol.number(), pad: 0 }
    }
}

/// A frontend's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frontend {
    /// Index into `services`.
    pub service: u32,
    /// [`FrontendFlags`].
    pub flags: u32,
}

/// Bits of [`Frontend::flags`].
pub struct FrontendFlags;

impl FrontendFlags {
    /// Only clients in the service's source ranges may open flows.
    pub const RANGES: u32 = 1;
}

/// One port of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Service {
    /// Where its selection table lies in `slots`; one 8-byte store switches it.
    pub selection: Selection,
    /// [`ServiceFlags`].
    pub flags: u32,
    /// Session affinity: for how many seconds after its last new flow a client stays with a target; 0: none.
    pub affinity: u32,
}

/// A slice of `slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Selection {
    /// First entry.
    pub offset: u32,
    /// Entries; 0: no usable backend.
    pub size: u32,
}

/// Bits of [`Service::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// Without a usable backend packets are dropped (policy Local, backends elsewhere), not left to the stack.
    pub const DROP_IF_EMPTY: u32 = 1;
    /// The client's address must be kept (policy Local).
    pub const LOCAL: u32 = 2;
    /// Backends are drawn at random, not by the tuple's hash.
    pub const RANDOM: u32 = 4;
    /// Flows to backends on other nodes keep the client's address: they go by the tunnel.
    pub const DSR: u32 = 8;
}

/// A target: a backend and the port it listens on. What selection tables hold and flows name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Target {
    /// Backend id.
    pub backend: u32,
    /// Port on the backend.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Key of map `targets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TargetKey {
    /// Backend id.
    pub backend: u32,
    /// Port on the backend.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of map `eligible`: a target that a service may use, and for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct EligibleKey {
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Port on the backend.
    pub port: u16,
    /// [`Role`].
    pub role: u16,
}

/// What a service may use a target for: values of [`EligibleKey::role`].
pub struct Role;

impl Role {
    /// New flows of clients that stay with it; for services with session affinity.
    pub const NEW: u16 = 0;
    /// Flows that are open; for services of UDP, whose flows move when their target serves no more.
    pub const OPEN: u16 = 1;
}

/// A client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ClientKey<A> {
    /// Service id.
    pub service: u32,
    /// Client's address.
    pub client: A,
}

/// A block of clients of a service: key of maps `ranges_*`, in the layout of `struct bpf_lpm_trie_key` (linux/bpf.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeKey<A> {
    /// Bits of `block` that count: 32 for the service and those of the address's prefix.
    pub length: u32,
    /// The service, and the first address of the block.
    pub block: ClientKey<A>,
}

impl<A: Address> RangeKey<A> {
    /// The block of the addresses that share the first `bits` bits of `address`.
    pub const fn new(service: u32, address: A, bits: u32) -> Self {
        Self { length: 32 + bits, block: ClientKey { service, client: address } }
    }
}

/// The target that a client stays with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// Where the client's flows go.
    pub target: Target,
    /// When the client's last flow was opened, jiffies.
    pub seen: u32,
}

/// Answers that a CPU may still give: a bucket that fills by [`Settings::reject_rate`] a second and holds as many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// When it was last filled, jiffies.
    pub filled: u32,
    /// Answers in it, times [`Settings::hz`].
    pub left: u32,
}

/// How many ports a search for a SNAT port tried: the index into map `snat_tries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries(u32);

impl Tries {
    /// The most ports that an entry stands for, by index; the entry before it has those that needed fewer.
    pub const BOUNDS: [u32; 6] = [1, 2, 4, 8, 16, 32];
    /// No port was free.
    pub const EXHAUSTED: Self = Self(6);
    /// Entries of the map.
    pub const ENTRIES: u32 = 7;

    /// The entry for a search that found its port at this try, the first being 1.
    #[inline(always)]
    pub const fn found_at(number: u32) -> Self {
        let mut at = 0;
        while at < Self::BOUNDS.len() - 1 && number > Self::BOUNDS[at] {
            at += 1;
        }
        Self(at as u32)
    }

    /// The index.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// A backend's endpoint in one family: where the VM (or plain pod) is, was, or is about to be. Each backend has two, of which
/// [`Turn`] says which is the present one; only the other is ever written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend<A> {
    /// [`BackendFlags`]; 0: there is no such endpoint.
    pub flags: u32,
    /// Raised by the agent with every change of this entry; cached next hops of other revisions are void.
    pub revision: u32,
    /// The pod's address.
    pub address: A,
    /// The address of the pod's node, to which the tunnel leads; zeros: not known.
    pub node: A,
    /// What the tunnel's packets call the backend: 15 bits of a hash of its UID, the same on every node.
    pub tag: u32,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// The entry is in use.
    pub const PRESENT: u32 = 1;
    /// The pod is on this node.
    pub const LOCAL: u32 = 2;
}

/// Which of a backend's two endpoints is the present one. The datapath turns it, by compare-and-swap, when the VM shows
/// itself at the other; the agent when the API says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Turn {
    /// [`Turned`] as a number.
    pub word: u32,
    /// Zero.
    pub pad: u32,
    /// While the other endpoint is expected: when the present one last answered, nanoseconds of `CLOCK_MONOTONIC`
    /// (`bpf_ktime_get_ns`); 0: not yet.
    pub replied: u64,
}

impl Turn {
    /// Where in maps `backends_*` an endpoint is.
    #[inline(always)]
    pub const fn place(backend: u32, side: u32) -> u32 {
        backend.wrapping_mul(2).wrapping_add(side & 1)
    }
}

/// What [`Turn::word`] says. Bit 0: the present side. Bit 1: the other is expected, and the datapath turns to it. Bits 8 to
/// 31: how often it has turned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Turned(pub u32);

impl Turned {
    const SIDE: u32 = 1;
    const EXPECTED: u32 = 2;

    /// The present side, 0 or 1.
    #[inline(always)]
    pub const fn side(self) -> u32 {
        self.0 & Self::SIDE
    }

    /// Whether the VM may show itself at the other side.
    #[inline(always)]
    pub const fn is_expected(self) -> bool {
        self.0 & Self::EXPECTED != 0
    }

    /// The same, with the other side expected or not.
    #[must_use]
    pub const fn expecting(self, yes: bool) -> Self {
        Self(if yes { self.0 | Self::EXPECTED } else { self.0 & !Self::EXPECTED })
    }

    /// After the turn: the other side is the present one, and nothing is expected.
    #[inline(always)]
    #[must_use]
    pub const fn turned(self) -> Self {
        Self((self.0 & !Self::EXPECTED ^ Self::SIDE).wrapping_add(1 << 8))
    }

    /// How often it has turned, the low 8 bits: what [`Flow::turn`] remembers.
    #[inline(always)]
    pub const fn count(self) -> u8 {
        (self.0 >> 8 & 0xff) as u8
    }
}

/// The datapath has turned a backend: an entry of map `arrivals`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrival {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// [`Turn::replied`] at that time.
    pub replied: u64,
    /// Backend id.
    pub backend: u32,
    /// [`Turn::word`] after the turn.
    pub word: u32,
    /// [`ArrivalSign`].
    pub sign: u32,
    /// Zero.
    pub pad: u32,
}

/// By what the datapath saw that the VM has arrived; values of [`Arrival::sign`].
pub struct ArrivalSign;

impl ArrivalSign {
    /// A packet of one of its flows.
    pub const FLOW: u32 = 1;
    /// The answer to a probe.
    pub const PROBE: u32 = 2;
}

/// Whose a pod address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// Backend id.
    pub backend: u32,
    /// Which of its endpoints has the address: 0 or 1.
    pub side: u32,
}

/// Key of map `tags`: what a tunnel's packet says of its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TagKey {
    /// Service id.
    pub service: u32,
    /// [`Backend::tag`].
    pub tag: u32,
}

/// A flow as the client's packets show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Client's address.
    pub client: A,
    /// Frontend's address.
    pub frontend: A,
    /// Client's port.
    pub client_port: u16,
    /// Frontend's port.
    pub frontend_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}

/// A flow as the backend's packets show it. The backend, not its address: a VM that moves keeps its flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ReplyKey<A> {
    /// Backend id.
    pub backend: u32,
    /// Whom the backend answers: the client, or the SNAT address.
    pub peer: A,
    /// Port on the backend.
    pub target_port: u16,
    /// Client's port, or the SNAT port.
    pub peer_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}

/// A packet's tuple as it comes in by an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct WireKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}

/// A connection that the node's stack carried before vmlb came, and goes on carrying: packets of this tuple are left to
/// it. Requests of UDP (those of TCP tell themselves), and replies to what kube-proxy masqueraded: no flow gets such a tuple.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inherited {
    /// When the last packet of the tuple passed, jiffies.
    pub seen: u32,
}

/// What a flow's backend sees as the client; a newtype, because it is read from maps. How the packets get there depends on
/// where the backend is at the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Delivery(pub u8);

impl Delivery {
    /// DNAT, source kept: through this node's stack (DESIGN way 2), or by the tunnel to the backend's node (way 6).
    pub const KEPT: Self = Self(1);
    /// DNAT and SNAT: to another node (DESIGN way 4), or into the pod's host-side device, and reversed there.
    pub const SNAT: Self = Self(2);
    /// DNAT, source kept, while the backend is on this node: into the pod's host-side device, and reversed there, past the stack
    /// in both directions. Where the backend has moved away, as [`Delivery::KEPT`].
    pub const PEER: Self = Self(3);

    /// Whether the backend sees the client's address.
    #[inline(always)]
    pub const fn keeps_source(self) -> bool {
        self.0 == Self::KEPT.0 || self.0 == Self::PEER.0
    }

    /// The word `vmlb flows` prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KEPT => "kept",
            Self::SNAT => "snat",
            Self::PEER => "peer",
            _ => "?",
        }
    }
}

/// Where an entry is on its way out; values of `life`.
pub struct Life;

impl Life {
    /// In use.
    pub const LIVE: u32 = 0;
    /// Idle for longer than its timeout; a packet revives it, the next pass ends it.
    pub const MARKED: u32 = 1;
    /// Being removed; nothing revives it.
    pub const DEAD: u32 = 2;
}

/// What has been seen of a flow; bits of `flags`.
pub struct Seen;

impl Seen {
    /// FIN from the client.
    pub const CLIENT_FIN: u32 = 1;
    /// FIN from the backend.
    pub const BACKEND_FIN: u32 = 2;
    /// RST from either.
    pub const RST: u32 = 4;
    /// SYN-ACK from the backend, or its first UDP packet.
    pub const ANSWERED: u32 = 8;
    /// The backend's FIN came before the client's.
    pub const BACKEND_FIRST: u32 = 16;
    /// Of a flow by the tunnel: a request has come after a reply, so the node that the client addressed knows of the reply.
    pub const HEARD: u32 = 32;

    /// Whether TCP is done with the flow: both FINs, or a RST.
    #[inline(always)]
    pub const fn is_closed(flags: u32) -> bool {
        let fins = Self::CLIENT_FIN | Self::BACKEND_FIN;
        flags & Self::RST != 0 || flags & fins == fins
    }
}

/// A flow's state on the client's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<A> {
    /// Backend id.
    pub backend: u32,
    /// Service id at the time it was opened.
    pub service: u32,
    /// [`Life`].
    pub life: u32,
    /// [`Seen`].
    pub flags: u32,
    /// When the last packet of this direction passed, jiffies.
    pub seen: u32,
    /// Whom the backend sees: the client's address, or the SNAT address.
    pub peer: A,
    /// The client's port, or the SNAT port.
    pub peer_port: u16,
    /// Port on the backend.
    pub target_port: u16,
    /// How it is delivered.
    pub delivery: Delivery,
    /// [`Turned::count`] of the backend when the last request passed: where it differs, no request of this flow has been to
    /// the present endpoint yet.
    pub turn: u8,
    /// What the translation of a request changes in the ones' complement sum of both addresses, but for the backend's:
    /// ~client + ~frontend + peer, folded, as it lies in memory.
    pub address_sum: u16,
    /// The sequence number that the client's next octet will have (TCP).
    pub next: u32,
    /// The client's last acknowledgment number (TCP).
    pub acknowledged: u32,
}

impl<A: Address> Flow<A> {
    /// The key of the flow's other direction.
    #[inline(always)]
    pub const fn reply_key(&self, protocol: u8) -> ReplyKey<A> {
        ReplyKey {
            backend: self.backend,
            peer: self.peer,
            target_port: self.target_port,
            peer_port: self.peer_port,
            protocol,
            pad: 0,
            pad2: 0,
        }
    }
}

/// A flow's state on the backend's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reply<A> {
    /// The key of the flow's other direction: to whom the reply goes, and as whom.
    pub flow: FlowKey<A>,
    /// [`Life`].
    pub life: u32,
    /// [`Seen`].
    pub flags: u32,
    /// When the last packet of this direction passed, jiffies.
    pub seen: u32,
    /// The acknowledgment number that proves the client has the SYN-ACK.
    pub sequence: u32,
    /// How the flow is delivered.
    pub delivery: Delivery,
    /// Zero.
    pub pad: u8,
    /// What the translation of a request changes in the ones' complement sum of both addresses, but for the backend's:
    /// ~client + ~frontend + peer, folded, as it lies in memory.
    pub address_sum: u16,
    /// Next hop to the client.
    pub hop: Hop,
    /// The node whose tunnel the requests come by, because the client addressed it; zeros: this one.
    pub via: A,
}

/// A next hop as the FIB gave it, and until when it may be believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// Twice [`Settings::generation`] plus [`Backend::revision`] it was filled under, plus the endpoint's side; the highest
    /// bit: by TC. 0: empty.
    pub stamp: u32,
    /// When it was filled, jiffies; older than ten seconds is looked up again, in case nobody raises generations.
    pub filled: u32,
    /// Device it leaves by.
    pub ifindex: u32,
    /// MAC address of that device.
    pub source: [u8; 6],
    /// MAC address of the next hop.
    pub destination: [u8; 6],
    /// Octets that a packet on this way may have, from the IP header on.
    pub mtu: u32,
}

impl Hop {
    /// No hop yet, and nothing too big for it.
    pub const NOWHERE: Self =
        Self { stamp: 0, filled: 0, ifindex: 0, source: [0; 6], destination: [0; 6], mtu: u32::MAX };
}

/// Packets and octets (IP headers included) of one backend on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets to the backend.
    pub requests: u64,
    /// Octets to the backend.
    pub request_octets: u64,
    /// Packets from the backend.
    pub replies: u64,
    /// Octets from the backend.
    pub reply_octets: u64,
    /// Flows opened.
    pub opened: u64,
}

impl Traffic {
    /// A packet to the backend, of so many octets.
    #[inline(always)]
    pub fn add_request(&mut self, octets: u32) {
        self.requests = self.requests.wrapping_add(1);
        self.request_octets = self.request_octets.wrapping_add(u64::from(octets));
    }

    /// A packet from the backend, of so many octets.
    #[inline(always)]
    pub fn add_reply(&mut self, octets: u32) {
        self.replies = self.replies.wrapping_add(1);
        self.reply_octets = self.reply_octets.wrapping_add(u64::from(octets));
    }
}

/// Whose a service id is: written by the agent, read by people and by the next agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceName {
    /// Namespace, padded with zeros (as all text here).
    pub namespace: [u8; 64],
    /// Service name.
    pub name: [u8; 64],
    /// Port name, empty for the only port.
    pub port_name: [u8; 16],
    /// Service port.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// Whose a backend id is: written by the agent, read by people and by the next agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BackendName {
    /// UID of the VirtualMachineInstance, or of the pod where it carries no VM.
    pub uid: [u8; 40],
    /// Namespace.
    pub namespace: [u8; 64],
    /// The VM's name, or the pod's, cut at 63 octets.
    pub name: [u8; 64],
    /// The node it runs on, cut at 63 octets.
    pub node: [u8; 64],
    /// 1: a VM; 0: a plain pod.
    pub vm: u8,
    /// Its weight, 0 to 100.
    pub weight: u8,
    /// Zero.
    pub pad: u16,
}

/// A next hop that the agent asked the kernel to keep fresh (`NTF_EXT_MANAGED`); key of map `neighbours`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NeighbourKey {
    /// Device.
    pub ifindex: u32,
    /// IPv6 address, or IPv4 mapped into it (RFC 4291 section 2.5.5.2).
    pub address: Address6,
}

// The layout is a promise to pinned maps: a failure here asks for a new `VERSION` and a migration.
const _: () = {
    assert!(size_of::<FrontendKey<Address4>>() == 8 && size_of::<FrontendKey<Address6>>() == 20);
    assert!(size_of::<FlowKey<Address4>>() == 16 && size_of::<FlowKey<Address6>>() == 40);
    assert!(size_of::<ReplyKey<Address4>>() == 16 && size_of::<ReplyKey<Address6>>() == 28);
    assert!(size_of::<Flow<Address4>>() == 40 && size_of::<Flow<Address6>>() == 52);
    assert!(
        size_of::<Hop>() == 28 && size_of::<Reply<Address4>>() == 68 && size_of::<Reply<Address6>>() == 104
    );
    assert!(size_of::<Backend<Address4>>() == 20 && size_of::<Backend<Address6>>() == 44);
    assert!(size_of::<Service>() == 16 && size_of::<Target>() == 8 && size_of::<TargetKey>() == 8);
    assert!(size_of::<Device>() == 24 && size_of::<Traffic>() == 40 && size_of::<NeighbourKey>() == 20);
    assert!(size_of::<Settings>() == 16 + 16 + 4 + 28 + 8 + 8 + 4 + 64);
    assert!(size_of::<Frontend>() == 8 && size_of::<EligibleKey>() == 12 && size_of::<Affinity>() == 12);
    assert!(size_of::<ClientKey<Address4>>() == 8 && size_of::<ClientKey<Address6>>() == 20);
    assert!(size_of::<Turn>() == 16 && size_of::<Arrival>() == 32 && size_of::<Pod>() == 8);
    assert!(size_of::<CarriedKey>() == 12 && size_of::<Carried>() == 12 && size_of::<Carrier>() == 12);
    assert!(size_of::<Tunnel>() == 8 && size_of::<TagKey>() == 8);
    assert!(size_of::<ServiceName>() == 148 && size_of::<BackendName>() == 236);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_under_the_least_bound_that_holds_them() {
        let bound = |number| Tries::BOUNDS[Tries::found_at(number).index() as usize];
        assert_eq!([1, 2, 3, 4, 5, 8, 9, 16, 17, 32].map(bound), [1, 2, 4, 4, 8, 8, 16, 16, 32, 32]);
    }
}
