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

/// Gives a traced process that is stopped the registers of the kind `note` (NT_PRSTATUS and others of elf.h), as the kernel has given them.
///
/// # Errors
/// The kernel's: it is not stopped or has gone, or these are no such registers.
pub fn set_registers(pid: i32, note: i32, registers: &[u8]) -> io::Result<()> {
    let vector = libc::iovec {
        iov_base: registers.as_ptr().cast_mut().cast(),
        iov_len: registers.len(),
    };
    // SAFETY: the kernel reads the vector and what it points to, both of which live until the call returns, and writes neither but the
    // vector's length; it takes the kind of registers as an address.
    let outcome = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            pid,
            ptr::without_provenance_mut::<c_void>(note.unsigned_abs() as usize),
            (&raw const vector).cast_mut().cast::<c_void>(),
        )
    };
    if outcome == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives a traced process that is stopped a mask of blocked signals.
///
/// # Errors
/// The kernel's: it is not stopped or has gone.
pub fn set_signal_mask(pid: i32, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes of the mask as it is told, and the mask lives until the call returns.
    let outcome = unsafe {
        libc::ptrace(
            libc::PTRACE_SETSIGMASK,
            pid,
            ptr::without_provenance_mut::<c_void>(size_of::<u64>()),
            (&raw const mask).cast_mut().cast::<c_void>(),
        )
    };
    if outcome == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
