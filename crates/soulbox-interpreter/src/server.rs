//! Accepting connections.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use soulbox_http::Lingering;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

/// Longer than proxies in front keep an idle connection.
const IDLE: Duration = Duration::from_secs(640);
/// How long accepting pauses when descriptors or memory are short.
const BREATHER: Duration = Duration::from_millis(50);

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, router: Router) -> io::Error {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return error,
            // Of one connection, or a shortage that passes.
            Err(_) => {
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        // Lines are small and each is awaited by somebody. A socket that refuses is served as it is.
        _ = stream.set_nodelay(true);
        let service = router.clone().map_request(|request: Request<Incoming>| {
            request.map(|body| Body::new(Lingering::new(body)))
        });
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        // Ends with the connection, whose idle time is bounded above. Its errors are the peer's: there is no one to tell.
        tokio::spawn(async move { _ = connection.await });
    }
}
