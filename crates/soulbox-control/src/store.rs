//! [`Store`]: the records that outlive the process. Implementations live in `soulbox-store`.
//!
//! Sandbox rows are changed by compare-and-swap on `(state, epoch)`, so two owners cannot both decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use soulbox_types::{
    BuildId, DeathCause, Epoch, Inbound, Limits, Network, SandboxId, SandboxState, TeamId,
    TemplateId, UnixMillis,
};

use crate::history::History;
use crate::hosts::AtDeadline;
use crate::list::{ListQuery, Page};
use crate::policy::Policy;
use crate::retention::RetiredBuilds;
use crate::template_store::TemplateStore;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamRow {
    pub team_id: TeamId,
    pub name: String,
    /// Its namespace of template aliases.
    pub slug: String,
    pub banned: bool,
    pub blocked: bool,
    pub blocked_reason: Option<String>,
    /// None: the installation's setting holds.
    pub max_sandboxes: Option<u32>,
    pub max_sandbox_hours: Option<u32>,
    pub created_at: UnixMillis,
}

/// A secret of a team, known by its hash only. API keys and access tokens have the same shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// A UUID.
    pub key_id: String,
    pub team_id: TeamId,
    pub name: String,
    /// `$sha256$` and the base64 of the digest.
    pub hash: String,
    /// What may be shown: `e2b_`, the length of the rest, its first two and last four characters.
    pub prefix: String,
    pub value_length: u32,
    pub mask_prefix: String,
    pub mask_suffix: String,
    pub created_at: UnixMillis,
    pub last_used_at: Option<UnixMillis>,
}

/// Which kind of secret a [`KeyRow`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    ApiKey,
    AccessToken,
}

/// A template: a name for builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRow {
    pub template_id: TemplateId,
    pub team_id: TeamId,
    pub public: bool,
    pub created_at: UnixMillis,
    pub updated_at: UnixMillis,
    pub spawn_count: u64,
    pub last_spawned_at: Option<UnixMillis>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStatus {
    Waiting,
    Building,
    Ready,
    Failed,
}

/// One version of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    pub build_id: BuildId,
    pub template_id: TemplateId,
    pub status: BuildStatus,
    pub limits: Limits,
    pub default_user: String,
    pub default_workdir: String,
    pub envd_version: String,
    /// What its sandboxes get where their create does not say it.
    pub policy: Policy,
    pub created_at: UnixMillis,
    pub updated_at: UnixMillis,
    pub finished_at: Option<UnixMillis>,
}

/// A name of a template. An empty namespace is the global one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    pub namespace: String,
    pub alias: String,
    pub template_id: TemplateId,
}

/// A tag given to a build; the newest one of a tag whose build is ready holds. Rows are not changed, so they are the tag's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentRow {
    /// A UUID.
    pub assignment_id: String,
    pub template_id: TemplateId,
    pub build_id: BuildId,
    pub tag: String,
    pub assigned_at: UnixMillis,
}

/// Every template with all that belongs to it; [`AssignmentRow`]s oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogRows {
    pub templates: Vec<TemplateRow>,
    pub builds: Vec<BuildRow>,
    pub aliases: Vec<AliasRow>,
    pub assignments: Vec<AssignmentRow>,
    pub snapshots: Vec<SnapshotRow>,
}

/// A build that is a snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    pub build_id: BuildId,
    pub template_id: TemplateId,
    pub team_id: TeamId,
    /// Of which it was made; it need not be there any more.
    pub sandbox_id: SandboxId,
    /// Its name on the host.
    pub snapshot_name: String,
    /// The build whose layers lie below it.
    pub host_build_id: BuildId,
    pub memory: bool,
    pub disk_bytes: u64,
    pub image_bytes: u64,
    pub created_at: UnixMillis,
}

/// A sandbox, dead ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    pub sandbox_id: SandboxId,
    pub team_id: TeamId,
    pub template_id: TemplateId,
    pub build_id: BuildId,
    /// The build whose layers it has on its host; another one than `build_id` when it came from a snapshot.
    pub host_build_id: BuildId,
    /// The alias that the create named, if it named one.
    pub alias: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub limits: Limits,
    pub network: Network,
    pub secure: bool,
    pub public_traffic: bool,
    pub inbound: Arc<Inbound>,
    pub envd_version: String,
    pub created_at: UnixMillis,
    pub lifecycle: Lifecycle,
    pub progress: Progress,
}

/// The part of a sandbox row that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub state: SandboxState,
    pub epoch: Epoch,
    pub started_at: Option<UnixMillis>,
    pub deadline: UnixMillis,
    pub ended_at: Option<UnixMillis>,
    pub cause: Option<DeathCause>,
    /// The last pause. While it runs, what it was resumed from, with the epoch before that of the resume: whatever was saved up to then
    /// is of the past.
    pub pause: Option<Pause>,
}

/// A pause that came about, and with it the name of its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Of the command that made the snapshot, or the last one before the host did so by itself.
    pub epoch: Epoch,
    pub by: PausedBy,
    pub at: UnixMillis,
    /// Whether the snapshot has processes and memory, not only what is on disk.
    pub memory: bool,
    /// The agent inside did not answer right before it, so it would not after a resume with memory either.
    pub silent_guest: bool,
}

/// Who decided on a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedBy {
    Control,
    /// The host, at the deadline.
    Host,
}

impl Pause {
    /// The name of its snapshot on the host.
    #[must_use]
    pub fn snapshot_id(&self, sandbox_id: &SandboxId) -> String {
        let by = match self.by {
            PausedBy::Control => "pause",
            PausedBy::Host => "auto",
        };
        format!("{by}-{sandbox_id}-{}", self.epoch.0)
    }
}

/// What happens at the deadline, and on traffic when it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lifecycle {
    pub at_deadline: AtDeadline,
    /// Whether a request for one of its ports resumes it, and for how long it then lives at least.
    pub auto_resume: Option<u64>,
}

/// The caller's name for one create, so that a repetition does not make a second sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyClaim {
    pub key: String,
    /// Digest of the request; the same key with another one is refused.
    pub fingerprint: String,
}

/// What became of an attempt to insert a sandbox row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reservation {
    /// The row is in and counts against the limit.
    Made,
    /// The team has as many live sandboxes as it may.
    LimitReached,
    /// An earlier create of the team has this idempotency key; its row, if it is still kept.
    AlreadyClaimed {
        fingerprint: String,
        sandbox: Option<Box<SandboxRow>>,
    },
}

/// What became of an attempt to give a paused sandbox its place back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    /// The row has the new progress and counts against the limit.
    Done,
    /// The team has as many live sandboxes as it may.
    LimitReached,
    /// The row has another state or epoch than expected, or is not there.
    Conflict,
}

/// What became of a compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    Done,
    /// The row has another state or epoch than expected, or is not there.
    Conflict,
}

/// Spawns of a template since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawns {
    pub template_id: TemplateId,
    pub count: u64,
    pub last: UnixMillis,
}

/// What another server changed in shared records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Sandbox(SandboxId),
    /// A key or a team.
    Keys,
    Templates,
    /// Some changes were not heard of: everything may have changed.
    Missed,
}

/// News of shared records, in order.
#[async_trait]
pub trait Changes: Send {
    /// Waits for the next change of another server. A lost connection to the store is made anew, which is told as [`Change::Missed`].
    async fn next(&mut self) -> Change;
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
#[error("the store failed to {action}")]
pub struct StoreError {
    /// What was tried, in words: `insert a sandbox`.
    pub action: &'static str,
    /// The database was not there: nothing is wrong with what was asked, and it may go well later.
    pub unreachable: bool,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The records. Sandbox rows may be lost by a power failure (it ends the sandboxes as well); all else is on disk before the call returns.
///
/// # Errors
/// Every call: [`StoreError`] when the database refused or could not be reached; nothing was changed then.
#[async_trait]
pub trait Store: TemplateStore + RetiredBuilds + History {
    /// Inserts the team unless its slug exists; returns the row that is there.
    async fn ensure_team(&self, team: &TeamRow) -> Result<TeamRow, StoreError>;
    /// The team of this ID.
    async fn team(&self, team_id: &TeamId) -> Result<Option<TeamRow>, StoreError>;
    /// Every team, by slug.
    async fn teams(&self) -> Result<Vec<TeamRow>, StoreError>;
    /// Replaces what may change of a team: all but its ID, slug and age. False when it is not there.
    async fn update_team(&self, team: &TeamRow) -> Result<bool, StoreError>;
    /// Makes this the one key of its team, kind and name; others of that name stop working.
    async fn replace_key(&self, kind: KeyKind, key: &KeyRow) -> Result<(), StoreError>;
    /// The key of this hash with its team.
    async fn key(&self, kind: KeyKind, hash: &str)
    -> Result<Option<(KeyRow, TeamRow)>, StoreError>;
    /// Inserts an API key; its hash is nobody else's.
    async fn insert_api_key(&self, key: &KeyRow) -> Result<(), StoreError>;
    /// The API keys of a team, oldest first.
    async fn api_keys(&self, team_id: &TeamId) -> Result<Vec<KeyRow>, StoreError>;
    /// Gives an API key of the team another name; false when the team has no such key.
    async fn rename_api_key(
        &self,
        team_id: &TeamId,
        key_id: &str,
        name: &str,
    ) -> Result<bool, StoreError>;
    /// Deletes an API key of the team; false when the team has no such key.
    async fn delete_api_key(&self, team_id: &TeamId, key_id: &str) -> Result<bool, StoreError>;
    /// Notes when API keys were last used.
    async fn touch_keys(&self, used: &[(String, UnixMillis)]) -> Result<(), StoreError>;

    /// Inserts or updates a template, its aliases and a build, and tags the build `default` unless it is so already.
    async fn register_template(
        &self,
        template: &TemplateRow,
        build: &BuildRow,
        aliases: &[AliasRow],
        assignment: &AssignmentRow,
    ) -> Result<(), StoreError>;
    /// As [`Store::register_template`] for a build that is a snapshot.
    async fn register_snapshot(
        &self,
        template: &TemplateRow,
        build: &BuildRow,
        aliases: &[AliasRow],
        assignment: &AssignmentRow,
        snapshot: &SnapshotRow,
    ) -> Result<(), StoreError>;
    /// Deletes what is known of the snapshots that these builds are.
    async fn forget_snapshots(&self, builds: &[BuildId]) -> Result<(), StoreError>;
    /// Everything about templates.
    async fn catalog(&self) -> Result<CatalogRows, StoreError>;
    /// Adds to the counters of templates.
    async fn add_spawns(&self, spawns: &[Spawns]) -> Result<(), StoreError>;

    /// Inserts the row if fewer than `limit` sandboxes of its team are alive, paused ones not counted, in one transaction.
    async fn reserve(
        &self,
        row: &SandboxRow,
        limit: u32,
        claim: Option<&IdempotencyClaim>,
    ) -> Result<Reservation, StoreError>;
    /// Replaces the progress of a row whose state and epoch are still as expected.
    async fn advance(
        &self,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, StoreError>;
    /// As [`Store::advance`] for a paused sandbox that is to run again: only if fewer than `limit` sandboxes of its team are alive, in one
    /// transaction.
    async fn reclaim(
        &self,
        team_id: &TeamId,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
        limit: u32,
    ) -> Result<Reclaim, StoreError>;
    /// Replaces the network configuration of a row that is not dead.
    async fn set_network(
        &self,
        sandbox_id: &SandboxId,
        network: &Network,
    ) -> Result<(), StoreError>;
    /// Changes what is done at the deadline of a row that is not dead.
    async fn set_at_deadline(
        &self,
        sandbox_id: &SandboxId,
        at_deadline: AtDeadline,
    ) -> Result<(), StoreError>;
    /// The row of this ID, dead or alive.
    async fn sandbox(&self, sandbox_id: &SandboxId) -> Result<Option<SandboxRow>, StoreError>;
    /// Rows that are not dead, of one team or of all.
    async fn live_sandboxes(&self, team_id: Option<&TeamId>)
    -> Result<Vec<SandboxRow>, StoreError>;
    /// A page of the team's sandboxes that run, are paused or on the way to or from that; `template` narrows it. The total is of the same
    /// moment but for changes made meanwhile.
    async fn page(
        &self,
        team_id: &TeamId,
        template: Option<&TemplateId>,
        query: &ListQuery,
    ) -> Result<Page<SandboxRow>, StoreError>;
    /// Deletes rows of sandboxes that died, and idempotency keys that were claimed, before this moment; returns how many sandboxes.
    async fn prune(&self, before: UnixMillis) -> Result<u64, StoreError>;
    /// Whether other servers may change the records meanwhile.
    fn shared(&self) -> bool {
        false
    }
    /// What other servers, and programs that administer, change from now on; none when they cannot.
    async fn changes(&self) -> Result<Option<Box<dyn Changes>>, StoreError> {
        Ok(None)
    }
    /// Work that would otherwise be done by some unlucky write, such as a checkpoint. Called from time to time.
    async fn maintain(&self) -> Result<(), StoreError>;
}
