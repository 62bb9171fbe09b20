//! The providers: where each listens, how it is asked who one is, which names of models it has, and how it says no.

use serde_json::{Value, json};

/// Whose wire a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    Anthropic,
    Mistral,
    Groq,
    Together,
    Fireworks,
    Watsonx,
    /// Any server that speaks OpenAI's chat completions.
    Compatible,
}

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub status: u16,
    pub message: String,
    pub retry_after: Option<u64>,
    /// A scenario asked for it; otherwise the request is at fault.
    pub scripted: bool,
}

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
            scripted: false,
        }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }
}

impl Provider {
    pub const ALL: [Self; 7] = [
        Self::Anthropic,
        Self::Mistral,
        Self::Groq,
        Self::Together,
        Self::Fireworks,
        Self::Watsonx,
        Self::Compatible,
    ];

    /// Its name, which is also the first part of its paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Mistral => "mistral",
            Self::Groq => "groq",
            Self::Together => "together",
            Self::Fireworks => "fireworks",
            Self::Watsonx => "watsonx",
            Self::Compatible => "compatible",
        }
    }

    /// The provider whose path this is.
    pub(crate) fn of_path(path: &str) -> Self {
        let first = path.trim_start_matches('/').split('/').next();
        Self::ALL
            .into_iter()
            .find(|provider| first == Some(provider.name()))
            .unwrap_or(Self::Compatible)
    }

    /// Models that `/models` lists.
    pub(crate) fn models(self) -> &'static [&'static str] {
        match self {
            Self::Anthropic => &["claude-sonnet-5", "claude-haiku-4-5"],
            Self::Mistral => &["codestral-2508", "mistral-large-latest"],
            Self::Groq => &["openai/gpt-oss-120b", "llama-3.3-70b-versatile"],
            Self::Together => &["meta-llama/Llama-3.3-70B-Instruct-Turbo"],
            Self::Fireworks => &["accounts/fireworks/models/qwen2p5-coder-32b-instruct"],
            Self::Watsonx => &["ibm/granite-34b-code-instruct", "ibm/granite-4-h-small"],
            Self::Compatible => &["demo"],
        }
    }

    /// Whether a model of this name could be this provider's. Names with `fake-` choose a scenario and are everybody's.
    pub(crate) fn check_model(self, model: &str) -> Result<(), Refusal> {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| model.starts_with(prefix));
        let known = model.contains("fake-")
            || match self {
                Self::Anthropic => starts(&["claude-"]),
                Self::Mistral => starts(&[
                    "codestral",
                    "devstral",
                    "ministral",
                    "magistral",
                    "mistral",
                    "pixtral",
                    "open-",
                ]),
                Self::Groq => starts(&[
                    "openai/",
                    "llama",
                    "meta-llama/",
                    "qwen/",
                    "moonshotai/",
                    "deepseek",
                    "gemma",
                ]),
                Self::Together => {
                    matches!(model.split_once('/'), Some((owner, name)) if !owner.is_empty() && !name.is_empty())
                }
                Self::Fireworks => starts(&["accounts/"]) && model.contains("/models/"),
                Self::Watsonx => starts(&["ibm/", "meta-llama/", "mistralai/", "openai/"]),
                Self::Compatible => !model.is_empty(),
            };
        if known {
            return Ok(());
        }
        Err(Refusal::new(
            404,
            format!("model `{model}` is not one of {}", self.name()),
        ))
    }

    /// The body of a refusal, as this provider shapes it.
    pub(crate) fn error_body(self, refusal: &Refusal, id: &str) -> Value {
        let Refusal {
            status, message, ..
        } = refusal;
        match self {
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": match status {
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    413 => "request_too_large",
                    429 => "rate_limit_error",
                    529 => "overloaded_error",
                    500..=599 => "api_error",
                    _ => "invalid_request_error",
                }, "message": message},
                "request_id": format!("req_{id}"),
            }),
            Self::Mistral => json!({
                "object": "error",
                "message": message,
                "type": Self::kind(*status),
                "param": null,
                "code": status.to_string(),
                "raw_status_code": status,
            }),
            Self::Watsonx => json!({
                "trace": id,
                "errors": [{"code": match status {
                    401 => "authentication_token_not_valid",
                    404 => "model_not_supported",
                    429 => "too_many_requests",
                    500..=599 => "internal_error",
                    _ => "invalid_request_entity",
                }, "message": message, "more_info": "see the README of the loopback provider"}],
                "status_code": status,
            }),
            Self::Together => json!({
                "id": id,
                "error": {"message": message, "type": Self::kind(*status), "param": null, "code": null},
            }),
            Self::Fireworks => json!({
                "error": {"object": "error", "type": Self::kind(*status), "code": Self::kind(*status), "message": message},
            }),
            Self::Groq | Self::Compatible => json!({
                "error": {"message": message, "type": Self::kind(*status), "code": match status {
                    401 => "invalid_api_key",
                    404 => "model_not_found",
                    429 => "rate_limit_exceeded",
                    _ => Self::kind(*status),
                }},
            }),
        }
    }

    fn kind(status: u16) -> &'static str {
        match status {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }
}
