//! A running sandbox, seen from the host: envd over HTTP, the rest through /proc of its init.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soulbox_envd_proto::{INIT_SIGNATURE_HEADER, sign_init};
use soulbox_runtime::dial;
use soulbox_runtime::identity::ENVD_PORT;
use soulbox_runtime::native::{Native, Running};

use crate::PATIENCE;

pub struct Guest<'host> {
    native: &'host Native,
    pub running: Running,
}

impl<'host> Guest<'host> {
    pub fn new(native: &'host Native, running: Running) -> Self {
        Self { native, running }
    }

    /// What the host's /proc has of init.
    pub fn proc(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{path}", self.running.pid()))
    }

    /// A file inside; empty when there is none.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.proc("root").join(path)).unwrap_or_default()
    }

    /// The numbers in a file of /tmp.
    pub fn numbers(&self, file: &str) -> Vec<usize> {
        numbers(&self.proc("root/tmp").join(file))
    }

    /// What runs under that pid inside.
    pub fn command_line(&self, pid: u32) -> String {
        self.read(&format!("proc/{pid}/cmdline"))
    }

    /// IDs, capabilities, filter and cgroups of a process, as the host has them.
    pub fn privileges(&self, pid: u32) -> String {
        let status = self.read(&format!("proc/{pid}/status"));
        let names = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
        let lines = status
            .lines()
            .filter(|line| names.iter().any(|name| line.starts_with(name)));
        let cgroups = self.read(&format!("proc/{pid}/cgroup"));
        lines.chain(cgroups.lines()).collect::<Vec<_>>().join("\n")
    }

    pub fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::from(self.native.socket(&self.running, false)?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        rustix::net::connect(&stream, &dial::addresses(ENVD_PORT)[0])?;
        Ok(stream)
    }

    pub fn is_healthy(&self) -> bool {
        let mut answer = Vec::new();
        let asked = self.connect().and_then(|mut stream| {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\nConnection: close\r\n\r\n")?;
            stream.read_to_end(&mut answer)
        });
        asked.is_ok() && answer.starts_with(b"HTTP/1.1 204 ")
    }

    /// What a host does first: before, envd takes no orders. Without a token, so that none is needed afterwards.
    pub fn claim(&self, init_secret: &[u8]) {
        let body = "{}";
        let signature = sign_init(init_secret, body.as_bytes());
        let request = format!(
            "POST /init HTTP/1.1\r\nHost: envd\r\nConnection: close\r\nContent-Type: application/json\r\n\
             {INIT_SIGNATURE_HEADER}: {signature}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = self.connect().expect("connect to envd");
        stream.write_all(request.as_bytes()).expect("ask envd");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("hear from envd");
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }

    /// Has envd start `sh -c SCRIPT` and leaves it alone; its pid inside.
    pub fn start(&self, script: &str) -> u32 {
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
        let mut stream = self.connect().expect("connect to envd");
        stream.write_all(head.as_bytes()).expect("ask envd");
        stream.write_all(&body).expect("ask envd");
        let (mut answer, mut part) = (String::new(), [0; 4096]);
        loop {
            let length = stream.read(&mut part).expect("hear from envd");
            assert_ne!(length, 0, "envd started nothing: {answer}");
            answer.push_str(&String::from_utf8_lossy(&part[..length]));
            if let Some((_, rest)) = answer.split_once("\"pid\":")
                && let Some(end) = rest.find(|character: char| !character.is_ascii_digit())
            {
                return rest[..end].parse().expect("a pid");
            }
        }
    }

    pub fn wait_for_end(&self) {
        let pidfd = self.running.pidfd().expect("a pidfd");
        let timeout = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
        assert_eq!(ended, Ok(1), "the sandbox does not end");
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.running.kill();
    }
}

/// The complete lines of a file of numbers; none when it is not there yet.
pub fn numbers(path: &Path) -> Vec<usize> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n');
    lines
        .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
        .collect()
}
