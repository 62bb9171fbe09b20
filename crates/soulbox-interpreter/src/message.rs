//! What kernels say, and the lines of an answer that it becomes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One message of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// It can execute.
    Ready,
    /// It cannot, and ends.
    Failed {
        reason: String,
    },
    /// The number of the execution that begins.
    Count(u64),
    /// A whole line for the client.
    Result(Bytes),
    Error(KernelError),
    /// What a driver read elsewhere, as if it had been written to descriptor 1, or 2.
    Output {
        stderr: bool,
        text: String,
    },
    Done,
}

/// An exception, as the language tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelError {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) traceback: String,
}

/// A kernel that does not keep to its protocol is ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the kernel's message is not understood")]
    Json(#[from] serde_json::Error),
    #[error("the kernel's message `{0}` is not known")]
    Kind(String),
    #[error("the kernel's message `{kind}` lacks `{field}`")]
    Lacks { kind: String, field: &'static str },
    #[error("the kernel's status is no number")]
    Status,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    execution_count: Option<u64>,
    #[serde(default)]
    main: bool,
    #[serde(borrow)]
    data: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
    name: Option<String>,
    value: Option<String>,
    traceback: Option<String>,
    reason: Option<String>,
    stream: Option<String>,
    text: Option<String>,
}

impl Message {
    pub(crate) fn from_json(line: &[u8]) -> Result<Self, MessageError> {
        let wire: Wire<'_> = serde_json::from_slice(line)?;
        let lacks = |field| MessageError::Lacks {
            kind: wire.kind.to_string(),
            field,
        };
        Ok(match &*wire.kind {
            "ready" => Self::Ready,
            "failed" => Self::Failed {
                reason: wire.reason.ok_or_else(|| lacks("reason"))?,
            },
            "count" => Self::Count(
                wire.execution_count
                    .ok_or_else(|| lacks("execution_count"))?,
            ),
            "display" => Self::Result(result_line(
                &wire.data.ok_or_else(|| lacks("data"))?,
                wire.main,
            )?),
            "error" => Self::Error(KernelError {
                name: wire.name.ok_or_else(|| lacks("name"))?,
                value: wire.value.ok_or_else(|| lacks("value"))?,
                traceback: wire.traceback.ok_or_else(|| lacks("traceback"))?,
            }),
            "output" => Self::Output {
                stderr: wire.stream.ok_or_else(|| lacks("stream"))? == "stderr",
                text: wire.text.ok_or_else(|| lacks("text"))?,
            },
            "done" => Self::Done,
            other => return Err(MessageError::Kind(other.to_owned())),
        })
    }
}

/// The field of a result for a MIME type; all others go into `extra`.
fn field(mime: &str) -> Option<&'static str> {
    Some(match mime {
        "text/plain" => "text",
        "text/html" => "html",
        "text/markdown" => "markdown",
        "image/svg+xml" => "svg",
        "image/png" => "png",
        "image/jpeg" => "jpeg",
        "application/pdf" => "pdf",
        "text/latex" => "latex",
        "application/json" => "json",
        "application/javascript" => "javascript",
        "e2b/data" => "data",
        "e2b/chart" => "chart",
        _ => return None,
    })
}

fn result_line(
    data: &BTreeMap<Cow<'_, str>, &RawValue>,
    main: bool,
) -> Result<Bytes, serde_json::Error> {
    let mut line = String::from("{\"type\":\"result\"");
    let mut extra = BTreeMap::new();
    for (mime, value) in data {
        match field(mime) {
            Some("text") => {
                let text: Cow<'_, str> = serde_json::from_str(value.get())?;
                line += ",\"text\":";
                line += &serde_json::to_string(unquoted(&text))?;
            }
            Some(field) => {
                line += ",\"";
                line += field;
                line += "\":";
                line += value.get();
            }
            None => {
                extra.insert(mime, value);
            }
        }
    }
    line += if main {
        ",\"is_main_result\":true,\"extra\":"
    } else {
        ",\"is_main_result\":false,\"extra\":"
    };
    line += &serde_json::to_string(&extra)?;
    line += "}\n";
    Ok(line.into())
}

/// Without one pair of quotes around it: the text of a string is what it says, not how it is written.
fn unquoted(text: &str) -> &str {
    ['\'', '"']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(text)
}

/// A line of an answer that is not a result.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Line<'a> {
    NumberOfExecutions {
        execution_count: u64,
    },
    Stdout {
        text: &'a str,
        timestamp: String,
    },
    Stderr {
        text: &'a str,
        timestamp: String,
    },
    Error {
        name: &'a str,
        value: &'a str,
        traceback: &'a str,
    },
    Keepalive,
    EndOfExecution,
}

impl Line<'_> {
    pub(crate) fn bytes(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("strings and numbers always become JSON");
        line.push(b'\n');
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> String {
        match Message::from_json(message.as_bytes()).unwrap() {
            Message::Result(line) => String::from_utf8(line.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_result_has_a_field_for_each_known_format_and_the_rest_in_extra() {
        let message = r#"{"type":"display","main":true,"data":{"text/plain":"'a'","image/png":"aGk=","application/json":[1, 2.50],"x/y":{"z":1}}}"#;
        assert_eq!(
            line(message),
            "{\"type\":\"result\",\"json\":[1, 2.50],\"png\":\"aGk=\",\"text\":\"a\",\"is_main_result\":true,\"extra\":{\"x/y\":{\"z\":1}}}\n"
        );
    }

    #[test]
    fn one_pair_of_quotes_is_taken_off() {
        for (written, shown) in [
            ("'a'", "a"),
            ("\"a\"", "a"),
            ("''a''", "'a'"),
            ("'a\"", "'a\""),
            ("'", "'"),
            ("", ""),
        ] {
            assert_eq!(unquoted(written), shown, "{written}");
        }
    }

    #[test]
    fn what_a_kernel_must_say_is_asked_for() {
        for (message, complaint) in [
            (r#"{"type":"count"}"#, "lacks `execution_count`"),
            (
                r#"{"type":"error","name":"a","value":"b"}"#,
                "lacks `traceback`",
            ),
            (r#"{"type":"output","stream":"stdout"}"#, "lacks `text`"),
            (r#"{"type":"sing"}"#, "`sing` is not known"),
            ("{", "not understood"),
        ] {
            let error = Message::from_json(message.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(complaint), "{error}");
        }
    }

    #[test]
    fn lines_end_and_name_their_type() {
        let count = Line::NumberOfExecutions { execution_count: 3 };
        assert_eq!(
            count.bytes(),
            "{\"type\":\"number_of_executions\",\"execution_count\":3}\n"
        );
        assert_eq!(
            Line::EndOfExecution.bytes(),
            "{\"type\":\"end_of_execution\"}\n"
        );
    }
}
