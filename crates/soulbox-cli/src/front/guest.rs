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
use serde::Deserialize;
use serde_json::json;
use soulbox_builder::bench::{BenchError, Command, Exit, Guest, Output};
use soulbox_envd_proto::{ACCESS_TOKEN_HEADER, ENVD_PORT};
use soulbox_ingress::Upstream;
use soulbox_wire::host::{HostErrorKind, Reply, Request as HostRequest};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::hosts::connected;
use crate::failure::chain;
use crate::rpc::{Client, RpcError};

/// One message of the daemon. It sends output in pieces far smaller than this.
const MAX_MESSAGE: usize = 4 << 20;
/// The most that is read of an answer that is no stream.
const MAX_ANSWER: usize = 64 << 10;
/// Of an envelope of the Connect protocol: a byte of flags, four of length.
const ENVELOPE: usize = 5;
/// The flag of the last message, which says how the stream ended.
const LAST: u8 = 2;
/// Sending a file in.
const SEND_WITHIN: Duration = Duration::from_secs(3600);

/// The daemon in one sandbox.
pub(super) struct GuestDaemon {
    pub(super) client: Client,
    pub(super) sandbox_id: String,
    pub(super) access_token: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    event: Option<Event>,
}

#[derive(Deserialize)]
struct Event {
    start: Option<serde::de::IgnoredAny>,
    data: Option<Data>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct Data {
    stdout: Option<String>,
    stderr: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    #[serde(default)]
    exit_code: i32,
    #[serde(default)]
    status: String,
}

#[derive(Deserialize)]
struct Last {
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
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
        let start = json!({
            "process": {
                "cmd": "/bin/bash",
                "args": ["-l", "-c", command.text],
                "envs": command.env,
                "cwd": command.workdir.as_deref().unwrap_or("~"),
            },
            "stdin": false,
        });
        let start = start.to_string().into_bytes();
        let length = u32::try_from(start.len())
            .map_err(|_| BenchError::Refused("the command is too long".to_owned()))?;
        let mut body = vec![0];
        body.extend(length.to_be_bytes());
        body.extend(start);
        let user = BASE64.encode(format!("{}:", command.user));
        let request = self
            .request(Method::POST, "/process.Process/Start")
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
            return Err(match serde_json::from_str::<Refusal>(&text) {
                Ok(refusal) => refused(&refusal),
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
        while let Some(head) = received.get(at..at + ENVELOPE) {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > MAX_MESSAGE {
                return Err(failed("the daemon sent a message that is too long"));
            }
            let Some(message) = received.get(at + ENVELOPE..at + ENVELOPE + length) else {
                break;
            };
            match take(head[0], message)? {
                Taken::Output(written) => {
                    // Whoever does not listen any more still wants to know how it ends.
                    drop(output.send(written).await);
                }
                Taken::Exit(ended) => exit = Some(ended),
                Taken::Last => {
                    return exit.ok_or_else(|| failed("the stream ended before its program"));
                }
                Taken::Nothing => {}
            }
            at += ENVELOPE + length;
        }
        received.drain(..at);
    }
    exit.ok_or_else(|| lost("the connection to its daemon broke off".to_owned()))
}

enum Taken {
    Output(Output),
    Exit(Exit),
    Last,
    Nothing,
}

fn take(flags: u8, message: &[u8]) -> Result<Taken, BenchError> {
    let malformed = |error: serde_json::Error| failed(format!("a malformed message: {error}"));
    if flags & LAST != 0 {
        let last: Last = serde_json::from_slice(message).map_err(malformed)?;
        return match last.error {
            Some(refusal) => Err(refused(&refusal)),
            None => Ok(Taken::Last),
        };
    }
    let message: Message = serde_json::from_slice(message).map_err(malformed)?;
    let Some(event) = message.event else {
        return Ok(Taken::Nothing);
    };
    if let Some(end) = event.end {
        return Ok(Taken::Exit(Exit {
            code: end.exit_code,
            status: end.status,
        }));
    }
    if event.start.is_some() {
        return Ok(Taken::Output(Output::Started));
    }
    let bytes = |text: &str| {
        BASE64
            .decode(text)
            .map_err(|error| failed(format!("malformed output: {error}")))
    };
    Ok(match event.data {
        Some(Data {
            stdout: Some(text), ..
        }) => Taken::Output(Output::Stdout(bytes(&text)?)),
        Some(Data {
            stderr: Some(text), ..
        }) => Taken::Output(Output::Stderr(bytes(&text)?)),
        _ => Taken::Nothing,
    })
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

fn refused(refusal: &Refusal) -> BenchError {
    BenchError::Refused(format!(
        "command failed: {}: {}",
        refusal.code, refusal.message
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_stream_are_told_apart() {
        let output = take(0, br#"{"event":{"data":{"stdout":"aGk="}}}"#);
        assert!(matches!(output, Ok(Taken::Output(Output::Stdout(bytes))) if bytes == b"hi"));
        let output = take(0, br#"{"event":{"data":{"stderr":"aGk="}}}"#);
        assert!(matches!(output, Ok(Taken::Output(Output::Stderr(_)))));
        let end = br#"{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3"}}}"#;
        assert!(matches!(take(0, end), Ok(Taken::Exit(exit)) if exit.code == 3));
        // Zero is left out.
        let end = br#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#;
        assert!(matches!(take(0, end), Ok(Taken::Exit(exit)) if exit.code == 0));
        let start = take(0, br#"{"event":{"start":{"pid":7}}}"#);
        assert!(matches!(start, Ok(Taken::Output(Output::Started))));
        let nothing = take(0, br#"{"event":{"keepalive":{}}}"#);
        assert!(matches!(nothing, Ok(Taken::Nothing)));
        assert!(matches!(take(LAST, b"{}"), Ok(Taken::Last)));
        let refusal = br#"{"error":{"code":"unauthenticated","message":"invalid username: 'x'"}}"#;
        let expected = "command failed: unauthenticated: invalid username: 'x'";
        assert!(matches!(take(LAST, refusal), Err(BenchError::Refused(text)) if text == expected));
        for bad in [&b"{"[..], br#"{"event":{"data":{"stdout":"?"}}}"#] {
            assert!(matches!(take(0, bad), Err(BenchError::Failed(_))));
        }
    }
}
