//! Path parameters and bodies.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use soulbox_control::parse_sandbox_id;
use soulbox_types::SandboxId;

use crate::error::ApiError;

/// The one parameter of a path, decoded: an escaped slash is part of it.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Self(segment)),
            Err(_) => Err(ApiError::invalid("a parameter in the path is malformed")),
        }
    }
}

/// All parameters of a path that has several, in order.
pub(crate) struct Segments<const N: usize>(pub(crate) [String; N]);

impl<S: Send + Sync, const N: usize> FromRequestParts<S> for Segments<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let malformed = || ApiError::invalid("a parameter in the path is malformed");
        let Path(segments) = Path::<Vec<String>>::from_request_parts(parts, state)
            .await
            .map_err(|_| malformed())?;
        segments.try_into().map(Self).map_err(|_| malformed())
    }
}

/// The sandbox that a path names, in its legacy spelling too.
pub(crate) struct SandboxPath(pub(crate) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Segment(text) = Segment::from_request_parts(parts, state).await?;
        parse_sandbox_id(&text)
            .map(Self)
            .map_err(|_| ApiError::bad_request("Invalid sandbox ID"))
    }
}

/// A body, read but not parsed: what it has to be is the route's business.
pub(crate) struct Body(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|rejection| {
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    ApiError::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "the request body is larger than 16 MiB",
                    )
                } else {
                    ApiError::bad_request("Error when parsing request: the body could not be read")
                }
            })
    }
}

impl Body {
    /// A JSON value that has to be there.
    pub(crate) fn required<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.0)
            .map_err(|error| ApiError::invalid(&format!("request body has an error: {error}")))
    }

    /// A JSON value, or nothing, which means all defaults.
    pub(crate) fn optional<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        let text = self.0.trim_ascii();
        if text.is_empty() || text == b"null" {
            Ok(T::default())
        } else {
            self.required()
        }
    }
}
