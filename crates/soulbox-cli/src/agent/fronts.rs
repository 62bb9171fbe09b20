//! Starts fronts, one after the other: one that ends is replaced, until the agent stops. Only when the first one says that no other can do
//! better is there no second. Other fronts ([`Others`]) come by themselves.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use soulbox_host::Host;
use soulbox_host::runtime::Runtime;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::handler::Requests;
use super::{line, own_program};
use crate::failure::{TOO_OLD, chain};
use crate::rpc;
use crate::settings::{LogFormat, Settings};

/// Below the data directory; belongs to the front's user.
pub const CONTROL: &str = "control";
/// In the data directory.
pub const SOCKET: &str = "agent.sock";
/// Fronts beside the agent's own.
const MOST_OTHERS: usize = 16;
/// A front that lived shorter than this failed at its start, and the next one waits.
const HEALTHY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// SIGTERM to SIGKILL; longer than the front's own drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there are no fronts any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Stopped,
    /// The records are of a newer soulbox, as the front has said. One that finds them so later is started again all the same: the agent
    /// ends sandboxes at their deadlines meanwhile.
    TooOld,
}

/// Keeps one front running until `stop`, then ends it.
pub(super) async fn supervise<R: Runtime>(
    settings: Settings,
    host: Host<R>,
    requests: Arc<Requests<R>>,
    stop: CancellationToken,
) -> Ending {
    let mut pause = FIRST_PAUSE;
    let mut is_first = true;
    while !stop.is_cancelled() {
        let started = Instant::now();
        match live(&settings, &host, &requests, &stop).await {
            Ok(_) if stop.is_cancelled() => break,
            Ok(Some(TOO_OLD)) if is_first => return Ending::TooOld,
            Ok(_) => warn!("the front ended; starting another one"),
            Err(error) => warn!(
                error = line(&error),
                "the front failed; starting another one"
            ),
        }
        is_first = false;
        if started.elapsed() > HEALTHY {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ending::Stopped
}

/// One front, from its start to its end; its exit status, where it ended by itself.
async fn live<R: Runtime>(
    settings: &Settings,
    host: &Host<R>,
    requests: &Arc<Requests<R>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<u8>> {
    let (ours, theirs) = StdUnixStream::pair().context("failed to make a socket pair")?;
    ours.set_nonblocking(true)?;
    let mut events = host.subscribe();
    let mut front = Front(start(settings, theirs.into()).context("failed to start the front")?);
    let socket = UnixStream::from_std(ours)?;
    let serving = rpc::serve(socket, Arc::clone(requests), &mut events);
    tokio::pin!(serving);
    let served = tokio::select! {
        outcome = &mut serving => outcome.context("the host RPC failed"),
        () = stop.cancelled() => {
            front.terminate();
            // It still needs the agent while it drains.
            if tokio::time::timeout(STOP_TIMEOUT, &mut serving).await.is_err() {
                warn!("the front did not end in time and is killed");
            }
            Ok(())
        }
    };
    let status = tokio::task::spawn_blocking(move || front.end()).await??;
    info!(%status, "a front ended");
    served?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()))
}

/// The directory of the records, made if it is not there, for the front's user alone.
pub fn open_control(settings: &Settings) -> io::Result<File> {
    let control = settings.data_dir.join(CONTROL);
    fs::create_dir_all(&control)?;
    chown(&control, Some(settings.front_uid), Some(settings.front_uid))?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o700))?;
    File::open(&control)
}

fn start(settings: &Settings, socket: OwnedFd) -> anyhow::Result<Child> {
    let control = open_control(settings)?;
    let mut command = Command::new(own_program());
    // For people who look at the process list.
    command.arg0("soulbox");
    command.args([
        "front",
        "--socket-fd",
        "0",
        "--data-fd",
        "1",
        "--uid",
        &settings.front_uid.to_string(),
        "--log",
        &settings.log,
    ]);
    if settings.log_format == LogFormat::Json {
        command.arg("--log-json");
    }
    if settings.database_url.is_some() {
        command.arg("--database");
    }
    // Descriptors 0 and 1 carry the socket and the directory: that needs no unsafe code between fork and exec.
    let child = command
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(control))
        .stderr(Stdio::inherit())
        .spawn()?;
    Ok(child)
}

/// The socket of the host RPC for fronts that the agent did not start (`soulbox api`). Only root can open it, and `soulbox api` gives
/// root up as every front does.
pub(super) struct Others(UnixListener);

impl Others {
    /// Takes the place of an earlier agent's socket; the data directory is locked, so no other agent has it.
    pub(super) fn bind(data: &Path) -> io::Result<Self> {
        let path = data.join(SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Serves them until `stop`; then their connections end, and they with them.
    pub(super) async fn serve<R: Runtime>(
        self,
        host: Host<R>,
        requests: Arc<Requests<R>>,
        stop: CancellationToken,
    ) {
        let mut serving = JoinSet::new();
        loop {
            let socket = tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = serving.join_next() => continue,
                accepted = self.0.accept(), if serving.len() < MOST_OTHERS => match accepted {
                    Ok((socket, _)) => socket,
                    Err(error) => {
                        warn!(%error, "another front could not be let in");
                        tokio::time::sleep(FIRST_PAUSE).await;
                        continue;
                    }
                },
            };
            let (requests, mut events) = (Arc::clone(&requests), host.subscribe());
            info!("another front came");
            serving.spawn(async move {
                match rpc::serve(socket, requests, &mut events).await {
                    Ok(()) => info!("another front left"),
                    Err(error) => warn!(error = %chain(&error), "another front left"),
                }
            });
        }
    }
}

/// The child; killed when dropped.
struct Front(Child);

impl Front {
    fn terminate(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Waits for a moment, then kills.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + Duration::from_millis(500);
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                _ => break,
            }
        }
        self.0.kill().and_then(|()| self.0.wait())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
