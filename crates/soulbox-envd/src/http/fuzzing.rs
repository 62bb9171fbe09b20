//! One input of each fuzz target of `fuzz/`, and what must hold for it whatever it is. The stored inputs are replayed as
//! a plain test below; only tests and the fuzz targets compile this.
//!
//! Nothing here starts a program, and the one file that is written is this process's own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use buffa::Message;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use soulbox_envd_proto::rpc::{filesystem, process};
use soulbox_envd_proto::{
    FileOperation, InitRequest, is_host_only, sign_file, sign_init, verify_init,
};
use tower::ServiceExt as _;

use super::files::{self, FilesQuery};
use super::headers::{Part, content_disposition, part};
use super::{encoding, terminal};
use crate::path;
use crate::settings::{Settings, Startup};
use crate::users::User;

/// No input may take longer.
const PATIENCE: Duration = Duration::from_secs(10);
const BOUNDARY: &str = "an-edge-that-no-file-has";

struct Daemon {
    runtime: tokio::runtime::Runtime,
    router: Router,
}

thread_local! {
    static DAEMON: Daemon = Daemon {
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("an event loop"),
        router: super::router(Arc::new(Settings::new(Startup::default()))),
    };
}

/// The whole answer of a daemon without a token.
fn answer(request: Request<Body>) -> (StatusCode, HeaderMap, Bytes) {
    DAEMON.with(|daemon| {
        let asked = async {
            let response = daemon.router.clone().oneshot(request).await;
            let (parts, body) = response.expect("an answer").into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            (parts.status, parts.headers, body)
        };
        daemon
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, asked).await })
            .expect("in time")
    })
}

/// The first byte chooses method and codec, the rest is the body.
pub fn connect_frames(data: &[u8]) {
    const METHODS: [&str; 10] = [
        "process.Process/StreamInput",
        "process.Process/Connect",
        "process.Process/List",
        "process.Process/SendInput",
        "process.Process/SendSignal",
        "process.Process/CloseStdin",
        "process.Process/Update",
        "filesystem.Filesystem/Stat",
        "filesystem.Filesystem/GetWatcherEvents",
        "filesystem.Filesystem/RemoveWatcher",
    ];
    const CODECS: [&str; 6] = [
        "application/connect+json",
        "application/connect+proto",
        "application/json",
        "application/proto",
        "application/grpc-web+proto",
        "application/grpc",
    ];

    let Some((chosen, body)) = data.split_first() else {
        return;
    };
    let chosen = usize::from(*chosen);
    let codec = CODECS[chosen / METHODS.len() % CODECS.len()];
    let request = Request::post(format!("/{}", METHODS[chosen % METHODS.len()]))
        .header(header::CONTENT_TYPE, codec)
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let (status, headers, body) = answer(request);
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    if status == StatusCode::OK && kind.starts_with(b"application/connect+") {
        assert_stream(&body);
    } else if kind.starts_with(b"application/json") {
        let text = serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
        assert!(
            status == StatusCode::OK || text["code"].is_string(),
            "{text}"
        );
    }
}

/// Whole envelopes, of which the last one, and no other, ends the stream.
fn assert_stream(mut body: &[u8]) {
    let mut ended = false;
    while let Some((header, rest)) = body.split_first_chunk::<5>() {
        assert!(!ended, "an envelope after the end");
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        ended = header[0] & 2 != 0;
        body = rest.get(length as usize..).expect("a whole envelope");
    }
    assert!(body.is_empty() && ended, "no end");
}

/// What is understood is understood the same way once it was written down again.
pub fn json_bodies(data: &[u8]) {
    let settings = Settings::new(Startup::default());
    if let Some(request) = again::<InitRequest>(data) {
        // A refusal is an answer too.
        _ = settings.apply(&request);
    }
    _ = terminal::understands(data);
    again_both::<process::StartRequest>(data);
    again_both::<process::ConnectRequest>(data);
    again_both::<process::StreamInputRequest>(data);
    again_both::<process::SendSignalRequest>(data);
    again_both::<process::UpdateRequest>(data);
    again_both::<filesystem::EntryInfo>(data);
    again_both::<filesystem::ListDirRequest>(data);
    again_both::<filesystem::WatchDirRequest>(data);
}

fn again<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_string(&read).expect("serialises");
    let twice: T = serde_json::from_str(&written).expect("parses what it wrote");
    assert_eq!(
        serde_json::to_value(&twice).ok(),
        serde_json::to_value(&read).ok()
    );
    Some(read)
}

/// As JSON, as protobuf, and from one to the other.
fn again_both<T: Serialize + DeserializeOwned + Message>(data: &[u8]) {
    if let Some(read) = again::<T>(data) {
        let encoded = read.encode_to_vec();
        T::decode_from_slice(&encoded).expect("decodes what it encoded");
    }
    if let Ok(read) = T::decode_from_slice(data) {
        let encoded = read.encode_to_vec();
        let twice = T::decode_from_slice(&encoded).expect("decodes what it encoded");
        assert_eq!(twice.encode_to_vec(), encoded);
    }
}

/// The first byte chooses: a body as it is, or a well-made one around the rest, which must arrive unchanged.
pub fn multipart(data: &[u8]) {
    let Some((chosen, content)) = data.split_first() else {
        return;
    };
    let target = target();
    let whole = chosen & 1 != 0;
    let gzipped = chosen & 2 != 0;
    if whole
        && content
            .windows(BOUNDARY.len())
            .any(|part| part == BOUNDARY.as_bytes())
    {
        return;
    }
    let mut body = if whole {
        let mut body = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        body
    } else {
        content.to_vec()
    };
    if whole && gzipped {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &body).expect("compresses");
        body = encoder.finish().expect("compresses");
    }
    let mut request = Request::post(format!("/files?path={}", target.display())).header(
        header::CONTENT_TYPE,
        format!("multipart/form-data; boundary={BOUNDARY}"),
    );
    if gzipped {
        request = request.header(header::CONTENT_ENCODING, "gzip");
    }
    let (status, _, answer) = answer(request.body(Body::from(body)).expect("a request"));
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    match status {
        StatusCode::OK => assert!(answer.is_array()),
        status => {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
            assert!(answer["message"].as_str().is_some_and(|it| !it.is_empty()));
        }
    }
    if whole {
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(fs::read(&target).expect("the file"), content);
    }
}

fn target() -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let digits: String = thread.chars().filter(char::is_ascii_digit).collect();
    std::env::temp_dir().join(format!("soulbox-fuzz-{}-{digits}", std::process::id()))
}

/// A path as requests, URLs and headers have them.
pub fn paths(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let user = User {
        name: "user".to_owned(),
        uid: 1000,
        gid: 1000,
        home: "/home/user".to_owned(),
    };
    if let Ok(resolved) = path::resolve(&text, &user, Some("/work")) {
        assert!(
            resolved.starts_with('/') && !resolved.contains('\0'),
            "{resolved:?}"
        );
        if !text.starts_with('/') {
            assert_eq!(path::clean(&resolved), resolved);
        }
        let cleaned = path::clean(&resolved);
        assert_eq!(path::clean(&cleaned), cleaned);
        assert!(!cleaned.split('/').any(|part| part == ".." || part == "."));
        let (name, parent) = (path::name(&cleaned), path::parent(&cleaned));
        if cleaned != "/" {
            assert!(!name.is_empty() && !name.contains('/'), "{cleaned:?}");
            assert_eq!(format!("{}/{name}", parent.trim_end_matches('/')), cleaned);
        }
        HeaderValue::from_str(&content_disposition(name)).expect("a header");
    }
    if let Ok(uri) = http::Uri::try_from(text.as_ref())
        && uri.authority().is_none()
        && !is_host_only(uri.path())
        && !["/process.", "/filesystem.", "/grpc.", "/files"]
            .iter()
            .any(|prefix| uri.path().starts_with(prefix))
    {
        // Of the other routes only those that the host alone may call take no GET.
        let request = Request::get(uri).body(Body::empty()).expect("a request");
        assert_ne!(answer(request).0, StatusCode::METHOD_NOT_ALLOWED, "{text}");
    }
    for length in [1, 10, u64::MAX] {
        if let Part::Bytes(bytes) = part(Some(&text), length) {
            assert!(bytes.start < bytes.end && bytes.end <= length, "{bytes:?}");
        }
    }
    if let Ok(value) = HeaderValue::from_bytes(data) {
        let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]);
        _ = encoding::choose(&headers);
        _ = encoding::identity_acceptable(&headers);
    }
}

/// Lines: token, path, user, expiration, what is offered as the signature.
pub fn signatures(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(5, '\n');
    let mut line = || lines.next().unwrap_or_default().to_owned();
    let (token, path, user, expiration, offered) = (line(), line(), line(), line(), line());
    if token.is_empty() {
        return;
    }
    let settings = Settings::new(Startup::default());
    let init = InitRequest {
        access_token: Some(token.clone()),
        ..InitRequest::default()
    };
    settings.apply(&init).expect("a token");
    let expiration = expiration.parse().ok();
    let expired = expiration.is_some_and(|at: i64| at < 4_102_444_800);
    for (operation, other) in [
        (FileOperation::Read, FileOperation::Write),
        (FileOperation::Write, FileOperation::Read),
    ] {
        let signature = sign_file(&path, operation, &user, &token, expiration);
        let mut query = FilesQuery {
            path: Some(path.clone()),
            username: Some(user.clone()),
            signature: Some(signature.clone()),
            signature_expiration: expiration,
        };
        let allowed = |query: &FilesQuery, operation| {
            files::authorise(&settings, &HeaderMap::new(), query, operation).is_ok()
        };
        // Past the year 2100 nothing has expired yet; before, the clock decides.
        assert!(allowed(&query, operation) || expired);
        assert!(!allowed(&query, other));
        if offered != signature {
            query.signature = Some(offered.clone());
            assert!(!allowed(&query, operation), "{offered:?}");
        }
        query.signature = None;
        assert!(!allowed(&query, operation));
    }
    let signed = sign_init(token.as_bytes(), path.as_bytes());
    assert!(verify_init(token.as_bytes(), path.as_bytes(), &signed));
    assert!(
        !verify_init(token.as_bytes(), path.as_bytes(), &offered)
            || offered.eq_ignore_ascii_case(&signed)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(target: &str, run: fn(&[u8])) {
        let folder = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("stored inputs") {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            run(&fs::read(path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 4, "{folder} has {inputs} inputs");
        // What libFuzzer begins with.
        run(b"");
    }

    #[test]
    fn stored_connect_frames() {
        replay("connect_frames", connect_frames);
    }

    #[test]
    fn stored_json_bodies() {
        replay("json_bodies", json_bodies);
    }

    #[test]
    fn stored_multipart() {
        replay("multipart", multipart);
        fs::remove_file(target()).expect("a file was written");
    }

    #[test]
    fn stored_paths() {
        replay("paths", paths);
    }

    #[test]
    fn stored_signatures() {
        replay("signatures", signatures);
    }
}
