//! The wires: a request is read and checked, an answer is written as one JSON body or as the events of a stream.

mod anthropic;
mod chat;
mod completion;

use serde_json::Value;

use crate::conversation::Conversation;
use crate::provider::{Provider, Refusal};
use crate::scenario::Sent;

/// Which form a path takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Anthropic's messages.
    Messages,
    /// Chat completions as OpenAI has them, with each provider's own ways.
    Chat,
    /// As `Chat`, always a stream: WatsonX has a path of its own for that.
    ChatStream,
    /// Mistral's fill-in-the-middle.
    Fill,
    /// WatsonX: a prompt goes in, text comes out.
    Generation,
    GenerationStream,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub model: String,
    pub stream: bool,
    /// A stream ends with its usage only when that was asked for.
    pub usage: bool,
    pub conversation: Conversation,
}

/// What is said, with identifiers that no other answer has.
#[derive(Debug)]
pub(crate) struct Answer {
    pub id: String,
    pub model: String,
    pub text: Option<String>,
    pub calls: Vec<(String, Sent)>,
    pub input_tokens: usize,
    pub output_tokens: usize,
    pub usage: bool,
}

/// One event of a stream as it is sent.
#[derive(Debug)]
pub(crate) struct Frame {
    pub bytes: String,
    /// Amid the arguments of a call.
    pub in_call: bool,
}

impl Frame {
    fn data(value: &Value) -> Self {
        Self {
            bytes: format!("data: {value}\n\n"),
            in_call: false,
        }
    }
}

impl Wire {
    /// Reads a request.
    ///
    /// # Errors
    /// Says what the real service would refuse.
    pub(crate) fn read(self, provider: Provider, body: &Value) -> Result<Request, Refusal> {
        let request = match self {
            Self::Messages => anthropic::read(body),
            Self::Chat => chat::read(provider, body),
            Self::ChatStream => chat::read(provider, body).map(|request| Request {
                stream: true,
                ..request
            }),
            Self::Fill => completion::read_fill(body),
            Self::Generation => completion::read_generation(body, false),
            Self::GenerationStream => completion::read_generation(body, true),
        }?;
        request.conversation.check()?;
        Ok(request)
    }

    pub(crate) fn json(self, provider: Provider, answer: &Answer) -> Value {
        match self {
            Self::Messages => anthropic::json(answer),
            Self::Chat | Self::ChatStream | Self::Fill => chat::json(provider, answer),
            Self::Generation | Self::GenerationStream => completion::json(answer),
        }
    }

    pub(crate) fn frames(self, provider: Provider, answer: &Answer) -> Vec<Frame> {
        match self {
            Self::Messages => anthropic::frames(answer),
            Self::Chat | Self::ChatStream | Self::Fill => chat::frames(provider, answer),
            Self::Generation | Self::GenerationStream => completion::frames(answer),
        }
    }

    /// An identifier for a call, of the form that the provider insists on.
    pub(crate) fn call_id(self, provider: Provider, number: u64) -> String {
        match (self, provider) {
            (Self::Messages, _) => format!("toolu_{number:024}"),
            (_, Provider::Mistral) => format!("c{number:08}"),
            (_, Provider::Watsonx) => format!("chatcmpl-tool-{number:032}"),
            _ => format!("call_{number:024}"),
        }
    }
}

/// Cuts a text for a stream: small pieces, or large ones where the text is large.
fn pieces(text: &str) -> Vec<&str> {
    let size = if text.len() > 100_000 { 65_536 } else { 12 };
    let mut rest = text;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let mut end = size.min(rest.len());
        while !rest.is_char_boundary(end) {
            end += 1;
        }
        let (piece, more) = rest.split_at(end);
        pieces.push(piece);
        rest = more;
    }
    pieces
}

/// A number that must be there and be at least 1.
fn at_least_one(body: &Value, key: &str) -> Result<(), Refusal> {
    match body[key].as_u64() {
        Some(1..) => Ok(()),
        _ => Err(Refusal::bad(format!(
            "{key}: a whole number of at least 1 is required"
        ))),
    }
}

fn text_of(body: &Value, key: &str) -> Result<String, Refusal> {
    body[key]
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Refusal::bad(format!("{key}: Field required")))
}

fn messages(body: &Value) -> Result<&Vec<Value>, Refusal> {
    body["messages"]
        .as_array()
        .filter(|messages| !messages.is_empty())
        .ok_or_else(|| Refusal::bad("messages: at least one message is required"))
}

fn flag(body: &Value, key: &str) -> Result<bool, Refusal> {
    match &body[key] {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(Refusal::bad(format!("{key}: must be true or false"))),
    }
}
