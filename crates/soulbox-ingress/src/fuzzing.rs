//! One input of the fuzz target `hosts` of `fuzz/`, and what must hold for it whatever it is. The stored inputs are replayed as a plain test
//! below; only tests and the fuzz target compile this.

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request};
use soulbox_types::HostMask;

use crate::route::{Route, route};

/// Lines: the Host, `E2b-Sandbox-Id`, `E2b-Sandbox-Port`, the request's target, a mask. An absent line is an absent header.
///
/// # Panics
/// When the input leads somewhere that it must not.
pub fn hosts(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let [host, id, port, target, mask] = [(); 5].map(|()| lines.next().unwrap_or_default());
    check_mask(mask, host);
    let (mut parts, ()) = Request::new(()).into_parts();
    if let Ok(uri) = http::Uri::try_from(target) {
        parts.uri = uri;
    }
    for (name, line) in [
        ("host", host),
        ("e2b-sandbox-id", id),
        ("e2b-sandbox-port", port),
    ] {
        if !line.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(line)
        {
            parts.headers.insert(name, value);
        }
    }
    let Ok(Route::Sandbox(found)) = route(&parts) else {
        return;
    };
    assert_ne!(found.port, 0);
    let id = found.sandbox_id.as_str();
    assert!(
        !id.is_empty()
            && id
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    );
    // The plain form of what was found leads to the same, and nothing that the client says besides leads away from it.
    parts.uri = http::Uri::from_static("/");
    let plain = format!("{}-{id}.example.com", found.port);
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(&plain).expect("a header"));
    assert_eq!(route(&parts), Ok(Route::Sandbox(found.clone())));
}

fn check_mask(mask: &[u8], port: &[u8]) {
    let Ok(mask) = String::from_utf8_lossy(mask).parse::<HostMask>() else {
        return;
    };
    let port = port.first().map_or(1, |byte| 257 * u16::from(*byte));
    let seen = mask.for_port(port.max(1));
    let authority: Authority = seen.parse().expect("a mask is a host");
    assert_eq!(authority.as_str(), seen);
    assert!(!seen.contains('@'));
    HeaderValue::from_str(&seen).expect("a host is a header");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_inputs_hold() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/hosts");
        let mut replayed = 0;
        for entry in std::fs::read_dir(corpus).expect("the corpus") {
            hosts(&std::fs::read(entry.expect("an entry").path()).expect("an input"));
            replayed += 1;
        }
        assert!(replayed >= 8);
    }

    /// A short run without libFuzzer: pieces that mean something, in any order.
    #[test]
    fn pieces_in_any_order_hold() {
        const PIECES: [&str; 22] = [
            "8000",
            "-",
            "iabc",
            ".",
            "example.com",
            ":",
            "0",
            "65536",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "sandbox",
            "\n",
            "\n",
            "\n",
            "@",
            "/files?signature=v1_x",
            "${PORT}",
            "I",
            "\u{fc}",
            "http://",
            "%",
        ];
        let mut state = 1_u64;
        for _ in 0..200_000 {
            let mut text = String::new();
            for _ in 0..12 {
                // Knuth's MMIX generator.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
            }
            hosts(text.as_bytes());
        }
    }
}
