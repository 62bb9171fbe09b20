//! Code for the interpreter, and what it says line by line.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{INTERPRETER, Pieces, Sandbox, SandboxError};

/// Charts of plotly are 5 MB each; a line beyond this is nothing that a client can use.
const LONGEST_LINE: usize = 64 << 20;

/// Something that happened while code ran.
#[derive(Clone, Debug, PartialEq)]
pub enum CodeEvent {
    Stdout(String),
    Stderr(String),
    /// By format: `text`, `png`, `svg`, `html`, `json`, `chart` and others.
    Result(Map<String, Value>),
    /// The code failed, in its own words.
    Error {
        name: String,
        value: String,
        traceback: String,
    },
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Stdout {
        text: String,
    },
    Stderr {
        text: String,
    },
    Result(Map<String, Value>),
    Error {
        name: String,
        value: String,
        traceback: String,
    },
    EndOfExecution,
    /// Keep-alives, numbers, and what later versions say.
    #[serde(other)]
    Other,
}

impl Sandbox {
    /// Runs code in the sandbox's own context of its language (Python, when none is named) and tells what happens as it happens.
    /// Code that fails is no error of this call. When `within` is over, the code is interrupted.
    ///
    /// # Errors
    /// [`SandboxError`]; `PortClosed` where the template has no interpreter.
    pub async fn run_code(
        &self,
        code: &str,
        language: Option<&str>,
        within: Duration,
        mut tell: impl FnMut(CodeEvent),
    ) -> Result<(), SandboxError> {
        let request = self
            .request(Method::POST, INTERPRETER, "/execute")
            .json(&Body { code, language });
        let answer = self.send(request, INTERPRETER, within).await?;
        let mut pieces = Pieces::new(self, answer, within);
        while let Some(line) = pieces.line(LONGEST_LINE).await? {
            if line.is_empty() {
                continue;
            }
            let line = serde_json::from_slice(&line).map_err(|error| SandboxError::Answer {
                what: error.to_string(),
            })?;
            tell(match line {
                Line::Stdout { text } => CodeEvent::Stdout(text),
                Line::Stderr { text } => CodeEvent::Stderr(text),
                Line::Result(mut formats) => {
                    formats.retain(|_, value| !value.is_null());
                    CodeEvent::Result(formats)
                }
                Line::Error {
                    name,
                    value,
                    traceback,
                } => CodeEvent::Error {
                    name,
                    value,
                    traceback,
                },
                Line::EndOfExecution => return Ok(()),
                Line::Other => continue,
            });
        }
        // A sandbox that ends takes the stream along before the last line.
        Err(self.gone())
    }
}
