//! `/sandboxes/{id}/logs` of both versions. Like metrics, they know nothing of an unknown sandbox, which is no error.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use soulbox_control::{LogDirection, LogLevel, LogLine, LogQuery};
use soulbox_types::UnixMillis;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::SandboxPath;
use crate::query::Params;
use crate::time;

const MAX_LINES: usize = 1000;
const LONGEST_SEARCH: usize = 256;

#[utoipa::path(get, path = "/sandboxes/{sandbox_id}/logs", tag = "logs", summary = "Log of a sandbox (old form)",
    description = "As `/v2/sandboxes/{sandbox_id}/logs`, oldest first.",
    security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path),
        ("start" = Option<u64>, Query, description = "Unix milliseconds", maximum = 253402300799000u64),
        ("limit" = Option<u32>, Query, description = "1000 by default", maximum = 1000)),
    responses((status = 200, body = rest::SandboxLogs, description = "Each line is JSON with `level` and `logger`")))]
pub(crate) async fn v1(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    params: Params,
) -> Result<Json<rest::SandboxLogs>, ApiError> {
    let query = LogQuery {
        cursor: moment(&params, "start")?,
        direction: LogDirection::Forward,
        least: LogLevel::Debug,
        search: None,
        limit: limit(&params)?,
    };
    let lines = app.control.logs(&team, &id, &query).await?;
    Ok(Json(rest::SandboxLogs {
        logs: lines.iter().map(json_line).collect(),
        log_entries: lines.into_iter().map(entry).collect(),
    }))
}

#[utoipa::path(get, path = "/v2/sandboxes/{sandbox_id}/logs", tag = "logs", summary = "Log of a sandbox",
    description = "What was decided about it and which programs its daemon ran. Nothing for a sandbox that is not known. Kept for a week, within bounds.",
    security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path),
        ("cursor" = Option<u64>, Query, description = "Unix milliseconds where to begin", maximum = 253402300799000u64),
        ("limit" = Option<u32>, Query, description = "1000 by default", maximum = 1000),
        ("direction" = Option<String>, Query, description = "`backward` (newest first, the default) or `forward`", pattern = "^(forward|backward)$"),
        ("level" = Option<rest::LogLevel>, Query, description = "The least"),
        ("search" = Option<String>, Query, description = "A part of the message or of a field", max_length = 256)),
    responses((status = 200, body = rest::SandboxLogsV2)))]
pub(crate) async fn v2(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    params: Params,
) -> Result<Json<rest::SandboxLogsV2>, ApiError> {
    let direction = match params.get("direction") {
        None | Some("backward") => LogDirection::Backward,
        Some("forward") => LogDirection::Forward,
        Some(_) => {
            return Err(ApiError::invalid(
                "parameter \"direction\" in query must be forward or backward",
            ));
        }
    };
    let least = match params.get("level") {
        None | Some("debug") => LogLevel::Debug,
        Some("info") => LogLevel::Info,
        Some("warn") => LogLevel::Warn,
        Some("error") => LogLevel::Error,
        Some(_) => {
            return Err(ApiError::invalid(
                "parameter \"level\" in query must be debug, info, warn or error",
            ));
        }
    };
    let search = params.get("search").map(str::to_owned);
    if search
        .as_ref()
        .is_some_and(|text| text.chars().count() > LONGEST_SEARCH)
    {
        return Err(ApiError::invalid(&format!(
            "parameter \"search\" in query: maximum string length is {LONGEST_SEARCH}"
        )));
    }
    let query = LogQuery {
        cursor: moment(&params, "cursor")?,
        direction,
        least,
        search,
        limit: limit(&params)?,
    };
    let lines = app.control.logs(&team, &id, &query).await?;
    Ok(Json(rest::SandboxLogsV2 {
        logs: lines.into_iter().map(entry).collect(),
    }))
}

fn limit(params: &Params) -> Result<usize, ApiError> {
    Ok(params.number("limit", 0, MAX_LINES)?.unwrap_or(MAX_LINES))
}

fn moment(params: &Params, name: &str) -> Result<Option<UnixMillis>, ApiError> {
    let number = params.get(name).map(str::parse).transpose();
    number.map(|it| it.map(UnixMillis)).map_err(|_| {
        ApiError::invalid(&format!(
            "parameter \"{name}\" in query must be a time in milliseconds"
        ))
    })
}

/// What clients of the old form parse: one object with everything.
fn json_line(line: &LogLine) -> rest::SandboxLog {
    let timestamp = time::format(line.at);
    let mut object = serde_json::Map::new();
    for (name, value) in &line.fields {
        object.insert(name.clone(), value.clone().into());
    }
    // After the fields, which must not stand for them.
    object.insert("timestamp".to_owned(), timestamp.clone().into());
    object.insert("level".to_owned(), level_name(line.level).into());
    object.insert("logger".to_owned(), line.logger.clone().into());
    object.insert("message".to_owned(), line.message.clone().into());
    rest::SandboxLog {
        timestamp,
        line: serde_json::Value::Object(object).to_string(),
    }
}

fn entry(line: LogLine) -> rest::SandboxLogEntry {
    let mut fields = line.fields;
    fields.insert("logger".to_owned(), line.logger);
    rest::SandboxLogEntry {
        timestamp: time::format(line.at),
        message: line.message,
        level: match line.level {
            LogLevel::Debug => rest::LogLevel::Debug,
            LogLevel::Info => rest::LogLevel::Info,
            LogLevel::Warn => rest::LogLevel::Warn,
            LogLevel::Error => rest::LogLevel::Error,
        },
        fields,
    }
}

fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}
