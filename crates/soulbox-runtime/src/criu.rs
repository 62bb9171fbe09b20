//! CRIU, the program that writes process trees to files and makes them run again: where it is, and one conversation with it.
//!
//! A [`Session`] is one `criu swrk`: a child of this process that serves one request over a SEQPACKET socket and tells of each stage
//! before it goes on. It is started through the launcher ([`crate::launch`]), which gives it a mount namespace of its own and, for a
//! restore, the cgroups and mounts that the tree shall have. The restored tree is a child of this process too.

mod images;
mod watch;
mod wire;

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::launch::channel::{Channel, CriuPlan, ToLauncher, WatchPlan};
use watch::Watch;

pub use images::{ImagesError, remap};
pub(crate) use wire::{Options, Request, RequestKind, Response};

/// Answers are small: an error message is the longest part.
const MAX_MESSAGE: usize = 64 << 10;
/// What a dump writes its complaints to, in the folder of its images.
pub const DUMP_LOG: &str = "dump.log";
/// The same of a restore.
pub const RESTORE_LOG: &str = "restore.log";

/// Earlier ones fail on Linux 6.15 and later.
const OLDEST: (u32, u32) = (4, 2);

fn oldest() -> String {
    format!("{}.{}", OLDEST.0, OLDEST.1)
}

/// How often it is looked whether what CRIU works on is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    #[error("there is no CRIU at `{0}`")]
    Missing(PathBuf),
    #[error("CRIU {found} is too old, {OLDEST} is the oldest that saves sandboxes on the kernels they need", OLDEST = oldest())]
    TooOld { found: String },
    #[error("failed to {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("CRIU ended in the middle")]
    Ended,
    #[error("CRIU sent what is no answer")]
    Malformed(#[source] prost::DecodeError),
    /// It was ended.
    #[error("CRIU was not done within {0:?}")]
    TimedOut(Duration),
}

pub(crate) fn io_step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> CriuError {
    move |source| CriuError::Io {
        step,
        source: source.into(),
    }
}

/// An installed CRIU.
#[derive(Debug)]
pub struct Criu {
    program: Vec<String>,
    version: String,
    /// Its /run: a detached tmpfs, where it keeps what it found out about the kernel (56 ms the first time, 12 afterwards).
    run: OwnedFd,
}

impl Criu {
    /// The CRIU of a folder into which its packages were unpacked, run with that folder's own loader and libraries; runs it once, for
    /// its version. Of the host's own, the folder is `/`.
    ///
    /// # Errors
    /// [`CriuError::Missing`], [`CriuError::TooOld`], or a tmpfs that cannot be made. Needs root.
    pub fn open(folder: &Path) -> Result<Self, CriuError> {
        let program = folder.join("usr/sbin/criu");
        if !program.is_file() {
            return Err(CriuError::Missing(program));
        }
        let libraries = folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let loader = fs::read_dir(&libraries)
            .map_err(io_step("look through the libraries of CRIU"))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
            })
            .ok_or_else(|| CriuError::Missing(libraries.join("ld-linux")))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let program = vec![
            text(&loader),
            "--library-path".to_owned(),
            text(&libraries),
            text(&program),
        ];
        let said = Command::new(&program[0])
            .args(&program[1..])
            .arg("--version")
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(io_step("ask CRIU for its version"))?;
        let said = String::from_utf8_lossy(&said.stdout);
        let version = version(&said).ok_or_else(|| CriuError::TooOld {
            found: said.trim_start_matches("Version:").trim().to_owned(),
        })?;
        Ok(Self {
            program,
            version,
            run: make_run().map_err(io_step("make a tmpfs for CRIU"))?,
        })
    }

    /// Such as `4.2.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    fn clone_run(&self) -> io::Result<OwnedFd> {
        Ok(open_tree(
            &self.run,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        )?)
    }
}

/// The version in the answer to `--version`, unless it is too old.
fn version(said: &str) -> Option<String> {
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?;
    let version = version.trim();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let found = (numbers.next()??, numbers.next().flatten().unwrap_or(0));
    (found >= OLDEST).then(|| version.to_owned())
}

fn make_run() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Root of a restored tree passes through here to its mounts, as its own user.
    for (key, value) in [("source", "criu"), ("mode", "755"), ("size", "4m")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// One running CRIU. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Session {
    process: Child,
    /// Of the process: readable at its end.
    ended: OwnedFd,
    watch: Option<Watch>,
    socket: OwnedFd,
    /// To the launcher that becomes CRIU.
    pub(crate) control: Channel,
    started: Instant,
    within: Duration,
}

impl Session {
    /// Starts CRIU for one request, by way of `launcher`. With `ids` (first, count), for a restore, the launcher answers with a user
    /// namespace that has them and waits for mounts; `kept` are then the files of cgroups to join. Without, for a dump, CRIU holds `kept`
    /// open as long as it runs.
    pub(crate) fn start(
        criu: &Criu,
        launcher: &Path,
        ids: Option<(u32, u32)>,
        kept: &[OwnedFd],
        within: Duration,
    ) -> Result<Self, CriuError> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io_step("make a socket for CRIU"))?;
        let run = criu.clone_run().map_err(io_step("clone the tmpfs"))?;
        let (control, process) = Channel::start(launcher).map_err(io_step("start the launcher"))?;
        let ended = pidfd_open(Pid::from_child(&process), PidfdFlags::empty())
            .map_err(io_step("open the process of CRIU"))?;
        let session = Self {
            process,
            ended,
            watch: None,
            socket,
            control,
            started: Instant::now(),
            within,
        };
        let plan = CriuPlan {
            program: criu.program.clone(),
            ids,
        };
        let mut descriptors = vec![run.as_fd(), theirs.as_fd()];
        descriptors.extend(kept.iter().map(AsFd::as_fd));
        session
            .control
            .send(&ToLauncher::Criu(plan), &descriptors)
            .map_err(io_step("tell the launcher"))?;
        Ok(session)
    }

    /// From now on the sandbox with this init and cgroup stands still when CRIU ends before its last answer.
    pub(crate) fn watch(
        &mut self,
        launcher: &Path,
        init: i32,
        cgroup: String,
    ) -> Result<(), CriuError> {
        let plan = WatchPlan {
            criu: Pid::from_child(&self.process).as_raw_nonzero().get(),
            init,
            cgroup,
        };
        self.watch = Some(Watch::begin(launcher, plan).map_err(io_step("watch CRIU"))?);
        Ok(())
    }

    /// Ends CRIU, which has given no last answer. Whether what it held was stopped, or why not; nothing when it was not to be, or nobody
    /// has watched.
    pub(crate) fn end(mut self) -> Option<io::Result<()>> {
        let watch = self.watch.take();
        drop(self);
        watch?.end()
    }

    pub(crate) fn send(&self, request: &Request) -> Result<(), CriuError> {
        send(&self.socket, &request.encode_to_vec(), SendFlags::NOSIGNAL)
            .map_err(io_step("ask CRIU"))?;
        Ok(())
    }

    /// Lets CRIU go on after a notification; `well` false makes it give up.
    pub(crate) fn acknowledge(&self, well: bool) -> Result<(), CriuError> {
        self.send(&Request {
            kind: RequestKind::Notify.into(),
            notify_success: Some(well),
            ..Request::default()
        })
    }

    /// The next answer or notification.
    pub(crate) fn receive(&self) -> Result<Response, CriuError> {
        self.receive_while(&|| true)
    }

    /// The next answer or notification, as long as what CRIU works on is there: it waits for ever for the stop of what was killed.
    pub(crate) fn receive_while(&self, is_there: &dyn Fn() -> bool) -> Result<Response, CriuError> {
        loop {
            let left = self.within.saturating_sub(self.started.elapsed());
            let turn = left.min(LOOK_EVERY);
            let timeout = Timespec {
                tv_sec: turn.as_secs().cast_signed(),
                tv_nsec: turn.subsec_nanos().into(),
            };
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut ready, Some(&timeout)) {
                Ok(0) if left.is_zero() => return Err(CriuError::TimedOut(self.within)),
                // What it has made of a tree by then may hold its end of the socket.
                Ok(0) if !is_there() || self.has_ended() => return Err(CriuError::Ended),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(io_step("wait for CRIU")(error)),
            }
        }
        let mut buffer = [MaybeUninit::uninit(); MAX_MESSAGE];
        let ((message, _), _) = match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            Err(rustix::io::Errno::CONNRESET) => return Err(CriuError::Ended),
            other => other.map_err(io_step("hear from CRIU"))?,
        };
        if message.is_empty() {
            return Err(CriuError::Ended);
        }
        Response::decode(&*message).map_err(CriuError::Malformed)
    }

    /// Whether CRIU is gone; it is reaped when this is dropped.
    fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.ended, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&Timespec::default())), Ok(1..))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.release();
        }
        // After its last answer it ends by itself, in no time; one that hangs is of no more use.
        let _ = self.process.kill();
        // So is a child of it, which may not have been told yet to end with it. What it has restored is in sessions of its own.
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        while !matches!(
            poll(&mut [PollFd::new(&self.ended, PollFlags::IN)], None),
            Ok(1..)
        ) {}
        let _ = self.process.wait();
    }
}

/// A folder of images, open: CRIU reaches it through this process's descriptors.
pub(crate) fn open_images(path: &Path) -> Result<OwnedFd, CriuError> {
    fs::File::open(path)
        .map(OwnedFd::from)
        .map_err(io_step("open the folder of images"))
}

/// What both requests have in common.
pub(crate) fn options(images: &OwnedFd, log: &str) -> Options {
    Options {
        images_dir_fd: images.as_raw_fd(),
        shell_job: Some(true),
        file_locks: Some(true),
        log_level: Some(wire::LOG_WARNINGS),
        log_file: Some(log.to_owned()),
        notify_scripts: Some(true),
        // Each restore gets cgroups of its own, joined before CRIU starts.
        manage_cgroups_mode: Some(wire::CGROUPS_IGNORE),
        // The network is made anew; within the tree connections live on.
        empty_ns: Some(libc::CLONE_NEWNET.cast_unsigned()),
        tcp_established: Some(true),
        network_lock: Some(wire::NETWORK_LOCK_SKIP),
        ..Options::default()
    }
}

/// The reason in the log of a failed run: the last errors, on one line each.
pub(crate) fn complaint(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("Error ").map(|(_, rest)| rest))
        .collect();
    if errors.is_empty() {
        return "CRIU gave no reason".to_owned();
    }
    // The first error is the cause, those after it are consequences.
    errors[..errors.len().min(3)].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_refused() {
        assert_eq!(version("Version: 4.2.1\n").as_deref(), Some("4.2.1"));
        assert_eq!(version("Version: 5\nGitID: x\n").as_deref(), Some("5"));
        for old in ["Version: 3.17.1\n", "Version: 4.1.1\n", "", "Version: x\n"] {
            assert_eq!(version(old), None, "{old}");
        }
    }
}
