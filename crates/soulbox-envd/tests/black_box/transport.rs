//! Connect, HTTP and browser rules.

use serde_json::json;

use crate::daemon::{Daemon, json as body};

const STAT: &str = "/filesystem.Filesystem/Stat";

#[test]
fn unary_answers_have_a_length_and_the_type() {
    let daemon = Daemon::start();
    let headers = [
        ("content-type", "application/json"),
        ("content-encoding", "identity"),
        ("accept-encoding", "identity"),
    ];
    let response = daemon.post(STAT, &headers, br#"{"path":"/tmp","someday":true}"#);
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("content-length"));
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(body(response)["entry"]["type"], "FILE_TYPE_DIRECTORY");
    let mixed = daemon.post(
        STAT,
        &[("content-type", "Application/JSON")],
        br#"{"path":"/tmp"}"#,
    );
    assert_eq!(mixed.status(), 200);
}

#[test]
fn protocol_errors() {
    let daemon = Daemon::start();
    let json_type = ("content-type", "application/json");
    let code = |headers: &[(&str, &str)], text: &str| {
        let response = daemon.post(STAT, headers, text.as_bytes());
        (
            response.status().as_u16(),
            body(response)["code"].as_str().map(str::to_owned),
        )
    };
    let refused = (400, Some("invalid_argument".to_owned()));
    assert_eq!(code(&[json_type], "{"), refused);
    assert_eq!(
        code(&[json_type, ("connect-timeout-ms", "12345678901")], "{}"),
        refused
    );
    assert_eq!(
        code(&[json_type, ("connect-timeout-ms", "soon")], "{}"),
        refused
    );
    assert_eq!(
        code(&[json_type, ("connect-protocol-version", "2")], "{}"),
        refused
    );
    assert_eq!(
        code(
            &[json_type, ("connect-protocol-version", "1")],
            r#"{"path":"/"}"#
        )
        .0,
        200
    );
    assert_eq!(
        daemon
            .post(STAT, &[("content-type", "text/plain")], b"x")
            .status(),
        415
    );
    let get = daemon.get(STAT, &[]);
    assert_eq!(
        (get.status().as_u16(), get.headers()["allow"].as_bytes()),
        (405, b"POST".as_slice())
    );
    assert_eq!(
        daemon
            .post("/filesystem.Filesystem/None", &[json_type], b"{}")
            .status(),
        404
    );
    assert_eq!(daemon.post("/nothing", &[json_type], b"{}").status(), 404);
}

#[test]
fn field_names_and_enums_may_be_spelled_either_way() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let id = daemon.ok(
        "filesystem.Filesystem/CreateWatcher",
        json!({"path": root.path(), "include_entry": true}),
    )["watcherId"]
        .clone();
    assert_eq!(
        daemon.ok(
            "filesystem.Filesystem/GetWatcherEvents",
            json!({"watcher_id": id})
        ),
        json!({})
    );
    daemon.ok(
        "filesystem.Filesystem/RemoveWatcher",
        json!({"watcherId": id}),
    );
}

#[test]
fn binary_protobuf_works_too() {
    let daemon = Daemon::start();
    // StatRequest{path: "/"}
    let response = daemon.post(STAT, &[("content-type", "application/proto")], b"\x0a\x01/");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/proto");
    let bytes = response.into_body().read_to_vec().expect("a body");
    // StatResponse.entry, EntryInfo.name = "/", type = DIRECTORY.
    assert!(
        bytes.starts_with(b"\x0a") && bytes[2..].starts_with(b"\x0a\x01/\x10\x02"),
        "{bytes:?}"
    );
}

#[test]
fn browsers_may_ask_before_they_have_a_token() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .post("/init", &[], br#"{"accessToken":"t"}"#)
            .status(),
        204
    );
    let preflight = ureq::Agent::new_with_defaults()
        .run(
            ureq::http::Request::builder()
                .method("OPTIONS")
                .uri(format!("http://{}{STAT}", daemon.address))
                .header("origin", "https://example.org")
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "x-access-token")
                .body(())
                .expect("a request"),
        )
        .expect("an answer");
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "*");
    assert_eq!(
        preflight.headers()["access-control-allow-headers"],
        "x-access-token"
    );
    let refused = daemon.post(
        STAT,
        &[
            ("content-type", "application/json"),
            ("origin", "https://example.org"),
        ],
        b"{}",
    );
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["access-control-allow-origin"], "*");
}

#[test]
fn health_is_empty() {
    let daemon = Daemon::start();
    let response = daemon.get("/health", &[]);
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()["cache-control"].as_bytes()
        ),
        (204, b"no-store".as_slice())
    );
}
