//! Builds of templates: asking for one, starting it, how far it is, its log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode, header};
use soulbox_control::{
    BuildLogLine, BuildSource, BuildStart, LineQuery, LogDirection, LogLevel, Policy,
    RegistryLogin, StepRules, TeamRow, TemplateRequest,
};
use soulbox_types::{BuildId, TemplateId, UnixMillis};
use soulbox_wire::rest;

use super::templates::check_team_id;
use crate::App;
use crate::auth::{Administrator, Caller, OldUser};
use crate::error::ApiError;
use crate::input::{Body, Segment, Segments};
use crate::query::Params;
use crate::time;
use crate::translate;

/// Entries of one answer.
const MAX_ENTRIES: usize = 100;
/// Steps of one build, and what a name may have before it is not looked at.
const MAX_STEPS: usize = 1000;

#[utoipa::path(post, path = "/v3/templates", tag = "templates", summary = "Ask for a build of a template", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "Makes the template if the team has none of that name. The build waits until it is started; one of the template that waits with the same tag fails.",
    request_body = rest::NewTemplate,
    responses((status = 202, body = rest::RequestedTemplate), (status = 409, body = rest::Error, description = "The name is the ID of a template"), (status = 429, body = rest::Error, description = "Too many builds at once"),
        (status = 501, body = rest::Error, description = "The defaults of sandboxes ask for something that is not there yet")))]
pub(crate) async fn request(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    body: Body,
) -> Result<(StatusCode, Json<rest::RequestedTemplate>), ApiError> {
    requested(&app, &team, body.required()?).await
}

#[utoipa::path(post, path = "/v2/templates", tag = "templates", summary = "Ask for a build of a template (old form)", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "As `/v3/templates`, by `alias`.",
    request_body = rest::NewTemplate,
    responses((status = 202, body = rest::RequestedTemplate), (status = 409, body = rest::Error, description = "The name is the ID of a template"), (status = 429, body = rest::Error, description = "Too many builds at once"),
        (status = 501, body = rest::Error, description = "The defaults of sandboxes ask for something that is not there yet")))]
pub(crate) async fn request_v2(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    body: Body,
) -> Result<(StatusCode, Json<rest::RequestedTemplate>), ApiError> {
    requested(&app, &team, body.required()?).await
}

async fn requested(
    app: &App,
    team: &TeamRow,
    body: rest::NewTemplate,
) -> Result<(StatusCode, Json<rest::RequestedTemplate>), ApiError> {
    if let Some(asked) = &body.team_id {
        check_team_id(team, asked)?;
    }
    let request = TemplateRequest {
        name: body.name.or(body.alias).unwrap_or_default(),
        tags: body.tags.unwrap_or_default(),
        cpus: at_least("cpuCount", body.cpu_count, 1)?,
        memory_mib: at_least("memoryMB", body.memory_mb, 128)?,
        min_free_disk_mib: at_least("minFreeDiskMb", body.min_free_disk_mb, 0)?,
        policy: body
            .sandbox_defaults
            .map_or_else(|| Ok(Policy::default()), translate::policy)?,
    };
    let made = app.control.request_build(team, &request).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(rest::RequestedTemplate {
            template_id: made.template.template.template_id.to_string(),
            build_id: made.build_id.to_string(),
            public: made.template.template.public,
            names: made.template.names,
            tags: made.tags,
            aliases: made.template.aliases,
        }),
    ))
}

#[utoipa::path(post, path = "/v2/templates/{template_id}/builds/{build_id}", tag = "templates", summary = "Start a build", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "Files of COPY steps have to be uploaded before. A build of the template that is under way with the same tag is cancelled.",
    params(("template_id" = String, Path), ("build_id" = String, Path)),
    request_body = rest::StartBuild,
    responses((status = 202, description = "It builds"), (status = 403, body = rest::Error, description = "Another team's"),
        (status = 404, body = rest::Error, description = "What names the template is no ID")))]
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segments([template, build]): Segments<2>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (template_id, build_id) = ids(&template, &build)?;
    let rules = rules(&headers)?;
    let body: rest::StartBuild = body.required()?;
    let image = body.from_image.filter(|it| !it.is_empty());
    let parent = body.from_template.filter(|it| !it.is_empty());
    let source = match (image, parent) {
        (Some(image), None) => BuildSource::Image(image),
        (None, Some(template)) => BuildSource::Template(template),
        (None, None) => {
            return Err(ApiError::bad_request(
                "must specify either fromImage or fromTemplate",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "cannot specify both fromImage and fromTemplate",
            ));
        }
    };
    if body.steps.len() > MAX_STEPS {
        return Err(ApiError::invalid(&format!(
            "\"steps\": maximum number of items is {MAX_STEPS}"
        )));
    }
    let start = BuildStart {
        source,
        registry_login: body.from_image_registry.map(login),
        steps: body.steps.into_iter().map(step).collect::<Result<_, _>>()?,
        force: body.force,
        start_command: body.start_cmd.filter(|it| !it.is_empty()),
        ready_command: body.ready_cmd.filter(|it| !it.is_empty()),
        rules,
    };
    app.control
        .start_build(&team, &template_id, &build_id, start)
        .await?;
    Ok(StatusCode::ACCEPTED)
}

#[utoipa::path(get, path = "/templates/{template_id}/builds/{build_id}/status", tag = "templates", summary = "How far a build is", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path), ("build_id" = String, Path),
        ("logsOffset" = Option<u64>, Query, description = "Entries to pass over, of this level and above", minimum = 0, maximum = 2147483647u64),
        ("limit" = Option<u32>, Query, description = "100 by default", maximum = 100),
        ("level" = Option<rest::LogLevel>, Query, description = "The least")),
    responses((status = 200, body = rest::BuildState), (status = 400, body = rest::Error, description = "Also when there is no such build"), (status = 403, body = rest::Error, description = "Another team's"),
        (status = 404, body = rest::Error, description = "What names the template is no ID")))]
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segments([template, build]): Segments<2>,
    params: Params,
) -> Result<Json<rest::BuildState>, ApiError> {
    const FARTHEST: usize = i32::MAX as usize;
    let (template_id, build_id) = ids(&template, &build)?;
    let offset = params.number("logsOffset", 0, FARTHEST)?.unwrap_or(0);
    let query = LineQuery {
        level: level(&params)?,
        direction: LogDirection::Forward,
        cursor: None,
        offset: offset as u64,
        limit: limit(&params)?,
    };
    // The state comes first: lines that are written before a build is over are then all there when it is.
    let view = app.control.build(&team, &template_id, &build_id).await?;
    let lines = app
        .control
        .build_lines(&team, &template_id, &build_id, &query)
        .await?;
    let entries: Vec<_> = lines.iter().map(entry).collect();
    let reason = view.failure.map(|failure| rest::BuildReason {
        log_entries: entries
            .iter()
            .filter(|it| it.level >= rest::LogLevel::Warn && it.step == failure.step)
            .cloned()
            .collect(),
        message: failure.message,
        step: failure.step,
    });
    Ok(Json(rest::BuildState {
        template_id: template_id.to_string(),
        build_id: build_id.to_string(),
        status: translate::status(view.build.status),
        logs: Vec::new(),
        log_entries: entries,
        reason,
    }))
}

#[utoipa::path(get, path = "/templates/{template_id}/builds/{build_id}/logs", tag = "templates", summary = "Log of a build", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path), ("build_id" = String, Path),
        ("cursor" = Option<u64>, Query, description = "Unix milliseconds where to begin", maximum = 253402300799000u64),
        ("limit" = Option<u32>, Query, description = "100 by default", maximum = 100),
        ("direction" = Option<String>, Query, description = "`forward` (oldest first, the default) or `backward`", pattern = "^(forward|backward)$"),
        ("level" = Option<rest::LogLevel>, Query, description = "The least"),
        ("source" = Option<String>, Query, description = "Both are the same here", pattern = "^(temporary|persistent)$")),
    responses((status = 200, body = rest::BuildLogs), (status = 403, body = rest::Error, description = "Another team's"),
        (status = 404, body = rest::Error, description = "Not there")))]
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segments([template, build]): Segments<2>,
    params: Params,
) -> Result<Json<rest::BuildLogs>, ApiError> {
    let (template_id, build_id) = ids(&template, &build)?;
    let direction = match params.get("direction") {
        None | Some("forward") => LogDirection::Forward,
        Some("backward") => LogDirection::Backward,
        Some(_) => {
            return Err(ApiError::invalid(
                "parameter \"direction\" in query must be forward or backward",
            ));
        }
    };
    if !matches!(
        params.get("source"),
        None | Some("temporary" | "persistent")
    ) {
        return Err(ApiError::invalid(
            "parameter \"source\" in query must be temporary or persistent",
        ));
    }
    let cursor = params.get("cursor").map(str::parse).transpose();
    let cursor = cursor.map_err(|_| {
        ApiError::invalid("parameter \"cursor\" in query must be a time in milliseconds")
    })?;
    let query = LineQuery {
        level: level(&params)?,
        direction,
        cursor: cursor.map(UnixMillis),
        offset: 0,
        limit: limit(&params)?,
    };
    let lines = app
        .control
        .build_lines(&team, &template_id, &build_id, &query)
        .await?;
    let logs = lines.iter().map(entry).collect();
    Ok(Json(rest::BuildLogs { logs }))
}

#[utoipa::path(post, path = "/templates", tag = "templates", summary = "Build a template (withdrawn)", security(("bearer" = [])),
    responses((status = 400, body = rest::Error, description = "Always: it took images from a registry of E2B's own")))]
pub(crate) async fn old_request(_: OldUser) -> ApiError {
    withdrawn()
}

#[utoipa::path(post, path = "/templates/{template_id}", tag = "templates", summary = "Build a template again (withdrawn)", security(("bearer" = [])), params(("template_id" = String, Path)),
    responses((status = 400, body = rest::Error, description = "Always: it took images from a registry of E2B's own")))]
pub(crate) async fn old_rebuild(_: OldUser) -> ApiError {
    withdrawn()
}

#[utoipa::path(post, path = "/templates/{template_id}/builds/{build_id}", tag = "templates", summary = "Start a build (withdrawn)", security(("bearer" = [])), params(("template_id" = String, Path), ("build_id" = String, Path)),
    responses((status = 400, body = rest::Error, description = "Always: it took images from a registry of E2B's own")))]
pub(crate) async fn old_start(_: OldUser) -> ApiError {
    withdrawn()
}

#[utoipa::path(post, path = "/admin/teams/{team_id}/builds/cancel", tag = "admin", summary = "Cancel all builds of a team",
    security(("admin_token" = [])), params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")),
    responses((status = 200, body = rest::CancelledBuilds), (status = 404, body = rest::Error, description = "No such team")))]
pub(crate) async fn cancel_all(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(text): Segment,
) -> Result<Json<rest::CancelledBuilds>, ApiError> {
    let team_id = super::admin::team_id(&text)?;
    if app.control.team(&team_id).await?.is_none() {
        return Err(ApiError::not_found("Team not found"));
    }
    Ok(Json(rest::CancelledBuilds {
        cancelled_count: app.control.cancel_builds(&team_id).await?,
        failed_count: 0,
    }))
}

/// A hint instead of a 404: their clients are years old.
fn withdrawn() -> ApiError {
    ApiError::bad_request("Endpoint deprecated please update your CLI to the latest version")
}

fn ids(template: &str, build: &str) -> Result<(TemplateId, BuildId), ApiError> {
    let build_id = build
        .to_lowercase()
        .parse()
        .map_err(|_| ApiError::bad_request(format!("Invalid build ID: {build}")))?;
    let template_id = template
        .parse()
        .map_err(|_| ApiError::not_found(format!("Template {template} not found")))?;
    Ok((template_id, build_id))
}

/// A number that is there has to be at least this, and to fit.
fn at_least<T: TryFrom<i64>>(
    field: &str,
    value: Option<i64>,
    least: i64,
) -> Result<Option<T>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    if value < least {
        return Err(ApiError::invalid(&format!(
            "\"{field}\": number must be at least {least}"
        )));
    }
    T::try_from(value)
        .map(Some)
        .map_err(|_| ApiError::invalid(&format!("\"{field}\": number is too large")))
}

fn level(params: &Params) -> Result<LogLevel, ApiError> {
    match params.get("level") {
        None | Some("debug") => Ok(LogLevel::Debug),
        Some("info") => Ok(LogLevel::Info),
        Some("warn") => Ok(LogLevel::Warn),
        Some("error") => Ok(LogLevel::Error),
        Some(_) => Err(ApiError::invalid(
            "parameter \"level\" in query must be debug, info, warn or error",
        )),
    }
}

fn limit(params: &Params) -> Result<u32, ApiError> {
    let limit = params.number("limit", 0, MAX_ENTRIES)?;
    Ok(u32::try_from(limit.unwrap_or(MAX_ENTRIES)).unwrap_or(0))
}

fn step(step: rest::BuildStep) -> Result<soulbox_control::BuildStep, ApiError> {
    let files_hash = step.files_hash.filter(|it| !it.is_empty());
    Ok(soulbox_control::BuildStep {
        kind: step.kind.to_uppercase(),
        args: step.args,
        files_hash: files_hash
            .map(|it| it.parse().map_err(|_| bad_hash()))
            .transpose()?,
        force: step.force,
    })
}

pub(super) fn bad_hash() -> ApiError {
    ApiError::bad_request("Invalid files hash")
}

fn login(login: rest::RegistryLogin) -> RegistryLogin {
    match login {
        rest::RegistryLogin::Registry { username, password } => {
            RegistryLogin::Basic { username, password }
        }
        rest::RegistryLogin::Aws {
            aws_access_key_id: access_key_id,
            aws_secret_access_key: secret_access_key,
            aws_region: region,
        } => RegistryLogin::Aws {
            access_key_id,
            secret_access_key,
            region,
        },
        rest::RegistryLogin::Gcp {
            service_account_json,
        } => RegistryLogin::Gcp {
            service_account_json,
        },
    }
}

/// Official clients before 2.3.0 expect other defaults of user and folder.
fn rules(headers: &HeaderMap) -> Result<StepRules, ApiError> {
    const CLIENTS: [&str; 2] = ["e2b-js-sdk/", "e2b-python-sdk/"];
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|it| it.to_str().ok())
        .unwrap_or_default();
    let version = CLIENTS.iter().find_map(|client| {
        agent
            .split_whitespace()
            .find_map(|it| it.strip_prefix(client))
    });
    let Some(version) = version else {
        return Ok(StepRules::V2_1);
    };
    let mut numbers = version.splitn(3, '.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (2, 3) => Ok(StepRules::V2_0),
        (Some(Ok(_)), Some(Ok(_))) => Ok(StepRules::V2_1),
        _ => Err(ApiError::bad_request(format!(
            "the SDK's version in the User-Agent is not understood: {version}"
        ))),
    }
}

fn entry(line: &BuildLogLine) -> rest::BuildLogEntry {
    rest::BuildLogEntry {
        timestamp: time::format(line.at),
        message: line.message.clone(),
        level: match line.level {
            LogLevel::Debug => rest::LogLevel::Debug,
            LogLevel::Info => rest::LogLevel::Info,
            LogLevel::Warn => rest::LogLevel::Warn,
            LogLevel::Error => rest::LogLevel::Error,
        },
        step: line.step.clone(),
    }
}
