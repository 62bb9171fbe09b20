//! One request and its answer.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use soulbox_wire::rest;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Of every call but an upload. A create or a resume may wait for a start command.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// How often a request is sent again that the server was too busy for.
const MOST_RETRIES: u32 = 3;
/// A server that asks for a longer rest than this is not waited for.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Nothing but these is itself in a part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why a call did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{url}` is not the URL of an API")]
    BadUrl { url: String },
    #[error("the key has characters that no header can carry")]
    BadKey,
    #[error("failed to prepare requests")]
    Prepare(#[source] reqwest::Error),
    #[error("failed to ask {method} {path}")]
    Send {
        method: Method,
        path: String,
        #[source]
        source: reqwest::Error,
    },
    /// The server's own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("the answer to {method} {path} is not understood")]
    Answer {
        method: Method,
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// The status of an answer that is an error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Asks one server with one key. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end.
    api: String,
    key: header::HeaderValue,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of every log.
        f.debug_struct("Client").field("api", &self.api).finish()
    }
}

/// A path of parts that may hold anything, such as `/templates/team%2Fname`.
#[must_use]
pub fn path(parts: &[&str]) -> String {
    parts
        .iter()
        .map(|part| format!("/{}", utf8_percent_encode(part, PART)))
        .collect()
}

impl Client {
    /// `api` is where the API answers, as in `http://127.0.0.1:3000`. Nothing is sent yet.
    ///
    /// # Errors
    /// `BadUrl`, `BadKey`, and `Prepare` where the system's certificates cannot be used.
    pub fn new(api: &str, key: &str) -> Result<Self, ClientError> {
        let api = api.trim_end_matches('/');
        let bad = || ClientError::BadUrl {
            url: api.to_owned(),
        };
        let url = reqwest::Url::parse(api).map_err(|_| bad())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(bad());
        }
        let mut key = header::HeaderValue::from_str(key).map_err(|_| ClientError::BadKey)?;
        key.set_sensitive(true);
        // It stays as it is where the program has chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("soulbox/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .build()
            .map_err(ClientError::Prepare)?;
        Ok(Self {
            http,
            api: api.to_owned(),
            key,
        })
    }

    /// Calls `path`, with a body if there is one, and reads the answer; `()` is for answers without a body. A request that the server
    /// is too busy for (429) is sent again when it says when.
    ///
    /// # Errors
    /// `Send`, `Refused` and `Answer`.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        let failed = |source| ClientError::Answer {
            method: method.clone(),
            path: path.to_owned(),
            source,
        };
        let body = body.map(serde_json::to_vec).transpose().map_err(failed)?;
        let mut tries = 0;
        let answer = loop {
            let mut request = self
                .http
                .request(method.clone(), format!("{}{path}", self.api))
                .timeout(ANSWER_WITHIN)
                .header("X-API-Key", self.key.clone());
            if let Some(body) = &body {
                request = request
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(body.clone());
            }
            let answer = self.send(request, &method, path).await?;
            match rest_before_retry(&answer).filter(|_| tries < MOST_RETRIES) {
                Some(rest) => tokio::time::sleep(rest).await,
                None => break answer,
            }
            tries += 1;
        };
        let text = received(answer, &method, path).await?;
        // An answer without a body is `null`, which is `()`.
        let text: &[u8] = if text.is_empty() { b"null" } else { &text };
        serde_json::from_slice(text).map_err(failed)
    }

    /// [`Client::call`] with GET.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// The connections of this client, for what is not the API.
    pub(crate) fn connections(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// PUTs a body of known length to a link that carries its own permission: the key is not sent.
    pub(crate) async fn put(
        &self,
        url: &str,
        body: reqwest::Body,
        length: u64,
        within: Duration,
    ) -> Result<(), ClientError> {
        // What follows is a signature, so it is in no message.
        let shown = url.split('?').next().unwrap_or_default();
        let request = self
            .http
            .put(url)
            .timeout(within)
            .header(header::CONTENT_LENGTH, length)
            .body(body);
        let answer = self.send(request, &Method::PUT, shown).await?;
        received(answer, &Method::PUT, shown).await.map(|_| ())
    }

    async fn send(
        &self,
        request: RequestBuilder,
        method: &Method,
        path: &str,
    ) -> Result<Response, ClientError> {
        request
            .send()
            .await
            .map_err(|source| unsent(source, method, path))
    }
}

/// How long the server wants to be left alone; none when it does not say so.
fn rest_before_retry(answer: &Response) -> Option<Duration> {
    if answer.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let asked = answer.headers().get(header::RETRY_AFTER)?;
    let rest = Duration::from_secs(asked.to_str().ok()?.trim().parse().ok()?);
    (rest <= LONGEST_REST).then_some(rest)
}

/// The body of an answer that is no error.
async fn received(answer: Response, method: &Method, path: &str) -> Result<Vec<u8>, ClientError> {
    let status = answer.status();
    let text = answer
        .bytes()
        .await
        .map_err(|source| unsent(source, method, path))?;
    if status.is_success() {
        return Ok(text.into());
    }
    let message = match serde_json::from_slice::<rest::Error>(&text) {
        Ok(error) => error.message,
        Err(_) => format!("{method} {path} was answered {status}"),
    };
    Err(ClientError::Refused { status, message })
}

fn unsent(source: reqwest::Error, method: &Method, path: &str) -> ClientError {
    ClientError::Send {
        method: method.clone(),
        path: path.to_owned(),
        // The URL may hold a signature; the path says what was asked.
        source: source.without_url(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_path_holds_anything() {
        assert_eq!(
            path(&["templates", "team/name:v 1"]),
            "/templates/team%2Fname%3Av%201"
        );
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in ["", "127.0.0.1:3000", "ftp://x", "/path"] {
            let refused = Client::new(bad, "key");
            assert!(
                matches!(refused, Err(ClientError::BadUrl { .. })),
                "{bad}: {refused:?}"
            );
        }
        assert!(matches!(
            Client::new("http://x", "a\nb"),
            Err(ClientError::BadKey)
        ));
    }
}
