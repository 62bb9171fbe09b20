//! Start and ready commands: one program is started and goes on, another is run again and again until it succeeds.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::bench::{BenchError, Command, Guest, Output};

/// Between two tries of a ready command.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub first: Duration,
    /// Waits double until they are this.
    pub longest: Duration,
}

/// Why a sandbox did not become ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadyError {
    #[error("start command '{command}' ended before the template was ready: {status}")]
    StartEnded { command: String, status: String },
    #[error("ready command timed out after {}s: '{command}' has not succeeded", .within.as_secs())]
    TimedOut { command: String, within: Duration },
    #[error("ready command '{command}' could not be run: {reason}")]
    NotRun { command: String, reason: String },
    #[error("start command '{command}' could not be run: {reason}")]
    NotStarted { command: String, reason: String },
}

/// Starts `start`, and returns when `ready` has succeeded; the started program goes on. One of them that ends well is a program that put
/// itself into the background. Where there is no `ready`, it is enough that the start command runs, or has ended well, after `settle`.
///
/// # Errors
/// See [`ReadyError`].
pub async fn until_ready(
    guest: &dyn Guest,
    start: Option<&Command>,
    ready: Option<&Command>,
    pace: Pace,
    settle: Duration,
    output: mpsc::Sender<Output>,
) -> Result<(), ReadyError> {
    let (began, has_begun) = oneshot::channel();
    let mut began = Some(began);
    let starting = async {
        let Some(start) = start else {
            return pending().await;
        };
        let (heard, mut hear) = mpsc::channel(16);
        let passing = async {
            while let Some(written) = hear.recv().await {
                if written == Output::Started
                    && let Some(began) = began.take()
                {
                    // Nobody waits for it any more when it is over already.
                    let _ = began.send(());
                }
                // Whoever does not listen still wants to know how it ends.
                drop(output.send(written).await);
            }
        };
        let (ended, ()) = tokio::join!(guest.run(start, heard), passing);
        match ended {
            Ok(exit) if exit.code == 0 => pending().await,
            Ok(exit) => ReadyError::StartEnded {
                command: start.text.clone(),
                status: exit.status,
            },
            Err(error) => ReadyError::NotStarted {
                command: start.text.clone(),
                reason: error.to_string(),
            },
        }
    };
    let waiting = async {
        // A ready command that is true at once says nothing of a program that was not started yet. Without a word of a start, its end tells.
        if start.is_some() && has_begun.await.is_err() {
            return pending().await;
        }
        match ready {
            Some(ready) => poll(guest, ready, pace).await,
            None if start.is_some() => {
                sleep(settle).await;
                Ok(())
            }
            None => Ok(()),
        }
    };
    let (starting, waiting) = (pin!(starting), pin!(waiting));
    tokio::select! {
        outcome = waiting => outcome,
        error = starting => Err(error),
    }
}

async fn poll(guest: &dyn Guest, ready: &Command, pace: Pace) -> Result<(), ReadyError> {
    let until = Instant::now() + ready.within;
    let mut pause = pace.first;
    let polled = async {
        loop {
            let (output, mut unread) = mpsc::channel(16);
            let drain = async { while unread.recv().await.is_some() {} };
            let (exit, ()) = tokio::join!(guest.run(ready, output), drain);
            match exit {
                Ok(exit) if exit.code == 0 => return Ok(()),
                Ok(_) => {}
                Err(error @ (BenchError::Refused(_) | BenchError::Ended(_))) => {
                    return Err(ReadyError::NotRun {
                        command: ready.text.clone(),
                        reason: error.to_string(),
                    });
                }
                // It may come back; the time limit ends this.
                Err(error) => tracing::debug!(%error, "a ready command could not be run"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(pace.longest);
        }
    };
    timeout_at(until, polled).await.unwrap_or_else(|_| {
        Err(ReadyError::TimedOut {
            command: ready.text.clone(),
            within: ready.within,
        })
    })
}
