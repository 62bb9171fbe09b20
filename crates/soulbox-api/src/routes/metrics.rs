//! `/sandboxes/metrics`, `/sandboxes/{id}/metrics` and `/teams/{id}/metrics`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use soulbox_control::{Point, SandboxRow, SandboxSample, TeamRow, TimeRange, parse_sandbox_id};
use soulbox_types::UnixMillis;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{SandboxPath, Segment};
use crate::query::Params;
use crate::time;

const MAX_SANDBOXES: usize = 100;
/// What a team sees when it names no start.
const TEAM_WINDOW_MILLIS: u64 = 7 * 24 * 3600 * 1000;

#[utoipa::path(get, path = "/sandboxes/{sandbox_id}/metrics", tag = "metrics", summary = "What a sandbox used over time",
    description = "Nothing for a sandbox that is not known.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path), ("start" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64), ("end" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64)),
    responses((status = 200, body = [rest::SandboxMetric])))]
pub(crate) async fn of_sandbox(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    params: Params,
) -> Result<Json<Vec<rest::SandboxMetric>>, ApiError> {
    let range = range(&params)?;
    let points = match app.control.metrics(&team, &id, range).await? {
        Some((row, points)) => points.iter().map(|point| metric(&row, point)).collect(),
        None => Vec::new(),
    };
    Ok(Json(points))
}

#[utoipa::path(get, path = "/sandboxes/metrics", tag = "metrics", summary = "What sandboxes use now",
    description = "Sandboxes that are not known are absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_ids" = String, Query, description = "Up to 100 IDs, separated by commas")),
    responses((status = 200, body = rest::SandboxesMetrics)))]
pub(crate) async fn of_sandboxes(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Json<rest::SandboxesMetrics>, ApiError> {
    let ids = params.get("sandbox_ids").unwrap_or_default();
    let ids: BTreeSet<_> = ids.split(',').filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        return Err(ApiError::invalid(
            "parameter \"sandbox_ids\" in query has an error: value is required but missing",
        ));
    }
    if ids.len() > MAX_SANDBOXES {
        return Err(ApiError::bad_request(format!(
            "Too many sandboxes requested, maximum is {MAX_SANDBOXES}"
        )));
    }
    let sandboxes = ids
        .into_iter()
        .filter_map(|text| {
            let id = parse_sandbox_id(text).ok()?;
            let (row, point) = app.control.latest_metrics(&team, &id)?;
            Some((id.to_string(), metric(&row, &point)))
        })
        .collect();
    Ok(Json(rest::SandboxesMetrics { sandboxes }))
}

#[utoipa::path(get, path = "/teams/{team_id}/metrics", tag = "metrics", summary = "How many sandboxes a team had over time",
    description = "The last seven days unless `start` says otherwise.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"), ("start" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64), ("end" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64)),
    responses((status = 200, body = [rest::TeamMetric])))]
pub(crate) async fn of_team(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(team_id): Segment,
    params: Params,
) -> Result<Json<Vec<rest::TeamMetric>>, ApiError> {
    own_team(&team, &team_id)?;
    let points = app
        .control
        .team_metrics(&team, team_range(&params)?)
        .await?;
    let points = points.into_iter().map(|(at, sample)| rest::TeamMetric {
        timestamp: time::format(at),
        timestamp_unix: at.0 / 1000,
        concurrent_sandboxes: sample.concurrent,
        sandbox_start_rate: sample.start_rate,
    });
    Ok(Json(points.collect()))
}

#[utoipa::path(get, path = "/teams/{team_id}/metrics/max", tag = "metrics", summary = "The most sandboxes that a team had",
    security(("api_key" = []), ("admin_token" = [], "team_id" = [])), params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"), ("start" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64), ("end" = Option<u64>, Query, description = "Unix seconds", maximum = 253402300799u64),
        ("metric" = String, Query, description = "`concurrent_sandboxes` or `sandbox_start_rate`", pattern = "^(concurrent_sandboxes|sandbox_start_rate)$")),
    responses((status = 200, body = rest::MaxTeamMetric)))]
pub(crate) async fn max_of_team(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(team_id): Segment,
    params: Params,
) -> Result<Json<rest::MaxTeamMetric>, ApiError> {
    own_team(&team, &team_id)?;
    let range = team_range(&params)?;
    let value: fn(&soulbox_control::TeamSample) -> f64 = match params.get("metric") {
        Some("concurrent_sandboxes") => |sample| f64::from(sample.concurrent),
        Some("sandbox_start_rate") => |sample| sample.start_rate,
        _ => {
            return Err(ApiError::invalid(
                "parameter \"metric\" in query must be concurrent_sandboxes or sandbox_start_rate",
            ));
        }
    };
    let most = app
        .control
        .team_metrics(&team, range)
        .await?
        .into_iter()
        .map(|(at, sample)| (at, value(&sample)))
        .max_by(|one, other| one.1.total_cmp(&other.1));
    let (at, value) = most.unwrap_or((range.to, 0.0));
    Ok(Json(rest::MaxTeamMetric {
        timestamp: time::format(at),
        timestamp_unix: at.0 / 1000,
        value,
    }))
}

fn metric(row: &SandboxRow, (at, sample): &Point<SandboxSample>) -> rest::SandboxMetric {
    rest::SandboxMetric {
        timestamp: time::format(*at),
        timestamp_unix: at.0 / 1000,
        cpu_count: row.limits.cpu.cpus(),
        cpu_used_pct: sample.cpu_percent,
        mem_used: sample.memory,
        mem_total: row.limits.memory.bytes(),
        mem_cache: sample.cache,
        disk_used: sample.disk,
        disk_total: row.limits.disk.bytes(),
        process_count: sample.processes,
        network_received: sample.received,
        network_sent: sample.sent,
    }
}

fn own_team(team: &TeamRow, asked: &str) -> Result<(), ApiError> {
    if team.team_id.as_str().eq_ignore_ascii_case(asked) {
        return Ok(());
    }
    // An arbitrary text is not repeated to the caller at any length.
    let asked: String = asked.chars().take(80).collect();
    Err(ApiError::forbidden(format!(
        "You ({}) are not authorized to access this team's ({asked}) metrics",
        team.team_id
    )))
}

/// `start` and `end` in seconds; an end within the current second is now.
fn range(params: &Params) -> Result<TimeRange, ApiError> {
    let seconds = |name| match params.get(name).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(seconds)) => Ok(Some(UnixMillis(seconds.saturating_mul(1000)))),
        Some(Err(_)) => Err(ApiError::invalid(&format!(
            "parameter \"{name}\" in query must be a time in seconds"
        ))),
    };
    let (from, to) = (seconds("start")?, seconds("end")?);
    // All of the second that was named.
    let to = to.map_or_else(now, |to| to.plus_millis(999));
    if from.is_some_and(|from| from > to) {
        return Err(ApiError::bad_request("Invalid time range for metrics"));
    }
    Ok(TimeRange { from, to })
}

fn team_range(params: &Params) -> Result<TimeRange, ApiError> {
    let range = range(params)?;
    if range.from.is_some_and(|from| from > now()) {
        return Err(ApiError::bad_request("Invalid time range for metrics"));
    }
    let default = UnixMillis(range.to.0.saturating_sub(TEAM_WINDOW_MILLIS));
    Ok(TimeRange {
        from: range.from.or(Some(default)),
        ..range
    })
}

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
