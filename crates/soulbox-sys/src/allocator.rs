//! The C library's allocator, which keeps what was freed for later.

/// Gives freed memory back to the system, holes between what is in use included. Blocks for well under a millisecond
/// when little is kept.
/// Source: malloc_trim(3)
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer and takes the allocator's own locks, so any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Lets this much freed memory stay at the end of the heap before it is given back by itself. The default of 128 KiB has
/// a program that handles pieces of that size shrink and grow its heap, and fault its pages in, for each of them. All
/// threads share the one heap: each further one would keep as much, where [`give_back`] does not reach.
/// To be called before a second thread is started. Returns whether the allocator took it.
/// Source: mallopt(3), M_TRIM_THRESHOLD and M_ARENA_MAX
pub fn keep_at_most(bytes: u32) -> bool {
    let Ok(bytes) = libc::c_int::try_from(bytes) else {
        return false;
    };
    // SAFETY: mallopt(3) takes two numbers and the allocator's own locks.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1) == 1
            && libc::mallopt(libc::M_TRIM_THRESHOLD, bytes) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_number_of_the_c_library() {
        assert!(keep_at_most(1 << 20));
        assert!(!keep_at_most(u32::MAX));
        give_back();
    }
}
