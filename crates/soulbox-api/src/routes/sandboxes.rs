//! `/sandboxes` and `/v2/sandboxes`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};
use soulbox_control::{Connected, IdempotencyClaim, ListQuery, Order, TeamRow, TemplateReference};
use soulbox_types::SandboxId;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{Body, SandboxPath};
use crate::query::{self, Params};
use crate::time;
use crate::translate::{self, Generation};

pub(crate) const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// More than that is not answered in one piece.
pub(crate) const MAX_UNPAGED: usize = 5000;
pub(crate) const MAX_PAGE: usize = 100;

#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", summary = "Create a sandbox (old form)",
    description = "`timeout` is 15 s unless given, and `secure` is false.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body is the same sandbox; 1 to 255 of `a-z0-9-`", pattern = "^[a-z0-9-]{1,255}$")), request_body = rest::NewSandbox,
    responses((status = 201, body = rest::Sandbox, description = "Usable at once"),
        (status = 404, body = rest::Error, description = "No such template or tag"),
        (status = 409, body = rest::Error, description = "A request of this Idempotency-Key is under way, or its outcome is unknown"),
        (status = 422, body = rest::Error, description = "The Idempotency-Key had another body"),
        (status = 501, body = rest::Error, description = "The body asks for something that is not there yet"),
        (status = 503, body = rest::Error, description = "No capacity, or no node has the template")))]
pub(crate) async fn create_v1(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    create(&app, &team, &headers, &body, Generation::V1).await
}

#[utoipa::path(post, path = "/v2/sandboxes", tag = "sandboxes", summary = "Create a sandbox",
    description = "`timeout` is 300 s unless given; always secured, whatever `secure` says.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body is the same sandbox; 1 to 255 of `a-z0-9-`", pattern = "^[a-z0-9-]{1,255}$")), request_body = rest::NewSandbox,
    responses((status = 201, body = rest::Sandbox, description = "Usable at once"),
        (status = 404, body = rest::Error, description = "No such template or tag"),
        (status = 409, body = rest::Error, description = "A request of this Idempotency-Key is under way, or its outcome is unknown"),
        (status = 422, body = rest::Error, description = "The Idempotency-Key had another body"),
        (status = 501, body = rest::Error, description = "The body asks for something that is not there yet"),
        (status = 503, body = rest::Error, description = "No capacity, or no node has the template")))]
pub(crate) async fn create_v2(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    create(&app, &team, &headers, &body, Generation::V2).await
}

async fn create(
    app: &App,
    team: &TeamRow,
    headers: &HeaderMap,
    body: &Body,
    generation: Generation,
) -> Result<Response, ApiError> {
    let idempotency = claim(headers, body, generation)?;
    let mut spec = translate::spec(body.required()?, generation)?;
    spec.idempotency = idempotency;
    let view = app.control.create(team, spec).await?;
    let answer = translate::sandbox(&view, app.domain.as_ref());
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The same key with the same bytes on the same route is the same request.
fn claim(
    headers: &HeaderMap,
    body: &Body,
    generation: Generation,
) -> Result<Option<IdempotencyClaim>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let key = value
        .to_str()
        .ok()
        .filter(|key| (1..=255).contains(&key.len()) && key.as_bytes().iter().all(allowed));
    let key = key.ok_or_else(|| {
        ApiError::invalid(
            "header \"Idempotency-Key\" must be 1 to 255 characters of a-z, 0-9 and -",
        )
    })?;
    let digest = Sha256::new()
        .chain_update(match generation {
            Generation::V1 => [1],
            Generation::V2 => [2],
        })
        .chain_update(&body.0)
        .finalize();
    Ok(Some(IdempotencyClaim {
        key: key.to_owned(),
        fingerprint: hex::encode(digest),
    }))
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/connect", tag = "sandboxes", summary = "Connect to a sandbox (old form)",
    description = "Extends its end to `timeout` from now, which must be given; never shortens it.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = rest::ConnectSandbox,
    responses((status = 200, body = rest::Sandbox, description = "It was running"),
        (status = 201, body = rest::Sandbox, description = "It was paused, and runs again"),
        (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is being killed")))]
pub(crate) async fn connect_v1(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<Response, ApiError> {
    connect(&app, &team, &id, &body.required()?, Generation::V1).await
}

#[utoipa::path(post, path = "/v2/sandboxes/{sandbox_id}/connect", tag = "sandboxes", summary = "Connect to a sandbox",
    description = "Extends its end to `timeout` (300 s) from now; never shortens it. The body may be absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = Option<rest::ConnectSandbox>,
    responses((status = 200, body = rest::Sandbox, description = "It was running"),
        (status = 201, body = rest::Sandbox, description = "It was paused, and runs again"),
        (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is being killed")))]
pub(crate) async fn connect_v2(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<Response, ApiError> {
    connect(&app, &team, &id, &body.optional()?, Generation::V2).await
}

async fn connect(
    app: &App,
    team: &TeamRow,
    id: &SandboxId,
    body: &rest::ConnectSandbox,
    generation: Generation,
) -> Result<Response, ApiError> {
    let timeout = translate::connect_timeout(body, generation)?;
    let memory = body.memory.unwrap_or(true);
    let connected = app.control.connect(team, id, timeout, memory).await?;
    let (status, view) = match connected {
        Connected::Running(view) => (StatusCode::OK, view),
        Connected::Resumed(view) => (StatusCode::CREATED, view),
    };
    let answer = translate::sandbox(&view, app.domain.as_ref());
    Ok((status, Json(answer)).into_response())
}

#[utoipa::path(get, path = "/sandboxes/{sandbox_id}", tag = "sandboxes", summary = "All about a sandbox", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), responses((status = 200, body = rest::SandboxDetail), (status = 404, body = rest::Error, description = "No such sandbox of the team")))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<rest::SandboxDetail>, ApiError> {
    let view = app.control.sandbox(&team, &id).await?;
    Ok(Json(translate::detail(&view, app.domain.as_ref())))
}

#[utoipa::path(delete, path = "/sandboxes/{sandbox_id}", tag = "sandboxes", summary = "Kill a sandbox", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), responses((status = 204, description = "No process of it is left"), (status = 404, body = rest::Error, description = "No such sandbox of the team")))]
pub(crate) async fn kill(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    app.control.kill(&team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/timeout", tag = "sandboxes", summary = "Move the end of a sandbox",
    description = "To `timeout` from now, earlier or later; what is beyond the longest life is the longest life; 0 is now.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = rest::SetTimeout,
    responses((status = 204, description = "Moved"), (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is being killed")))]
pub(crate) async fn set_timeout(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::SetTimeout = body.required()?;
    let timeout = body.timeout.ok_or_else(|| translate::lacks("timeout"))?;
    let timeout = translate::seconds("timeout", timeout)?;
    app.control.set_timeout(&team, &id, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(put, path = "/sandboxes/{sandbox_id}/network", tag = "sandboxes", summary = "Replace where a sandbox may connect to",
    description = "All of it: what is absent is as by default. Holds for new connections.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = rest::UpdateNetwork,
    responses((status = 204, description = "Replaced"), (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is being killed"),
        (status = 501, body = rest::Error, description = "The body asks for something that is not there yet")))]
pub(crate) async fn set_network(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::UpdateNetwork = body.required()?;
    translate::refuse_inbound(&body.others)?;
    let network = translate::network(body.allow_internet_access, body.outbound, &body.others)?;
    app.control.set_network(&team, &id, network).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/refreshes", tag = "sandboxes", summary = "Extend the life of a sandbox",
    description = "By at least 15 s from now; never shortens it. The body may be absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = Option<rest::RefreshSandbox>,
    responses((status = 204, description = "Extended"), (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is being killed")))]
pub(crate) async fn refresh(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<StatusCode, ApiError> {
    const LONGEST: i32 = 3600;
    let body: rest::RefreshSandbox = body.optional()?;
    let duration = body.duration.unwrap_or(0);
    if duration > LONGEST {
        return Err(ApiError::invalid(&format!(
            "\"duration\": number must be at most {LONGEST}"
        )));
    }
    let duration = translate::seconds("duration", duration)?;
    app.control.refresh(&team, &id, duration).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes", summary = "Running sandboxes (old form)", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("metadata" = Option<String>, Query, description = "`key=value&key2=value2`, each part escaped, and the whole escaped once more; all must match")), responses((status = 200, body = [rest::ListedSandbox], description = "Newest first")))]
pub(crate) async fn list_running(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Json<Vec<rest::ListedSandbox>>, ApiError> {
    let query = ListQuery {
        metadata: params
            .get("metadata")
            .map(query::metadata)
            .transpose()?
            .unwrap_or_default(),
        running: true,
        paused: false,
        order: Order::NewestFirst,
        started_after: None,
        after: None,
        limit: MAX_UNPAGED,
    };
    let page = app.control.list(&team, None, &query).await?;
    if page.total > MAX_UNPAGED {
        return Err(ApiError::bad_request(format!(
            "more than {MAX_UNPAGED} sandboxes, use GET /v2/sandboxes"
        )));
    }
    Ok(Json(page.items.iter().map(translate::listed).collect()))
}

#[utoipa::path(get, path = "/v2/sandboxes", tag = "sandboxes", summary = "Sandboxes, by the page", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("metadata" = Option<String>, Query, description = "`key=value&key2=value2`, each part escaped, and the whole escaped once more; all must match"), ("state" = Option<String>, Query, description = "`running`, `paused` or both, separated by a comma", pattern = "^(running|paused)(,(running|paused))*$"),
        ("order" = Option<String>, Query, description = "`desc` (newest first, the default) or `asc`", pattern = "^(asc|desc)$"),
        ("startedAfter" = Option<String>, Query, description = "Only those that started then or later", format = DateTime),
        ("template" = Option<String>, Query, description = "Only those of this template, without a tag"), ("limit" = Option<u32>, Query, description = "100 by default", minimum = 1, maximum = 100), ("nextToken" = Option<String>, Query, description = "The `X-Next-Token` of the page before")),
    responses((status = 200, body = [rest::ListedSandbox],
        headers(("X-Next-Token" = String, description = "Absent on the last page"),
            ("X-Total-Running" = u64, description = "Matches on all pages; only where running ones were asked for")))))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Response, ApiError> {
    let query = list_query(&params)?;
    let template = params.get("template").map(template_filter).transpose()?;
    let page = app.control.list(&team, template.as_ref(), &query).await?;
    let items: Vec<_> = page.items.iter().map(translate::listed).collect();
    let mut response = Json(items).into_response();
    let headers = response.headers_mut();
    if query.running {
        headers.insert(TOTAL_RUNNING, HeaderValue::from(page.total));
    }
    if let Some(next) = &page.next {
        insert_token(headers, &time::encode_cursor(next, query.order));
    }
    Ok(response)
}

/// Base64 is always a header value.
pub(crate) fn insert_token(headers: &mut HeaderMap, token: &str) {
    if let Ok(value) = HeaderValue::from_str(token) {
        headers.insert(NEXT_TOKEN, value);
    }
}

fn list_query(params: &Params) -> Result<ListQuery, ApiError> {
    let states: Vec<_> = params
        .get("state")
        .unwrap_or("running,paused")
        .split(',')
        .filter(|state| !state.is_empty())
        .collect();
    if states
        .iter()
        .any(|state| !matches!(*state, "running" | "paused"))
    {
        return Err(ApiError::invalid(
            "parameter \"state\" in query must be running or paused",
        ));
    }
    let order = match params.get("order") {
        None | Some("desc") => Order::NewestFirst,
        Some("asc") => Order::OldestFirst,
        Some(_) => {
            return Err(ApiError::invalid(
                "parameter \"order\" in query must be asc or desc",
            ));
        }
    };
    let started_after = params
        .get("startedAfter")
        .map(|text| {
            time::parse(text).ok_or_else(|| {
                ApiError::invalid("parameter \"startedAfter\" in query must be a time")
            })
        })
        .transpose()?;
    let limit = params.number("limit", 1, MAX_PAGE)?.unwrap_or(MAX_PAGE);
    let after = params
        .get("nextToken")
        .map(|token| {
            time::decode_cursor(token, order)
                .ok_or_else(|| ApiError::bad_request("Invalid next token"))
        })
        .transpose()?;
    Ok(ListQuery {
        metadata: params
            .get("metadata")
            .map(query::metadata)
            .transpose()?
            .unwrap_or_default(),
        running: states.is_empty() || states.contains(&"running"),
        paused: states.is_empty() || states.contains(&"paused"),
        order,
        started_after,
        after,
        limit,
    })
}

fn template_filter(text: &str) -> Result<TemplateReference, ApiError> {
    let reference: TemplateReference = text
        .parse()
        .map_err(|error| ApiError::bad_request(format!("Invalid template: {error}")))?;
    if reference.tag.is_some() {
        return Err(ApiError::bad_request(
            "Invalid template: tags are not supported here",
        ));
    }
    Ok(reference)
}
