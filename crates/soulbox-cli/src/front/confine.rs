//! What the front gives up before it parses its first byte: the file system, every privilege, most of the kernel.
//!
//! It starts as root by the agent's hand, with two descriptors, and ends as a user of its own in a root that holds one directory.
//! tests/front.rs reads the outcome from /proc.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::seccomp::{self, SeccompError, Sockets};

/// Where the control directory lies inside.
pub(super) const DATA: &str = "/data";
/// Where the socket lies inside by which the database is reached, and the number in its name.
pub(super) const DATABASE: &str = "/database";
pub(super) const DATABASE_PORT: u16 = 5432;
/// An empty directory of every Linux; what is in it is hidden from the front only.
const STAGE: &str = "/mnt";

/// A step that was not possible; the front must not go on without it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[error("user 0 is no user for the front")]
    UserIsRoot,
    #[error("failed to {step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("a privilege is left: {0}")]
    Left(&'static str),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError::Step {
        step,
        source: error.into(),
    }
}

/// Confines this process for good: `data` becomes [`DATA`], the current directory, and all that it can open. Must be called by root, before
/// there is a second thread.
///
/// With `database`, there is a unix socket at [`DATABASE`] in the private root, whose listener is the result, and the process has a network
/// namespace of its own: what it connects to can be nothing but that socket. Listeners that it inherits stay where they are.
pub(super) fn confine(
    data: OwnedFd,
    user: u32,
    database: bool,
) -> Result<Option<UnixListener>, ConfineError> {
    if user == 0 {
        return Err(ConfineError::UserIsRoot);
    }
    raise_descriptor_limit()?;
    let relay = move_into(data, database)?;
    drop_privileges(user)?;
    check(user)?;
    seccomp::install(match relay {
        Some(_) => Sockets::Unix,
        None => Sockets::None,
    })?;
    Ok(relay)
}

/// A proxied connection takes two descriptors; the soft limit is often 1024.
fn raise_descriptor_limit() -> Result<(), ConfineError> {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .map_err(at("raise the limit of descriptors"))
}

/// A private mount namespace whose root is an empty, read-only tmpfs with the control directory in it. The directory is taken by its descriptor, so
/// that directories above it need not be open to the front's user.
fn move_into(data: OwnedFd, database: bool) -> Result<Option<UnixListener>, ConfineError> {
    let inert = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    // Before the new namespace: only mounts of one's own namespace can be cloned.
    let tree = rustix::mount::open_tree(data.as_fd(), "", clone)
        .map_err(at("clone the mount of the control directory"))?;
    drop(data);
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if database {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    nix::sched::unshare(namespaces).map_err(at("make namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("make the mounts private"))?;
    rustix::mount::mount(
        "soulbox-front",
        STAGE,
        "tmpfs",
        inert,
        Some(c"size=64k,nr_inodes=8,mode=0755"),
    )
    .map_err(at("mount a root"))?;
    rustix::process::chdir(STAGE).map_err(at("enter the root"))?;
    std::fs::create_dir("data").map_err(at("make a place for the control directory"))?;
    let relay = database
        .then(make_relay)
        .transpose()
        .map_err(at("make a socket for the database"))?;
    rustix::mount::move_mount(
        tree.as_fd(),
        "",
        CWD,
        "data",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(at("mount the control directory"))?;
    rustix::mount::mount_remount("data", MountFlags::BIND | inert, "")
        .map_err(at("restrict the control directory"))?;
    // pivot_root(2): with both the same directory, the old root is stacked on the new one and can be detached without a place for it.
    rustix::process::pivot_root(".", ".").map_err(at("change the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("leave the old root"))?;
    rustix::mount::mount_remount("/", MountFlags::RDONLY | inert, "")
        .map_err(at("make the root read-only"))?;
    // The current directory is also where SQLite puts temporary files when nothing else is writable.
    rustix::process::chdir(DATA).map_err(at("enter the control directory"))?;
    Ok(relay)
}

/// The socket to which the database's client connects, below the current directory.
fn make_relay() -> io::Result<UnixListener> {
    let directory = Path::new(DATABASE.trim_start_matches('/'));
    std::fs::create_dir(directory)?;
    let path = directory.join(format!(".s.PGSQL.{DATABASE_PORT}"));
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    // The user that this process becomes; nobody else sees this root.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn drop_privileges(user: u32) -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(at("set no_new_privs"))?;
    for number in 0..u64::BITS {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            1 << number,
        )) {
            Ok(()) => {}
            // The kernel's last capability was the one before.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(at("empty the bounding set")(error)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(at("empty the ambient set"))?;
    let (user_id, group_id) = (Uid::from_raw(user), Gid::from_raw(user));
    nix::unistd::setgroups(&[]).map_err(at("leave all groups"))?;
    nix::unistd::setresgid(group_id, group_id, group_id).map_err(at("change the group"))?;
    nix::unistd::setresuid(user_id, user_id, user_id).map_err(at("change the user"))?;
    // The change of user emptied the other two; inheritable ones stay without this.
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets).map_err(at("drop all capabilities"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(at("become undumpable"))
}

/// Trusts none of the calls above.
fn check(user: u32) -> Result<(), ConfineError> {
    let users = nix::unistd::getresuid().map_err(at("read the user"))?;
    let groups = nix::unistd::getresgid().map_err(at("read the group"))?;
    if [users.real, users.effective, users.saved] != [Uid::from_raw(user); 3] {
        return Err(ConfineError::Left("user"));
    }
    if [groups.real, groups.effective, groups.saved] != [Gid::from_raw(user); 3] {
        return Err(ConfineError::Left("group"));
    }
    if !nix::unistd::getgroups()
        .map_err(at("read the groups"))?
        .is_empty()
    {
        return Err(ConfineError::Left("groups"));
    }
    let sets = rustix::thread::capabilities(None).map_err(at("read the capabilities"))?;
    if !(sets.effective | sets.permitted | sets.inheritable).is_empty() {
        return Err(ConfineError::Left("capabilities"));
    }
    if !rustix::thread::no_new_privs().map_err(at("read no_new_privs"))? {
        return Err(ConfineError::Left("no_new_privs"));
    }
    if nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(ConfineError::Left("the way back to root"));
    }
    Ok(())
}
