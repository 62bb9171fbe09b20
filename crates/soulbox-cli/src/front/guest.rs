//! Programs and files of a sandbox, as the front itself needs them for template builds: a client of the daemon inside, over a dialled socket.
//! It is a guest that speaks: what is read of it is bounded and parsed as a stranger's.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use soulbox_builder::bench::{BenchError, Command, Exit, Guest, Output};
use soulbox_envd_proto::{ACCESS_TOKEN_HEADER, ENVD_PORT};
use soulbox_ingress::Upstream;
use soulbox_wire::host::{HostErrorKind, Reply, Request as HostRequest};
use soulbox_wire::process::{self, ENVELOPE, Fault, Told};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::hosts::connected;
use crate::failure::chain;
use crate::rpc::{Client, RpcError};

/// One message of the daemon. It sends output in pieces far smaller than this.
const MAX_MESSAGE: usize = 4 << 20;
/// The most that is read of an answer that is no stream.
const MAX_ANSWER: usize = 64 << 10;
/// Sending a file in.
const SEND_WITHIN: Duration = Duration::from_secs(3600);

/// The daemon in one sandbox.
pub(super) struct GuestDaemon {
    pub(super) client: Client,
    pub(super) sandbox_id: String,
    pub(super) access_token: Option<String>,
}

impl GuestDaemon {
    /// An answer, and the connection, which has to live as long as it.
    async fn call(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Upstream), BenchError> {
        let dial = HostRequest::Dial {
            sandbox_id: self.sandbox_id.clone(),
            port: ENVD_PORT,
        };
        let (Reply::Dialled, descriptors) = self.client.request(dial).await.map_err(told)? else {
            return Err(failed("the host's answer is of another kind"));
        };
        let socket = connected(descriptors).map_err(failed)?;
        let mut upstream = Upstream::open(socket)
            .await
            .map_err(|error| lost(chain(&error)))?;
        let response = upstream
            .call(request)
            .await
            .map_err(|error| lost(chain(&error)))?;
        Ok((response, upstream))
    }

    fn request(&self, method: Method, uri: &str) -> hyper::http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "localhost");
        match &self.access_token {
            Some(token) => request.header(ACCESS_TOKEN_HEADER, token),
            None => request,
        }
    }

    /// Sends a file in, to be root's.
    pub(super) async fn send_file(&self, file: &Path, to: &str) -> Result<(), BenchError> {
        let file = tokio::fs::File::open(file)
            .await
            .map_err(|error| failed(format!("failed to open an archive: {error}")))?;
        let length = file
            .metadata()
            .await
            .map_err(|error| failed(format!("failed to read an archive: {error}")))?
            .len();
        let request = self
            .request(Method::POST, &format!("/files?path={to}&username=root"))
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(Body::from_stream(ReaderStream::with_capacity(
                file,
                256 << 10,
            )))
            .map_err(|error| failed(error.to_string()))?;
        let sent = tokio::time::timeout(SEND_WITHIN, async {
            let (response, _connection) = self.call(request).await?;
            let status = response.status();
            let text = text(response).await;
            if status.is_success() {
                return Ok(());
            }
            Err(BenchError::Refused(format!(
                "the uploaded files could not be sent in: {text}"
            )))
        });
        sent.await
            .unwrap_or_else(|_| Err(BenchError::Refused("sending files in took too long".into())))
    }

    async fn start(
        &self,
        command: &Command,
        output: &mpsc::Sender<Output>,
    ) -> Result<Exit, BenchError> {
        let body = process::shell(
            &command.text,
            &command.env,
            Some(command.workdir.as_deref().unwrap_or("~")),
        )
        .map_err(|error| BenchError::Refused(error.to_string()))?;
        let user = BASE64.encode(format!("{}:", command.user));
        let request = self
            .request(Method::POST, process::START)
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1")
            .header("connect-timeout-ms", command.within.as_millis().to_string())
            .header("keepalive-ping-interval", "30")
            .header("authorization", format!("Basic {user}"))
            .body(Body::new(Full::from(body)))
            .map_err(|error| failed(error.to_string()))?;
        let (response, _connection) = self.call(request).await?;
        if response.status() != StatusCode::OK {
            let text = text(response).await;
            return Err(match serde_json::from_str::<Fault>(&text) {
                Ok(fault) => refused(&fault),
                Err(_) => failed(format!("the daemon refused: {text}")),
            });
        }
        follow(response, output).await
    }
}

#[async_trait]
impl Guest for GuestDaemon {
    async fn run(
        &self,
        command: &Command,
        output: mpsc::Sender<Output>,
    ) -> Result<Exit, BenchError> {
        let started = self.start(command, &output);
        let ended = tokio::time::timeout(command.within, started).await;
        ended.unwrap_or_else(|_| {
            let seconds = command.within.as_secs();
            Err(BenchError::Refused(format!(
                "it has not ended within {seconds}s"
            )))
        })
    }
}

/// Reads a stream to its end.
async fn follow(
    response: Response<Incoming>,
    output: &mpsc::Sender<Output>,
) -> Result<Exit, BenchError> {
    let mut body = response.into_body();
    let mut received: Vec<u8> = Vec::new();
    let mut exit = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| lost(chain(&error)))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        received.extend_from_slice(data);
        let mut at = 0;
        while let Some((envelope, rest)) = received[at..].split_first_chunk::<ENVELOPE>() {
            let length = process::length(*envelope);
            if length > MAX_MESSAGE {
                return Err(failed("the daemon sent a message that is too long"));
            }
            let Some(message) = rest.get(..length) else {
                break;
            };
            let told = process::read(*envelope, message)
                .map_err(|error| failed(format!("a malformed message: {error}")))?;
            let written = match told {
                Told::Started => Some(Output::Started),
                Told::Stdout(bytes) => Some(Output::Stdout(bytes)),
                Told::Stderr(bytes) => Some(Output::Stderr(bytes)),
                Told::Ended(end) => {
                    exit = Some(Exit {
                        code: end.exit_code,
                        status: end.status,
                    });
                    None
                }
                Told::Closed(Some(fault)) => return Err(refused(&fault)),
                Told::Closed(None) => {
                    return exit.ok_or_else(|| failed("the stream ended before its program"));
                }
                Told::Other => None,
            };
            if let Some(written) = written {
                // Whoever does not listen any more still wants to know how it ends.
                drop(output.send(written).await);
            }
            at += ENVELOPE + length;
        }
        received.drain(..at);
    }
    exit.ok_or_else(|| lost("the connection to its daemon broke off".to_owned()))
}

async fn text(response: Response<Incoming>) -> String {
    match Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => error.to_string(),
    }
}

fn refused(fault: &Fault) -> BenchError {
    BenchError::Refused(format!("command failed: {}: {}", fault.code, fault.message))
}

fn failed(reason: impl Into<String>) -> BenchError {
    BenchError::Failed(reason.into())
}

/// The sandbox has probably ended; the host knows why.
fn lost(reason: String) -> BenchError {
    BenchError::Ended(reason)
}

pub(super) fn told(error: RpcError) -> BenchError {
    match error {
        RpcError::Host(error) => match error.kind {
            HostErrorKind::NotFound | HostErrorKind::PortClosed => BenchError::Ended(error.message),
            HostErrorKind::CannotSave => BenchError::Refused(error.message),
            HostErrorKind::NoCapacity | HostErrorKind::NotReady => {
                BenchError::NoCapacity(error.message)
            }
            _ => BenchError::Failed(error.message),
        },
        other => BenchError::Failed(chain(&other)),
    }
}
