//! Reads the log of the daemon in a sandbox. It is a guest that speaks: no more than its own limits is read, and a line that is none is an error.

use axum::body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, StatusCode};
use soulbox_control::{HostLogLine, LogLevel, LogLine};
use soulbox_envd_proto::{
    ACCESS_TOKEN_HEADER, LogLevel as ToldLevel, LogLine as Told, MAX_LOG_BYTES, MAX_LOG_LINES,
};
use soulbox_ingress::Upstream;
use soulbox_types::UnixMillis;
use tokio::net::TcpStream;

use crate::failure::chain;

/// Everything after the line of that number. The caller bounds the time.
pub(super) async fn read(
    socket: TcpStream,
    access_token: Option<&str>,
    after: u64,
) -> Result<Vec<HostLogLine>, String> {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(format!("/logs?after={after}"))
        .header("host", "localhost");
    if let Some(token) = access_token {
        request = request.header(ACCESS_TOKEN_HEADER, token);
    }
    let request = request.body(Body::empty()).map_err(|error| chain(&error))?;
    let mut upstream = Upstream::open(socket)
        .await
        .map_err(|error| chain(&error))?;
    let response = upstream
        .call(request)
        .await
        .map_err(|error| chain(&error))?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_LOG_BYTES)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    parse(&body.to_bytes())
}

fn parse(bytes: &[u8]) -> Result<Vec<HostLogLine>, String> {
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty()).take(MAX_LOG_LINES);
    let parsed = lines.map(|line| {
        let told: Told = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        Ok(HostLogLine {
            number: told.number,
            line: LogLine {
                at: UnixMillis(told.at),
                level: match told.level {
                    ToldLevel::Debug => LogLevel::Debug,
                    ToldLevel::Info => LogLevel::Info,
                    ToldLevel::Warn => LogLevel::Warn,
                    ToldLevel::Error => LogLevel::Error,
                },
                logger: told.logger,
                message: told.message,
                fields: told.fields,
            },
        })
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_and_nonsense_is_an_error() {
        let good =
            br#"{"number":3,"at":7,"level":"warn","logger":"process","message":"m"}"#.to_vec();
        let good = [good, b"\n".to_vec()].concat();
        let lines = parse(&good).expect("a line");
        let found = (lines.len(), lines[0].number, lines[0].line.level);
        assert_eq!(found, (1, 3, LogLevel::Warn));
        assert!(parse(b"{}\n").is_err() && parse(b"\xff\n").is_err());
        let many = good.repeat(MAX_LOG_LINES + 5);
        assert_eq!(parse(&many).expect("lines").len(), MAX_LOG_LINES);
    }
}
