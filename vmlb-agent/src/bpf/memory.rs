//! Entries of an array as memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::Plain;

/// Stores `values` in an array that can be mapped, from index `first` on. Packets must not look there yet: what they see
/// meanwhile is any mixture. A later call of `bpf(2)` is not seen before this one's values. Mapped for as long only, so that
/// the pages are not counted as the agent's.
///
/// # Errors
/// What the kernel says, also where the array is shorter.
pub(super) fn store<V: Plain>(map: BorrowedFd<'_>, first: u32, values: &[V]) -> io::Result<()> {
    // The kernel lays entries out at multiples of eight octets.
    if !size_of::<V>().is_multiple_of(8) {
        return Err(io::Error::other("entries that do not lie one after the other"));
    }
    let octets = size_of_val(values);
    if octets == 0 {
        return Ok(());
    }
    let start = first as usize * size_of::<V>();
    let lead = start % page_size()?;
    let offset = libc::off_t::try_from(start - lead).map_err(io::Error::other)?;
    let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at a place that the kernel chooses concerns no memory of ours.
    let place =
        unsafe { libc::mmap(ptr::null_mut(), lead + octets, access, shared, map.as_raw_fd(), offset) };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is `lead + octets` long, was made a moment ago, and nothing keeps a pointer into it.
    let undone = unsafe {
        ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), place.cast::<u8>().add(lead), octets);
        libc::munmap(place, lead + octets)
    };
    if undone == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn page_size() -> io::Result<usize> {
    // SAFETY: sysconf(3) takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).map_err(io::Error::other)
}
