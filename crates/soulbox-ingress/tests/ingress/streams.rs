//! Bodies flow both ways as they come, and end when either side or the sandbox does.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::world::{World, soon, to, to_h2};

/// A body whose chunks the test sends one by one.
fn spoken() -> (mpsc::Sender<&'static str>, Body) {
    let (sender, receiver) = mpsc::channel::<&'static str>(1);
    let chunks = stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), receiver))
    });
    (sender, Body::from_stream(chunks))
}

fn echo() -> Router {
    Router::new().route(
        "/",
        post(async |request: axum::extract::Request| request.into_body()),
    )
}

fn is_not_found(body: &[u8]) {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let message = "The sandbox was not found";
    assert_eq!(
        body,
        serde_json::json!({"sandboxId": "iabc", "message": message, "code": 502})
    );
}

/// The next chunk. HTTP/2 may end a stream with an empty one.
async fn chunk(body: &mut Incoming) -> Option<Bytes> {
    let bytes = soon(body.frame()).await?.unwrap().into_data().unwrap();
    if bytes.is_empty() && http_body::Body::is_end_stream(body) {
        None
    } else {
        Some(bytes)
    }
}

/// Each chunk must have come back before the next is sent, so nothing on the way waits for more.
async fn converse(sender: mpsc::Sender<&'static str>, mut body: Incoming) {
    for text in ["one", "two", "three"] {
        soon(sender.send(text)).await.unwrap();
        assert_eq!(chunk(&mut body).await.unwrap(), text);
    }
    drop(sender);
    assert_eq!(chunk(&mut body).await, None);
}

#[tokio::test]
async fn both_directions_stream_over_http1() {
    let world = World::start().await;
    world.app(8000, echo()).await;
    let (sender, body) = spoken();
    let mut client = world.h1().await;
    let response = soon(client.send_request(to(8000, "/").method("POST").body(body).unwrap()))
        .await
        .unwrap();
    converse(sender, response.into_body()).await;
}

#[tokio::test]
async fn both_directions_stream_over_http2_many_at_once() {
    let world = World::start().await;
    world.app(8000, echo()).await;
    let client = world.h2().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut client = client.clone();
        tasks.spawn(async move {
            let (sender, body) = spoken();
            let request = to_h2(8000, "/").method("POST").body(body).unwrap();
            let response = client.send_request(request).await.unwrap();
            converse(sender, response.into_body()).await;
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn large_bodies_pass_unchanged() {
    let world = World::start().await;
    world
        .app(
            8000,
            echo().layer(axum::extract::DefaultBodyLimit::disable()),
        )
        .await;
    let bytes: Bytes = (0..8_000_000_u32).map(|at| (at % 251) as u8).collect();
    let request = |builder: http::request::Builder| {
        builder
            .method("POST")
            .body(Body::from(bytes.clone()))
            .unwrap()
    };
    let over_1 = soon(world.h1().await.send_request(request(to(8000, "/"))))
        .await
        .unwrap();
    let over_2 = soon(world.h2().await.send_request(request(to_h2(8000, "/"))))
        .await
        .unwrap();
    for response in [over_1, over_2] {
        assert!(
            soon(response.into_body().collect())
                .await
                .unwrap()
                .to_bytes()
                == bytes
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_inside() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    for version in [1, 2] {
        let inside = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4096];
            assert!(socket.read(&mut bytes).await.unwrap() > 0);
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
                .await
                .unwrap();
            socket
        };
        let mut socket = if version == 1 {
            let mut client = world.h1().await;
            let request = client.send_request(to(8000, "/").body(Body::empty()).unwrap());
            let (response, socket) = soon(async { tokio::join!(request, inside) }).await;
            assert_eq!(chunk(response.unwrap().body_mut()).await.unwrap(), "a");
            socket
        } else {
            let mut client = world.h2().await;
            let request = client.send_request(to_h2(8000, "/").body(Body::empty()).unwrap());
            let (response, socket) = soon(async { tokio::join!(request, inside) }).await;
            // Dropped with its body: the stream is reset, the connection stays.
            assert_eq!(chunk(response.unwrap().body_mut()).await.unwrap(), "a");
            socket
        };
        let mut rest = [0; 16];
        let left = soon(socket.read(&mut rest)).await;
        assert!(matches!(left, Ok(0) | Err(_)), "HTTP/{version}: {left:?}");
    }
}

/// An application that sends one chunk and then nothing, for ever.
fn silent() -> Router {
    Router::new().fallback(async || {
        let chunks = stream::unfold(true, |first| async move {
            if !first {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, Infallible>(Bytes::from("first")), false))
        });
        Body::from_stream(chunks)
    })
}

#[tokio::test]
async fn the_end_of_the_sandbox_resets_its_streams_and_says_not_found_then() {
    let world = World::start().await;
    world.app(49983, silent()).await;
    let mut h1 = world.h1().await;
    let mut over_1 = soon(h1.send_request(to(49983, "/").body(Body::empty()).unwrap()))
        .await
        .unwrap()
        .into_body();
    let mut h2 = world.h2().await;
    let mut over_2 = soon(h2.send_request(to_h2(49983, "/").body(Body::empty()).unwrap()))
        .await
        .unwrap()
        .into_body();
    assert_eq!(chunk(&mut over_1).await.unwrap(), "first");
    assert_eq!(chunk(&mut over_2).await.unwrap(), "first");

    let begun = Instant::now();
    world.end();
    soon(over_1.frame())
        .await
        .expect("not a clean end")
        .unwrap_err();
    let error = soon(over_2.frame())
        .await
        .expect("not a clean end")
        .unwrap_err();
    assert!(format!("{error:?}").contains("Reset"), "{error:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );

    // The HTTP/2 connection lives on, and says what became of the sandbox.
    let response = soon(h2.send_request(to_h2(49983, "/health").body(Body::empty()).unwrap()))
        .await
        .unwrap();
    assert_eq!(response.status(), 502);
    let body = soon(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    is_not_found(&body);
}

#[tokio::test]
async fn the_end_of_the_sandbox_answers_requests_that_still_wait() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    let mut client = world.h1().await;
    let waiting = client.send_request(to(8000, "/").body(Body::empty()).unwrap());
    let end = async {
        let socket = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.end();
        socket
    };
    let (response, _socket) = soon(async { tokio::join!(waiting, end) }).await;
    let body = soon(response.unwrap().into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    is_not_found(&body);
}

#[tokio::test]
async fn the_connection_inside_closes_with_the_sandbox_even_when_the_client_reads_nothing() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    let mut client = world.socket().await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: 8000-iabc.example.com\r\n\r\n")
        .await
        .unwrap();
    let (mut inside, _) = soon(listener.accept()).await.unwrap();
    let mut head = [0; 1024];
    assert!(inside.read(&mut head).await.unwrap() > 0);
    inside
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        .await
        .unwrap();
    // Fill all that is between until nothing moves.
    let chunk = vec![0; 1 << 20];
    while tokio::time::timeout(Duration::from_millis(300), inside.write_all(&chunk))
        .await
        .is_ok()
    {}
    world.end();
    let error = soon(async {
        loop {
            if let Err(error) = inside.write_all(&chunk).await {
                break error;
            }
        }
    })
    .await;
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_a_clean_end() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    let inside = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        assert!(socket.read(&mut head).await.unwrap() > 0);
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
            .await
            .unwrap();
    };
    let mut client = world.h2().await;
    let request = client.send_request(to_h2(8000, "/").body(Body::empty()).unwrap());
    let (response, ()) = soon(async { tokio::join!(request, inside) }).await;
    assert!(soon(response.unwrap().into_body().collect()).await.is_err());
}

#[tokio::test]
async fn shutdown_waits_for_requests_and_then_cuts_them() {
    let mut world = World::start().await;
    let app = Router::new().fallback(async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        "done"
    });
    world.app(8000, app).await;
    world.app(8001, silent()).await;
    let (mut finishing, mut endless) = (world.h1().await, world.h1().await);
    let mut cut = soon(endless.send_request(to(8001, "/").body(Body::empty()).unwrap()))
        .await
        .unwrap()
        .into_body();
    assert_eq!(chunk(&mut cut).await.unwrap(), "first");
    let request = finishing.send_request(to(8000, "/").body(Body::empty()).unwrap());
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.shutdown.cancel();
    };
    let (response, ()) = soon(async { tokio::join!(request, stop) }).await;
    assert_eq!(
        soon(response.unwrap().into_body().collect())
            .await
            .unwrap()
            .to_bytes(),
        "done"
    );
    assert!(soon(cut.frame()).await.expect("not a clean end").is_err());
    soon(&mut world.server).await.unwrap();
}
