//! The runtime `native` behind the seam.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use soulbox_runtime::criu::{self, Criu};
use soulbox_runtime::dial::addresses;
use soulbox_runtime::identity::{Instance, SLOTS, Slot};
use soulbox_runtime::native::checkpoint::{self, CheckpointError, Dumped};
use soulbox_runtime::native::{Native, Parked, Running};
use soulbox_runtime::plan;
use soulbox_runtime::rootfs::RootSource;
use soulbox_types::{Egress, Limits};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::lifecycle::After;
use crate::runtime::{
    DialError, GuestSettings, ProcessName, RestoreError, RootFiles, Runtime, RuntimeError,
    SaveError, SavedProcesses, Traffic, Usage,
};

/// A server whose backlog is full does not answer; a refusal comes at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What all sandboxes share by the kernel's count: the defaults (128 instances, 4096 terminals, 32768 processes) are what one
/// tenant, or a few, can take.
const SHARED: [(&str, u64); 5] = [
    ("/proc/sys/fs/inotify/max_user_instances", 1 << 20),
    ("/proc/sys/fs/inotify/max_user_watches", 16 << 20),
    ("/proc/sys/kernel/pty/max", 1 << 18),
    ("/proc/sys/kernel/pid_max", 1 << 22),
    ("/proc/sys/kernel/threads-max", 1 << 20),
];

/// Sixteen GiB at the speed of a slow disk. A CRIU that hangs is ended then, and its sandbox with it.
const SAVE_WITHIN: Duration = Duration::from_secs(300);
const RESTORE_WITHIN: Duration = Duration::from_secs(120);

/// [`Native`] as a [`Runtime`].
#[derive(Debug)]
pub struct NativeRuntime {
    native: Native,
    instance: Instance,
    checkpoints: Checkpoints,
}

/// What saves and restores take.
#[derive(Debug)]
pub struct Checkpoints {
    /// Or what to do to have it.
    pub criu: Result<Criu, String>,
    /// A folder for each digest of guest programs.
    pub programs: PathBuf,
}

impl NativeRuntime {
    /// Takes over a started runtime and raises the host's limits of what all sandboxes share; each sandbox is capped on its own.
    ///
    /// # Errors
    /// When a limit cannot be written.
    pub fn new(native: Native, instance: Instance, checkpoints: Checkpoints) -> io::Result<Self> {
        for (path, wanted) in SHARED {
            let current = fs::read_to_string(path)?.trim().parse::<u64>().unwrap_or(0);
            if current < wanted {
                fs::write(path, wanted.to_string())?;
            }
        }
        Ok(Self {
            native,
            instance,
            checkpoints,
        })
    }

    fn slot(&self, index: u16) -> Result<Slot, RuntimeError> {
        Slot::new(self.instance, index)
            .ok_or_else(|| RuntimeError(format!("there is no slot {index}").into()))
    }

    async fn connect(&self, running: &Running, port: u16) -> Result<OwnedFd, DialError> {
        let mut outcome = DialError::Closed;
        for address in addresses(port) {
            let attempt = async {
                let socket = self.native.socket(running, address.is_ipv6())?;
                let stream = TcpSocket::from_std_stream(socket.into())
                    .connect(address)
                    .await?;
                stream.into_std().map(OwnedFd::from)
            };
            match timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if is_absence(&error) => {}
                Ok(Err(error)) => outcome = DialError::Failed(error),
                Err(_) => return Err(DialError::Failed(io::Error::from(io::ErrorKind::TimedOut))),
            }
        }
        Err(outcome)
    }
}

/// Nothing listens, or the sandbox has no such address.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkUnreachable
    )
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> RuntimeError {
    RuntimeError(Box::new(error))
}

impl Runtime for NativeRuntime {
    type Parked = Parked;
    type Running = Running;

    fn slots(&self) -> u16 {
        SLOTS
    }

    fn prepare(&self, index: u16, limits: &Limits) -> Result<Parked, RuntimeError> {
        self.native
            .prepare(self.slot(index)?, limits)
            .map_err(boxed)
    }

    fn boot(
        &self,
        parked: Parked,
        root: &RootFiles,
        guest: &GuestSettings,
    ) -> Result<Running, RuntimeError> {
        let source = RootSource {
            layers: root.layers.clone(),
            upper: root.upper.clone(),
        };
        let boot = plan::boot(
            &guest.default_user,
            &guest.default_workdir,
            &guest.init_secret,
        );
        self.native.boot(parked, source, &boot).map_err(boxed)
    }

    fn checkpoints(&self) -> Result<&str, String> {
        match &self.checkpoints.criu {
            Ok(criu) => Ok(criu.version()),
            Err(missing) => Err(missing.clone()),
        }
    }

    fn save(
        &self,
        running: &Running,
        images: &Path,
        after: After,
        stopped: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), SaveError> {
        let criu = match &self.checkpoints.criu {
            Ok(criu) => criu,
            Err(missing) => return Err(SaveError::Unsupported(missing.clone())),
        };
        let after = match after {
            After::GoOn => checkpoint::After::GoOn,
            After::End => checkpoint::After::End,
        };
        self.native
            .dump(criu, running, images, after, SAVE_WITHIN, stopped)
            .map_err(|error| {
                if error.may_have_harmed() {
                    SaveError::Harmed(boxed(error))
                } else {
                    SaveError::Refused(boxed(error))
                }
            })
    }

    fn restore(
        &self,
        index: u16,
        limits: &Limits,
        root: &RootFiles,
        saved: &SavedProcesses,
        made: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Running, RestoreError> {
        let criu = match &self.checkpoints.criu {
            Ok(criu) => criu,
            Err(missing) => return Err(RestoreError::Unsupported(missing.clone())),
        };
        let programs = self.checkpoints.programs.join(&saved.guests);
        if !programs.is_dir() {
            return Err(RestoreError::ProgramsMissing(saved.guests.clone()));
        }
        let slot = self.slot(index)?;
        criu::remap(&saved.images, &saved.folder, slot.id_base())
            .map_err(|error| boxed(CheckpointError::from(error)))?;
        let dumped = Dumped {
            images: &saved.folder,
            guests: &programs,
            root: RootSource {
                layers: root.layers.clone(),
                upper: root.upper.clone(),
            },
        };
        let restored = self
            .native
            .restore(criu, slot, limits, dumped, RESTORE_WITHIN, made);
        restored.map_err(|error| boxed(error).into())
    }

    fn adopt(&self, index: u16, process: ProcessName) -> Option<Running> {
        let slot = self.slot(index).ok()?;
        match self.native.adopt(slot, process.pid, process.start_time) {
            Ok(found) => found,
            Err(harm) => {
                let error = crate::chain(&harm);
                tracing::warn!(slot = index, %error, "a sandbox is lost: an agent and CRIU died together while it was saved");
                None
            }
        }
    }

    fn process(&self, running: &Running) -> Option<ProcessName> {
        Some(ProcessName {
            pid: running.pid(),
            start_time: running.start_time()?,
        })
    }

    fn set_limits(&self, running: &Running, limits: &Limits) -> Result<(), RuntimeError> {
        running.set_limits(limits).map_err(boxed)
    }

    fn set_egress(&self, running: &Running, egress: &Egress) -> Result<(), RuntimeError> {
        self.native
            .set_egress(running.slot(), egress)
            .map_err(boxed)
    }

    fn usage(&self, running: &Running) -> Result<Usage, RuntimeError> {
        running.usage().map_err(boxed)
    }

    fn traffic(&self) -> Result<HashMap<u16, Traffic>, RuntimeError> {
        self.native.traffic().map_err(boxed)
    }

    fn ended(&self, running: &Running) -> io::Result<OwnedFd> {
        running.pidfd()
    }

    fn kill(&self, running: &Running) {
        running.kill();
    }

    fn oom_kills(&self, running: &Running) -> u64 {
        running.oom_kills()
    }

    fn is_out_of_memory(&self, running: &Running) -> bool {
        running.is_out_of_memory()
    }

    fn release(&self, running: &Running) -> Result<(), RuntimeError> {
        self.native.release(running).map_err(boxed)
    }

    fn dial(
        &self,
        running: &Running,
        port: u16,
    ) -> impl Future<Output = Result<OwnedFd, DialError>> + Send {
        self.connect(running, port)
    }

    fn sweep(&self, keep: &[u16]) -> Result<usize, RuntimeError> {
        let keep: Vec<Slot> = keep
            .iter()
            .filter_map(|index| Slot::new(self.instance, *index))
            .collect();
        self.native.sweep(&keep).map_err(boxed)
    }
}
