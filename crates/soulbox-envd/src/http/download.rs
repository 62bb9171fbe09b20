//! `GET /files`: the contents of one file, whole, in part, or compressed.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use soulbox_envd_proto::FileOperation;
use tokio::task::JoinHandle;

use super::answer::HttpError;
use super::encoding::{self, Coding};
use super::files::{self, FilesQuery};
use super::headers::{self as file_headers, Part};
use crate::path::name;
use crate::settings::Settings;

/// Reads of at most this happen on the event loop; a thread would cost more than it saves.
const INLINE: u64 = 64 << 10;
/// One piece of an answer. Below 128 KiB, see `server.rs`.
const CHUNK: usize = 64 << 10;
/// Read at once beside the event loop.
const BATCH: u64 = 256 << 10;
/// What the media type is guessed from.
const SAMPLE: usize = 512;
const O_NONBLOCK: i32 = 0o4000;

pub(crate) async fn download(
    State(settings): State<Arc<Settings>>,
    Query(query): Query<FilesQuery>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    files::authorise(&settings, &headers, &query, FileOperation::Read)?;
    let user = files::user(&settings, query.username.as_deref())?;
    let path = files::resolve(&settings, query.path.as_deref().unwrap_or_default(), &user)?;
    let (file, metadata) = open(&path)?;

    let acceptable = encoding::choose(&headers);
    let coding = if encoding::wants_identity(&headers) {
        encoding::identity_acceptable(&headers).then_some(Coding::Identity)
    } else {
        acceptable
    };
    let coding = coding.ok_or_else(|| {
        HttpError::new(
            StatusCode::NOT_ACCEPTABLE,
            "no acceptable encoding: identity and gzip are offered",
        )
    })?;

    let mut response = match coding {
        Coding::Gzip => compressed(file),
        Coding::Identity => plain(file, &metadata, name(&path), &headers)?,
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Ok(disposition) = HeaderValue::from_str(&file_headers::content_disposition(name(&path)))
    {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    headers
        .entry(header::CONTENT_TYPE)
        .or_insert(HeaderValue::from_static(file_headers::content_type(
            name(&path),
            None,
        )));
    Ok(response)
}

fn open(path: &str) -> Result<(File, Metadata), HttpError> {
    // Without blocking: a FIFO that nobody writes to must not hold the daemon.
    let opened = File::options()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => HttpError::not_found(format!("path '{path}' does not exist")),
        _ => HttpError::internal(format!("error opening file '{path}': {error}")),
    })?;
    if metadata.is_dir() {
        return Err(HttpError::bad_request(format!(
            "path '{path}' is a directory"
        )));
    }
    Ok((file, metadata))
}

fn plain(
    mut file: File,
    metadata: &Metadata,
    name: &str,
    headers: &HeaderMap,
) -> Result<Response, HttpError> {
    // Files of /proc say that they are empty, and devices have no size: they are read to their end.
    let length = (metadata.is_file() && metadata.len() > 0).then_some(metadata.len());
    let modified = metadata
        .modified()
        .ok()
        .filter(|time| *time > SystemTime::UNIX_EPOCH);
    let mut response = Response::new(Body::empty());
    let answer = response.headers_mut();
    if let Some(modified) =
        modified.and_then(|time| HeaderValue::from_str(&httpdate::fmt_http_date(time)).ok())
    {
        answer.insert(header::LAST_MODIFIED, modified);
    }
    if unchanged(modified, headers) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let Some(length) = length else {
        *response.body_mut() = to_the_end(file);
        return Ok(response);
    };
    let mut sample = [0; SAMPLE];
    let sampled = file.read_at(&mut sample, 0).unwrap_or(0);
    answer.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(file_headers::content_type(name, Some(&sample[..sampled]))),
    );
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let range = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
        .filter(|_| range_applies(modified, headers));
    let bytes = match file_headers::part(range, length) {
        Part::Whole => 0..length,
        Part::Bytes(bytes) => {
            answer.insert(
                header::CONTENT_RANGE,
                content_range(&format!("bytes {}-{}/{length}", bytes.start, bytes.end - 1))?,
            );
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            bytes
        }
        Part::Unsatisfiable => {
            answer.insert(
                header::CONTENT_RANGE,
                content_range(&format!("bytes */{length}"))?,
            );
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(response);
        }
    };
    response.headers_mut().insert(
        header::CONTENT_LENGTH,
        HeaderValue::from(bytes.end - bytes.start),
    );
    if bytes.start > 0 {
        file.seek(SeekFrom::Start(bytes.start))
            .map_err(|error| HttpError::internal(format!("error reading file: {error}")))?;
    }
    *response.body_mut() = exactly(file, bytes.end - bytes.start);
    Ok(response)
}

fn content_range(text: &str) -> Result<HeaderValue, HttpError> {
    HeaderValue::from_str(text).map_err(|error| HttpError::internal(error.to_string()))
}

/// Times in headers have whole seconds, files have not.
fn unchanged(modified: Option<SystemTime>, headers: &HeaderMap) -> bool {
    let date = |name| {
        headers
            .get(name)
            .and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok())
    };
    match (modified, date(header::IF_MODIFIED_SINCE)) {
        // We give no entity tags, so a request with one is a request without condition.
        (Some(modified), Some(since)) if !headers.contains_key(header::IF_NONE_MATCH) => {
            modified < since + Duration::from_secs(1)
        }
        _ => false,
    }
}

fn range_applies(modified: Option<SystemTime>, headers: &HeaderMap) -> bool {
    let Some(condition) = headers.get(header::IF_RANGE) else {
        return true;
    };
    let date = condition
        .to_str()
        .ok()
        .and_then(|value| httpdate::parse_http_date(value).ok());
    match (modified, date) {
        (Some(modified), Some(date)) => {
            httpdate::fmt_http_date(modified) == httpdate::fmt_http_date(date)
        }
        _ => false,
    }
}

/// `length` bytes from where the file stands. A file that shrinks meanwhile breaks the answer off.
fn exactly(file: File, length: u64) -> Body {
    let first = Ahead::begin(file, length);
    Body::from_stream(stream::try_unfold(
        (first, Vec::new()),
        |(mut ahead, mut ready)| async move {
            while ready.is_empty() {
                let Some((chunks, next)) = ahead.next().await? else {
                    return Ok(None);
                };
                (ready, ahead) = (chunks, next);
            }
            // Last first, so that taking one moves none.
            let chunk = ready.pop().unwrap_or_default();
            Ok::<_, io::Error>(Some((chunk, (ahead, ready))))
        },
    ))
}

/// Reads one batch ahead of the client: the disk and the network work at the same time.
enum Ahead {
    Done,
    Short(File, u64),
    Reading(JoinHandle<(File, io::Result<Vec<Bytes>>)>, u64),
}

impl Ahead {
    fn begin(file: File, left: u64) -> Self {
        match left {
            0 => Self::Done,
            1..=INLINE => Self::Short(file, left),
            _ => {
                let wanted = left.min(BATCH);
                let reading = tokio::task::spawn_blocking(move || read_batch(file, wanted));
                Self::Reading(reading, left - wanted)
            }
        }
    }

    /// A batch, last chunk first, and what comes after it.
    async fn next(self) -> io::Result<Option<(Vec<Bytes>, Self)>> {
        let (file, chunks, left) = match self {
            Self::Done => return Ok(None),
            Self::Short(file, left) => {
                let (file, chunks) = read_batch(file, left);
                (file, chunks, 0)
            }
            Self::Reading(reading, left) => {
                let (file, chunks) = reading.await.map_err(io::Error::other)?;
                (file, chunks, left)
            }
        };
        Ok(Some((chunks?, Self::begin(file, left))))
    }
}

fn read_batch(mut file: File, mut wanted: u64) -> (File, io::Result<Vec<Bytes>>) {
    let mut chunks = Vec::new();
    while wanted > 0 {
        let (returned, chunk) = read(file, usize::try_from(wanted).unwrap_or(CHUNK).min(CHUNK));
        file = returned;
        match chunk {
            Ok(chunk) if chunk.is_empty() => {
                return (file, Err(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(chunk) => {
                wanted -= chunk.len() as u64;
                chunks.push(chunk);
            }
            Err(error) => return (file, Err(error)),
        }
    }
    chunks.reverse();
    (file, Ok(chunks))
}

fn to_the_end(file: File) -> Body {
    Body::from_stream(stream::try_unfold(file, |file| async move {
        let (file, chunk) = beside(move || read(file, CHUNK)).await?;
        let chunk = chunk?;
        Ok::<_, io::Error>((!chunk.is_empty()).then_some((chunk, file)))
    }))
}

fn compressed(file: File) -> Response {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let body = Body::from_stream(stream::try_unfold(
        (file, Some(encoder)),
        |(file, encoder)| async move {
            let Some(mut encoder) = encoder else {
                return Ok(None);
            };
            beside(move || {
                let mut file = file;
                loop {
                    let (returned, chunk) = read(file, CHUNK);
                    file = returned;
                    let chunk = chunk?;
                    if chunk.is_empty() {
                        return Ok::<_, io::Error>(Some((
                            Bytes::from(encoder.finish()?),
                            (file, None),
                        )));
                    }
                    encoder.write_all(&chunk)?;
                    if !encoder.get_ref().is_empty() {
                        return Ok(Some((
                            Bytes::from(std::mem::take(encoder.get_mut())),
                            (file, Some(encoder)),
                        )));
                    }
                }
            })
            .await?
        },
    ));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

fn read(mut file: File, wanted: usize) -> (File, io::Result<Bytes>) {
    let mut buffer = Vec::with_capacity(wanted);
    let result = (&mut file).take(wanted as u64).read_to_end(&mut buffer);
    let result = match result {
        // A FIFO without data: its end, as far as a download goes.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::from(buffer)),
        other => other.map(|_| Bytes::from(buffer)),
    };
    (file, result)
}

/// Disks may be slow, and everybody waits for the event loop.
async fn beside<T: Send + 'static>(
    operation: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(operation)
        .await
        .map_err(io::Error::other)
}
