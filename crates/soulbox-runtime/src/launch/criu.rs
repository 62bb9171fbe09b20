//! The launcher as the first half of CRIU: it makes the surroundings that a dump or a restore needs, and becomes CRIU.
//!
//! All of it happens in a mount namespace of its own, so the host's mount table shows none of it. CRIU's parent is then the agent, and
//! so is the restored tree's.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::CWD;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use rustix::process::{Pid, WaitOptions, setsid, waitpid};
use soulbox_sys::namespace::{Forked, fork, unshare};

use super::channel::{Channel, CriuPlan, FromLauncher, ToLauncher};
use super::outside::write_maps;
use super::{LaunchError, Step};

/// Where the mounts of a restore lie while CRIU works: in its own /run.
pub const MOUNTS: [&str; 3] = ["/run/mounts/root", "/run/mounts/shm", "/run/mounts/guests"];

/// Does not return when all goes well. `descriptors`: the tmpfs for /run, CRIU's socket, then for a restore cgroup files to join, for a dump
/// what CRIU is to hold open.
pub(super) fn run(
    control: &Channel,
    plan: &CriuPlan,
    descriptors: Vec<OwnedFd>,
) -> Result<(), LaunchError> {
    // So whoever ends it ends what it has begun. A group in the agent's session would be hung up on at the agent's end, if CRIU stands still.
    setsid().step("begin a session of its own")?;
    let mut descriptors = descriptors.into_iter();
    let (Some(own_run), Some(socket)) = (descriptors.next(), descriptors.next()) else {
        return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read the plan for CRIU");
    };
    let mut mounts = Vec::new();
    let mut held = Vec::new();
    let mut namespaces = libc::CLONE_NEWNS;
    if let Some((base, count)) = plan.ids {
        let user_namespace = mapped_user_namespace(base, count)?;
        control
            .send(&FromLauncher::Mapped, &[user_namespace.as_fd()])
            .step("report the user namespace")?;
        mounts = match control
            .receive::<ToLauncher>(None)
            .step("wait for the mounts")?
        {
            None => return Ok(()),
            Some((ToLauncher::Mounts, mounts)) if mounts.len() == MOUNTS.len() => mounts,
            Some(_) => {
                return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("wait for the mounts");
            }
        };
        for cgroup in descriptors {
            fs::File::from(cgroup)
                .write_all(b"0")
                .step("join a cgroup")?;
        }
        // The tree inherits it, with the sandbox's cgroups as its roots.
        namespaces |= libc::CLONE_NEWCGROUP;
    } else {
        held.extend(descriptors);
    }
    unshare(namespaces).step("make namespaces for CRIU")?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .step("make all mounts private")?;
    place(&own_run, "/run").step("mount a /run of its own")?;
    for (mount, path) in mounts.iter().zip(MOUNTS) {
        fs::create_dir_all(path).step(format!("make {path}"))?;
        place(mount, path).step(format!("mount {path}"))?;
    }
    drop((own_run, mounts));
    for passed in held.iter().chain([&socket]) {
        fcntl_setfd(passed, FdFlags::empty()).step("pass a descriptor on")?;
    }
    let [program, arguments @ ..] = plan.program.as_slice() else {
        return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read the plan for CRIU");
    };
    let error = Command::new(program)
        .args(arguments)
        .args(["swrk", &socket.as_raw_fd().to_string()])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .exec();
    Err(error).step("execute CRIU")
}

fn place(mount: &OwnedFd, path: &str) -> io::Result<()> {
    move_mount(
        mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// A user namespace with that range and nobody in it: the overlay's IDs are mapped by one before the restored tree has its own.
fn mapped_user_namespace(base: u32, count: u32) -> Result<OwnedFd, LaunchError> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe");
    let ((made, tell_made), (end, tell_end)) = (pipe()?, pipe()?);
    match fork().step("fork")? {
        Forked::Child => {
            drop((made, tell_end));
            let unshared = unshare(libc::CLONE_NEWUSER);
            if unshared.is_ok() && rustix::io::write(&tell_made, b"m").is_ok() {
                // Until the parent has what it needs, or is gone.
                let _ = rustix::io::read(&end, &mut [0u8; 1]);
            }
            std::process::exit(i32::from(unshared.is_err()));
        }
        Forked::Parent { pid } => {
            drop((tell_made, end));
            let opened = match rustix::io::read(&made, &mut [0u8; 1]) {
                Ok(1) => write_maps(pid, base, count).and_then(|()| {
                    fs::File::open(format!("/proc/{pid}/ns/user")).step("open a user namespace")
                }),
                _ => Err(io::Error::from_raw_os_error(libc::EPERM)).step("make a user namespace"),
            };
            drop(tell_end);
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
            opened.map(OwnedFd::from)
        }
    }
}
