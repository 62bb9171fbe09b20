//! Pause and resume of one sandbox. Connect, the newer form of resume, is beside create.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use soulbox_control::PauseWish;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{Body, SandboxPath};
use crate::translate;

/// As long as a create of the same generation.
const DEFAULT_TIMEOUT: i32 = 15;

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/pause", tag = "sandboxes", summary = "Pause a sandbox",
    description = "Its processes, its memory and its files become a snapshot, from which connect goes on. With `memory: false` only its files. The body may be absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = Option<rest::PauseSandbox>,
    responses((status = 204, description = "All of it is on disk, and no process of it is left"),
        (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is paused already, or is being killed"),
        (status = 501, body = rest::Error, description = "The host makes no snapshots"),
        (status = 503, body = rest::Error, description = "It cannot be paused now, for the reason in the message; it goes on")))]
pub(crate) async fn pause(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::PauseSandbox = body.optional()?;
    let wish = PauseWish {
        memory: body.memory.unwrap_or(true),
        healthy_guest: body.require_healthy_guest.unwrap_or(false),
    };
    app.control.pause(&team, &id, wish).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/sandboxes/{sandbox_id}/resume", tag = "sandboxes", summary = "Resume a paused sandbox (old form)",
    description = "For `timeout` (15 s). `autoPause` says whether it is paused at its deadline from now on, else killed; absent, that stays as it is. The body may be absent.", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("sandbox_id" = String, Path, description = "The ID, also in its legacy form `<sandboxID>-<clientID>`")), request_body = Option<rest::ResumeSandbox>,
    responses((status = 201, body = rest::Sandbox, description = "It runs again"),
        (status = 404, body = rest::Error, description = "No such sandbox of the team"),
        (status = 409, body = rest::Error, description = "It is running"),
        (status = 501, body = rest::Error, description = "The host cannot restore it")))]
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    body: Body,
) -> Result<Response, ApiError> {
    let body: rest::ResumeSandbox = body.optional()?;
    let timeout = translate::seconds("timeout", body.timeout.unwrap_or(DEFAULT_TIMEOUT))?;
    let memory = body.memory.unwrap_or(true);
    let auto_pause = body.auto_pause;
    let view = app
        .control
        .resume(&team, &id, timeout, memory, auto_pause)
        .await?;
    let answer = translate::sandbox(&view, app.domain.as_ref());
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}
