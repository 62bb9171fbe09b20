//! Saves under way: each is a [`Job`] on a thread of its own, whose outcome the owner of the sandbox waits for.
//!
//! A snapshot counts only when its owner has taken the outcome: until then it is in no list, nothing is made from it, and it is deleted
//! when nobody takes it. A job cannot be stopped, but every step of it has a limit.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use soulbox_wire::host::{self as wire, HostError, HostErrorKind, HostSnapshot};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::lifecycle::After;
use crate::record::Record;
use crate::runtime::Runtime;
use crate::workshop::Workshop;

/// Where a snapshot, or why there is none, goes.
pub(crate) type SaveReply = oneshot::Sender<Result<HostSnapshot, HostError>>;

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) snapshot_id: String,
    pub(crate) memory: bool,
    pub(crate) after: After,
}

impl Wanted {
    /// What the host makes by itself at a deadline.
    pub(crate) fn at_deadline(record: &Record) -> Self {
        Self {
            snapshot_id: format!("auto-{}-{}", record.sandbox_id, record.epoch),
            memory: matches!(record.at_deadline, wire::AtDeadline::Pause { memory: true }),
            after: After::End,
        }
    }
}

/// Why there is no snapshot.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: HostError,
    /// Whether the sandbox may be damaged.
    pub(crate) harmed: bool,
}

type Outcome = Result<HostSnapshot, Failure>;

/// A save under way. Dropped, its result is discarded.
#[derive(Debug)]
pub(crate) struct Job {
    outcome: oneshot::Receiver<Outcome>,
    discarded: Arc<AtomicBool>,
}

impl Job {
    /// One that has failed before it began.
    pub(crate) fn failed(error: HostError) -> Self {
        let (sender, outcome) = oneshot::channel();
        let harmed = false;
        drop(sender.send(Err(Failure { error, harmed })));
        Self {
            outcome,
            discarded: Arc::default(),
        }
    }

    /// Waits for the outcome of the job, which is taken out then; without one, for ever.
    pub(crate) async fn over(job: &mut Option<Self>) -> Outcome {
        let Some(under_way) = job else {
            return pending().await;
        };
        let outcome = (&mut under_way.outcome).await;
        *job = None;
        outcome.unwrap_or_else(|_| {
            Err(Failure {
                error: HostError {
                    kind: HostErrorKind::Failed,
                    message: "the thread that made the snapshot had panicked".to_owned(),
                },
                harmed: true,
            })
        })
    }

    /// What it makes is of no use any more.
    pub(crate) fn discard(&mut self) {
        self.discarded.store(true, Ordering::SeqCst);
    }
}

/// What all saves of a host share.
pub(crate) struct Saves<R: Runtime> {
    workshop: Arc<Workshop<R>>,
    tasks: TaskTracker,
    /// Snapshots that no owner has taken yet.
    unfinished: Arc<Mutex<BTreeSet<String>>>,
}

impl<R: Runtime> Saves<R> {
    pub(crate) fn new(workshop: Arc<Workshop<R>>, tasks: TaskTracker) -> Self {
        Self {
            workshop,
            tasks,
            unfinished: Arc::default(),
        }
    }

    pub(crate) fn runtime(&self) -> &R {
        &self.workshop.runtime
    }

    /// Begins a save.
    pub(crate) fn begin(&self, _: Arc<R::Running>, _: Record, _: Wanted) -> Job {
        Job::failed(HostError {
            kind: HostErrorKind::Unsupported,
            message: "this host makes no snapshots yet".to_owned(),
        })
    }

    /// From now on the snapshot counts.
    pub(crate) fn accept(&self, snapshot_id: &str) {
        self.unfinished().remove(snapshot_id);
    }

    /// Deletes a snapshot, soon.
    pub(crate) fn delete(&self, snapshot_id: String) {
        let unfinished = Arc::clone(&self.unfinished);
        self.tasks.spawn_blocking(move || {
            unfinished
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&snapshot_id);
        });
    }

    fn unfinished(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
