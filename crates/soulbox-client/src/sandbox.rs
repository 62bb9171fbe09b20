//! One running sandbox from its client's side: code, commands and files, over the ingress.
//!
//! Whoever creates one ends it with [`Client::kill_sandbox`]; nothing here does that behind anybody's back, and the deadline given at
//! the creation is what ends the sandboxes of a client that died.

mod code;
mod commands;
mod files;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use soulbox_wire::rest;

use crate::client::{Client, ClientError, path};

pub use code::CodeEvent;
pub use commands::{CommandEnd, CommandEvent};
pub use files::FileEntry;

/// Of the daemon inside: commands and files.
const DAEMON: u16 = 49983;
/// Of the code interpreter inside.
const INTERPRETER: u16 = 49999;
/// Of calls that are not as long as what they run.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a new sandbox is like; what is left out is the server's choice.
#[derive(Clone, Debug, Default)]
pub struct SandboxOptions {
    pub template: Option<String>,
    /// After this it is ended, whatever its client does.
    pub timeout: Duration,
    pub metadata: BTreeMap<String, String>,
    pub allow_internet: Option<bool>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "templateID", skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    timeout: u64,
    secure: bool,
    metadata: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_internet_access: Option<bool>,
}

/// How sandboxes are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One URL for all of them, such as `http://127.0.0.1:3000`; headers say which.
    Shared(String),
    /// `https://<port>-<sandbox>.<domain>`.
    Domain(String),
}

/// Why something inside a sandbox was not done.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It was killed, its time was over, or it died.
    #[error("the sandbox {sandbox_id} is gone")]
    Gone { sandbox_id: String },
    #[error("nothing in the sandbox listens on port {port}: {hint}")]
    PortClosed { port: u16, hint: &'static str },
    #[error("it was not done within {}", seconds(.within))]
    TookTooLong { within: Duration },
    #[error("the answer is larger than {most} bytes")]
    TooLarge { most: usize },
    #[error("the sandbox does not answer")]
    Send(#[source] reqwest::Error),
    /// The sandbox's own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("the sandbox's answer is not understood: {what}")]
    Answer { what: String },
}

fn seconds(within: &Duration) -> String {
    format!("{} s", within.as_secs_f64())
}

/// A running sandbox. Clones share their connections.
#[derive(Clone)]
pub struct Sandbox {
    http: reqwest::Client,
    id: String,
    place: Place,
    access_token: Option<header::HeaderValue>,
    traffic_token: Option<header::HeaderValue>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The tokens stay out of every log.
        f.debug_struct("Sandbox").field("id", &self.id).finish()
    }
}

impl Client {
    /// Makes a sandbox that is usable at once.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn create_sandbox(
        &self,
        options: &SandboxOptions,
        place: &Place,
    ) -> Result<Sandbox, ClientError> {
        let body = Body {
            template: options.template.as_deref(),
            timeout: options.timeout.as_secs().max(1),
            secure: true,
            metadata: &options.metadata,
            allow_internet_access: options.allow_internet,
        };
        let made: rest::Sandbox = self.call(Method::POST, "/sandboxes", Some(&body)).await?;
        let token = |text: Option<String>| {
            let text = text.map(|text| header::HeaderValue::from_str(&text));
            text.transpose()
                .map(|value| {
                    value.map(|mut value| {
                        value.set_sensitive(true);
                        value
                    })
                })
                .map_err(|_| ClientError::BadKey)
        };
        Ok(Sandbox {
            http: self.connections(),
            id: made.sandbox_id,
            place: match (place, made.domain) {
                // The server's word on its domain counts, as with the official clients.
                (Place::Domain(_), Some(domain)) => Place::Domain(domain),
                (place, _) => place.clone(),
            },
            access_token: token(made.envd_access_token)?,
            traffic_token: token(made.traffic_access_token)?,
        })
    }

    /// Ends a sandbox; false when there was none of that ID.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn kill_sandbox(&self, sandbox_id: &str) -> Result<bool, ClientError> {
        let path = path(&["sandboxes", sandbox_id]);
        match self.call(Method::DELETE, &path, None::<&()>).await {
            Ok(()) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the deadline of a running sandbox to so long from now.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn set_sandbox_timeout(
        &self,
        sandbox_id: &str,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        #[derive(Serialize)]
        struct Timeout {
            timeout: u64,
        }
        let body = Timeout {
            timeout: timeout.as_secs().max(1),
        };
        let path = path(&["sandboxes", sandbox_id, "timeout"]);
        self.call(Method::POST, &path, Some(&body)).await
    }
}

impl Sandbox {
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn request(&self, method: Method, port: u16, path: &str) -> RequestBuilder {
        let mut request = match &self.place {
            Place::Shared(url) => self
                .http
                .request(method, format!("{}{path}", url.trim_end_matches('/')))
                .header("E2b-Sandbox-Id", &self.id)
                .header("E2b-Sandbox-Port", port.to_string()),
            Place::Domain(domain) => self
                .http
                .request(method, format!("https://{port}-{}.{domain}{path}", self.id)),
        };
        if let Some(token) = &self.access_token {
            request = request.header("X-Access-Token", token.clone());
        }
        if let Some(token) = &self.traffic_token {
            request = request.header("e2b-traffic-access-token", token.clone());
        }
        request
    }

    /// Sends, and makes an error of an answer that is one.
    async fn send(
        &self,
        request: RequestBuilder,
        port: u16,
        within: Duration,
    ) -> Result<Response, SandboxError> {
        let answer = request.timeout(within).send().await;
        let answer = answer.map_err(|error| self.unanswered(error, within))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer
            .text()
            .await
            .map_err(|error| self.unanswered(error, within))?;
        Err(self.refused(status, port, &text))
    }

    /// What the ingress, the daemon or the interpreter said.
    fn refused(&self, status: StatusCode, port: u16, text: &str) -> SandboxError {
        #[derive(Deserialize)]
        struct Said {
            message: String,
        }
        let said = serde_json::from_str::<Said>(text).map(|said| said.message);
        let message = said.unwrap_or_else(|_| text.trim().to_owned());
        if status == StatusCode::BAD_GATEWAY {
            return if message.contains("port is not open") {
                SandboxError::PortClosed {
                    port,
                    hint: match port {
                        INTERPRETER => "its template has no code interpreter",
                        _ => "its daemon is not running",
                    },
                }
            } else {
                self.gone()
            };
        }
        SandboxError::Refused { status, message }
    }

    fn gone(&self) -> SandboxError {
        SandboxError::Gone {
            sandbox_id: self.id.clone(),
        }
    }

    fn unanswered(&self, error: reqwest::Error, within: Duration) -> SandboxError {
        if error.is_timeout() {
            return SandboxError::TookTooLong { within };
        }
        // A stream into a sandbox that ends is reset, which is the only thing that breaks a body off.
        if error.is_body() || error.is_decode() {
            return self.gone();
        }
        SandboxError::Send(error.without_url())
    }
}

/// Pieces of a body as whole lines or frames need them.
struct Pieces<'a> {
    sandbox: &'a Sandbox,
    answer: Response,
    within: Duration,
    buffer: Vec<u8>,
    /// Where to look on for the end of a line: what is before was searched.
    searched: usize,
}

impl<'a> Pieces<'a> {
    fn new(sandbox: &'a Sandbox, answer: Response, within: Duration) -> Self {
        Self {
            sandbox,
            answer,
            within,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// Reads on; false at the end of the body.
    async fn more(&mut self, most: usize) -> Result<bool, SandboxError> {
        if self.buffer.len() > most {
            return Err(SandboxError::TooLarge { most });
        }
        let piece = self.answer.chunk().await;
        match piece.map_err(|error| self.sandbox.unanswered(error, self.within))? {
            Some(piece) => {
                self.buffer.extend_from_slice(&piece);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The next line without its end.
    async fn line(&mut self, most: usize) -> Result<Option<Vec<u8>>, SandboxError> {
        loop {
            if let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if !self.more(most).await? {
                return Ok(None);
            }
        }
    }

    /// The next `length` bytes; none at the end of the body.
    async fn exactly(
        &mut self,
        length: usize,
        most: usize,
    ) -> Result<Option<Vec<u8>>, SandboxError> {
        while self.buffer.len() < length {
            if !self.more(most).await? {
                return Ok(None);
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(Some(std::mem::replace(&mut self.buffer, rest)))
    }
}
