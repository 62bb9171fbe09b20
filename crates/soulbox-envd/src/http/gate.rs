//! What every request passes before its route: cross-origin rules, the access token, the user, and the corrections
//! that make requests of existing clients fit the RPC library.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connectrpc::{ConnectError, ConnectRpcBody, RequestContext};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use soulbox_envd_proto::ACCESS_TOKEN_HEADER;

use super::answer::HttpError;
use crate::cause::chain;
use crate::settings::Settings;
use crate::users::{self, User, UserError};

const CONNECT_TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

/// The longest silence on a stream when the client does not say.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// The user of a request, resolved; in the extensions of RPC requests.
#[derive(Clone)]
struct RequestUser(Arc<User>);

/// The user that an RPC runs as.
pub(crate) fn user_of(context: &RequestContext) -> Result<Arc<User>, ConnectError> {
    context
        .extensions()
        .get::<RequestUser>()
        .map(|user| Arc::clone(&user.0))
        .ok_or_else(|| ConnectError::internal("request passed without a user"))
}

/// The client's `Keepalive-Ping-Interval` in seconds; nonsense counts as absent.
pub(crate) fn keepalive(context: &RequestContext) -> Duration {
    context
        .header("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.parse::<u32>().ok())
        .filter(|seconds| *seconds > 0)
        .map_or(KEEPALIVE, |seconds| Duration::from_secs(seconds.into()))
}

pub(crate) fn is_rpc(path: &str) -> bool {
    path.starts_with("/process.Process/") || path.starts_with("/filesystem.Filesystem/")
}

/// Token and user of the request, in this order.
pub(crate) async fn admit(
    State(settings): State<Arc<Settings>>,
    mut request: Request,
    next: Next,
) -> Response {
    let open = matches!(
        (request.method(), request.uri().path()),
        (&Method::GET, "/health" | "/files" | "/ws/pty") | (&Method::POST, "/files" | "/init")
    );
    let token = request
        .headers()
        .get(ACCESS_TOKEN_HEADER)
        .map(HeaderValue::as_bytes)
        .map(String::from_utf8_lossy);
    if !open && !settings.token_matches(token.as_deref()) {
        let message = "unauthorized access, please provide a valid access token or method signing if supported";
        return HttpError::unauthorized(message).into_response();
    }
    let rpc = is_rpc(request.uri().path());
    let named = basic_user(request.headers());
    if rpc || named.is_some() {
        match resolve(named.as_deref(), &settings) {
            Ok(user) => _ = request.extensions_mut().insert(RequestUser(Arc::new(user))),
            Err(error) => return rpc_error(error, request.headers()),
        }
    }
    if rpc {
        return match normalise(&mut request) {
            Ok(()) => next.run(request).await,
            Err(error) => rpc_error(error, request.headers()),
        };
    }
    next.run(request).await
}

fn resolve(named: Option<&str>, settings: &Settings) -> Result<User, ConnectError> {
    match named {
        Some(name) => users::find(name).map_err(|error| match error {
            UserError::Unknown(name) => {
                ConnectError::unauthenticated(format!("invalid username: '{name}'"))
            }
            error => ConnectError::internal(chain(&error)),
        }),
        None => users::find(&settings.default_user()).map_err(|error| match error {
            UserError::Unknown(name) => {
                ConnectError::unauthenticated(format!("invalid default user: '{name}'"))
            }
            error => ConnectError::internal(chain(&error)),
        }),
    }
}

/// The name in an `Authorization: Basic`; the password is ignored. Anything else in that header is no name.
fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(name, _)| name.to_owned())
}

/// Makes headers that upstream accepts acceptable to the RPC library, and refuses what upstream refuses.
fn normalise(request: &mut Request) -> Result<(), ConnectError> {
    let headers = request.headers_mut();
    if let Some(version) = headers.get(CONNECT_VERSION)
        && version.as_bytes() != b"1"
    {
        return Err(ConnectError::invalid_argument(
            "connect-protocol-version must be \"1\"",
        ));
    }
    if let Some(timeout) = headers.get(CONNECT_TIMEOUT) {
        let text = timeout.to_str().unwrap_or_default();
        if text.is_empty() || text.len() > 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ConnectError::invalid_argument(format!(
                "protocol error: invalid timeout: {text:?}"
            )));
        }
        // Zero means without limit here; the library would end the call at once.
        if text.bytes().all(|byte| byte == b'0') {
            headers.remove(CONNECT_TIMEOUT);
        }
    }
    if let Some(content_type) = headers.get(header::CONTENT_TYPE)
        && content_type.as_bytes().iter().any(u8::is_ascii_uppercase)
        && let Ok(lower) = HeaderValue::from_bytes(&content_type.as_bytes().to_ascii_lowercase())
    {
        headers.insert(header::CONTENT_TYPE, lower);
    }
    Ok(())
}

/// An error in the shape that the client of this RPC reads: a status, or the last message of a stream.
fn rpc_error(error: ConnectError, headers: &HeaderMap) -> Response {
    unwrap_body(error.into_http_response(headers))
}

/// The library's body type hides its length. Complete bodies are unwrapped, so that unary answers carry
/// `Content-Length` rather than chunks, and no empty last frame.
pub(crate) fn unwrap_body(response: http::Response<ConnectRpcBody>) -> Response {
    let method_not_allowed = response.status() == StatusCode::METHOD_NOT_ALLOWED;
    let mut response = response.map(|body| match body {
        ConnectRpcBody::Full(full) => Body::new(full),
        other => Body::new(other),
    });
    if method_not_allowed {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// Browsers of any origin may call, as upstream lets them; preflights are answered before the token is looked at.
pub(crate) async fn cross_origin(request: Request, next: Next) -> Response {
    const ANY: HeaderValue = HeaderValue::from_static("*");

    let with_origin = request.headers().contains_key(header::ORIGIN);
    if request.method() == Method::OPTIONS
        && with_origin
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        let mut response = super::answer::no_content();
        let asked = request
            .headers()
            .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
            .cloned();
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("HEAD, GET, POST, PUT, PATCH, DELETE"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(ANY));
        headers.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static("7200"),
        );
        headers.insert(
            header::VARY,
            HeaderValue::from_static(
                "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
            ),
        );
        return response;
    }
    let mut response = next.run(request).await;
    if with_origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(
                "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, X-Content-Type-Options",
            ),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_names_a_user_whatever_the_password() {
        let check = |value: &'static str, expected: Option<&str>| {
            let headers =
                HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(basic_user(&headers).as_deref(), expected, "{value}");
        };
        check("Basic dXNlcjo=", Some("user"));
        check("basic dXNlcjpzZWNyZXQ6eA==", Some("user"));
        check("Basic Og==", Some(""));
        check("Bearer dXNlcjo=", None);
        check("Basic ???", None);
    }

    #[test]
    fn timeouts_mean_what_clients_mean() {
        let check = |value: &'static str| {
            let mut request = Request::new(Body::empty());
            request
                .headers_mut()
                .insert(CONNECT_TIMEOUT, HeaderValue::from_static(value));
            normalise(&mut request)
                .map(|()| request.headers().contains_key(CONNECT_TIMEOUT))
                .map_err(|error| error.code)
        };
        assert_eq!(check("60000"), Ok(true));
        assert_eq!(check("0"), Ok(false));
        for refused in ["12345678901", "1s", "-1", ""] {
            assert_eq!(
                check(refused),
                Err(connectrpc::ErrorCode::InvalidArgument),
                "{refused}"
            );
        }
    }
}
