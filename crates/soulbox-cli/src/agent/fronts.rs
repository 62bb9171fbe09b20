//! Starts fronts, one after the other: one that ends is replaced, until the agent stops.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use soulbox_host::Host;
use soulbox_host::runtime::Runtime;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::handler::Requests;
use super::{line, own_program};
use crate::rpc;
use crate::settings::{LogFormat, Settings};

/// Below the data directory; belongs to the front's user.
const CONTROL: &str = "control";
/// A front that lived shorter than this failed at its start, and the next one waits.
const HEALTHY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// SIGTERM to SIGKILL; longer than the front's own drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps one front running until `stop`, then ends it.
pub(super) async fn supervise<R: Runtime>(
    settings: Settings,
    host: Host<R>,
    requests: Arc<Requests<R>>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let started = Instant::now();
        match live(&settings, &host, &requests, &stop).await {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => warn!("the front ended; starting another one"),
            Err(error) => warn!(
                error = line(&error),
                "the front failed; starting another one"
            ),
        }
        if started.elapsed() > HEALTHY {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One front, from its start to its end.
async fn live<R: Runtime>(
    settings: &Settings,
    host: &Host<R>,
    requests: &Arc<Requests<R>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (ours, theirs) = StdUnixStream::pair().context("failed to make a socket pair")?;
    ours.set_nonblocking(true)?;
    let mut events = host.subscribe();
    let mut front = Front(start(settings, theirs.into()).context("failed to start the front")?);
    let socket = UnixStream::from_std(ours)?;
    let serving = rpc::serve(socket, Arc::clone(requests), &mut events);
    tokio::pin!(serving);
    tokio::select! {
        outcome = &mut serving => outcome.context("the host RPC failed")?,
        () = stop.cancelled() => {
            front.terminate();
            // It still needs the agent while it drains.
            if tokio::time::timeout(STOP_TIMEOUT, &mut serving).await.is_err() {
                warn!("the front did not end in time and is killed");
            }
        }
    }
    let status = tokio::task::spawn_blocking(move || front.end()).await?;
    info!(status, "a front ended");
    Ok(())
}

fn start(settings: &Settings, socket: OwnedFd) -> anyhow::Result<Child> {
    let control = settings.data_dir.join(CONTROL);
    fs::create_dir_all(&control)?;
    chown(&control, Some(settings.front_uid), Some(settings.front_uid))?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o700))?;
    let control = File::open(&control)?;
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
    // Descriptors 0 and 1 carry the socket and the directory: that needs no unsafe code between fork and exec.
    let child = command
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(control))
        .stderr(Stdio::inherit())
        .spawn()?;
    Ok(child)
}

/// The child; killed when dropped.
struct Front(Child);

impl Front {
    fn terminate(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Waits for a moment, then kills; returns the exit status as text.
    fn end(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_millis(500);
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                _ => break,
            }
        }
        self.0.kill().and_then(|()| self.0.wait()).map_or_else(
            |error: io::Error| error.to_string(),
            |status| status.to_string(),
        )
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.end();
    }
}
