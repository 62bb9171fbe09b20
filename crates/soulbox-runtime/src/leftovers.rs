//! What a crashed installation has left in the kernel: found without changing anything, and removed without starting the runtime.
//!
//! Only what carries the installation's own names counts, each as this crate writes them; what merely looks alike stays.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::{Hierarchies, REMOVE_TIMEOUT};
use crate::identity::{Instance, Slot};
use crate::native::NativeError;
use crate::network::found::{NetworkObjects, slot_of};
use crate::network::{HostNetwork, NetworkError};

/// SIGKILL to the end of a process.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects of one installation in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes in the cgroups of slots.
    pub processes: Vec<(i32, Slot)>,
    /// Network namespaces of those processes, by inode; each goes with its last process.
    pub network_namespaces: Vec<(u64, Slot)>,
    pub network: NetworkObjects,
    /// Directories, those of slots before their parent.
    pub cgroups: Vec<PathBuf>,
}

impl Leftovers {
    /// Finds them.
    ///
    /// # Errors
    /// See [`NativeError`].
    pub fn of(instance: Instance) -> Result<Self, NativeError> {
        let hierarchies = Hierarchies::discover()?;
        let own = network_namespace("self");
        let mut found = Self {
            network: NetworkObjects::of(instance)?,
            ..Self::default()
        };
        for slot in slots(&hierarchies, instance) {
            for pid in hierarchies.processes(&slot.cgroup()) {
                found.processes.push((pid, slot));
                let namespace = network_namespace(&pid.to_string()).filter(|it| Some(*it) != own);
                let known = &mut found.network_namespaces;
                known.extend(
                    namespace
                        .filter(|it| !known.iter().any(|(known, _)| known == it))
                        .map(|it| (it, slot)),
                );
            }
            found
                .cgroups
                .extend(hierarchies.directories(&slot.cgroup()));
        }
        found
            .cgroups
            .extend(hierarchies.directories(&instance.cgroup()));
        Ok(found)
    }
}

/// Ends the processes and removes everything of the installation. No agent of it may run. Blocks for some 10 ms a slot.
///
/// # Errors
/// The first object that could not be removed, see [`NativeError`]; may be repeated.
pub fn remove(instance: Instance) -> Result<(), NativeError> {
    let hierarchies = Hierarchies::discover()?;
    let slots = slots(&hierarchies, instance);
    let mut ending = Vec::new();
    for slot in &slots {
        for pid in hierarchies.processes(&slot.cgroup()) {
            ending.extend(kill(pid, || hierarchies.processes(&slot.cgroup()))?);
        }
    }
    for (pid, process) in ending {
        if !ended(&process) {
            return Err(NativeError::StillRunning { pid });
        }
    }
    let network = HostNetwork::open(instance)?;
    let interfaces = NetworkObjects::of(instance)?.interfaces;
    for slot in slots.iter().chain(&interfaces) {
        network.forget_connections(*slot)?;
        // Absent by now, where the namespace went with the processes.
        network
            .delete_interface(&slot.interface())
            .map_err(|source| NetworkError::Netlink {
                step: format!("delete {}", slot.interface()),
                source,
            })?;
    }
    for slot in &slots {
        hierarchies.adopt(&slot.cgroup()).remove(REMOVE_TIMEOUT)?;
    }
    crate::native::remove(instance)
}

fn slots(hierarchies: &Hierarchies, instance: Instance) -> Vec<Slot> {
    hierarchies
        .children(&instance.cgroup())
        .iter()
        .filter_map(|name| slot_of(instance, name))
        .collect()
}

fn network_namespace(process: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{process}/ns/net")).ok()?;
    let link = link.to_str()?;
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Sends SIGKILL; none when it has ended already.
fn kill(
    pid: i32,
    members: impl FnOnce() -> Vec<i32>,
) -> Result<Option<(i32, OwnedFd)>, NativeError> {
    let failed = |source: io::Error| NativeError::Io {
        step: "end a process",
        source,
    };
    let Some(named) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    let process = match pidfd_open(named, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        other => other.map_err(|error| failed(error.into()))?,
    };
    // Looked at after the descriptor was opened: the number may have gone to a process of somebody else's.
    if !members().contains(&pid) {
        return Ok(None);
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(Some((pid, process))),
        Err(error) => Err(failed(error.into())),
    }
}

fn ended(process: &OwnedFd) -> bool {
    let patience = Timespec {
        tv_sec: END_TIMEOUT.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}
