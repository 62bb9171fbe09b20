//! Files for COPY steps: where to put an archive, and receiving it.
//!
//! The link carries its own permission, an HMAC of team, hash and end, so the upload needs no key. The archive goes to the disk as it comes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use http::{HeaderMap, StatusCode, Uri, header};
use soulbox_control::{FilesHash, TemplateReference};
use soulbox_types::TeamId;
use soulbox_wire::rest;

use super::template_builds::bad_hash;
use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::Segments;
use crate::query::Params;

/// The whole upload; clients give up after this as well.
pub(crate) const UPLOAD_WITHIN: Duration = Duration::from_secs(3600);
pub(crate) const UPLOAD_ROUTE: &str = "/upload/{team_id}/{hash}";

#[utoipa::path(get, path = "/templates/{template_id}/files/{hash}", tag = "templates", summary = "Where to upload files of a COPY step", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path), ("hash" = String, Path, pattern = "^[0-9a-f]{64}$")),
    responses((status = 201, body = rest::FilesLink, description = "The link is good for half an hour"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn link(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segments([template, hash]): Segments<2>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<(StatusCode, Json<rest::FilesLink>), ApiError> {
    let hash: FilesHash = hash.parse().map_err(|_| bad_hash())?;
    let missing = || ApiError::not_found(format!("Template {template} not found"));
    let reference: TemplateReference = template.parse().map_err(|_| missing())?;
    let archives = app.control.archives(&team, &reference).await?;
    let present = archives.path(&hash).is_some();
    let (expires, token) = app.control.upload_permission(&team.team_id, &hash);
    let url = format!(
        "{}/upload/{}/{hash}?expires={expires}&token={token}",
        origin(&app, &headers, &uri)?,
        team.team_id
    );
    Ok((StatusCode::CREATED, Json(rest::FilesLink { present, url })))
}

#[utoipa::path(put, path = "/upload/{team_id}/{hash}", tag = "templates", summary = "Upload files of a COPY step", security(("upload_link" = [])),
    description = "To a link that was given for it. The body is a tar archive, plain or packed by gzip or zstd, of exactly the announced length.",
    params(("team_id" = String, Path), ("hash" = String, Path), ("expires" = u64, Query, description = "As in the link"), ("token" = String, Query, description = "As in the link")),
    responses((status = 201, description = "It is kept"), (status = 403, body = rest::Error, description = "The link is too old, or is none of ours"), (status = 413, body = rest::Error, description = "More than is taken")))]
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    Segments([team, hash]): Segments<2>,
    params: Params,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let team: TeamId = team
        .parse()
        .map_err(|_| ApiError::bad_request("Invalid team ID"))?;
    let hash: FilesHash = hash.parse().map_err(|_| bad_hash())?;
    let expires: u64 = params
        .get("expires")
        .and_then(|it| it.parse().ok())
        .ok_or_else(|| ApiError::invalid("parameter \"expires\" in query is missing"))?;
    let token = params
        .get("token")
        .ok_or_else(|| ApiError::invalid("parameter \"token\" in query is missing"))?;
    let archives = app
        .control
        .uploadable(&team, &hash, expires, token)
        .ok_or_else(|| ApiError::forbidden("the upload link is not valid, or not any more"))?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length: u64 = length
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.parse().ok())
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::LENGTH_REQUIRED,
                "the length of the archive must be announced",
            )
        })?;
    archives
        .receive(&hash, length, request.into_body().into_data_stream())
        .await?;
    Ok(StatusCode::CREATED)
}

/// How the client reached this server, as it will again. What it says about itself reaches nobody but itself.
fn origin(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<String, ApiError> {
    let forwarded = headers
        .get("x-forwarded-proto")
        .is_some_and(|it| it.as_bytes() == b"https");
    let scheme = if app.tls || forwarded {
        "https"
    } else {
        "http"
    };
    let host = uri.authority().map(|it| it.as_str().to_owned());
    let host = host.or_else(|| {
        let host = headers.get(header::HOST)?.to_str().ok()?;
        Some(host.to_owned())
    });
    let host = host
        .filter(|it| it.parse::<http::uri::Authority>().is_ok())
        .ok_or_else(|| ApiError::bad_request("the request names no host"))?;
    Ok(format!("{scheme}://{host}"))
}
