//! Routes of the administrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use soulbox_wire::rest;

use crate::App;
use crate::auth::Administrator;
use crate::error::ApiError;
use crate::input::Segment;

pub(crate) async fn kill_sandboxes(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(team_id): Segment,
) -> Result<Json<rest::KilledAll>, ApiError> {
    let team_id = team_id
        .to_lowercase()
        .parse()
        .map_err(|_| ApiError::invalid("parameter \"teamID\" in path must be a UUID"))?;
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

pub(crate) async fn running_counts(
    State(app): State<Arc<App>>,
    _: Administrator,
) -> Json<BTreeMap<String, u32>> {
    Json(app.control.running_counts())
}
