//! Commands: the daemon's Connect stream, as JSON in frames of a flag, a length and so many bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use soulbox_wire::process::{self, Told};

use super::{DAEMON, Pieces, Sandbox, SandboxError};

const LARGEST_FRAME: usize = 16 << 20;

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
        let body = process::shell(command, &BTreeMap::new(), None).map_err(unclear)?;
        let request = self
            .request(Method::POST, DAEMON, process::START)
            .header("Content-Type", "application/connect+json")
            .header("Connect-Protocol-Version", "1")
            .header("Connect-Timeout-Ms", within.as_millis().to_string())
            .body(body);
        // The daemon keeps the time; this is for a sandbox that does not answer at all.
        let answer = self
            .send(request, DAEMON, within + Duration::from_secs(5))
            .await?;
        let mut pieces = Pieces::new(self, answer, within);
        let mut ended = None;
        while let Some(head) = pieces.exactly(process::ENVELOPE, LARGEST_FRAME).await? {
            let mut envelope = [0; process::ENVELOPE];
            envelope.copy_from_slice(&head);
            let length = process::length(envelope);
            if length > LARGEST_FRAME {
                return Err(SandboxError::TooLarge {
                    most: LARGEST_FRAME,
                });
            }
            let Some(message) = pieces.exactly(length, LARGEST_FRAME).await? else {
                break;
            };
            match process::read(envelope, &message).map_err(unclear)? {
                Told::Stdout(bytes) => tell(CommandEvent::Stdout(bytes)),
                Told::Stderr(bytes) => tell(CommandEvent::Stderr(bytes)),
                Told::Ended(end) => {
                    ended = Some(CommandEnd {
                        exit_code: end.exit_code,
                        status: end.status,
                        cause: end.error,
                    });
                }
                Told::Closed(Some(fault)) if fault.code == "deadline_exceeded" => {
                    return Err(SandboxError::TookTooLong { within });
                }
                Told::Closed(Some(fault)) => {
                    return Err(SandboxError::Answer {
                        what: format!("{}: {}", fault.code, fault.message),
                    });
                }
                Told::Closed(None) => {
                    return ended.ok_or(SandboxError::Answer {
                        what: "the command has no end".to_owned(),
                    });
                }
                Told::Started | Told::Other => {}
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
