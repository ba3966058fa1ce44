//! Kernel helpers with types of ours.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibLookup, bpf_sock_tuple as SockTuple,
};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_fib_lookup, bpf_for_each_map_elem, bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use vmlb_common::abi::Plain;
use vmlb_common::family::Family;
use vmlb_common::kernel::{Ends, Query, Route, Search, Step};
use vmlb_common::packet::Packet;
use vmlb_common::wire::Protocol;

use crate::maps::Node;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct bpf_fib_lookup`, to be emptied word by word.
struct Question(FibLookup);

// SAFETY: a C structure of numbers, 64 octets, aligned to four.
unsafe impl Plain for Question {}

/// Asks the FIB of the device's network namespace.
#[inline(always)]
pub(crate) fn route<F: Family>(context: *mut c_void, ifindex: u32, query: &Query<'_, F::Address>) -> Route {
    let mut space = MaybeUninit::uninit();
    let Question(lookup) = Question::emptied(&mut space);
    lookup.family = if F::VERSION == 4 { AF_INET } else { AF_INET6 };
    lookup.l4_protocol = query.protocol;
    lookup.ifindex = ifindex;
    // SAFETY: both unions are 16 octets with the IPv4 address in front; an address of either family fits, aligned to 4.
    unsafe {
        copy(query.source, (&raw mut lookup.__bindgen_anon_3).cast());
        copy(query.destination, (&raw mut lookup.__bindgen_anon_4).cast());
    }
    // SAFETY: the context is this program's, the structure lives on our stack.
    let answer = unsafe { bpf_fib_lookup(context, &raw mut *lookup, size_of::<FibLookup>() as i32, 0) };
    const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
    const TOO_BIG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
    const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
    const FORWARDING_OFF: i64 = BPF_FIB_LKUP_RET_FWD_DISABLED as i64;
    match answer {
        // SAFETY: both fields of the union are numbers of 16 bits. Zero: a kernel that does not say.
        // At TC the packet's own length is checked behind a lookup that has succeeded (`bpf_skb_fib_lookup`).
        SUCCESS | TOO_BIG => match unsafe { lookup.__bindgen_anon_1.mtu_result } {
            0 => found(lookup, u32::MAX),
            mtu => found(lookup, u32::from(mtu)),
        },
        NO_NEIGHBOUR => Route::NoNeighbour { ifindex: lookup.ifindex, mtu: device_mtu(context, lookup) },
        FORWARDING_OFF => Route::ForwardingOff,
        _ => Route::None,
    }
}

/// The MTU of the device that a lookup has found; without a neighbour it says none of its own accord. Its source address,
/// which has done its work, is where the answer goes: the BPF stack is small.
#[inline(always)]
fn device_mtu(context: *mut c_void, lookup: &mut FibLookup) -> u32 {
    let ifindex = lookup.ifindex;
    let mtu: *mut u32 = (&raw mut lookup.__bindgen_anon_3).cast();
    // SAFETY: a number inside the structure, aligned to four; zero has the helper ask for nothing but the MTU.
    unsafe {
        mtu.write(0);
        if bpf_check_mtu(context, ifindex, mtu, 0, 0) < 0 { u32::MAX } else { mtu.read() }
    }
}

/// Copies an address word by word: LLVM would call `memmove`, a loop over octets.
///
/// # Safety
/// `to` has room for an address and is aligned to four.
#[inline(always)]
unsafe fn copy<A>(from: &A, to: *mut u32) {
    let words = (&raw const *from).cast::<u32>();
    let mut at = 0;
    while at < size_of::<A>() / 4 {
        // SAFETY: inside both addresses, which are aligned to four.
        unsafe { to.add(at).write_volatile(words.add(at).read_volatile()) };
        at += 1;
    }
}

#[inline(always)]
fn found(lookup: &FibLookup, mtu: u32) -> Route {
    Route::Found { ifindex: lookup.ifindex, source: lookup.smac, destination: lookup.dmac, mtu }
}

/// Whether a socket of this namespace would take the packet. [`Ends`] has the layout of `struct bpf_sock_tuple` for
/// either family, but for the byte order of the ports.
#[inline(always)]
pub(crate) fn has_socket<F: Family>(
    context: *mut c_void,
    protocol: Protocol,
    ends: &Ends<F::Address>,
) -> bool {
    let mut ends = Ends {
        source_port: ends.source_port.to_be(),
        destination_port: ends.destination_port.to_be(),
        ..*ends
    };
    let size = size_of::<Ends<F::Address>>() as u32;
    let netns = BPF_F_CURRENT_NETNS as u64;
    let ends: *mut SockTuple = (&raw mut ends).cast();
    // SAFETY: the structure has the size and layout that the helper reads for this family, and every reference that it
    // hands out is released.
    unsafe {
        let socket = if protocol == Protocol::TCP {
            bpf_skc_lookup_tcp(context, ends, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(context, ends, size, netns, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// A callback of `bpf_for_each_map_elem`: map, key, value, context; 0 goes on.
pub(crate) type Visit = extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut c_void) -> i64;

/// Calls `visit` for every entry of a map.
#[inline(always)]
pub(crate) fn each(map: *mut c_void, visit: Visit) {
    // SAFETY: the map is one of ours, and the callback's types are its types.
    unsafe { bpf_for_each_map_elem(map, visit as *mut c_void, core::ptr::null_mut(), 0) };
}

/// `bpf_loop`: steps until one ends the search.
#[inline(always)]
pub(crate) fn repeat<S: Search<Node>>(count: u32, search: &mut S) {
    extern "C" fn step<S: Search<Node>>(number: u64, search: *mut c_void) -> i64 {
        // SAFETY: what `repeat` gave the helper.
        let search = unsafe { &mut *search.cast::<S>() };
        i64::from(search.step(&Node, number as u32))
    }
    let callback: extern "C" fn(u64, *mut c_void) -> i64 = step::<S>;
    // SAFETY: the search outlives the call, and the callback takes its type.
    unsafe { bpf_loop(count, callback as *mut c_void, (&raw mut *search).cast(), 0) };
}

/// Trace mode: a constant of the loaded object, so that the verifier removes what it gates when it is off.
#[unsafe(no_mangle)]
static TRACE: u8 = 0;

/// Log lines of trace mode.
pub(crate) struct Tracing;

struct Context(*mut c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

impl Tracing {
    /// One line: step number and detail; the agent's formatter knows the words.
    #[inline(always)]
    pub(crate) fn tell<P: Packet>(packet: &P, step: Step, detail: u32) {
        // SAFETY: a static of ours; volatile, because the loader writes it before the program runs.
        if unsafe { (&raw const TRACE).read_volatile() } != 0 {
            say(packet.context(), packet.ifindex(), step.0, detail);
        }
    }
}

#[inline(never)]
fn say(context: *mut c_void, ifindex: u32, step: u32, detail: u32) -> u32 {
    aya_log_ebpf::info!(&Context(context), "device {} step {} detail {}", ifindex, step, detail);
    0
}
