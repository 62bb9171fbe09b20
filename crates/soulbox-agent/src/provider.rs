//! Who answers: seven services, reached through one crate, and what of their errors matters here.

use std::sync::Arc;
use std::time::Duration;

use genai::adapter::AdapterKind;
use genai::chat::ChatOptions;
use genai::resolver::{AuthData, Endpoint};
use genai::{ModelIden, ServiceTarget};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::converse::Tools;

/// Before the first byte of an answer, and between two.
const SILENCE: Duration = Duration::from_secs(120);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The version of WatsonX's API that these requests are written for.
const WATSONX_VERSION: &str = "2024-10-10";
/// A model is cut off there; Anthropic demands that one says it.
const LONGEST_ANSWER: u32 = 8192;

/// A service that has models.
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
    /// The loopback provider, in this very process.
    Demo,
}

/// What is known of a provider.
struct Facts {
    name: &'static str,
    adapter: AdapterKind,
    /// Where it is, unless somebody names another place.
    root: Option<&'static str>,
    /// What follows the root in the path of every request.
    prefix: &'static str,
    /// What is asked when no model is named.
    usual_model: Option<&'static str>,
}

/// How one is reached. The key is in no `Debug` output.
#[derive(Clone, Default)]
pub struct Access {
    pub key: String,
    /// The root of the service, where it is not the public one.
    pub base_url: Option<String>,
    /// WatsonX: the project that pays.
    pub project: Option<String>,
    /// WatsonX: where keys become tokens.
    pub identity_url: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

/// Why a model did not answer. No text of it has the key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{provider} needs {what}")]
    Incomplete {
        provider: &'static str,
        what: &'static str,
    },
    #[error("failed to prepare requests to {provider}: {cause}")]
    Prepare {
        provider: &'static str,
        cause: String,
    },
    #[error("{provider} answered {status}: {message}")]
    Refused {
        provider: &'static str,
        status: u16,
        message: String,
        /// What the service asked for.
        rest: Option<Duration>,
    },
    #[error("{provider} cannot be reached: {cause}")]
    Unreachable {
        provider: &'static str,
        cause: String,
    },
    #[error("the answer of {provider} broke off: {cause}")]
    BrokeOff {
        provider: &'static str,
        cause: String,
    },
}

impl ModelError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Unreachable { .. } | Self::BrokeOff { .. } => true,
            Self::Incomplete { .. } | Self::Prepare { .. } => false,
        }
    }
}

impl Provider {
    pub const ALL: [Self; 8] = [
        Self::Anthropic,
        Self::Mistral,
        Self::Groq,
        Self::Together,
        Self::Fireworks,
        Self::Watsonx,
        Self::Compatible,
        Self::Demo,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|provider| provider.name() == name)
    }

    fn facts(self) -> Facts {
        let facts = |name, adapter, root, prefix, usual_model| Facts {
            name,
            adapter,
            root,
            prefix,
            usual_model,
        };
        match self {
            Self::Anthropic => facts(
                "anthropic",
                AdapterKind::Anthropic,
                Some("https://api.anthropic.com"),
                "/v1/",
                Some("claude-sonnet-5"),
            ),
            Self::Mistral => facts(
                "mistral",
                AdapterKind::Mistral,
                Some("https://api.mistral.ai"),
                "/v1/",
                Some("codestral-2508"),
            ),
            Self::Groq => facts(
                "groq",
                AdapterKind::Groq,
                Some("https://api.groq.com"),
                "/openai/v1/",
                Some("openai/gpt-oss-120b"),
            ),
            Self::Together => facts(
                "together",
                AdapterKind::Together,
                Some("https://api.together.xyz"),
                "/v1/",
                Some("meta-llama/Llama-3.3-70B-Instruct-Turbo"),
            ),
            Self::Fireworks => facts(
                "fireworks",
                AdapterKind::Fireworks,
                Some("https://api.fireworks.ai"),
                "/inference/v1/",
                Some("accounts/fireworks/models/qwen2p5-coder-32b-instruct"),
            ),
            Self::Watsonx => facts(
                "watsonx",
                AdapterKind::OpenAI,
                Some("https://us-south.ml.cloud.ibm.com"),
                "/ml/v1/",
                Some("ibm/granite-4-h-small"),
            ),
            Self::Compatible => facts("compatible", AdapterKind::OpenAI, None, "/v1/", None),
            Self::Demo => facts("demo", AdapterKind::OpenAI, None, "/v1/", Some("demo")),
        }
    }
}

/// One model of one provider. Clones share their connections.
#[derive(Clone)]
pub struct Model {
    provider: Provider,
    name: String,
    access: Arc<Access>,
    root: String,
    http: reqwest::Client,
    client: genai::Client,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("provider", &self.provider)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// `Incomplete` and `Prepare`.
    pub fn new(
        provider: Provider,
        name: Option<String>,
        access: Access,
    ) -> Result<Self, ModelError> {
        let facts = provider.facts();
        let missing = |what| ModelError::Incomplete {
            provider: provider.name(),
            what,
        };
        if access.key.is_empty() {
            return Err(missing("a key"));
        }
        if provider == Provider::Watsonx && access.project.is_none() {
            return Err(missing("a project"));
        }
        let name = name
            .or_else(|| facts.usual_model.map(str::to_owned))
            .ok_or(missing("the name of a model"))?;
        let root = access
            .base_url
            .clone()
            .or_else(|| facts.root.map(str::to_owned))
            .ok_or(missing("the URL of the service"))?;
        // Some name the root and some the whole prefix.
        let root = root.trim_end_matches('/');
        let root = root
            .strip_suffix(facts.prefix.trim_end_matches('/'))
            .unwrap_or(root)
            .to_owned();
        // It stays as it is where the program has chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("soulbox/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| ModelError::Prepare {
                provider: provider.name(),
                cause: error.to_string(),
            })?;
        let client = genai::Client::builder()
            .with_reqwest(http.clone())
            .build()
            .map_err(|error| ModelError::Prepare {
                provider: provider.name(),
                cause: error.to_string(),
            })?;
        Ok(Self {
            provider,
            name,
            access: Arc::new(access),
            root,
            http,
            client,
        })
    }

    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is known to have no calls of tools: then code is looked for in its text.
    #[must_use]
    pub fn writes_fenced_code(&self) -> bool {
        let name = self.name.to_lowercase();
        name.contains("codestral") || name.contains("code-instruct") || name.contains("starcoder")
    }

    /// Whether it is known to take images where its code has drawn some.
    #[must_use]
    pub fn sees_charts(&self, tools: Tools) -> bool {
        let name = self.name.to_lowercase();
        let known = [
            "vision", "-vl", "llama-4", "pixtral", "gpt-4o", "gpt-4.1", "gpt-5",
        ];
        self.provider == Provider::Anthropic
            || self.takes_charts(tools) && known.iter().any(|part| name.contains(part))
    }

    /// Whether images can be sent at all: with Mistral, nobody may speak between the result of a call and the answer to it, and the
    /// crate's results are text.
    #[must_use]
    pub fn takes_charts(&self, tools: Tools) -> bool {
        self.provider != Provider::Mistral || tools == Tools::Fenced
    }

    /// Whether answers come in one piece: WatsonX's streams do not end as the crate expects it of OpenAI's.
    pub(crate) fn answers_whole(&self) -> bool {
        self.provider == Provider::Watsonx
    }

    pub(crate) fn client(&self) -> &genai::Client {
        &self.client
    }

    pub(crate) fn options(&self) -> ChatOptions {
        let options = ChatOptions::default()
            .with_capture_content(true)
            .with_capture_tool_calls(true)
            .with_capture_usage(true)
            .with_max_tokens(LONGEST_ANSWER);
        match self.provider {
            // The model has another name in the body, and somebody has to pay.
            Provider::Watsonx => options
                .with_extra_body(json!({"model_id": self.name, "project_id": self.access.project})),
            _ => options,
        }
    }

    /// Where a request goes and what it shows there.
    pub(crate) async fn target(&self) -> Result<ServiceTarget, ModelError> {
        let facts = self.provider.facts();
        let endpoint = format!("{}{}", self.root, facts.prefix);
        let auth = match self.provider {
            Provider::Watsonx => {
                let token = self.watsonx_token().await?;
                AuthData::RequestOverride {
                    url: format!("{endpoint}text/chat?version={WATSONX_VERSION}"),
                    headers: ("Authorization".to_owned(), format!("Bearer {token}")).into(),
                }
            }
            _ => AuthData::Key(self.access.key.clone()),
        };
        Ok(ServiceTarget {
            endpoint: Endpoint::from_owned(endpoint),
            auth,
            model: ModelIden::new(facts.adapter, self.name.as_str()),
        })
    }

    /// A token for an hour. One is fetched for each answer, which costs less than to find out that one is over.
    async fn watsonx_token(&self) -> Result<String, ModelError> {
        #[derive(Deserialize)]
        struct Token {
            access_token: String,
        }
        let url = self
            .access
            .identity_url
            .as_deref()
            .unwrap_or("https://iam.cloud.ibm.com/identity/token");
        let key = utf8_percent_encode(&self.access.key, NON_ALPHANUMERIC);
        let body =
            format!("grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey={key}");
        let provider = self.provider.name();
        let unreachable = |error: reqwest::Error| ModelError::Unreachable {
            provider,
            cause: error.without_url().to_string(),
        };
        let answer = self
            .http
            .post(url)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(body)
            .send()
            .await
            .map_err(unreachable)?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(unreachable)?;
        match serde_json::from_str::<Token>(&text) {
            Ok(token) if status == 200 => Ok(token.access_token),
            _ => Err(ModelError::Refused {
                provider,
                status,
                message: self.shown(&message_of(&text)),
                rest: None,
            }),
        }
    }

    /// Makes ours of the crate's errors.
    pub(crate) fn failed(&self, error: &genai::Error) -> ModelError {
        // A stream that was refused before it began comes wrapped.
        if let genai::Error::WebStream { error, .. } = error
            && let Some(inner) = error.downcast_ref::<genai::Error>()
        {
            return self.failed(inner);
        }
        let provider = self.provider.name();
        if let Some(status) = error.status() {
            let body = match error {
                genai::Error::HttpError { body, .. } => body.clone(),
                genai::Error::WebModelCall {
                    webc_error: genai::webc::Error::ResponseFailedStatus { body, .. },
                    ..
                } => body.clone(),
                other => other.to_string(),
            };
            let rest = error
                .headers()
                .and_then(|headers| {
                    headers
                        .get("retry-after")?
                        .to_str()
                        .ok()?
                        .trim()
                        .parse()
                        .ok()
                })
                .map(Duration::from_secs);
            return ModelError::Refused {
                provider,
                status: status.as_u16(),
                message: self.shown(&message_of(&body)),
                rest,
            };
        }
        let cause = self.shown(&error.to_string());
        match error {
            genai::Error::WebModelCall {
                webc_error: genai::webc::Error::Reqwest(error),
                ..
            } if error.is_connect() => ModelError::Unreachable { provider, cause },
            genai::Error::WebStream { error, .. }
                if error
                    .downcast_ref::<reqwest::Error>()
                    .is_some_and(reqwest::Error::is_connect) =>
            {
                ModelError::Unreachable { provider, cause }
            }
            _ => ModelError::BrokeOff { provider, cause },
        }
    }

    /// A text in one line, without the key, whoever put it in there.
    pub(crate) fn shown(&self, text: &str) -> String {
        let line = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        let line = line.replace(self.access.key.as_str(), "[key]");
        match line.char_indices().nth(500) {
            Some((at, _)) => format!("{}...", &line[..at]),
            None => line,
        }
    }
}

/// What a body that is an error says; each service has a shape of its own.
fn message_of(body: &str) -> String {
    let Ok(json) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    [
        &json["error"]["message"],
        &json["errors"][0]["message"],
        &json["errorMessage"],
        &json["message"],
        &json["detail"],
        &json["error"],
    ]
    .into_iter()
    .find_map(Value::as_str)
    .map_or_else(|| body.to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(provider: Provider, base_url: &str) -> Model {
        let access = Access {
            key: "canary".to_owned(),
            base_url: Some(base_url.to_owned()),
            project: Some("p".to_owned()),
            identity_url: None,
        };
        Model::new(provider, Some("m".to_owned()), access).unwrap()
    }

    #[test]
    fn a_root_and_a_whole_prefix_are_the_same() {
        for url in [
            "http://x/groq",
            "http://x/groq/",
            "http://x/groq/openai/v1",
            "http://x/groq/openai/v1/",
        ] {
            assert_eq!(model(Provider::Groq, url).root, "http://x/groq", "{url}");
        }
    }

    #[test]
    fn messages_are_found_in_every_shape() {
        for body in [
            r#"{"type":"error","error":{"type":"t","message":"no"}}"#,
            r#"{"errors":[{"code":"c","message":"no"}],"status_code":400}"#,
            r#"{"object":"error","message":"no"}"#,
            "no",
        ] {
            assert_eq!(message_of(body), "no", "{body}");
        }
    }

    #[test]
    fn no_text_and_no_debug_output_has_the_key() {
        let model = model(Provider::Anthropic, "http://x");
        assert_eq!(model.shown("bad key\n  canary!"), "bad key [key]!");
        assert!(!format!("{model:?} {:?}", model.access).contains("canary"));
    }

    #[test]
    fn every_service_has_its_double_on_loopback() {
        let doubles = soulbox_fake_provider::Provider::ALL.map(|double| double.name());
        let real = Provider::ALL.map(Provider::name);
        assert_eq!(real.split_last(), Some((&"demo", &doubles[..])));
    }

    #[test]
    fn who_sees_charts() {
        let sees = |provider, name: &str, tools| {
            let access = Access {
                key: "k".to_owned(),
                base_url: Some("http://x".to_owned()),
                ..Access::default()
            };
            Model::new(provider, Some(name.to_owned()), access)
                .unwrap()
                .sees_charts(tools)
        };
        assert!(sees(Provider::Anthropic, "claude-sonnet-5", Tools::Called));
        assert!(sees(
            Provider::Together,
            "meta-llama/Llama-4-Scout",
            Tools::Called
        ));
        assert!(!sees(Provider::Groq, "openai/gpt-oss-120b", Tools::Called));
        assert!(!sees(Provider::Mistral, "pixtral-12b", Tools::Called));
        assert!(sees(Provider::Mistral, "pixtral-12b", Tools::Fenced));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Model::new(Provider::Compatible, None, Access::default()).unwrap_err();
        assert_eq!(error.to_string(), "compatible needs a key");
    }
}
