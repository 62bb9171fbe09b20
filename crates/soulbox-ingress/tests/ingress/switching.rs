//! WebSocket and other upgrades.

use axum::body::Body;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::world::{World, soon, to};

/// Echoes the messages of WebSockets.
async fn echo(listener: TcpListener) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_close() || socket.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn websockets_echo_and_end_with_the_sandbox() {
    let world = World::start().await;
    tokio::spawn(echo(world.raw(8000).await));
    let request = "ws://8000-iabc.example.com/socket";
    let (mut socket, response) = soon(tokio_tungstenite::client_async(
        request,
        world.socket().await,
    ))
    .await
    .unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(
            soon(socket.next()).await.unwrap().unwrap(),
            Message::text(text)
        );
    }
    let large = Message::binary(vec![7; 1 << 20]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), large);
    world.end();
    // Cut off, not closed with a handshake.
    assert!(matches!(soon(socket.next()).await, None | Some(Err(_))));
}

#[tokio::test]
async fn a_websocket_that_is_closed_ends_inside_too() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    let inside = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    });
    let client =
        tokio_tungstenite::client_async("ws://8000-iabc.example.com/", world.socket().await);
    drop(soon(client).await.unwrap());
    soon(inside).await.unwrap();
}

#[tokio::test]
async fn any_protocol_may_be_switched_to_and_refused() {
    let world = World::start().await;
    let listener = world.raw(8000).await;
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let count = socket.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..count]).to_ascii_lowercase();
        assert!(
            head.contains("connection: upgrade\r\n") && head.contains("upgrade: mine\r\n"),
            "{head}"
        );
        socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: mine\r\n\r\nhello").await.unwrap();
        let mut byte = [0; 3];
        socket.read_exact(&mut byte).await.unwrap();
        socket.write_all(&byte).await.unwrap();
        drop(socket);
        // The next one is refused.
        let (mut socket, _) = listener.accept().await.unwrap();
        assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
        socket
            .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")
            .await
            .unwrap();
    });
    let request = || {
        to(8000, "/")
            .header("connection", "Upgrade")
            .header("upgrade", "mine")
            .body(Body::empty())
            .unwrap()
    };
    let mut client = world.h1().await;
    let response = soon(client.send_request(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "mine");
    let mut switched = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
    let mut greeting = [0; 5];
    soon(switched.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello");
    switched.write_all(b"abc").await.unwrap();
    let mut rest = Vec::new();
    soon(switched.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"abc");

    let refused = world.ask(request()).await;
    assert_eq!(
        (refused.status, refused.text()),
        (StatusCode::BAD_REQUEST, "no")
    );
}
