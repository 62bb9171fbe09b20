//! Tags of templates. Names in paths may be IDs too; a foreign template is as good as none.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use soulbox_control::{
    AssignmentView, Cursor, GroupQuery, TagError, TagOrder, TemplateReference, normal_tag,
};
use soulbox_wire::rest;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::input::{Body, Segment, Segments};
use crate::query::Params;
use crate::time;

const MAX_TAGS: usize = 100;
const MAX_ASSIGNMENTS: usize = 100;
const MAX_ASSIGNMENTS_OF_GROUP: usize = 25;

#[utoipa::path(get, path = "/templates/{template_id}/tags", tag = "templates", summary = "Tags of a template", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name")),
    responses((status = 200, body = [rest::TemplateTag], description = "By name; only builds that are ready count"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
) -> Result<Json<Vec<rest::TemplateTag>>, ApiError> {
    let reference: TemplateReference = text.parse()?;
    let tags = app.control.tags(&team, &reference).await?;
    let tag = |it: soulbox_control::TagView| rest::TemplateTag {
        tag: it.tag,
        build_id: it.build_id.to_string(),
        created_at: time::format(it.assigned_at),
    };
    Ok(Json(tags.into_iter().map(tag).collect()))
}

#[utoipa::path(get, path = "/templates/{template_id}/tags/count", tag = "templates", summary = "How many tags a template has", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name")),
    responses((status = 200, body = rest::TagCount), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn count(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
) -> Result<Json<rest::TagCount>, ApiError> {
    let reference: TemplateReference = text.parse()?;
    let total = app.control.tags(&team, &reference).await?.len();
    Ok(Json(rest::TagCount { total }))
}

#[utoipa::path(get, path = "/templates/{template_id}/tags/exists", tag = "templates", summary = "Whether a template has a tag", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name"), ("tag" = String, Query, min_length = 1)),
    responses((status = 200, body = rest::TagExists), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn exists(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
    params: Params,
) -> Result<Json<rest::TagExists>, ApiError> {
    let tag = params.get("tag").filter(|it| !it.is_empty());
    let tag = tag.ok_or_else(|| {
        ApiError::invalid("parameter \"tag\" in query has an error: value is required")
    })?;
    let tag = normal_tag(tag)?;
    let reference: TemplateReference = text.parse()?;
    let tags = app.control.tags(&team, &reference).await?;
    Ok(Json(rest::TagExists {
        exists: tags.iter().any(|it| it.tag == tag),
        normalized_tag: tag,
    }))
}

#[utoipa::path(get, path = "/templates/{template_id}/tags/groups", tag = "templates", summary = "Tags of a template with what they held", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name"),
        ("assignmentLimit" = Option<u32>, Query, description = "Of each tag, 6 by default", minimum = 1, maximum = 25),
        ("tagsLimit" = Option<u32>, Query, description = "25 by default", minimum = 1, maximum = 100),
        ("tagsCursor" = Option<String>, Query, description = "The `nextCursor` of the page before, of the same order"),
        ("search" = Option<String>, Query, description = "A part of the tag", pattern = "^[a-zA-Z0-9._-]*$"),
        ("sort" = Option<String>, Query, pattern = "^(latest_desc|latest_asc|name_asc|name_desc)$", description = "`latest_desc` by default")),
    responses((status = 200, body = rest::TagGroups), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn groups(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segment(text): Segment,
    params: Params,
) -> Result<Json<rest::TagGroups>, ApiError> {
    let order = match params.get("sort") {
        None | Some("latest_desc") => TagOrder::NewestFirst,
        Some("latest_asc") => TagOrder::OldestFirst,
        Some("name_asc") => TagOrder::NameAscending,
        Some("name_desc") => TagOrder::NameDescending,
        Some(_) => {
            return Err(ApiError::invalid(
                "parameter \"sort\" in query must be latest_desc, latest_asc, name_asc or name_desc",
            ));
        }
    };
    let search = params.get("search").filter(|it| !it.is_empty());
    let query = GroupQuery {
        search: search.map(normal_tag).transpose()?,
        order,
        after: cursor(&params, "tagsCursor", sort_name(order))?,
        tags: params.number("tagsLimit", 1, MAX_TAGS)?.unwrap_or(25),
        assignments: params
            .number("assignmentLimit", 1, MAX_ASSIGNMENTS_OF_GROUP)?
            .unwrap_or(6),
    };
    let reference: TemplateReference = text.parse()?;
    let page = app.control.tag_groups(&team, &reference, &query).await?;
    let group = |it: soulbox_control::TagGroup| rest::TagGroup {
        tag: it.tag,
        assignments: it.assignments.iter().map(assignment).collect(),
        has_more: it.has_more,
    };
    Ok(Json(rest::TagGroups {
        tags: page.items.into_iter().map(group).collect(),
        next_cursor: page.next.map(|it| encode(sort_name(order), &it)),
    }))
}

#[utoipa::path(get, path = "/templates/{template_id}/tags/{tag}/assignments", tag = "templates", summary = "What a tag held", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    params(("template_id" = String, Path, description = "An ID or a name"), ("tag" = String, Path),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, description = "50 by default", minimum = 1, maximum = 100)),
    responses((status = 200, body = rest::TagAssignments, description = "Newest first"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn assignments(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Segments([text, tag]): Segments<2>,
    params: Params,
) -> Result<Json<rest::TagAssignments>, ApiError> {
    const KIND: &str = "assignments";
    let tag = normal_tag(&tag)?;
    let after = cursor(&params, "cursor", KIND)?;
    let limit = params.number("limit", 1, MAX_ASSIGNMENTS)?.unwrap_or(50);
    let reference: TemplateReference = text.parse()?;
    let page = app
        .control
        .tag_assignments(&team, &reference, &tag, after.as_ref(), limit)
        .await?;
    Ok(Json(rest::TagAssignments {
        data: page.items.iter().map(assignment).collect(),
        next_cursor: page.next.map(|it| encode(KIND, &it)),
    }))
}

#[utoipa::path(post, path = "/templates/tags", tag = "templates", summary = "Give tags to a build", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    request_body = rest::AssignTags,
    responses((status = 201, body = rest::AssignedTags), (status = 403, body = rest::Error, description = "Another team's"), (status = 404, body = rest::Error, description = "No such template, or no ready build of that tag")))]
pub(crate) async fn assign(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    body: Body,
) -> Result<(StatusCode, Json<rest::AssignedTags>), ApiError> {
    let body: rest::AssignTags = body.required()?;
    let target: TemplateReference = body.target.parse()?;
    let assigned = app.control.assign_tags(&team, &target, &body.tags).await;
    let (tags, build_id) = assigned.map_err(|error| match error {
        TagError::Template(soulbox_control::ResolveError::NoTag { reference, tag }) => {
            ApiError::not_found(format!("Template '{reference}' with tag '{tag}' not found"))
        }
        TagError::Template(soulbox_control::ResolveError::NoTemplate { .. }) => {
            let tag = target.tag.as_deref().unwrap_or("default");
            let name = TemplateReference {
                tag: None,
                ..target.clone()
            };
            ApiError::not_found(format!("Template '{name}' with tag '{tag}' not found"))
        }
        other => other.into(),
    })?;
    let build_id = build_id.to_string();
    Ok((
        StatusCode::CREATED,
        Json(rest::AssignedTags { tags, build_id }),
    ))
}

#[utoipa::path(delete, path = "/templates/tags", tag = "templates", summary = "Take tags from a template", security(("api_key" = []), ("admin_token" = [], "team_id" = [])),
    request_body = rest::RemoveTags,
    responses((status = 204, description = "The template does not have them any more"), (status = 403, body = rest::Error, description = "Another team's"), (status = 404, body = rest::Error, description = "No such template")))]
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::RemoveTags = body.required()?;
    let name: TemplateReference = body.name.parse()?;
    app.control.remove_tags(&team, &name, &body.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn assignment(view: &AssignmentView) -> rest::TagAssignment {
    rest::TagAssignment {
        assignment_id: view.assignment.assignment_id.clone(),
        build_id: view.build.build_id.to_string(),
        assigned_at: time::format(view.assignment.assigned_at),
        build_created_at: time::format(view.build.created_at),
        build_finished_at: view.build.finished_at.map(time::format),
    }
}

fn sort_name(order: TagOrder) -> &'static str {
    match order {
        TagOrder::NewestFirst => "latest_desc",
        TagOrder::OldestFirst => "latest_asc",
        TagOrder::NameAscending => "name_asc",
        TagOrder::NameDescending => "name_desc",
    }
}

/// Opaque to clients; it says of which list and order it is.
fn encode(kind: &str, cursor: &Cursor) -> String {
    URL_SAFE_NO_PAD.encode(format!("{kind}|{}|{}", time::format(cursor.at), cursor.id))
}

fn cursor(params: &Params, name: &str, kind: &str) -> Result<Option<Cursor>, ApiError> {
    let decode = |token: &str| {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let mut parts = text.splitn(3, '|');
        if parts.next()? != kind {
            return None;
        }
        let at = time::parse(parts.next()?)?;
        let id = parts.next()?.to_owned();
        Some(Cursor { at, id })
    };
    params
        .get(name)
        .map(|token| decode(token).ok_or_else(|| ApiError::bad_request("Invalid cursor")))
        .transpose()
}
