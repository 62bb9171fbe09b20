//! The front as a process: started as the agent starts it, its privileges read from /proc, its ends watched. Needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;
use soulbox_sys::fdpass;
use soulbox_wire::host::{
    AgentFrame, FrontFrame, FrontSettings, HEADER_LEN, Hello, HostTemplate, Reply, Request,
    TemplateImages,
};

const UID: u32 = 61_357;

struct Front {
    process: Child,
    address: std::net::SocketAddr,
    /// The agent's end, whose drop is the agent's death.
    agent: Option<UnixStream>,
    _data: tempfile::TempDir,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Front {
    /// Starts a front whose agent is a thread that ends with the connection.
    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let data = tempfile::tempdir().unwrap();
        // As under a home of mode 0700: the front cannot reach the directory by its path.
        fs::set_permissions(
            data.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let control = data.path().join("control");
        fs::create_dir(&control).unwrap();
        std::os::unix::fs::chown(&control, Some(UID), Some(UID)).unwrap();
        let directory = OwnedFd::from(fs::File::open(&control).unwrap());
        let (agent, socket) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_soulbox"))
            .args(["front", "--socket-fd", "0", "--data-fd", "1"])
            .args(["--uid", &UID.to_string()])
            .stdin(socket)
            .stdout(directory)
            .spawn()
            .unwrap();
        let served = agent.try_clone().unwrap();
        std::thread::spawn(move || serve(served, &listener));
        Self {
            process,
            address,
            agent: Some(agent),
            _data: data,
        }
    }

    fn get(&self, path: &str) -> String {
        let begun = Instant::now();
        loop {
            match self.try_get(path) {
                Ok(answer) if !answer.is_empty() => return answer,
                outcome => assert!(begun.elapsed() < Duration::from_secs(20), "{outcome:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_get(&self, path: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn ends(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "the front goes on"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Answers as an agent without sandboxes does, and holds the listener for the next front.
fn serve(mut socket: UnixStream, listener: &TcpListener) {
    loop {
        let mut header = [0; HEADER_LEN];
        if socket.read_exact(&mut header).is_err() {
            return;
        }
        let mut body = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
        socket.read_exact(&mut body).unwrap();
        let FrontFrame { id, request } = serde_json::from_slice(&body).unwrap();
        let (reply, descriptors) = match request {
            Request::Hello => (
                Reply::Hello(Box::new(hello(listener))),
                vec![listener.as_fd()],
            ),
            Request::List => (Reply::Sandboxes(Vec::new()), vec![]),
            Request::Templates => (Reply::Templates(vec![template()]), vec![]),
            Request::Usage => (Reply::Usage(Vec::new()), vec![]),
            Request::Snapshots => (Reply::Snapshots(Vec::new()), vec![]),
            other => panic!("unexpected {other:?}"),
        };
        let body = serde_json::to_vec(&AgentFrame::Reply {
            id,
            result: Ok(reply),
        })
        .unwrap();
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend([u8::try_from(descriptors.len()).unwrap(), 0, 0, 0]);
        frame.extend(body);
        let sent = fdpass::send(socket.as_fd(), &frame, &descriptors);
        assert_eq!(sent.unwrap(), frame.len());
    }
}

fn hello(listener: &TcpListener) -> Hello {
    let settings = FrontSettings {
        listeners: vec![listener.local_addr().unwrap().to_string()],
        domain: None,
        tls_cert_pem: None,
        tls_key_pem: None,
        api_key: format!("e2b_{}", "a".repeat(40)),
        access_token: format!("sk_e2b_{}", "b".repeat(40)),
        admin_token: "admin".to_owned(),
        token_seed: "00".repeat(32),
        max_sandbox_hours: 24,
        max_sandboxes: 10,
        max_requests: 100,
        template_images: TemplateImages::Alias,
        keep_builds: 3600,
        database_url: None,
        rate_limits: None,
        admin_listener: None,
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    Hello {
        now: u64::try_from(now).unwrap(),
        settings,
        sandboxes: Vec::new(),
        templates: vec![template()],
    }
}

fn template() -> HostTemplate {
    HostTemplate {
        name: "base".to_owned(),
        template_id: "base0000000000000000".to_owned(),
        build_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        built_at: 1,
        layers: Vec::new(),
        cpu_count: 2,
        memory_mib: 512,
        disk_mib: 1024,
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
        inherited: Default::default(),
    }
}

#[test]
fn a_running_front_has_no_privilege_and_sees_one_directory() {
    let front = Front::start();
    assert!(front.get("/health").starts_with("HTTP/1.1 200"));
    let process = format!("/proc/{}", front.process.id());
    let mut threads = 0;
    for thread in fs::read_dir(format!("{process}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        for name in ["Uid", "Gid"] {
            assert_eq!(line(name), format!("{UID} {UID} {UID} {UID}"), "{name}");
        }
        assert_eq!(line("Groups"), "");
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(line(name), "0000000000000000", "{name}");
        }
        assert_eq!(line("NoNewPrivs"), "1");
        assert_eq!(
            (line("Seccomp"), line("Seccomp_filters")),
            ("2".to_owned(), "2".to_owned())
        );
        threads += 1;
    }
    assert!(
        threads > 1,
        "the check must cover threads that were made later"
    );

    // Not dumpable: /proc/PID belongs to root, so that others of the same user cannot reach in.
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("{process}/mem")).unwrap()),
        0
    );
    let root: Vec<_> = fs::read_dir(format!("{process}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["data"]);
    let mounts = fs::read_to_string(format!("{process}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    for mount in mounts.lines() {
        assert!(
            ["nosuid", "nodev", "noexec"]
                .iter()
                .all(|flag| mount.contains(flag)),
            "{mount}"
        );
    }
    assert!(fs::metadata(format!("{process}/root/data/control.db")).is_ok());
    let opened = fs::read_dir(format!("{process}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    for target in opened {
        let target = target.to_string_lossy().into_owned();
        let harmless = [
            "socket:",
            "pipe:",
            "anon_inode:",
            "/data/",
            "/dev/null",
            "/dev/pts/",
        ];
        assert!(
            harmless.iter().any(|start| target.starts_with(start))
                || target.contains("/stderr")
                || target.contains("/stdout")
                || target.contains("tty"),
            "{target} is open"
        );
    }
}

#[test]
fn the_front_ends_with_its_agent() {
    let mut front = Front::start();
    front.get("/health");
    let agent = front.agent.take().unwrap();
    let begun = Instant::now();
    agent.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(front.ends().code(), Some(1));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_stop_in_good_order_is_a_success() {
    let mut front = Front::start();
    front.get("/health");
    let id = rustix::process::Pid::from_child(&front.process);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert_eq!(front.ends().code(), Some(0));
}

#[test]
fn requests_without_a_sandbox_go_to_the_api_and_others_to_the_proxy() {
    let front = Front::start();
    front.get("/health");
    let mut socket = TcpStream::connect(front.address).unwrap();
    socket
        .write_all(
            b"GET /health HTTP/1.1\r\nHost: 49983-inone.localhost\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(
        serde_json::from_str::<Value>(body).unwrap()["message"],
        "The sandbox was not found"
    );
}
