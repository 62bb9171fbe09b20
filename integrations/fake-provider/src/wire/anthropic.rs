//! Anthropic's messages: blocks of content, and streams whose events have names.

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Answer, Frame, Request, at_least_one, flag, messages, pieces, text_of};
use crate::conversation::{Conversation, Message, Tool};
use crate::provider::Refusal;

pub(super) fn read(body: &Value) -> Result<Request, Refusal> {
    let model = text_of(body, "model")?;
    at_least_one(body, "max_tokens")?;
    let mut conversation = Conversation {
        system: match &body["system"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            blocks => texts(blocks, "system")?,
        },
        ..Conversation::default()
    };
    for (index, message) in messages(body)?.iter().enumerate() {
        let at = format!("messages.{index}");
        match message["role"].as_str() {
            Some("user") => user(message, &at, &mut conversation)?,
            Some("assistant") if index > 0 => assistant(message, &at, &mut conversation)?,
            Some("assistant") => {
                return Err(Refusal::bad(
                    "messages: first message must use the \"user\" role",
                ));
            }
            role => {
                return Err(Refusal::bad(format!(
                    "{at}.role: {role:?} is neither \"user\" nor \"assistant\""
                )));
            }
        }
    }
    for tool in body["tools"].as_array().into_iter().flatten() {
        // Tools that the service runs itself have a type and no schema.
        if tool["type"].as_str().is_none_or(|kind| kind == "custom") {
            let tool = Tool::checked(&tool["name"], &tool["input_schema"], 128)?;
            conversation.tools.push(tool);
        }
    }
    Ok(Request {
        model,
        stream: flag(body, "stream")?,
        usage: true,
        conversation,
    })
}

fn texts(blocks: &Value, at: &str) -> Result<String, Refusal> {
    let blocks = blocks
        .as_array()
        .ok_or_else(|| Refusal::bad(format!("{at}: must be text or a list of blocks")))?;
    let mut all = String::new();
    for (index, block) in blocks.iter().enumerate() {
        all += text_block(block, &format!("{at}.{index}"))?;
    }
    Ok(all)
}

fn text_block<'a>(block: &'a Value, at: &str) -> Result<&'a str, Refusal> {
    match (block["type"].as_str(), block["text"].as_str()) {
        (Some("text"), Some("")) => Err(Refusal::bad(format!(
            "{at}: text content blocks must be non-empty"
        ))),
        (Some("text"), Some(text)) => Ok(text),
        _ => Err(Refusal::bad(format!(
            "{at}: a block of type \"text\" was expected"
        ))),
    }
}

fn user(message: &Value, at: &str, conversation: &mut Conversation) -> Result<(), Refusal> {
    if let Some(text) = message["content"].as_str() {
        if text.is_empty() {
            return Err(Refusal::bad(format!(
                "{at}: user messages must have non-empty content"
            )));
        }
        conversation.messages.push(Message::User(text.to_owned()));
        return Ok(());
    }
    let blocks = message["content"]
        .as_array()
        .filter(|blocks| !blocks.is_empty())
        .ok_or_else(|| Refusal::bad(format!("{at}.content: must be text or blocks")))?;
    let mut text = String::new();
    let mut results = false;
    for (index, block) in blocks.iter().enumerate() {
        let at = format!("{at}.content.{index}");
        match block["type"].as_str() {
            Some("tool_result") => {
                let id = text_of(block, "tool_use_id")?;
                conversation.push_result(id, result(&block["content"], &at)?);
                results = true;
            }
            Some("image") => image(block, &at)?,
            Some("document") => {}
            _ => text += text_block(block, &at)?,
        }
    }
    // Text beside results belongs to them.
    if !results {
        conversation.messages.push(Message::User(text));
    }
    Ok(())
}

fn result(content: &Value, at: &str) -> Result<String, Refusal> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let mut text = String::new();
            for block in blocks {
                if block["type"] == "image" {
                    image(block, at)?;
                } else {
                    text += text_block(block, at)?;
                }
            }
            Ok(text)
        }
        _ => Err(Refusal::bad(format!(
            "{at}.content: must be text or blocks"
        ))),
    }
}

fn image(block: &Value, at: &str) -> Result<(), Refusal> {
    let source = &block["source"];
    if source["type"] == "url" {
        return Ok(());
    }
    let kind = source["media_type"].as_str().unwrap_or_default();
    if !["image/png", "image/jpeg", "image/gif", "image/webp"].contains(&kind) {
        return Err(Refusal::bad(format!(
            "{at}: `{kind}` is no media type of an image"
        )));
    }
    let data = source["data"].as_str().unwrap_or_default();
    match base64::engine::general_purpose::STANDARD.decode(data) {
        Ok(bytes) if !bytes.is_empty() => Ok(()),
        _ => Err(Refusal::bad(format!(
            "{at}: the image's data is not base64"
        ))),
    }
}

fn assistant(message: &Value, at: &str, conversation: &mut Conversation) -> Result<(), Refusal> {
    let mut text = String::new();
    let mut calls = Vec::new();
    match &message["content"] {
        Value::String(content) => text.clone_from(content),
        Value::Array(blocks) => {
            for (index, block) in blocks.iter().enumerate() {
                let at = format!("{at}.content.{index}");
                match block["type"].as_str() {
                    Some("tool_use") => {
                        text_of(block, "name")?;
                        if !block["input"].is_object() {
                            return Err(Refusal::bad(format!("{at}.input: must be an object")));
                        }
                        calls.push(text_of(block, "id")?);
                    }
                    Some("thinking" | "redacted_thinking") => {}
                    _ => text += text_block(block, &at)?,
                }
            }
        }
        _ => {
            return Err(Refusal::bad(format!(
                "{at}.content: must be text or blocks"
            )));
        }
    }
    conversation
        .messages
        .push(Message::Assistant { text, calls });
    Ok(())
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.calls.is_empty() {
        "end_turn"
    } else {
        "tool_use"
    }
}

pub(super) fn json(answer: &Answer) -> Value {
    let mut content = Vec::new();
    if let Some(text) = &answer.text {
        content.push(json!({"type": "text", "text": text}));
    }
    for (id, call) in &answer.calls {
        // A body is one JSON text, so what is no JSON itself is handed over in the wrapping that the service has for it.
        let input = serde_json::from_str(&call.arguments)
            .unwrap_or_else(|_| json!({"INVALID_JSON": call.arguments}));
        content.push(json!({"type": "tool_use", "id": id, "name": call.name, "input": input}));
    }
    json!({
        "id": format!("msg_{}", answer.id),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop_reason(answer),
        "stop_sequence": null,
        "usage": {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens},
    })
}

pub(super) fn frames(answer: &Answer) -> Vec<Frame> {
    let event = |value: Value| Frame {
        bytes: format!(
            "event: {}\ndata: {value}\n\n",
            value["type"].as_str().unwrap_or_default()
        ),
        in_call: value["delta"]["type"] == "input_json_delta",
    };
    let mut frames = vec![
        event(json!({"type": "message_start", "message": {
            "id": format!("msg_{}", answer.id),
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": answer.input_tokens, "output_tokens": 1},
        }})),
        event(json!({"type": "ping"})),
    ];
    let mut block = |start: Value, deltas: Vec<Value>, index: usize| {
        frames.push(event(
            json!({"type": "content_block_start", "index": index, "content_block": start}),
        ));
        for delta in deltas {
            frames.push(event(
                json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ));
        }
        frames.push(event(json!({"type": "content_block_stop", "index": index})));
    };
    let mut index = 0;
    if let Some(text) = &answer.text {
        let deltas = pieces(text).into_iter();
        block(
            json!({"type": "text", "text": ""}),
            deltas
                .map(|text| json!({"type": "text_delta", "text": text}))
                .collect(),
            index,
        );
        index += 1;
    }
    for (id, call) in &answer.calls {
        // The service begins each call with an empty piece.
        let deltas = std::iter::once("").chain(pieces(&call.arguments));
        block(
            json!({"type": "tool_use", "id": id, "name": call.name, "input": {}}),
            deltas
                .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                .collect(),
            index,
        );
        index += 1;
    }
    frames.push(event(json!({
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason(answer), "stop_sequence": null},
        "usage": {"output_tokens": answer.output_tokens},
    })));
    frames.push(event(json!({"type": "message_stop"})));
    frames
}
