//! `/templates` and `/v2/templates`: reading.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use soulbox_control::{Cursor, Order, ResolveError, TeamRow, TemplateReference, page};
use soulbox_types::TemplateId;
use soulbox_wire::rest;

use super::sandboxes::{MAX_PAGE, MAX_UNPAGED, insert_token};
use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::Segment;
use crate::query::Params;
use crate::time;
use crate::translate;

#[utoipa::path(get, path = "/templates", tag = "templates", summary = "Templates of the team", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("teamID" = Option<String>, Query, description = "The team of the key, if given")),
    responses((status = 200, body = [rest::Template], description = "Newest first")))]
pub(crate) async fn list_all(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Json<Vec<rest::Template>>, ApiError> {
    check_team(&team, &params)?;
    let page = app.control.templates(&team, None, MAX_UNPAGED);
    if page.total > MAX_UNPAGED {
        return Err(ApiError::bad_request(format!(
            "more than {MAX_UNPAGED} templates, use GET /v2/templates"
        )));
    }
    Ok(Json(page.items.iter().map(translate::template).collect()))
}

#[utoipa::path(get, path = "/v2/templates", tag = "templates", summary = "Templates of the team, by the page", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("teamID" = Option<String>, Query, description = "The team of the key, if given"), ("limit" = Option<u32>, Query, description = "100 by default", minimum = 1, maximum = 100), ("nextToken" = Option<String>, Query, description = "The `X-Next-Token` of the page before")),
    responses((status = 200, body = [rest::Template], description = "Newest first", headers(("X-Next-Token" = String, description = "Absent on the last page")))))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    params: Params,
) -> Result<Response, ApiError> {
    check_team(&team, &params)?;
    let (after, limit) = position(&params)?;
    let page = app.control.templates(&team, after.as_ref(), limit);
    let items: Vec<_> = page.items.iter().map(translate::template).collect();
    Ok(paged(Json(items).into_response(), page.next.as_ref()))
}

#[utoipa::path(get, path = "/templates/{template_id}", tag = "templates", summary = "A template with its builds", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID, not an alias"), ("limit" = Option<u32>, Query, description = "100 by default", minimum = 1, maximum = 100), ("nextToken" = Option<String>, Query, description = "The `X-Next-Token` of the page before")),
    responses((status = 200, body = rest::TemplateWithBuilds, description = "Builds newest first", headers(("X-Next-Token" = String, description = "Absent on the last page"))),
        (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
    params: Params,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found(format!("Template {text} not found"));
    let (after, limit) = position(&params)?;
    let id: TemplateId = text.parse().map_err(|_| missing())?;
    let view = app
        .control
        .template(&team, &id)
        .map_err(|error| match error {
            ResolveError::NoTemplate { .. } | ResolveError::NoTag { .. } => missing(),
            foreign @ ResolveError::Foreign { .. } => foreign.into(),
        })?;
    let builds = page(
        view.builds.clone(),
        Order::NewestFirst,
        after.as_ref(),
        limit,
        |build| {
            let (at, id) = translate::build_cursor(build);
            Cursor { at, id }
        },
    );
    let answer = rest::TemplateWithBuilds {
        template: translate::template(&view),
        builds: builds
            .items
            .iter()
            .map(|build| translate::build(build))
            .collect(),
    };
    Ok(paged(Json(answer).into_response(), builds.next.as_ref()))
}

#[utoipa::path(get, path = "/templates/aliases/{alias}", tag = "templates", summary = "The template of an alias", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("alias" = String, Path, description = "`alias`, `namespace/alias` with the slash escaped, either with `:tag`")),
    responses((status = 200, body = rest::TemplateAlias), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn by_alias(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
) -> Result<Json<rest::TemplateAlias>, ApiError> {
    let reference: TemplateReference = text.parse()?;
    let template = app
        .control
        .template_by_alias(&team, &reference)
        .await
        .map_err(|error| match error {
            ResolveError::Foreign { .. } => {
                ApiError::forbidden("You don't have access to this template alias")
            }
            other @ (ResolveError::NoTemplate { .. } | ResolveError::NoTag { .. }) => other.into(),
        })?;
    let template_id = template.template_id.to_string();
    Ok(Json(rest::TemplateAlias {
        template_id,
        public: template.public,
    }))
}

/// The parameter is a relic: a key has one team.
fn check_team(team: &TeamRow, params: &Params) -> Result<(), ApiError> {
    match params.get("teamID") {
        Some(asked) if asked.to_lowercase() != team.team_id.as_str() => Err(ApiError::bad_request(
            "Team ID param mismatch with the API key",
        )),
        _ => Ok(()),
    }
}

fn position(params: &Params) -> Result<(Option<Cursor>, usize), ApiError> {
    let limit = params.number("limit", 1, MAX_PAGE)?.unwrap_or(MAX_PAGE);
    let after = params
        .get("nextToken")
        .map(|token| {
            time::decode_cursor(token, Order::NewestFirst)
                .ok_or_else(|| ApiError::bad_request("Invalid next token"))
        })
        .transpose()?;
    Ok((after, limit))
}

fn paged(mut response: Response, next: Option<&Cursor>) -> Response {
    if let Some(next) = next {
        insert_token(
            response.headers_mut(),
            &time::encode_cursor(next, Order::NewestFirst),
        );
    }
    response
}
