//! Commands in a sandbox, as its daemon takes them of clients and tells of them: JSON in envelopes of the Connect protocol, as far as it
//! is needed to start one and to hear how it went. Whoever reads this reads a guest, so lengths are the caller's to bound.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, IgnoredAny};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;

/// Where a command is started.
pub const START: &str = "/process.Process/Start";
/// Before each message: a byte of flags, four of length.
pub const ENVELOPE: usize = 5;
/// The flag of the last message, which says how the stream ended.
const LAST: u8 = 2;

/// Something that a stream tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    Started,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Ended(End),
    /// Nothing follows; why, where it did not go well.
    Closed(Option<Fault>),
    /// Keep-alives, and what later versions say.
    Other,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    #[serde(default)]
    pub exit_code: i32,
    /// Such as `exit status 1` or `signal: killed`.
    #[serde(default)]
    pub status: String,
    /// Why, where the sandbox knows more than the status.
    pub error: Option<String>,
}

/// A call that was refused or broke off; also the whole body of an answer that is no stream.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// One of Connect's, such as `deadline_exceeded`.
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

/// The body of a request to [`START`]: a line for a login shell, without standard input. Without a `folder` it is where the
/// template's commands begin.
///
/// # Errors
/// One that is longer than an envelope can say.
pub fn shell(
    line: &str,
    variables: &BTreeMap<String, String>,
    folder: Option<&str>,
) -> serde_json::Result<Vec<u8>> {
    let mut process = json!({"cmd": "/bin/bash", "args": ["-l", "-c", line], "envs": variables});
    if let Some(folder) = folder {
        process["cwd"] = json!(folder);
    }
    let start = json!({"process": process, "stdin": false});
    let message = serde_json::to_vec(&start)?;
    let length = u32::try_from(message.len())
        .map_err(|_| serde_json::Error::custom("the command is too long"))?;
    let mut body = vec![0];
    body.extend(length.to_be_bytes());
    body.extend(message);
    Ok(body)
}

/// The length of the message behind an envelope.
#[must_use]
pub fn length(envelope: [u8; ENVELOPE]) -> usize {
    let [_, length @ ..] = envelope;
    u32::from_be_bytes(length) as usize
}

/// Reads the message behind an envelope.
///
/// # Errors
/// One that is no such message.
pub fn read(envelope: [u8; ENVELOPE], message: &[u8]) -> serde_json::Result<Told> {
    if envelope[0] & LAST != 0 {
        let last: Last = serde_json::from_slice(message)?;
        return Ok(Told::Closed(last.error));
    }
    let message: Message = serde_json::from_slice(message)?;
    Ok(match message.event {
        Some(Event { end: Some(end), .. }) => Told::Ended(end),
        Some(Event {
            data: Some(data), ..
        }) => match (data.stdout, data.stderr) {
            (Some(bytes), _) => Told::Stdout(bytes),
            (None, Some(bytes)) => Told::Stderr(bytes),
            (None, None) => Told::Other,
        },
        Some(Event { start: Some(_), .. }) => Told::Started,
        _ => Told::Other,
    })
}

#[derive(Deserialize)]
struct Message {
    event: Option<Event>,
}

#[derive(Deserialize)]
struct Event {
    start: Option<IgnoredAny>,
    data: Option<Data>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default, deserialize_with = "base64")]
    stdout: Option<Vec<u8>>,
    #[serde(default, deserialize_with = "base64")]
    stderr: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Last {
    error: Option<Fault>,
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let bytes = text.map(|text| BASE64.decode(text)).transpose();
    bytes.map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(flags: u8, message: &str) -> Told {
        read([flags, 0, 0, 0, 0], message.as_bytes()).expect(message)
    }

    fn end(exit_code: i32, status: &str, error: Option<&str>) -> Told {
        Told::Ended(End {
            exit_code,
            status: status.to_owned(),
            error: error.map(str::to_owned),
        })
    }

    #[test]
    fn messages_of_a_stream_are_told_apart() {
        let output = r#"{"event":{"data":{"stdout":"aGk="}}}"#;
        assert_eq!(told(0, output), Told::Stdout(b"hi".to_vec()));
        let output = r#"{"event":{"data":{"stderr":"aGk="}}}"#;
        assert_eq!(told(0, output), Told::Stderr(b"hi".to_vec()));
        let ended = r#"{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"why"}}}"#;
        assert_eq!(told(0, ended), end(3, "exit status 3", Some("why")));
        // Zero is left out.
        let ended = r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#;
        assert_eq!(told(0, ended), end(0, "exit status 0", None));
        assert_eq!(told(0, r#"{"event":{"start":{"pid":7}}}"#), Told::Started);
        assert_eq!(told(0, r#"{"event":{"keepalive":{}}}"#), Told::Other);
        assert_eq!(told(LAST, "{}"), Told::Closed(None));
        let refusal = r#"{"error":{"code":"unauthenticated","message":"invalid username: 'x'"}}"#;
        let fault = Fault {
            code: "unauthenticated".to_owned(),
            message: "invalid username: 'x'".to_owned(),
        };
        assert_eq!(told(LAST, refusal), Told::Closed(Some(fault)));
        for bad in ["{", r#"{"event":{"data":{"stdout":"?"}}}"#] {
            assert!(read([0; ENVELOPE], bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_envelope_says_how_long_its_message_is() {
        let body = shell("true", &BTreeMap::new(), None).expect("short");
        let (envelope, message) = body.split_first_chunk().expect("longer");
        assert_eq!(length(*envelope), message.len());
        let start: serde_json::Value = serde_json::from_slice(message).expect("JSON");
        assert_eq!(start["process"]["args"], json!(["-l", "-c", "true"]));
    }
}
