//! Rows of SQLite to values of control, and the names that columns have for enums.

use std::collections::BTreeMap;
use std::str::FromStr;

use soulbox_control::{
    AliasRow, AssignmentRow, BuildRow, BuildStatus, KeyRow, Network, Progress, SandboxRow, TeamRow,
    TemplateRow,
};
use soulbox_types::{DeathCause, Epoch, Limits, MiB, MilliCpu, SandboxState, UnixMillis};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A value that the column cannot have.
#[derive(Debug, thiserror::Error)]
#[error("`{value}` is no value of column `{column}`")]
struct BadValue {
    column: &'static str,
    value: String,
}

/// SQLite's integers are signed; no time or size of ours comes near the end.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn optional(value: Option<UnixMillis>) -> Option<i64> {
    value.map(|at| number(at.0))
}

pub(super) fn flag(row: &SqliteRow, column: &'static str) -> Result<bool, sqlx::Error> {
    row.try_get::<i64, _>(column).map(|value| value != 0)
}

pub(super) fn metadata_text(metadata: &BTreeMap<String, String>) -> String {
    let object = metadata
        .iter()
        .map(|(key, value)| (key.clone(), serde_json::Value::String(value.clone())))
        .collect();
    serde_json::Value::Object(object).to_string()
}

pub(super) fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "creating",
        SandboxState::Running => "running",
        SandboxState::Killing => "killing",
        SandboxState::Dead => "dead",
    }
}

pub(super) fn list_text(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

pub(super) fn status_name(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Waiting => "waiting",
        BuildStatus::Building => "building",
        BuildStatus::Ready => "ready",
        BuildStatus::Failed => "failed",
    }
}

pub(super) fn team(row: &SqliteRow) -> Result<TeamRow, sqlx::Error> {
    Ok(TeamRow {
        team_id: parsed(row, "team_id")?,
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        banned: flag(row, "banned")?,
        blocked: flag(row, "blocked")?,
        blocked_reason: row.try_get("blocked_reason")?,
        max_sandboxes: row.try_get("max_sandboxes")?,
        max_sandbox_hours: row.try_get("max_sandbox_hours")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(super) fn key(row: &SqliteRow) -> Result<KeyRow, sqlx::Error> {
    Ok(KeyRow {
        key_id: row.try_get("key_id")?,
        team_id: parsed(row, "team_id")?,
        name: row.try_get("name")?,
        hash: row.try_get("hash")?,
        prefix: row.try_get("prefix")?,
        value_length: row.try_get("value_length")?,
        mask_prefix: row.try_get("mask_prefix")?,
        mask_suffix: row.try_get("mask_suffix")?,
        created_at: moment(row, "created_at")?,
        last_used_at: optional_moment(row, "last_used_at")?,
    })
}

pub(super) fn template(row: &SqliteRow) -> Result<TemplateRow, sqlx::Error> {
    Ok(TemplateRow {
        template_id: parsed(row, "template_id")?,
        team_id: parsed(row, "team_id")?,
        public: flag(row, "public")?,
        created_at: moment(row, "created_at")?,
        updated_at: moment(row, "updated_at")?,
        spawn_count: unsigned(row, "spawn_count")?,
        last_spawned_at: optional_moment(row, "last_spawned_at")?,
    })
}

pub(super) fn build(row: &SqliteRow) -> Result<BuildRow, sqlx::Error> {
    Ok(BuildRow {
        build_id: parsed(row, "build_id")?,
        template_id: parsed(row, "template_id")?,
        status: named(row, "status", |name| match name {
            "waiting" => Some(BuildStatus::Waiting),
            "building" => Some(BuildStatus::Building),
            "ready" => Some(BuildStatus::Ready),
            "failed" => Some(BuildStatus::Failed),
            _ => None,
        })?,
        limits: limits(row)?,
        default_user: row.try_get("default_user")?,
        default_workdir: row.try_get("default_workdir")?,
        envd_version: row.try_get("envd_version")?,
        created_at: moment(row, "created_at")?,
        updated_at: moment(row, "updated_at")?,
        finished_at: optional_moment(row, "finished_at")?,
    })
}

pub(super) fn alias(row: &SqliteRow) -> Result<AliasRow, sqlx::Error> {
    Ok(AliasRow {
        namespace: row.try_get("namespace")?,
        alias: row.try_get("alias")?,
        template_id: parsed(row, "template_id")?,
    })
}

pub(super) fn assignment(row: &SqliteRow) -> Result<AssignmentRow, sqlx::Error> {
    Ok(AssignmentRow {
        assignment_id: row.try_get("assignment_id")?,
        template_id: parsed(row, "template_id")?,
        build_id: parsed(row, "build_id")?,
        tag: row.try_get("tag")?,
        assigned_at: moment(row, "assigned_at")?,
    })
}

pub(super) fn sandbox(row: &SqliteRow) -> Result<SandboxRow, sqlx::Error> {
    let metadata: String = row.try_get("metadata")?;
    Ok(SandboxRow {
        sandbox_id: parsed(row, "sandbox_id")?,
        team_id: parsed(row, "team_id")?,
        template_id: parsed(row, "template_id")?,
        build_id: parsed(row, "build_id")?,
        alias: row.try_get("alias")?,
        metadata: serde_json::from_str(&metadata)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        limits: limits(row)?,
        network: network(row)?,
        secure: flag(row, "secure")?,
        public_traffic: flag(row, "public_traffic")?,
        envd_version: row.try_get("envd_version")?,
        created_at: moment(row, "created_at")?,
        progress: Progress {
            state: named(row, "state", |name| match name {
                "creating" => Some(SandboxState::Creating),
                "running" => Some(SandboxState::Running),
                "killing" => Some(SandboxState::Killing),
                "dead" => Some(SandboxState::Dead),
                _ => None,
            })?,
            epoch: Epoch(unsigned(row, "epoch")?),
            started_at: optional_moment(row, "started_at")?,
            deadline: moment(row, "deadline")?,
            ended_at: optional_moment(row, "ended_at")?,
            cause: match row.try_get::<Option<String>, _>("cause")? {
                None => None,
                Some(_) => Some(named(row, "cause", DeathCause::from_name)?),
            },
        },
    })
}

fn network(row: &SqliteRow) -> Result<Network, sqlx::Error> {
    let list = |column: &'static str| {
        let text: String = row.try_get(column)?;
        serde_json::from_str(&text).map_err(|_| bad(column, &text))
    };
    let internet_access = row
        .try_get::<Option<i64>, _>("internet_access")?
        .map(|value| value != 0);
    Network::new(internet_access, list("allow_out")?, list("deny_out")?)
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn limits(row: &SqliteRow) -> Result<Limits, sqlx::Error> {
    Ok(Limits {
        memory: MiB(unsigned(row, "memory_mib")?),
        cpu: MilliCpu(row.try_get("cpu_milli")?),
        pids: row.try_get("pids")?,
        disk: MiB(unsigned(row, "disk_mib")?),
    })
}

fn unsigned(row: &SqliteRow, column: &'static str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| bad(column, &value.to_string()))
}

fn moment(row: &SqliteRow, column: &'static str) -> Result<UnixMillis, sqlx::Error> {
    unsigned(row, column).map(UnixMillis)
}

fn optional_moment(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<UnixMillis>, sqlx::Error> {
    match row.try_get::<Option<i64>, _>(column)? {
        None => Ok(None),
        Some(_) => moment(row, column).map(Some),
    }
}

fn parsed<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, sqlx::Error> {
    named(row, column, |text| text.parse().ok())
}

fn named<T>(
    row: &SqliteRow,
    column: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    read(&text).ok_or_else(|| bad(column, &text))
}

fn bad(column: &'static str, value: &str) -> sqlx::Error {
    let value = value.chars().take(80).collect();
    sqlx::Error::Decode(Box::new(BadValue { column, value }))
}
