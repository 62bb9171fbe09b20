//! What a sandbox's creator said of requests into it: the host that programs see, ports that speak TLS, how many at once.

use axum::Router;
use axum::body::Body;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use soulbox_envd_proto::{ENVD_PORT, FileOperation, sign_file};
use soulbox_types::{HttpsPorts, Inbound};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;

use crate::world::{Answer, LIMIT, SANDBOX, TOKEN, World, soon, to, to_h2};

/// Answers with the hosts that it sees.
fn seen() -> Router {
    Router::new().fallback(async |headers: HeaderMap| {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("-").to_owned()
        };
        format!("{} {}", text("host"), text("x-forwarded-host"))
    })
}

fn masked(mask: &str) -> Inbound {
    Inbound {
        mask: Some(mask.parse().unwrap()),
        ..Inbound::default()
    }
}

fn https(ports: &[i64]) -> Inbound {
    Inbound {
        https: HttpsPorts::new(ports).unwrap(),
        ..Inbound::default()
    }
}

#[tokio::test]
async fn a_mask_replaces_the_host_of_every_port_but_envds() {
    let world = World::start().await;
    world.inbound(masked("app.local:${PORT}"));
    world.app(8000, seen()).await;
    world.app(ENVD_PORT, seen()).await;
    let host = "8000-iabc.example.com:3000";
    // A client's own word on what it was forwarded from is not passed on.
    let forged = [("x-forwarded-host", "evil.example.com")];
    let answer = world.get(host, "/", &forged).await;
    assert_eq!(answer.text(), format!("app.local:8000 {host}"));
    let mut client = world.h2().await;
    let response = client.send_request(to_h2(8000, "/").body(Body::empty()).unwrap());
    assert_eq!(
        Answer::of(soon(response).await.unwrap()).await.text(),
        "app.local:8000 8000-iabc.example.com"
    );
    let host = format!("{ENVD_PORT}-iabc.example.com");
    assert_eq!(world.get(&host, "/", &[]).await.text(), format!("{host} -"));

    world.inbound(Inbound::default());
    assert_eq!(
        world.get("8000-iabc.x", "/", &[]).await.text(),
        "8000-iabc.x -"
    );
}

/// With a certificate that nobody vouches for.
fn acceptor() -> TlsAcceptor {
    let pair = rcgen::generate_simple_self_signed(vec!["inside".to_owned()]).unwrap();
    soulbox_ingress::acceptor(&pair.cert.pem(), &pair.signing_key.serialize_pem()).unwrap()
}

/// A port of the sandbox that speaks TLS.
async fn secured(world: &World, port: u16, app: Router) {
    let listener = world.raw(port).await;
    let acceptor = acceptor();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(socket) = acceptor.accept(socket).await else {
                    return;
                };
                let service = hyper_util::service::TowerToHyperService::new(app);
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server
                    .serve_connection_with_upgrades(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
}

#[tokio::test]
async fn tls_is_spoken_to_the_ports_that_want_it() {
    let world = World::start().await;
    world.inbound(https(&[8443]));
    secured(&world, 8443, seen()).await;
    world.app(8000, seen()).await;
    for _ in 0..3 {
        let answer = world.get("8443-iabc.example.com", "/", &[]).await;
        assert_eq!(answer.text(), "8443-iabc.example.com -");
    }
    assert_eq!(world.dials(), 1, "connections are pooled");
    assert_eq!(
        world.get("8000-iabc.x", "/", &[]).await.text(),
        "8000-iabc.x -"
    );

    let mut client = world.h2().await;
    let call = to_h2(8443, "/")
        .method(Method::POST)
        .header("content-type", "application/grpc");
    let answer = soon(client.send_request(call.body(Body::empty()).unwrap()));
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn websockets_go_through_tls() {
    let world = World::start().await;
    world.inbound(https(&[8443]));
    let listener = world.raw(8443).await;
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let socket = acceptor().accept(socket).await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
        let message = socket.next().await.unwrap().unwrap();
        socket.send(message).await.unwrap();
    });
    let (mut client, _) = soon(tokio_tungstenite::client_async(
        "ws://8443-iabc.example.com/",
        world.socket().await,
    ))
    .await
    .unwrap();
    soon(client.send(Message::text("over tls"))).await.unwrap();
    let back = soon(client.next()).await;
    assert_eq!(back.unwrap().unwrap(), Message::text("over tls"));
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_after_all_is_told() {
    let world = World::start().await;
    world.inbound(https(&[8443]));
    world.app(8443, seen()).await;
    let answer = world.get("8443-iabc.example.com", "/", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("does not speak TLS"), "{message}");
    assert_eq!(answer.json()["port"], 8443);
}

#[tokio::test]
async fn more_requests_than_the_limit_are_refused_and_places_come_back() {
    let world = World::start().await;
    let (open, opened) = tokio::sync::watch::channel(false);
    let wait = move || {
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            "done"
        }
    };
    world.app(8000, Router::new().fallback(wait)).await;
    world.app(ENVD_PORT, seen()).await;
    let mut client = world.h2().await;
    let mut waiting = Vec::new();
    for _ in 0..LIMIT {
        let request = to_h2(8000, "/").body(Body::empty()).unwrap();
        waiting.push(tokio::spawn(client.send_request(request)));
    }
    soon(async {
        while world.dials() < LIMIT as usize {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let refused = world.get("8000-iabc.example.com", "/", &[]).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["connectionLimit"], LIMIT);
    assert_eq!(refused.json()["sandboxId"], SANDBOX);
    assert_eq!(refused.json()["code"], 429);
    let host = format!("{ENVD_PORT}-iabc.example.com");
    assert_eq!(world.get(&host, "/", &[]).await.status, StatusCode::OK);

    open.send_replace(true);
    for answer in waiting {
        let answer = Answer::of(soon(answer).await.unwrap().unwrap()).await;
        assert_eq!(answer.text(), "done");
    }
    let answer = soon(world.get("8000-iabc.example.com", "/", &[])).await;
    assert_eq!(answer.text(), "done");
}

fn signed_url(path: &str, operation: FileOperation, token: &str) -> String {
    let signature = sign_file(path, operation, "", token, None);
    let signature = signature.replace('+', "%2B").replace('/', "%2F");
    format!("/files?path={path}&signature={signature}")
}

#[tokio::test]
async fn a_signature_leads_to_the_sandbox_that_made_it() {
    let world = World::start().await;
    let app = Router::new().route("/files", axum::routing::any(async || "the file"));
    world.app(ENVD_PORT, app).await;
    let url = signed_url("a.txt", FileOperation::Read, TOKEN);
    let answer = world.get("localhost", &url, &[]).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "the file"));
    for (url, host) in [
        (
            signed_url("a.txt", FileOperation::Read, "other"),
            "localhost",
        ),
        (
            signed_url("a.txt", FileOperation::Write, TOKEN),
            "localhost",
        ),
        (url.replace("a.txt", "b.txt"), "127.0.0.1:1"),
        (format!("{url}&signature_expiration=1"), "sandbox.x"),
    ] {
        let answer = world.get(host, &url, &[]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{url}");
        assert_eq!(answer.json()["message"], "invalid signature");
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
    }
    // Elsewhere it is the API's business.
    assert_eq!(world.get("api.x", &url, &[]).await.text(), "the api");
}

#[tokio::test]
async fn guessing_signatures_is_rationed() {
    let world = World::start().await;
    let url = signed_url("a.txt", FileOperation::Read, "guess");
    let mut client = world.h1().await;
    let mut last = None;
    for _ in 0..400 {
        soon(client.ready()).await.unwrap();
        let request = Request::get(&url).header("host", "localhost");
        let answer = soon(client.send_request(request.body(Body::empty()).unwrap())).await;
        let answer = Answer::of(answer.unwrap()).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            last = Some(answer);
            break;
        }
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let answer = last.expect("a refusal");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["code"], 429);
}

#[tokio::test]
async fn a_page_of_another_origin_may_read_that_its_sandbox_is_gone() {
    let world = World::start().await;
    let ask = |host: &'static str| {
        let asked = "authorization,x-access-token";
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/files")
            .header("host", host)
            .header("origin", "https://page.example.com")
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", asked);
        world.ask(request.body(Body::empty()).unwrap())
    };
    let granted = ask("49983-iother.example.com").await;
    assert_eq!(granted.status, StatusCode::NO_CONTENT);
    assert_eq!(
        granted.headers["access-control-allow-headers"],
        "authorization,x-access-token"
    );
    // Another port is a program's own, and only it could say.
    let other = ask("8000-iother.example.com").await;
    assert_eq!(other.status, StatusCode::BAD_GATEWAY);
    let refused = world.ask(to(81, "/").body(Body::empty()).unwrap()).await;
    assert_eq!(refused.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn a_page_may_ask_a_shared_host_without_naming_the_sandbox() {
    let world = World::start().await;
    world.app(8000, seen()).await;
    let ask = |host: &'static str, asked: &'static str| {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/process.Process/Start")
            .header("host", host)
            .header("origin", "https://page.example.com")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", asked);
        world.ask(request.body(Body::empty()).unwrap())
    };
    let asked = "authorization,e2b-sandbox-id,e2b-sandbox-port";
    for host in ["localhost:3000", "127.0.0.1", "sandbox.example.com"] {
        let granted = ask(host, asked).await;
        assert_eq!(granted.status, StatusCode::NO_CONTENT);
        assert_eq!(granted.headers["access-control-allow-headers"], asked);
        assert_eq!(granted.headers["access-control-allow-origin"], "*");
    }
    // What will not name a sandbox is the API's, and a host of its own is the program's.
    assert_eq!(ask("localhost", "authorization").await.text(), "the api");
    assert_eq!(ask("api.example.com", asked).await.text(), "the api");
    let own = ask("8000-iabc.example.com", asked).await;
    assert_eq!(own.text(), "8000-iabc.example.com -");
}
