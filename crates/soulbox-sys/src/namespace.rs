//! A child in namespaces of its own.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Which side of [`clone_into_namespaces`] returned.
#[derive(Debug)]
pub enum Cloned {
    Parent { child: OwnedFd, pid: i32 },
    Child,
}

/// Clones the process into a new user, mount, network, UTS, IPC, pid and cgroup namespace. The child has a copy of the memory (as
/// fork), is pid 1 of its pid namespace, and is a child of *this process's parent*. The parent side gets its pidfd.
///
/// # Errors
/// `EBUSY` when this process has more than one thread: a copy of it could find locks held for ever. Otherwise the kernel's.
/// Source: clone3(2)
pub fn clone_into_namespaces() -> io::Result<Cloned> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: libc::c_int = -1;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWCGROUP;
    let arguments = CloneArguments {
        flags: (namespaces | libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64,
        pidfd: (&raw mut pidfd) as u64,
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM the child runs on its own copy of the stack, as after fork(2); the process has one thread, so no lock
    // of the C library is held by a thread that the copy lacks. `pidfd` and `arguments` outlive the call. CLONE_PARENT forbids an exit signal.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArguments>(),
        )
    };
    match rc {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            // SAFETY: on success the kernel put a new descriptor into `pidfd`, which nobody else owns.
            let child = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                child,
                pid: pid as i32,
            })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// What [`fork`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    Parent { pid: i32 },
    Child,
}

/// fork(2) for a process with one thread.
///
/// # Errors
/// The kernel's. `EBUSY` when there is more than one thread, where /proc can tell.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread, so the child finds no lock held by a thread that it lacks.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent { pid }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct clone_args` up to `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Marks every descriptor from 3 on as closed on exec: whatever the starter of this process left open goes no further.
///
/// # Errors
/// The kernel's.
/// Source: close_range(2), CLOSE_RANGE_CLOEXEC
pub fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: the flag only marks descriptors; none is closed, so no owner of one is harmed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves this process, which has one thread, into new namespaces of the kinds in `flags` (`CLONE_NEW*`).
///
/// # Errors
/// `EBUSY` when there is more than one thread, where /proc can tell. Otherwise the kernel's.
/// Source: unshare(2)
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread, so no other one shares what is split off; no descriptor table is (CLONE_FILES is no CLONE_NEW*).
    match unsafe { libc::unshare(flags & !libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
