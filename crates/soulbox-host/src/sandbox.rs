//! One live sandbox: a task owns it until its end, whoever brings that about.
//!
//! | event | what follows |
//! |---|---|
//! | kill | SIGKILL, the reply when no process is left |
//! | deadline | the same without a caller, and an event |
//! | its own end | an event with the cause |
//!
//! Every request carries the epoch; one older than the sandbox's is refused.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use soulbox_types::{DeathCause, Egress, Epoch, UnixMillis};
use soulbox_wire::host::{self as wire, HostError, HostErrorKind};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::record::{Record, Records};
use crate::runtime::Runtime;

/// SIGKILL to the last exit.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// The clock of the host may be set while a task sleeps; deadlines are looked at again after so long.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(crate) enum Request {
    Kill {
        epoch: Epoch,
        reply: oneshot::Sender<Result<(), HostError>>,
    },
    SetDeadline {
        epoch: Epoch,
        deadline: UnixMillis,
        reply: oneshot::Sender<Result<(), HostError>>,
    },
    SetEgress {
        epoch: Epoch,
        egress: Egress,
        reply: oneshot::Sender<Result<(), HostError>>,
    },
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) cause: DeathCause,
    pub(crate) record: Record,
    /// Who asked for it, to be answered when nothing names the sandbox any more.
    pub(crate) reply: Option<oneshot::Sender<Result<(), HostError>>>,
}

/// Waits for the end of a sandbox, or for the end of all its handles (`None`: the agent stops and the sandbox goes on).
pub(crate) async fn own<R: Runtime>(
    runtime: &R,
    running: Arc<R::Running>,
    ended: OwnedFd,
    record: Arc<Mutex<Record>>,
    records: &Records,
    mut inbox: mpsc::Receiver<Request>,
) -> io::Result<Option<Ended>> {
    #[expect(
        deprecated,
        reason = "unsound only for types whose descriptor may change; an OwnedFd keeps its own"
    )]
    let ended = AsyncFd::with_interest(ended, Interest::READABLE)?;
    let current = || {
        record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    };
    let (cause, reply) = loop {
        let left = Duration::from_millis(UnixMillis(current().deadline).millis_since(now()));
        tokio::select! {
            biased;
            _ = ended.readable() => {
                let cause = if runtime.oom_kills(&running) > 0 { DeathCause::OutOfMemory } else { DeathCause::AgentDied };
                break (cause, None);
            }
            request = inbox.recv() => match request {
                None => return Ok(None),
                Some(Request::Kill { epoch, reply }) => match check(&current(), epoch) {
                    Ok(()) => {
                        runtime.kill(&running);
                        break (DeathCause::Killed, Some(reply));
                    }
                    Err(error) => drop(reply.send(Err(error))),
                },
                Some(Request::SetDeadline { epoch, deadline, reply }) => {
                    let result = check(&current(), epoch).and_then(|()| {
                        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                        record.epoch = epoch.0;
                        record.deadline = deadline.0;
                        // Here and nowhere else, so that no record is written after its sandbox has ended.
                        records.put(&record).map_err(|error| HostError {
                            kind: HostErrorKind::Failed,
                            message: format!("failed to write its record: {error}"),
                        })
                    });
                    drop(reply.send(result));
                }
                Some(Request::SetEgress { epoch, egress, reply }) => {
                    // A few netlink messages, in line: the next request meets a sandbox that has all of it.
                    let result = check(&current(), epoch).and_then(|()| {
                        runtime.set_egress(&running, &egress).map_err(|error| failed(&error))?;
                        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                        record.egress = wire::Egress::from(&egress);
                        records.put(&record).map_err(|error| HostError {
                            kind: HostErrorKind::Failed,
                            message: format!("failed to write its record: {error}"),
                        })
                    });
                    drop(reply.send(result));
                }
            },
            () = sleep(left.min(LONGEST_SLEEP)) => {
                if now().0 >= current().deadline {
                    runtime.kill(&running);
                    break (DeathCause::Expired, None);
                }
            }
        }
    };
    if timeout(END_TIMEOUT, ended.readable()).await.is_err() {
        tracing::error!(
            sandbox_id = current().sandbox_id,
            "processes are left ten seconds after SIGKILL"
        );
        if let Some(reply) = reply {
            let message = "processes of the sandbox are left ten seconds after SIGKILL".to_owned();
            drop(reply.send(Err(HostError {
                kind: HostErrorKind::Failed,
                message,
            })));
            return Ok(Some(Ended {
                cause,
                record: current(),
                reply: None,
            }));
        }
    }
    Ok(Some(Ended {
        cause,
        record: current(),
        reply,
    }))
}

fn failed(error: &dyn std::error::Error) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message: crate::chain(error),
    }
}

fn check(record: &Record, epoch: Epoch) -> Result<(), HostError> {
    if epoch.0 >= record.epoch {
        return Ok(());
    }
    Err(HostError {
        kind: HostErrorKind::StaleEpoch,
        message: format!(
            "sandbox {} is at epoch {}, the command is of epoch {}",
            record.sandbox_id, record.epoch, epoch.0
        ),
    })
}

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
