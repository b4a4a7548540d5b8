//! What the allocator is told: buffers of up to a MiB go through many threads here, and glibc's defaults keep four times
//! as much memory as is in use (measured: 540 MB against 130 MB under 4 KiB random writes). But a buffer that is mapped anew for
//! each write of 128 KiB, and faulted in, costs the collector three times the processor.

/// Returns to the system what was freed, wherever it lies: after work that took much and is not done again. Elsewhere than on
/// glibc: nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions, and what is in use stays.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Two arenas for all threads; large buffers are returned to the system when freed. Elsewhere than on glibc: nothing.
pub fn limit_allocator() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE_BYTES: libc::c_int = 512 << 10;
        // SAFETY: mallopt only sets parameters of the allocator; it is called before the threads are started.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 2);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 8 * LARGE_BYTES);
        }
    }
}
