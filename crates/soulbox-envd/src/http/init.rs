//! `POST /init`: the host tells the daemon what it is for. Fast, because every create waits for it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use soulbox_envd_proto::{
    ENVD_VERSION, INIT_SIGNATURE_HEADER, InitRequest, LogLevel, machine_id, verify_init,
};

use super::answer::{HttpError, no_content};
use crate::cause::chain;
use crate::environment::{self, KEPT};
use crate::fork;
use crate::process::Processes;
use crate::service;
use crate::settings::{Applied, InitError, Settings};

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-envd-version");
/// Where programs of the sandbox find out what they run in.
const RUN_DIR: &str = "/run/e2b";
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const OWN_BUNDLE: &str = "/usr/local/share/ca-certificates/e2b-ca.crt";

const MACHINE_ID: &str = "/etc/machine-id";

/// What the host's word changes.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) settings: Arc<Settings>,
    pub(crate) processes: Arc<Processes>,
}

pub(crate) async fn init(
    State(Introduction {
        settings,
        processes,
    }): State<Introduction>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, HttpError> {
    if let Some(secret) = settings.init_secret() {
        let signature = headers
            .get(INIT_SIGNATURE_HEADER)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if !verify_init(secret, &body, signature) {
            return Err(HttpError::unauthorized("access token validation failed"));
        }
    }
    let request: InitRequest = if body.is_empty() {
        InitRequest::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| HttpError::bad_request(format!("invalid init request: {error}")))?
    };
    refuse_foreign(&request)?;
    let applied = settings.apply(&request).map_err(|error| match error {
        InitError::Timestamp | InitError::EmptyToken => HttpError::bad_request(error.to_string()),
        InitError::TokenMismatch | InitError::TokenReset => {
            HttpError::unauthorized(error.to_string())
        }
    })?;
    if applied == Applied::Yes {
        publish(&settings, &request)
            .map_err(|error| HttpError::internal(format!("cannot write {RUN_DIR}: {error}")))?;
        let kept = remember(&settings, &request);
        if let Err(error) = kept {
            // Of files that are the sandbox's own: it goes on, and its log says so.
            let fields = [("error", error.to_string())];
            let message = "environment_not_kept";
            processes.log.note(LogLevel::Warn, "init", message, fields);
        }
        if let Some(bundle) = request
            .ca_bundle
            .as_deref()
            .filter(|bundle| !bundle.is_empty())
        {
            trust(bundle, Path::new(SYSTEM_BUNDLE), Path::new(OWN_BUNDLE)).map_err(|error| {
                HttpError::internal(format!("cannot install the CA bundle: {error}"))
            })?;
        }
    }
    if let Some(generation) = request.generation.as_deref()
        && let Err(error) = fork::tell(&settings, &processes.log, generation).await
    {
        // Of files that are the sandbox's own: it goes on, and its log says so.
        let fields = [("error", error.to_string())];
        let message = "fork_hooks_failed";
        processes.log.note(LogLevel::Warn, "fork", message, fields);
    }
    // After the certificates and variables, which the service is to have.
    service::start(&settings).map_err(|error| HttpError::internal(chain(&error)))?;
    let mut response = no_content();
    response
        .headers_mut()
        .insert(VERSION_HEADER, HeaderValue::from_static(ENVD_VERSION));
    Ok(response)
}

/// What only upstream's hosts have; doing nothing about it would be a lie.
fn refuse_foreign(request: &InitRequest) -> Result<(), HttpError> {
    let refuse = |what: &str| {
        Err(HttpError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not supported by this daemon"),
        ))
    };
    if !request.volume_mounts.is_empty() {
        return refuse("volumeMounts");
    }
    if request
        .hyperloop_ip
        .as_deref()
        .is_some_and(|address| !address.is_empty())
    {
        return refuse("hyperloopIP");
    }
    Ok(())
}

/// Does what does not depend on the host's word before it comes, so that no create waits for it: makes the folders of [`publish`], in
/// directories that are then the sandbox's own. The first change in a directory of a template copies that up, which takes longer than all
/// that is written. What fails here fails in `/init` again, which tells.
pub fn prepare(settings: &Settings) {
    // One that the host did not start is no sandbox, so its disk is somebody else's.
    if settings.init_secret().is_none() {
        return;
    }
    _ = make_folders(settings);
    if let Some(directory) = Path::new(MACHINE_ID).parent()
        && let Ok(found) = fs::metadata(directory)
    {
        _ = fs::set_permissions(directory, found.permissions());
    }
}

fn make_folders(settings: &Settings) -> io::Result<()> {
    fs::create_dir_all(RUN_DIR)?;
    let sandboxed = settings.init_secret().is_some().to_string();
    write_fact(".E2B_SANDBOX", &sandboxed)?;
    fork::prepare()
}

/// Writes the facts that programs read from files, when the host gave them.
fn publish(settings: &Settings, request: &InitRequest) -> io::Result<()> {
    let facts = [
        (".E2B_SANDBOX_ID", &request.sandbox_id),
        (".E2B_TEMPLATE_ID", &request.template_id),
    ];
    if facts.iter().all(|(_, value)| value.is_none()) {
        return Ok(());
    }
    make_folders(settings)?;
    for (name, value) in facts {
        if let Some(value) = value {
            write_fact(name, value)?;
        }
    }
    if let Some(sandbox_id) = &request.sandbox_id {
        // A template may have made something else of it: that is its own affair.
        _ = fork::write(Path::new(MACHINE_ID), &machine_id(sandbox_id), 0o444);
    }
    Ok(())
}

/// Keeps variables for a boot from disk, or has those again that were kept.
fn remember(settings: &Settings, request: &InitRequest) -> io::Result<()> {
    if request.sandbox_id.is_none() {
        // It is no sandbox, so its disk is somebody else's.
        return Ok(());
    }
    let told = request.env_vars.as_ref().filter(|all| !all.is_empty());
    match told {
        Some(variables) => environment::keep(Path::new(KEPT), variables),
        None => {
            if let Some(variables) = environment::kept(Path::new(KEPT)) {
                settings.recall(variables);
            }
            Ok(())
        }
    }
}

/// With mode 0444, which does not stop root.
fn write_fact(name: &str, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let path = Path::new(RUN_DIR).join(name);
    // File systems flush a file that was truncated when it is closed: 4 ms that a repeated `/init` need not pay.
    if fs::read(&path).is_ok_and(|present| present == value.as_bytes()) {
        return Ok(());
    }
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o444)
        .open(path)?
        .write_all(value.as_bytes())
}

/// Adds `bundle` to the system's trusted certificates and takes the one of the last call out. Does nothing twice.
fn trust(bundle: &str, system: &Path, own: &Path) -> io::Result<()> {
    let missing_is_empty = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(String::new())
        } else {
            Err(error)
        }
    };
    let bundle = format!("{}\n", bundle.trim_end());
    let previous = fs::read_to_string(own).or_else(missing_is_empty)?;
    let mut trusted = fs::read_to_string(system).or_else(missing_is_empty)?;
    if previous == bundle && trusted.contains(&bundle) {
        return Ok(());
    }
    if !previous.is_empty() {
        trusted = trusted.replacen(&previous, "", 1);
    }
    if !trusted.is_empty() && !trusted.ends_with('\n') {
        trusted.push('\n');
    }
    trusted.push_str(&bundle);
    for (path, contents) in [(own, &bundle), (system, &trusted)] {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Renamed into place: a program that reads it meanwhile sees the old or the new one.
        let new = path.with_extension("crt.new");
        fs::write(&new, contents)?;
        fs::rename(&new, path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_is_added_once_and_replaced_later() {
        let root = tempfile::tempdir().expect("tempdir");
        let (system, own) = (
            root.path().join("ssl/all.crt"),
            root.path().join("own/e2b.crt"),
        );
        fs::create_dir_all(root.path().join("ssl")).expect("mkdir");
        fs::write(&system, "SYSTEM").expect("write");
        let check = |bundle: &str, expected: &str| {
            trust(bundle, &system, &own).expect("trusts");
            assert_eq!(fs::read_to_string(&system).expect("read"), expected);
        };
        check("ONE", "SYSTEM\nONE\n");
        check("ONE\n", "SYSTEM\nONE\n");
        check("TWO", "SYSTEM\nTWO\n");
    }
}
