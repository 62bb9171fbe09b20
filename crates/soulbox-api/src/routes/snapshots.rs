//! Snapshots of running sandboxes, forks and rollbacks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use soulbox_control::{Order, SnapshotView, TemplateReference, parse_sandbox_id};
use soulbox_wire::rest;

use super::sandboxes::{MAX_PAGE, insert_token};
use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{Body, SandboxPath};
use crate::query::Params;
use crate::{time, translate};

/// A fork lives for as long as a sandbox of a create of the second generation.
const DEFAULT_FORK_TIMEOUT: i32 = 300;
const MAX_FORKS: i32 = 100;

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/snapshots", tag = "snapshots", summary = "Make a snapshot of a running sandbox",
    description = "The sandbox stops for a moment and goes on. Sandboxes are created from the snapshot by its ID, as from a template.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = rest::NewSnapshot,
    responses((status = 201, body = rest::SnapshotInfo), (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is paused, or another snapshot of it is being made"),
        (status = 501, body = rest::Error, description = "The host makes no snapshots"),
        (status = 503, body = rest::Error, description = "It cannot be saved now, for the reason in the message; it goes on")))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<Response, ApiError> {
    let body: rest::NewSnapshot = body.required()?;
    let name = body.name.as_deref().map(str::parse::<TemplateReference>);
    let name = name.transpose()?;
    let memory = body.memory.unwrap_or(true);
    let made = app.control.snapshot(&team, &id, name.as_ref(), memory);
    Ok((StatusCode::CREATED, Json(info(made.await?))).into_response())
}

#[utoipa::path(get, path = "/snapshots", tag = "snapshots", summary = "Snapshots, newest first, by the page", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandboxID" = Option<String>, Query, description = "Only those of this sandbox"), ("name" = Option<String>, Query, description = "Only those of this name, and of its tag if it has one"),
        ("limit" = Option<u32>, Query, description = "100 by default", minimum = 1, maximum = 100), ("nextToken" = Option<String>, Query, description = "The `X-Next-Token` of the page before")),
    responses((status = 200, body = [rest::SnapshotInfo], headers(("X-Next-Token" = String, description = "Absent on the last page")))))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Response, ApiError> {
    let sandbox_id = params.get("sandboxID").map(parse_sandbox_id).transpose();
    let sandbox_id = sandbox_id
        .map_err(|_| ApiError::invalid("parameter \"sandboxID\" in query must be an ID"))?;
    let name = params.get("name").map(str::parse::<TemplateReference>);
    let name = name.transpose()?;
    let limit = params.number("limit", 1, MAX_PAGE)?.unwrap_or(MAX_PAGE);
    let after = params
        .get("nextToken")
        .map(|token| {
            time::decode_cursor(token, Order::NewestFirst)
                .ok_or_else(|| ApiError::bad_request("Invalid next token"))
        })
        .transpose()?;
    let page = app.control.snapshots(
        &team,
        sandbox_id.as_ref(),
        name.as_ref(),
        after.as_ref(),
        limit,
    );
    let items: Vec<_> = page.items.into_iter().map(info).collect();
    let mut response = Json(items).into_response();
    if let Some(next) = &page.next {
        let token = time::encode_cursor(next, Order::NewestFirst);
        insert_token(response.headers_mut(), &token);
    }
    Ok(response)
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/fork", tag = "snapshots", summary = "Fork a running sandbox",
    description = "`count` (1) new sandboxes go on from where this one is, for `timeout` (300 s). Each of them succeeds or fails by itself. The body may be absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = Option<rest::ForkSandbox>,
    responses((status = 201, body = [rest::Forked]), (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is paused, or a snapshot of it is being made"),
        (status = 501, body = rest::Error, description = "The host makes no snapshots"),
        (status = 503, body = rest::Error, description = "It cannot be saved now, for the reason in the message; it goes on")))]
pub(crate) async fn fork(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<Response, ApiError> {
    let body: rest::ForkSandbox = body.optional()?;
    let timeout = body.timeout.unwrap_or(DEFAULT_FORK_TIMEOUT);
    let timeout = translate::seconds("timeout", timeout)?;
    if timeout.is_zero() {
        return Err(ApiError::bad_request("Timeout must be greater than 0"));
    }
    let count = body.count.unwrap_or(1);
    if !(1..=MAX_FORKS).contains(&count) {
        return Err(ApiError::invalid(&format!(
            "\"count\": number must be between 1 and {MAX_FORKS}"
        )));
    }
    let forks = app.control.fork(&team, &id, timeout, count.unsigned_abs());
    let forks: Vec<_> = forks
        .await?
        .into_iter()
        .map(|fork| match fork {
            Ok(view) => rest::Forked {
                sandbox: Some(translate::sandbox(&view, app.domain.as_ref())),
                error: None,
            },
            Err(failure) => rest::Forked {
                sandbox: None,
                error: Some(ApiError::from(failure).body()),
            },
        })
        .collect();
    Ok((StatusCode::CREATED, Json(forks)).into_response())
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/rollback", tag = "snapshots", summary = "Take a running sandbox back to a snapshot of itself",
    description = "An extension of SoulBox. The sandbox keeps its ID, tokens, deadline, network and metadata; its processes and files are those of the snapshot. The present ones end when the agent in the new ones has answered.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = rest::RollbackSandbox,
    responses((status = 204, description = "It goes on from the snapshot, and is usable at once"),
        (status = 400, body = rest::Error, description = "The snapshot is of another sandbox"),
        (status = 404, body = rest::Error, description = "No such sandbox or snapshot of the team"),
        (status = 409, body = rest::Error, description = "It is paused or being killed, or a snapshot or another rollback of it is under way"),
        (status = 500, body = rest::Error, description = "The snapshot cannot be used; the sandbox goes on"),
        (status = 501, body = rest::Error, description = "The host makes no snapshots"),
        (status = 503, body = rest::Error, description = "The host has no room for a second copy now; the sandbox goes on")))]
pub(crate) async fn rollback(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::RollbackSandbox = body.required()?;
    let Some(reference) = body.snapshot_id.filter(|it| !it.is_empty()) else {
        return Err(ApiError::invalid("property \"snapshotID\" is missing"));
    };
    let reference: TemplateReference = reference.parse()?;
    app.control.rollback(&team, &id, &reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn info(view: SnapshotView) -> rest::SnapshotInfo {
    rest::SnapshotInfo {
        snapshot_id: view.reference,
        names: view.names,
    }
}
