//! Credentials that the kernel keeps per thread and the C library would change for all threads.

use std::io;

/// Sets the file system user and group of the calling thread only. The thread keeps its capabilities for files only when it set
/// SECBIT_NO_SETUID_FIXUP before.
///
/// # Errors
/// `EPERM` when the kernel did not take the value: setfsuid(2) tells no error, so it is asked what it holds now.
/// Source: setfsuid(2), setfsgid(2)
pub fn set_thread_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: setfsgid(2) takes a plain number, touches no memory and changes this thread only.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: setfsuid(2) takes a plain number, touches no memory and changes this thread only.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    // SAFETY: an invalid ID (-1) changes nothing and makes the call return the current one.
    let now_gid = unsafe { libc::syscall(libc::SYS_setfsgid, u32::MAX) };
    // SAFETY: an invalid ID (-1) changes nothing and makes the call return the current one.
    let now_uid = unsafe { libc::syscall(libc::SYS_setfsuid, u32::MAX) };
    if now_uid as u32 == uid && now_gid as u32 == gid {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}
