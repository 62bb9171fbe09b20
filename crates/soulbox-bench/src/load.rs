//! Load over HTTP/1.1, one kept connection a client. A request that is not answered as it should be ends the measurement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::server::KEY;

/// Clients that fill a server.
const FILLERS: usize = 20;
/// No request of any figure takes as long on a machine that works.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

struct Client {
    requests: SendRequest<Full<Bytes>>,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    /// Connected and warm: what is measured next does not pay for it.
    async fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server)
            .await
            .with_context(|| format!("nothing answers at {server}"))?;
        stream.set_nodelay(true)?;
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move {
            // How it ended is seen by the request that was under way.
            let _ = connection.await;
        });
        let mut client = Self {
            requests,
            _connection: AbortOnDropHandle::new(connection),
        };
        client
            .call(Method::GET, "/health", None, StatusCode::OK)
            .await?;
        Ok(client)
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
        expected: StatusCode,
    ) -> anyhow::Result<Bytes> {
        let body = body.map(|it| Bytes::from(it.to_string()));
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "localhost")
            .header("x-api-key", KEY)
            .header("content-type", "application/json")
            .body(Full::new(body.unwrap_or_default()))?;
        let answered = async {
            self.requests.ready().await?;
            let answer = self.requests.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        let (status, body) = tokio::time::timeout(ANSWER_WITHIN, answered)
            .await
            .with_context(|| format!("{method} {path} was not answered"))??;
        ensure!(
            status == expected,
            "{method} {path} answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }

    async fn create(&mut self, seconds: u64) -> anyhow::Result<String> {
        let body =
            json!({"templateID": "base", "timeout": seconds, "metadata": {"of": "the bench"}});
        let answer = self
            .call(
                Method::POST,
                "/v2/sandboxes",
                Some(body),
                StatusCode::CREATED,
            )
            .await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let id = answer["sandboxID"].as_str();
        Ok(id.context("a create answered without an ID")?.to_owned())
    }

    async fn kill(&mut self, id: &str) -> anyhow::Result<()> {
        let path = format!("/sandboxes/{id}");
        self.call(Method::DELETE, &path, None, StatusCode::NO_CONTENT)
            .await?;
        Ok(())
    }
}

/// `{"create": [ms], "kill": [ms]}`.
pub async fn single(server: SocketAddr, count: usize) -> anyhow::Result<Value> {
    let mut client = Client::connect(server).await?;
    let (mut creates, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let began = Instant::now();
        let id = client.create(600).await?;
        creates.push(millis(began.elapsed()));
        let began = Instant::now();
        client.kill(&id).await?;
        kills.push(millis(began.elapsed()));
    }
    Ok(json!({"create": creates, "kill": kills}))
}

/// `{"pairs": N, "seconds": S}`.
pub async fn rate(server: SocketAddr, clients: usize, within: Duration) -> anyhow::Result<Value> {
    let barrier = Arc::new(Barrier::new(clients));
    let mut running = JoinSet::new();
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Client::connect(server).await?);
    }
    let began = Instant::now();
    for mut client in connected {
        let barrier = barrier.clone();
        running.spawn(async move {
            barrier.wait().await;
            let mut pairs: u64 = 0;
            while began.elapsed() < within {
                let id = client.create(600).await?;
                client.kill(&id).await?;
                pairs += 1;
            }
            anyhow::Ok(pairs)
        });
    }
    let mut pairs = 0;
    while let Some(done) = running.join_next().await {
        pairs += done??;
    }
    Ok(json!({"pairs": pairs, "seconds": began.elapsed().as_secs_f64()}))
}

/// `{"seconds": S}`. The ends of those that it leaves lie `ending` to `ending + over` seconds after its beginning.
pub async fn fill(
    server: SocketAddr,
    count: usize,
    ending: u64,
    over: u64,
) -> anyhow::Result<Value> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for filler in 0..FILLERS {
        let mut client = Client::connect(server).await?;
        running.spawn(async move {
            for number in (filler..count).step_by(FILLERS) {
                let end = ending + u64::try_from(number)? % over.max(1);
                let left = end.checked_sub(began.elapsed().as_secs());
                let left = left.filter(|left| *left > 0);
                client
                    .create(left.context("it took too long to fill the server")?)
                    .await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(json!({"seconds": began.elapsed().as_secs_f64()}))
}

/// `{"page": [ms], "length": N}`: of all pages asked for, and how many sandboxes each of them had.
pub async fn pages(
    server: SocketAddr,
    count: usize,
    limit: usize,
    query: &str,
) -> anyhow::Result<Value> {
    let mut client = Client::connect(server).await?;
    let path = format!("/v2/sandboxes?limit={limit}&{query}");
    let (mut times, mut length) = (Vec::new(), None);
    for _ in 0..count {
        let began = Instant::now();
        let answer = client
            .call(Method::GET, &path, None, StatusCode::OK)
            .await?;
        times.push(millis(began.elapsed()));
        let answer: Vec<Value> = serde_json::from_slice(&answer)?;
        let known = *length.get_or_insert(answer.len());
        ensure!(known == answer.len(), "pages of one list differ in length");
    }
    Ok(json!({"page": times, "length": length}))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
