//! [`Ingress`]: carries a request to a port of a sandbox and its answer back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, UPGRADE};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use soulbox_envd_proto::{ENVD_PORT, USAGE_HEADER, is_host_only};
use soulbox_http::Lingering;
use soulbox_types::SandboxId;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::crowd::{Crowd, Place};
use crate::headers;
use crate::locate::{DialError, Found, Live, Locate, WakeError};
use crate::pool::Pool;
use crate::preflight::Preflight;
use crate::refusal::{Audience, Refusal};
use crate::route::Target;
use crate::signed::{Rations, SignedFile};
use crate::stream::Relayed;
use crate::upstream::{Protocol, Transport, Unanswered, Upstream, UpstreamError};

/// Pauses before a closed port is tried again: a server that was just started gets a second to listen.
const DIAL_PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];
/// After a connection broke: how long the news may take that the whole sandbox ended.
const NEWS: Duration = Duration::from_millis(100);
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// The proxy; clones share it.
#[derive(Clone)]
pub struct Ingress {
    locate: Arc<dyn Locate>,
    pool: Arc<Pool>,
    crowd: Arc<Crowd>,
    rations: Arc<Rations>,
    /// Switched connections, each of which ends with its sandbox or with either peer.
    tunnels: TaskTracker,
}

/// Both ends of a connection that is to switch protocols.
struct Switch {
    protocol: HeaderValue,
    client: OnUpgrade,
}

impl Ingress {
    /// A proxy to the sandboxes that `locate` finds. In each, `limit` requests to its envd and as many to all of its other ports may be under way.
    #[must_use]
    pub fn new(locate: Arc<dyn Locate>, limit: u32) -> Self {
        Self {
            locate,
            pool: Arc::default(),
            crowd: Crowd::new(limit),
            rations: Arc::default(),
            tunnels: TaskTracker::new(),
        }
    }

    /// Gives the pool a connection that somebody else opened, for the next request to that port.
    pub fn park(&self, sandbox_id: &SandboxId, port: u16, upstream: Upstream) {
        self.pool.put(
            &Target {
                sandbox_id: sandbox_id.clone(),
                port,
            },
            upstream,
        );
    }

    /// Closes the idle connections of a sandbox that is no more. Streams end by its token.
    pub fn forget(&self, sandbox_id: &SandboxId) {
        self.pool.forget(sandbox_id);
    }

    /// Closes idle connections in time; runs until `shutdown`.
    pub async fn sweep(&self, shutdown: CancellationToken) {
        while shutdown
            .run_until_cancelled(tokio::time::sleep(SWEEP))
            .await
            .is_some()
        {
            self.pool
                .sweep(|sandbox_id| self.locate.live(sandbox_id).is_some());
        }
    }

    /// Answers a request for a port of a sandbox. Never fails: what goes wrong is told to the client.
    pub async fn handle(
        &self,
        target: Target,
        request: Request<Lingering<Incoming>>,
    ) -> Response<Body> {
        let audience = Audience::of(request.headers());
        let preflight = (target.port == ENVD_PORT)
            .then(|| Preflight::of(request.method(), request.headers()))
            .flatten();
        match (self.forward(&target, request).await, preflight) {
            (Ok(response), _) => response,
            (Err(_), Some(preflight)) => preflight.granted(),
            (Err(refusal), None) => refusal.response(audience),
        }
    }

    /// The envd whose file it is, as the signature says.
    ///
    /// # Errors
    /// No sandbox made the signature, or the client asked too often.
    pub(crate) async fn find_signed(
        &self,
        file: &SignedFile,
        client: IpAddr,
    ) -> Result<Target, Refusal> {
        if !self.rations.take(client) {
            return Err(Refusal::SignatureGuessing);
        }
        let is_sought = |token: &str| file.is_signed_with(token);
        let found = self.locate.whose(&is_sought).await;
        Ok(Target {
            sandbox_id: found.ok_or(Refusal::SignatureInvalid)?,
            port: ENVD_PORT,
        })
    }

    async fn forward(
        &self,
        target: &Target,
        mut request: Request<Lingering<Incoming>>,
    ) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        // Before the look-up: whether a sandbox is there is nobody's business here.
        if target.port == ENVD_PORT && is_host_only(request.uri().path()) {
            return Err(Refusal::Reserved {
                path: request.uri().path().to_owned(),
            });
        }
        let live = match self.locate.live(&target.sandbox_id) {
            Some(live) => live,
            None => self.found(target, &request).await?,
        };
        check_traffic_token(target, live.traffic_token.as_deref(), &request)?;
        let place = self.crowd.enter(target).ok_or_else(|| Refusal::TooMany {
            target: target.clone(),
            limit: self.crowd.limit(),
        })?;

        let client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let switch = headers::wanted_upgrade(&parts).map(|protocol| Switch { protocol, client });
        let protocol = if headers::is_grpc(&parts) {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        headers::for_upstream(
            &mut parts,
            switch.as_ref().map(|switch| switch.protocol.clone()),
        );
        if let Some(mask) = live
            .inbound
            .mask
            .as_ref()
            .filter(|_| target.port != ENVD_PORT)
        {
            headers::mask_host(&mut parts.headers, mask, target.port);
        }
        let mut request = Request::from_parts(parts, Body::new(body));
        if protocol == Protocol::Http2 {
            headers::for_http2(&mut request, scheme(transport(target, &live)));
        }
        if target.port == ENVD_PORT {
            self.locate.used(&target.sandbox_id);
            self.tell_usage(target, &mut request).await;
        }
        tokio::select! {
            biased;
            () = live.ended.cancelled() => Err(Refusal::NotFound(target.clone())),
            outcome = self.exchange(target, &live, request, switch, protocol, place) => outcome,
        }
    }

    /// The sandbox that cannot be reached at once; a paused one is resumed for a request that has its tokens.
    async fn found(
        &self,
        target: &Target,
        request: &Request<Lingering<Incoming>>,
    ) -> Result<Live, Refusal> {
        let id = &target.sandbox_id;
        let (traffic_token, access_token) = match self.locate.find(id).await {
            Found::Live(live) => return Ok(live),
            Found::Nothing => return Err(Refusal::NotFound(target.clone())),
            Found::Paused {
                traffic_token,
                access_token,
            } => (traffic_token, access_token),
        };
        check_traffic_token(target, traffic_token.as_deref(), request)?;
        // Whoever would be refused by envd does not wake it either. A preflight has no token and needs no sandbox.
        if target.port == ENVD_PORT
            && let Some(token) = access_token
            && !has_access(request, &token)
        {
            return Err(Refusal::NotToBeResumed(target.clone()));
        }
        self.locate.wake(id).await.map_err(|error| match error {
            WakeError::NotFound => Refusal::NotFound(target.clone()),
            WakeError::LimitReached { limit } => Refusal::QuotaExhausted {
                target: target.clone(),
                limit,
            },
            WakeError::Failed(why) => {
                warn!(sandbox_id = %id, error = why, "a paused sandbox was not resumed for a request");
                Refusal::NotResumed(target.clone())
            }
        })
    }

    /// The daemon inside cannot see what its sandbox uses; the host can, and its word goes with the question.
    async fn tell_usage(&self, target: &Target, request: &mut Request<Body>) {
        request.headers_mut().remove(USAGE_HEADER);
        if request.uri().path() == "/metrics"
            && let Some(usage) = self.locate.usage(&target.sandbox_id).await
            && let Ok(value) = serde_json::to_string(&usage)
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            request.headers_mut().insert(USAGE_HEADER, value);
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        live: &Live,
        mut request: Request<Body>,
        switch: Option<Switch>,
        protocol: Protocol,
        place: Place,
    ) -> Result<Response<Body>, Refusal> {
        // A connection that switches is never given back, so it is not taken either; those that wait speak HTTP/1.1.
        if switch.is_none()
            && protocol == Protocol::Http1
            && let Some(mut upstream) = self.pool.take(target).await
        {
            upstream.tie(&live.ended);
            let again = repeatable(&request);
            match upstream.send(request).await {
                Ok(response) => return Ok(self.answer(target, live, upstream, response, place)),
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                // The server closed while the request was on its way: nothing was answered, and the method allows another try.
                Err(Unanswered::Failed(error)) => match again {
                    Some(again) if !error.is_parse() => request = again,
                    _ => return Err(self.unanswered(target, live, &error).await),
                },
            }
        }
        let mut upstream = self.dial(target, live, protocol).await?;
        upstream.tie(&live.ended);
        match upstream.send(request).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => match switch {
                Some(switch) => Ok(self.switch(live, upstream, response, switch.client, place)),
                None => Err(Refusal::Garbled(target.clone())),
            },
            Ok(response) => Ok(self.answer(target, live, upstream, response, place)),
            Err(Unanswered::Unsent(_)) => Err(self
                .ended_or(target, live, Refusal::HungUp(target.clone()))
                .await),
            Err(Unanswered::Failed(error)) => Err(self.unanswered(target, live, &error).await),
        }
    }

    async fn dial(
        &self,
        target: &Target,
        live: &Live,
        protocol: Protocol,
    ) -> Result<Upstream, Refusal> {
        let mut pauses = DIAL_PAUSES.iter();
        let socket = loop {
            match self.locate.dial(&target.sandbox_id, target.port).await {
                Ok(socket) => break socket,
                Err(DialError::NotFound) => return Err(Refusal::NotFound(target.clone())),
                Err(DialError::PortClosed) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None if self.locate.live(&target.sandbox_id).is_none() => {
                        return Err(Refusal::NotFound(target.clone()));
                    }
                    None => return Err(Refusal::PortClosed(target.clone())),
                },
                Err(error @ DialError::Failed(_)) => {
                    warn!(sandbox_id = %target.sandbox_id, port = target.port, %error, "dial failed");
                    return Err(Refusal::DialFailed(target.clone()));
                }
            }
        };
        let opened = Upstream::open_as(socket, protocol, transport(target, live)).await;
        opened.map_err(|error| {
            debug!(sandbox_id = %target.sandbox_id, port = target.port, %error, "connection died at once");
            match error {
                UpstreamError::Tls(_) => Refusal::NotTls(target.clone()),
                _ => Refusal::HungUp(target.clone()),
            }
        })
    }

    fn answer(
        &self,
        target: &Target,
        live: &Live,
        upstream: Upstream,
        response: Response<Incoming>,
        place: Place,
    ) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        headers::for_downstream(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let body = Relayed::new(
            body,
            upstream,
            Arc::clone(&self.pool),
            target.clone(),
            live.ended.clone(),
            place,
        );
        Response::from_parts(parts, Body::new(body))
    }

    fn switch(
        &self,
        live: &Live,
        upstream: Upstream,
        mut response: Response<Incoming>,
        client: OnUpgrade,
        place: Place,
    ) -> Response<Body> {
        let server = hyper::upgrade::on(&mut response);
        let (mut parts, _) = response.into_parts();
        let protocol = parts.headers.get(UPGRADE).cloned();
        headers::for_downstream(&mut parts.headers);
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            parts.headers.insert(UPGRADE, protocol);
        }
        let ended = live.ended.clone();
        self.tunnels.spawn(async move {
            let _place = place;
            // Dropping both ends closes both connections.
            let tunnel = tunnel(client, server, upstream);
            if let Some(Err(error)) = ended.run_until_cancelled(tunnel).await {
                debug!(%error, "switched connection failed");
            }
        });
        Response::from_parts(parts, Body::empty())
    }

    async fn unanswered(&self, target: &Target, live: &Live, error: &hyper::Error) -> Refusal {
        debug!(sandbox_id = %target.sandbox_id, port = target.port, %error, "request unanswered");
        let refusal = if error.is_parse() {
            Refusal::Garbled(target.clone())
        } else {
            Refusal::HungUp(target.clone())
        };
        self.ended_or(target, live, refusal).await
    }

    /// A broken connection is often the first sign that the whole sandbox ended, and clients tell the two apart.
    async fn ended_or(&self, target: &Target, live: &Live, otherwise: Refusal) -> Refusal {
        match tokio::time::timeout(NEWS, live.ended.cancelled()).await {
            Ok(()) => Refusal::NotFound(target.clone()),
            Err(_) => otherwise,
        }
    }
}

/// What the program on the port speaks. envd is ours and speaks in plain.
fn transport(target: &Target, live: &Live) -> Transport {
    if live.inbound.https.contains(target.port) {
        Transport::Tls
    } else {
        Transport::Plain
    }
}

fn scheme(transport: Transport) -> Scheme {
    match transport {
        Transport::Plain => Scheme::HTTP,
        Transport::Tls => Scheme::HTTPS,
    }
}

async fn tunnel(
    client: OnUpgrade,
    server: OnUpgrade,
    upstream: Upstream,
) -> Result<(), std::io::Error> {
    let (server, client) = tokio::try_join!(server, client).map_err(std::io::Error::other)?;
    // hyper has handed the socket over, its own task is done.
    drop(upstream);
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await?;
    Ok(())
}

/// Whether a request has the token of envd, or a signature of it that envd would take.
fn has_access(request: &Request<Lingering<Incoming>>, token: &str) -> bool {
    if let Some(given) = request.headers().get("x-access-token") {
        return given.as_bytes().ct_eq(token.as_bytes()).into();
    }
    let signed = SignedFile::read(request.method(), request.uri());
    matches!(signed, Ok(Some(file)) if !file.has_expired() && file.is_signed_with(token))
}

fn check_traffic_token(
    target: &Target,
    token: Option<&str>,
    request: &Request<Lingering<Incoming>>,
) -> Result<(), Refusal> {
    let Some(token) = token.filter(|_| target.port != ENVD_PORT) else {
        return Ok(());
    };
    let Some(given) = request.headers().get(headers::TRAFFIC_TOKEN) else {
        return Err(Refusal::TrafficTokenMissing(target.clone()));
    };
    if bool::from(given.as_bytes().ct_eq(token.as_bytes())) {
        Ok(())
    } else {
        Err(Refusal::TrafficTokenInvalid(target.clone()))
    }
}

/// The same request once more, where it has no body and its method allows that.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if !headers::is_repeatable(request.method()) || !http_body::Body::is_end_stream(request.body())
    {
        return None;
    }
    let mut again = Request::new(Body::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}
