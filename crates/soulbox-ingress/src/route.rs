//! Where a request goes: to the REST API or to a port of a sandbox. Pure.
//!
//! Two forms address a sandbox: the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, honoured only where the host is `localhost`, an IP address or
//! `sandbox.<domain>`, and a host `<port>-<id>[-<ignored>].<domain>` of any domain. A signed `/files` URL of a shared host addresses one too, though
//! only a search says which. Everything else is the API, so one listener serves all.

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use soulbox_types::SandboxId;

use crate::preflight::Preflight;
use crate::refusal::Refusal;
use crate::signed::SignedFile;

const ID_HEADER: &str = "e2b-sandbox-id";
const PORT_HEADER: &str = "e2b-sandbox-port";

/// A port of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub sandbox_id: SandboxId,
    pub port: u16,
}

/// Whose request it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Api,
    /// The signature has to tell which sandbox's.
    SignedFile(SignedFile),
    /// A browser asks about a request that will name its sandbox.
    Preflight(Preflight),
    Sandbox(Target),
}

/// Decides by host and headers.
///
/// # Errors
/// The request names a sandbox in a way that cannot be right, or its host is malformed or ambiguous.
pub fn route(request: &Parts) -> Result<Route, Refusal> {
    let Some(authority) = authority(request)? else {
        return Ok(Route::Api);
    };
    let host = authority.host();
    if takes_headers(host)
        && (request.headers.contains_key(ID_HEADER) || request.headers.contains_key(PORT_HEADER))
    {
        return by_headers(request).map(Route::Sandbox);
    }
    if takes_headers(host)
        && let Some(preflight) = Preflight::of(&request.method, &request.headers)
        && preflight.announces(ID_HEADER)
    {
        return Ok(Route::Preflight(preflight));
    }
    if takes_headers(host)
        && let Some(file) = SignedFile::of(request)?
    {
        return Ok(Route::SignedFile(file));
    }
    by_host(host)
}

/// The authority of the request; the target's own wins over the Host header (RFC 9112, 3.2.2), and two Host headers are a smuggling attempt.
fn authority(request: &Parts) -> Result<Option<Authority>, Refusal> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::InvalidHost);
    }
    if let Some(authority) = request.uri.authority() {
        return Ok(Some(authority.clone()));
    }
    match first {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => Authority::try_from(value.as_bytes())
            .map(Some)
            .map_err(|_| Refusal::InvalidHost),
    }
}

fn takes_headers(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok()
        || host.split_once('.').is_some_and(|(label, domain)| {
            label.eq_ignore_ascii_case("sandbox") && !domain.is_empty()
        })
}

fn by_headers(request: &Parts) -> Result<Target, Refusal> {
    let one = |name| {
        let mut values = request.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) if !value.is_empty() => Ok(value.to_str().unwrap_or_default()),
            _ => Err(Refusal::MissingHeader),
        }
    };
    let (id, port) = (one(ID_HEADER)?, one(PORT_HEADER)?);
    // `<id>-<client id>` is the long form of older clients.
    let id = id.split_once('-').map_or(id, |(id, _)| id);
    Ok(Target {
        sandbox_id: sandbox_id(id)?,
        port: port_number(port)?,
    })
}

fn by_host(host: &str) -> Result<Route, Refusal> {
    let (label, domain) = host.split_once('.').unwrap_or((host, ""));
    let Some((port, rest)) = label.split_once('-') else {
        return Ok(Route::Api);
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Route::Api);
    }
    if domain.is_empty() {
        return Err(Refusal::InvalidHost);
    }
    let id = rest.split_once('-').map_or(rest, |(id, _)| id);
    Ok(Route::Sandbox(Target {
        sandbox_id: sandbox_id(id)?,
        port: port_number(port)?,
    }))
}

fn sandbox_id(text: &str) -> Result<SandboxId, Refusal> {
    text.parse().map_err(|_| Refusal::InvalidSandboxId)
}

fn port_number(text: &str) -> Result<u16, Refusal> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::InvalidPort);
    }
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or(Refusal::InvalidPort)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(host: &str, headers: &[(&str, &str)]) -> Result<Route, Refusal> {
        let mut request = http::Request::builder().uri("/x").header(HOST, host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        route(&request.body(()).unwrap().into_parts().0)
    }

    fn sandbox(id: &str, port: u16) -> Result<Route, Refusal> {
        Ok(Route::Sandbox(Target {
            sandbox_id: id.parse().unwrap(),
            port,
        }))
    }

    const BOTH: [(&str, &str); 2] = [(ID_HEADER, "iabc"), (PORT_HEADER, "8000")];

    #[test]
    fn hosts_of_the_sandbox_form() {
        for host in [
            "8000-iabc.example.com",
            "8000-iabc.localhost",
            "8000-iabc.localhost:3000",
            "8000-iabc-6532622b.example.com",
            "8000-iabc-a-b.x",
        ] {
            assert_eq!(decide(host, &[]), sandbox("iabc", 8000), "{host}");
        }
        for host in [
            "api.example.com",
            "localhost:3000",
            "127.0.0.1:3000",
            "[::1]:3000",
            "my-host.example.com",
            "-iabc.example.com",
            "box",
            "my-box",
            "sandbox.example.com",
            "8x-iabc.example.com",
            "",
        ] {
            assert_eq!(decide(host, &[]), Ok(Route::Api), "{host}");
        }
        assert_eq!(decide("8000-iabc", &[]), Err(Refusal::InvalidHost));
        assert_eq!(
            decide("8000-IABC.example.com", &[]),
            Err(Refusal::InvalidSandboxId)
        );
        assert_eq!(
            decide("8000-i_bc.example.com", &[]),
            Err(Refusal::InvalidSandboxId)
        );
        assert_eq!(
            decide("8000-.example.com", &[]),
            Err(Refusal::InvalidSandboxId)
        );
        assert_eq!(decide("0-iabc.example.com", &[]), Err(Refusal::InvalidPort));
        assert_eq!(
            decide("65536-iabc.example.com", &[]),
            Err(Refusal::InvalidPort)
        );
        assert_eq!(decide("a b", &[]), Err(Refusal::InvalidHost));
    }

    #[test]
    fn headers_count_only_on_shared_hosts() {
        for host in [
            "localhost",
            "LOCALHOST:3000",
            "127.0.0.1:3000",
            "[::1]:3000",
            "10.0.0.7",
            "sandbox.example.com",
            "sandbox.e:3000",
        ] {
            assert_eq!(decide(host, &BOTH), sandbox("iabc", 8000), "{host}");
        }
        assert_eq!(decide("api.example.com", &BOTH), Ok(Route::Api));
        assert_eq!(decide("sandbox", &BOTH), Ok(Route::Api));
        // The host's own form wins where headers do not count.
        assert_eq!(
            decide("9000-iother.example.com", &BOTH),
            sandbox("iother", 9000)
        );
        assert_eq!(
            decide(
                "localhost",
                &[(ID_HEADER, "iabc-6532622b"), (PORT_HEADER, "1")]
            ),
            sandbox("iabc", 1)
        );
    }

    #[test]
    fn signed_files_are_searched_for_on_shared_hosts_only() {
        let decide = |host: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder()
                .uri("/files?path=a&signature=v1_x")
                .header(HOST, host);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            route(&request.body(()).unwrap().into_parts().0)
        };
        for host in ["localhost:3000", "127.0.0.1", "sandbox.example.com"] {
            assert!(matches!(decide(host, &[]), Ok(Route::SignedFile(_))));
            assert_eq!(decide(host, &BOTH), sandbox("iabc", 8000));
        }
        assert_eq!(decide("api.example.com", &[]), Ok(Route::Api));
        assert_eq!(decide("49983-iabc.x", &[]), sandbox("iabc", 49983));
    }

    #[test]
    fn headers_must_be_whole() {
        assert_eq!(decide("localhost", &BOTH[..1]), Err(Refusal::MissingHeader));
        assert_eq!(decide("localhost", &BOTH[1..]), Err(Refusal::MissingHeader));
        assert_eq!(
            decide("localhost", &[BOTH[0], BOTH[0], BOTH[1]]),
            Err(Refusal::MissingHeader)
        );
        assert_eq!(
            decide("localhost", &[BOTH[0], (PORT_HEADER, "")]),
            Err(Refusal::MissingHeader)
        );
        assert_eq!(
            decide("localhost", &[BOTH[0], (PORT_HEADER, "+80")]),
            Err(Refusal::InvalidPort)
        );
        assert_eq!(
            decide("localhost", &[BOTH[0], (PORT_HEADER, "99999")]),
            Err(Refusal::InvalidPort)
        );
        assert_eq!(
            decide("localhost", &[(ID_HEADER, "I!"), BOTH[1]]),
            Err(Refusal::InvalidSandboxId)
        );
    }

    #[test]
    fn two_hosts_are_refused_and_the_target_wins() {
        let two = http::Request::builder()
            .uri("/")
            .header(HOST, "a")
            .header(HOST, "b")
            .body(())
            .unwrap();
        assert_eq!(route(&two.into_parts().0), Err(Refusal::InvalidHost));
        let absolute = http::Request::builder()
            .uri("http://80-iabc.x/")
            .header(HOST, "localhost")
            .body(())
            .unwrap();
        assert_eq!(route(&absolute.into_parts().0), sandbox("iabc", 80));
    }
}
