//! Browsers' questions whether a page of another origin may send a request.
//!
//! Programs inside answer for themselves, but for two cases: on a shared host a question names no sandbox, since it tells of headers by name only;
//! and of a sandbox that is gone, the page's script has to read that it is.

use axum::body::Body;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

/// Such a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// Names of headers.
    asked: Option<HeaderValue>,
}

impl Preflight {
    /// The request as such a question, if it is one.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Option<Self> {
        (*method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)).then(
            || Self {
                asked: headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
            },
        )
    }

    /// Whether the request will have this header.
    pub(crate) fn announces(&self, name: &str) -> bool {
        let asked = self.asked.as_ref().and_then(|asked| asked.to_str().ok());
        asked.is_some_and(|asked| {
            let mut names = asked.split(',');
            names.any(|one| one.trim().eq_ignore_ascii_case(name))
        })
    }

    /// Lets the page send it. Nobody is let into more by that: credentials are headers of their own here, never cookies.
    pub(crate) fn granted(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        // The wildcard leaves out Authorization.
        let asked = self.asked.unwrap_or(HeaderValue::from_static("*"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            (
                ACCESS_CONTROL_ALLOW_METHODS,
                "HEAD, GET, POST, PUT, PATCH, DELETE",
            ),
            (ACCESS_CONTROL_MAX_AGE, "7200"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
