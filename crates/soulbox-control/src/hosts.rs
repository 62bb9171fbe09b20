//! [`Hosts`]: where sandboxes run, as control sees it. The implementation speaks the host RPC; nothing here knows it.

use std::collections::BTreeMap;

use crate::logs::HostLogLine;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use soulbox_types::{BuildId, Egress, Epoch, Limits, SandboxId, TemplateId, UnixMillis};

/// All that a host needs to make one sandbox usable.
#[derive(Debug, Clone)]
pub struct HostCreate {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub template_id: TemplateId,
    pub build_id: BuildId,
    pub limits: Limits,
    pub egress: Egress,
    /// The host ends the sandbox at this moment by itself.
    pub deadline: UnixMillis,
    /// The token that envd shall demand; none leaves envd open.
    pub access_token: Option<String>,
    /// Environment of every process that envd starts.
    pub env: BTreeMap<String, String>,
    pub default_user: String,
    pub default_workdir: String,
    pub at_deadline: AtDeadline,
    /// What it goes on from, other than its build alone.
    pub snapshot: Option<FromSnapshot>,
}

/// What the host does by itself at the deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDeadline {
    #[default]
    Kill,
    Pause {
        memory: bool,
    },
}

/// A snapshot of the same build that a sandbox begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromSnapshot {
    pub snapshot_id: SnapshotName,
    /// Its processes go on where they were; else it boots from what was on disk.
    pub memory: bool,
    /// Others go on from the same moment, or did so: programs inside are told, so that they draw other random numbers.
    pub is_copy: bool,
}

/// A snapshot to be made of a live sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSave {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub snapshot_id: SnapshotName,
    /// Processes and memory too, not only what is on disk.
    pub memory: bool,
    /// The sandbox ends with it; else it goes on.
    pub end: bool,
}

/// The name of a snapshot on its host: 1 to 64 of `[a-z0-9-]`.
pub type SnapshotName = String;

/// A snapshot that lies whole on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSnapshot {
    pub snapshot_id: SnapshotName,
    /// Whose it was, and the epoch of the command that made it; that of its last command when the host did so by itself.
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub build_id: BuildId,
    pub memory: bool,
    /// The sandbox ended with it: it is a pause.
    pub ended: bool,
    pub created_at: UnixMillis,
    /// Bytes on disk: of the files that the sandbox wrote, and of its memory.
    pub disk_bytes: u64,
    pub image_bytes: u64,
}

/// A sandbox that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub started_at: UnixMillis,
}

/// A live sandbox as a host reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSandbox {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub build_id: BuildId,
    pub started_at: UnixMillis,
    pub deadline: UnixMillis,
    pub egress: Egress,
}

/// What a live sandbox has used, as a host counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUsage {
    pub sandbox_id: SandboxId,
    /// Processor time since its slot was made.
    pub cpu_micros: u64,
    /// Bytes, without the page cache, and of the page cache.
    pub memory: u64,
    pub cache: u64,
    pub processes: u64,
    /// Bytes added to the template's files.
    pub disk: u64,
    /// Bytes over its network interface, as the sandbox sees them.
    pub received: u64,
    pub sent: u64,
    /// Programs that the kernel has ended because the memory limit was reached.
    pub oom_kills: u64,
}

/// Whether a host takes new sandboxes; only a ready one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    Ready,
    Draining,
    Unhealthy,
    Standby,
}

/// A host as it describes itself; sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    pub id: String,
    /// Another one after each start of the host's agent.
    pub instance: String,
    pub status: NodeStatus,
    pub status_changed_at: UnixMillis,
    pub sandboxes: u32,
    pub starting: u32,
    pub create_successes: u64,
    pub create_fails: u64,
    /// Creates that took a slot whose daemon ran already, and such slots that are in stock.
    pub creates_ahead: u64,
    pub slots_ahead: u64,
    pub version: String,
    pub commit: String,
    pub cpu_family: String,
    pub cpu_model: String,
    pub cpu_model_name: String,
    pub cpu_architecture: String,
    pub cpu_count: u32,
    pub cpu_percent: u32,
    pub memory_used: u64,
    pub memory_total: u64,
    pub huge_pages_total: u64,
    pub huge_pages_used: u64,
    pub huge_pages_reserved: u64,
    pub huge_page_size: u64,
    pub disks: Vec<HostDisk>,
}

/// A file system of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDisk {
    pub mount_point: String,
    pub device: String,
    pub filesystem: String,
    pub used: u64,
    pub total: u64,
}

/// A template version whose layers lie on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTemplate {
    /// The alias, such as `base`.
    pub name: String,
    pub template_id: TemplateId,
    pub build_id: BuildId,
    pub built_at: UnixMillis,
    /// The limits of its sandboxes unless the create says otherwise.
    pub limits: Limits,
    pub default_user: String,
    pub default_workdir: String,
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostFailure {
    #[error("the host does not know the sandbox")]
    NotFound,
    #[error("the host has seen a later epoch of the sandbox")]
    StaleEpoch,
    /// It is being started or is ending.
    #[error("the sandbox is not live any more, or not yet")]
    NotLive,
    #[error("the host is pausing the sandbox")]
    BeingPaused,
    #[error("the host already has a sandbox of this ID")]
    AlreadyExists,
    #[error("nothing listens on the port")]
    PortClosed,
    #[error("the host lacks the layers of the build")]
    TemplateMissing,
    #[error("the host has no capacity left: {0}")]
    NoCapacity(String),
    #[error("the host takes no new sandboxes: {0}")]
    NotReady(String),
    #[error("the host failed: {0}")]
    Failed(String),
    /// It cannot do that at all.
    #[error("the host cannot do this: {0}")]
    Unsupported(String),
    /// The sandbox goes on.
    #[error("the sandbox cannot be saved: {0}")]
    CannotSave(String),
    /// The sandbox is being ended: its processes may be damaged.
    #[error("the sandbox is lost: {0}")]
    Lost(String),
    #[error("the host does not have the snapshot")]
    SnapshotMissing,
    /// It is another installation's, was changed, or is of a machine that the host is not like.
    #[error("the snapshot cannot be used: {0}")]
    SnapshotRefused(String),
    #[error("the sandbox's agent did not accept its initialisation: {0}")]
    Init(String),
    /// Nobody answered; whether it was done is unknown.
    #[error("the host cannot be reached: {0}")]
    Unreachable(String),
}

impl HostFailure {
    /// Whether something of a sandbox may be left on the host after its create failed so. IDs are never used twice, so what exists
    /// already is of this very create.
    #[must_use]
    pub fn may_leave_a_sandbox(&self) -> bool {
        matches!(
            self,
            Self::Init(_) | Self::Unreachable(_) | Self::StaleEpoch | Self::AlreadyExists
        )
    }
}

/// Runs sandboxes. Each call is bounded in time by control, which drops the future of a call that takes too long.
#[async_trait]
pub trait Hosts: Send + Sync + 'static {
    /// Starts a sandbox; returns when its envd has answered `/init`, so it is usable.
    ///
    /// # Errors
    /// After [`HostFailure::Init`] and [`HostFailure::Unreachable`] something may be left, which control then kills.
    async fn create(&self, sandbox: &HostCreate) -> Result<Started, HostFailure>;

    /// Ends a sandbox; `Ok` when no process of it is left. Also ends one whose create is under way.
    ///
    /// # Errors
    /// [`HostFailure::NotFound`] when the host has no such sandbox, which is as good.
    async fn kill(&self, sandbox_id: &SandboxId, epoch: Epoch) -> Result<(), HostFailure>;

    /// Moves the moment at which the host ends the sandbox by itself, in either direction.
    ///
    /// # Errors
    /// [`HostFailure::NotFound`] when it is already over, [`HostFailure::NotLive`] or [`HostFailure::BeingPaused`] when its end or pause
    /// has begun.
    async fn set_deadline(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        deadline: UnixMillis,
    ) -> Result<(), HostFailure>;

    /// Changes where it may connect to, at once for new connections.
    ///
    /// # Errors
    /// [`HostFailure::NotFound`] when it is already over, [`HostFailure::StaleEpoch`] when the host has seen a later decision.
    async fn set_egress(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        egress: &Egress,
    ) -> Result<(), HostFailure>;

    /// Makes a snapshot; returns when all of it is on disk and, where the sandbox is to end, no process of it is left.
    ///
    /// # Errors
    /// [`HostFailure::CannotSave`] when it goes on, [`HostFailure::Unsupported`], [`HostFailure::NotFound`] when it is over,
    /// [`HostFailure::Lost`].
    async fn save(&self, _save: &HostSave) -> Result<HostSnapshot, HostFailure> {
        Err(HostFailure::Unsupported(
            "this host makes no snapshots".to_owned(),
        ))
    }

    /// Deletes a snapshot; one that is not there is deleted already.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`].
    async fn delete_snapshot(&self, _snapshot_id: &str) -> Result<(), HostFailure> {
        Err(HostFailure::Unsupported(
            "this host makes no snapshots".to_owned(),
        ))
    }

    /// Every whole snapshot.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`].
    async fn snapshots(&self) -> Result<Vec<HostSnapshot>, HostFailure> {
        Ok(Vec::new())
    }

    /// Makes a second sandbox from a snapshot of a live one, to take its place; returns when its envd has answered `/init`. The live one
    /// goes on. What is prepared and then left ends by itself within a minute.
    ///
    /// # Errors
    /// [`HostFailure::CannotSave`] when one is prepared already; otherwise as [`Hosts::create`], and nothing is left.
    async fn prepare(&self, _sandbox: &HostCreate) -> Result<(), HostFailure> {
        Err(HostFailure::Unsupported(
            "this host makes no snapshots".to_owned(),
        ))
    }

    /// Lets what was prepared take the place of the live sandbox, whose processes end.
    ///
    /// # Errors
    /// [`HostFailure::NotFound`] when that is over, [`HostFailure::StaleEpoch`] (both are as before); otherwise the live one goes on.
    async fn replace(&self, _sandbox: &HostCreate) -> Result<(), HostFailure> {
        Err(HostFailure::Unsupported(
            "this host makes no snapshots".to_owned(),
        ))
    }

    /// Ends what was prepared; what is not there is ended already.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`].
    async fn abandon(&self, _sandbox_id: &SandboxId) -> Result<(), HostFailure> {
        Ok(())
    }

    /// Every live sandbox.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`].
    async fn list(&self) -> Result<Vec<HostSandbox>, HostFailure>;

    /// What every live sandbox has used; one that is just ending may be missing.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`].
    async fn usage(&self) -> Result<Vec<HostUsage>, HostFailure>;

    /// Every template version that can be started.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`].
    async fn templates(&self) -> Result<Vec<HostTemplate>, HostFailure>;

    /// What the host is and how it does.
    ///
    /// # Errors
    /// [`HostFailure::Unreachable`] and [`HostFailure::Failed`], which is also the answer of a host that cannot say.
    async fn node(&self) -> Result<HostNode, HostFailure> {
        Err(HostFailure::Failed(
            "this host does not describe itself".to_owned(),
        ))
    }

    /// What the daemon in a sandbox has logged after the line of that number. It is a guest that speaks: the answer is bounded and not to be believed.
    ///
    /// # Errors
    /// The daemon or the host did not answer, or not in the right form.
    async fn logs(
        &self,
        _sandbox_id: &SandboxId,
        _access_token: Option<&str>,
        _after: u64,
    ) -> Result<Vec<HostLogLine>, HostFailure> {
        Err(HostFailure::Failed("this host tells no logs".to_owned()))
    }

    /// Lets the host take new sandboxes, or keeps it from it; what runs goes on. Holds until its agent ends.
    ///
    /// # Errors
    /// As [`Hosts::node`].
    async fn set_node_status(&self, _status: NodeStatus) -> Result<(), HostFailure> {
        Err(HostFailure::Failed(
            "this host cannot be drained".to_owned(),
        ))
    }
}
