//! Chat completions: the form that OpenAI began and the other five have, each with rules of its own.

use serde_json::{Value, json};

use super::{Answer, Frame, Request, flag, messages, pieces, text_of};
use crate::conversation::{Conversation, Message, Tool};
use crate::provider::{Provider, Refusal};

pub(super) fn read(provider: Provider, body: &Value) -> Result<Request, Refusal> {
    let watsonx = provider == Provider::Watsonx;
    let model = text_of(body, if watsonx { "model_id" } else { "model" })?;
    if watsonx
        && body["project_id"]
            .as_str()
            .or(body["space_id"].as_str())
            .is_none()
    {
        return Err(Refusal::bad(
            "either `project_id` or `space_id` is required",
        ));
    }
    let mut conversation = Conversation::default();
    for (index, message) in messages(body)?.iter().enumerate() {
        one(
            provider,
            message,
            &format!("messages.{index}"),
            &mut conversation,
        )?;
    }
    // Mistral answers users and tools only.
    let last = messages(body)?.last();
    if provider == Provider::Mistral
        && last.is_some_and(|last| last["role"] == "assistant" && last["prefix"] != true)
    {
        return Err(Refusal::bad(
            "Expected last role User or Tool (or Assistant with prefix True) for serving",
        ));
    }
    let tools = match &body["tools"] {
        Value::Null => &Vec::new(),
        Value::Array(tools) => tools,
        _ => return Err(Refusal::bad("tools: must be a list")),
    };
    for (index, tool) in tools.iter().enumerate() {
        if tool["type"] != "function" {
            return Err(Refusal::bad(format!(
                "tools.{index}.type: must be \"function\""
            )));
        }
        let function = &tool["function"];
        let tool = Tool::checked(&function["name"], &function["parameters"], 64)?;
        conversation.tools.push(tool);
    }
    let stream = flag(body, "stream")?;
    if !body["stream_options"].is_null() && !stream {
        return Err(Refusal::bad(
            "stream_options: only allowed with \"stream\": true",
        ));
    }
    let asked = body["stream_options"]["include_usage"] == true;
    Ok(Request {
        model,
        stream,
        // The others always tell it.
        usage: asked || !matches!(provider, Provider::Groq | Provider::Compatible),
        conversation,
    })
}

fn one(
    provider: Provider,
    message: &Value,
    at: &str,
    conversation: &mut Conversation,
) -> Result<(), Refusal> {
    match message["role"].as_str() {
        Some("system") => conversation.system += &content(&message["content"], at)?,
        Some("developer") if matches!(provider, Provider::Groq | Provider::Compatible) => {
            conversation.system += &content(&message["content"], at)?;
        }
        Some("user") => {
            let after_tool = matches!(conversation.messages.last(), Some(Message::Results(_)));
            if provider == Provider::Mistral && after_tool {
                return Err(Refusal::bad("Unexpected role 'user' after role 'tool'"));
            }
            let text = content(&message["content"], at)?;
            conversation.messages.push(Message::User(text));
        }
        Some("assistant") => {
            let mut calls = Vec::new();
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                let id = text_of(call, "id")?;
                if provider == Provider::Mistral
                    && !(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()))
                {
                    return Err(Refusal::bad(format!(
                        "Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9."
                    )));
                }
                text_of(&call["function"], "name")?;
                if !call["function"]["arguments"].is_string() {
                    return Err(Refusal::bad(format!(
                        "{at}.tool_calls: `arguments` must be a string of JSON"
                    )));
                }
                calls.push(id);
            }
            let text = match &message["content"] {
                Value::Null if calls.is_empty() => {
                    return Err(Refusal::bad(format!(
                        "{at}: neither content nor tool_calls"
                    )));
                }
                Value::Null => String::new(),
                other => content(other, at)?,
            };
            conversation
                .messages
                .push(Message::Assistant { text, calls });
        }
        Some("tool") => {
            let id = text_of(message, "tool_call_id")?;
            let text = content(&message["content"], at)?;
            conversation.push_result(id, text);
        }
        role => {
            return Err(Refusal::bad(format!(
                "{at}.role: {role:?} is not known here"
            )));
        }
    }
    Ok(())
}

fn content(content: &Value, at: &str) -> Result<String, Refusal> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => {
            return Err(Refusal::bad(format!(
                "{at}.content: must be text or a list of parts"
            )));
        }
    };
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let at = format!("{at}.content.{index}");
        match part["type"].as_str() {
            Some("text") => {
                text += part["text"]
                    .as_str()
                    .ok_or_else(|| Refusal::bad(format!("{at}: no text")))?
            }
            Some("image_url") => {
                // Mistral takes the address itself as well.
                let image = &part["image_url"];
                let url = image.as_str().or(image["url"].as_str()).unwrap_or_default();
                if !(url.starts_with("data:image/")
                    || url.starts_with("https://")
                    || url.starts_with("http://"))
                {
                    return Err(Refusal::bad(format!(
                        "{at}: `image_url` is neither a data URL nor an address"
                    )));
                }
            }
            kind => {
                return Err(Refusal::bad(format!(
                    "{at}.type: {kind:?} is not known here"
                )));
            }
        }
    }
    Ok(text)
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.calls.is_empty() {
        "stop"
    } else {
        "tool_calls"
    }
}

fn usage(answer: &Answer) -> Value {
    json!({
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    })
}

fn envelope(provider: Provider, answer: &Answer, object: &str, choices: Value) -> Value {
    let mut envelope = json!({
        "id": format!("chatcmpl-{}", answer.id),
        "object": object,
        // A fixed time: nothing depends on it, and answers stay the same from run to run.
        "created": 1_767_225_600,
        "model": answer.model,
        "choices": choices,
    });
    if provider == Provider::Watsonx {
        envelope["model_id"] = json!(answer.model);
        envelope["created_at"] = json!("2026-01-01T00:00:00.000Z");
    }
    envelope
}

pub(super) fn json(provider: Provider, answer: &Answer) -> Value {
    // Mistral has a text always, be it empty.
    let empty = (provider == Provider::Mistral).then(String::new);
    let mut message = json!({"role": "assistant", "content": answer.text.clone().or(empty)});
    if !answer.calls.is_empty() {
        let calls = answer.calls.iter().enumerate().map(|(index, (id, call))| {
            json!({"id": id, "index": index, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        });
        message["tool_calls"] = calls.collect();
    }
    let choices = json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(answer)}]);
    let mut body = envelope(provider, answer, "chat.completion", choices);
    body["usage"] = usage(answer);
    body
}

pub(super) fn frames(provider: Provider, answer: &Answer) -> Vec<Frame> {
    let mut number = 0;
    let mut chunk = |choices: Value, last: bool, in_call: bool| {
        let mut body = envelope(provider, answer, "chat.completion.chunk", choices);
        if last && answer.usage {
            body["usage"] = usage(answer);
        }
        // Groq has a place of its own for it as well, in the chunk that ends the answer.
        if provider == Provider::Groq && body["choices"][0]["finish_reason"].is_string() {
            body["x_groq"] = json!({"id": answer.id, "usage": usage(answer)});
        }
        number += 1;
        let mut frame = Frame::data(&body);
        // WatsonX numbers its events and names them.
        if provider == Provider::Watsonx {
            frame.bytes = format!("id: {number}\nevent: message\n{}", frame.bytes);
        }
        frame.in_call = in_call;
        frame
    };
    let delta = |delta: Value| json!([{"index": 0, "delta": delta, "finish_reason": null}]);
    let mut frames = vec![chunk(
        delta(json!({"role": "assistant", "content": ""})),
        false,
        false,
    )];
    for piece in pieces(answer.text.as_deref().unwrap_or_default()) {
        frames.push(chunk(delta(json!({"content": piece})), false, false));
    }
    let call = |index: usize, id: Option<&str>, name: Option<&str>, arguments: &str| {
        let mut function = json!({"arguments": arguments});
        if let Some(name) = name {
            function["name"] = json!(name);
        }
        let mut call = json!({"index": index, "function": function});
        if let Some(id) = id {
            call["id"] = json!(id);
            call["type"] = json!("function");
        }
        delta(json!({"tool_calls": [call]}))
    };
    for (index, (id, sent)) in answer.calls.iter().enumerate() {
        if provider == Provider::Mistral {
            // Mistral sends each call whole.
            frames.push(chunk(
                call(index, Some(id), Some(&sent.name), &sent.arguments),
                false,
                true,
            ));
            continue;
        }
        frames.push(chunk(
            call(index, Some(id), Some(&sent.name), ""),
            false,
            true,
        ));
        for piece in pieces(&sent.arguments) {
            frames.push(chunk(call(index, None, None, piece), false, true));
        }
    }
    let end = json!([{"index": 0, "delta": {}, "finish_reason": finish_reason(answer)}]);
    // OpenAI's own form, which Groq has too, tells the usage after the end and without a choice.
    if matches!(provider, Provider::Groq | Provider::Compatible) {
        frames.push(chunk(end, false, false));
        if answer.usage {
            frames.push(chunk(json!([]), true, false));
        }
    } else {
        frames.push(chunk(end, true, false));
    }
    if provider != Provider::Watsonx {
        frames.push(Frame {
            bytes: "data: [DONE]\n\n".to_owned(),
            in_call: false,
        });
    }
    frames
}
