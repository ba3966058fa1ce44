//! Memory that a peak has left behind. Start-up and a sync of a whole cluster take several times what stays; the C
//! library keeps what was freed in between what was not, for as long as it is not asked.

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
