//! Saves under way: each is a [`Job`] on a thread of its own, whose outcome the owner of the sandbox waits for.
//!
//! A snapshot counts only when its owner has taken the outcome: until then it is in no list, nothing is made from it, and it is deleted
//! when nobody takes it. A job cannot be stopped, but every step of it has a limit.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use soulbox_pool::{PoolError, SnapshotDraft, SnapshotPool};
use soulbox_wire::host::{self as wire, HostError, HostErrorKind, HostSnapshot};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::chain;
use crate::clock::now;
use crate::lifecycle::After;
use crate::record::Record;
use crate::runtime::{Runtime, SaveError};
use crate::snapshot::{Fingerprint, Follower, Key, Known, Manifest, Memory, Subject};
use crate::workshop::{Made, Workshop};

const CONCURRENT_SAVES: usize = 4;

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
                error: lost("the thread that made the snapshot had panicked".to_owned()),
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
    key: Key,
    tasks: TaskTracker,
    /// Saves that run at once; more wait, since they would only share the disk.
    permits: Arc<Semaphore>,
    /// Snapshots that no owner has taken yet.
    unfinished: Unfinished,
}

type Unfinished = Arc<Mutex<BTreeSet<String>>>;

impl<R: Runtime> Saves<R> {
    pub(crate) fn new(workshop: Arc<Workshop<R>>, key: Key, tasks: TaskTracker) -> Self {
        Self {
            workshop,
            key,
            tasks,
            permits: Arc::new(Semaphore::new(CONCURRENT_SAVES)),
            unfinished: Arc::default(),
        }
    }

    pub(crate) fn runtime(&self) -> &R {
        &self.workshop.runtime
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Begins a save.
    pub(crate) fn begin(&self, running: Arc<R::Running>, record: Record, wanted: Wanted) -> Job {
        let (sender, outcome) = oneshot::channel();
        let job = Job {
            outcome,
            discarded: Arc::default(),
        };
        let name = wanted.snapshot_id.clone();
        if !lock(&self.unfinished).insert(name.clone()) {
            let message = format!("snapshot {name} is being made already");
            return Job::failed(cannot_save(message));
        }
        let work = Work {
            workshop: Arc::clone(&self.workshop),
            key: self.key.clone(),
            running,
            record,
            wanted,
        };
        let (discarded, unfinished) = (Arc::clone(&job.discarded), Arc::clone(&self.unfinished));
        let permits = Arc::clone(&self.permits);
        let workshop = Arc::clone(&self.workshop);
        let perform = move || {
            let over = || discarded.load(Ordering::SeqCst) || sender.is_closed();
            let outcome = if over() {
                Err(failure(cannot_save("it was overtaken".to_owned())))
            } else {
                work.perform(&over)
            };
            let failed = outcome.is_err();
            // Nobody has it in a list until its owner takes it.
            let untaken = match sender.send(outcome) {
                Ok(()) => None,
                Err(untaken) => untaken.ok(),
            };
            if let Some(snapshot) = &untaken {
                delete(&*workshop.pool, &snapshot.snapshot_id);
            }
            if failed || untaken.is_some() {
                lock(&unfinished).remove(&name);
            }
        };
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let permit = permits.acquire_owned().await;
            tasks.spawn_blocking(move || {
                perform();
                drop(permit);
            });
        });
        job
    }

    /// Gives back, soon, what the processes had that a rollback has ended.
    pub(crate) fn retire(
        &self,
        running: Arc<R::Running>,
        ended: OwnedFd,
        upper: String,
        slot: u16,
    ) {
        let workshop = Arc::clone(&self.workshop);
        self.tasks
            .spawn_blocking(move || workshop.retire(running, &ended, upper, slot));
    }

    /// Ends, soon, a sandbox that nobody owns.
    pub(crate) fn discard(&self, made: Made<R>) {
        let workshop = Arc::clone(&self.workshop);
        self.tasks.spawn_blocking(move || workshop.discard(made));
    }

    /// From now on the snapshot counts.
    pub(crate) fn accept(&self, snapshot_id: &str) {
        lock(&self.unfinished).remove(snapshot_id);
    }

    /// Whether the snapshot does not count yet.
    pub(crate) fn is_unfinished(&self, snapshot_id: &str) -> bool {
        lock(&self.unfinished).contains(snapshot_id)
    }

    /// Deletes a snapshot that its owner has no use for, soon; it does not count any more.
    pub(crate) fn delete(&self, snapshot_id: String) {
        lock(&self.unfinished).insert(snapshot_id.clone());
        let (unfinished, workshop) = (Arc::clone(&self.unfinished), Arc::clone(&self.workshop));
        self.tasks.spawn_blocking(move || {
            delete(&*workshop.pool, &snapshot_id);
            lock(&unfinished).remove(&snapshot_id);
        });
    }
}

fn delete(pool: &dyn SnapshotPool, snapshot_id: &str) {
    if let Err(error) = pool.delete_snapshot(snapshot_id) {
        tracing::error!(snapshot_id, error = %chain(&error), "failed to delete a snapshot of no use");
    }
}

/// One save.
struct Work<R: Runtime> {
    workshop: Arc<Workshop<R>>,
    key: Key,
    running: Arc<R::Running>,
    record: Record,
    wanted: Wanted,
}

impl<R: Runtime> Work<R> {
    /// Makes the snapshot. `over` tells that it is of no use any more. Blocks.
    fn perform(&self, over: &dyn Fn() -> bool) -> Outcome {
        let pool = &self.workshop.pool;
        if self.record.basis.layers.is_empty() {
            let message = "it was started by an earlier version, which did not note its layers";
            return Err(failure(cannot_save(message.to_owned())));
        }
        let began = Instant::now();
        let with_end = self.wanted.memory && self.wanted.after == After::End;
        if !with_end {
            // What is written now need not be while it stands still.
            pool.settle().map_err(no_disk)?;
        }
        let draft = pool
            .begin_snapshot(&self.wanted.snapshot_id)
            .map_err(no_disk)?;
        let made = if self.wanted.memory {
            self.with_memory(draft, over)?
        } else {
            let mut draft = draft;
            self.capture(&mut draft).map_err(no_disk)?;
            self.commit(draft, None, over).map_err(failure)?
        };
        tracing::info!(
            sandbox_id = self.record.sandbox_id,
            snapshot_id = self.wanted.snapshot_id,
            memory = self.wanted.memory,
            image_bytes = made.image_bytes,
            took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "a snapshot was made"
        );
        Ok(made)
    }

    /// With processes. A snapshot with which the sandbox ends is whole before it ends, so that no crash loses both; one beside which it
    /// goes on is finished when it goes on.
    fn with_memory(&self, draft: SnapshotDraft, over: &dyn Fn() -> bool) -> Outcome {
        let runtime = &self.workshop.runtime;
        let fingerprint = match runtime.checkpoints() {
            Ok(criu) => Fingerprint::of_this_host(criu).map_err(|error| {
                failure(failed(format!(
                    "failed to tell what this host is like: {error}"
                )))
            })?,
            Err(missing) => return Err(failure(unsupported(missing))),
        };
        let usage = runtime.usage(&self.running);
        let usage = usage.map_err(|error| failure(failed(chain(&error))))?;
        let room = self.workshop.pool.room_for_images(usage.memory);
        room.map_err(no_disk)?;
        let images = draft.images();
        // Without it all is read when all is written.
        let mut follower = Follower::start(images.clone()).ok();
        let mut draft = Some(draft);
        let mut committed = None;
        let saved = thread::scope(|scope| {
            // Nobody waits for one that ends to run again: what is on its way to the disk goes there while its memory is written.
            let settle = || self.workshop.pool.settle();
            let mut settling = (self.wanted.after == After::End).then(|| scope.spawn(settle));
            runtime.save(&self.running, &images, self.wanted.after, &mut || {
                let Some(mut stopped) = draft.take() else {
                    return Err(io::Error::other("its processes were stopped twice"));
                };
                if let Some(settling) = settling.take() {
                    let settled = settling.join();
                    settled
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                        .map_err(|error| io::Error::other(chain(&error)))?;
                }
                self.capture(&mut stopped)
                    .map_err(|error| io::Error::other(chain(&error)))?;
                match self.wanted.after {
                    After::GoOn => draft = Some(stopped),
                    After::End => {
                        let memory = Some((fingerprint.clone(), follower.take()));
                        let made = self.commit(stopped, memory, over);
                        committed = Some(made.map_err(|error| io::Error::other(error.message))?);
                    }
                }
                Ok(())
            })
        });
        match (saved, committed, draft) {
            (Ok(()), Some(made), _) => Ok(made),
            (Ok(()), None, Some(draft)) => {
                let memory = Some((fingerprint, follower.take()));
                self.commit(draft, memory, over).map_err(failure)
            }
            (Ok(()), None, None) => Err(failure(failed("nothing was captured".to_owned()))),
            (Err(error), made, _) => {
                if let Some(made) = made {
                    // It goes on after all, and away from what was saved.
                    delete(&*self.workshop.pool, &made.snapshot_id);
                }
                Err(match error {
                    SaveError::Unsupported(missing) => failure(unsupported(missing)),
                    SaveError::Refused(error) => failure(cannot_save(chain(&error))),
                    SaveError::Harmed(error) => Failure {
                        error: lost(chain(&error)),
                        harmed: true,
                    },
                })
            }
        }
    }

    fn capture(&self, draft: &mut SnapshotDraft) -> Result<(), PoolError> {
        let Record {
            upper, inherited, ..
        } = &self.record;
        self.workshop.pool.capture(draft, upper, *inherited)
    }

    /// Makes it whole: digests, mark, and all of it on disk. With memory there is the host that it is for, and who has begun to read it.
    fn commit(
        &self,
        draft: SnapshotDraft,
        memory: Option<(Fingerprint, Option<Follower>)>,
        over: &dyn Fn() -> bool,
    ) -> Result<HostSnapshot, HostError> {
        let subject = Subject {
            snapshot_id: self.wanted.snapshot_id.clone(),
            sandbox_id: self.record.sandbox_id.clone(),
            epoch: self.record.epoch,
            build_id: self.record.build_id.clone(),
            after: match self.wanted.after {
                After::GoOn => wire::After::GoOn,
                After::End => wire::After::End,
            },
            created_at: now().0,
        };
        let mut manifest = Manifest::new(subject, self.record.basis.clone());
        let mut stamps = None;
        if let Some((fingerprint, follower)) = memory {
            let images = draft.images();
            let begun = follower.map(Follower::end).unwrap_or_default();
            stamps = Known::stamps(&images);
            let memory = Memory::of(
                &images,
                &begun,
                self.record.guests.clone(),
                self.record.init_secret.clone(),
                fingerprint,
            );
            manifest.memory = Some(memory.map_err(|error| failed(chain(&error)))?);
        }
        let sealed = self
            .key
            .seal(&manifest)
            .map_err(|error| failed(chain(&error)))?;
        if over() {
            return Err(cannot_save("it was overtaken".to_owned()));
        }
        let snapshot = draft.commit(&sealed).map_err(|error| disk(&error))?;
        if let Some(stamps) = stamps {
            self.workshop.known.note(&snapshot.images, stamps);
        }
        Ok(manifest.told(snapshot.disk_bytes))
    }
}

fn no_disk(error: PoolError) -> Failure {
    failure(disk(&error))
}

fn disk(error: &PoolError) -> HostError {
    HostError {
        kind: match error {
            PoolError::ReserveReached { .. } | PoolError::NoRoomForMemory { .. } => {
                HostErrorKind::NoCapacity
            }
            _ => HostErrorKind::CannotSave,
        },
        message: chain(error),
    }
}

fn failure(error: HostError) -> Failure {
    Failure {
        error,
        harmed: false,
    }
}

fn cannot_save(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::CannotSave,
        message,
    }
}

fn unsupported(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::Unsupported,
        message,
    }
}

fn lost(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::Lost,
        message,
    }
}

fn failed(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
