//! Socket options that no well-kept crate sets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Marks a socket, for rules and for telling it from others. Needs NET_ADMIN or NET_RAW over its network namespace.
///
/// # Errors
/// `EPERM` without the capability.
/// Source: socket(7), SO_MARK
pub fn set_mark(socket: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the borrow; the value is a `u32` that lives through the call and its size is told.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const mark).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
