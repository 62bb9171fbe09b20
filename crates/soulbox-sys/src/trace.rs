//! What a tracer may ask for, beside what `nix` has.

use std::ffi::c_void;
use std::{io, ptr};

/// Leaves a traced process in the stop that a signal such as SIGSTOP has put it into, until SIGCONT; its tracer goes on hearing of it.
/// Of a process that the calling thread seized and that is in such a stop.
///
/// # Errors
/// The kernel's: it has gone, or is in no such stop.
pub fn leave_stopped(pid: i32) -> io::Result<()> {
    let nothing = ptr::null_mut::<c_void>();
    // SAFETY: the request takes neither address nor data, so no memory is read or written.
    let outcome = unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid, nothing, nothing) };
    if outcome == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
