//! [`Server`]: accepts connections, speaks TLS, HTTP/1.1 and HTTP/2 on them, and hands each request to the API or the proxy.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use soulbox_http::Lingering;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, warn};

use crate::activity::{Activity, Counted, Load, Observed};
use crate::proxy::Ingress;
use crate::refusal::Audience;
use crate::route::{Route, route};

/// Connections at once; the next one waits in the listener's queue. Each may need a second descriptor for a sandbox.
const CONNECTIONS: usize = 8000;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// After accept failed for want of descriptors, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For closing handshakes of connections without a request, at the end.
const PARTING: Duration = Duration::from_millis(500);
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);

const STREAMS: u32 = 1024;
const STREAM_WINDOW: u32 = 1 << 20;
/// Also the most that a client can make us hold while a sandbox does not read.
const CONNECTION_WINDOW: u32 = 4 << 20;
const SEND_BUFFER: usize = 256 << 10;
const MAX_HEADER_LIST: u32 = 64 << 10;
/// A peer that vanished without a word holds streams, and through them processes' readers, no longer than this.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// How connections end: asked to finish, then cut.
#[derive(Clone, Default)]
struct Stop {
    finish: CancellationToken,
    cut: CancellationToken,
}

/// The public side of one front.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    api: axum::Router,
    ingress: Ingress,
    tls: Option<TlsAcceptor>,
    http: auto::Builder<TokioExecutor>,
    load: Arc<Load>,
}

impl Server {
    /// A server that sends requests for sandboxes through `ingress` and all others to `api`.
    #[must_use]
    pub fn new(api: axum::Router, ingress: Ingress, tls: Option<TlsAcceptor>) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        // The limits on heads and idle connections are ours, see `activity`.
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(None);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        let shared = Shared {
            api,
            ingress,
            tls,
            http,
            load: Arc::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves these listeners until `shutdown`. Then requests are still taken until none is under way, but no longer than `drain`;
    /// what is left is cut off when this returns. The listeners belong to the caller's peer too: their queues survive.
    pub async fn serve(
        self,
        listeners: Vec<TcpListener>,
        shutdown: CancellationToken,
        drain: Duration,
    ) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let (stop, connections) = (Stop::default(), TaskTracker::new());
        // Also when this future is dropped, no connection outlives it.
        let _cut = stop.cut.clone().drop_guard();
        for listener in listeners {
            let accept = self.clone().accept(
                listener,
                Arc::clone(&permits),
                connections.clone(),
                stop.clone(),
            );
            connections.spawn(stop.finish.clone().run_until_cancelled_owned(accept));
        }
        connections.spawn({
            let (ingress, cut) = (self.shared.ingress.clone(), stop.cut.clone());
            async move { ingress.sweep(cut).await }
        });
        shutdown.cancelled().await;
        if tokio::time::timeout(drain, self.shared.load.none())
            .await
            .is_err()
        {
            warn!("requests still under way are cut off");
        }
        connections.close();
        stop.finish.cancel();
        let parting = async {
            // The sweeper is the last one and ends by the cut.
            while connections.len() > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(PARTING, parting).await;
        stop.cut.cancel();
        connections.wait().await;
    }

    async fn accept(
        self,
        listener: TcpListener,
        permits: Arc<Semaphore>,
        connections: TaskTracker,
        stop: Stop,
    ) {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let server = self.clone();
            let stop = stop.clone();
            connections.spawn(async move {
                let _permit = permit;
                stop.cut
                    .run_until_cancelled(server.connection(socket, peer.ip(), &stop.finish))
                    .await
            });
        }
    }

    async fn connection(self, socket: TcpStream, client: IpAddr, finish: &CancellationToken) {
        if let Err(error) = tune(&socket) {
            debug!(%error, "connection died at once");
            return;
        }
        let Some(tls) = &self.shared.tls else {
            return self.speak(socket, client, finish).await;
        };
        match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(socket)).await {
            Ok(Ok(socket)) => self.speak(socket, client, finish).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!("TLS handshake took too long"),
        }
    }

    async fn speak(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        client: IpAddr,
        finish: &CancellationToken,
    ) {
        let activity = Activity::new(Arc::clone(&self.shared.load));
        let service = service_fn(|request: Request<Incoming>| {
            let busy = activity.begin(request.version());
            let server = self.clone();
            async move {
                let response = server.answer(request, client).await;
                Ok::<_, Infallible>(response.map(|body| Body::new(Counted { body, _busy: busy })))
            }
        });
        let observed = TokioIo::new(Observed {
            socket,
            activity: Arc::clone(&activity),
        });
        let mut connection = pin!(
            self.shared
                .http
                .serve_connection_with_upgrades(observed, service)
        );
        let mut finishing = false;
        loop {
            tokio::select! {
                outcome = connection.as_mut() => {
                    if let Err(error) = outcome {
                        debug!(%error, "connection ended early");
                    }
                    return;
                }
                () = activity.overdue() => {
                    debug!("connection was idle for too long");
                    return;
                }
                () = finish.cancelled(), if !finishing => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    async fn answer(self, request: Request<Incoming>, client: IpAddr) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let route = route(&parts);
        // Whoever answers early need not think of the rest of the body.
        let request = Request::from_parts(parts, Lingering::new(body));
        match route {
            Ok(Route::Sandbox(target)) => self.shared.ingress.handle(target, request).await,
            Ok(Route::Preflight(preflight)) => preflight.granted(),
            Ok(Route::SignedFile(file)) => {
                match self.shared.ingress.find_signed(&file, client).await {
                    Ok(target) => self.shared.ingress.handle(target, request).await,
                    Err(refusal) => refusal.response(Audience::of(request.headers())),
                }
            }
            Ok(Route::Api) => match self.shared.api.clone().call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refusal) => refusal.response(Audience::of(request.headers())),
        }
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE)
        .with_interval(TCP_KEEPALIVE);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
