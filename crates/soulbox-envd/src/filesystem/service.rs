//! The Filesystem service: requests in, plain file operations, answers out.

use std::error::Error;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures_util::stream;
use soulbox_envd_proto::rpc::filesystem as wire;
use soulbox_envd_proto::rpc::filesystem::__buffa::oneof::watch_dir_response::Event;
use tokio::time::{Instant, sleep_until, timeout};

use super::directory::{self, DirectoryError};
use super::entry::{self, ListError};
use super::watch::{Detail, NetworkMounts, Scope, Watch, WatchError};
use super::watcher::Watchers;
use crate::cause::chain;
use crate::http::{keepalive, user_of};
use crate::path::{self, parent};
use crate::settings::Settings;
use crate::users::{Names, User};

/// Header value by which old clients are known that break on unknown fields.
const LEGACY_CLIENT: &str = "connect-python";

pub(crate) struct FilesystemService {
    settings: Arc<Settings>,
    watchers: Watchers,
}

impl FilesystemService {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            watchers: Watchers::default(),
        }
    }

    fn resolve(&self, path: &str, user: &User) -> Result<String, ConnectError> {
        path::resolve(path, user, self.settings.default_workdir().as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))
    }

    /// Blocking, for a recursive watch of a large tree.
    async fn watch(
        &self,
        context: &RequestContext,
        path: &str,
        options: WatchOptions,
    ) -> Result<Watch, ConnectError> {
        let path = self.resolve(path, &*user_of(context)?)?;
        let detail = if is_legacy(context) {
            Detail::NameOnly
        } else {
            options.detail
        };
        let open = move || Watch::open(&path, options.scope, detail, options.network);
        match options.scope {
            Scope::Directory => open(),
            Scope::Recursive => blocking(open).await?,
        }
        .map_err(|error| watch_error(&error))
    }
}

struct WatchOptions {
    scope: Scope,
    detail: Detail,
    network: NetworkMounts,
}

impl WatchOptions {
    fn new(recursive: bool, include_entry: bool, allow_network_mounts: bool) -> Self {
        Self {
            scope: if recursive {
                Scope::Recursive
            } else {
                Scope::Directory
            },
            detail: if include_entry {
                Detail::WithEntry
            } else {
                Detail::NameOnly
            },
            network: if allow_network_mounts {
                NetworkMounts::Allowed
            } else {
                NetworkMounts::Refused
            },
        }
    }
}

impl wire::Filesystem for FilesystemService {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<impl Encodable<wire::StatResponse> + Send + use<'a>> {
        let path = self.resolve(request.path, &*user_of(&context)?)?;
        let entry = describe(&context, &path)?;
        answer(
            &context,
            wire::StatResponse {
                entry: entry.into(),
            },
        )
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::MakeDirResponse> + Send + use<'a>> {
        let user = user_of(&context)?;
        let path = self.resolve(request.path, &user)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(ConnectError::already_exists(format!(
                    "directory already exists: {path}"
                )));
            }
            Ok(_) => {
                return Err(ConnectError::invalid_argument(format!(
                    "path already exists but it is not a directory: {path}"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(ConnectError::internal(format!(
                    "error getting file info: {error}"
                )));
            }
        }
        directory::create_owned(&path, &user).map_err(|error| directory_error(&error))?;
        let entry = describe(&context, &path)?;
        answer(
            &context,
            wire::MakeDirResponse {
                entry: entry.into(),
            },
        )
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::MoveResponse> + Send + use<'a>> {
        let user = user_of(&context)?;
        let source = self.resolve(request.source, &user)?;
        let destination = self.resolve(request.destination, &user)?;
        let missing = || ConnectError::not_found(format!("source file not found: {source}"));
        if let Err(error) = fs::symlink_metadata(&source)
            && error.kind() == io::ErrorKind::NotFound
        {
            return Err(missing());
        }
        directory::create_owned(parent(&destination), &user)
            .map_err(|error| directory_error(&error))?;
        fs::rename(&source, &destination).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(),
            _ => ConnectError::internal(format!(
                "error renaming '{source}' to '{destination}': {error}"
            )),
        })?;
        let entry = describe(&context, &destination)?;
        answer(
            &context,
            wire::MoveResponse {
                entry: entry.into(),
            },
        )
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListDirResponse> + Send + use<'a>> {
        let path = self.resolve(request.path, &*user_of(&context)?)?;
        let depth = request.depth;
        let mut entries = blocking(move || entry::list(&path, depth))
            .await?
            .map_err(|error| list_error(&error))?;
        if is_legacy(&context) {
            entries = entries.into_iter().map(legacy_entry).collect();
        }
        answer(&context, wire::ListDirResponse { entries })
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveResponse> + Send + use<'a>> {
        let path = self.resolve(request.path, &*user_of(&context)?)?;
        blocking(move || {
            remove(&path).map_err(|error| {
                ConnectError::internal(format!("error removing '{path}': {error}"))
            })
        })
        .await??;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchDirResponse> + Send + use<>>> {
        let options = WatchOptions::new(
            request.recursive,
            request.include_entry,
            request.allow_network_mounts,
        );
        let watch = self.watch(&context, request.path, options).await?;
        let state = Watching {
            watch,
            keepalive: keepalive(&context),
            deadline: context.deadline().map(Into::into),
            phase: Phase::Starting,
        };
        Ok(Response::stream(stream::unfold(state, watching)))
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::CreateWatcherResponse> + Send + use<'a>> {
        let options = WatchOptions::new(
            request.recursive,
            request.include_entry,
            request.allow_network_mounts,
        );
        let watch = self.watch(&context, request.path, options).await?;
        let watcher_id = self
            .watchers
            .add(watch)
            .map_err(|error| ConnectError::internal(format!("no random bytes: {error}")))?;
        Response::ok(wire::CreateWatcherResponse { watcher_id })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetWatcherEventsResponse> + Send + use<'a>> {
        let events = self
            .watchers
            .take(request.watcher_id)
            .ok_or_else(|| no_watcher(request.watcher_id))?;
        let events = events.map_err(|error| watch_error(&error))?;
        Response::ok(wire::GetWatcherEventsResponse { events })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveWatcherResponse> + Send + use<'a>> {
        if !self.watchers.remove(request.watcher_id) {
            return Err(no_watcher(request.watcher_id));
        }
        Response::ok(wire::RemoveWatcherResponse::default())
    }
}

/// The stream of one WatchDir.
struct Watching {
    watch: Watch,
    keepalive: Duration,
    deadline: Option<Instant>,
    phase: Phase,
}

enum Phase {
    Starting,
    Running,
    Ended,
}

async fn watching(
    mut state: Watching,
) -> Option<(Result<wire::WatchDirResponse, ConnectError>, Watching)> {
    let event = match state.phase {
        Phase::Ended => return None,
        Phase::Starting => {
            state.phase = Phase::Running;
            Ok(Event::Start(Default::default()))
        }
        Phase::Running => {
            let deadline = async {
                match state.deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = timeout(state.keepalive, state.watch.next()) => match event {
                    Ok(Ok(event)) => Ok(Event::Filesystem(event)),
                    Ok(Err(error)) => Err(watch_error(&error)),
                    Err(_silent) => Ok(Event::Keepalive(Default::default())),
                },
                () = deadline => Err(ConnectError::deadline_exceeded("context deadline exceeded")),
            }
        }
    };
    if event.is_err() {
        state.phase = Phase::Ended;
    }
    Some((
        event.map(|event| wire::WatchDirResponse { event: Some(event) }),
        state,
    ))
}

/// Runs file operations of unknown length beside the event loop.
async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(operation)
        .await
        .map_err(|error| ConnectError::internal(format!("file operation failed: {error}")))
}

fn describe(context: &RequestContext, path: &str) -> Result<wire::EntryInfo, ConnectError> {
    let entry = entry::describe(path, &Names::load()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("file not found: {path}")),
        _ => ConnectError::internal(format!("error getting file info of '{path}': {error}")),
    })?;
    Ok(if is_legacy(context) {
        legacy_entry(entry)
    } else {
        entry
    })
}

/// Recursive; what is not there is removed already.
fn remove(path: &str) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_legacy(context: &RequestContext) -> bool {
    context
        .header(http::header::USER_AGENT)
        .is_some_and(|agent| agent.as_bytes() == LEGACY_CLIENT.as_bytes())
}

fn legacy_entry(entry: wire::EntryInfo) -> wire::EntryInfo {
    wire::EntryInfo {
        name: entry.name,
        r#type: entry.r#type,
        path: entry.path,
        ..Default::default()
    }
}

fn answer<T>(context: &RequestContext, message: T) -> ServiceResult<T> {
    let response = Response::new(message);
    Ok(if is_legacy(context) {
        response.with_header("x-e2b-legacy-sdk", "true")
    } else {
        response
    })
}

fn list_error(error: &ListError) -> ConnectError {
    let message = chain(error);
    match error {
        ListError::Missing(_) => ConnectError::not_found(message),
        ListError::NotDirectory(_) => ConnectError::invalid_argument(message),
        ListError::Cycle(_) => ConnectError::failed_precondition(message),
        ListError::Read { .. } => ConnectError::internal(message),
    }
}

fn watch_error(error: &WatchError) -> ConnectError {
    let message = chain(error);
    match error {
        WatchError::Missing(_) => ConnectError::not_found(message),
        WatchError::NotDirectory(_) | WatchError::NetworkMount(_) => {
            ConnectError::invalid_argument(message)
        }
        WatchError::Watch { .. } | WatchError::Overflow | WatchError::Read(_) => {
            ConnectError::internal(message)
        }
    }
}

fn directory_error(error: &DirectoryError) -> ConnectError {
    ConnectError::internal(chain(error as &dyn Error))
}

fn no_watcher(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}
