//! The maps. Statics are private: the datapath meets them as [`Kernel`] and [`Tables`]. Sizes given here are those of a
//! bare load; the agent sets its own.

use core::ffi::c_void;
use core::ptr::NonNull;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use vmlb_common::abi::{
    Affinity, Arrival, Backend, BackendFlags, BackendName, Bucket, Carried, CarriedKey, Carrier, ClientKey, Device, DeviceFlags,
    EligibleKey, Flow, FlowKey, Fragment, FragmentHook, FragmentKey, Frontend, FrontendKey, Gate, Hop, Inherited, NeighbourKey, Pod,
    Reply, ReplyKey, Service, ServiceName, Settings, TagKey, Target, TargetKey, Traffic, Tries, Turn, WireKey,
};
use vmlb_common::family::{Address4, Address6, Family, V4, V6, V6Fragment};
use vmlb_common::kernel::{Carriers, Datagram, Ends, Kernel, Parcel, Query, Refused, Route, Search, Stage, Step, Tables};
use vmlb_common::live::{Live, Slot, Word};
use vmlb_common::packet::{Lane, Packet};
use vmlb_common::verdict::Reason;
use vmlb_common::wire::Protocol;

use crate::helpers::{self, Tracing};

const SERVICES: usize = 16_384;
const SLOTS: usize = 1 << 20;
const BACKENDS: usize = 16_384;
const FRONTENDS: usize = 32_768;
const FLOWS: usize = 65_536;
const CLIENTS: usize = 65_536;
const NODES: usize = 16_384;
const FRAGMENTS: usize = 8192;
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;
/// The agent stores whole tables in it: by bpf(2), which takes one entry at a time, millions of slots take a second.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "gate")]
static GATE: Array<u64, { Gate::ENTRIES as usize }> = Array::new();
#[btf_map(name = "devices")]
static DEVICES: HashMap<u32, Device, 256> = HashMap::new();
#[btf_map(name = "carried")]
static CARRIED: HashMap<CarriedKey, Carried, 1024, SPARSE> = HashMap::new();
#[btf_map(name = "carriers")]
static CARRIERS: HashMap<u32, Carrier, 256, SPARSE> = HashMap::new();
#[btf_map(name = "lane")]
static LANE: PerCpuArray<Lane, 1> = PerCpuArray::new();
#[btf_map(name = "services")]
static SERVICE: Array<Service, SERVICES> = Array::new();
#[btf_map(name = "slots")]
static SLOT: Array<Target, SLOTS, MAPPED> = Array::new();
#[btf_map(name = "targets")]
static TARGETS: HashMap<TargetKey, u32, FRONTENDS> = HashMap::new();
#[btf_map(name = "service_names")]
static SERVICE_NAMES: HashMap<u32, ServiceName, SERVICES, SPARSE> = HashMap::new();
#[btf_map(name = "backend_names")]
static BACKEND_NAMES: HashMap<u32, BackendName, BACKENDS, SPARSE> = HashMap::new();
#[btf_map(name = "neighbours")]
static NEIGHBOURS: HashMap<NeighbourKey, u32, 4096, SPARSE> = HashMap::new();
#[btf_map(name = "traffic")]
static TRAFFIC: PerCpuArray<Traffic, BACKENDS> = PerCpuArray::new();
#[btf_map(name = "reasons")]
static REASONS: PerCpuArray<u64, { Reason::ENTRIES as usize }> = PerCpuArray::new();
#[btf_map(name = "eligible")]
static ELIGIBLE: HashMap<EligibleKey, u32, BACKENDS, SPARSE> = HashMap::new();
#[btf_map(name = "turns")]
static TURNS: Array<Turn, BACKENDS> = Array::new();
#[btf_map(name = "arrivals")]
static ARRIVALS: RingBuf<Arrival, 65_536> = RingBuf::new();
#[btf_map(name = "tags")]
static TAGS: HashMap<TagKey, Target, BACKENDS, SPARSE> = HashMap::new();
#[btf_map(name = "answers")]
static ANSWERS: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map(name = "snat_tries")]
static SNAT_TRIES: PerCpuArray<u64, { Tries::ENTRIES as usize }> = PerCpuArray::new();
// One for each type of program: the kernel mixes no types in one array.
#[btf_map(name = "xdp_calls")]
static XDP_CALLS: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "tc_calls")]
static TC_CALLS: ProgramArray<4> = ProgramArray::new();

/// One family's tables as [`Tables`] of a family with its addresses.
macro_rules! access {
    ($family:ident $address:ident $snat:ident $frontends:ident $backends:ident $hops:ident $tunnel_hops:ident
     $parcel:ident $parcel_hop:ident $pods:ident $nodes:ident $flows:ident $replies:ident $half_flows:ident
     $half_replies:ident $inherited:ident $ranges:ident $affinity:ident $new_affinity:ident $fragments:ident
     $datagram:ident) => {
        impl Tables<$family> for Node {
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<Frontend> {
                // SAFETY: frontends are replaced whole by user space; the copy is taken at once.
                unsafe { $frontends.get(key) }.copied()
            }

            #[inline(always)]
            fn endpoint(&self, place: u32) -> Option<&Backend<$address>> {
                $backends.get(place).filter(|backend| backend.flags & BackendFlags::PRESENT != 0)
            }

            #[inline(always)]
            fn backend_hop(&self, id: u32) -> Option<Slot> {
                // SAFETY: array values live as long as the map.
                $hops.get_ptr_mut(id).and_then(NonNull::new).map(|hop| unsafe { Slot::new(hop) })
            }

            #[inline(always)]
            fn tunnel_hop(&self, id: u32) -> Option<Slot> {
                // SAFETY: array values live as long as the map.
                $tunnel_hops.get_ptr_mut(id).and_then(NonNull::new).map(|hop| unsafe { Slot::new(hop) })
            }

            #[inline(always)]
            fn with_parcel(&self, use_it: impl FnOnce(&mut Parcel<$address>)) {
                if let Some(parcel) = $parcel.get_ptr_mut(0) {
                    // SAFETY: this CPU's own copy, and no other program of ours runs on it meanwhile.
                    use_it(unsafe { &mut *parcel });
                }
            }

            #[inline(always)]
            fn parcel_hop(&self) -> Option<Slot> {
                // SAFETY: array values live as long as the map.
                $parcel_hop.get_ptr_mut(0).and_then(NonNull::new).map(|hop| unsafe { Slot::new(hop) })
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$address>) -> Option<Live<'_, Fragment<$address>>> {
                let found = $fragments.get_ptr_mut(key);
                // SAFETY: preallocated elements stay allocated; `Live` reads them as shared.
                found.and_then(NonNull::new).map(|fragment| unsafe { Live::new(fragment) })
            }

            #[inline(always)]
            fn note_fragment(&self, key: &FragmentKey<$address>, to: &Fragment<$address>) {
                let _never_full = $fragments.insert(key, to, ANY);
            }

            #[inline(always)]
            fn add_fragment(&self, key: &FragmentKey<$address>, to: &Fragment<$address>) -> Result<(), Refused> {
                refused($fragments.insert(key, to, NEW))
            }

            #[inline(always)]
            fn with_datagram(&self, use_it: impl FnOnce(&mut Datagram<$address>)) {
                if let Some(datagram) = $datagram.get_ptr_mut(0) {
                    // SAFETY: this CPU's own copy, and no other program of ours runs on it meanwhile.
                    use_it(unsafe { &mut *datagram });
                }
            }

            #[inline(always)]
            fn pod(&self, address: &$address) -> Option<Pod> {
                // SAFETY: pods are replaced whole by user space; the copy is taken at once.
                unsafe { $pods.get(address) }.copied()
            }

            #[inline(always)]
            fn is_node(&self, address: &$address) -> bool {
                $nodes.get_ptr(address).is_some()
            }

            #[inline(always)]
            fn flow(&self, stage: Stage, key: &FlowKey<$address>) -> Option<Live<'_, Flow<$address>>> {
                let found = match stage {
                    Stage::Half => $half_flows.get_ptr_mut(key),
                    Stage::Established => $flows.get_ptr_mut(key),
                };
                // SAFETY: preallocated elements stay allocated; `Live` reads them as shared.
                found.and_then(NonNull::new).map(|flow| unsafe { Live::new(flow) })
            }

            #[inline(always)]
            fn reply(&self, stage: Stage, key: &ReplyKey<$address>) -> Option<Live<'_, Reply<$address>>> {
                let found = match stage {
                    Stage::Half => $half_replies.get_ptr_mut(key),
                    Stage::Established => $replies.get_ptr_mut(key),
                };
                // SAFETY: preallocated elements stay allocated; `Live` reads them as shared.
                found.and_then(NonNull::new).map(|reply| unsafe { Live::new(reply) })
            }

            #[inline(always)]
            fn add_flow(
                &self,
                stage: Stage,
                key: &FlowKey<$address>,
                flow: &Flow<$address>,
            ) -> Result<(), Refused> {
                refused(match stage {
                    Stage::Half => $half_flows.insert(key, flow, NEW),
                    Stage::Established => $flows.insert(key, flow, NEW),
                })
            }

            #[inline(always)]
            fn add_reply(
                &self,
                stage: Stage,
                key: &ReplyKey<$address>,
                reply: &Reply<$address>,
            ) -> Result<(), Refused> {
                refused(match stage {
                    Stage::Half => $half_replies.insert(key, reply, NEW),
                    Stage::Established => $replies.insert(key, reply, NEW),
                })
            }

            #[inline(always)]
            fn remove_flow(&self, stage: Stage, key: &FlowKey<$address>) {
                let _already_gone = match stage {
                    Stage::Half => $half_flows.remove(key),
                    Stage::Established => $flows.remove(key),
                };
            }

            #[inline(always)]
            fn remove_reply(&self, stage: Stage, key: &ReplyKey<$address>) {
                let _already_gone = match stage {
                    Stage::Half => $half_replies.remove(key),
                    Stage::Established => $replies.remove(key),
                };
            }

            #[inline(always)]
            fn inherited(&self, key: &WireKey<$address>) -> Option<Word<'_>> {
                let found = $inherited.get_ptr_mut(key).map(|found| found.cast::<u32>());
                // SAFETY: `seen` is the entry's only field; elements are freed after a grace period.
                found.and_then(NonNull::new).map(|seen| unsafe { Word::new(seen) })
            }

            #[inline(always)]
            fn remove_inherited(&self, key: &WireKey<$address>) {
                let _already_gone = $inherited.remove(key);
            }

            #[inline(always)]
            fn is_in_ranges(&self, key: &ClientKey<$address>) -> bool {
                let whole = 8 * size_of::<ClientKey<$address>>() as u32;
                $ranges.get(&Key::new(whole, *key)).is_some()
            }

            #[inline(always)]
            fn affinity(&self, stage: Stage, key: &ClientKey<$address>) -> Option<&Affinity> {
                // SAFETY: entries are replaced whole, by new elements; one that is given to another client meanwhile
                // says where that one goes, which costs this one its affinity.
                unsafe {
                    match stage {
                        Stage::Half => $new_affinity.get(key),
                        Stage::Established => $affinity.get(key),
                    }
                }
            }

            #[inline(always)]
            fn set_affinity(&self, stage: Stage, key: &ClientKey<$address>, to: &Affinity) {
                let _without_effect_where_full = match stage {
                    Stage::Half => $new_affinity.insert(key, to, ANY),
                    Stage::Established => $affinity.insert(key, to, ANY),
                };
            }

            #[inline(always)]
            fn remove_affinity(&self, stage: Stage, key: &ClientKey<$address>) {
                let _already_gone = match stage {
                    Stage::Half => $new_affinity.remove(key),
                    Stage::Established => $affinity.remove(key),
                };
            }

            #[inline(always)]
            fn snat_address<'a>(&self, device: &'a Device) -> &'a $address {
                &device.$snat
            }
        }
    };
}

macro_rules! tables {
    ($($family:ident)+, $address:ident $snat:ident
     $frontends:ident $frontends_name:literal $backends:ident $backends_name:literal $hops:ident $hops_name:literal
     $tunnel_hops:ident $tunnel_hops_name:literal $parcel:ident $parcel_name:literal
     $parcel_hop:ident $parcel_hop_name:literal
     $pods:ident $pods_name:literal $nodes:ident $nodes_name:literal $flows:ident $flows_name:literal $replies:ident $replies_name:literal
     $half_flows:ident $half_flows_name:literal $half_replies:ident $half_replies_name:literal
     $inherited:ident $inherited_name:literal $ranges:ident $ranges_name:literal
     $affinity:ident $affinity_name:literal $new_affinity:ident $new_affinity_name:literal
     $fragments:ident $fragments_name:literal $datagram:ident $datagram_name:literal) => {
        #[btf_map(name = $frontends_name)]
        static $frontends: HashMap<FrontendKey<$address>, Frontend, FRONTENDS> = HashMap::new();
        #[btf_map(name = $backends_name)]
        static $backends: Array<Backend<$address>, { 2 * BACKENDS }> = Array::new();
        #[btf_map(name = $hops_name)]
        static $hops: PerCpuArray<Hop, BACKENDS> = PerCpuArray::new();
        #[btf_map(name = $tunnel_hops_name)]
        static $tunnel_hops: PerCpuArray<Hop, BACKENDS> = PerCpuArray::new();
        #[btf_map(name = $parcel_name)]
        static $parcel: PerCpuArray<Parcel<$address>, 1> = PerCpuArray::new();
        #[btf_map(name = $parcel_hop_name)]
        static $parcel_hop: PerCpuArray<Hop, 1> = PerCpuArray::new();
        #[btf_map(name = $pods_name)]
        static $pods: HashMap<$address, Pod, BACKENDS> = HashMap::new();
        #[btf_map(name = $nodes_name)]
        static $nodes: HashMap<$address, u32, NODES, SPARSE> = HashMap::new();
        #[btf_map(name = $flows_name)]
        static $flows: HashMap<FlowKey<$address>, Flow<$address>, FLOWS> = HashMap::new();
        #[btf_map(name = $replies_name)]
        static $replies: HashMap<ReplyKey<$address>, Reply<$address>, FLOWS> = HashMap::new();
        #[btf_map(name = $half_flows_name)]
        static $half_flows: LruHashMap<FlowKey<$address>, Flow<$address>, FLOWS> = LruHashMap::new();
        #[btf_map(name = $half_replies_name)]
        static $half_replies: LruHashMap<ReplyKey<$address>, Reply<$address>, FLOWS> = LruHashMap::new();

        #[btf_map(name = $inherited_name)]
        static $inherited: HashMap<WireKey<$address>, Inherited, FLOWS, SPARSE> = HashMap::new();
        #[btf_map(name = $ranges_name)]
        static $ranges: LpmTrie<ClientKey<$address>, u32, FRONTENDS> = LpmTrie::new();
        #[btf_map(name = $affinity_name)]
        static $affinity: HashMap<ClientKey<$address>, Affinity, CLIENTS, SPARSE> = HashMap::new();
        #[btf_map(name = $new_affinity_name)]
        static $new_affinity: LruHashMap<ClientKey<$address>, Affinity, CLIENTS> = LruHashMap::new();

        #[btf_map(name = $fragments_name)]
        static $fragments: LruHashMap<FragmentKey<$address>, Fragment<$address>, FRAGMENTS> = LruHashMap::new();
        #[btf_map(name = $datagram_name)]
        static $datagram: PerCpuArray<Datagram<$address>, 1> = PerCpuArray::new();

        $(access! { $family $address $snat $frontends $backends $hops $tunnel_hops $parcel $parcel_hop $pods $nodes
        $flows $replies $half_flows $half_replies $inherited $ranges $affinity $new_affinity $fragments $datagram })+
    };
}

tables! { V4, Address4 snat_v4
FRONTENDS_V4 "frontends_v4" BACKENDS_V4 "backends_v4" HOPS_V4 "hops_v4"
TUNNEL_HOPS_V4 "tunnel_hops_v4" PARCEL_V4 "parcel_v4" PARCEL_HOP_V4 "parcel_hop_v4" PODS_V4 "pods_v4" NODES_V4 "nodes_v4"
FLOWS_V4 "flows_v4" REPLIES_V4 "replies_v4" HALF_FLOWS_V4 "half_flows_v4" HALF_REPLIES_V4 "half_replies_v4"
INHERITED_V4 "inherited_v4" RANGES_V4 "ranges_v4"
AFFINITY_V4 "affinity_v4" NEW_AFFINITY_V4 "new_affinity_v4"
FRAGMENTS_V4 "fragments_v4" DATAGRAM_V4 "datagram_v4" }
tables! { V6 V6Fragment, Address6 snat_v6
FRONTENDS_V6 "frontends_v6" BACKENDS_V6 "backends_v6" HOPS_V6 "hops_v6"
TUNNEL_HOPS_V6 "tunnel_hops_v6" PARCEL_V6 "parcel_v6" PARCEL_HOP_V6 "parcel_hop_v6" PODS_V6 "pods_v6" NODES_V6 "nodes_v6"
FLOWS_V6 "flows_v6" REPLIES_V6 "replies_v6" HALF_FLOWS_V6 "half_flows_v6" HALF_REPLIES_V6 "half_replies_v6"
INHERITED_V6 "inherited_v6" RANGES_V6 "ranges_v6"
AFFINITY_V6 "affinity_v6" NEW_AFFINITY_V6 "new_affinity_v6"
FRAGMENTS_V6 "fragments_v6" DATAGRAM_V6 "datagram_v6" }

const NEW: u64 = BPF_NOEXIST as u64;
const ANY: u64 = BPF_ANY as u64;

/// `-EEXIST` (include/uapi/asm-generic/errno-base.h); every other refusal is a want of room.
const EXISTS: i32 = -17;

#[inline(always)]
fn refused(result: Result<(), i32>) -> Result<(), Refused> {
    match result {
        Ok(()) => Ok(()),
        Err(EXISTS) => Err(Refused::Exists),
        Err(_) => Err(Refused::Full),
    }
}

/// Tells the agent that a device's driver gives XDP no metadata.
#[inline(always)]
pub(crate) fn note_no_metadata(ifindex: u32) {
    if let Some(device) = DEVICES.get_ptr_mut(ifindex) {
        // SAFETY: a value of the map. All CPUs set the same bit; one that the agent's write of a new element loses comes
        // back with the next packet.
        unsafe { (*device).flags |= DeviceFlags::NO_METADATA };
    }
}

/// Goes on with the program for fragments of this hook. Comes back where the agent has put none there; the fragment is then
/// the stack's, and counted.
#[inline(always)]
pub(crate) fn serve_fragment<C: EbpfContext>(context: &C, hook: u8) {
    // SAFETY: nothing is left to be dropped.
    unsafe {
        if hook == FragmentHook::XDP {
            XDP_CALLS.tail_call(context, 0);
        } else {
            TC_CALLS.tail_call(context, u32::from(FragmentHook::slot(hook)));
        }
    }
    Node.count(Reason::FRAGMENT);
}

/// What is noted of the frame at hand where a device carries others.
#[inline(always)]
pub(crate) fn lane() -> Lane {
    LANE.get(0).copied().unwrap_or_default()
}

/// Index of the device to which the frame at hand belongs.
#[inline(always)]
pub(crate) fn lane_ifindex() -> u32 {
    LANE.get(0).map_or(0, |lane| lane.ifindex)
}

/// Changes what is noted of the frame at hand.
#[inline(always)]
pub(crate) fn note_lane(change: impl FnOnce(&mut Lane)) {
    if let Some(lane) = LANE.get_ptr_mut(0) {
        // SAFETY: this CPU's own copy, and no other program of ours runs on it meanwhile.
        change(unsafe { &mut *lane });
    }
}

/// The node, by its maps and helpers.
pub(crate) struct Node;

impl Carriers for Node {
    #[inline(always)]
    fn carried(&self, key: &CarriedKey) -> Option<Carried> {
        // SAFETY: entries are replaced whole by user space; the copy is taken at once.
        unsafe { CARRIED.get(key) }.copied()
    }

    #[inline(always)]
    fn carrier(&self, ifindex: u32) -> Option<Carrier> {
        // SAFETY: entries are replaced whole by user space; the copy is taken at once.
        unsafe { CARRIERS.get(ifindex) }.copied()
    }
}

impl Kernel for Node {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0).filter(|settings| settings.version != 0)
    }

    #[inline(always)]
    fn gate(&self, entry: u32) -> u64 {
        GATE.get(entry).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<&Device> {
        // SAFETY: user space replaces devices whole, by new elements.
        unsafe { DEVICES.get(ifindex) }
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<Service> {
        let service = SERVICE.get_ptr(id)?;
        // SAFETY: a value of the array; the volatile read takes offset and size in one 8-byte load each time.
        Some(unsafe { service.read_volatile() })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Target> {
        SLOT.get(index).copied()
    }

    #[inline(always)]
    fn is_target(&self, key: &TargetKey) -> bool {
        TARGETS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn is_eligible(&self, key: &EligibleKey) -> bool {
        ELIGIBLE.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn tagged(&self, key: &TagKey) -> Option<Target> {
        // SAFETY: tags are replaced whole by user space; the copy is taken at once.
        unsafe { TAGS.get(key) }.copied()
    }

    #[inline(always)]
    fn turn(&self, backend: u32) -> Option<Live<'_, Turn>> {
        // SAFETY: array values live as long as the map.
        TURNS.get_ptr_mut(backend).and_then(NonNull::new).map(|turn| unsafe { Live::new(turn) })
    }

    #[inline(always)]
    fn tell(&self, arrival: &Arrival) {
        // The agent that is away, or slow, reads the turn itself when it comes.
        let _not_heard = ARRIVALS.output(*arrival, 0);
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn spend(&self, take: impl FnOnce(&mut Bucket) -> bool) -> bool {
        match ANSWERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own copy, and no other program of ours runs on it meanwhile.
            Some(bucket) => take(unsafe { &mut *bucket }),
            None => false,
        }
    }

    #[inline(always)]
    fn count_tries(&self, tries: Tries) {
        if let Some(counter) = SNAT_TRIES.get_ptr_mut(tries.index()) {
            // SAFETY: this CPU's own copy.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }

    #[inline(always)]
    fn account(&self, backend: u32, add: impl FnOnce(&mut Traffic)) {
        if let Some(traffic) = TRAFFIC.get_ptr_mut(backend) {
            // SAFETY: this CPU's own copy, and no other program of ours runs on it meanwhile.
            add(unsafe { &mut *traffic });
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = REASONS.get_ptr_mut(reason.number()) {
            // SAFETY: this CPU's own copy.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what entries hold")]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn route<F: Family>(&self, context: *mut c_void, ifindex: u32, query: &Query<'_, F::Address>) -> Route {
        helpers::route::<F>(context, ifindex, query)
    }

    #[inline(always)]
    fn has_socket<F: Family>(
        &self,
        context: *mut c_void,
        protocol: Protocol,
        ends: &Ends<F::Address>,
    ) -> bool {
        helpers::has_socket::<F>(context, protocol, ends)
    }

    #[inline(always)]
    fn search<S: Search<Self>>(&self, count: u32, search: &mut S) {
        helpers::repeat(count, search);
    }

    #[inline(always)]
    fn trace<P: Packet>(&self, packet: &P, step: Step, detail: u32) {
        Tracing::tell(packet, step, detail);
    }
}

/// One table walked by [`helpers::each`].
macro_rules! walk {
    ($($function:ident $map:ident $callback:ident;)*) => {
        $(
            #[inline(always)]
            pub(crate) fn $function() {
                helpers::each((&raw const $map).cast_mut().cast(), crate::sweep::$callback);
            }
        )*
    };
}

walk! {
    flows_v4 FLOWS_V4 flow_v4;
    flows_v6 FLOWS_V6 flow_v6;
    half_flows_v4 HALF_FLOWS_V4 half_flow_v4;
    half_flows_v6 HALF_FLOWS_V6 half_flow_v6;
    replies_v4 REPLIES_V4 reply_v4;
    replies_v6 REPLIES_V6 reply_v6;
    half_replies_v4 HALF_REPLIES_V4 half_reply_v4;
    half_replies_v6 HALF_REPLIES_V6 half_reply_v6;
    inherited_v4 INHERITED_V4 inherited_v4;
    inherited_v6 INHERITED_V6 inherited_v6;
    affinity_v4 AFFINITY_V4 client_v4;
    affinity_v6 AFFINITY_V6 client_v6;
}

/// Maps that only user space reads stay in the object because a program refers to them.
#[inline(always)]
pub(crate) fn keep() {
    let _kept = SERVICE_NAMES.get_ptr(u32::MAX).is_some();
    let _kept = BACKEND_NAMES.get_ptr(u32::MAX).is_some();
    let nobody = NeighbourKey { ifindex: 0, address: Address6 { octets: [0; 16] } };
    let _kept = NEIGHBOURS.get_ptr(nobody).is_some();
}
