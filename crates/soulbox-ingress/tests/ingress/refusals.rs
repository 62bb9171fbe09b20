//! What clients are told when a sandbox does not answer.

use std::time::{Duration, Instant};

use axum::Router;
use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::world::{SANDBOX, World, soon};

const BROWSER: [(&str, &str); 2] = [
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)"),
    ("accept", "text/html,*/*;q=0.8"),
];

#[tokio::test]
async fn an_unknown_sandbox_is_not_found() {
    let world = World::start().await;
    let answer = world.get("49983-iother.example.com", "/health", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        answer.json(),
        json!({"sandboxId": "iother", "message": "The sandbox was not found", "code": 502})
    );

    let page = world.get("80-iother.example.com", "/", &BROWSER).await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert!(
        page.text().starts_with("<html") && page.text().contains("Sandbox Not Found"),
        "{}",
        page.text()
    );
    let fetched = [BROWSER[0], BROWSER[1], ("sec-fetch-mode", "cors")];
    assert_eq!(
        world
            .get("80-iother.example.com", "/", &fetched)
            .await
            .json()["code"],
        502
    );
}

#[tokio::test]
async fn a_closed_port_is_told_within_bounds_and_after_retries() {
    let world = World::start().await;
    let begun = Instant::now();
    let answer = world.get("8000-iabc.example.com", "/", &[]).await;
    assert!(begun.elapsed() >= Duration::from_millis(900));
    assert_eq!(world.dials(), 5);
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let message = "The sandbox is running but port is not open";
    assert_eq!(
        answer.json(),
        json!({"sandboxId": SANDBOX, "message": message, "port": 8000, "code": 502})
    );
    let page = world.get("8000-iabc.example.com", "/", &BROWSER).await;
    assert!(
        page.text().starts_with("<html") && page.text().contains("no service running on port"),
        "{}",
        page.text()
    );
}

#[tokio::test]
async fn a_server_that_starts_late_is_waited_for() {
    let world = World::start().await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        world
            .app(8000, Router::new().fallback(async || "late"))
            .await;
    };
    let (answer, ()) = tokio::join!(world.get("8000-iabc.example.com", "/", &[]), late);
    assert_eq!(answer.text(), "late");
}

#[tokio::test]
async fn host_only_routes_are_refused_before_the_look_up() {
    let world = World::start().await;
    for sandbox in [SANDBOX, "iother"] {
        for path in [
            "/init",
            "//init",
            "/./init",
            "/%69nit",
            "/x/../init",
            "/init?x=1",
            "/freeze",
            "/upgrade",
            "/fsthaw",
        ] {
            let answer = world
                .get(&format!("49983-{sandbox}.example.com"), path, &BROWSER)
                .await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
            let message = "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL";
            let path = path.split('?').next().unwrap();
            assert_eq!(
                answer.json(),
                json!({"message": message, "path": path, "code": 404})
            );
        }
    }
    assert_eq!(world.dials(), 0);
    // On other ports they are the user's.
    world
        .app(8000, Router::new().fallback(async || "mine"))
        .await;
    assert_eq!(
        world
            .get("8000-iabc.example.com", "/init", &[])
            .await
            .text(),
        "mine"
    );
}

#[tokio::test]
async fn private_traffic_needs_its_token_but_for_envd() {
    let world = World::with(None, Some("secret")).await;
    let app = Router::new().fallback(async |headers: http::HeaderMap| {
        headers.contains_key("e2b-traffic-access-token").to_string()
    });
    world.app(8000, app.clone()).await;
    world.app(49983, app).await;
    let prefix = "Sandbox is secured with traffic access token.";
    let missing = world.get("8000-iabc.example.com", "/", &[]).await;
    assert_eq!(missing.status, StatusCode::FORBIDDEN);
    let message = format!("{prefix} Token header 'e2b-traffic-access-token' is missing");
    assert_eq!(
        missing.json(),
        json!({"sandboxId": SANDBOX, "message": message, "code": 403})
    );
    let wrong = world
        .get(
            "8000-iabc.example.com",
            "/",
            &[("e2b-traffic-access-token", "secreT")],
        )
        .await;
    let message =
        format!("{prefix} Provided token in header 'e2b-traffic-access-token' is invalid");
    assert_eq!(
        wrong.json(),
        json!({"sandboxId": SANDBOX, "message": message, "code": 403})
    );
    let page = world.get("8000-iabc.example.com", "/", &BROWSER).await;
    assert!(page.text().contains("Missing Traffic Access Token"));

    let right = world
        .get(
            "8000-iabc.example.com",
            "/",
            &[("E2B-Traffic-Access-Token", "secret")],
        )
        .await;
    assert_eq!(
        (right.status, right.text()),
        (StatusCode::OK, "false"),
        "the token must not reach the program inside"
    );
    assert_eq!(
        world.get("49983-iabc.example.com", "/", &[]).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn hostile_answers_become_502() {
    let world = World::start().await;
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for (port, bytes, message) in [
        (
            8001,
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "The sandbox answered with something that is not HTTP",
        ),
        (
            8002,
            huge.as_str(),
            "The sandbox answered with something that is not HTTP",
        ),
        (
            8003,
            "",
            "The sandbox closed the connection before it answered",
        ),
        (
            8004,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            "The sandbox answered with something that is not HTTP",
        ),
    ] {
        let listener = world.raw(port).await;
        let bytes = bytes.to_owned();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut head).await;
            // The proxy may close before all is written.
            let _ = socket.write_all(bytes.as_bytes()).await;
        });
        let answer = world
            .get(&format!("{port}-iabc.example.com"), "/", &[])
            .await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{port}");
        assert_eq!(answer.json()["message"], message, "{port}");
        soon(server).await.unwrap();
    }
}
