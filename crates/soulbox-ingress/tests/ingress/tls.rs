//! The same over TLS, with either version by ALPN.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::world::{Answer, World, soon, to, to_h2};

#[tokio::test]
async fn alpn_chooses_the_version() {
    let pair = rcgen::generate_simple_self_signed(vec!["*.example.com".to_owned()]).unwrap();
    let acceptor =
        soulbox_ingress::acceptor(&pair.cert.pem(), &pair.signing_key.serialize_pem()).unwrap();
    let world = World::with(Some(acceptor), None).await;
    world
        .app(8000, Router::new().fallback(async || "inside"))
        .await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], "h2"),
        (&["http/1.1"], "http/1.1"),
        (&[], ""),
    ] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = offered
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let name = ServerName::try_from("8000-iabc.example.com").unwrap();
        let socket = soon(TlsConnector::from(Arc::new(config)).connect(name, world.socket().await))
            .await
            .unwrap();
        assert_eq!(
            socket.get_ref().1.alpn_protocol().unwrap_or_default(),
            chosen.as_bytes()
        );
        let io = TokioIo::new(socket);
        let response = if chosen == "h2" {
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            soon(client.send_request(to_h2(8000, "/").body(Body::empty()).unwrap()))
                .await
                .unwrap()
        } else {
            let (mut client, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            soon(client.send_request(to(8000, "/").body(Body::empty()).unwrap()))
                .await
                .unwrap()
        };
        assert_eq!(Answer::of(response).await.text(), "inside");
    }
}
