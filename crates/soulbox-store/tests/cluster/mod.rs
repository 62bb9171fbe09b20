//! A PostgreSQL of the test's own: a temporary cluster on a unix socket, ended and removed with the value, by a panic too.
//!
//! Debian's `postgresql` has the programs (`scripts/setup.sh packages`). They refuse to run as root, so root runs them as `postgres` or,
//! where there is no such user, as `nobody`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use soulbox_store::{PgConnectOptions, postgres_options};
use tempfile::TempDir;

pub struct Cluster {
    server: Child,
    directory: TempDir,
    databases: std::cell::Cell<u32>,
}

impl Cluster {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("soulbox-postgres-")
            .tempdir()
            .expect("a directory");
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(directory.path(), Some(uid), Some(gid)).expect("chown");
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))
                .expect("chmod");
        }
        let data = directory.path().join("data");
        let run = |name: &str| {
            let mut command = Command::new(program(name));
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            command
        };
        let made = run("initdb")
            .arg("--pgdata")
            .arg(&data)
            .args([
                "--auth=trust",
                "--username=soulbox",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .output()
            .expect("initdb of Debian's package postgresql");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb failed: {said}");
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        // Should the test be killed, the server ends with the thread that started it.
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "INT"]);
        if let Some((uid, gid)) = user {
            server.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            server.arg("--clear-groups");
        }
        let server = server
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .arg(program("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stderr(Stdio::from(log))
            // A signal to the test's group, such as Ctrl-C, ends it with the test and not before.
            .process_group(0)
            .spawn()
            .expect("setpriv");
        let mut cluster = Self {
            server,
            directory,
            databases: std::cell::Cell::new(0),
        };
        cluster.wait();
        cluster
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let ended = self.server.try_wait().expect("wait");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "postgres did not start: {}",
                fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
            );
            if self.psql("postgres", "SELECT 1").is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A new and empty database.
    pub fn database(&self) -> PgConnectOptions {
        let number = self.databases.get() + 1;
        self.databases.set(number);
        let name = format!("soulbox_{number}");
        self.psql("postgres", &format!("CREATE DATABASE {name}"))
            .expect("a database");
        self.options(&name)
    }

    pub fn options(&self, database: &str) -> PgConnectOptions {
        let directory = self.directory.path().display();
        postgres_options(&format!(
            "postgres://soulbox@localhost/{database}?host={directory}"
        ))
        .expect("a good URL")
    }

    /// One statement, as text.
    pub fn psql(&self, database: &str, statement: &str) -> Result<String, String> {
        let said = Command::new(program("psql"))
            .args([
                "-X",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "soulbox",
                "-d",
                database,
                "-h",
            ])
            .arg(self.directory.path())
            .args(["-c", statement])
            .output()
            .expect("psql of Debian's package postgresql");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if said.status.success() {
            Ok(text(&said.stdout))
        } else {
            Err(text(&said.stderr))
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its processes hold the directory until they end; fast shutdown, and force when that takes long.
        if let Some(pid) = rustix::process::Pid::from_raw(self.server.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.server.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<_> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

/// User and group to run as, when this is root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string(Path::new("/etc/passwd")).expect("users");
    ["postgres", "nobody"].iter().find_map(|name| {
        let line = users
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}
