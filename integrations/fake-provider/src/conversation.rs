//! A request without its wire: who said what, which tools there are, and the rules that every provider has for that.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::provider::Refusal;

#[derive(Debug, Default)]
pub(crate) struct Conversation {
    pub system: String,
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
}

#[derive(Debug)]
pub(crate) enum Message {
    User(String),
    Assistant {
        text: String,
        /// The identifiers of its calls.
        calls: Vec<String>,
    },
    /// What the calls of the message before came to, by identifier.
    Results(Vec<(String, String)>),
}

#[derive(Debug)]
pub(crate) struct Tool {
    pub name: String,
    pub parameters: Value,
}

impl Tool {
    /// # Errors
    /// Says which part of the description no provider takes.
    pub(crate) fn checked(
        name: &Value,
        parameters: &Value,
        longest: usize,
    ) -> Result<Self, Refusal> {
        let name = name
            .as_str()
            .ok_or_else(|| Refusal::bad("a tool has no `name`"))?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > longest || !name.chars().all(fits) {
            return Err(Refusal::bad(format!(
                "the tool name `{name}` is not 1 to {longest} letters, digits, `_` or `-`"
            )));
        }
        if parameters["type"] != "object" {
            return Err(Refusal::bad(format!(
                "the schema of tool `{name}` must have \"type\": \"object\""
            )));
        }
        let properties = match &parameters["properties"] {
            Value::Null => None,
            Value::Object(properties) => Some(properties),
            _ => {
                return Err(Refusal::bad(format!(
                    "`properties` of tool `{name}` is no object"
                )));
            }
        };
        for (property, schema) in properties.into_iter().flatten() {
            let described = ["type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"];
            // An empty schema allows anything and is valid.
            let said = schema.as_object().is_some_and(|schema| {
                schema.is_empty() || described.iter().any(|key| schema.contains_key(*key))
            });
            if !said && *schema != Value::Bool(true) {
                return Err(Refusal::bad(format!(
                    "property `{property}` of tool `{name}` has no type"
                )));
            }
        }
        for required in parameters["required"].as_array().into_iter().flatten() {
            let there = required
                .as_str()
                .is_some_and(|key| properties.is_some_and(|all| all.contains_key(key)));
            if !there {
                return Err(Refusal::bad(format!(
                    "tool `{name}` requires {required}, which is not among its properties"
                )));
            }
        }
        Ok(Self {
            name: name.to_owned(),
            parameters: parameters.clone(),
        })
    }
}

impl Conversation {
    /// The rules that all wires share.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let mut names = BTreeSet::new();
        for tool in &self.tools {
            if !names.insert(&tool.name) {
                return Err(Refusal::bad(format!(
                    "two tools are called `{}`",
                    tool.name
                )));
            }
        }
        let mut open: BTreeSet<&str> = BTreeSet::new();
        for (index, message) in self.messages.iter().enumerate() {
            if let Message::Results(results) = message {
                for (id, _) in results {
                    if !open.remove(id.as_str()) {
                        return Err(Refusal::bad(format!(
                            "the tool result for `{id}` answers no call of the message before it"
                        )));
                    }
                }
            }
            if !open.is_empty() {
                return Err(Refusal::bad(format!(
                    "messages.{index}: calls without a result right after them: {}",
                    open.iter().copied().collect::<Vec<_>>().join(", ")
                )));
            }
            if let Message::Assistant { calls, .. } = message {
                open.extend(calls.iter().map(String::as_str));
            }
        }
        if !open.is_empty() {
            return Err(Refusal::bad(format!(
                "the last message has calls without a result: {}",
                open.iter().copied().collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(())
    }

    pub(crate) fn push_result(&mut self, id: String, text: String) {
        if let Some(Message::Results(results)) = self.messages.last_mut() {
            results.push((id, text));
        } else {
            self.messages.push(Message::Results(vec![(id, text)]));
        }
    }

    /// What the tools answered last, or what a program said of the code that it had found.
    pub(crate) fn last_result(&self) -> String {
        self.messages
            .iter()
            .rev()
            .find_map(|message| match message {
                Message::Results(results) => Some(
                    results
                        .iter()
                        .map(|(_, text)| text.as_str())
                        .collect::<Vec<_>>()
                        .join("\n"),
                ),
                Message::User(text) => Some(text.clone()),
                Message::Assistant { .. } => None,
            })
            .unwrap_or_default()
    }

    /// How many bytes were sent, for the usage.
    pub(crate) fn len(&self) -> usize {
        let messages = self.messages.iter().map(|message| match message {
            Message::User(text) | Message::Assistant { text, .. } => text.len(),
            Message::Results(results) => results.iter().map(|(_, text)| text.len()).sum(),
        });
        self.system.len() + messages.sum::<usize>()
    }
}

/// The fenced blocks of a text, with the word behind the fence.
pub(crate) fn fenced(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        let trimmed = line.trim_end();
        match (&mut open, trimmed.strip_prefix("```")) {
            (None, Some(word)) => open = Some((word.trim().to_lowercase(), String::new())),
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some((_, code)), _) => {
                code.push_str(line);
                code.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}
