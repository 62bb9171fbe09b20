//! The routes, and what becomes of one request.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Form, Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::provider::{Provider, Refusal};
use crate::record::Records;
use crate::scenario::{Cut, Fault, Picked, Scenario, pick};
use crate::wire::{Answer, Frame, Wire};

/// Conversations with images are large.
const LARGEST_REQUEST: usize = 64 << 20;

/// What differs from the scenarios and behaviour that are built in.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further scenarios by name; they hide built-in ones.
    pub scenarios: BTreeMap<String, Scenario>,
}

struct Fake {
    scenarios: Mutex<BTreeMap<String, Scenario>>,
    records: Records,
    /// How often each request was refused, by a digest of it.
    refused: Mutex<HashMap<u64, u32>>,
    /// The bearer tokens that WatsonX's identity services gave out.
    tokens: Mutex<Vec<String>>,
    numbers: AtomicU64,
}

type Shared = State<Arc<Fake>>;

/// The whole service. It holds state of its own, so two routers know nothing of each other.
pub fn router(options: Options) -> Router {
    let fake = Arc::new(Fake {
        scenarios: Mutex::new(options.scenarios),
        records: Records::default(),
        refused: Mutex::default(),
        tokens: Mutex::default(),
        numbers: AtomicU64::new(1),
    });
    let mut router = Router::new()
        .route("/", get(about))
        .route("/_requests", get(requests).delete(forget))
        .route("/_scenarios/{name}", put(add_scenario))
        .fallback(any(nowhere));
    for provider in Provider::ALL {
        for &(path, wire) in routes(provider) {
            let handler = move |State(fake): Shared,
                                method: Method,
                                uri: Uri,
                                headers: HeaderMap,
                                body: Bytes| async move {
                fake.answer(provider, wire, (&method, &uri, &headers), &body)
                    .await
            };
            router = router.route(&format!("/{}{path}", provider.name()), post(handler));
        }
        let models = move || async move { Json(models(provider)) };
        let path = match provider {
            Provider::Groq => "/openai/v1/models",
            Provider::Fireworks => "/inference/v1/models",
            Provider::Watsonx => "/ml/v1/foundation_model_specs",
            _ => "/v1/models",
        };
        router = router.route(&format!("/{}{path}", provider.name()), get(models));
    }
    router
        .route("/watsonx/identity/token", post(cloud_token))
        .route("/watsonx/icp4d-api/v1/authorize", post(private_token))
        .route("/watsonx/v2/projects/{id}", get(project))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(fake)
}

fn routes(provider: Provider) -> &'static [(&'static str, Wire)] {
    match provider {
        Provider::Anthropic => &[("/v1/messages", Wire::Messages)],
        Provider::Mistral => &[
            ("/v1/chat/completions", Wire::Chat),
            ("/v1/fim/completions", Wire::Fill),
        ],
        Provider::Groq => &[("/openai/v1/chat/completions", Wire::Chat)],
        Provider::Fireworks => &[("/inference/v1/chat/completions", Wire::Chat)],
        Provider::Together | Provider::Compatible => &[("/v1/chat/completions", Wire::Chat)],
        Provider::Watsonx => &[
            ("/ml/v1/text/chat", Wire::Chat),
            ("/ml/v1/text/chat_stream", Wire::ChatStream),
            ("/ml/v1/text/generation", Wire::Generation),
            ("/ml/v1/text/generation_stream", Wire::GenerationStream),
        ],
    }
}

fn models(provider: Provider) -> Value {
    let all = provider.models().iter();
    match provider {
        Provider::Watsonx => {
            let resources: Vec<_> = all
                .map(|id| json!({"model_id": id, "label": id, "provider": "loopback", "source": "loopback",
                    "functions": [{"id": "text_generation"}, {"id": "text_chat"}], "lifecycle": [{"id": "available"}]}))
                .collect();
            json!({"total_count": resources.len(), "limit": 100, "first": {"href": ""}, "resources": resources})
        }
        Provider::Anthropic => json!({
            "data": all.map(|id| json!({"type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z"})).collect::<Vec<_>>(),
            "has_more": false, "first_id": null, "last_id": null,
        }),
        _ => json!({
            "object": "list",
            "data": all.map(|id| json!({"id": id, "object": "model", "created": 1_767_225_600, "owned_by": provider.name()})).collect::<Vec<_>>(),
        }),
    }
}

async fn about() -> Json<Value> {
    let paths = Provider::ALL.into_iter().flat_map(|provider| {
        routes(provider)
            .iter()
            .map(move |(path, _)| format!("/{}{path}", provider.name()))
    });
    Json(json!({"paths": paths.collect::<Vec<_>>(), "requests": "/_requests"}))
}

async fn requests(State(fake): Shared) -> Json<Vec<Value>> {
    Json(fake.records.list())
}

async fn forget(State(fake): Shared) -> StatusCode {
    fake.records.clear();
    StatusCode::NO_CONTENT
}

async fn add_scenario(
    State(fake): Shared,
    Path(name): Path<String>,
    Json(scenario): Json<Scenario>,
) -> StatusCode {
    lock(&fake.scenarios).insert(name, scenario);
    StatusCode::NO_CONTENT
}

async fn nowhere(State(fake): Shared, method: Method, uri: Uri) -> Response {
    let provider = Provider::of_path(uri.path());
    let refusal = Refusal::new(
        404,
        format!("{method} {} is no path of {}", uri.path(), provider.name()),
    );
    let record = json!({"provider": provider.name(), "method": method.as_str(), "path": uri.path(), "status": 404,
        "violation": refusal.message});
    fake.records.add(record, Value::Null, 0);
    fake.refusal(provider, &refusal)
}

/// IBM Cloud's identity service: a key becomes a token for an hour.
async fn cloud_token(State(fake): Shared, Form(form): Form<HashMap<String, String>>) -> Response {
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let key = field("apikey");
    let refusal = if field("grant_type") != "urn:ibm:params:oauth:grant-type:apikey" {
        Some("grant_type must be urn:ibm:params:oauth:grant-type:apikey")
    } else if key.is_empty() || key.starts_with("wrong") {
        Some("Provided API key could not be found.")
    } else {
        None
    };
    fake.note_token("/watsonx/identity/token", "apikey", refusal);
    match refusal {
        // This service has a shape of error of its own.
        Some(message) => (
            StatusCode::BAD_REQUEST,
            Json(json!({"errorCode": "BXNIM0415E", "errorMessage": message})),
        )
            .into_response(),
        None => Json(json!({
            "access_token": fake.token(),
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": 3600,
            "expiration": now() + 3600,
            "scope": "ibm openid",
        }))
        .into_response(),
    }
}

/// The identity service of an installation on one's own machines.
async fn private_token(State(fake): Shared, Json(body): Json<Value>) -> Response {
    let secret = body["api_key"]
        .as_str()
        .or(body["password"].as_str())
        .unwrap_or_default();
    let refusal = if body["username"].as_str().unwrap_or_default().is_empty() {
        Some("username is required")
    } else if secret.is_empty() || secret.starts_with("wrong") {
        Some("Invalid credentials.")
    } else {
        None
    };
    fake.note_token("/watsonx/icp4d-api/v1/authorize", "api_key", refusal);
    match refusal {
        Some(message) => (
            StatusCode::UNAUTHORIZED,
            Json(json!({"_messageCode_": "401", "message": message})),
        )
            .into_response(),
        None => Json(json!({"_messageCode_": "200", "message": "success", "token": fake.token()}))
            .into_response(),
    }
}

async fn project(Path(id): Path<String>) -> Json<Value> {
    Json(json!({
        "metadata": {"guid": id, "url": format!("/v2/projects/{id}"), "created_at": "2026-01-01T00:00:00.000Z"},
        "entity": {"name": "loopback", "storage": {"type": "assetfiles", "guid": id}, "compute": [], "scope": {"bss_account_id": "loopback"}},
    }))
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Nothing is done under these locks that could leave a map half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a request says who it is from, and the key itself.
fn credentials(headers: &HeaderMap) -> Option<(&'static str, &str)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(key) = text("x-api-key") {
        return Some(("x-api-key", key));
    }
    let authorization = text("authorization")?;
    match authorization.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => {
            Some(("bearer", key.trim()))
        }
        _ => Some(("unknown", "")),
    }
}

impl Fake {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn token(&self) -> String {
        let part = |value: Value| {
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
        };
        let claims = json!({"iss": "loopback", "sub": "tester", "iat": now(), "exp": now() + 3600, "jti": self.number()});
        let token = format!(
            "{}.{}.c2lnbmVk",
            part(json!({"alg": "HS256", "typ": "JWT"})),
            part(claims)
        );
        lock(&self.tokens).push(token.clone());
        token
    }

    fn note_token(&self, path: &str, scheme: &str, refusal: Option<&str>) {
        let record = json!({"provider": "watsonx", "method": "POST", "path": path, "auth": {"scheme": scheme},
            "status": if refusal.is_some() { 400 } else { 200 }, "violation": refusal});
        let number = self.records.add(record, Value::Null, 0);
        self.records.set(number, "finished", json!(true));
    }

    fn refusal(&self, provider: Provider, refusal: &Refusal) -> Response {
        let status =
            StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let id = format!("{:012}", self.number());
        let mut response = (status, Json(provider.error_body(refusal, &id))).into_response();
        if let Some(seconds) = refusal.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }

    fn check_key(&self, provider: Provider, headers: &HeaderMap) -> Result<(), Refusal> {
        let (scheme, key) = credentials(headers).ok_or_else(|| {
            Refusal::new(
                401,
                match provider {
                    Provider::Anthropic => "x-api-key header is required",
                    _ => "the header `Authorization: Bearer ...` is required",
                },
            )
        })?;
        let way = scheme == "bearer" || (provider == Provider::Anthropic && scheme == "x-api-key");
        if !way {
            return Err(Refusal::new(
                401,
                format!("{} does not take a key by `{scheme}`", provider.name()),
            ));
        }
        let good = match provider {
            Provider::Watsonx => lock(&self.tokens).iter().any(|token| token == key),
            _ => !key.is_empty() && !key.starts_with("wrong"),
        };
        if good {
            return Ok(());
        }
        Err(Refusal::new(
            401,
            match provider {
                Provider::Watsonx => "the token was not given out by the identity service",
                _ => "invalid key",
            },
        ))
    }

    async fn answer(
        self: &Arc<Self>,
        provider: Provider,
        wire: Wire,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        bytes: &Bytes,
    ) -> Response {
        let parsed: Result<Value, _> = serde_json::from_slice(bytes);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let record = json!({
            "provider": provider.name(),
            "method": method.as_str(),
            "path": uri.path(),
            "query": uri.query(),
            "auth": credentials(headers).map(|(scheme, _)| json!({"scheme": scheme})),
            "model": parsed.as_ref().ok().map(|body| if body["model_id"].is_string() { &body["model_id"] } else { &body["model"] }),
            "user_agent": text("user-agent"),
            "scenario": null,
            "turn": null,
            "status": null,
            "violation": null,
        });
        let body = parsed.as_ref().cloned().unwrap_or_default();
        let number = self.records.add(record, body, bytes.len());
        let refusal = match self
            .reply(provider, wire, uri, headers, parsed, number)
            .await
        {
            Ok(response) => return response,
            Err(refusal) => refusal,
        };
        self.records.set(number, "status", json!(refusal.status));
        self.records.set(number, "finished", json!(true));
        if !refusal.scripted {
            self.records
                .set(number, "violation", json!(refusal.message));
        }
        self.refusal(provider, &refusal)
    }

    async fn reply(
        self: &Arc<Self>,
        provider: Provider,
        wire: Wire,
        uri: &Uri,
        headers: &HeaderMap,
        body: serde_json::Result<Value>,
        number: u64,
    ) -> Result<Response, Refusal> {
        self.check_key(provider, headers)?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if provider == Provider::Anthropic && text("anthropic-version").is_none() {
            return Err(Refusal::bad("anthropic-version: header is required"));
        }
        if !text("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return Err(Refusal::bad("content-type: must be application/json"));
        }
        if provider == Provider::Watsonx {
            check_version(uri)?;
        }
        let body = body.map_err(|error| Refusal::bad(format!("the body is no JSON: {error}")))?;
        let request = wire.read(provider, &body)?;
        provider.check_model(&request.model)?;
        let usual = match wire {
            Wire::Fill => "fill",
            _ if request.conversation.tools.is_empty() => "fenced",
            _ => "tool-text",
        };
        let picked = pick(
            &request.conversation,
            text("x-scenario"),
            &request.model,
            usual,
            &lock(&self.scenarios),
        )?;
        self.records.set(number, "scenario", json!(picked.name));
        self.records.set(number, "turn", json!(picked.index));
        tokio::time::sleep(Duration::from_millis(picked.turn.delay_ms)).await;
        if let Some(fault) = &picked.turn.error {
            self.fault(fault, &picked, &body)?;
        }
        let said = picked.text();
        let sent = picked.calls(&request.conversation.tools)?;
        let length = said.as_ref().map_or(0, String::len)
            + sent.iter().map(|call| call.arguments.len()).sum::<usize>();
        let answer = Answer {
            id: format!("{:012}", self.number()),
            model: request.model.clone(),
            calls: sent
                .into_iter()
                .map(|call| (wire.call_id(provider, self.number()), call))
                .collect(),
            text: said,
            // About four bytes a token, as for English.
            input_tokens: request.conversation.len().div_ceil(4),
            output_tokens: length.div_ceil(4),
            usage: request.usage,
        };
        self.records.set(number, "status", json!(200));
        let streamed = request.stream;
        let frames = if streamed {
            wire.frames(provider, &answer)
        } else {
            vec![Frame {
                bytes: wire.json(provider, &answer).to_string(),
                in_call: true,
            }]
        };
        let kind = if streamed {
            "text/event-stream"
        } else {
            "application/json"
        };
        Ok((
            [(header::CONTENT_TYPE, kind)],
            Body::from_stream(sending(frames, &picked, Arc::clone(self), number)),
        )
            .into_response())
    }

    /// Refuses as the scenario says, unless this request was refused often enough.
    fn fault(&self, fault: &Fault, picked: &Picked, body: &Value) -> Result<(), Refusal> {
        if let Some(times) = fault.times {
            let mut hasher = DefaultHasher::new();
            (&picked.name, picked.index, body.to_string()).hash(&mut hasher);
            let mut refused = lock(&self.refused);
            let count = refused.entry(hasher.finish()).or_default();
            if *count >= times {
                // The next one of its kind finds it as it was.
                *count = 0;
                return Ok(());
            }
            *count += 1;
        }
        Err(Refusal {
            status: fault.status,
            message: fault
                .message
                .clone()
                .unwrap_or_else(|| format!("scenario `{}` answers {}", picked.name, fault.status)),
            retry_after: fault.retry_after,
            scripted: true,
        })
    }
}

fn check_version(uri: &Uri) -> Result<(), Refusal> {
    let query: HashMap<String, String> = Query::try_from_uri(uri)
        .map(|Query(query)| query)
        .unwrap_or_default();
    let date = query.get("version").map(String::as_str).unwrap_or_default();
    let parts: Vec<_> = date.split('-').map(str::len).collect();
    if parts == [4, 2, 2] && date.chars().all(|c| c.is_ascii_digit() || c == '-') {
        return Ok(());
    }
    Err(Refusal::bad(
        "version: the query needs a date as in version=2024-10-10",
    ))
}

/// The frames at their pace; an error of the stream makes the server break the connection off.
fn sending(
    frames: Vec<Frame>,
    picked: &Picked,
    fake: Arc<Fake>,
    number: u64,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + use<> {
    let pace = Duration::from_millis(picked.turn.pace_ms);
    let stop = match picked.turn.cut {
        None => None,
        Some(Cut::Middle) => Some(frames.len() / 2),
        // The third piece of the first call does not come.
        Some(Cut::Call) => frames
            .iter()
            .position(|frame| frame.in_call)
            .map(|first| first + 2),
    };
    let whole = frames.len() == 1;
    let state = (frames.into_iter().enumerate(), false);
    futures_util::stream::unfold(state, move |(mut frames, broken)| {
        let fake = Arc::clone(&fake);
        async move {
            if broken {
                // What was sent before is read first, and then the end is seen.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Some((
                    Err(io::Error::other("cut by the scenario")),
                    (Vec::new().into_iter().enumerate(), false),
                ));
            }
            let Some((index, frame)) = frames.next() else {
                fake.records.set(number, "finished", json!(true));
                return None;
            };
            if index > 0 {
                tokio::time::sleep(pace).await;
            }
            let mut bytes = frame.bytes.into_bytes();
            let mut broken = false;
            if stop.is_some_and(|stop| whole || index + 1 >= stop) {
                broken = true;
                if whole {
                    bytes.truncate(bytes.len() / 2);
                }
            }
            Some((Ok(Bytes::from(bytes)), (frames, broken)))
        }
    })
}
