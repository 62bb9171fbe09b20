//! The seam to the isolation tiers. Nothing above it knows namespaces; `native` is the first implementation.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use soulbox_runtime::cgroup::Usage;
pub use soulbox_runtime::network::Traffic;
use soulbox_types::{Egress, Limits};

use crate::lifecycle::After;

/// What a runtime could not do, with its causes.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RuntimeError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// Why no connection to a port inside came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing listens there.
    #[error("nothing listens on the port")]
    Closed,
    #[error("failed to connect")]
    Failed(#[source] io::Error),
}

/// Why the processes of a sandbox were not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// This host cannot do it at all.
    #[error("{0}")]
    Unsupported(String),
    /// It goes on as if nothing had been.
    #[error(transparent)]
    Refused(RuntimeError),
    /// It may be damaged, or stand still.
    #[error(transparent)]
    Harmed(RuntimeError),
}

/// Why no sandbox was made of saved processes.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// This host cannot do it at all.
    #[error("{0}")]
    Unsupported(String),
    #[error("the guest programs that it ran, of digest {0}, are not on this host any more")]
    ProgramsMissing(String),
    #[error(transparent)]
    Failed(#[from] RuntimeError),
}

/// Processes that were saved.
#[derive(Debug, Clone)]
pub struct SavedProcesses {
    pub images: PathBuf,
    /// On the same file system, and not there yet: the restore's own. Whoever asked deletes it.
    pub folder: PathBuf,
    /// Digest of the guest programs among them.
    pub guests: String,
}

/// The files of a sandbox's root.
#[derive(Debug, Clone)]
pub struct RootFiles {
    /// Read-only trees, lowest first.
    pub layers: Vec<PathBuf>,
    /// The writable part.
    pub upper: PathBuf,
}

/// What the agent inside is told at its start.
#[derive(Debug, Clone)]
pub struct GuestSettings {
    pub default_user: String,
    pub default_workdir: String,
    /// Hex key that authorises `/init`.
    pub init_secret: String,
}

/// Names the first process of a sandbox for longer than this agent lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessName {
    pub pid: i32,
    pub start_time: u64,
}

/// One isolation tier. All calls but [`Runtime::dial`] block, for milliseconds.
pub trait Runtime: Send + Sync + 'static {
    /// A slot that waits for its sandbox. Ends when dropped.
    type Parked: Send + 'static;
    /// A sandbox in which envd runs. Goes on when dropped.
    type Running: Send + Sync + 'static;

    /// How many slots there can be.
    fn slots(&self) -> u16;
    /// Prepares slot `index`.
    fn prepare(&self, index: u16, limits: &Limits) -> Result<Self::Parked, RuntimeError>;
    /// Starts the sandbox of a prepared slot; connections to envd are accepted when it returns. On an error nothing is left.
    fn boot(
        &self,
        parked: Self::Parked,
        root: &RootFiles,
        guest: &GuestSettings,
    ) -> Result<Self::Running, RuntimeError>;
    /// The version of the program that saves and restores processes, or what is missing for that.
    ///
    /// # Errors
    /// A sentence for people.
    fn checkpoints(&self) -> Result<&str, String>;
    /// Writes all processes into the empty folder `images`. `stopped` is called while none of them runs and all is written; when it
    /// fails, so does the save. Seconds; it has a limit.
    ///
    /// # Errors
    /// See [`SaveError`].
    fn save(
        &self,
        running: &Self::Running,
        images: &Path,
        after: After,
        stopped: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), SaveError>;
    /// Lets saved processes go on in slot `index`, which is free. They may connect nowhere. `made` is called when they are there and
    /// none of them has run yet; when it fails, so does the restore. On an error nothing is left.
    ///
    /// # Errors
    /// See [`RestoreError`].
    fn restore(
        &self,
        index: u16,
        limits: &Limits,
        root: &RootFiles,
        saved: &SavedProcesses,
        made: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Self::Running, RestoreError>;
    /// Takes over a running sandbox of an earlier agent.
    fn adopt(&self, index: u16, process: ProcessName) -> Option<Self::Running>;
    /// `None` when it has ended.
    fn process(&self, running: &Self::Running) -> Option<ProcessName>;
    /// Changes the limits (memory, CPU, pids).
    fn set_limits(&self, running: &Self::Running, limits: &Limits) -> Result<(), RuntimeError>;
    /// Changes where it may connect to; new sandboxes may connect nowhere.
    fn set_egress(&self, running: &Self::Running, egress: &Egress) -> Result<(), RuntimeError>;
    /// What it has used so far.
    fn usage(&self, running: &Self::Running) -> Result<Usage, RuntimeError>;
    /// Bytes over the network of every slot that has one.
    fn traffic(&self) -> Result<HashMap<u16, Traffic>, RuntimeError>;
    /// A descriptor that polls readable when no process of the sandbox is left.
    fn ended(&self, running: &Self::Running) -> io::Result<OwnedFd>;
    /// Starts the end of all processes.
    fn kill(&self, running: &Self::Running);
    /// How many processes its memory limit ended.
    fn oom_kills(&self, running: &Self::Running) -> u64;
    /// Whether an end of just now comes of the memory limit.
    fn is_out_of_memory(&self, running: &Self::Running) -> bool;
    /// Gives back what an ended sandbox had.
    fn release(&self, running: &Self::Running) -> Result<(), RuntimeError>;
    /// Connects to a TCP port inside.
    fn dial(
        &self,
        running: &Self::Running,
        port: u16,
    ) -> impl Future<Output = Result<OwnedFd, DialError>> + Send;
    /// Ends and removes all slots but those in `keep`; returns how many there were.
    fn sweep(&self, keep: &[u16]) -> Result<usize, RuntimeError>;
}
