//! Text in, text out: Mistral's fill-in-the-middle and WatsonX's generation.

use serde_json::{Value, json};

use super::{Answer, Frame, Request, flag, pieces, text_of};
use crate::conversation::{Conversation, Message};
use crate::provider::Refusal;

/// What Granite's prompts begin an answer with.
const ASSISTANT: &str = "<|start_of_role|>assistant<|end_of_role|>";

pub(super) fn read_fill(body: &Value) -> Result<Request, Refusal> {
    let model = text_of(body, "model")?;
    if !(model.starts_with("codestral") || model.contains("fake-")) {
        return Err(Refusal::bad(format!(
            "model `{model}` does not fill in the middle, codestral does"
        )));
    }
    let prompt = body["prompt"]
        .as_str()
        .ok_or_else(|| Refusal::bad("prompt: Field required"))?;
    if !(body["suffix"].is_null() || body["suffix"].is_string()) {
        return Err(Refusal::bad("suffix: must be text"));
    }
    Ok(request(
        model,
        flag(body, "stream")?,
        vec![Message::User(prompt.to_owned())],
    ))
}

pub(super) fn read_generation(body: &Value, stream: bool) -> Result<Request, Refusal> {
    let model = text_of(body, "model_id")?;
    if body["project_id"]
        .as_str()
        .or(body["space_id"].as_str())
        .is_none()
    {
        return Err(Refusal::bad(
            "either `project_id` or `space_id` is required",
        ));
    }
    let input = text_of(body, "input")?;
    let parameters = &body["parameters"];
    if !(parameters.is_null() || parameters.is_object()) {
        return Err(Refusal::bad("parameters: must be an object"));
    }
    let most = &parameters["max_new_tokens"];
    if !(most.is_null() || most.as_u64().is_some_and(|most| most > 0)) {
        return Err(Refusal::bad(
            "parameters.max_new_tokens: must be a whole number above 0",
        ));
    }
    // Where the prompt is Granite's own, earlier answers can be told from requests.
    let mut messages = Vec::new();
    for (index, part) in input.split(ASSISTANT).enumerate() {
        let (answer, rest) = match part.split_once("<|end_of_text|>") {
            Some((answer, rest)) if index > 0 => (answer, rest),
            _ => ("", part),
        };
        if index > 0 && !answer.is_empty() {
            messages.push(Message::Assistant {
                text: answer.to_owned(),
                calls: Vec::new(),
            });
        }
        if !rest.trim().is_empty() {
            messages.push(Message::User(rest.to_owned()));
        }
    }
    Ok(request(model, stream, messages))
}

fn request(model: String, stream: bool, messages: Vec<Message>) -> Request {
    Request {
        model,
        stream,
        usage: true,
        conversation: Conversation {
            messages,
            ..Conversation::default()
        },
    }
}

fn body(answer: &Answer, text: &str, stop: &str) -> Value {
    json!({
        "model_id": answer.model,
        "created_at": "2026-01-01T00:00:00.000Z",
        "results": [{
            "generated_text": text,
            "generated_token_count": answer.output_tokens,
            "input_token_count": answer.input_tokens,
            "stop_reason": stop,
        }],
    })
}

pub(super) fn json(answer: &Answer) -> Value {
    body(
        answer,
        answer.text.as_deref().unwrap_or_default(),
        "eos_token",
    )
}

pub(super) fn frames(answer: &Answer) -> Vec<Frame> {
    let pieces = pieces(answer.text.as_deref().unwrap_or_default());
    let said = pieces.iter().map(|piece| (*piece, "not_finished"));
    said.chain(std::iter::once(("", "eos_token")))
        .enumerate()
        .map(|(index, (text, stop))| {
            let mut frame = Frame::data(&body(answer, text, stop));
            frame.bytes = format!("id: {}\nevent: message\n{}", index + 1, frame.bytes);
            frame
        })
        .collect()
}
