//! Dump and restore of a running slot by CRIU.
//!
//! A dump leaves files in a folder: memory, processes, descriptors. What is on disk is the caller's to copy while the tree is stopped. A
//! restore makes the same processes run in any slot, with that slot's IDs, cgroups, network and a root of the same content.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use soulbox_types::Limits;

use super::guards::{Attached, Process, open_namespace};
use super::programs::Programs;
use super::rescue::Harm;
use super::{Native, NativeError, Running, expect, io_step};
use crate::criu::{
    self, Criu, CriuError, DUMP_LOG, ImagesError, Options, RESTORE_LOG, Request, RequestKind,
    Session,
};
use crate::identity::{ID_COUNT, Slot};
use crate::launch::channel::{Channel, FromLauncher, ToLauncher};
use crate::launch::criu::MOUNTS;
use crate::network::sockets::Connections;
use crate::plan::{self, GUEST_DIR};
use crate::rootfs::RootSource;

/// CRIU gives up by itself when the tree does not stop within these seconds.
const STOP_SECONDS: u32 = 10;
/// The most that is kept of a file that is deleted but open.
const GHOST_LIMIT: u32 = 1 << 30;
/// Names of the mounts that are made anew.
const GUESTS: &str = "guests";
const SHM: &str = "shm";
const NULL: &str = "null";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Found before anything was stopped.
    #[error("it cannot be saved: {0}")]
    Unsupported(String),
    /// The tree goes on as if nothing had been.
    #[error("CRIU could not save it: {0}")]
    Dump(String),
    /// Nothing is left of the restored tree.
    #[error("CRIU could not restore it: {0}")]
    Restore(String),
    #[error("failed to copy its files while it stood still")]
    Copy(#[source] io::Error),
    /// Nothing is left of the restored tree.
    #[error("it is not to run")]
    Unwanted(#[source] io::Error),
    /// Of a dump: the tree goes on as if nothing had been.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// CRIU ended while it had hold of the tree, which cannot go on.
    #[error("{harm}")]
    Harmed {
        harm: Harm,
        #[source]
        source: CriuError,
    },
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    Native(#[from] NativeError),
}

impl CheckpointError {
    /// Whether the tree may be damaged.
    #[must_use]
    pub fn may_have_harmed(&self) -> bool {
        matches!(self, Self::Harmed { .. })
    }
}

/// What becomes of the tree after a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    GoOn,
    End,
}

/// What a restore goes by.
#[derive(Debug)]
pub struct Dumped<'a> {
    /// A folder of this restore's own, made by [`criu::remap`] for its slot.
    pub images: &'a Path,
    /// The folder of the very guest programs that ran at the dump.
    pub guests: &'a Path,
    /// What was on disk at the dump.
    pub root: RootSource,
}

impl Native {
    /// Writes the sandbox's processes into `images`, an empty folder. `stopped` is called while none of them runs and all is written:
    /// what it copies of the disk belongs to these images. When it fails, so does the dump. Connections that were dialled are reset.
    /// Blocks for at most `within`.
    ///
    /// # Errors
    /// See [`CheckpointError`]: unless [`CheckpointError::may_have_harmed`], the sandbox goes on.
    pub fn dump(
        &self,
        criu: &Criu,
        running: &Running,
        images: &Path,
        after: After,
        within: Duration,
        stopped: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        // CRIU holds the lock as well: when this process is killed, CRIU goes on for a moment, and nobody may delete what it writes to.
        let folder = [criu::open_images(images)?];
        flock(&folder[0], FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| io_step("lock the folder of images")(error.into()))?;
        // It starts while the sandbox is looked at.
        let mut session = Session::start(criu, &self.launcher, None, &folder, within)?;
        let external = self.preflight(running)?;
        let visitor = Visitor::enter(self, running.pid, None)?;
        visitor.reset(Connections::Dialled)?;
        drop(visitor);
        session.watch(&self.launcher, running.pid, running.slot.cgroup())?;
        session.send(&Request {
            kind: RequestKind::Dump.into(),
            options: Some(Options {
                pid: Some(running.pid),
                leave_running: Some(after == After::GoOn),
                link_remap: Some(true),
                ghost_limit: Some(GHOST_LIMIT),
                tcp_skip_in_flight: Some(true),
                timeout: Some(STOP_SECONDS),
                external,
                ..criu::options(&folder[0], DUMP_LOG)
            }),
            notify_success: None,
        })?;
        let mut copied = None;
        let died = match attend_dump(&session, running.pid, &mut copied, stopped) {
            Ok(success) => {
                return match copied {
                    Some(Err(error)) => Err(CheckpointError::Copy(error)),
                    _ if success => Ok(()),
                    _ => Err(CheckpointError::Dump(criu::complaint(
                        &images.join(DUMP_LOG),
                    ))),
                };
            }
            Err(died) => died,
        };
        let stopped = session.end();
        // Whatever follows, it does not stand still for ever.
        let frozen = running.cgroup.found_frozen();
        let all_is_saved = matches!(copied, Some(Ok(())));
        // What is left of the tree is ended by the caller.
        if all_is_saved && after == After::End {
            return Ok(());
        }
        let rescued = match (stopped, frozen) {
            (Some(Err(error)), _) => Err(Harm::NotBeStopped(error)),
            (Some(Ok(())), Some(frozen)) => self.rescue(running, frozen),
            _ => Err(Harm::NotStopped),
        };
        match rescued {
            Ok(()) if all_is_saved => Ok(()),
            Ok(()) => Err(died.into()),
            Err(harm) => Err(CheckpointError::Harmed { harm, source: died }),
        }
    }

    /// Looks for what CRIU cannot save, before anything is stopped; gives the mounts that it shall leave out.
    fn preflight(&self, running: &Running) -> Result<Vec<String>, CheckpointError> {
        let path = format!("/proc/{}/mountinfo", running.pid);
        let mounts = fs::read_to_string(path).map_err(io_step("read the mounts of the sandbox"))?;
        let external = external(&mounts).map_err(CheckpointError::Unsupported)?;
        for pid in self.hierarchies.processes(&running.slot.cgroup()) {
            // One that has just ended is no obstacle.
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            if let Some(obstacle) = obstacle(&status, namespace_apart(pid, running.pid)) {
                return Err(CheckpointError::Unsupported(obstacle));
            }
        }
        Ok(external)
    }

    /// Makes the dumped tree run in `slot`. Its network is closed until [`Native::set_egress`]; connections to the outside are gone. `made` is called when all of it is there and nothing of it has run;
    /// when it fails, so does the restore. Blocks for at most `within`, and as long as `made` does.
    ///
    /// # Errors
    /// See [`CheckpointError`]; nothing is left of the slot then.
    pub fn restore(
        &self,
        criu: &Criu,
        slot: Slot,
        limits: &Limits,
        dumped: Dumped<'_>,
        within: Duration,
        made: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Running, CheckpointError> {
        let Dumped {
            images,
            guests,
            root,
        } = dumped;
        let mut cgroup = self
            .hierarchies
            .create(&slot.cgroup(), limits)
            .map_err(NativeError::from)?;
        let joins = cgroup.join_files().map_err(NativeError::from)?;
        let folder = criu::open_images(images)?;
        let ids = (slot.id_base(), ID_COUNT);
        let session = Session::start(criu, &self.launcher, Some(ids), &joins, within)?;
        drop(joins);
        let (_, mut descriptors) = expect(&session.control, "map its IDs", |message| {
            matches!(message, FromLauncher::Mapped)
        })?;
        let user_namespace = descriptors
            .pop()
            .ok_or(NativeError::LauncherEnded("report a user namespace"))?;
        let root = self
            .mounter
            .mount(slot, user_namespace, root)
            .map_err(NativeError::from)?;
        let guests = if guests == self.guests {
            self.programs.mount()
        } else {
            Programs::copy(guests).and_then(|older| older.mount())
        }
        .map_err(io_step("mount the guest programs"))?;
        session
            .control
            .send(
                &ToLauncher::Mounts,
                &[root.overlay.as_fd(), root.shm.as_fd(), guests.as_fd()],
            )
            .map_err(io_step("send the mounts"))?;
        drop((root, guests));

        let [at_root, at_shm, at_guests] = MOUNTS;
        session.send(&Request {
            kind: RequestKind::Restore.into(),
            options: Some(Options {
                root: Some(at_root.to_owned()),
                rst_sibling: Some(true),
                external: vec![
                    format!("mnt[{GUESTS}]:{at_guests}"),
                    format!("mnt[{SHM}]:{at_shm}"),
                    format!("mnt[{NULL}]:/dev/null"),
                ],
                ..criu::options(&folder, RESTORE_LOG)
            }),
            notify_success: None,
        })?;
        let mut surroundings = None;
        match self.attend(&session, slot, &mut surroundings, made) {
            Ok(pid) => {
                let Some(Surroundings {
                    attached, process, ..
                }) = surroundings
                else {
                    return Err(NativeError::LauncherEnded("furnish the namespaces").into());
                };
                let network_namespace =
                    open_namespace(pid, "net").map_err(io_step("open a network namespace"))?;
                attached.leave();
                cgroup.leave();
                Ok(Running::restored(
                    slot,
                    pid,
                    process,
                    network_namespace,
                    cgroup,
                ))
            }
            Err(error) => {
                drop(session);
                // What CRIU had made of the tree by then.
                self.hierarchies.kill_processes(&slot.cgroup());
                Err(match error {
                    Attendance::Refused => {
                        CheckpointError::Restore(criu::complaint(&images.join(RESTORE_LOG)))
                    }
                    Attendance::Failed(error) => error,
                })
            }
        }
    }

    /// Serves CRIU's stages until its answer: the pid of the restored init.
    fn attend(
        &self,
        session: &Session,
        slot: Slot,
        surroundings: &mut Option<Surroundings>,
        made: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<i32, Attendance> {
        let mut failure = None;
        loop {
            let response = session.receive()?;
            if response.kind != i32::from(RequestKind::Notify) {
                return match (failure, response.restore) {
                    (Some(failure), _) => Err(Attendance::Failed(failure)),
                    (None, Some(restored)) if response.success => Ok(restored.pid),
                    (None, _) => Err(Attendance::Refused),
                };
            }
            let notification = response.notify.unwrap_or_default();
            let done = match notification.script.as_deref().unwrap_or_default() {
                "setup-namespaces" => self
                    .furnish(slot, notification.pid.unwrap_or_default())
                    .map(|furnished| *surroundings = Some(furnished)),
                // Before any program runs: else it would talk to a peer that knows nothing of this copy.
                "post-restore" => match surroundings {
                    Some(furnished) => furnished
                        .visitor
                        .reset(Connections::Outside)
                        .and_then(|()| made().map_err(CheckpointError::Unwanted)),
                    None => Err(NativeError::LauncherEnded("furnish the namespaces").into()),
                },
                _ => Ok(()),
            };
            session.acknowledge(done.is_ok())?;
            failure = failure.or(done.err());
        }
    }

    /// Gives the new network namespace of process `pid` its interface and settings.
    fn furnish(&self, slot: Slot, pid: i32) -> Result<Surroundings, CheckpointError> {
        let process = Process {
            pidfd: pid_descriptor(pid).map_err(io_step("open the restored init"))?,
            ends_with_this: true,
        };
        let plan = plan::setup(slot, &self.empty_root.to_string_lossy());
        let visitor = Visitor::enter(self, pid, Some(plan))?;
        expect(&visitor.control, "change settings", |message| {
            matches!(message, FromLauncher::Inside)
        })?;
        let attached = Attached::make(&self.network, slot, pid).map_err(NativeError::from)?;
        visitor
            .control
            .send(&ToLauncher::NetworkReady, &[])
            .map_err(io_step("tell the launcher"))?;
        visitor.furnished()?;
        Ok(Surroundings {
            visitor,
            attached,
            process,
        })
    }
}

/// Serves CRIU's stages until its answer, whether it succeeded. `copied` tells what `stopped` gave, once it was called.
fn attend_dump(
    session: &Session,
    init: i32,
    copied: &mut Option<io::Result<()>>,
    stopped: &mut dyn FnMut() -> io::Result<()>,
) -> Result<bool, CriuError> {
    loop {
        // A kill reaches what CRIU holds only when CRIU is gone; afterwards the end is CRIU's own work.
        let is_held = copied.is_none();
        let response = session.receive_while(&|| !is_held || !is_ending(init))?;
        if response.kind != i32::from(RequestKind::Notify) {
            return Ok(response.success);
        }
        let stage = response.notify.and_then(|it| it.script).unwrap_or_default();
        if stage == "post-dump" {
            *copied = Some(stopped());
        }
        session
            .acknowledge(!matches!(copied, Some(Err(_))))
            .map_err(|_| CriuError::Ended)?;
    }
}

/// What a tree that is being restored has; dropping it ends the tree.
struct Surroundings {
    visitor: Visitor,
    attached: Attached,
    process: Process,
}

/// Why a restore did not end well.
enum Attendance {
    /// The reason is in its log.
    Refused,
    Failed(CheckpointError),
}

impl From<CriuError> for Attendance {
    fn from(error: CriuError) -> Self {
        Self::Failed(error.into())
    }
}

/// Whether a process was killed and only waits for its last children (flag PF_EXITING), or is gone.
pub(crate) fn is_ending(pid: i32) -> bool {
    const EXITING: u64 = 4;
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // pid (name) state ppid pgrp session tty tpgid flags
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

pub(super) fn pid_descriptor(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// A launcher in the namespaces of a sandbox; it ends with this.
struct Visitor {
    process: Child,
    control: Channel,
}

impl Visitor {
    fn enter(
        native: &Native,
        pid: i32,
        plan: Option<plan::SetupPlan>,
    ) -> Result<Self, CheckpointError> {
        let namespaces = [open_namespace(pid, "user"), open_namespace(pid, "net")];
        let [user, net] = namespaces.map(|opened| opened.map_err(io_step("open a namespace")));
        let (user, net) = (user?, net?);
        let (control, process) = native.launch()?;
        let has_plan = plan.is_some();
        let visitor = Self { process, control };
        visitor
            .control
            .send(&ToLauncher::Furnish(plan), &[user.as_fd(), net.as_fd()])
            .map_err(io_step("tell the launcher"))?;
        if !has_plan {
            visitor.furnished()?;
        }
        Ok(visitor)
    }

    fn furnished(&self) -> Result<(), CheckpointError> {
        expect(&self.control, "furnish namespaces", |message| {
            matches!(message, FromLauncher::Furnished)
        })?;
        Ok(())
    }

    fn reset(&self, which: Connections) -> Result<(), CheckpointError> {
        self.control
            .send(&ToLauncher::Reset(which), &[])
            .map_err(io_step("tell the launcher"))?;
        self.furnished()
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The mounts of ours that CRIU shall not save but find again, by name; the reason when there is one that nobody can save.
fn external(mountinfo: &str) -> Result<Vec<String>, String> {
    let mut external = Vec::new();
    for line in mountinfo.lines() {
        // 36 35 98:0 /root /target rw,noatime - ext3 source options
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(target)) = (left.next(), left.next()) else {
            continue;
        };
        let kind = right.split(' ').next().unwrap_or_default();
        match (kind, target) {
            (_, GUEST_DIR) => external.push(format!("mnt[{target}]:{GUESTS}")),
            (_, "/dev/shm") => external.push(format!("mnt[{target}]:{SHM}")),
            (_, _) if root == "/null" => external.push(format!("mnt[{target}]:{NULL}")),
            ("overlay", "/") | ("proc" | "sysfs" | "devpts" | "tmpfs", _) => {}
            _ => return Err(format!("{target} is a mount of the kind {kind}")),
        }
    }
    Ok(external)
}

/// The kind of a namespace that a process has for itself, of those that CRIU cannot make again. Seccomp lets no program make one; this says
/// so where that should change.
fn namespace_apart(pid: i32, init: i32) -> Option<&'static str> {
    let of = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    ["user", "mnt"].into_iter().find(|kind| {
        let (own, inits) = (of(pid, kind), of(init, kind));
        // One that has just ended is no obstacle.
        own.is_some() && inits.is_some() && own != inits
    })
}

/// What in a /proc/PID/status keeps the process from being saved, or a namespace that it has for itself.
fn obstacle(status: &str, namespace: Option<&str>) -> Option<String> {
    let title = title(status)?;
    if let Some(kind) = namespace {
        return Some(format!(
            "process {title} has a namespace of its own ({kind})"
        ));
    }
    match field(status, "TracerPid") {
        None | Some("0") => None,
        Some(_) => Some(format!("process {title} is being traced")),
    }
}

/// A process as those inside know it: its pid there and its name.
pub(super) fn title(status: &str) -> Option<String> {
    // The pid of the innermost namespace stands last.
    let pid = field(status, "NSpid")?.split_whitespace().last()?;
    let name = field(status, "Name").unwrap_or("?");
    Some(format!("{pid} ({name})"))
}

/// A line of a /proc/PID/status.
pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_named_or_refused() {
        let ours = "\
            100 99 0:50 / / rw,relatime - overlay soulbox rw\n\
            101 100 0:51 / /proc rw,nosuid - proc proc rw\n\
            102 101 0:6 /null /proc/keys rw,nosuid - devtmpfs udev rw\n\
            103 100 0:50 /dev/shm /dev/shm rw - overlay soulbox rw\n\
            104 100 0:52 / /usr/lib/soulbox ro - tmpfs soulbox ro\n\
            105 100 0:53 / /sys ro - sysfs sysfs ro\n";
        let named = [
            "mnt[/proc/keys]:null",
            "mnt[/dev/shm]:shm",
            "mnt[/usr/lib/soulbox]:guests",
        ];
        assert_eq!(external(ours).unwrap(), named);
        let fuse = format!("{ours}106 100 0:54 / /mnt rw - fuse.sshfs host rw\n");
        assert_eq!(
            external(&fuse).unwrap_err(),
            "/mnt is a mount of the kind fuse.sshfs"
        );
        let inner = format!("{ours}106 100 0:54 / /mnt rw - overlay overlay rw\n");
        assert!(external(&inner).is_err());
    }

    #[test]
    fn a_traced_process_is_named_by_its_pid_inside() {
        let status = |tracer: i32| format!("Name:\tcat\nTracerPid:\t{tracer}\nNSpid:\t900\t17\n");
        assert_eq!(obstacle(&status(0), None), None);
        assert_eq!(
            obstacle(&status(899), None).unwrap(),
            "process 17 (cat) is being traced"
        );
    }

    #[test]
    fn a_process_in_a_namespace_of_its_own_is_named() {
        let status = "Name:\tcat\nTracerPid:\t0\nNSpid:\t900\t17\n";
        let init = i32::try_from(std::process::id()).unwrap();
        assert_eq!(namespace_apart(init, init), None);
        for (flag, kind) in [("--user", "user"), ("--mount", "mnt")] {
            let mut apart = std::process::Command::new("unshare")
                .args([flag, "sleep", "60"])
                .spawn()
                .expect("root may make namespaces");
            let pid = i32::try_from(apart.id()).unwrap();
            let end = std::time::Instant::now() + Duration::from_secs(10);
            let mut found = None;
            while found.is_none() && std::time::Instant::now() < end {
                found = namespace_apart(pid, init);
                std::thread::sleep(Duration::from_millis(5));
            }
            apart.kill().unwrap();
            apart.wait().unwrap();
            assert_eq!(
                obstacle(status, found).unwrap(),
                format!("process 17 (cat) has a namespace of its own ({kind})")
            );
        }
    }
}
