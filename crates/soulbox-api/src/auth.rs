//! Credentials of a request: which schemes a route takes, which header belongs to which, and what a blocked team may still do.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath};
use http::request::Parts;
use http::{Extensions, HeaderMap, Method, header};
use soulbox_control::{AuthError, Credential, TeamRow};

use crate::App;
use crate::error::ApiError;
use crate::rate::{self, Noted};

const API_KEY: &str = "x-api-key";
const ADMIN_TOKEN: &str = "x-admin-token";
const TEAM_ID: &str = "x-team-id";

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// API key, or a user's or the administrator's token with a team.
    Customer,
    /// As `Customer`, but a leaked API key must not manage keys.
    KeyOwner,
    /// The legacy access token of a user.
    AccessToken,
    /// The token of one volume.
    Volume,
}

/// The team that the request acts for, on routes of [`Scheme::Customer`].
pub(crate) struct Caller(pub(crate) Arc<TeamRow>);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let_in(app, parts, matched(parts), Scheme::Customer)
            .await
            .map(Self)
    }
}

/// The team whose keys the request handles, on routes of [`Scheme::KeyOwner`].
pub(crate) struct KeyOwner(pub(crate) Arc<TeamRow>);

impl FromRequestParts<Arc<App>> for KeyOwner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let_in(app, parts, matched(parts), Scheme::KeyOwner)
            .await
            .map(Self)
    }
}

/// Proof that the request comes with the legacy access token of a user, on routes of [`Scheme::AccessToken`].
pub(crate) struct OldUser;

impl FromRequestParts<Arc<App>> for OldUser {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        check(app, Scheme::AccessToken, parts, matched(parts))
            .await
            .map(|()| Self)
    }
}

/// Proof that the request is the administrator's, on the administrator's routes.
pub(crate) struct Administrator;

impl FromRequestParts<Arc<App>> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        administrator(app, &parts.headers).map(|()| Self)
    }
}

/// Lets a request in or refuses it.
pub(crate) async fn check(
    app: &App,
    scheme: Scheme,
    request: &Parts,
    route: &str,
) -> Result<(), ApiError> {
    let headers = &request.headers;
    match scheme {
        Scheme::Customer | Scheme::KeyOwner => let_in(app, request, route, scheme).await.map(drop),
        Scheme::AccessToken => {
            let token = bearer(headers)?.ok_or_else(missing)?;
            app.control
                .authenticate(Credential::AccessToken(token))
                .await?;
            Ok(())
        }
        // No volume exists, so no token can be valid, but whoever shows none is told so first.
        Scheme::Volume => bearer(headers)?.map(drop).ok_or_else(missing),
    }
}

fn administrator(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let token = text(headers, ADMIN_TOKEN)?.ok_or_else(missing)?;
    Ok(app.control.check_admin(token)?)
}

fn matched(request: &Parts) -> &str {
    request
        .extensions
        .get::<MatchedPath>()
        .map_or("", MatchedPath::as_str)
}

/// The team that the request acts for, with the request taken out of its ration.
async fn let_in(
    app: &App,
    request: &Parts,
    route: &str,
    scheme: Scheme,
) -> Result<Arc<TeamRow>, ApiError> {
    let team = customer(app, &request.headers, &request.method, route, scheme).await?;
    ration(app, &request.extensions, &team, &request.method, route)?;
    Ok(team)
}

/// Takes the request out of what the team may ask of this route.
fn ration(
    app: &App,
    extensions: &Extensions,
    team: &TeamRow,
    method: &Method,
    route: &str,
) -> Result<(), ApiError> {
    let Some(outcome) = app.limits.take(&team.team_id, method, route) else {
        return Ok(());
    };
    let (taken, refusal) = match outcome {
        Ok(taken) => (taken, Ok(())),
        Err((taken, wait)) => (taken, Err(ApiError::rate_limited(rate::seconds(wait)))),
    };
    if let Some(noted) = extensions.get::<Noted>() {
        noted.note(taken);
    }
    refusal
}

/// The first scheme that succeeds lets the request in. Otherwise a ban is the answer, or what the first scheme with a header says.
async fn customer(
    app: &App,
    headers: &HeaderMap,
    method: &Method,
    route: &str,
    scheme: Scheme,
) -> Result<Arc<TeamRow>, ApiError> {
    let mut refusal = None;
    let mut team = None;
    if scheme == Scheme::Customer && headers.contains_key(API_KEY) {
        match text(headers, API_KEY) {
            Ok(key) => match app
                .control
                .authenticate(Credential::ApiKey(key.unwrap_or("")))
                .await
            {
                Ok(found) => team = Some(found),
                Err(error @ AuthError::Banned) => return Err(error.into()),
                Err(error) => refusal = Some(error.into()),
            },
            Err(error) => refusal = Some(error),
        }
    }
    if team.is_none() && headers.contains_key(header::AUTHORIZATION) {
        // No identity provider can be configured yet, so no token of one is valid.
        let error = match bearer(headers) {
            Ok(_) => ApiError::unauthorized(
                "Invalid auth provider token.\nno identity provider is configured",
            ),
            Err(error) => error,
        };
        refusal.get_or_insert(error);
    }
    if team.is_none() && headers.contains_key(ADMIN_TOKEN) {
        match (text(headers, ADMIN_TOKEN), text(headers, TEAM_ID)) {
            (Ok(Some(token)), Ok(Some(team_id))) => {
                let credential = Credential::AdminAsTeam { token, team_id };
                match app.control.authenticate(credential).await {
                    Ok(found) => team = Some(found),
                    Err(error @ AuthError::Banned) => return Err(error.into()),
                    Err(error) => drop(refusal.get_or_insert(error.into())),
                }
            }
            (Ok(_), Ok(_)) => drop(refusal.get_or_insert(missing())),
            (Err(error), _) | (_, Err(error)) => drop(refusal.get_or_insert(error)),
        }
    }
    let Some(team) = team else {
        return Err(refusal.unwrap_or_else(missing));
    };
    if team.blocked && !open_to_blocked(method, route) {
        return Err(ApiError::forbidden(match &team.blocked_reason {
            Some(reason) => format!("team is blocked: {reason}"),
            None => "team is blocked".to_owned(),
        }));
    }
    Ok(team)
}

/// A blocked team may look and clean up, not create or change.
fn open_to_blocked(method: &Method, route: &str) -> bool {
    match *method {
        Method::GET => {
            route != "/templates/{template_id}/files/{hash}" && !route.starts_with("/events")
        }
        Method::DELETE => matches!(
            route,
            "/sandboxes/{sandbox_id}"
                | "/templates/{template_id}"
                | "/templates/tags"
                | "/volumes/{volume_id}"
                | "/api-keys/{api_key_id}"
        ),
        _ => false,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| AuthError::Malformed.into()))
        .transpose()
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = text(headers, header::AUTHORIZATION.as_str())? else {
        return Ok(None);
    };
    value
        .strip_prefix("Bearer ")
        .map(Some)
        .ok_or_else(|| AuthError::Malformed.into())
}

fn missing() -> ApiError {
    ApiError::unauthorized("authorization header is missing")
}
