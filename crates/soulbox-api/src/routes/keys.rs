//! `/api-keys` and the administrator's `/admin/teams/{id}/api-keys`: never with an API key, so that a leaked one makes no others.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use soulbox_control::{KeyRow, TeamRow};
use soulbox_types::TeamId;
use soulbox_wire::rest;

use crate::App;
use crate::auth::{Administrator, KeyOwner};
use crate::error::ApiError;
use crate::input::{Body, Segment, Segments};
use crate::time;
use crate::translate;

const LONGEST_NAME: usize = 255;

#[utoipa::path(get, path = "/api-keys", tag = "keys", summary = "API keys of the team",
    security(("admin_token" = [], "team_id" = [])),
    responses((status = 200, body = [rest::TeamApiKey], description = "Oldest first; no key itself")))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    KeyOwner(team): KeyOwner,
) -> Result<Json<Vec<rest::TeamApiKey>>, ApiError> {
    let keys = app.control.api_keys(&team.team_id).await?;
    Ok(Json(keys.iter().map(shown).collect()))
}

#[utoipa::path(post, path = "/api-keys", tag = "keys", summary = "Make an API key",
    security(("admin_token" = [], "team_id" = [])), request_body = rest::NameApiKey,
    responses((status = 201, body = rest::CreatedTeamApiKey, description = "The only time that the key is told")))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    KeyOwner(team): KeyOwner,
    body: Body,
) -> Result<(StatusCode, Json<rest::CreatedTeamApiKey>), ApiError> {
    made(&app, &team.team_id, &name(&body)?).await
}

#[utoipa::path(patch, path = "/api-keys/{api_key_id}", tag = "keys", summary = "Rename an API key",
    security(("admin_token" = [], "team_id" = [])), request_body = rest::NameApiKey,
    params(("api_key_id" = String, Path)),
    responses((status = 202, description = "Renamed"), (status = 404, body = rest::Error, description = "No such key")))]
pub(crate) async fn rename(
    State(app): State<Arc<App>>,
    KeyOwner(team): KeyOwner,
    Segment(key_id): Segment,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let name = name(&body)?;
    if app
        .control
        .rename_api_key(&team.team_id, &key_id, &name)
        .await?
    {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(ApiError::not_found("id not found"))
    }
}

#[utoipa::path(delete, path = "/api-keys/{api_key_id}", tag = "keys", summary = "Revoke an API key",
    security(("admin_token" = [], "team_id" = [])), params(("api_key_id" = String, Path)),
    responses((status = 204, description = "Revoked"), (status = 404, body = rest::Error, description = "No such key")))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    KeyOwner(team): KeyOwner,
    Segment(key_id): Segment,
) -> Result<StatusCode, ApiError> {
    if app.control.delete_api_key(&team.team_id, &key_id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("id not found"))
    }
}

#[utoipa::path(post, path = "/admin/teams/{team_id}/api-keys", tag = "admin", summary = "Make an API key of a team",
    security(("admin_token" = [])), request_body = rest::NameApiKey,
    params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")),
    responses((status = 201, body = rest::CreatedTeamApiKey, description = "The only time that the key is told"),
        (status = 404, body = rest::Error, description = "No such team")))]
pub(crate) async fn create_for_team(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(team_id): Segment,
    body: Body,
) -> Result<(StatusCode, Json<rest::CreatedTeamApiKey>), ApiError> {
    let name = name(&body)?;
    let team = team(&app, &team_id).await?;
    if team.banned {
        return Err(ApiError::forbidden("team is banned"));
    }
    if team.blocked {
        return Err(ApiError::forbidden("team is blocked"));
    }
    made(&app, &team.team_id, &name).await
}

#[utoipa::path(delete, path = "/admin/teams/{team_id}/api-keys/{api_key_id}", tag = "admin",
    summary = "Revoke an API key of a team", security(("admin_token" = [])),
    params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"), ("api_key_id" = String, Path)),
    responses((status = 204, description = "Revoked"), (status = 404, body = rest::Error, description = "No such team or key")))]
pub(crate) async fn delete_of_team(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segments([team_id, key_id]): Segments<2>,
) -> Result<StatusCode, ApiError> {
    let team = team(&app, &team_id).await?;
    if app.control.delete_api_key(&team.team_id, &key_id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("API key not found"))
    }
}

async fn made(
    app: &App,
    team_id: &TeamId,
    name: &str,
) -> Result<(StatusCode, Json<rest::CreatedTeamApiKey>), ApiError> {
    let made = app.control.create_api_key(team_id, name).await?;
    let answer = rest::CreatedTeamApiKey {
        row: shown(&made.row),
        key: made.secret,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn team(app: &App, text: &str) -> Result<TeamRow, ApiError> {
    let team_id = super::admin::team_id(text)?;
    let team = app.control.team(&team_id).await?;
    team.ok_or_else(|| ApiError::not_found("Team not found"))
}

fn name(body: &Body) -> Result<String, ApiError> {
    let body: rest::NameApiKey = body.required()?;
    let name = body.name.ok_or_else(|| translate::lacks("name"))?;
    if (1..=LONGEST_NAME).contains(&name.chars().count()) && !name.contains('\0') {
        Ok(name)
    } else {
        Err(ApiError::invalid(&format!(
            "\"name\": must have 1 to {LONGEST_NAME} characters, and no NUL"
        )))
    }
}

fn shown(row: &KeyRow) -> rest::TeamApiKey {
    rest::TeamApiKey {
        id: row.key_id.clone(),
        name: row.name.clone(),
        mask: rest::KeyMask {
            prefix: row.prefix.clone(),
            value_length: row.value_length,
            masked_value_prefix: row.mask_prefix.clone(),
            masked_value_suffix: row.mask_suffix.clone(),
        },
        created_at: time::format(row.created_at),
        last_used: row.last_used_at.map(time::format),
    }
}
