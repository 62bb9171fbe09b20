//! `POST /files/compose`: several files become one, in order; the parts are gone afterwards.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;

use super::answer::{HttpError, json};
use super::files::{self, io_status};
use super::upload::WrittenFile;
use crate::cause::chain;
use crate::filesystem::create_owned;
use crate::path::{clean, name, parent};
use crate::settings::Settings;
use crate::users::User;

#[derive(Debug, Deserialize)]
struct ComposeRequest {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    #[serde(default)]
    username: Option<String>,
}

pub(crate) async fn compose(
    State(settings): State<Arc<Settings>>,
    body: Bytes,
) -> Result<Response, HttpError> {
    let request: ComposeRequest = serde_json::from_slice(&body)
        .map_err(|error| HttpError::bad_request(format!("invalid request: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(HttpError::bad_request("source_paths is empty"));
    }
    if request.destination.is_empty() {
        return Err(HttpError::bad_request("destination is missing"));
    }
    let user = files::user(&settings, request.username.as_deref())?;
    let destination = files::resolve(&settings, &request.destination, &user)?;
    let sources: Vec<String> = request
        .source_paths
        .iter()
        .map(|path| files::resolve(&settings, path, &user))
        .collect::<Result<_, _>>()?;
    let done = tokio::task::spawn_blocking(move || {
        concatenate(&sources, &destination, &user).map(|()| destination)
    });
    let path = done
        .await
        .map_err(|error| HttpError::internal(format!("compose failed: {error}")))??;
    Ok(json(&WrittenFile {
        name: name(&path).to_owned(),
        kind: "file",
        metadata: Default::default(),
        path,
    }))
}

fn concatenate(sources: &[String], destination: &str, user: &User) -> Result<(), HttpError> {
    for source in sources {
        if clean(source) == clean(destination) {
            return Err(HttpError::bad_request(format!(
                "source '{source}' is the destination"
            )));
        }
        match fs::metadata(source) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => {
                return Err(HttpError::bad_request(format!(
                    "source '{source}' is not a regular file"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HttpError::not_found(format!(
                    "source '{source}' does not exist"
                )));
            }
            Err(error) => {
                return Err(HttpError::internal(format!(
                    "error getting file info of '{source}': {error}"
                )));
            }
        }
    }
    if Path::new(destination).is_dir() {
        return Err(HttpError::bad_request(format!(
            "path is a directory: {destination}"
        )));
    }
    create_owned(parent(destination), user).map_err(|error| HttpError::internal(chain(&error)))?;
    // Beside the destination, so that the rename stays within one file system.
    let temporary = format!(
        "{}/.{}.{}.compose",
        parent(destination).trim_end_matches('/'),
        name(destination),
        std::process::id()
    );
    let composed =
        copy_all(sources, &temporary, user).and_then(|()| fs::rename(&temporary, destination));
    composed.map_err(|error| {
        // The destination is untouched; the temporary file is all there is to undo.
        _ = fs::remove_file(&temporary);
        match io_status(&error) {
            StatusCode::INSUFFICIENT_STORAGE => HttpError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("not enough disk space: {error}"),
            ),
            status => HttpError::new(status, format!("error composing '{destination}': {error}")),
        }
    })?;
    for source in sources {
        match fs::remove_file(source) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HttpError::internal(format!(
                    "'{destination}' is written, but '{source}' cannot be removed: {error}"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn copy_all(sources: &[String], temporary: &str, user: &User) -> io::Result<()> {
    let mut target = File::create(temporary)?;
    for source in sources {
        io::copy(&mut File::open(source)?, &mut target)?;
    }
    chown(temporary, Some(user.uid), Some(user.gid))
}
