//! [`ApiError`]: status, public text and advice on retrying, and the one place that picks them for the errors of control.

mod templates;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use soulbox_control::{
    AuthError, CreateError, Error, HostFailure, KeyError, LimitError, ReferenceError, ResolveError,
    SandboxError, StoreError,
};
use soulbox_types::{DeathCause, HttpsPortsError, NetworkError, ParseHostMaskError};
use soulbox_wire::rest;

use crate::translate;

/// Official clients repeat a request on its word alone; absent, some repeat 502, 503 and 504.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Whether the client should send the same request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    No,
    AfterSeconds(u32),
}

/// An error as the client gets it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    retry: Retry,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            error_code: None,
            retry: Retry::No,
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The request does not fit the API's description.
    pub(crate) fn invalid(what: &str) -> Self {
        Self::bad_request(format!("validation error: {what}"))
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Too often; nothing was done.
    pub(crate) fn rate_limited(seconds: u32) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded").retry_after(seconds.max(1))
    }

    /// Something that E2B has and this server does not have yet.
    pub(crate) fn not_implemented(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not implemented yet"),
        )
        .code("not_implemented")
    }

    fn code(self, error_code: &'static str) -> Self {
        Self {
            error_code: Some(error_code),
            ..self
        }
    }

    /// Only for what has changed nothing.
    fn retry_after(self, seconds: u32) -> Self {
        Self {
            retry: Retry::AfterSeconds(seconds),
            ..self
        }
    }

    fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
            .code("internal_server_error")
    }
}

impl ApiError {
    /// As it stands in an answer.
    pub(crate) fn body(&self) -> rest::Error {
        rest::Error {
            code: self.status.as_u16(),
            message: self.message.clone(),
            error_code: self.error_code.map(str::to_owned),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.retry {
            Retry::No => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Retry::AfterSeconds(seconds) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let answer = match &error {
            Error::Auth(error) => auth(error),
            Error::Create(error) => create(error),
            Error::Sandbox(error) => sandbox(error),
            Error::Template(error) => template(error),
        };
        if answer.status.is_server_error() {
            tracing::error!(error = %chain(&error), status = answer.status.as_u16(), "request failed");
        }
        answer
    }
}

macro_rules! through_control_error {
    ($($family:ty),*) => {$(
        impl From<$family> for ApiError {
            fn from(error: $family) -> Self {
                Error::from(error).into()
            }
        }
    )*};
}
through_control_error!(AuthError, CreateError, SandboxError, ResolveError);

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        SandboxError::from(error).into()
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        tracing::error!(error = %chain(&error), "failed to make an API key");
        Self::internal()
    }
}

/// Of a host that was asked about itself.
impl From<HostFailure> for ApiError {
    fn from(error: HostFailure) -> Self {
        tracing::error!(error = %chain(&error), "a host did not answer about itself");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the node does not answer now",
        )
        .retry_after(1)
    }
}

impl From<ReferenceError> for ApiError {
    fn from(error: ReferenceError) -> Self {
        Self::bad_request(format!("Invalid template reference: {error}"))
    }
}

fn auth(error: &AuthError) -> ApiError {
    const API_KEY: &str =
        "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.";
    match error {
        AuthError::Malformed => ApiError::unauthorized("authorization header is malformed"),
        AuthError::ApiKeyFormat => {
            ApiError::unauthorized(format!("{API_KEY}\nInvalid API key format"))
        }
        AuthError::ApiKeyUnknown => ApiError::unauthorized(format!(
            "{API_KEY}\nCannot get the team for the given API key"
        )),
        AuthError::AccessToken => ApiError::unauthorized(
            "Invalid Access token, try to login again by running `e2b auth login`.",
        ),
        AuthError::AdminToken => {
            ApiError::unauthorized("Invalid Access token.\nInvalid Access token.")
        }
        AuthError::TeamIdInvalid => ApiError::bad_request("Invalid team ID"),
        AuthError::TeamUnknown => ApiError::not_found("Team not found"),
        AuthError::Banned => ApiError::forbidden("team is banned"),
        AuthError::Store(error) => store(error),
    }
}

fn create(error: &CreateError) -> ApiError {
    match error {
        CreateError::Template(error) => template(error),
        CreateError::TimeoutNotPositive => ApiError::bad_request("Timeout must be greater than 0"),
        CreateError::TimeoutTooLong { hours } => too_long(*hours),
        CreateError::Limits(error) => ApiError::bad_request(limit(*error)),
        CreateError::PrivateTrafficNotSecure => ApiError::bad_request(
            "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.",
        ),
        CreateError::AutoResumeWithoutMemory => translate::auto_resume_without_memory(),
        CreateError::LimitReached { limit } => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "you have reached the maximum number of concurrent E2B sandboxes ({limit}). If you need more, \
                 please visit 'https://e2b.dev/docs/billing'"
            ),
        ),
        CreateError::IdempotencyMismatch => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the Idempotency-Key was already used for a different request",
        )
        .code("idempotency_request_mismatch"),
        CreateError::IdempotencyInProgress => ApiError::new(
            StatusCode::CONFLICT,
            "a request with this Idempotency-Key is still in progress",
        )
        .code("idempotency_in_progress")
        .retry_after(1),
        CreateError::IdempotencyOutcomeUnknown => ApiError::new(
            StatusCode::CONFLICT,
            "the outcome of the request with this Idempotency-Key is unknown",
        )
        .code("idempotency_outcome_unknown"),
        CreateError::Host(HostFailure::NoCapacity(_)) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not enough capacity for the requested resources right now, please retry shortly",
        )
        .code("sandbox_capacity_unavailable")
        .retry_after(1),
        CreateError::Host(HostFailure::TemplateMissing) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no host has the files of this template build",
        )
        .code("sandbox_no_compatible_node"),
        CreateError::Host(HostFailure::NotReady(_)) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no node takes new sandboxes now",
        )
        .code("sandbox_no_compatible_node"),
        CreateError::TimedOut => ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the sandbox was not started in time",
        )
        .code("sandbox_placement_timeout"),
        CreateError::Host(_) | CreateError::Ended => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Failed to create sandbox",
        )
        .code("sandbox_create_failed"),
        // What was begun is killed at the next start.
        CreateError::Stopping => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "Service is unavailable").retry_after(2)
        }
        CreateError::Store(error) => store(error),
        CreateError::Random(_) => ApiError::internal(),
    }
}

/// What is said of a sandbox that ended without its owner's doing, after the words that clients know.
fn why_it_ended(cause: DeathCause) -> &'static str {
    match cause {
        DeathCause::OutOfMemory => ": it ran out of memory (out_of_memory)",
        DeathCause::AgentDied => ": the daemon inside ended (agent_died)",
        DeathCause::Lost => ": its host has lost it (lost)",
        DeathCause::Killed | DeathCause::Expired | DeathCause::FailedToStart => "",
    }
}

fn sandbox(error: &SandboxError) -> ApiError {
    match error {
        SandboxError::NotFound { sandbox_id, cause } => ApiError::not_found(format!(
            "Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it{}",
            cause.map_or("", why_it_ended)
        )),
        SandboxError::BeingKilled { sandbox_id } => ApiError::new(
            StatusCode::CONFLICT,
            format!("Sandbox \"{sandbox_id}\" is being killed"),
        ),
        SandboxError::AlreadyPaused { sandbox_id } => conflict(format!(
            "Error pausing sandbox - sandbox '{sandbox_id}' is already paused"
        )),
        SandboxError::AlreadyRunning { sandbox_id } => {
            conflict(format!("Sandbox {sandbox_id} is already running"))
        }
        SandboxError::BeingPaused { sandbox_id } => conflict(format!(
            "Sandbox '{sandbox_id}' cannot be changed while it is paused or about to be"
        )),
        SandboxError::IsPaused { sandbox_id } => conflict(format!(
            "Sandbox '{sandbox_id}' is paused and cannot be forked; resume it first"
        )),
        SandboxError::NotSnapshotted { sandbox_id, state } => conflict(format!(
            "Sandbox '{sandbox_id}' cannot be snapshotted while in '{state}' state"
        )),
        SandboxError::NotRolledBack { sandbox_id, state } => conflict(format!(
            "Sandbox '{sandbox_id}' cannot be rolled back while in '{state}' state"
        )),
        SandboxError::NoSnapshot { reference } => {
            ApiError::not_found(format!("snapshot '{reference}' not found"))
        }
        SandboxError::SnapshotOfAnother {
            reference,
            sandbox_id,
        } => ApiError::bad_request(format!(
            "snapshot '{reference}' is not one of sandbox '{sandbox_id}'"
        )),
        SandboxError::RollbackFailed(failure) => not_rolled_back(failure),
        SandboxError::TooManyForks { limit } => ApiError::bad_request(format!(
            "Count must be lower than the maximum number of concurrent sandboxes ({limit})"
        )),
        SandboxError::SnapshotName(why) => {
            ApiError::bad_request(format!("Invalid snapshot name: {why}"))
        }
        SandboxError::NotSaved(HostFailure::Unsupported(why)) => {
            ApiError::new(StatusCode::NOT_IMPLEMENTED, why.clone()).code("not_implemented")
        }
        SandboxError::NotSaved(HostFailure::CannotSave(why)) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the sandbox cannot be saved and goes on: {why}"),
        )
        .code("sandbox_cannot_be_saved"),
        SandboxError::NotSaved(HostFailure::Lost(why)) => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the sandbox was lost while it was being saved: {why}"),
        )
        .code("sandbox_lost"),
        // Its agent has ended, or is too slow: only the next look at the host can tell what has become of the sandbox.
        SandboxError::NotSaved(HostFailure::Unreachable(why)) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the sandbox was not saved, and whether it goes on is not known yet: {why}"),
        )
        .code("sandbox_save_interrupted"),
        SandboxError::NotSaved(_) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the sandbox was not saved and goes on",
        )
        .code("sandbox_cannot_be_saved"),
        SandboxError::GuestUnresponsive => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent in the sandbox does not answer; the sandbox goes on",
        )
        .code("sandbox_guest_unresponsive"),
        SandboxError::SilentWhenPaused { sandbox_id } => conflict(format!(
            "The agent in sandbox '{sandbox_id}' did not answer when it was paused; resume it without memory, which boots it from its disk"
        ))
        .code("sandbox_snapshot_guest_agent_unresponsive"),
        SandboxError::NotResumed(why) => not_resumed(why),
        SandboxError::TimeoutTooLong { hours } => too_long(*hours),
        SandboxError::LifetimeExceeded => ApiError::bad_request("Max instance length exceeded"),
        SandboxError::TimedOut => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the host has not confirmed in time, the request is still under way",
        )
        .code("host_timeout"),
        SandboxError::Host(_) => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the host has not done it, and will be told again",
        )
        .code("host_failed"),
        SandboxError::Store(error) => store(error),
        SandboxError::Random(_) => ApiError::internal(),
    }
}

fn conflict(message: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, message)
}

/// It is paused as before.
fn not_resumed(error: &CreateError) -> ApiError {
    match error {
        CreateError::Host(HostFailure::SnapshotMissing) => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "no host has the snapshot of the sandbox",
        )
        .code("sandbox_snapshot_missing"),
        CreateError::Host(HostFailure::SnapshotRefused(why)) => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the snapshot of the sandbox cannot be used: {why}"),
        )
        .code("sandbox_snapshot_refused"),
        CreateError::Host(HostFailure::Unsupported(why)) => {
            ApiError::new(StatusCode::NOT_IMPLEMENTED, why.clone()).code("not_implemented")
        }
        // A kill by another server reaches the host before what it has overtaken.
        CreateError::Host(HostFailure::StaleEpoch) => {
            conflict("the sandbox was ended or changed while it was being resumed".to_owned())
        }
        CreateError::Host(
            HostFailure::Init(_) | HostFailure::Failed(_) | HostFailure::Unreachable(_),
        )
        | CreateError::Ended => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Failed to resume sandbox, it is paused as before",
        )
        .code("sandbox_resume_failed"),
        other => create(other),
    }
}

/// It goes on.
fn not_rolled_back(failure: &HostFailure) -> ApiError {
    match failure {
        HostFailure::CannotSave(why) => conflict(why.clone()),
        HostFailure::NotLive | HostFailure::BeingPaused => {
            conflict("the sandbox is ending or being paused".to_owned())
        }
        HostFailure::SnapshotMissing => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "no host has the snapshot; the sandbox goes on",
        )
        .code("sandbox_snapshot_missing"),
        HostFailure::SnapshotRefused(why) => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the snapshot cannot be used and the sandbox goes on: {why}"),
        )
        .code("sandbox_snapshot_refused"),
        HostFailure::Unsupported(why) => {
            ApiError::new(StatusCode::NOT_IMPLEMENTED, why.clone()).code("not_implemented")
        }
        HostFailure::NoCapacity(_) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the host has no room for a second copy of the sandbox now, which goes on",
        )
        .code("sandbox_capacity_unavailable")
        .retry_after(1),
        _ => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the sandbox was not rolled back and goes on",
        )
        .code("sandbox_rollback_failed"),
    }
}

/// A request that found no records may have changed them all the same, so clients are not told to repeat it.
fn store(error: &StoreError) -> ApiError {
    if error.unreachable {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server's records cannot be reached now",
        )
        .code("records_unreachable")
    } else {
        ApiError::internal()
    }
}

fn template(error: &ResolveError) -> ApiError {
    match error {
        ResolveError::NoTemplate { reference } => {
            ApiError::not_found(format!("template '{reference}' not found"))
        }
        ResolveError::NoTag { reference, tag } => ApiError::not_found(format!(
            "tag '{tag}' does not exist for template '{reference}'"
        )),
        ResolveError::Foreign { .. } => {
            ApiError::forbidden("You don't have access to this template")
        }
    }
}

fn limit(error: LimitError) -> String {
    const SUPPORT: &str = "(if you need to increase this limit, please contact support)";
    match error {
        LimitError::CpuOdd => "CPU count must be 1 or an even number".to_owned(),
        LimitError::CpuTooMany { max } => format!("CPU count can't be higher than {max} {SUPPORT}"),
        LimitError::MemoryOdd => "Memory must be divisible by 2".to_owned(),
        LimitError::MemoryTooLittle { min } => format!("Memory must be at least {min} MiB"),
        LimitError::MemoryTooMuch { max } => {
            format!("Memory can't be higher than {max} MiB {SUPPORT}")
        }
        LimitError::DiskTooLittle { min } => format!("Disk size must be at least {min} MiB"),
        LimitError::DiskTooMuch { max } => {
            format!("Disk size can't be higher than {max} MiB {SUPPORT}")
        }
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Denied(text) => Self::bad_request(format!("invalid denied CIDR {text}")),
            NetworkError::Allowed(text) => {
                Self::bad_request(format!("invalid allowed address {text}"))
            }
            NetworkError::TooLong { max } => {
                Self::bad_request(format!("a network list must have at most {max} entries"))
            }
            NetworkError::DomainWithoutDenyAll => Self::bad_request(
                "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all \
                 other traffic.",
            ),
            NetworkError::Domain(_) => Self::not_implemented("a domain in \"network.allowOut\""),
            NetworkError::Ipv6(_) => {
                Self::not_implemented("an IPv6 address in \"network.allowOut\"")
            }
        }
    }
}

impl From<ParseHostMaskError> for ApiError {
    fn from(error: ParseHostMaskError) -> Self {
        Self::bad_request(match error {
            ParseHostMaskError::Invalid(text) => {
                format!("mask request host is not valid: {text}")
            }
            ParseHostMaskError::NotAscii(text) => {
                format!("mask request host '{text}' is not ASCII, give its punycode form")
            }
        })
    }
}

impl From<HttpsPortsError> for ApiError {
    fn from(error: HttpsPortsError) -> Self {
        Self::bad_request(format!("network.httpsPorts: {error}"))
    }
}

fn too_long(hours: u32) -> ApiError {
    ApiError::bad_request(format!("Timeout cannot be greater than {hours} hours"))
}

/// An error with its sources, for one field of a log line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
