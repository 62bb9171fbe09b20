//! A server with its proxy, sandboxes that are servers on loopback, and clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use soulbox_envd_proto::SandboxUsage;
use soulbox_ingress::{DialError, Ingress, IsSought, Live, Locate, Server};
use soulbox_types::{Inbound, SandboxId};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The sandbox that every test has; its ports are set by [`World::port`].
pub(crate) const SANDBOX: &str = "iabc";

/// The access token of that sandbox, if its envd is asked for one.
pub(crate) const TOKEN: &str = "token";

/// Requests that may be under way into each side of a sandbox.
pub(crate) const LIMIT: u32 = 300;

/// What the host says of every sandbox.
pub(crate) const USAGE: SandboxUsage = SandboxUsage {
    cpu_micros: 1,
    memory: 2,
    cache: 3,
    disk: 4,
};

struct Sandbox {
    live: Live,
    ports: HashMap<u16, SocketAddr>,
}

#[derive(Default)]
pub(crate) struct Fake {
    sandboxes: Mutex<HashMap<SandboxId, Sandbox>>,
    pub(crate) dials: AtomicUsize,
}

#[async_trait]
impl Locate for Fake {
    fn live(&self, sandbox_id: &SandboxId) -> Option<Live> {
        self.sandboxes
            .lock()
            .unwrap()
            .get(sandbox_id)
            .map(|sandbox| sandbox.live.clone())
    }

    async fn whose(&self, is_sought: IsSought<'_>) -> Option<SandboxId> {
        let sandboxes = self.sandboxes.lock().unwrap();
        let found = sandboxes.keys().find(|_| is_sought(TOKEN));
        found.cloned()
    }

    async fn dial(&self, sandbox_id: &SandboxId, port: u16) -> Result<TcpStream, DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let address = match self.sandboxes.lock().unwrap().get(sandbox_id) {
            None => return Err(DialError::NotFound),
            Some(sandbox) => *sandbox.ports.get(&port).ok_or(DialError::PortClosed)?,
        };
        TcpStream::connect(address)
            .await
            .map_err(|_| DialError::PortClosed)
    }

    async fn usage(&self, _: &SandboxId) -> Option<SandboxUsage> {
        Some(USAGE)
    }
}

pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) fake: Arc<Fake>,
    pub(crate) ingress: Ingress,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(None, None).await
    }

    pub(crate) async fn with(tls: Option<TlsAcceptor>, traffic_token: Option<&str>) -> Self {
        let fake = Arc::new(Fake::default());
        let live = Live {
            ended: CancellationToken::new(),
            traffic_token: traffic_token.map(str::to_owned),
            inbound: Arc::default(),
        };
        let sandbox = Sandbox {
            live,
            ports: HashMap::new(),
        };
        fake.sandboxes
            .lock()
            .unwrap()
            .insert(SANDBOX.parse().unwrap(), sandbox);
        let ingress = Ingress::new(Arc::clone(&fake) as Arc<dyn Locate>, LIMIT);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let api = Router::new().fallback(async || "the api");
        let server = Server::new(api, ingress.clone(), tls);
        let server =
            tokio::spawn(server.serve(vec![listener], shutdown.clone(), Duration::from_secs(1)));
        Self {
            address,
            fake,
            ingress,
            shutdown,
            server,
        }
    }

    /// Lets the sandbox's port lead to this address.
    pub(crate) fn port(&self, port: u16, address: SocketAddr) {
        self.fake
            .sandboxes
            .lock()
            .unwrap()
            .get_mut(&SANDBOX.parse().unwrap())
            .unwrap()
            .ports
            .insert(port, address);
    }

    /// Lets the sandbox have this configuration of what reaches its ports.
    pub(crate) fn inbound(&self, inbound: Inbound) {
        let mut sandboxes = self.fake.sandboxes.lock().unwrap();
        let sandbox = sandboxes.get_mut(&SANDBOX.parse().unwrap()).unwrap();
        sandbox.live.inbound = Arc::new(inbound);
    }

    /// Serves this application on a port of the sandbox.
    pub(crate) async fn app(&self, port: u16, app: Router) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.port(port, listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
    }

    /// A port of the sandbox whose connections the test speaks for itself.
    pub(crate) async fn raw(&self, port: u16) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.port(port, listener.local_addr().unwrap());
        listener
    }

    /// Ends the sandbox as control does: gone from the look-up, then the token.
    pub(crate) fn end(&self) {
        let sandbox = self
            .fake
            .sandboxes
            .lock()
            .unwrap()
            .remove(&SANDBOX.parse().unwrap())
            .unwrap();
        sandbox.live.ended.cancel();
    }

    pub(crate) fn dials(&self) -> usize {
        self.fake.dials.load(Ordering::SeqCst)
    }

    pub(crate) async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn h1(&self) -> http1::SendRequest<Body> {
        let (client, connection) = http1::handshake(TokioIo::new(self.socket().await))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        client
    }

    pub(crate) async fn h2(&self) -> http2::SendRequest<Body> {
        let (client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(self.socket().await))
                .await
                .unwrap();
        tokio::spawn(connection);
        client
    }

    /// One request over a connection of its own, and its whole answer.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        Answer::of(soon(self.h1().await.send_request(request)).await.unwrap()).await
    }

    pub(crate) async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::get(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(Body::empty()).unwrap()).await
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = soon(body.collect()).await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future)
        .await
        .expect("within five seconds")
}

/// A request to the port by the host form.
pub(crate) fn to(port: u16, path: &str) -> http::request::Builder {
    Request::builder()
        .uri(path)
        .header("host", format!("{port}-{SANDBOX}.example.com"))
}

/// The same for HTTP/2, where the target has the host.
pub(crate) fn to_h2(port: u16, path: &str) -> http::request::Builder {
    Request::builder()
        .uri(format!("http://{port}-{SANDBOX}.example.com{path}"))
        .version(http::Version::HTTP_2)
}
