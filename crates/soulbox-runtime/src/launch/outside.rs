//! The launcher's first life, as root of the host.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use soulbox_sys::namespace::{Cloned, clone_into_namespaces};

use super::channel::{Channel, FromLauncher};
use super::{LaunchError, Step, parked};
use crate::plan::SetupPlan;

/// Joins the cgroups, makes the child, maps its IDs. In the child this does not return.
pub(super) fn run(
    control: &Channel,
    plan: &SetupPlan,
    cgroups: Vec<OwnedFd>,
) -> Result<(), LaunchError> {
    for cgroup in cgroups {
        // A single-threaded process that writes `0` to `tasks` moves itself without the threadgroup lock, whose grace period costs 11-20 ms.
        fs::File::from(cgroup)
            .write_all(b"0")
            .step("join a cgroup")?;
    }
    // Opened while still root of the host: the data directory above it is closed to everybody else.
    let empty_root = open_tree(
        CWD,
        &*plan.empty_root,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .step("clone the empty root")?;
    let (mapped, tell_mapped) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    match clone_into_namespaces().step("clone into new namespaces")? {
        Cloned::Child => {
            drop(tell_mapped);
            std::process::exit(child(control, plan, empty_root, mapped));
        }
        Cloned::Parent { child, pid } => {
            write_maps(pid, plan.id_base, plan.id_count)?;
            control
                .send(&FromLauncher::Cloned { pid }, &[child.as_fd()])
                .step("report the child")?;
            rustix::io::write(&tell_mapped, b"m").step("wake the child")?;
            Ok(())
        }
    }
}

/// Maps the slot's range to 0 and up. Only the host's root can write more than one ID.
pub(super) fn write_maps(pid: i32, base: u32, count: u32) -> Result<(), LaunchError> {
    let map = format!("0 {base} {count}\n");
    for name in ["uid_map", "gid_map"] {
        // The kernel takes a map in one write only.
        fs::write(format!("/proc/{pid}/{name}"), &map).step(format!("write {name}"))?;
    }
    Ok(())
}

fn child(control: &Channel, plan: &SetupPlan, empty_root: OwnedFd, mapped: OwnedFd) -> i32 {
    let mut byte = [0u8; 1];
    match rustix::io::read(&mapped, &mut byte) {
        Ok(1) => {}
        // The other side failed and has told the agent.
        _ => return 1,
    }
    drop(mapped);
    match parked::run(control, plan, empty_root) {
        Ok(()) => 0,
        Err(error) => {
            let _ = control.send(&error.report(), &[]);
            1
        }
    }
}
