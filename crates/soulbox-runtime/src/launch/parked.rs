//! The launcher's second life: pid 1 inside, first with the host's root, then with an empty one, then with the sandbox's.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use soulbox_sys::mount::{MountAttributes, set_attributes};
use soulbox_sys::namespace::{Forked, fork};
use soulbox_sys::seccomp::{self, Instruction};

use super::channel::{Channel, FromLauncher, ToLauncher};
use super::{LaunchError, Step};
use crate::network;
use crate::plan::{BootPlan, GUEST_DIR, SetupPlan};

/// The file systems made while the host's /proc and /sys are visible: afterwards the kernel refuses new ones in a user namespace.
struct FileSystems {
    proc: OwnedFd,
    sys: OwnedFd,
    pts: OwnedFd,
}

/// From the freshly mapped child to the boot. Returns when the control socket ends before a boot plan came; after a boot it does not return.
pub(super) fn run(
    control: &Channel,
    plan: &SetupPlan,
    empty_root: OwnedFd,
) -> Result<(), LaunchError> {
    // CRIU refuses a pid 1 whose session leader is outside of its pid namespace.
    rustix::process::setsid().step("start a session")?;
    become_root()?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .step("make all mounts private")?;
    let file_systems = make_file_systems(plan)?;
    // Over the host's /proc, which every host has and nobody needs any more in here.
    move_mount(
        &empty_root,
        "",
        rustix::fs::CWD,
        "/proc",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step("attach the empty root")?;
    drop(empty_root);
    enter("/proc").step("move to the empty root")?;
    control.send(&FromLauncher::Inside, &[]).step("report")?;

    match control
        .receive::<ToLauncher>(None)
        .step("wait for the network")?
    {
        None => return Ok(()),
        Some((ToLauncher::NetworkReady, _)) => {}
        Some(_) => {
            return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("wait for the network");
        }
    }
    network::configure_inside(&plan.network).step("configure the network")?;
    let listener = TcpListener::bind(SocketAddrV4::new(
        Ipv4Addr::UNSPECIFIED,
        plan.network.listen_port,
    ))
    .step("listen on the port of envd")?;
    control.send(&FromLauncher::Parked, &[]).step("report")?;

    match control
        .receive::<ToLauncher>(None)
        .step("wait for a boot plan")?
    {
        None => Ok(()),
        Some((ToLauncher::Boot(plan), descriptors)) => {
            match <[OwnedFd; 3]>::try_from(descriptors) {
                Ok([root, shm, guests]) => {
                    boot(control, &plan, &file_systems, root, shm, guests, listener)
                }
                Err(_) => {
                    Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read the boot plan")
                }
            }
        }
        Some(_) => Err(io::Error::from_raw_os_error(libc::EPROTO)).step("wait for a boot plan"),
    }
}

/// Takes the mapped IDs: the process still has those of the host's root, which are unmapped here. A clone into a user namespace holds every
/// capability there.
pub(super) fn become_root() -> Result<(), LaunchError> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_groups(&[]).step("drop supplementary groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("become group 0")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("become user 0")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Into the namespaces that this process is in, by a proc mounted as `proc`. Better one of its own: in the host's, the entries of all network
/// namespaces have the same names in the same directory, so each look-up walks past those of all other sandboxes.
pub(super) fn write_sysctls(proc: impl AsFd, plan: &SetupPlan) -> Result<(), LaunchError> {
    for (name, value) in &plan.sysctls {
        let written = openat(
            &proc,
            format!("sys/{name}"),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io::Error::from)
        .and_then(|file| fs::File::from(file).write_all(value.as_bytes()));
        written.step(format!("set sysctl {name}"))?;
    }
    Ok(())
}

fn make_file_systems(plan: &SetupPlan) -> Result<FileSystems, LaunchError> {
    let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = new_file_system("proc", &[], hardened).step("make a proc")?;
    // Before they are read-only.
    write_sysctls(&proc, plan)?;
    for path in &plan.proc_read_only {
        match open_tree(
            &proc,
            path.as_str(),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        ) {
            Ok(tree) => {
                set_attributes(tree.as_fd(), MountAttributes::READ_ONLY)
                    .step(format!("make /proc/{path} read-only"))?;
                attach(&tree, &proc, path).step(format!("attach /proc/{path}"))?;
            }
            Err(rustix::io::Errno::NOENT) => {} // not in this kernel
            Err(error) => return Err(error).step(format!("clone /proc/{path}")),
        }
    }
    for path in &plan.proc_masked {
        let null = open_tree(
            rustix::fs::CWD,
            "/dev/null",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .step("clone /dev/null")?;
        match attach(&null, &proc, path) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {} // not in this kernel
            Err(error) => return Err(error).step(format!("mask /proc/{path}")),
        }
    }
    let sys = new_file_system("sysfs", &[], hardened | MountAttrFlags::MOUNT_ATTR_RDONLY)
        .step("make a sysfs")?;
    let pts = new_file_system(
        "devpts",
        // A file system of its own for each sandbox: no terminal of another is ever visible. The kernel counts all of them together, so one
        // sandbox gets a share only; tests/security: terminals.
        &[
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
            ("max", "256"),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .step("make a devpts")?;
    Ok(FileSystems { proc, sys, pts })
}

fn new_file_system(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount at `path` below `directory`.
fn attach(mount: &OwnedFd, directory: &OwnedFd, path: &str) -> io::Result<()> {
    move_mount(
        mount,
        "",
        directory,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Makes the mount point at `path` the root and lets the old one go.
fn enter(path: &str) -> io::Result<()> {
    rustix::process::chdir(path)?;
    // The old root comes to lie on top of the new one, at ".", from where it is detached.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn boot(
    control: &Channel,
    plan: &BootPlan,
    file_systems: &FileSystems,
    root: OwnedFd,
    shm: OwnedFd,
    guests: OwnedFd,
    listener: TcpListener,
) -> Result<(), LaunchError> {
    let here = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step("open the empty root")?;
    attach(&root, &here, "root").step("attach the root")?;
    enter("/root").step("move to the root")?;
    let new_root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step("open the root")?;
    for (mount, path) in [
        (&file_systems.proc, "proc"),
        (&file_systems.sys, "sys"),
        (&file_systems.pts, "dev/pts"),
        (&shm, "dev/shm"),
        (&guests, GUEST_DIR.trim_start_matches('/')),
    ] {
        attach(mount, &new_root, path).step(format!("attach /{path}; the template lacks it"))?;
    }
    rustix::system::sethostname(plan.hostname.as_bytes()).step("set the host name")?;
    null_stdio()?;
    install_filter(plan)?;
    drop_capabilities(plan)?;

    let (secret, write_secret) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    rustix::io::write(&write_secret, plan.init_secret.as_bytes()).step("hand over the secret")?;
    drop(write_secret);
    match fork().step("fork")? {
        Forked::Child => {
            let error = exec_envd(plan, &listener, &secret);
            let _ = control.send(
                &FromLauncher::Failed {
                    step: "execute envd".into(),
                    errno: error.raw_os_error().unwrap_or(0),
                },
                &[],
            );
            std::process::exit(127);
        }
        Forked::Parent { pid } => {
            control.send(&FromLauncher::Booted, &[]).step("report")?;
            let [program, arguments @ ..] = plan.init.as_slice() else {
                return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read the boot plan");
            };
            // Executed anew from inside the sandbox's own mounts: a program from a detached host mount could not be dumped later.
            let error = Command::new(program)
                .args(arguments)
                .arg(pid.to_string())
                .env_clear()
                .exec();
            Err(error).step("execute init")
        }
    }
}

fn exec_envd(plan: &BootPlan, listener: &TcpListener, secret: &OwnedFd) -> io::Error {
    let [program, arguments @ ..] = plan.envd.as_slice() else {
        return io::Error::from_raw_os_error(libc::EPROTO);
    };
    for descriptor in [listener.as_fd(), secret.as_fd()] {
        if let Err(error) = fcntl_setfd(descriptor, FdFlags::empty()) {
            return error.into();
        }
    }
    Command::new(program)
        .args(arguments)
        .arg("--listen-fd")
        .arg(listener.as_raw_fd().to_string())
        .arg("--init-secret-fd")
        .arg(secret.as_raw_fd().to_string())
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .exec()
}

/// Standard input, output and error become the sandbox's own /dev/null: nothing of the host stays open.
fn null_stdio() -> Result<(), LaunchError> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .step("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step("replace standard input")?;
    rustix::stdio::dup2_stdout(&null).step("replace standard output")?;
    rustix::stdio::dup2_stderr(&null).step("replace standard error")
}

/// Before the capabilities go: without no_new_privs (which would make `sudo` inert) a filter needs SYS_ADMIN.
fn install_filter(plan: &BootPlan) -> Result<(), LaunchError> {
    let program: Vec<Instruction> = plan
        .seccomp
        .iter()
        .map(|number| Instruction::from_bytes(number.to_le_bytes()))
        .collect();
    seccomp::install(&program).step("install the system call filter")
}

fn drop_capabilities(plan: &BootPlan) -> Result<(), LaunchError> {
    let kept = plan
        .capabilities
        .iter()
        .fold(CapabilitySet::empty(), |set, number| {
            set | CapabilitySet::from_bits_retain(1 << number)
        });
    for number in 0..64u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break, // beyond the last one of this kernel
            Err(error) => {
                return Err(error).step(format!("drop capability {number} from the bounding set"));
            }
        }
    }
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).step("drop capabilities")
}
