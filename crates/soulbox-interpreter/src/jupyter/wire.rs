//! Messages of Jupyter's protocol: how they are signed, framed and read.
//!
//! Source: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol>

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;
use zeromq::ZmqMessage;

const DELIMITER: &[u8] = b"<IDS|MSG>";
const VERSION: &str = "5.3";

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error(
        "a message of the kernel has no delimiter, or less than four parts after its signature"
    )]
    Frames,
    #[error("a message of the kernel is not signed with its key")]
    Signature,
    #[error("a message of the kernel is no JSON of its kind")]
    Json(#[from] serde_json::Error),
}

/// One conversation with a kernel: whoever has its key.
pub(crate) struct Session {
    id: String,
    key: String,
    sent: u64,
}

#[derive(Serialize)]
struct Header<'a> {
    msg_id: &'a str,
    session: &'a str,
    username: &'a str,
    date: String,
    msg_type: &'a str,
    version: &'a str,
}

/// What is read of a header.
#[derive(Deserialize)]
struct Kind {
    msg_type: String,
}

#[derive(Deserialize)]
struct Parent {
    #[serde(default)]
    msg_id: Option<String>,
}

/// A message of the kernel.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: String,
    /// The request that it belongs to.
    pub(crate) parent: Option<String>,
    content: Bytes,
}

impl Received {
    pub(crate) fn content<'a, T: Deserialize<'a>>(&'a self) -> Result<T, WireError> {
        Ok(serde_json::from_slice(&self.content)?)
    }
}

impl Session {
    pub(crate) fn new(id: String, key: String) -> Self {
        Self { id, key, sent: 0 }
    }

    /// A request, and its ID.
    pub(crate) fn request(
        &mut self,
        kind: &str,
        content: &impl Serialize,
    ) -> Result<(String, ZmqMessage), WireError> {
        self.sent += 1;
        let id = format!("{}-{}", self.id, self.sent);
        let header = Header {
            msg_id: &id,
            session: &self.id,
            username: "soulbox",
            date: jiff::Timestamp::now().to_string(),
            msg_type: kind,
            version: VERSION,
        };
        let parts = [
            serde_json::to_vec(&header)?,
            b"{}".to_vec(),
            b"{}".to_vec(),
            serde_json::to_vec(content)?,
        ];
        let signature = hex::encode(self.mac(&parts).finalize().into_bytes());
        let mut message = ZmqMessage::from(Bytes::from_static(DELIMITER));
        message.push_back(signature.into());
        for part in parts {
            message.push_back(part.into());
        }
        Ok((id, message))
    }

    pub(crate) fn read(&self, message: ZmqMessage) -> Result<Received, WireError> {
        let frames = message.into_vec();
        // Before it are a topic or addresses.
        let start = frames
            .iter()
            .position(|frame| frame == DELIMITER)
            .ok_or(WireError::Frames)?;
        let [signature, header, parent, metadata, content, ..] = &frames[start + 1..] else {
            return Err(WireError::Frames);
        };
        let signature = hex::decode(signature).map_err(|_| WireError::Signature)?;
        self.mac(&[header, parent, metadata, content])
            .verify_slice(&signature)
            .map_err(|_| WireError::Signature)?;
        Ok(Received {
            kind: serde_json::from_slice::<Kind>(header)?.msg_type,
            parent: serde_json::from_slice::<Parent>(parent)?.msg_id,
            content: content.clone(),
        })
    }

    fn mac(&self, parts: &[impl AsRef<[u8]>]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_bytes())
            .expect("HMAC takes keys of every length");
        for part in parts {
            mac.update(part.as_ref());
        }
        mac
    }
}

/// JSON on one line: some kernels write theirs on several.
pub(crate) fn one_line(raw: &RawValue) -> Result<Box<RawValue>, WireError> {
    if !raw.get().contains(['\n', '\r']) {
        return Ok(raw.to_owned());
    }
    let value: serde_json::Value = serde_json::from_str(raw.get())?;
    Ok(serde_json::value::to_raw_value(&value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn session(key: &str) -> Session {
        Session::new("s".to_owned(), key.to_owned())
    }

    #[test]
    fn a_message_is_read_by_who_has_the_key() {
        let (id, message) = session("k").request("some_kind", &json!({"a": 1})).unwrap();
        let mut routed = ZmqMessage::from(Bytes::from_static(b"topic"));
        for frame in message.clone().into_vec() {
            routed.push_back(frame);
        }
        let received = session("k").read(routed).unwrap();
        assert_eq!((id.as_str(), received.kind.as_str()), ("s-1", "some_kind"));
        assert_eq!(received.parent, None);
        let content: serde_json::Value = received.content().unwrap();
        assert_eq!(content, json!({"a": 1}));
        let error = session("other").read(message).unwrap_err();
        assert!(matches!(error, WireError::Signature), "{error}");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for frames in [
            vec!["a"],
            vec!["<IDS|MSG>", "00", "{}", "{}", "{}"],
            vec!["<IDS|MSG>", "not hexadecimal", "{}", "{}", "{}", "{}"],
        ] {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let message = ZmqMessage::try_from(frames).unwrap();
            session("k").read(message).unwrap_err();
        }
    }

    #[test]
    fn json_comes_to_be_on_one_line() {
        let raw: Box<RawValue> = serde_json::from_str("{\n \"a\": \"b\\nc\"\n}").unwrap();
        assert_eq!(one_line(&raw).unwrap().get(), r#"{"a":"b\nc"}"#);
    }
}
