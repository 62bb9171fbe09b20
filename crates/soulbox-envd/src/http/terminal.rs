//! `GET /ws/pty`: a terminal for browsers over a WebSocket (RFC 6455), as `docs/api.md` describes it.
//!
//! All that can be refused is refused before the connection switches, as plain HTTP: a browser tells its page nothing
//! about that, but the same URL asked with `fetch` answers with the same cause. `session` is what follows.

mod session;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use hyper_util::rt::TokioIo;
use rustix::termios::Winsize;
use serde::Deserialize;
use soulbox_envd_proto::ACCESS_TOKEN_HEADER;
use soulbox_envd_proto::rpc::process::pty::Size;
use soulbox_envd_proto::rpc::process::{PTY, ProcessConfig, StartRequest};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::answer::HttpError;
use super::files;
use crate::cause::chain;
use crate::process::{Followed, Processes, Selector, StartError, Surroundings};
use crate::settings::Settings;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use session::understands;
use session::{Program, converse};

/// The subprotocol that we speak; a browser that offers any has to be given one.
const PROTOCOL: &str = "soulbox.pty.v1";
/// Prefix of the subprotocol that is no protocol but the token: the one header that a browser's page can choose.
const TOKEN_PROTOCOL: &str = "soulbox.token.";
/// Bash as the SDKs start it, or what a template without bash has.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// The longest message of a client: a large paste.
const MESSAGE_BYTES: usize = 1 << 20;
/// Read at once of a connection.
const READ_BUFFER: usize = 8 << 10;

#[derive(Clone)]
pub(super) struct Terminals {
    pub(super) settings: Arc<Settings>,
    pub(super) processes: Arc<Processes>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TerminalQuery {
    user: Option<String>,
    cols: Option<u16>,
    rows: Option<u16>,
    pid: Option<u32>,
    access_token: Option<String>,
}

pub(super) async fn terminal(
    State(terminals): State<Terminals>,
    query: Result<Query<TerminalQuery>, QueryRejection>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let Query(query) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let offered = offered(request.headers());
    authorise(&terminals.settings, request.headers(), &query, &offered)?;
    let size = size(&query)?;
    let shell = match query.pid {
        Some(pid) => Shell::Running(follow(&terminals.processes, pid)?),
        None => Shell::New,
    };
    let user = files::user(&terminals.settings, query.user.as_deref())?;
    let accept = accept_key(&request)?;
    let protocol = chosen(&offered)?;

    // Nothing has been changed or started until here.
    let program = match shell {
        Shell::New => start(&terminals, &user, size)?,
        Shell::Running(program) => {
            if let (Some(size), Program::Live { process, .. }) = (size, &program) {
                process
                    .input
                    .resize(size)
                    .map_err(|error| HttpError::internal(chain(&error)))?;
            }
            program
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    // Ends with the connection, which is given up when the client is silent for long; the program lives on.
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER)
                .max_message_size(Some(MESSAGE_BYTES))
                .max_frame_size(Some(MESSAGE_BYTES));
            let socket = WebSocketStream::from_raw_socket(
                TokioIo::new(upgraded),
                Role::Server,
                Some(config),
            );
            converse(socket.await, program).await;
        }
    });
    let mut response = super::answer::no_content();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

enum Shell {
    New,
    Running(Program),
}

/// The subprotocols of the request, in the client's order.
fn offered(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn chosen(offered: &[String]) -> Result<Option<HeaderValue>, HttpError> {
    if offered.is_empty() {
        return Ok(None);
    }
    if offered.iter().any(|name| name == PROTOCOL) {
        return Ok(Some(HeaderValue::from_static(PROTOCOL)));
    }
    Err(HttpError::bad_request(format!(
        "the subprotocol {PROTOCOL} must be offered where any is"
    )))
}

/// The token in the header, the query or a subprotocol; the first that is there has to be right.
fn authorise(
    settings: &Settings,
    headers: &HeaderMap,
    query: &TerminalQuery,
    offered: &[String],
) -> Result<(), HttpError> {
    let in_header = headers
        .get(ACCESS_TOKEN_HEADER)
        .map(HeaderValue::as_bytes)
        .map(String::from_utf8_lossy);
    let in_protocol = || {
        offered
            .iter()
            .find_map(|name| name.strip_prefix(TOKEN_PROTOCOL))
    };
    let given = in_header
        .as_deref()
        .or(query.access_token.as_deref())
        .or_else(in_protocol);
    if settings.token_matches(given) {
        return Ok(());
    }
    Err(HttpError::unauthorized(match given {
        Some(_) => "the access token does not match",
        None => {
            "an access token is needed: query access_token, subprotocol soulbox.token.TOKEN or header X-Access-Token"
        }
    }))
}

/// The size that was asked for, if any was.
fn size(query: &TerminalQuery) -> Result<Option<Winsize>, HttpError> {
    const COLS: u16 = 80;
    const ROWS: u16 = 24;

    if query.cols == Some(0) || query.rows == Some(0) {
        return Err(HttpError::bad_request("cols and rows must be 1 to 65535"));
    }
    let asked = query.cols.is_some() || query.rows.is_some();
    Ok(asked.then(|| Winsize {
        ws_col: query.cols.unwrap_or(COLS),
        ws_row: query.rows.unwrap_or(ROWS),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }))
}

fn follow(processes: &Processes, pid: u32) -> Result<Program, HttpError> {
    let selector = Selector::Pid(pid);
    match processes.follow(&selector) {
        Some(Followed::Live(subscription)) => {
            let process = processes
                .find(&selector)
                .filter(|process| process.input.is_terminal())
                .ok_or_else(|| {
                    HttpError::bad_request(format!("process with pid {pid} has no terminal"))
                })?;
            Ok(Program::Live {
                process,
                subscription,
            })
        }
        Some(Followed::Finished { pid, end }) => Ok(Program::Finished { pid, end }),
        None => Err(HttpError::not_found(format!(
            "process with pid {pid} not found"
        ))),
    }
}

fn start(
    terminals: &Terminals,
    user: &crate::users::User,
    size: Option<Winsize>,
) -> Result<Program, HttpError> {
    let shell = SHELLS
        .into_iter()
        .find(|shell| std::path::Path::new(shell).exists())
        .ok_or_else(|| HttpError::internal("neither /bin/bash nor /bin/sh exists"))?;
    let (cols, rows) = size.map_or((80, 24), |size| (size.ws_col, size.ws_row));
    let variables = [
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
    ];
    let request = StartRequest {
        process: ProcessConfig {
            cmd: shell.to_owned(),
            args: vec!["-i".to_owned(), "-l".to_owned()],
            envs: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<HashMap<_, _>>()
                .into_iter()
                .collect(),
            cwd: None,
        }
        .into(),
        pty: PTY {
            size: Size {
                cols: cols.into(),
                rows: rows.into(),
            }
            .into(),
        }
        .into(),
        ..StartRequest::default()
    };
    let workdir = terminals.settings.default_workdir();
    let variables = terminals.settings.variables();
    let surroundings = Surroundings {
        user,
        default_workdir: workdir.as_deref(),
        variables: &variables,
    };
    let (process, subscription) = terminals
        .processes
        .start(request, &surroundings, None)
        .map_err(|error| match error {
            StartError::MissingDirectory(_) | StartError::Path(_) => {
                HttpError::bad_request(chain(&error))
            }
            _ => HttpError::internal(chain(&error)),
        })?;
    Ok(Program::Live {
        process,
        subscription,
    })
}

/// What proves to the client that this is a WebSocket server, for a request that asks for one.
fn accept_key(request: &Request) -> Result<HeaderValue, HttpError> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let upgrades = header(header::CONNECTION)
        .split(',')
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        && header(header::UPGRADE).eq_ignore_ascii_case("websocket");
    if request.version() != Version::HTTP_11 || !upgrades {
        return Err(HttpError::new(
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket: Connection: upgrade and Upgrade: websocket are needed, over HTTP/1.1",
        ));
    }
    if header(header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err(HttpError::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let key = header(header::SEC_WEBSOCKET_KEY);
    // Sixteen bytes in base64 (RFC 6455, 4.1).
    if !base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key)
        .is_ok_and(|bytes| bytes.len() == 16)
    {
        return Err(HttpError::bad_request(
            "Sec-WebSocket-Key must be 16 bytes in base64",
        ));
    }
    HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|error| HttpError::internal(error.to_string()))
}
