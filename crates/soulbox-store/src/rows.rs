//! Rows of either database to values of control, and the names that columns have for enums.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, BuildStatus, KeyRow, Lifecycle, Pause, PausedBy,
    Policy, Progress, SandboxRow, SnapshotRow, TeamRow, TemplateRow,
};
use soulbox_types::{
    DeathCause, Epoch, HostMask, HttpsPorts, Inbound, Limits, MiB, MilliCpu, Network, SandboxState,
    UnixMillis,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

/// A value that the column cannot have.
#[derive(Debug, thiserror::Error)]
#[error("`{value}` is no value of column `{column}`")]
struct BadValue {
    column: &'static str,
    value: String,
}

/// What both databases have in a column: signed integers and texts.
pub(crate) trait Columns {
    fn text(&self, column: &str) -> Result<String, sqlx::Error>;
    fn optional_text(&self, column: &str) -> Result<Option<String>, sqlx::Error>;
    fn integer(&self, column: &str) -> Result<i64, sqlx::Error>;
    fn optional_integer(&self, column: &str) -> Result<Option<i64>, sqlx::Error>;
}

macro_rules! columns {
    ($row:ty) => {
        impl Columns for $row {
            fn text(&self, column: &str) -> Result<String, sqlx::Error> {
                self.try_get(column)
            }
            fn optional_text(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
                self.try_get(column)
            }
            fn integer(&self, column: &str) -> Result<i64, sqlx::Error> {
                self.try_get(column)
            }
            fn optional_integer(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
                self.try_get(column)
            }
        }
    };
}

columns!(SqliteRow);
columns!(PgRow);

/// The databases' integers are signed; no time or size of ours comes near the end.
pub(crate) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn optional(value: Option<UnixMillis>) -> Option<i64> {
    value.map(|at| number(at.0))
}

pub(crate) fn flag(row: &impl Columns, column: &'static str) -> Result<bool, sqlx::Error> {
    row.integer(column).map(|value| value != 0)
}

pub(crate) fn metadata_text(metadata: &BTreeMap<String, String>) -> String {
    let object = metadata
        .iter()
        .map(|(key, value)| (key.clone(), serde_json::Value::String(value.clone())))
        .collect();
    serde_json::Value::Object(object).to_string()
}

pub(crate) fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "creating",
        SandboxState::Running => "running",
        SandboxState::Pausing => "pausing",
        SandboxState::Paused => "paused",
        SandboxState::Resuming => "resuming",
        SandboxState::Killing => "killing",
        SandboxState::Dead => "dead",
    }
}

pub(crate) fn list_text(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

/// NULL where it says nothing.
pub(crate) fn policy_text(policy: &Policy) -> Option<String> {
    (*policy != Policy::default()).then(|| json_text(policy))
}

/// Maps with keys that are texts, lists and texts: they always have a JSON form.
pub(crate) fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(crate) fn ports_text(ports: &HttpsPorts) -> String {
    serde_json::Value::from(ports.as_slice()).to_string()
}

pub(crate) fn status_name(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Waiting => "waiting",
        BuildStatus::Building => "building",
        BuildStatus::Ready => "ready",
        BuildStatus::Failed => "failed",
    }
}

pub(crate) fn team(row: &impl Columns) -> Result<TeamRow, sqlx::Error> {
    Ok(TeamRow {
        team_id: parsed(row, "team_id")?,
        name: row.text("name")?,
        slug: row.text("slug")?,
        banned: flag(row, "banned")?,
        blocked: flag(row, "blocked")?,
        blocked_reason: row.optional_text("blocked_reason")?,
        max_sandboxes: optional_small(row, "max_sandboxes")?,
        max_sandbox_hours: optional_small(row, "max_sandbox_hours")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(crate) fn key(row: &impl Columns) -> Result<KeyRow, sqlx::Error> {
    Ok(KeyRow {
        key_id: row.text("key_id")?,
        team_id: parsed(row, "team_id")?,
        name: row.text("name")?,
        hash: row.text("hash")?,
        prefix: row.text("prefix")?,
        value_length: small(row, "value_length")?,
        mask_prefix: row.text("mask_prefix")?,
        mask_suffix: row.text("mask_suffix")?,
        created_at: moment(row, "created_at")?,
        last_used_at: optional_moment(row, "last_used_at")?,
    })
}

pub(crate) fn template(row: &impl Columns) -> Result<TemplateRow, sqlx::Error> {
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

pub(crate) fn build(row: &impl Columns) -> Result<BuildRow, sqlx::Error> {
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
        default_user: row.text("default_user")?,
        default_workdir: row.text("default_workdir")?,
        envd_version: row.text("envd_version")?,
        policy: json(row, "policy")?.unwrap_or_default(),
        created_at: moment(row, "created_at")?,
        updated_at: moment(row, "updated_at")?,
        finished_at: optional_moment(row, "finished_at")?,
    })
}

pub(crate) fn alias(row: &impl Columns) -> Result<AliasRow, sqlx::Error> {
    Ok(AliasRow {
        namespace: row.text("namespace")?,
        alias: row.text("alias")?,
        template_id: parsed(row, "template_id")?,
    })
}

pub(crate) fn assignment(row: &impl Columns) -> Result<AssignmentRow, sqlx::Error> {
    Ok(AssignmentRow {
        assignment_id: row.text("assignment_id")?,
        template_id: parsed(row, "template_id")?,
        build_id: parsed(row, "build_id")?,
        tag: row.text("tag")?,
        assigned_at: moment(row, "assigned_at")?,
    })
}

pub(crate) fn snapshot(row: &impl Columns) -> Result<SnapshotRow, sqlx::Error> {
    Ok(SnapshotRow {
        build_id: parsed(row, "build_id")?,
        template_id: parsed(row, "template_id")?,
        team_id: parsed(row, "team_id")?,
        sandbox_id: parsed(row, "sandbox_id")?,
        snapshot_name: row.text("snapshot_name")?,
        host_build_id: parsed(row, "host_build_id")?,
        memory: flag(row, "memory")?,
        disk_bytes: unsigned(row, "disk_bytes")?,
        image_bytes: unsigned(row, "image_bytes")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(crate) fn sandbox(row: &impl Columns) -> Result<SandboxRow, sqlx::Error> {
    let metadata = row.text("metadata")?;
    Ok(SandboxRow {
        sandbox_id: parsed(row, "sandbox_id")?,
        team_id: parsed(row, "team_id")?,
        template_id: parsed(row, "template_id")?,
        build_id: parsed(row, "build_id")?,
        host_build_id: match row.optional_text("host_build_id")? {
            None => parsed(row, "build_id")?,
            Some(_) => parsed(row, "host_build_id")?,
        },
        alias: row.optional_text("alias")?,
        metadata: serde_json::from_str(&metadata)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        limits: limits(row)?,
        network: network(row)?,
        secure: flag(row, "secure")?,
        public_traffic: flag(row, "public_traffic")?,
        inbound: Arc::new(inbound(row)?),
        envd_version: row.text("envd_version")?,
        created_at: moment(row, "created_at")?,
        lifecycle: lifecycle(row)?,
        progress: Progress {
            state: named(row, "state", |name| match name {
                "creating" => Some(SandboxState::Creating),
                "running" => Some(SandboxState::Running),
                "pausing" => Some(SandboxState::Pausing),
                "paused" => Some(SandboxState::Paused),
                "resuming" => Some(SandboxState::Resuming),
                "killing" => Some(SandboxState::Killing),
                "dead" => Some(SandboxState::Dead),
                _ => None,
            })?,
            epoch: Epoch(unsigned(row, "epoch")?),
            started_at: optional_moment(row, "started_at")?,
            deadline: moment(row, "deadline")?,
            ended_at: optional_moment(row, "ended_at")?,
            cause: match row.optional_text("cause")? {
                None => None,
                Some(_) => Some(named(row, "cause", DeathCause::from_name)?),
            },
            pause: pause(row)?,
        },
    })
}

pub(crate) fn at_deadline_name(at_deadline: AtDeadline) -> &'static str {
    match at_deadline {
        AtDeadline::Kill => "kill",
        AtDeadline::Pause { memory: true } => "pause",
        AtDeadline::Pause { memory: false } => "pause_disk",
    }
}

/// `pause_memory` of a pause with memory whose guest's agent did not answer; 1 where it did, 0 without memory.
const MEMORY_OF_SILENT_GUEST: u64 = 2;

/// The columns of a pause: epoch, who, when, and whether with memory.
pub(crate) type PauseColumns = (Option<i64>, Option<&'static str>, Option<i64>, Option<i64>);

pub(crate) fn pause_columns(pause: Option<Pause>) -> PauseColumns {
    let by = |pause: Pause| match pause.by {
        PausedBy::Control => "control",
        PausedBy::Host => "host",
    };
    (
        pause.map(|it| number(it.epoch.0)),
        pause.map(by),
        pause.map(|it| number(it.at.0)),
        pause.map(|it| match (it.memory, it.silent_guest) {
            (true, true) => number(MEMORY_OF_SILENT_GUEST),
            (memory, _) => i64::from(memory),
        }),
    )
}

fn pause(row: &impl Columns) -> Result<Option<Pause>, sqlx::Error> {
    if row.optional_integer("pause_epoch")?.is_none() {
        return Ok(None);
    }
    let memory = unsigned(row, "pause_memory")?;
    Ok(Some(Pause {
        epoch: Epoch(unsigned(row, "pause_epoch")?),
        by: named(row, "pause_by", |name| match name {
            "control" => Some(PausedBy::Control),
            "host" => Some(PausedBy::Host),
            _ => None,
        })?,
        at: moment(row, "paused_at")?,
        memory: memory != 0,
        silent_guest: memory == MEMORY_OF_SILENT_GUEST,
    }))
}

fn lifecycle(row: &impl Columns) -> Result<Lifecycle, sqlx::Error> {
    Ok(Lifecycle {
        at_deadline: named(row, "at_deadline", |name| match name {
            "kill" => Some(AtDeadline::Kill),
            "pause" => Some(AtDeadline::Pause { memory: true }),
            "pause_disk" => Some(AtDeadline::Pause { memory: false }),
            _ => None,
        })?,
        auto_resume: match row.optional_integer("auto_resume")? {
            None => None,
            Some(_) => Some(unsigned(row, "auto_resume")?),
        },
    })
}

fn network(row: &impl Columns) -> Result<Network, sqlx::Error> {
    let list = |column: &'static str| {
        let text = row.text(column)?;
        serde_json::from_str(&text).map_err(|_| bad(column, &text))
    };
    let internet_access = row
        .optional_integer("internet_access")?
        .map(|value| value != 0);
    Network::new(internet_access, list("allow_out")?, list("deny_out")?)
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn inbound(row: &impl Columns) -> Result<Inbound, sqlx::Error> {
    let mask = match row.optional_text("host_mask")? {
        None => None,
        Some(_) => Some(parsed::<HostMask>(row, "host_mask")?),
    };
    let text = row.text("https_ports")?;
    let ports: Vec<i64> = serde_json::from_str(&text).map_err(|_| bad("https_ports", &text))?;
    let https = HttpsPorts::new(&ports).map_err(|_| bad("https_ports", &text))?;
    Ok(Inbound { mask, https })
}

fn limits(row: &impl Columns) -> Result<Limits, sqlx::Error> {
    Ok(Limits {
        memory: MiB(unsigned(row, "memory_mib")?),
        cpu: MilliCpu(small(row, "cpu_milli")?),
        pids: small(row, "pids")?,
        disk: MiB(unsigned(row, "disk_mib")?),
    })
}

fn unsigned(row: &impl Columns, column: &'static str) -> Result<u64, sqlx::Error> {
    let value = row.integer(column)?;
    u64::try_from(value).map_err(|_| bad(column, &value.to_string()))
}

fn small(row: &impl Columns, column: &'static str) -> Result<u32, sqlx::Error> {
    let value = row.integer(column)?;
    u32::try_from(value).map_err(|_| bad(column, &value.to_string()))
}

fn optional_small(row: &impl Columns, column: &'static str) -> Result<Option<u32>, sqlx::Error> {
    match row.optional_integer(column)? {
        None => Ok(None),
        Some(_) => small(row, column).map(Some),
    }
}

pub(crate) fn moment(row: &impl Columns, column: &'static str) -> Result<UnixMillis, sqlx::Error> {
    unsigned(row, column).map(UnixMillis)
}

/// A value that is kept as JSON.
pub(crate) fn json<T: serde::de::DeserializeOwned>(
    row: &impl Columns,
    column: &'static str,
) -> Result<Option<T>, sqlx::Error> {
    let Some(text) = row.optional_text(column)? else {
        return Ok(None);
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|_| bad(column, &text))
}

pub(crate) fn optional_unsigned(
    row: &impl Columns,
    column: &'static str,
) -> Result<Option<u64>, sqlx::Error> {
    match row.optional_integer(column)? {
        None => Ok(None),
        Some(_) => unsigned(row, column).map(Some),
    }
}

fn optional_moment(
    row: &impl Columns,
    column: &'static str,
) -> Result<Option<UnixMillis>, sqlx::Error> {
    match row.optional_integer(column)? {
        None => Ok(None),
        Some(_) => moment(row, column).map(Some),
    }
}

pub(crate) fn parsed<T: FromStr>(
    row: &impl Columns,
    column: &'static str,
) -> Result<T, sqlx::Error> {
    named(row, column, |text| text.parse().ok())
}

fn named<T>(
    row: &impl Columns,
    column: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, sqlx::Error> {
    let text = row.text(column)?;
    read(&text).ok_or_else(|| bad(column, &text))
}

fn bad(column: &'static str, value: &str) -> sqlx::Error {
    let value = value.chars().take(80).collect();
    sqlx::Error::Decode(Box::new(BadValue { column, value }))
}
