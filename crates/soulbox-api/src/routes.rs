//! The route table: what is there, and what answers 501 until it is.

mod admin;
mod described;
mod keys;
mod logs;
mod metrics;
mod nodes;
mod pauses;
mod sandboxes;
mod snapshots;
mod template_builds;
pub(crate) mod template_files;
mod template_tags;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use http::{StatusCode, Uri};
use utoipa::openapi::HttpMethod;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::auth::{self, Scheme};
use crate::error::ApiError;
use crate::openapi;

/// The routes, and the description of all of them: what a route takes and answers stands at its handler.
pub(crate) fn all() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    let (router, described) = OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(sandboxes::create_v1, sandboxes::list_running))
        .routes(routes!(sandboxes::create_v2, sandboxes::list))
        .routes(routes!(sandboxes::detail, sandboxes::kill))
        .routes(routes!(sandboxes::connect_v1))
        .routes(routes!(sandboxes::connect_v2))
        .routes(routes!(pauses::pause))
        .routes(routes!(pauses::resume))
        .routes(routes!(snapshots::create))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::fork))
        .routes(routes!(snapshots::rollback))
        .routes(routes!(sandboxes::set_timeout))
        .routes(routes!(sandboxes::refresh))
        .routes(routes!(sandboxes::set_network))
        .routes(routes!(logs::v1))
        .routes(routes!(logs::v2))
        .routes(routes!(metrics::of_sandboxes))
        .routes(routes!(metrics::of_sandbox))
        .routes(routes!(metrics::of_team))
        .routes(routes!(metrics::max_of_team))
        .routes(routes!(templates::list_all, template_builds::old_request))
        .routes(routes!(templates::list, template_builds::request_v2))
        .routes(routes!(
            templates::detail,
            templates::delete,
            templates::update_v1,
            template_builds::old_rebuild
        ))
        .routes(routes!(templates::update))
        .routes(routes!(templates::contents))
        .routes(routes!(templates::defaults))
        .routes(routes!(template_builds::request))
        .routes(routes!(template_builds::start))
        .routes(routes!(template_builds::old_start))
        .routes(routes!(template_builds::status))
        .routes(routes!(template_builds::logs))
        .routes(routes!(template_builds::cancel_all))
        .routes(routes!(template_files::link))
        .routes(routes!(template_files::upload))
        .routes(routes!(template_tags::assign, template_tags::remove))
        .routes(routes!(template_tags::list))
        .routes(routes!(template_tags::count))
        .routes(routes!(template_tags::exists))
        .routes(routes!(template_tags::groups))
        .routes(routes!(template_tags::assignments))
        .routes(routes!(templates::by_alias))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::rename, keys::delete))
        .routes(routes!(keys::create_for_team))
        .routes(routes!(keys::delete_of_team))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::detail, nodes::set_status))
        .routes(routes!(admin::kill_sandboxes))
        .routes(routes!(admin::running_counts))
        .split_for_parts();
    let router = NOT_YET
        .iter()
        .fold(router, |router, (method, path, scheme)| {
            let (path, scheme) = (*path, *scheme);
            let answer = move |State(app): State<Arc<App>>, request: Request| async move {
                not_yet(&app, scheme, request, path).await
            };
            router.route(path, on(filter(method), answer))
        });
    let described = openapi::complete(described, NOT_YET);
    let router = described::serve(router, &described)
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method);
    (router, described)
}

/// The methods that routes have.
fn filter(method: &HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}

const GET: HttpMethod = HttpMethod::Get;
const POST: HttpMethod = HttpMethod::Post;
const PUT: HttpMethod = HttpMethod::Put;
const PATCH: HttpMethod = HttpMethod::Patch;
const DELETE: HttpMethod = HttpMethod::Delete;

/// Routes that E2B has and this server does not have yet.
const NOT_YET: &[(HttpMethod, &str, Scheme)] = &[
    (GET, "/teams", Scheme::AccessToken),
    (POST, "/access-tokens", Scheme::KeyOwner),
    (DELETE, "/access-tokens/{access_token_id}", Scheme::KeyOwner),
    (GET, "/volumes", Scheme::Customer),
    (POST, "/volumes", Scheme::Customer),
    (GET, "/volumes/{volume_id}", Scheme::Customer),
    (DELETE, "/volumes/{volume_id}", Scheme::Customer),
    (GET, "/volumecontent/{volume_id}/path", Scheme::Volume),
    (PATCH, "/volumecontent/{volume_id}/path", Scheme::Volume),
    (DELETE, "/volumecontent/{volume_id}/path", Scheme::Volume),
    (GET, "/volumecontent/{volume_id}/dir", Scheme::Volume),
    (POST, "/volumecontent/{volume_id}/dir", Scheme::Volume),
    (GET, "/volumecontent/{volume_id}/file", Scheme::Volume),
    (PUT, "/volumecontent/{volume_id}/file", Scheme::Volume),
    (GET, "/secrets", Scheme::Customer),
    (POST, "/secrets", Scheme::Customer),
    (GET, "/secrets/{secret}", Scheme::Customer),
    (POST, "/secrets/{secret}", Scheme::Customer),
    (DELETE, "/secrets/{secret}", Scheme::Customer),
    (GET, "/events/sandboxes", Scheme::Customer),
    (GET, "/events/sandboxes/{sandbox_id}", Scheme::Customer),
    (GET, "/events/webhooks", Scheme::Customer),
    (POST, "/events/webhooks", Scheme::Customer),
    (GET, "/events/webhooks/{webhook_id}", Scheme::Customer),
    (PATCH, "/events/webhooks/{webhook_id}", Scheme::Customer),
    (DELETE, "/events/webhooks/{webhook_id}", Scheme::Customer),
];

async fn not_yet(app: &App, scheme: Scheme, request: Request, path: &str) -> ApiError {
    let (parts, _) = request.into_parts();
    match auth::check(app, scheme, &parts, path).await {
        Ok(()) => ApiError::not_implemented(&format!("{} {path}", parts.method)),
        Err(refusal) => refusal,
    }
}

#[utoipa::path(get, path = "/health", tag = "server", summary = "Whether the server takes requests",
    responses((status = 200, body = String, content_type = "text/plain; charset=utf-8", description = "It does"),
        (status = 503, body = String, content_type = "text/plain; charset=utf-8", description = "It is about to stop")))]
async fn health(State(app): State<Arc<App>>) -> Response {
    if app.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "Service is unavailable").into_response()
    } else {
        "Health check successful".into_response()
    }
}

async fn unknown(uri: Uri) -> ApiError {
    let path = uri.path();
    if path.starts_with("/instances") || path.starts_with("/envs") {
        return ApiError::not_found(
            "Endpoints are deprecated, please update your SDK to use the new endpoints.",
        );
    }
    ApiError::not_found("no such route")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this route does not have this method",
    )
}
