//! `/templates` and `/v2/templates`: reading, visibility, deleting.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use soulbox_control::{BuildStatus, Cursor, Order, ResolveError, TeamRow, TemplateReference, page};
use soulbox_types::TemplateId;
use soulbox_wire::rest;

use super::sandboxes::{MAX_PAGE, MAX_UNPAGED, insert_token};
use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{Body, Segment};
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

#[utoipa::path(get, path = "/templates/{template_id}/contents", tag = "templates", summary = "What is in a template (extension)", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "The layers of the build that a create would take, and the packages that are installed there, as a sandbox of it tells.",
    params(("template_id" = String, Path, description = "An ID or a name, with or without a tag")),
    responses((status = 200, body = rest::TemplateContents), (status = 404, body = rest::Error, description = "No such template"),
        (status = 503, body = rest::Error, description = "No host has the files of the build")))]
pub(crate) async fn contents(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
) -> Result<Json<rest::TemplateContents>, ApiError> {
    let reference: TemplateReference = text.parse()?;
    let (build, contents) = app.control.contents(&team, &reference).await?;
    Ok(Json(rest::TemplateContents {
        template_id: build.template_id.to_string(),
        build_id: build.build_id.to_string(),
        layers: contents.layers,
        packages: contents
            .packages
            .into_iter()
            .map(translate::package)
            .collect(),
        sandbox_defaults: translate::sandbox_defaults(&build.policy),
    }))
}

#[utoipa::path(get, path = "/default-templates", tag = "templates", summary = "Templates with a global name", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "Those that come with the installation, and those that were published under a global name. What is told of the build is that of the one tagged `default`, if it is ready.",
    responses((status = 200, body = [rest::Template], description = "By ID")))]
pub(crate) async fn defaults(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
) -> Json<Vec<rest::Template>> {
    let views = app.control.default_templates(&team);
    let told = |mut view: soulbox_control::TemplateView| {
        view.build = view.build.filter(|it| it.status == BuildStatus::Ready);
        translate::template(&view)
    };
    Json(views.into_iter().map(told).collect())
}

#[utoipa::path(delete, path = "/templates/{template_id}", tag = "templates", summary = "Delete a template with its builds", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name")),
    responses((status = 204, description = "It is gone"), (status = 400, body = rest::Error, description = "Sandboxes use it"), (status = 403, body = rest::Error, description = "Another team's"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
) -> Result<StatusCode, ApiError> {
    let reference: TemplateReference = text.parse()?;
    app.control.delete_template(&team, &reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(patch, path = "/templates/{template_id}", tag = "templates", summary = "Change who sees a template (old form)", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    description = "A template that becomes public gets its alias as a global name.",
    params(("template_id" = String, Path, description = "An ID or a name")), request_body = rest::UpdateTemplate,
    responses((status = 200, description = "`null`"), (status = 403, body = rest::Error, description = "Another team's"), (status = 404, body = rest::Error, description = "No such template"), (status = 409, body = rest::Error, description = "The global name is taken")))]
pub(crate) async fn update_v1(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
    body: Body,
) -> Result<Json<()>, ApiError> {
    let body: rest::UpdateTemplate = body.optional()?;
    let reference: TemplateReference = text.parse()?;
    app.control
        .publish(&team, &reference, body.public, true)
        .await?;
    Ok(Json(()))
}

#[utoipa::path(patch, path = "/v2/templates/{template_id}", tag = "templates", summary = "Change who sees a template", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name")), request_body = rest::UpdateTemplate,
    responses((status = 200, body = rest::TemplateNames), (status = 403, body = rest::Error, description = "Another team's"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
    body: Body,
) -> Result<Json<rest::TemplateNames>, ApiError> {
    let body: rest::UpdateTemplate = body.optional()?;
    let reference: TemplateReference = text.parse()?;
    let names = app
        .control
        .publish(&team, &reference, body.public, false)
        .await?;
    Ok(Json(rest::TemplateNames { names }))
}

/// The parameter is a relic: a key has one team.
fn check_team(team: &TeamRow, params: &Params) -> Result<(), ApiError> {
    params
        .get("teamID")
        .map_or(Ok(()), |asked| check_team_id(team, asked))
}

/// Clients with projects instead of teams name them otherwise, and mean the key's.
pub(super) fn check_team_id(team: &TeamRow, asked: &str) -> Result<(), ApiError> {
    let asked = asked.to_lowercase();
    if asked.starts_with("prj_") || asked == team.team_id.as_str() {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "Team ID param mismatch with the API key",
    ))
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
