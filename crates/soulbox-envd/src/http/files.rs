//! What reading and writing files over HTTP share: who may, as whom, and where.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use soulbox_envd_proto::{ACCESS_TOKEN_HEADER, FileOperation, sign_file};

use super::answer::HttpError;
use crate::cause::chain;
use crate::path;
use crate::settings::{Settings, equal_in_constant_time};
use crate::users::{self, User, UserError};

#[derive(Debug, Default, Deserialize)]
pub(crate) struct FilesQuery {
    #[serde(default)]
    pub(crate) path: Option<String>,
    #[serde(default)]
    pub(crate) username: Option<String>,
    #[serde(default)]
    pub(crate) signature: Option<String>,
    #[serde(default)]
    pub(crate) signature_expiration: Option<i64>,
}

/// Token in the header, or a signature made with it in the query.
pub(crate) fn authorise(
    settings: &Settings,
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: FileOperation,
) -> Result<(), HttpError> {
    let Some(token) = settings.access_token() else {
        return Ok(());
    };
    if let Some(offered) = headers.get(ACCESS_TOKEN_HEADER).map(HeaderValue::as_bytes) {
        return if equal_in_constant_time(token.as_bytes(), offered) {
            Ok(())
        } else {
            Err(HttpError::unauthorized(
                "access token present in header but does not match",
            ))
        };
    }
    let signature = query
        .signature
        .as_deref()
        .ok_or_else(|| HttpError::unauthorized("missing signature query parameter"))?;
    let path = query.path.as_deref().unwrap_or_default();
    let user = query.username.as_deref().unwrap_or_default();
    let expected = sign_file(path, operation, user, &token, query.signature_expiration);
    if !equal_in_constant_time(expected.as_bytes(), signature.as_bytes()) {
        return Err(HttpError::unauthorized("invalid signature"));
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
    if query
        .signature_expiration
        .is_some_and(|expiration| expiration < now)
    {
        return Err(HttpError::unauthorized("signature is already expired"));
    }
    Ok(())
}

pub(crate) fn user(settings: &Settings, username: Option<&str>) -> Result<User, HttpError> {
    let name = username
        .filter(|name| !name.is_empty())
        .map_or_else(|| settings.default_user(), str::to_owned);
    users::find(&name).map_err(|error| match error {
        UserError::Unknown(_) => {
            HttpError::unauthorized(format!("error looking up user '{name}': {error}"))
        }
        UserError::Read { .. } => HttpError::internal(chain(&error)),
    })
}

pub(crate) fn resolve(settings: &Settings, path: &str, user: &User) -> Result<String, HttpError> {
    path::resolve(path, user, settings.default_workdir().as_deref())
        .map_err(|error| HttpError::bad_request(error.to_string()))
}

/// No space left and over quota are the client's to know; all else is ours.
pub(crate) fn io_status(error: &std::io::Error) -> StatusCode {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
