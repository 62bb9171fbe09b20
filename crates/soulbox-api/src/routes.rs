//! The route table: what is there, and what answers 501 until it is.

mod admin;
mod metrics;
mod sandboxes;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, delete, get, on, post, put};
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::App;
use crate::auth::{self, Scheme};
use crate::error::ApiError;

pub(crate) fn all() -> Router<Arc<App>> {
    let router = Router::new()
        .route("/health", get(health))
        .route(
            "/sandboxes",
            post(sandboxes::create_v1).get(sandboxes::list_running),
        )
        .route(
            "/v2/sandboxes",
            post(sandboxes::create_v2).get(sandboxes::list),
        )
        .route(
            "/sandboxes/{sandbox_id}",
            get(sandboxes::detail).merge(delete(sandboxes::kill)),
        )
        .route(
            "/sandboxes/{sandbox_id}/connect",
            post(sandboxes::connect_v1),
        )
        .route(
            "/v2/sandboxes/{sandbox_id}/connect",
            post(sandboxes::connect_v2),
        )
        .route(
            "/sandboxes/{sandbox_id}/timeout",
            post(sandboxes::set_timeout),
        )
        .route(
            "/sandboxes/{sandbox_id}/refreshes",
            post(sandboxes::refresh),
        )
        .route(
            "/sandboxes/{sandbox_id}/network",
            put(sandboxes::set_network),
        )
        .route("/sandboxes/metrics", get(metrics::of_sandboxes))
        .route("/sandboxes/{sandbox_id}/metrics", get(metrics::of_sandbox))
        .route(
            "/admin/teams/{team_id}/sandboxes/kill",
            post(admin::kill_sandboxes),
        )
        .route(
            "/admin/sandboxes/running-counts",
            get(admin::running_counts),
        )
        .route("/teams/{team_id}/metrics", get(metrics::of_team))
        .route("/teams/{team_id}/metrics/max", get(metrics::max_of_team))
        .route("/templates", get(templates::list_all))
        .route("/v2/templates", get(templates::list))
        .route("/templates/{template_id}", get(templates::detail))
        .route("/templates/aliases/{alias}", get(templates::by_alias));
    NOT_YET
        .iter()
        .fold(router, |router, &(method, path, scheme)| {
            let answer = move |State(app): State<Arc<App>>, request: Request| async move {
                not_yet(&app, scheme, request.headers(), request.method(), path).await
            };
            router.route(path, on(method, answer))
        })
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
}

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PUT: MethodFilter = MethodFilter::PUT;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

/// Routes that E2B has and this server does not have yet.
const NOT_YET: &[(MethodFilter, &str, Scheme)] = &[
    (GET, "/sandboxes/{sandbox_id}/logs", Scheme::Customer),
    (GET, "/v2/sandboxes/{sandbox_id}/logs", Scheme::Customer),
    (POST, "/sandboxes/{sandbox_id}/pause", Scheme::Customer),
    (POST, "/sandboxes/{sandbox_id}/resume", Scheme::Customer),
    (POST, "/sandboxes/{sandbox_id}/fork", Scheme::Customer),
    (POST, "/sandboxes/{sandbox_id}/snapshots", Scheme::Customer),
    (GET, "/snapshots", Scheme::Customer),
    (POST, "/v3/templates", Scheme::Customer),
    (POST, "/v2/templates", Scheme::Customer),
    (POST, "/templates", Scheme::AccessToken),
    (POST, "/templates/{template_id}", Scheme::AccessToken),
    (
        POST,
        "/templates/{template_id}/builds/{build_id}",
        Scheme::AccessToken,
    ),
    (DELETE, "/templates/{template_id}", Scheme::Customer),
    (PATCH, "/templates/{template_id}", Scheme::Customer),
    (PATCH, "/v2/templates/{template_id}", Scheme::Customer),
    (
        GET,
        "/templates/{template_id}/files/{hash}",
        Scheme::Customer,
    ),
    (
        POST,
        "/v2/templates/{template_id}/builds/{build_id}",
        Scheme::Customer,
    ),
    (
        GET,
        "/templates/{template_id}/builds/{build_id}/status",
        Scheme::Customer,
    ),
    (
        GET,
        "/templates/{template_id}/builds/{build_id}/logs",
        Scheme::Customer,
    ),
    (POST, "/templates/tags", Scheme::Customer),
    (DELETE, "/templates/tags", Scheme::Customer),
    (GET, "/templates/{template_id}/tags", Scheme::Customer),
    (GET, "/templates/{template_id}/tags/count", Scheme::Customer),
    (
        GET,
        "/templates/{template_id}/tags/exists",
        Scheme::Customer,
    ),
    (
        GET,
        "/templates/{template_id}/tags/groups",
        Scheme::Customer,
    ),
    (
        GET,
        "/templates/{template_id}/tags/{tag}/assignments",
        Scheme::Customer,
    ),
    (GET, "/default-templates", Scheme::Customer),
    (GET, "/teams", Scheme::AccessToken),
    (GET, "/api-keys", Scheme::KeyOwner),
    (POST, "/api-keys", Scheme::KeyOwner),
    (PATCH, "/api-keys/{api_key_id}", Scheme::KeyOwner),
    (DELETE, "/api-keys/{api_key_id}", Scheme::KeyOwner),
    (POST, "/access-tokens", Scheme::KeyOwner),
    (DELETE, "/access-tokens/{access_token_id}", Scheme::KeyOwner),
    (GET, "/nodes", Scheme::Admin),
    (GET, "/nodes/{node_id}", Scheme::Admin),
    (POST, "/nodes/{node_id}", Scheme::Admin),
    (POST, "/admin/teams/{team_id}/builds/cancel", Scheme::Admin),
    (POST, "/admin/teams/{team_id}/api-keys", Scheme::Admin),
    (
        DELETE,
        "/admin/teams/{team_id}/api-keys/{api_key_id}",
        Scheme::Admin,
    ),
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

async fn not_yet(
    app: &App,
    scheme: Scheme,
    headers: &HeaderMap,
    method: &Method,
    path: &str,
) -> ApiError {
    match auth::check(app, scheme, headers, method, path).await {
        Ok(()) => ApiError::not_implemented(&format!("{method} {path}")),
        Err(refusal) => refusal,
    }
}

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
