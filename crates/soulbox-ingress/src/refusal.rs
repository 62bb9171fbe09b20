//! What a client is told instead of an answer of the sandbox. Texts and statuses are those that E2B's clients parse.

use axum::body::Body;
use http::header::{ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::route::Target;

/// Why a request did not reach a sandbox. The client's fault, the sandbox's, or ours, in this order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("missing header")]
    MissingHeader,
    #[error("Invalid host")]
    InvalidHost,
    #[error("Invalid sandbox ID")]
    InvalidSandboxId,
    #[error("Invalid port")]
    InvalidPort,
    #[error("CONNECT is not supported")]
    Connect,
    #[error(
        "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
    )]
    Reserved { path: String },
    #[error(
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
    )]
    TrafficTokenMissing(Target),
    #[error(
        "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
    )]
    TrafficTokenInvalid(Target),
    #[error("The sandbox has reached its limit of {limit} connections at once")]
    TooMany { target: Target, limit: u32 },
    #[error(
        "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
    )]
    NotToBeResumed(Target),
    #[error(
        "The sandbox is paused, and its team has reached its limit of {limit} concurrent sandboxes"
    )]
    QuotaExhausted { target: Target, limit: u32 },
    #[error("The sandbox is paused and could not be resumed")]
    NotResumed(Target),
    #[error("invalid signature")]
    SignatureInvalid,
    #[error("too many requests with an unknown signature, try again later")]
    SignatureGuessing,
    #[error("The sandbox was not found")]
    NotFound(Target),
    #[error("The sandbox is running but port is not open")]
    PortClosed(Target),
    #[error("The sandbox closed the connection before it answered")]
    HungUp(Target),
    #[error("The sandbox does not speak TLS on the port, which is one of its httpsPorts")]
    NotTls(Target),
    #[error("The sandbox answered with something that is not HTTP")]
    Garbled(Target),
    #[error("The connection to the sandbox could not be made")]
    DialFailed(Target),
}

/// Who reads a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    Program,
    Person,
}

impl Audience {
    /// Who sent a request with these headers.
    pub(crate) fn of(request: &HeaderMap) -> Self {
        if is_navigation(request) {
            Self::Person
        } else {
            Self::Program
        }
    }
}

impl Refusal {
    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MissingHeader
            | Self::InvalidHost
            | Self::InvalidSandboxId
            | Self::InvalidPort => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Reserved { .. } => StatusCode::NOT_FOUND,
            Self::TrafficTokenMissing(_)
            | Self::TrafficTokenInvalid(_)
            | Self::NotToBeResumed(_) => StatusCode::FORBIDDEN,
            Self::SignatureInvalid => StatusCode::UNAUTHORIZED,
            Self::TooMany { .. } | Self::SignatureGuessing | Self::QuotaExhausted { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::NotFound(_)
            | Self::NotResumed(_)
            | Self::PortClosed(_)
            | Self::HungUp(_)
            | Self::NotTls(_)
            | Self::Garbled(_)
            | Self::DialFailed(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The answer: JSON, or a page where a person looks at it.
    #[must_use]
    pub(crate) fn response(&self, audience: Audience) -> Response<Body> {
        let (kind, body) = match self.page().filter(|_| audience == Audience::Person) {
            Some(page) => (HeaderValue::from_static("text/html; charset=utf-8"), page),
            None => (
                HeaderValue::from_static("application/json"),
                self.json().to_string(),
            ),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, kind);
        // A page of another origin may read why: there is nothing in it that its script does not know.
        response
            .headers_mut()
            .insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        if self.status() == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    fn json(&self) -> Value {
        let (message, code) = (self.to_string(), self.status().as_u16());
        match self {
            Self::MissingHeader
            | Self::InvalidHost
            | Self::InvalidSandboxId
            | Self::InvalidPort
            | Self::Connect
            | Self::SignatureInvalid
            | Self::SignatureGuessing => {
                json!({ "message": message, "code": code })
            }
            Self::Reserved { path } => json!({ "message": message, "path": path, "code": code }),
            Self::TrafficTokenMissing(target)
            | Self::TrafficTokenInvalid(target)
            | Self::NotToBeResumed(target)
            | Self::QuotaExhausted { target, .. }
            | Self::NotResumed(target)
            | Self::NotFound(target) => {
                json!({ "sandboxId": target.sandbox_id.as_str(), "message": message, "code": code })
            }
            Self::TooMany { target, limit } => {
                json!({ "sandboxId": target.sandbox_id.as_str(), "message": message, "connectionLimit": limit, "code": code })
            }
            Self::PortClosed(target)
            | Self::HungUp(target)
            | Self::NotTls(target)
            | Self::Garbled(target)
            | Self::DialFailed(target) => {
                json!({ "sandboxId": target.sandbox_id.as_str(), "message": message, "port": target.port, "code": code })
            }
        }
    }

    /// The page for a person; none where only programs go. An ID has no character that HTML would interpret.
    fn page(&self) -> Option<String> {
        let (title, text) = match self {
            Self::NotFound(Target { sandbox_id, .. }) => (
                "Sandbox Not Found".to_owned(),
                format!(
                    "The sandbox {sandbox_id} was not found. It was stopped, or its time was over."
                ),
            ),
            Self::PortClosed(Target { sandbox_id, port }) => (
                "Closed Port".to_owned(),
                format!(
                    "The sandbox {sandbox_id} is running, but there is no service running on port {port}."
                ),
            ),
            Self::TrafficTokenMissing(Target { sandbox_id, .. }) => (
                "Missing Traffic Access Token".to_owned(),
                format!(
                    "The sandbox {sandbox_id} is reached only with the header e2b-traffic-access-token."
                ),
            ),
            Self::TrafficTokenInvalid(Target { sandbox_id, .. }) => (
                "Invalid Traffic Access Token".to_owned(),
                format!(
                    "The e2b-traffic-access-token of the request is not that of the sandbox {sandbox_id}."
                ),
            ),
            Self::TooMany { .. } => ("Too Many Connections".to_owned(), format!("{self}.")),
            Self::HungUp(_) | Self::NotTls(_) | Self::Garbled(_) | Self::DialFailed(_) => {
                ("Bad Gateway".to_owned(), format!("{self}."))
            }
            _ => return None,
        };
        Some(format!(
            "<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\
             <body style=\"font-family:sans-serif;margin:15vh auto;max-width:36em\"><h1>{title}</h1><p>{text}</p></body></html>\n"
        ))
    }
}

/// Whether a browser shows the answer to a person, as opposed to a script that fetches it.
fn is_navigation(request: &HeaderMap) -> bool {
    let text = |name: &str| {
        request
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let accept = text(ACCEPT.as_str()).to_ascii_lowercase();
    let json_only = accept.contains("application/json") && !accept.contains("text/html");
    let fetched = matches!(
        text("sec-fetch-mode"),
        "cors" | "no-cors" | "same-origin" | "websocket"
    );
    text(USER_AGENT.as_str()).starts_with("Mozilla/")
        && !json_only
        && !fetched
        && !request.contains_key("x-requested-with")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    const BROWSER: (&str, &str) = (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
    );
    const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

    #[test]
    fn pages_are_for_navigations_only() {
        assert!(is_navigation(&headers(&[BROWSER, HTML])));
        assert!(is_navigation(&headers(&[
            BROWSER,
            HTML,
            ("sec-fetch-mode", "navigate")
        ])));
        assert!(!is_navigation(&headers(&[
            HTML,
            ("user-agent", "curl/8.0")
        ])));
        assert!(!is_navigation(&headers(&[
            BROWSER,
            ("accept", "application/json")
        ])));
        for mode in ["cors", "no-cors", "same-origin", "websocket"] {
            assert!(
                !is_navigation(&headers(&[BROWSER, HTML, ("sec-fetch-mode", mode)])),
                "{mode}"
            );
        }
        assert!(!is_navigation(&headers(&[
            BROWSER,
            HTML,
            ("x-requested-with", "XMLHttpRequest")
        ])));
    }

    #[test]
    fn bodies_have_the_documented_fields() {
        let target = Target {
            sandbox_id: "iabc".parse().unwrap(),
            port: 80,
        };
        assert_eq!(
            Refusal::NotFound(target.clone()).json(),
            json!({"sandboxId": "iabc", "message": "The sandbox was not found", "code": 502})
        );
        assert_eq!(
            Refusal::PortClosed(target).json(),
            json!({"sandboxId": "iabc", "message": "The sandbox is running but port is not open", "port": 80, "code": 502})
        );
    }
}
