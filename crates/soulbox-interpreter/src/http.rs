//! Routes: translate requests, ask [`Contexts`], translate answers.
//!
//! Errors are plain text, and those of a body's shape are JSON that names the field, as clients of this port know it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, ORIGIN,
};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::context::{Context, Execution, Refusal};
use crate::contexts::{ContextError, Contexts};
use crate::language::Language;
use crate::message::Line;

/// Silence after which a line says that the execution goes on.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Lines on their way to a client; the kernel waits when there are more.
const LINES: usize = 16;
/// Code is held in memory, here and in the kernel.
const LARGEST_BODY: usize = 64 << 20;

/// An answer that is no success.
#[derive(Debug)]
enum HttpError {
    Text(StatusCode, String),
    /// The body does not have the shape that it should.
    Shape(Value),
}

impl HttpError {
    fn field(kind: &str, field: &str, message: &str, input: &Value) -> Self {
        Self::Shape(json!({"type": kind, "loc": ["body", field], "msg": message, "input": input}))
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        match self {
            Self::Text(status, text) => (status, text).into_response(),
            Self::Shape(detail) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                Json(json!({"detail": [detail]})),
            )
                .into_response(),
        }
    }
}

struct Json(Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// All routes. `contexts` may still be preparing: requests wait for it.
pub fn router(contexts: Arc<Contexts>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/execute", post(execute))
        .route("/contexts", get(list).post(create))
        .route("/contexts/{id}", axum::routing::delete(remove))
        .route("/contexts/{id}/restart", post(restart))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({"detail": "Not Found"}))) })
        .method_not_allowed_fallback(|| async {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                Json(json!({"detail": "Method Not Allowed"})),
            )
        })
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(any_origin))
        .with_state(contexts)
}

/// Pages of any origin may call: what protects the port is the ingress, not the browser.
async fn any_origin(request: Request, next: Next) -> Response {
    const ANY: HeaderValue = HeaderValue::from_static("*");
    let headers = request.headers();
    if !headers.contains_key(ORIGIN) {
        return next.run(request).await;
    }
    let preflight =
        request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut response = StatusCode::OK.into_response();
        let allowed = response.headers_mut();
        allowed.insert(
            ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        );
        allowed.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(ANY));
        response
    } else {
        next.run(request).await
    };
    response
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    response
}

async fn health(State(contexts): State<Arc<Contexts>>) -> Json {
    contexts.prepared().await;
    Json(json!("OK"))
}

async fn execute(
    State(contexts): State<Arc<Contexts>>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, HttpError> {
    let body = object(body)?;
    let Some(code) = body.get("code") else {
        return Err(HttpError::field("missing", "code", "Field required", &body));
    };
    let code = text(&body, "code")?
        .ok_or_else(|| {
            HttpError::field(
                "string_type",
                "code",
                "Input should be a valid string",
                code,
            )
        })?
        .to_owned();
    let (context_id, language) = (text(&body, "context_id")?, text(&body, "language")?);
    let variables = variables(&body)?;
    contexts.prepared().await;
    let context = match (
        context_id.filter(|id| !id.is_empty()),
        language.filter(|name| !name.is_empty()),
    ) {
        (Some(_), Some(_)) => {
            return Err(HttpError::Text(
                StatusCode::BAD_REQUEST,
                "Only one of context_id or language can be provided".to_owned(),
            ));
        }
        (Some(id), None) => contexts.find(id).map_err(answer)?,
        (None, language) => {
            let language = Language::named(language).map_err(|error| answer(error.into()))?;
            contexts.of_language(language).await.map_err(answer)?
        }
    };
    refuse_unspeakable(&context, &code, &variables)?;
    contexts.use_for_code(&context).await.map_err(answer)?;
    let (lines, answers) = mpsc::channel(LINES);
    context
        .execute(Execution {
            code,
            variables,
            lines,
        })
        .map_err(|refusal| match refusal {
            Refusal::Full => HttpError::Text(
                StatusCode::TOO_MANY_REQUESTS,
                format!("Context {} has too many waiting executions", context.id),
            ),
            Refusal::Removed => answer(ContextError::NotFound(context.id.clone())),
        })?;
    Ok(Response::new(Body::from_stream(with_keepalives(answers))))
}

/// NUL ends a variable in every language, and code in some.
fn refuse_unspeakable(
    context: &Context,
    code: &str,
    variables: &BTreeMap<String, String>,
) -> Result<(), HttpError> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(HttpError::field(
                "value_error",
                "env_vars",
                "a name must not be empty nor contain `=`, and neither it nor its value a NUL",
                &json!(name),
            ));
        }
    }
    if context.language == Language::Bash && code.contains('\0') {
        return Err(HttpError::field(
            "value_error",
            "code",
            "bash does not know the character NUL",
            &Value::Null,
        ));
    }
    Ok(())
}

/// The lines, and one more after each five seconds without. Dropping the stream tells the context that the client is gone.
fn with_keepalives(
    answers: mpsc::Receiver<Bytes>,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(answers, |mut answers| async move {
        let line = match tokio::time::timeout(KEEPALIVE, answers.recv()).await {
            Ok(line) => line?,
            Err(_) => Line::Keepalive.bytes(),
        };
        Some((Ok(line), answers))
    })
}

async fn list(State(contexts): State<Arc<Contexts>>) -> Json {
    contexts.prepared().await;
    Json(
        contexts
            .list()
            .iter()
            .map(|context| shape(context))
            .collect(),
    )
}

async fn create(
    State(contexts): State<Arc<Contexts>>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Json, HttpError> {
    let body = object(body)?;
    let (language, cwd) = (text(&body, "language")?, text(&body, "cwd")?);
    contexts.prepared().await;
    let language = Language::named(language).map_err(|error| answer(error.into()))?;
    let context = contexts.create(language, cwd).await.map_err(answer)?;
    Ok(Json(shape(&context)))
}

async fn restart(
    State(contexts): State<Arc<Contexts>>,
    Path(id): Path<String>,
) -> Result<Json, HttpError> {
    contexts.prepared().await;
    contexts.restart(&id).await.map_err(|error| match error {
        ContextError::NotFound(_) => answer(error),
        other => HttpError::Text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("Failed to restart context {id}: {}", chain(&other)),
        ),
    })?;
    Ok(Json(Value::Null))
}

async fn remove(
    State(contexts): State<Arc<Contexts>>,
    Path(id): Path<String>,
) -> Result<Json, HttpError> {
    contexts.prepared().await;
    contexts.remove(&id).await.map_err(answer)?;
    Ok(Json(Value::Null))
}

fn shape(context: &Context) -> Value {
    json!({"id": context.id, "language": context.language.name(), "cwd": context.cwd})
}

fn answer(error: ContextError) -> HttpError {
    match &error {
        ContextError::NotFound(_) => HttpError::Text(StatusCode::NOT_FOUND, error.to_string()),
        ContextError::TooMany => HttpError::Text(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
        ContextError::Cwd => HttpError::Text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        ContextError::Language(unknown) => {
            let reason = json!({
                "message": error.to_string(),
                "short_message": format!("{} not found", unknown.0),
            });
            // Clients look for the short message as a JSON encoder with spaces writes it.
            HttpError::Text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "Failed to create context: {}",
                    reason.to_string().replace("\":\"", "\": \"")
                ),
            )
        }
        ContextError::Random(_) | ContextError::Launch { .. } => HttpError::Text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("Failed to create context: {}", chain(&error)),
        ),
    }
}

/// The error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The body as a JSON object; none at all is an empty one.
fn object(
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Value, HttpError> {
    let body =
        body.map_err(|rejection| HttpError::Text(rejection.status(), rejection.body_text()))?;
    let value: Value = serde_json::from_slice(&body).map_err(|error| {
        HttpError::Shape(json!({
            "type": "json_invalid", "loc": ["body", error.column()], "msg": "JSON decode error",
            "input": {}, "ctx": {"error": error.to_string()},
        }))
    })?;
    if value.is_object() {
        return Ok(value);
    }
    Err(HttpError::Shape(json!({
        "type": "model_attributes_type", "loc": ["body"],
        "msg": "Input should be a valid dictionary or object to extract fields from", "input": value,
    })))
}

fn text<'a>(body: &'a Value, field: &str) -> Result<Option<&'a str>, HttpError> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(HttpError::field(
            "string_type",
            field,
            "Input should be a valid string",
            other,
        )),
    }
}

fn variables(body: &Value) -> Result<BTreeMap<String, String>, HttpError> {
    let wrong = |input| {
        HttpError::field(
            "dict_type",
            "env_vars",
            "Input should be a valid dictionary of strings",
            input,
        )
    };
    match body.get("env_vars") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(variables)) => variables
            .iter()
            .map(|(name, value)| {
                let text = value.as_str().ok_or_else(|| wrong(value))?;
                Ok((name.clone(), text.to_owned()))
            })
            .collect(),
        Some(other) => Err(wrong(other)),
    }
}
