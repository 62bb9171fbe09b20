//! Routes of the administrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use soulbox_types::TeamId;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Administrator;
use crate::error::ApiError;
use crate::input::Segment;

#[utoipa::path(post, path = "/admin/teams/{team_id}/sandboxes/kill", tag = "admin", summary = "Kill all sandboxes of a team",
    security(("admin_token" = [])), params(("team_id" = String, Path, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")),
    responses((status = 200, body = rest::KilledAll), (status = 404, body = rest::Error, description = "No such team")))]
pub(crate) async fn kill_sandboxes(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(text): Segment,
) -> Result<Json<rest::KilledAll>, ApiError> {
    let team_id = team_id(&text)?;
    let all = app
        .control
        .kill_all_of(&team_id)
        .await?
        .ok_or_else(|| ApiError::not_found("Team not found"))?;
    Ok(Json(rest::KilledAll {
        killed_count: all.killed,
        failed_count: all.failed,
    }))
}

#[utoipa::path(get, path = "/admin/sandboxes/running-counts", tag = "admin", summary = "How many sandboxes run, by team",
    security(("admin_token" = [])),
    responses((status = 200, body = BTreeMap<String, u32>, description = "Teams without any are absent")))]
pub(crate) async fn running_counts(
    State(app): State<Arc<App>>,
    _: Administrator,
) -> Json<BTreeMap<String, u32>> {
    Json(app.control.running_counts())
}

pub(super) fn team_id(text: &str) -> Result<TeamId, ApiError> {
    text.to_lowercase()
        .parse()
        .map_err(|_| ApiError::invalid("parameter \"teamID\" in path must be a UUID"))
}
