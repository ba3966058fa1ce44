//! Memory that has had its use. Start-up and a sync of a whole cluster take several times what stays; the C
//! library keeps what was freed in between what was not, for as long as it is not asked.

use nix::unistd::{SysconfVar, sysconf};

/// A sync that writes this much has left something to give back.
pub(super) const PEAK: usize = 1000;

/// Gives free pages back to the system. Takes some milliseconds where there is much to give.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the system let go the pages of this program's file that hold `data`, which is read once. Who reads it again has it read
/// from the file.
pub(super) fn let_go(data: &'static [u8]) {
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
    let page = page.unsigned_abs() as usize;
    let range = data.as_ptr_range();
    // Whole pages only: beside them is what others read.
    let begin = (range.start as usize).next_multiple_of(page);
    let length = (range.end as usize).saturating_sub(begin) / page * page;
    if length == 0 {
        return;
    }
    // SAFETY: the pages lie within `data`, which is constant: a private mapping of the file that nobody writes to. What the
    // advice drops is what the file has.
    let done = unsafe { libc::madvise(begin as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    if done != 0 {
        tracing::debug!("the BPF object stays in memory: {}", std::io::Error::last_os_error());
    }
}
