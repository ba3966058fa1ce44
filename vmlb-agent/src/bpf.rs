//! `bpf(2)` where aya does not reach: batches over maps, arrays as memory, entries of ABI types (aya's trait for them would
//! need a wrapper for each), and what a pinned link is attached to. The only place of the agent that needs `unsafe`.

use std::ffi::CString;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use vmlb_common::abi;
use vmlb_common::family::{Address, Address4, Address6};

mod map;
mod memory;
pub mod ring;
pub use map::PinnedMap;

/// `BPF_F_MMAPABLE`: the array can be mapped into the process.
pub const MAPPABLE: u32 = 1 << 10;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_TYPE_XDP: u32 = 6;
const LINK_TYPE_TCX: u32 = 11;
const ATTACH_TCX_INGRESS: u32 = 46;
const ATTACH_TCX_EGRESS: u32 = 47;
/// What the kernel answers to a batch command it does not know for this map type (`ENOTSUPP`, without a name in libc).
const ENOTSUPP: i32 = 524;

/// A type of the map ABI: plain octets, no padding that is not named, any bit pattern valid.
///
/// # Safety
/// Implementors hold no reference, no implicit padding and no value that is invalid for some bit pattern.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: repr(C) of integers and octet arrays, padding is explicit (sizes are asserted in vmlb-common).
        unsafe impl Plain for $type {}
    )*};
}

plain!(
    u32,
    u64,
    Address4,
    Address6,
    abi::Settings,
    abi::Device,
    abi::Carried,
    abi::CarriedKey,
    abi::Carrier,
    abi::Frontend,
    abi::Service,
    abi::Target,
    abi::TargetKey,
    abi::EligibleKey,
    abi::Affinity,
    abi::Bucket,
    abi::Arrival,
    abi::Pod,
    abi::TagKey,
    abi::Turn,
    abi::Hop,
    abi::Traffic,
    abi::ServiceName,
    abi::BackendName,
    abi::NeighbourKey,
    abi::Inherited,
    abi::FrontendKey<Address4>,
    abi::FrontendKey<Address6>,
);

macro_rules! plain_of_addresses {
    ($($type:ident),*) => {$(
        // SAFETY: repr(C) of integers, octet arrays and one of the two address types, padding is explicit.
        unsafe impl<A: Address> Plain for abi::$type<A> {}
    )*};
}

plain_of_addresses!(
    Backend,
    WireKey,
    FlowKey,
    ReplyKey,
    Flow,
    Reply,
    ClientKey,
    RangeKey,
    FragmentKey,
    Fragment
);

/// `union bpf_attr`, as far as the batch commands use it.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` of the commands for one entry.
#[repr(C)]
#[derive(Default)]
struct EntryAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info` and the two members of its union that we attach.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    first: u32,
    second: u32,
    rest: [u32; 26],
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    let size = u32::try_from(size_of::<A>()).map_err(io::Error::other)?;
    // SAFETY: `attr` lives through the call and `size` is its size; pointers in it are live for as long (see callers).
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn address_of<T>(place: &[T]) -> u64 {
    place.as_ptr().expose_provenance() as u64
}

fn descriptor(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// The value under `key`; `None`: there is none. Not for per-CPU maps.
///
/// # Errors
/// What the kernel says.
fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let mut attr = EntryAttr {
        map_fd: descriptor(map)?,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: value.as_mut_ptr().expose_provenance() as u64,
        ..EntryAttr::default()
    };
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: zeroed, then filled by the kernel; any octets are valid for `Plain` types.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes `value` under `key`. Not for per-CPU maps.
fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = EntryAttr {
        map_fd: descriptor(map)?,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: std::ptr::from_ref(value).expose_provenance() as u64,
        ..EntryAttr::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes `key`; whether it was there.
fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = EntryAttr {
        map_fd: descriptor(map)?,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        ..EntryAttr::default()
    };
    match bpf(MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first one; `None`: that was the last.
fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::zeroed();
    let mut attr = EntryAttr {
        map_fd: descriptor(map)?,
        key: key.map_or(0, |key| std::ptr::from_ref(key).expose_provenance() as u64),
        value: next.as_mut_ptr().expose_provenance() as u64,
        ..EntryAttr::default()
    };
    match bpf(MAP_GET_NEXT_KEY, &mut attr) {
        // SAFETY: zeroed, then filled by the kernel; any octets are valid for `Plain` types.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which entries a walk visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    /// All of them.
    All,
    /// So many entries of an array from an index on.
    Run(u32, u32),
}

/// Octets of values in a batch.
const BATCH_OCTETS: usize = 1 << 20;

/// Walks the map up to 4,096 entries at a time; `false`: the kernel has no such command for it (before 5.6; per-CPU arrays
/// before 5.13). `values_each` is 1, or the number of possible CPUs for a per-CPU map. Entries of a hash that come or go meanwhile
/// may or may not be visited. The walk ends early when `visit` says so.
fn walk<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    span: Span,
    values_each: usize,
    mut visit: impl FnMut(K, &[V]) -> ControlFlow<()>,
) -> io::Result<bool> {
    // The kernel rounds per-CPU values up to eight octets.
    let stride = if values_each > 1 { size_of::<V>().next_multiple_of(8) } else { size_of::<V>() };
    // Per-CPU values of a machine with many CPUs are large: a batch stays within a megabyte.
    let mut room: usize = (BATCH_OCTETS / (values_each * stride).max(1)).clamp(1, 4096);
    let mut left = usize::MAX;
    // A bucket number for hashes, the last index read for arrays; the kernel copies at most a key.
    let mut cursor = [0u32; 64];
    let mut next = [0u32; 64];
    let mut resumed = false;
    if let Span::Run(first, count) = span {
        left = count as usize;
        if let Some(before) = first.checked_sub(1) {
            cursor[0] = before;
            resumed = true;
        }
    }
    let mut started = false;
    while left > 0 {
        room = room.min(left);
        let mut keys: Vec<K> = Vec::with_capacity(room);
        // One more for each place between two values that holds none.
        let places = room * values_each;
        let mut values: Vec<V> = Vec::with_capacity((places * stride).div_ceil(size_of::<V>().max(1)));
        let mut attr = BatchAttr {
            in_batch: if resumed { address_of(&cursor) } else { 0 },
            out_batch: next.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: descriptor(map)?,
            ..BatchAttr::default()
        };
        let last = match bpf(MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A hash bucket with more entries than there is room for.
                Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP) if !started => return Ok(false),
                _ => return Err(error),
            },
        };
        let count = attr.count as usize;
        if count > room {
            return Err(io::Error::other("the kernel returned more entries than asked for"));
        }
        close_up(&mut values, count * values_each, stride);
        // SAFETY: the kernel filled `count` keys, and `count * values_each` values stand without gaps now, both within
        // capacity; any octets are valid for `Plain` types.
        unsafe {
            keys.set_len(count);
            values.set_len(count * values_each);
        }
        for (key, values) in keys.iter().zip(values.chunks(values_each)) {
            if visit(*key, values).is_break() {
                return Ok(true);
            }
        }
        if last {
            return Ok(true);
        }
        left -= count;
        cursor = next;
        (started, resumed) = (true, true);
    }
    Ok(true)
}

/// Moves `count` values that stand `stride` octets apart in the spare room of `values` next to one another.
fn close_up<V: Plain>(values: &mut Vec<V>, count: usize, stride: usize) {
    if stride == size_of::<V>() {
        return;
    }
    let first = values.as_mut_ptr();
    for number in 1..count {
        // SAFETY: both places are within the capacity, which holds `count` times `stride` octets that the kernel has written;
        // `copy` minds that they overlap, and neither octets nor their place are asked for alignment.
        unsafe {
            let from = first.cast::<u8>().add(number * stride);
            std::ptr::copy(from, first.add(number).cast::<u8>(), size_of::<V>());
        }
    }
}

/// Writes `values` under `keys` in one call; `None`: the kernel has no such command for this map, write one by one.
///
/// # Errors
/// What the kernel says; entries before the failing one are written.
fn update_batch<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<Option<()>> {
    if keys.len() != values.len() {
        return Err(io::Error::other("as many keys as values are needed"));
    }
    let mut attr = BatchAttr {
        keys: address_of(keys),
        values: address_of(values),
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: descriptor(map)?,
        ..BatchAttr::default()
    };
    match bpf(MAP_UPDATE_BATCH, &mut attr) {
        Ok(_) => Ok(Some(())),
        Err(error) => match error.raw_os_error() {
            // A real EINVAL shows again when the caller writes one by one.
            Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Waits until every program that runs now has ended: what they have read of a map is used no more.
pub fn wait_for_programs() {
    // MEMBARRIER_CMD_GLOBAL. A program is a reader by RCU, and this waits for a grace period.
    // SAFETY: membarrier(2) takes no pointers.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) };
    if done != 0 {
        // Not there with nohz_full. A program runs for microseconds; a virtual CPU may be held up in the middle.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Which hook of a device a link holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkHook {
    /// XDP.
    Xdp,
    /// TCX ingress.
    TcxIngress,
    /// TCX egress.
    TcxEgress,
}

/// What a pinned link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    /// Where on the device.
    pub hook: LinkHook,
    /// Interface index; 0 once the device is gone.
    pub ifindex: u32,
    /// Id of the program.
    pub program: u32,
}

/// What the link pinned at `path` is attached to; `None`: a link of another kind than vmlb makes.
///
/// # Errors
/// When there is no pin, or it is no link.
pub fn pinned_link_target(path: &Path) -> io::Result<Option<LinkTarget>> {
    let fd = pinned_object(path)?;
    let mut info = RawLinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: descriptor(fd.as_fd())?,
        info_len: u32::try_from(size_of::<RawLinkInfo>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let hook = match (info.kind, info.second) {
        (LINK_TYPE_XDP, _) => LinkHook::Xdp,
        (LINK_TYPE_TCX, ATTACH_TCX_INGRESS) => LinkHook::TcxIngress,
        (LINK_TYPE_TCX, ATTACH_TCX_EGRESS) => LinkHook::TcxEgress,
        _ => return Ok(None),
    };
    Ok(Some(LinkTarget { hook, ifindex: info.first, program: info.program }))
}

fn pinned_object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { pathname: path.as_ptr().expose_provenance() as u64, ..ObjectAttr::default() };
    let fd = bpf(OBJ_GET, &mut attr)?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
