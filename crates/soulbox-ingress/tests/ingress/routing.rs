//! Which requests reach a sandbox, and as what.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Request, StatusCode};
use serde_json::json;

use crate::world::{Answer, SANDBOX, USAGE, World, soon, to, to_h2};

/// Answers with what it saw of the request.
fn mirror() -> Router {
    Router::new().fallback(any(async |request: axum::extract::Request| {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let mut headers = serde_json::Map::new();
        for (name, value) in &parts.headers {
            let values = headers.entry(name.as_str()).or_insert_with(|| json!([]));
            values.as_array_mut().unwrap().push(json!(value.to_str().unwrap()));
        }
        axum::Json(json!({
            "method": parts.method.as_str(), "uri": parts.uri.to_string(), "version": format!("{:?}", parts.version),
            "headers": headers, "body": String::from_utf8_lossy(&body),
        }))
    }))
}

#[tokio::test]
async fn the_host_form_and_the_header_form_reach_the_port() {
    let world = World::start().await;
    world.app(8000, mirror()).await;
    for host in [
        "8000-iabc.example.com",
        "8000-iabc.localhost",
        "8000-iabc-6532622b.example.com:3000",
    ] {
        let answer = world.get(host, "/a%2Fb?c=d", &[]).await;
        assert_eq!(answer.json()["uri"], "/a%2Fb?c=d", "{host}");
        assert_eq!(answer.json()["headers"]["host"], json!([host]));
    }
    let headers = [("e2b-sandbox-id", SANDBOX), ("e2b-sandbox-port", "8000")];
    for host in [
        "localhost",
        "127.0.0.1:3000",
        "[::1]:3000",
        "sandbox.example.com",
    ] {
        let answer = world.get(host, "/", &headers).await;
        assert_eq!(answer.json()["headers"]["host"], json!([host]));
        assert_eq!(answer.json()["headers"]["e2b-sandbox-id"], json!([SANDBOX]));
    }
    for host in ["api.example.com", "my-host.example.com"] {
        assert_eq!(
            world.get(host, "/", &headers).await.text(),
            "the api",
            "{host}"
        );
    }
    assert_eq!(
        world.get("localhost:3000", "/sandboxes", &[]).await.text(),
        "the api"
    );
}

#[tokio::test]
async fn malformed_addresses_are_told_apart() {
    let world = World::start().await;
    let (id, port) = (("e2b-sandbox-id", SANDBOX), ("e2b-sandbox-port", "80"));
    for (host, headers, message) in [
        ("localhost", &[id][..], "missing header"),
        ("localhost", &[port], "missing header"),
        ("8000-iabc", &[], "Invalid host"),
        ("8000-IABC.example.com", &[], "Invalid sandbox ID"),
        ("8000-i_.example.com", &[], "Invalid sandbox ID"),
        ("70000-iabc.example.com", &[], "Invalid port"),
        (
            "localhost",
            &[("e2b-sandbox-id", "../x"), port],
            "Invalid sandbox ID",
        ),
    ] {
        let answer = world.get(host, "/", headers).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{host}");
        assert_eq!(
            answer.json(),
            json!({"message": message, "code": 400}),
            "{host}"
        );
    }
}

#[tokio::test]
async fn hop_by_hop_headers_do_not_cross() {
    let world = World::start().await;
    world.app(8000, mirror()).await;
    let request = to(8000, "/")
        .method("POST")
        .header("connection", "keep-alive, x-mine")
        .header("x-mine", "1")
        .header("x-kept", "1")
        .header("te", "trailers")
        .header("expect", "100-continue")
        .header("content-length", "5")
        .body(Body::from("hello"))
        .unwrap();
    let seen = world.ask(request).await.json();
    assert_eq!(seen["body"], "hello");
    let mut names: Vec<_> = seen["headers"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "host", "x-kept"]);
}

#[tokio::test]
async fn http2_becomes_http1_with_one_host_and_one_cookie() {
    let world = World::start().await;
    world.app(8000, mirror()).await;
    let mut client = world.h2().await;
    let request = to_h2(8000, "/p?q")
        .method("PUT")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let response = soon(client.send_request(request.body(Body::from("hello")).unwrap()))
        .await
        .unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let seen = Answer::of(response).await.json();
    assert_eq!(seen["version"], "HTTP/1.1");
    assert_eq!(
        (&seen["method"], &seen["uri"], &seen["body"]),
        (&json!("PUT"), &json!("/p?q"), &json!("hello"))
    );
    assert_eq!(seen["headers"]["host"], json!(["8000-iabc.example.com"]));
    assert_eq!(seen["headers"]["cookie"], json!(["a=1; b=2"]));

    let headers = Request::get("http://localhost:3000/")
        .header("e2b-sandbox-id", SANDBOX)
        .header("e2b-sandbox-port", "8000");
    let response = soon(client.send_request(headers.body(Body::empty()).unwrap()))
        .await
        .unwrap();
    assert_eq!(
        Answer::of(response).await.json()["headers"]["host"],
        json!(["localhost:3000"])
    );
}

#[tokio::test]
async fn two_ways_to_frame_one_body_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::start().await;
    world.app(8000, mirror()).await;
    let mut socket = world.socket().await;
    let smuggle = b"POST / HTTP/1.1\r\nHost: 8000-iabc.example.com\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcdeGET /";
    socket.write_all(smuggle).await.unwrap();
    let mut answer = Vec::new();
    soon(socket.read_to_end(&mut answer)).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 400"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(world.dials(), 0);

    // With both, chunked is what counts (RFC 9112, 6.3), and only chunked goes on.
    let mut socket = world.socket().await;
    let both = b"POST / HTTP/1.1\r\nHost: 8000-iabc.example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    socket.write_all(both).await.unwrap();
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400")
            || (answer.contains(r#""body":"hi""#) && !answer.contains("content-length\":")),
        "{answer}"
    );
}

#[tokio::test]
async fn the_host_tells_the_daemon_what_its_sandbox_uses() {
    let world = World::start().await;
    world.app(49983, mirror()).await;
    world.app(8000, mirror()).await;
    let theirs = [("x-soulbox-usage", "theirs")];
    let seen = async |port: u16, path| {
        let host = format!("{port}-iabc.example.com");
        world.get(&host, path, &theirs).await.json()["headers"]["x-soulbox-usage"].clone()
    };
    let ours = serde_json::to_string(&USAGE).unwrap();
    assert_eq!(seen(49983, "/metrics?a=b").await, json!([ours]));
    assert_eq!(seen(49983, "/envs").await, json!(null));
    assert_eq!(seen(8000, "/metrics").await, json!(["theirs"]));
}
