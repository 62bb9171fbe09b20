//! Connections into the sandbox are used again, and a stale one is noticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{Request, StatusCode};
use soulbox_ingress::Upstream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Answer, SANDBOX, World, soon, to};

/// Tells the client's address, so that two answers show whether one connection carried both.
async fn who(world: &World, port: u16) {
    let app =
        Router::new().fallback(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.port(port, listener.local_addr().unwrap());
    tokio::spawn(async move {
        axum::serve(
            listener,
            app.into_make_service_with_connect_info::<SocketAddr>(),
        )
        .await
    });
}

#[tokio::test]
async fn connections_are_used_again_but_not_for_long() {
    let world = World::start().await;
    who(&world, 8000).await;
    let first = world.get("8000-iabc.example.com", "/", &[]).await;
    assert_eq!(
        world.get("8000-iabc.example.com", "/", &[]).await.text(),
        first.text()
    );
    assert_eq!(world.dials(), 1);
    // A user's server may close after two seconds; ours is not used that long.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_ne!(
        world.get("8000-iabc.example.com", "/", &[]).await.text(),
        first.text()
    );
    assert_eq!(world.dials(), 2);
}

#[tokio::test]
async fn a_parked_connection_serves_the_first_request() {
    let world = World::start().await;
    who(&world, 49983).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = server.local_addr().unwrap();
    tokio::spawn(
        async move { axum::serve(server, Router::new().fallback(async || "parked")).await },
    );
    let mut upstream = Upstream::open(TcpStream::connect(local).await.unwrap())
        .await
        .unwrap();
    let init = Request::post("/init")
        .header("host", "envd")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(
        Answer::of(upstream.call(init).await.unwrap()).await.text(),
        "parked"
    );
    world
        .ingress
        .park(&SANDBOX.parse().unwrap(), 49983, upstream);
    assert_eq!(
        world.get("49983-iabc.example.com", "/", &[]).await.text(),
        "parked"
    );
    assert_eq!(world.dials(), 0);
    world.ingress.forget(&SANDBOX.parse().unwrap());
    assert_ne!(
        world.get("49983-iabc.example.com", "/", &[]).await.text(),
        "parked"
    );
    assert_eq!(world.dials(), 1);
}

/// Answers one request of each connection as a server that keeps it alive, then closes it when the second has arrived, or at once.
async fn fickle(world: &World, port: u16, closes_at_once: bool) -> Arc<AtomicUsize> {
    let listener = world.raw(port).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if socket.read(&mut head).await.unwrap() == 0 {
                    return;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .unwrap();
                if !closes_at_once && socket.read(&mut head).await.unwrap() > 0 {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    requests
}

#[tokio::test]
async fn a_stale_connection_is_replaced_before_anything_is_sent() {
    let world = World::start().await;
    let requests = fickle(&world, 8000, true).await;
    for _ in 0..3 {
        let request = to(8000, "/").method("POST").body(Body::from("x")).unwrap();
        assert_eq!(world.ask(request).await.text(), "ok");
        // Let the close arrive.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((requests.load(Ordering::SeqCst), world.dials()), (3, 3));
}

#[tokio::test]
async fn only_harmless_requests_are_repeated_once_sent() {
    let world = World::start().await;
    let requests = fickle(&world, 8000, false).await;
    assert_eq!(
        world.get("8000-iabc.example.com", "/", &[]).await.text(),
        "ok"
    );
    // Goes out on the kept connection, is dropped there, and is repeated on another one.
    assert_eq!(
        world.get("8000-iabc.example.com", "/", &[]).await.text(),
        "ok"
    );
    assert_eq!((requests.load(Ordering::SeqCst), world.dials()), (3, 2));
    // A POST may have been performed: the client is told.
    let answer = world
        .ask(to(8000, "/").method("POST").body(Body::from("x")).unwrap())
        .await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!((requests.load(Ordering::SeqCst), world.dials()), (4, 2));
}

#[tokio::test]
async fn idle_connections_close_with_the_sandbox() {
    let world = World::start().await;
    let listener = world.raw(49983).await;
    let inside = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(socket.read(&mut head).await.unwrap() > 0);
        socket
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        socket
    };
    let (answer, mut socket) =
        tokio::join!(world.get("49983-iabc.example.com", "/health", &[]), inside);
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    world.end();
    assert_eq!(soon(socket.read(&mut [0; 16])).await.unwrap(), 0);
}
