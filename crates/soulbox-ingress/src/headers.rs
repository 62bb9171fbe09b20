//! Headers that belong to one connection and must not cross the proxy (RFC 9110, 7.6.1), in both directions.

use axum::body::Body;
use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use soulbox_types::HostMask;

/// The client's credential for us; no business of the program inside.
pub(crate) const TRAFFIC_TOKEN: &str = "e2b-traffic-access-token";

/// The host that the client named, where the program inside sees another.
const FORWARDED_HOST: &str = "x-forwarded-host";

/// The protocol that a request wants to switch to, if it does so properly. `h2c` is not a switch that a proxy passes on.
pub(crate) fn wanted_upgrade(request: &Parts) -> Option<HeaderValue> {
    if request.version != Version::HTTP_11
        || !names(&request.headers).any(|name| name.eq_ignore_ascii_case("upgrade"))
    {
        return None;
    }
    let protocol = request.headers.get(UPGRADE)?;
    let text = protocol.to_str().ok()?;
    (!text
        .split(',')
        .any(|token| token.trim().eq_ignore_ascii_case("h2c")))
    .then(|| protocol.clone())
}

/// Whether this is a gRPC call, which only HTTP/2 can carry: its status comes in trailers.
pub(crate) fn is_grpc(request: &Parts) -> bool {
    let kind = request.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.version == Version::HTTP_2
        && kind
            .and_then(|kind| kind.strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Turns a request that [`for_upstream`] made into one for an HTTP/2 server.
pub(crate) fn for_http2(request: &mut Request<Body>, scheme: Scheme) {
    let host = request.headers_mut().remove(HOST);
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(scheme);
    parts.authority = host
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .or_else(|| Some(Authority::from_static("localhost")));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    // gRPC servers refuse calls whose trailers somebody on the way might not pass on.
    request
        .headers_mut()
        .insert(TE, HeaderValue::from_static("trailers"));
}

/// Makes a client's request one for an HTTP/1.1 server: origin form, one Host, one Cookie, no hop-by-hop headers.
pub(crate) fn for_upstream(request: &mut Parts, upgrade: Option<HeaderValue>) {
    if let Some(authority) = request.uri.authority() {
        // HTTP/2 has the host in the target. An authority is always a legal header value.
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers.insert(HOST, host);
        }
    }
    let origin_form = request
        .uri
        .path_and_query()
        .map(|path| Uri::from(path.clone()));
    request.uri = origin_form.unwrap_or_else(|| Uri::from_static("/"));
    request.version = Version::HTTP_11;
    // hyper has answered it already, by asking for the body.
    request.headers.remove(EXPECT);
    request.headers.remove(PROXY_AUTHORIZATION);
    request.headers.remove(TRAFFIC_TOKEN);
    join_cookies(&mut request.headers);
    strip(&mut request.headers);
    if let Some(protocol) = upgrade {
        request
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers.insert(UPGRADE, protocol);
    }
}

/// Replaces the host that the program inside sees; the client's own goes along.
pub(crate) fn mask_host(headers: &mut HeaderMap, mask: &HostMask, port: u16) {
    // A mask with its port put in is a host, and a host is always a legal header value.
    let Ok(masked) = HeaderValue::from_str(&mask.for_port(port)) else {
        return;
    };
    if let Some(original) = headers.insert(HOST, masked) {
        headers.insert(FORWARDED_HOST, original);
    }
}

/// Makes a sandbox's answer one that can go out over any version.
pub(crate) fn for_downstream(headers: &mut HeaderMap) {
    headers.remove(PROXY_AUTHENTICATE);
    strip(headers);
}

/// A method whose request may be repeated although the first attempt may have been received (RFC 9110, 9.2.2).
pub(crate) fn is_repeatable(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = names(headers)
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in named {
        // A sender must not call these its connection's own, and doing so would change whom the message is for.
        if name != HOST && name != http::header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
}

fn names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// HTTP/2 splits cookies into several fields, HTTP/1.1 allows one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder()
            .version(version)
            .uri("http://80-iabc.x:1/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn requests_lose_what_belongs_to_the_connection() {
        let mut request = parts(
            Version::HTTP_2,
            &[
                ("connection", "close, X-Mine, host"),
                ("x-mine", "1"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("keep-alive", "timeout=5"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("e2b-traffic-access-token", "secret"),
                ("x-kept", "1"),
            ],
        );
        for_upstream(&mut request, None);
        let mut left: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [
                ("cookie", "a=1; b=2"),
                ("host", "80-iabc.x:1"),
                ("x-kept", "1")
            ]
        );
        assert_eq!(request.uri, "/a?b=c");
        assert_eq!(request.version, Version::HTTP_11);
    }

    #[test]
    fn grpc_is_told_from_grpc_web() {
        let check = |version, kind| is_grpc(&parts(version, &[("content-type", kind)]));
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            assert!(check(Version::HTTP_2, kind), "{kind}");
            assert!(!check(Version::HTTP_11, kind), "{kind}");
        }
        for kind in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/json",
        ] {
            assert!(!check(Version::HTTP_2, kind), "{kind}");
        }
    }

    #[test]
    fn upgrades_are_seen_and_passed_on() {
        let websocket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let mut request = parts(Version::HTTP_11, &websocket);
        let wanted = wanted_upgrade(&request);
        assert_eq!(wanted.as_ref().unwrap(), "websocket");
        for_upstream(&mut request, wanted);
        assert_eq!(request.headers[UPGRADE], "websocket");
        assert_eq!(request.headers[CONNECTION], "upgrade");

        assert!(wanted_upgrade(&parts(Version::HTTP_2, &websocket)).is_none());
        assert!(wanted_upgrade(&parts(Version::HTTP_11, &websocket[1..])).is_none());
        assert!(
            wanted_upgrade(&parts(
                Version::HTTP_11,
                &[("connection", "upgrade"), ("upgrade", "h2c")]
            ))
            .is_none()
        );
    }
}
