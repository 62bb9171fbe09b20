//! The C library's allocator, which keeps what was freed for later.

/// Gives freed memory back to the system, holes between what is in use included. Blocks for well under a millisecond
/// when little is kept.
/// Source: malloc_trim(3)
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer and takes the allocator's own locks, so any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}
