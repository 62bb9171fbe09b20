//! Health, unknown and missing routes, CORS, bodies.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{ACCESS_TOKEN, ADMIN_TOKEN, KEY, fixture};

#[tokio::test]
async fn health_needs_no_key_and_tells_of_draining() {
    let server = fixture().await;
    let healthy = server.call("GET", "/health", &[], None).await.status(200);
    assert_eq!(healthy.text, "Health check successful");
    assert!(
        healthy
            .header("content-type")
            .is_some_and(|it| it.starts_with("text/plain"))
    );
    server.draining.cancel();
    let draining = server.call("GET", "/health", &[], None).await.status(503);
    assert_eq!(draining.text, "Service is unavailable");
    server.get("/sandboxes").await.status(200);
}

#[tokio::test]
async fn routes_to_come_answer_501_after_the_credential() {
    let server = fixture().await;
    let bearer = format!("Bearer {ACCESS_TOKEN}");
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let customer: &[(&str, &str)] = &[("x-api-key", KEY)];
    let owner: &[(&str, &str)] = &[
        ("x-admin-token", ADMIN_TOKEN),
        ("x-team-id", team.team_id.as_str()),
    ];
    let legacy: &[(&str, &str)] = &[("authorization", &bearer)];
    for (method, path, credential) in [
        ("GET", "/volumes", customer),
        ("DELETE", "/volumes/v", customer),
        ("POST", "/secrets/s", customer),
        ("GET", "/events/sandboxes/i1", customer),
        ("PATCH", "/events/webhooks/w", customer),
        ("POST", "/access-tokens", owner),
        ("GET", "/teams", legacy),
        ("PUT", "/volumecontent/v/file", legacy),
    ] {
        let answer = server
            .call(method, path, credential, None)
            .await
            .status(501);
        assert_eq!(answer.error_code(), "not_implemented", "{path}");
        assert!(
            answer.message().ends_with("is not implemented yet"),
            "{answer:?}"
        );
        assert_eq!(answer.header("should-retry"), Some("false"));
        server
            .call(method, path, &[], None)
            .await
            .expect(401, "authorization header is missing");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_json_errors() {
    let server = fixture().await;
    server.get("/nowhere").await.expect(404, "no such route");
    server.get("/").await.status(404);
    server
        .call("PUT", "/sandboxes", &[("x-api-key", KEY)], None)
        .await
        .status(405);
    let deprecated = "Endpoints are deprecated, please update your SDK to use the new endpoints.";
    server.get("/instances").await.expect(404, deprecated);
    server.get("/envs/x/builds").await.expect(404, deprecated);
    let multipart = [
        ("content-type", "multipart/form-data; boundary=x"),
        ("x-api-key", KEY),
    ];
    let answer = server
        .call("POST", "/templates", &multipart, Some("--x--".into()))
        .await;
    answer.expect(
        400,
        "Endpoint deprecated please update your CLI to the latest version",
    );
}

#[tokio::test]
async fn any_origin_may_call() {
    let server = fixture().await;
    let preflight = [
        ("origin", "https://anywhere.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-api-key"),
    ];
    let answer = server
        .call("OPTIONS", "/v2/sandboxes", &preflight, None)
        .await
        .status(204);
    assert!(
        answer
            .header("access-control-allow-headers")
            .is_some_and(|it| it.contains("X-API-Key"))
    );
    assert!(
        answer
            .header("access-control-allow-methods")
            .is_some_and(|it| it.contains(Method::DELETE.as_str()))
    );
    let exposed = answer
        .header("access-control-expose-headers")
        .unwrap_or_default();
    assert!(exposed.contains("X-Next-Token") && exposed.contains("X-Total-Running"));
}

#[tokio::test]
async fn trace_ids_differ() {
    let server = fixture().await;
    let (one, two) = (
        server.get("/sandboxes").await,
        server.get("/sandboxes").await,
    );
    assert_ne!(one.header("x-e2b-trace-id"), two.header("x-e2b-trace-id"));
}

#[tokio::test]
async fn a_body_of_20_mib_is_refused_and_the_server_goes_on() {
    let server = fixture().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(axum::serve(listener, server.router.clone()).into_future());
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connect");
    let length = 20 << 20;
    let head = format!(
        "POST /sandboxes HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("write");
    // The server may close before it has read everything.
    drop(stream.write_all(&vec![b' '; length]).await);
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .status(201);
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connect");
    let get = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(get.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("Health check successful"),
        "{answer}"
    );
    serving.abort();
}
