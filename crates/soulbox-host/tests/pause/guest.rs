//! A sandbox, spoken to through its envd.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use soulbox_envd_proto::{INIT_SIGNATURE_HEADER, sign_init};
use soulbox_host::native::NativeRuntime;
use soulbox_host::{ENVD_PORT, Host};
use soulbox_wire::host::{Create, Created};

/// Nothing here takes a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Guest {
    host: Host<NativeRuntime>,
    pub sandbox_id: String,
    pub pid: i32,
}

impl Guest {
    /// Creates a sandbox and does what a front does first: `/init`, signed.
    pub async fn create(
        place: &crate::place::Place,
        host: &Host<NativeRuntime>,
        request: Create,
    ) -> Self {
        let sandbox_id = request.sandbox_id.clone();
        let (created, envd) = host.create(request).await.expect("created");
        init(&created, envd);
        Self::found(place, host, &sandbox_id)
    }

    /// One that was told who it is.
    pub fn found(
        place: &crate::place::Place,
        host: &Host<NativeRuntime>,
        sandbox_id: &str,
    ) -> Self {
        Self {
            host: host.clone(),
            sandbox_id: sandbox_id.to_owned(),
            pid: place.init(sandbox_id),
        }
    }

    /// A file inside; empty when there is none.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/root/{path}", self.pid)).unwrap_or_default()
    }

    /// How far its counter has come, without gaps or repeats.
    pub fn counted(&self) -> usize {
        let text = self.read("tmp/counted");
        let lines = text.split_inclusive('\n');
        let numbers: Vec<usize> = lines
            .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
            .collect();
        let is_whole = numbers.iter().copied().eq(1..=numbers.len());
        assert!(is_whole, "gaps or repeats: {numbers:?}");
        numbers.len()
    }

    pub async fn goes_on(&self, from: usize) {
        eventually("the counter goes on", || self.counted() > from + 10).await;
    }

    /// Has envd start `sh -c SCRIPT`, and leaves it alone.
    pub async fn start(&self, script: &str) {
        let process = serde_json::json!({ "cmd": "/bin/sh", "args": ["-c", script] });
        let message = serde_json::json!({ "process": process, "stdin": false }).to_string();
        // An envelope: no flags, the length, the message.
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).expect("length").to_be_bytes());
        body.extend(message.as_bytes());
        let head = format!(
            "POST /process.Process/Start HTTP/1.1\r\nHost: envd\r\nConnect-Protocol-Version: 1\r\n\
             Content-Type: application/connect+json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let envd = self.host.dial(&self.sandbox_id, ENVD_PORT).await;
        let mut stream = blocking(envd.expect("dial envd"));
        stream.write_all(head.as_bytes()).expect("ask envd");
        stream.write_all(&body).expect("ask envd");
        let (mut answer, mut part) = (String::new(), [0; 4096]);
        while !answer.contains("\"pid\":") {
            let length = stream.read(&mut part).expect("hear from envd");
            assert_ne!(length, 0, "envd started nothing: {answer}");
            answer.push_str(&String::from_utf8_lossy(&part[..length]));
        }
    }

    /// One that waits to be reaped, or just is, runs no program any more.
    pub fn is_alive(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        status.is_ok_and(|text| !text.contains("State:\tZ") && !text.contains("State:\tX"))
    }
}

pub fn init(created: &Created, envd: OwnedFd) {
    let secret = hex::decode(&created.init_secret).expect("hex");
    let body = "{}";
    let signature = sign_init(&secret, body.as_bytes());
    let request = format!(
        "POST /init HTTP/1.1\r\nHost: envd\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {INIT_SIGNATURE_HEADER}: {signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = blocking(envd);
    stream.write_all(request.as_bytes()).expect("ask envd");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("hear from envd");
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}

fn blocking(socket: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
