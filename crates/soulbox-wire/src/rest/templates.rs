//! Building templates, their tags and the files that are uploaded for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AutoResume, BuildStatus, LogLevel, OutboundConfig};

/// `POST /v3/templates`, and `POST /v2/templates`, which names it by `alias` alone.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NewTemplate {
    /// `[namespace/]alias[:tag]`.
    #[cfg_attr(feature = "openapi", schema(max_length = 128))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The old name of `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    #[serde(rename = "teamID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<i64>,
    /// MiB, 1024 by default.
    #[serde(rename = "memoryMB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free_disk_mb: Option<i64>,
    /// Extension of SoulBox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_defaults: Option<SandboxDefaults>,
}

/// What sandboxes of a build get where their create does not say it, in the spelling of a create. An extension of SoulBox.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SandboxDefaults {
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_memory: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<DefaultNetwork>,
    /// Keys that this server does not know, as they came.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// Where sandboxes may connect to. Keys that this server does not know are kept as they came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DefaultNetwork {
    #[serde(flatten)]
    pub outbound: OutboundConfig,
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// The answer to [`NewTemplate`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestedTemplate {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "buildID")]
    pub build_id: String,
    pub public: bool,
    pub names: Vec<String>,
    pub tags: Vec<String>,
    pub aliases: Vec<String>,
}

/// The answer to `GET /templates/{id}/files/{hash}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilesLink {
    pub present: bool,
    /// Where to PUT the archive, without credentials; there also when it is present.
    pub url: String,
}

/// `POST /v2/templates/{id}/builds/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StartBuild {
    /// This or `fromTemplate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image_registry: Option<RegistryLogin>,
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub steps: Vec<BuildStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_cmd: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct BuildStep {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub args: Vec<String>,
    /// Of an uploaded archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_hash: Option<String>,
    #[serde(default)]
    pub force: bool,
}

/// How to log in to an image's registry.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RegistryLogin {
    Registry {
        username: String,
        password: String,
    },
    #[serde(rename_all = "camelCase")]
    Aws {
        aws_access_key_id: String,
        aws_secret_access_key: String,
        aws_region: String,
    },
    #[serde(rename_all = "camelCase")]
    Gcp {
        service_account_json: String,
    },
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secrets stay out of every log.
        f.write_str("RegistryLogin")
    }
}

/// The answer to `GET /templates/{id}/builds/{id}/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct BuildState {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "buildID")]
    pub build_id: String,
    pub status: BuildStatus,
    /// Always empty: an older form of the entries.
    pub logs: Vec<String>,
    pub log_entries: Vec<BuildLogEntry>,
    /// There when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildReason>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct BuildReason {
    pub message: String,
    /// `base`, `finalize` or the number of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Warnings and errors of that step on this page.
    pub log_entries: Vec<BuildLogEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BuildLogEntry {
    pub timestamp: String,
    pub message: String,
    pub level: LogLevel,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// The answer to `GET /templates/{id}/builds/{id}/logs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BuildLogs {
    pub logs: Vec<BuildLogEntry>,
}

/// `PATCH /templates/{id}` of both versions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateTemplate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
}

/// The answer to `PATCH /v2/templates/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateNames {
    pub names: Vec<String>,
}

/// The answer to `GET /templates/{id}/contents`, an extension of SoulBox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TemplateContents {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Digests, lowest first.
    pub layers: Vec<String>,
    /// Sorted.
    pub packages: Vec<TemplatePackage>,
    /// Absent when its template says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_defaults: Option<SandboxDefaults>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplatePackage {
    /// `debian`, `python` or `node`.
    pub kind: String,
    pub name: String,
    /// May be empty.
    pub version: String,
}

/// `POST /templates/tags`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AssignTags {
    /// `name[:tag]`; the tag may be a build's ID.
    pub target: String,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// The answer to [`AssignTags`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AssignedTags {
    pub tags: Vec<String>,
    #[serde(rename = "buildID")]
    pub build_id: String,
}

/// `DELETE /templates/tags`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemoveTags {
    pub name: String,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// An item of `GET /templates/{id}/tags`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TemplateTag {
    pub tag: String,
    #[serde(rename = "buildID")]
    pub build_id: String,
    pub created_at: String,
}

/// The answer to `GET /templates/{id}/tags/count`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TagCount {
    pub total: usize,
}

/// The answer to `GET /templates/{id}/tags/exists`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TagExists {
    pub exists: bool,
    pub normalized_tag: String,
}

/// One time that a tag was given to a build. Its IDs are spelled unlike all others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TagAssignment {
    pub assignment_id: String,
    pub build_id: String,
    pub assigned_at: String,
    pub build_created_at: String,
    /// Nullable.
    pub build_finished_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TagGroup {
    pub tag: String,
    pub assignments: Vec<TagAssignment>,
    pub has_more: bool,
}

/// The answer to `GET /templates/{id}/tags/groups`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TagGroups {
    pub tags: Vec<TagGroup>,
    /// Nullable.
    pub next_cursor: Option<String>,
}

/// The answer to `GET /templates/{id}/tags/{tag}/assignments`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TagAssignments {
    pub data: Vec<TagAssignment>,
    /// Nullable.
    pub next_cursor: Option<String>,
}

/// The answer to `POST /admin/teams/{id}/builds/cancel`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CancelledBuilds {
    pub cancelled_count: usize,
    pub failed_count: usize,
}
