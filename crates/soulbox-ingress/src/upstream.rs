//! One HTTP connection to a server inside a sandbox: HTTP/1.1, or HTTP/2 for a gRPC call, in plain or over TLS. The peer is hostile: its headers
//! are limited, its bytes parsed by hyper and rustls only.

use std::future::pending;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::secure;

/// The most bytes of status line and headers that a sandbox may answer with.
const MAX_HEADER_SIZE: usize = 128 * 1024;
/// Of HTTP/2: also the most that waits here for a slow client.
const WINDOW: u32 = 1 << 20;
/// How long a connection may take to become free after the end of an answer was seen.
const SETTLE: Duration = Duration::from_millis(5);

/// Why a connection gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("failed to set up the connection to the sandbox")]
    Setup(#[source] std::io::Error),
    #[error("failed to speak TLS with the sandbox")]
    Tls(#[source] std::io::Error),
    #[error("failed to start HTTP on the connection to the sandbox")]
    Handshake(#[source] hyper::Error),
    #[error("the sandbox did not answer the request")]
    Exchange(#[source] hyper::Error),
}

/// What is spoken to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// Without being asked whether the server speaks it.
    Http2,
}

/// Whether what is spoken is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
}

/// A connection that takes one request at a time. The task behind it ends, and the socket closes, when this is dropped
/// (but after a switch of protocols) or when the sandbox that it is tied to ends.
pub struct Upstream {
    sender: Sender,
    sandbox: Option<oneshot::Sender<CancellationToken>>,
    _kill: DropGuard,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    /// Not shared between requests either: these are few, and one slow reader would hold up the others.
    Http2(http2::SendRequest<Body>),
}

/// A request that was not answered.
pub(crate) enum Unanswered {
    /// No byte of it was sent.
    Unsent(Box<Request<Body>>),
    /// It may have been received.
    Failed(hyper::Error),
}

impl Upstream {
    /// Takes over a connected socket; sends nothing yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`UpstreamError::Setup`] or [`UpstreamError::Handshake`]; the socket is closed.
    pub async fn open(socket: TcpStream) -> Result<Self, UpstreamError> {
        Self::open_as(socket, Protocol::Http1, Transport::Plain).await
    }

    /// As [`Self::open`], for servers that speak otherwise.
    ///
    /// # Errors
    /// Those of [`Self::open`], and [`UpstreamError::Tls`].
    pub(crate) async fn open_as(
        socket: TcpStream,
        protocol: Protocol,
        transport: Transport,
    ) -> Result<Self, UpstreamError> {
        socket.set_nodelay(true).map_err(UpstreamError::Setup)?;
        match transport {
            Transport::Plain => Self::speak(socket, protocol).await,
            Transport::Tls => {
                let secured = secure::secure(socket, protocol).await?;
                Self::speak(secured, protocol).await
            }
        }
    }

    async fn speak(
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        protocol: Protocol,
    ) -> Result<Self, UpstreamError> {
        let socket = TokioIo::new(socket);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_header_size(MAX_HEADER_SIZE)
                    .handshake(socket)
                    .await
                    .map_err(UpstreamError::Handshake)?;
                let connection = connection.with_upgrades();
                Ok(Self::run(Sender::Http1(sender), connection))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .max_header_list_size(MAX_HEADER_SIZE as u32)
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .handshake(socket)
                    .await
                    .map_err(UpstreamError::Handshake)?;
                Ok(Self::run(Sender::Http2(sender), connection))
            }
        }
    }

    fn run(
        sender: Sender,
        connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
    ) -> Self {
        let killed = CancellationToken::new();
        let kill = killed.clone().drop_guard();
        let (sandbox, tied) = oneshot::channel::<CancellationToken>();
        tokio::spawn(async move {
            let ended = async move {
                match tied.await {
                    Ok(token) => token.cancelled_owned().await,
                    // Dropped before it was tied to anything: `killed` is what ends it.
                    Err(_) => pending().await,
                }
            };
            tokio::select! {
                outcome = connection => if let Err(error) = outcome {
                    debug!(%error, "connection to a sandbox failed");
                },
                () = killed.cancelled() => {}
                () = ended => {}
            }
        });
        Self {
            sender,
            sandbox: Some(sandbox),
            _kill: kill,
        }
    }

    /// Closes the connection when this token is cancelled, whoever holds it then. The first call counts.
    pub(crate) fn tie(&mut self, sandbox: &CancellationToken) {
        if let Some(tie) = self.sandbox.take() {
            // The task is gone when the connection is: then there is nothing to close.
            let _ = tie.send(sandbox.clone());
        }
    }

    /// Sends a request and waits for the head of its answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`UpstreamError::Exchange`], with the connection of no more use.
    pub async fn call(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        }
        .map_err(UpstreamError::Exchange)
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let outcome = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        outcome.map_err(|mut error| match error.take_message() {
            Some(request) => Unanswered::Unsent(Box::new(request)),
            None => Unanswered::Failed(error.into_error()),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Waits a moment until the next request can be sent; false when it cannot.
    pub(crate) async fn is_free(&mut self) -> bool {
        let Sender::Http1(sender) = &mut self.sender else {
            return false;
        };
        sender.is_ready()
            || matches!(
                tokio::time::timeout(SETTLE, sender.ready()).await,
                Ok(Ok(()))
            )
    }
}
