//! Accepting connections: HTTP/1.1 and HTTP/2 without TLS on one port.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use soulbox_http::Lingering;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tower::ServiceExt;

/// A connection without a request is closed after this; proxies in front give up earlier.
const IDLE: Duration = Duration::from_secs(640);
/// The most that is read of a connection before it is taken. As long as nothing is allocated in pieces of 128 KiB, the
/// allocator gives memory back to the system, instead of keeping it for the next large piece.
const READ_BUFFER: usize = 96 << 10;
/// Between the end of a connection and the return of its memory: many that end together cost once.
const QUIET: Duration = Duration::from_secs(1);
/// How long accepting pauses when descriptors or memory are short.
const BREATHER: Duration = Duration::from_millis(50);

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, router: Router) -> io::Error {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(READ_BUFFER)
        .header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(IDLE)
        .max_concurrent_streams(1000);
    let ended = Arc::new(Notify::new());
    let mut releasing = std::pin::pin!(release_memory(&ended));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            never = &mut releasing => match never {},
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_of_connection(&error) => continue,
            Err(error) if is_shortage(&error) => {
                tokio::time::sleep(BREATHER).await;
                continue;
            }
            Err(error) => return error,
        };
        // Events are small and each is awaited by somebody. A socket that refuses is served as it is.
        _ = stream.set_nodelay(true);
        let builder = builder.clone();
        let service = router.clone().map_request(|request: Request<Incoming>| {
            request.map(|body| Body::new(Lingering::new(body)))
        });
        let service = TowerToHyperService::new(service);
        // Ends with the connection, whose idle time is bounded above. Its errors are the peer's: there is no one to tell.
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            _ = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
            ended.notify_one();
        });
    }
}

/// A crowd of connections leaves memory in pieces too small for the allocator to return by itself. Nothing is done, and
/// nobody woken, while no connection ends.
async fn release_memory(ended: &Notify) -> Infallible {
    loop {
        ended.notified().await;
        tokio::time::sleep(QUIET).await;
        soulbox_sys::allocator::give_back();
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn is_shortage(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;

    matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOBUFS))
        || error.kind() == io::ErrorKind::OutOfMemory
}
