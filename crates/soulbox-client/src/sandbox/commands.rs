//! Commands: the daemon's Connect stream, as JSON in frames of a flag, a length and so many bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{DAEMON, Pieces, Sandbox, SandboxError};

const LARGEST_FRAME: usize = 16 << 20;
/// The flag of the last frame, which says how the call went.
const END_OF_STREAM: u8 = 2;

/// Output of a command, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandEvent {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandEnd {
    pub exit_code: i32,
    /// Such as `exit status 1` or `signal: killed`.
    pub status: String,
    /// Why, where the sandbox knows more than the status.
    pub cause: Option<String>,
}

#[derive(Serialize)]
struct Start<'a> {
    process: Process<'a>,
    stdin: bool,
}

#[derive(Serialize)]
struct Process<'a> {
    cmd: &'a str,
    args: [&'a str; 3],
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    envs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Message {
    event: Option<Event>,
}

#[derive(Deserialize)]
struct Event {
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
    error: Option<String>,
}

#[derive(Deserialize)]
struct Trailer {
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    code: String,
    #[serde(default)]
    message: String,
}

impl Sandbox {
    /// Runs a line of shell as the template's user and tells its output as it comes. A status other than 0 is no error of this call.
    /// When `within` is over, the sandbox ends the command.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn run_command(
        &self,
        command: &str,
        within: Duration,
        mut tell: impl FnMut(CommandEvent),
    ) -> Result<CommandEnd, SandboxError> {
        let start = Start {
            process: Process {
                cmd: "/bin/bash",
                args: ["-l", "-c", command],
                cwd: None,
                envs: BTreeMap::new(),
            },
            stdin: false,
        };
        let body = serde_json::to_vec(&start).map_err(unclear)?;
        let mut frame = vec![0];
        let length = u32::try_from(body.len()).map_err(|_| SandboxError::TooLarge {
            most: u32::MAX as usize,
        })?;
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        let request = self
            .request(Method::POST, DAEMON, "/process.Process/Start")
            .header("Content-Type", "application/connect+json")
            .header("Connect-Protocol-Version", "1")
            .header("Connect-Timeout-Ms", within.as_millis().to_string())
            .body(frame);
        // The daemon keeps the time; this is for a sandbox that does not answer at all.
        let answer = self
            .send(request, DAEMON, within + Duration::from_secs(5))
            .await?;
        let mut pieces = Pieces::new(self, answer, within);
        let mut ended = None;
        while let Some(head) = pieces.exactly(5, LARGEST_FRAME).await? {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > LARGEST_FRAME {
                return Err(SandboxError::TooLarge {
                    most: LARGEST_FRAME,
                });
            }
            let Some(body) = pieces.exactly(length, LARGEST_FRAME).await? else {
                break;
            };
            if head[0] & END_OF_STREAM != 0 {
                let trailer: Trailer = serde_json::from_slice(&body).map_err(unclear)?;
                return match (trailer.error, ended) {
                    (Some(fault), _) if fault.code == "deadline_exceeded" => {
                        Err(SandboxError::TookTooLong { within })
                    }
                    (Some(fault), _) => Err(SandboxError::Answer {
                        what: format!("{}: {}", fault.code, fault.message),
                    }),
                    (None, Some(end)) => Ok(end),
                    (None, None) => Err(SandboxError::Answer {
                        what: "the command has no end".to_owned(),
                    }),
                };
            }
            let message: Message = serde_json::from_slice(&body).map_err(unclear)?;
            let Some(event) = message.event else { continue };
            if let Some(data) = event.data {
                if let Some(text) = data.stdout {
                    tell(CommandEvent::Stdout(decoded(&text)?));
                }
                if let Some(text) = data.stderr {
                    tell(CommandEvent::Stderr(decoded(&text)?));
                }
            }
            if let Some(end) = event.end {
                ended = Some(CommandEnd {
                    exit_code: end.exit_code,
                    status: end.status,
                    cause: end.error,
                });
            }
        }
        Err(self.gone())
    }
}

fn unclear(error: serde_json::Error) -> SandboxError {
    SandboxError::Answer {
        what: error.to_string(),
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, SandboxError> {
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| SandboxError::Answer {
            what: error.to_string(),
        })
}
