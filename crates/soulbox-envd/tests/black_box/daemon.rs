//! A running daemon and a small client for it.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when dropped.
pub struct Daemon {
    child: Child,
    pub address: String,
    agent: Agent,
    /// Sent with every request.
    pub headers: Vec<(&'static str, String)>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::spawn(
            Command::new(env!("CARGO_BIN_EXE_soulbox-envd")).args(["--listen", "127.0.0.1:0"]),
        )
    }

    /// With an init secret, given on descriptor 3 as the launcher does.
    pub fn start_with_secret(secret: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), hex(secret)).expect("write");
        let script = "exec \"$0\" --listen 127.0.0.1:0 --init-secret-fd 3 3< \"$1\"";
        Self::spawn(
            Command::new("/bin/sh")
                .args(["-c", script, env!("CARGO_BIN_EXE_soulbox-envd")])
                .arg(file.path()),
        )
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line on stderr");
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("not listening: {line}"))
            .to_owned();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        Self {
            child,
            address,
            agent,
            headers: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = self
            .agent
            .get(format!("http://{}{path}", self.address))
            .header("accept-encoding", "identity");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        for (name, value) in headers {
            if *name == "accept-encoding" {
                request
                    .headers_mut()
                    .expect("valid so far")
                    .remove("accept-encoding");
            }
            request = request.header(*name, *value);
        }
        request.call().expect("an answer")
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Body> {
        let mut request = self.agent.post(format!("http://{}{path}", self.address));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send(body).expect("an answer")
    }

    /// A unary RPC: the status and the JSON of the answer.
    pub fn call(&self, method: &str, request: Value) -> (StatusCode, Value) {
        let response = self.post(
            &format!("/{method}"),
            &[("content-type", "application/json")],
            request.to_string().as_bytes(),
        );
        (response.status(), json(response))
    }

    /// A unary RPC that succeeds.
    pub fn ok(&self, method: &str, request: Value) -> Value {
        let (status, answer) = self.call(method, request);
        assert_eq!(status, 200, "{method}: {answer}");
        answer
    }

    /// A unary RPC that fails: the code.
    pub fn refused(&self, method: &str, request: Value) -> String {
        let (status, answer) = self.call(method, request);
        assert_ne!(status, 200, "{method}: {answer}");
        answer["code"].as_str().expect("a code").to_owned()
    }

    /// A server-stream RPC.
    pub fn stream(&self, method: &str, request: Value, headers: &[(&str, &str)]) -> Messages {
        let mut all = vec![("content-type", "application/connect+json")];
        all.extend_from_slice(headers);
        let response = self.post(&format!("/{method}"), &all, &envelope(&request));
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["content-type"],
            "application/connect+json"
        );
        assert!(!response.headers().contains_key("content-encoding"));
        Messages {
            reader: Box::new(response.into_body().into_reader()),
            end: None,
        }
    }

    /// A client-stream RPC whose body ends at once: all answer envelopes.
    pub fn send_all(&self, method: &str, requests: &[Value]) -> Messages {
        let body: Vec<u8> = requests.iter().flat_map(envelope).collect();
        let response = self.post(
            &format!("/{method}"),
            &[("content-type", "application/connect+json")],
            &body,
        );
        assert_eq!(
            response.headers()["content-type"],
            "application/connect+json"
        );
        Messages {
            reader: Box::new(response.into_body().into_reader()),
            end: None,
        }
    }

    /// Starts `sh -c SCRIPT` without stdin.
    pub fn run(&self, script: &str) -> Messages {
        self.run_with(script, serde_json::json!({}), &[])
    }

    /// As `run`, with more fields of the request and headers.
    pub fn run_with(&self, script: &str, more: Value, headers: &[(&str, &str)]) -> Messages {
        let mut request = serde_json::json!({"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": false});
        for (name, value) in more.as_object().expect("an object") {
            match (name.as_str(), value) {
                ("process", Value::Object(fields)) => {
                    for (name, value) in fields {
                        request["process"][name] = value.clone();
                    }
                }
                _ => request[name] = value.clone(),
            }
        }
        self.stream("process.Process/Start", request, headers)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().expect("the daemon lived until here");
        self.child.wait().expect("wait");
    }
}

/// Messages of a stream; dropping it closes the connection.
pub struct Messages {
    reader: Box<dyn Read + Send>,
    /// The end-of-stream message, once it came.
    end: Option<Value>,
}

/// What a finished program has left.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub end: Value,
    pub keepalives: usize,
}

impl Messages {
    /// The next message, `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Value> {
        let mut header = [0; 5];
        self.reader.read_exact(&mut header).expect("an envelope");
        let length = u32::from_be_bytes(header[1..].try_into().expect("four bytes"));
        let mut payload = vec![0; length as usize];
        self.reader
            .read_exact(&mut payload)
            .expect("a whole envelope");
        let payload = serde_json::from_slice(&payload).expect("JSON");
        match header[0] {
            0 => Some(payload),
            2 => {
                self.end = Some(payload);
                None
            }
            other => panic!("flags {other}"),
        }
    }

    /// The pid that the first message names.
    pub fn pid(&mut self) -> u64 {
        let first = self.next().expect("a start event");
        first["event"]["start"]["pid"]
            .as_u64()
            .unwrap_or_else(|| panic!("no start event: {first}"))
    }

    /// The error that ends the stream: code, or `ok`. Messages before it are skipped.
    pub fn code(mut self) -> String {
        while self.next().is_some() {}
        self.end.expect("an end")["error"]["code"]
            .as_str()
            .unwrap_or("ok")
            .to_owned()
    }

    /// Reads to the end, which has to be a good one.
    pub fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(message) = self.next() {
            let event = &message["event"];
            for (name, output) in [
                ("stdout", &mut outcome.stdout),
                ("stderr", &mut outcome.stderr),
                ("pty", &mut outcome.pty),
            ] {
                if let Some(text) = event["data"][name].as_str() {
                    output.extend(decoded(text));
                }
            }
            if !event["end"].is_null() {
                outcome.end = event["end"].clone();
            }
            outcome.keepalives += usize::from(!event["keepalive"].is_null());
        }
        assert_eq!(self.end, Some(serde_json::json!({})));
        outcome
    }

    /// Text of stdout at the end.
    pub fn text(self) -> String {
        String::from_utf8(self.outcome().stdout).expect("UTF-8")
    }
}

pub fn json(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response)).expect("JSON")
}

pub fn text(response: Response<Body>) -> String {
    response.into_body().read_to_string().expect("a body")
}

pub fn encoded(data: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, data)
}

pub fn decoded(text: &str) -> Vec<u8> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).expect("base64")
}

fn envelope(message: &Value) -> Vec<u8> {
    let payload = message.to_string().into_bytes();
    let mut envelope = vec![0];
    envelope.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
    envelope.extend(payload);
    envelope
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
