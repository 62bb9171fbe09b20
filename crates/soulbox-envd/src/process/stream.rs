//! The event stream of Start and Connect, and its encoding.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64_simd::STANDARD;
use bytes::Bytes;
use connectrpc::{CodecFormat, ConnectError, Encodable, EncodedBody};

use futures_util::Stream;
use soulbox_envd_proto::rpc::process::__buffa::oneof::process_event::Event as WireOneof;
use soulbox_envd_proto::rpc::process::process_event::{KeepAlive, StartEvent};
use soulbox_envd_proto::rpc::process::{ConnectResponse, ProcessEvent, StartResponse};
use tokio::time::{Instant, Sleep, sleep_until};

use super::fanout::{Channel, Event, Subscription};

/// The least length of a data message in JSON. Some HTTP/2 clients count unread frames below 256 bytes and close the
/// connection at a few thousand of them, so short messages are padded with white space.
const LEAST_JSON: usize = 256;

/// Events of one process for one client. Dropping it leaves the process alone.
pub(crate) struct EventStream {
    subscription: Subscription,
    deadline: Option<Pin<Box<Sleep>>>,
    keepalive: Duration,
    last_event: Instant,
    idle: Pin<Box<Sleep>>,
    finished: bool,
}

impl EventStream {
    /// `keepalive` is the longest silence; at `deadline` the stream ends with `deadline_exceeded`.
    pub(crate) fn new(
        subscription: Subscription,
        keepalive: Duration,
        deadline: Option<std::time::Instant>,
    ) -> Self {
        let now = Instant::now();
        Self {
            subscription,
            deadline: deadline.map(|deadline| Box::pin(sleep_until(deadline.into()))),
            keepalive,
            last_event: now,
            idle: Box::pin(sleep_until(now + keepalive)),
            finished: false,
        }
    }
}

impl Stream for EventStream {
    type Item = Result<WireEvent, ConnectError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(None);
        }
        // First: at the deadline the process is killed, and its end must not win over the reason.
        if this
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
        {
            this.finished = true;
            return Poll::Ready(Some(Err(ConnectError::deadline_exceeded(
                "context deadline exceeded",
            ))));
        }
        if let Poll::Ready(event) = this.subscription.poll_next(context) {
            this.last_event = Instant::now();
            this.finished = event.is_none();
            return Poll::Ready(event.map(|event| Ok(WireEvent(event))));
        }
        // The timer is moved only when it fires: events are far more frequent.
        while this.idle.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let silent = now.duration_since(this.last_event) >= this.keepalive;
            if silent {
                this.last_event = now;
            }
            this.idle.as_mut().reset(this.last_event + this.keepalive);
            if silent {
                return Poll::Ready(Some(Ok(WireEvent(Event::Keepalive))));
            }
        }
        Poll::Pending
    }
}

/// An event as a `StartResponse` or `ConnectResponse`, which have the same shape.
#[derive(Debug)]
pub(crate) struct WireEvent(pub Event);

impl WireEvent {
    fn encode_body(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        let event = match &self.0 {
            Event::Data(channel, data) => {
                return Ok(match codec {
                    CodecFormat::Json => EncodedBody::from(data_json(*channel, data)),
                    CodecFormat::Proto => EncodedBody::from_segments(vec![
                        data_header(*channel, data.len()),
                        data.clone(),
                    ]),
                    other => return Err(ConnectError::unimplemented(format!("codec {other:?}"))),
                });
            }
            Event::Start { pid } => WireOneof::Start(StartEvent { pid: *pid }),
            Event::Keepalive => WireOneof::Keepalive(KeepAlive::default()),
            Event::End(end) => WireOneof::End(end.clone()),
        };
        let message = StartResponse {
            event: ProcessEvent { event: Some(event) }.into(),
        };
        Encodable::<StartResponse>::encode(&message, codec).map(EncodedBody::from)
    }
}

impl Encodable<StartResponse> for WireEvent {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        self.encode_body(codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.encode_body(codec)
    }
}

impl Encodable<ConnectResponse> for WireEvent {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        self.encode_body(codec).map(EncodedBody::into_contiguous)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        self.encode_body(codec)
    }
}

fn data_json(channel: Channel, data: &[u8]) -> Bytes {
    let name = match channel {
        Channel::Stdout => "stdout",
        Channel::Stderr => "stderr",
        Channel::Pty => "pty",
    };
    let opening = [r#"{"event":{"data":{""#, name, r#"":""#];
    let closing = r#""}}}"#;
    let length = opening.iter().map(|part| part.len()).sum::<usize>()
        + STANDARD.encoded_length(data.len())
        + closing.len();
    let mut json = Vec::with_capacity(length.max(LEAST_JSON));
    for part in opening {
        json.extend_from_slice(part.as_bytes());
    }
    STANDARD.encode_append(data, &mut json);
    json.extend_from_slice(closing.as_bytes());
    json.resize(length.max(LEAST_JSON), b' ');
    json.into()
}

/// All of the protobuf encoding but the data itself, which follows.
fn data_header(channel: Channel, length: usize) -> Bytes {
    let field = match channel {
        Channel::Stdout => 1,
        Channel::Stderr => 2,
        Channel::Pty => 3,
    };
    // From the inside out: DataEvent.<channel>, ProcessEvent.data = 2, StartResponse.event = 1.
    let mut header = Vec::with_capacity(24);
    let mut outer = length;
    let mut parts = Vec::with_capacity(3);
    for field in [field, 2, 1] {
        let part = length_prefix(field, outer);
        outer += part.len();
        parts.push(part);
    }
    for part in parts.iter().rev() {
        header.extend_from_slice(part);
    }
    header.into()
}

/// Tag and length of a length-delimited field.
fn length_prefix(field: u8, mut length: usize) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use buffa::Message as _;
    use soulbox_envd_proto::rpc::process::__buffa::oneof::process_event::data_event::Output;

    fn output_of(message: &StartResponse) -> Option<(Channel, Vec<u8>)> {
        let Some(WireOneof::Data(data)) = &message.event.event else {
            return None;
        };
        match data.output.as_ref()? {
            Output::Stdout(bytes) => Some((Channel::Stdout, bytes.clone())),
            Output::Stderr(bytes) => Some((Channel::Stderr, bytes.clone())),
            Output::Pty(bytes) => Some((Channel::Pty, bytes.clone())),
        }
    }

    #[test]
    fn data_encodes_as_the_generated_code_would_read_it() {
        for channel in [Channel::Stdout, Channel::Stderr, Channel::Pty] {
            for length in [0, 1, 2, 3, 127, 128, 200, 16_384, 70_000] {
                let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
                let event = WireEvent(Event::Data(channel, Bytes::from(data.clone())));
                let proto = Encodable::<StartResponse>::encode(&event, CodecFormat::Proto)
                    .expect("encodes");
                let message = StartResponse::decode_from_slice(&proto).expect("decodes");
                assert_eq!(
                    output_of(&message),
                    Some((channel, data.clone())),
                    "{length}"
                );
                let json = Encodable::<ConnectResponse>::encode(&event, CodecFormat::Json)
                    .expect("encodes");
                assert!(json.len() >= LEAST_JSON);
                let message: StartResponse = serde_json::from_slice(&json).expect("parses");
                assert_eq!(output_of(&message), Some((channel, data)), "{length}");
            }
        }
    }

    #[test]
    fn other_events_have_the_known_json() {
        let check = |event, expected: &str| {
            let json = Encodable::<StartResponse>::encode(&WireEvent(event), CodecFormat::Json)
                .expect("encodes");
            assert_eq!(std::str::from_utf8(&json), Ok(expected));
        };
        check(Event::Start { pid: 7 }, r#"{"event":{"start":{"pid":7}}}"#);
        check(Event::Keepalive, r#"{"event":{"keepalive":{}}}"#);
        let end = super::super::exit::Exit::Code(0).event(super::super::exit::Lifetime::Within);
        check(
            Event::End(end),
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#,
        );
    }
}
