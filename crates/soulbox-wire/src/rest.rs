//! JSON bodies of the REST API, in the spelling of E2B.
//!
//! Requests ignore unknown fields; an absent field is `None`. Answers omit what they do not have: official clients fail on null in
//! most places, so a field is nullable only where the comment says so.

mod keys;
mod logs;
mod nodes;
mod templates;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use keys::{CreatedTeamApiKey, KeyMask, NameApiKey, TeamApiKey};
pub use logs::{LogLevel, SandboxLog, SandboxLogEntry, SandboxLogs, SandboxLogsV2};
pub use nodes::{MachineInfo, Node, NodeDisk, NodeMetrics, NodeStatus, SetNodeStatus};
pub use templates::{
    AssignTags, AssignedTags, BuildLogEntry, BuildLogs, BuildReason, BuildState, BuildStep,
    CancelledBuilds, DefaultNetwork, FilesLink, NewTemplate, RegistryLogin, RemoveTags,
    RequestedTemplate, SandboxDefaults, StartBuild, TagAssignment, TagAssignments, TagCount,
    TagExists, TagGroup, TagGroups, TemplateContents, TemplateNames, TemplatePackage, TemplateTag,
    UpdateTemplate,
};

/// Every error. `code` is the HTTP status: clients look at it rather than at the status line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Error {
    pub code: u16,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}

/// `POST /sandboxes` and `POST /v2/sandboxes`; the latter has no `secure` and another default of `timeout`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    #[serde(rename = "templateID")]
    pub template_id: Option<String>,
    /// Seconds.
    pub timeout: Option<i32>,
    pub auto_pause: Option<bool>,
    pub auto_pause_memory: Option<bool>,
    pub auto_resume: Option<AutoResume>,
    pub secure: Option<bool>,
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    pub network: Option<NetworkConfig>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub env_vars: Option<BTreeMap<String, String>>,
    pub mcp: Option<serde_json::Map<String, Value>>,
    pub iam: Option<serde_json::Map<String, Value>>,
    pub volume_mounts: Option<Vec<Value>>,
    /// Extension of SoulBox: limits other than the template's.
    pub cpu_count: Option<u32>,
    /// Extension of SoulBox; MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: Option<u64>,
    /// Extension of SoulBox; MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AutoResume {
    pub enabled: bool,
}

/// Keys that this server does not know are kept as they came.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Null means the default, true.
    pub allow_public_traffic: Option<bool>,
    pub mask_request_host: Option<String>,
    pub https_ports: Option<Vec<i64>>,
    #[serde(flatten)]
    pub outbound: OutboundConfig,
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// The part of the network configuration that a live sandbox can change.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct OutboundConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Value>,
}

/// `PUT /sandboxes/{id}/network`: all of it is replaced.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateNetwork {
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    #[serde(flatten)]
    pub outbound: OutboundConfig,
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// `POST /sandboxes/{id}/connect` of both versions; v1 demands `timeout`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConnectSandbox {
    /// Seconds.
    pub timeout: Option<i32>,
    /// False asks for a cold boot of a paused sandbox; a running one is as it is.
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{id}/pause`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PauseSandbox {
    /// False keeps only what is on disk: processes are lost.
    pub memory: Option<bool>,
    /// True refuses the pause when the agent in the sandbox does not answer.
    pub require_healthy_guest: Option<bool>,
}

/// `POST /sandboxes/{id}/resume`, the old form of connect.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ResumeSandbox {
    /// Seconds.
    pub timeout: Option<i32>,
    pub auto_pause: Option<bool>,
    /// False asks for a cold boot.
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{id}/snapshots`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewSnapshot {
    /// `[namespace/]alias[:tag]`
    pub name: Option<String>,
    /// False keeps only what is on disk.
    pub memory: Option<bool>,
}

/// A snapshot from which sandboxes are created by its ID.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotInfo {
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    pub names: Vec<String>,
}

/// `POST /sandboxes/{id}/rollback`, an extension of SoulBox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackSandbox {
    /// Of a snapshot of this sandbox.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: Option<String>,
}

/// `POST /sandboxes/{id}/fork`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForkSandbox {
    /// Seconds.
    pub timeout: Option<i32>,
    pub count: Option<i32>,
}

/// What became of one fork: one of the two.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forked {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// `POST /sandboxes/{id}/timeout`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetTimeout {
    /// Seconds from now.
    pub timeout: Option<i32>,
}

/// `POST /sandboxes/{id}/refreshes`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefreshSandbox {
    /// Seconds from now.
    pub duration: Option<i32>,
}

/// The answer to create and connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A constant that old clients want to see.
    #[serde(rename = "clientID")]
    pub client_id: String,
    pub envd_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// An item of a list; also the common part of [`SandboxDetail`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(rename = "clientID")]
    pub client_id: String,
    pub started_at: String,
    pub end_at: String,
    pub cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    pub state: SandboxState,
    pub envd_version: String,
    pub volume_mounts: Vec<Value>,
    /// True of a paused one whose agent did not answer then; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_unresponsive_at_pause: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    Running,
    Paused,
}

/// The answer to `GET /sandboxes/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    #[serde(flatten)]
    pub listed: ListedSandbox,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkView>,
    pub lifecycle: Lifecycle,
    /// Of a paused one: what was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<PauseMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    Full,
    Filesystem,
}

/// The part of the network configuration that this server has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NetworkView {
    pub allow_public_traffic: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_out: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_out: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub https_ports: Vec<u16>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    pub auto_resume: bool,
    pub on_timeout: OnTimeout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    Kill,
    Pause,
}

/// An item of `GET /sandboxes/{id}/metrics`; sizes are bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SandboxMetric {
    pub timestamp: String,
    /// Seconds.
    pub timestamp_unix: u64,
    pub cpu_count: u32,
    /// 0 to 100, of all CPUs together.
    pub cpu_used_pct: f64,
    pub mem_used: u64,
    pub mem_total: u64,
    pub mem_cache: u64,
    pub disk_used: u64,
    pub disk_total: u64,
    /// Extension of SoulBox.
    pub process_count: u64,
    /// Extension of SoulBox: bytes since the start.
    pub network_received: u64,
    /// Extension of SoulBox: bytes since the start.
    pub network_sent: u64,
}

/// The answer to `GET /sandboxes/metrics`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SandboxesMetrics {
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}

/// The answer to `POST /admin/teams/{id}/sandboxes/kill`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KilledAll {
    pub killed_count: u32,
    pub failed_count: u32,
}

/// An item of `GET /teams/{id}/metrics`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TeamMetric {
    pub timestamp: String,
    pub timestamp_unix: u64,
    pub concurrent_sandboxes: u32,
    /// A second.
    pub sandbox_start_rate: f64,
}

/// The answer to `GET /teams/{id}/metrics/max`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MaxTeamMetric {
    pub timestamp: String,
    pub timestamp_unix: u64,
    pub value: f64,
}

/// An item of `GET /templates`; also the common part of [`TemplateWithBuilds`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Template {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "buildID")]
    pub build_id: String,
    pub cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    pub public: bool,
    pub aliases: Vec<String>,
    pub names: Vec<String>,
    pub created_at: String,
    pub updated_at: String,
    /// Nullable, and always null: users do not exist yet.
    pub created_by: Option<Value>,
    /// Nullable.
    pub last_spawned_at: Option<String>,
    pub spawn_count: u64,
    pub build_count: usize,
    pub envd_version: String,
    pub build_status: BuildStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    Waiting,
    Building,
    Ready,
    Error,
}

/// The answer to `GET /templates/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateWithBuilds {
    #[serde(flatten)]
    pub template: Template,
    pub builds: Vec<TemplateBuild>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    #[serde(rename = "buildID")]
    pub build_id: String,
    pub status: BuildStatus,
    pub created_at: String,
    pub updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    pub cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    pub envd_version: String,
    /// Extension of SoulBox; absent when its template says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_defaults: Option<SandboxDefaults>,
}

/// The answer to `GET /templates/aliases/{alias}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateAlias {
    #[serde(rename = "templateID")]
    pub template_id: String,
    pub public: bool,
}
