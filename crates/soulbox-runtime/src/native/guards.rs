//! What a slot holds in the kernel beside its cgroup: init, namespaces, its place in the host's network. Each undoes itself.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::identity::Slot;
use crate::network::{HostNetwork, NetworkError};

/// SIGKILL to the end of a process: more than this only in an uninterruptible wait for a disk.
const END_TIMEOUT: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Init of a slot.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pidfd: OwnedFd,
    pub(super) ends_with_this: bool,
}

impl Process {
    pub(super) fn kill(&self) {
        // ESRCH: it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for the end, for at most [`END_TIMEOUT`]; says whether it came. Adopted ones are not our children (ECHILD): whoever
    /// inherited them reaps them.
    pub(super) fn reap(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ended = loop {
            match poll(&mut polled, Some(&END_TIMEOUT)) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.is_ok_and(|ready| ready > 0),
            }
        };
        if ended {
            while let Err(rustix::io::Errno::INTR) = waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {}
        }
        ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ends_with_this {
            self.kill();
            self.reap();
        }
    }
}

/// The slot's elements in the sets of the host's rules; taken out when dropped.
#[derive(Debug)]
pub(super) struct Attached {
    network: Arc<HostNetwork>,
    slot: Slot,
    armed: bool,
}

impl Attached {
    /// See [`HostNetwork::attach`].
    pub(super) fn make(
        network: &Arc<HostNetwork>,
        slot: Slot,
        pid: i32,
    ) -> Result<Self, NetworkError> {
        network.attach(slot, pid)?;
        Ok(Self {
            network: Arc::clone(network),
            slot,
            armed: true,
        })
    }

    /// Gives up the guard: the sandbox outlives this process.
    pub(super) fn leave(mut self) {
        self.armed = false;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.armed {
            self.network.detach(self.slot);
        }
    }
}

#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) user: OwnedFd,
    pub(super) network: OwnedFd,
}

impl Namespaces {
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            user: open_namespace(pid, "user")?,
            network: open_namespace(pid, "net")?,
        })
    }
}

pub(super) fn open_namespace(pid: i32, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        format!("/proc/{pid}/ns/{name}"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Field 22 of /proc/PID/stat, proc_pid_stat(5).
pub(super) fn process_start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
