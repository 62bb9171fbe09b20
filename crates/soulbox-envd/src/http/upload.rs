//! `POST /files`: one file as the body, or several as parts of a form; either may be gzipped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use soulbox_envd_proto::FileOperation;
use tokio::task::JoinHandle;

use super::answer::{HttpError, json};
use super::files::{self, FilesQuery, io_status};
use crate::cause::chain;
use crate::filesystem::metadata::{self, Metadata};
use crate::filesystem::{DirectoryError, create_owned};
use crate::path::{name, parent};
use crate::settings::Settings;
use crate::users::User;

/// Writes of at most this happen on the event loop; larger ones, and giving up the old content of files that are larger,
/// beside it, so that a slow disk holds nobody else.
const INLINE: usize = 64 << 10;
/// Chunks are collected up to this before they are written, while the batch before them is.
const BATCH: usize = 256 << 10;
/// Compressed input is expanded in pieces of this, so that a bomb does not fill the memory.
const GZIP_PIECE: usize = 4 << 10;
const O_NONBLOCK: i32 = 0o4000;

#[derive(Debug, Serialize)]
pub(crate) struct WrittenFile {
    pub(crate) path: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: Metadata,
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("error reading request body")]
    Read(#[source] axum::Error),
    #[error("invalid gzip data")]
    Gzip(#[source] io::Error),
}

pub(crate) async fn upload(
    State(settings): State<Arc<Settings>>,
    Query(query): Query<FilesQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    files::authorise(&settings, &headers, &query, FileOperation::Write)?;
    let user = files::user(&settings, query.username.as_deref())?;
    let metadata = metadata::of_headers(&headers)
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    let body = decoded(&headers, body.into_data_stream())?;
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let path = query.path.filter(|path| !path.is_empty());
    let written = match media_type.as_str() {
        "application/octet-stream" => {
            let path = path.ok_or_else(|| {
                HttpError::bad_request("path is required for application/octet-stream")
            })?;
            let target = files::resolve(&settings, &path, &user)?;
            vec![
                write_file(
                    target,
                    &user,
                    &metadata,
                    body.map(|chunk| chunk.map_err(|error| body_error(&error))),
                )
                .await?,
            ]
        }
        "multipart/form-data" => {
            let boundary = multer::parse_boundary(content_type)
                .map_err(|error| HttpError::bad_request(error.to_string()))?;
            write_form(
                &settings,
                multer::Multipart::new(body, boundary),
                path.as_deref(),
                &user,
                &metadata,
            )
            .await?
        }
        _ => {
            return Err(HttpError::bad_request(format!(
                "unsupported content type: '{content_type}'"
            )));
        }
    };
    Ok(json(&written))
}

async fn write_form(
    settings: &Settings,
    mut form: multer::Multipart<'_>,
    path: Option<&str>,
    user: &User,
    metadata: &Metadata,
) -> Result<Vec<WrittenFile>, HttpError> {
    let mut written: Vec<WrittenFile> = Vec::new();
    while let Some(field) = form
        .next_field()
        .await
        .map_err(|error| form_error(&error))?
    {
        if field.name() != Some("file") {
            continue;
        }
        let asked = path.or_else(|| field.file_name().filter(|name| !name.is_empty()));
        let asked = asked.ok_or_else(|| {
            HttpError::bad_request("part has no filename and the request no path")
        })?;
        let target = files::resolve(settings, asked, user)?;
        if written.iter().any(|file| file.path == target) {
            return Err(HttpError::bad_request(format!(
                "you cannot upload multiple files to the same path '{target}' in one upload request"
            )));
        }
        let chunks = field.map(|chunk| chunk.map_err(|error| form_error(&error)));
        written.push(write_file(target, user, metadata, chunks).await?);
    }
    Ok(written)
}

/// A file under way.
struct Upload {
    file: File,
    written: u64,
}

/// At most one batch is being written, beside the event loop.
enum Writer {
    Idle(Upload),
    Busy(JoinHandle<Result<Upload, HttpError>>),
}

async fn write_file(
    path: String,
    user: &User,
    metadata: &Metadata,
    chunks: impl Stream<Item = Result<Bytes, HttpError>>,
) -> Result<WrittenFile, HttpError> {
    let file = if fs::metadata(&path).is_ok_and(|old| old.len() > INLINE as u64) {
        let (path, user) = (path.clone(), user.clone());
        tokio::task::spawn_blocking(move || open(&path, &user))
            .await
            .map_err(|error| HttpError::internal(format!("error opening file: {error}")))
            .flatten()?
    } else {
        open(&path, user)?
    };
    let mut writer = Writer::Idle(Upload { file, written: 0 });
    let mut chunks = std::pin::pin!(chunks);
    let mut batch = Vec::new();
    let mut batched = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        batched += chunk.len();
        batch.push(chunk);
        if batched >= BATCH {
            writer = writer
                .write(std::mem::take(&mut batch), std::mem::take(&mut batched))
                .await?;
        }
    }
    let upload = writer.write(batch, batched).await?.idle().await?;
    metadata::replace(upload.file.as_fd(), metadata).map_err(|error| {
        HttpError::new(
            io_status(&error),
            format!("error writing metadata: {error}"),
        )
    })?;
    Ok(WrittenFile {
        name: name(&path).to_owned(),
        kind: "file",
        metadata: metadata::read(Path::new(&path)),
        path,
    })
}

impl Writer {
    /// Waits for the batch before, and begins this one. What arrives meanwhile is the next.
    async fn write(self, batch: Vec<Bytes>, length: usize) -> Result<Self, HttpError> {
        let upload = self.idle().await?;
        if length <= INLINE {
            return upload.write(&batch, length).map(Self::Idle);
        }
        Ok(Self::Busy(tokio::task::spawn_blocking(move || {
            upload.write(&batch, length)
        })))
    }

    async fn idle(self) -> Result<Upload, HttpError> {
        match self {
            Self::Idle(upload) => Ok(upload),
            Self::Busy(writing) => writing
                .await
                .map_err(|error| HttpError::internal(format!("error writing file: {error}")))
                .flatten(),
        }
    }
}

impl Upload {
    fn write(mut self, batch: &[Bytes], length: usize) -> Result<Self, HttpError> {
        self.written += length as u64;
        let attempted = self.written;
        let written = batch
            .iter()
            .try_for_each(|chunk| self.file.write_all(chunk));
        match written {
            Ok(()) => Ok(self),
            Err(error) => Err(match io_status(&error) {
                StatusCode::INSUFFICIENT_STORAGE => HttpError::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    format!("not enough disk space: attempted to write {attempted} bytes"),
                ),
                status => HttpError::new(status, format!("error writing file: {error}")),
            }),
        }
    }
}

/// Opens the target, makes what is missing above it, and gives it to the user. The old content is gone then.
pub(crate) fn open(path: &str, user: &User) -> Result<File, HttpError> {
    create_owned(parent(path), user).map_err(|error: DirectoryError| {
        HttpError::new(
            error
                .io()
                .map_or(StatusCode::INTERNAL_SERVER_ERROR, io_status),
            format!("error ensuring directories: {}", chain(&error)),
        )
    })?;
    let failed = |what: &str, error: io::Error| match io_status(&error) {
        StatusCode::INSUFFICIENT_STORAGE => HttpError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("not enough inodes available: {error}"),
        ),
        status => HttpError::new(status, format!("error {what} '{path}': {error}")),
    };
    let before = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(HttpError::bad_request(format!(
                "path is a directory: {path}"
            )));
        }
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("getting file info of", error)),
    };
    let owned_before = before.as_ref().map(|file| (file.uid(), file.gid()));
    // Changing an owner to itself would be an event to everybody who watches.
    let own = || {
        chown(path, Some(user.uid), Some(user.gid))
            .map_err(|error| failed("changing the owner of", error))
    };
    if owned_before.is_some_and(|owner| owner != (user.uid, user.gid)) {
        own()?;
    }
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o666)
        // A FIFO that nobody reads, or nobody reads fast, is refused: waiting for it would hold the daemon.
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(|error| failed("opening file", error))?;
    // A new file is the daemon's, which is root.
    if owned_before.is_none() && (user.uid, user.gid) != (0, 0) {
        own()?;
    }
    if before.is_some_and(|file| file.is_file() && file.len() > INLINE as u64) {
        close_while_empty(&file);
    }
    Ok(file)
}

/// btrfs begins to write a file out when somebody closes it for the first time after its content was cut off, and the
/// close waits for that: half of an upload's time. Closed while it is empty, it has nothing to write.
fn close_while_empty(file: &File) {
    // By descriptor: the name may lead elsewhere by now. A refusal costs time and nothing else.
    _ = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
}

/// The body without its content coding.
fn decoded(
    headers: &HeaderMap,
    body: BodyDataStream,
) -> Result<stream::BoxStream<'static, Result<Bytes, BodyError>>, HttpError> {
    let coding = headers
        .get(header::CONTENT_ENCODING)
        .map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase());
    match coding.as_deref() {
        None | Some("" | "identity") => {
            Ok(body.map(|chunk| chunk.map_err(BodyError::Read)).boxed())
        }
        Some("gzip") => Ok(gunzip(body).boxed()),
        Some(other) => Err(HttpError::bad_request(format!(
            "unsupported content encoding: '{other}'"
        ))),
    }
}

/// Expands piece by piece: no more than one piece's expansion is in memory.
fn gunzip(body: BodyDataStream) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let state = (body, Some(MultiGzDecoder::new(Vec::new())), Bytes::new());
    stream::try_unfold(state, |(mut body, mut decoder, mut waiting)| async move {
        loop {
            let Some(open) = &mut decoder else {
                return Ok(None);
            };
            if waiting.is_empty() {
                match body.next().await {
                    Some(chunk) => waiting = chunk.map_err(BodyError::Read)?,
                    None => {
                        open.try_finish().map_err(BodyError::Gzip)?;
                        let rest = Bytes::from(std::mem::take(open.get_mut()));
                        return Ok(Some((rest, (body, None, waiting))));
                    }
                }
            }
            let piece = waiting.split_to(waiting.len().min(GZIP_PIECE));
            open.write_all(&piece).map_err(BodyError::Gzip)?;
            let expanded = std::mem::take(open.get_mut());
            if !expanded.is_empty() {
                return Ok(Some((Bytes::from(expanded), (body, decoder, waiting))));
            }
        }
    })
}

fn body_error(error: &BodyError) -> HttpError {
    HttpError::bad_request(chain(error))
}

fn form_error(error: &multer::Error) -> HttpError {
    HttpError::bad_request(format!("error parsing multipart form: {}", chain(error)))
}
