//! What every answer has: a trace ID, a log line, CORS headers, advice on retrying, a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tracing::Instrument;

use crate::App;
use crate::error::{ApiError, SHOULD_RETRY};
use crate::rate::Noted;
use crate::routes::template_files;

const MAX_BODY: usize = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(70);
/// Clients print it with failures.
const TRACE_ID: HeaderName = HeaderName::from_static("x-e2b-trace-id");

const ALLOWED_HEADERS: &str = "Origin, Content-Length, Content-Type, User-Agent, Authorization, X-API-Key, X-Team-ID, \
     X-Admin-Token, Idempotency-Key, browser, lang, lang_version, machine, os, package_version, processor, publisher, \
     release, sdk_runtime, system";
const EXPOSED_HEADERS: &str = "X-Next-Token, X-Total-Running, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, \
     Retry-After, Should-Retry, X-E2B-Trace-ID";

pub(crate) fn wrap(routes: Router<Arc<App>>, app: &Arc<App>) -> Router<Arc<App>> {
    routes
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(deprecated))
        .layer(from_fn(deadline))
        .layer(from_fn(cors))
        .layer(from_fn_with_state(Arc::clone(app), headers))
}

/// Outermost: the trace ID, one log line, and the rule about retrying for answers that no handler made.
async fn headers(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = trace_id();
    let method = request.method().clone();
    // The route and not the path: a path may carry anything.
    let route = request.extensions().get::<MatchedPath>().cloned();
    // What handlers log is found by the ID that the client has.
    let span = tracing::info_span!("request", request_id);
    let noted = Noted::default();
    request.extensions_mut().insert(noted.clone());
    let under_way = app.figures.begin();
    let mut response = next.run(request).instrument(span).await;
    drop(under_way);
    let status = response.status();
    let headers = response.headers_mut();
    noted.write(headers);
    if status.is_success() {
        headers.remove(SHOULD_RETRY);
    } else if !headers.contains_key(SHOULD_RETRY) {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    app.figures.answered(&method, route, status, began);
    tracing::info!(
        request_id,
        %method,
        route,
        status = status.as_u16(),
        took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(TRACE_ID, value);
    }
    response
}

/// Any origin: requests carry their credential in a header of their own, never in a cookie.
async fn cors(request: Request, next: Next) -> Response {
    let preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    put(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    put(
        headers,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        EXPOSED_HEADERS,
    );
    if preflight {
        put(
            headers,
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        );
        put(
            headers,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            ALLOWED_HEADERS,
        );
        put(headers, header::ACCESS_CONTROL_MAX_AGE, "7200");
    }
    response
}

async fn deadline(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let within = if route.is_some_and(|it| it.as_str() == template_files::UPLOAD_ROUTE) {
        template_files::UPLOAD_WITHIN
    } else {
        DEADLINE
    };
    match tokio::time::timeout(within, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long").into_response()
        }
    }
}

/// Calls of clients from before the current API.
async fn deprecated(request: Request, next: Next) -> Response {
    let multipart = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("multipart/form-data"));
    if multipart
        && request.method() == Method::POST
        && request.uri().path().starts_with("/templates")
    {
        return ApiError::bad_request(
            "Endpoint deprecated please update your CLI to the latest version",
        )
        .into_response();
    }
    next.run(request).await
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}

/// Without random bytes all requests share an ID, which is better than refusing them.
fn trace_id() -> String {
    let mut bytes = [0; 16];
    if let Err(error) = getrandom::fill(&mut bytes) {
        tracing::warn!(%error, "no random bytes for a trace ID");
    }
    hex::encode(bytes)
}
