//! One live sandbox: a task owns it until its end, whoever brings that about. [`crate::lifecycle`] decides, this performs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_types::{DeathCause, Egress, Epoch, UnixMillis};
use soulbox_wire::host::{self as wire, HostError, HostErrorKind, HostSnapshot};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::clock::now;
use crate::lifecycle::{Answer, Effect, Event, Machine, Phase, step};
use crate::record::{Record, Records};
use crate::runtime::Runtime;
use crate::saves::{Job, SaveReply, Saves, Wanted};
use crate::substitutes::{Substitute, Substitutes};

/// The clock of the host may be set while a task sleeps; deadlines are looked at again after so long.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Where the outcome of a command goes.
pub(crate) type Reply = oneshot::Sender<Result<(), HostError>>;

pub(crate) enum Request {
    Kill {
        epoch: Epoch,
        reply: Reply,
    },
    SetDeadline {
        epoch: Epoch,
        deadline: UnixMillis,
        reply: Reply,
    },
    SetEgress {
        epoch: Epoch,
        egress: Egress,
        reply: Reply,
    },
    Save {
        epoch: Epoch,
        wanted: Wanted,
        reply: SaveReply,
    },
    Replace {
        epoch: Epoch,
        reply: Reply,
    },
}

/// The processes that a sandbox has now.
pub(crate) type Current<R> = Arc<Mutex<Arc<<R as Runtime>::Running>>>;

/// How it ended.
pub(crate) struct Ended {
    pub(crate) cause: DeathCause,
    /// The snapshot with which it ended: it is paused.
    pub(crate) saved: Option<HostSnapshot>,
    /// Who waits for that snapshot, to be answered like `waiting`.
    pub(crate) savers: Vec<SaveReply>,
    /// A save that is not over and of no use any more; what the sandbox had is given back after it.
    pub(crate) job: Option<Job>,
    pub(crate) record: Record,
    /// The latest epoch of a command.
    pub(crate) epoch: Epoch,
    /// Who asked for it, to be answered when nothing names the sandbox any more.
    pub(crate) waiting: Vec<Reply>,
}

/// What the owner starts with.
pub(crate) struct Owned {
    pub(crate) machine: Machine,
    /// Effects of the step that led here, answers to callers excepted.
    pub(crate) first: Vec<Effect>,
    /// Kills of the time before it was live.
    pub(crate) waiting: Vec<Reply>,
    pub(crate) record: Arc<Mutex<Record>>,
    pub(crate) inbox: mpsc::Receiver<Request>,
}

/// A command's caller, and what the command brings that no decision needs.
enum Caller {
    Plain(Reply),
    Egress(Egress, Reply),
    Save(Wanted, SaveReply),
}

impl Caller {
    fn answer(self, result: Result<(), HostError>) {
        // Whoever has gone away needs no answer.
        match self {
            Self::Plain(reply) | Self::Egress(_, reply) => drop(reply.send(result)),
            Self::Save(_, reply) => {
                if let Err(error) = result {
                    drop(reply.send(Err(error)));
                }
            }
        }
    }
}

struct Owner<'a, R: Runtime> {
    runtime: &'a R,
    running: Arc<R::Running>,
    /// Readable when no process of it is left.
    ended: AsyncFd<OwnedFd>,
    current: Current<R>,
    records: &'a Records,
    saves: &'a Saves<R>,
    substitutes: &'a Substitutes<R>,
    machine: Machine,
    waiting: Vec<Reply>,
    record: Arc<Mutex<Record>>,
    /// The save under way, and afterwards what it came to.
    job: Option<Job>,
    /// What was asked for, and who waits for it.
    wanted: Option<Wanted>,
    savers: Vec<SaveReply>,
    outcome: Option<Result<HostSnapshot, HostError>>,
}

/// Waits for the end of a sandbox, or for the end of all its handles (`None`: the agent stops and the sandbox goes on).
pub(crate) async fn own<R: Runtime>(
    saves: &Saves<R>,
    substitutes: &Substitutes<R>,
    current: Current<R>,
    ended: OwnedFd,
    records: &Records,
    owned: Owned,
) -> io::Result<Option<Ended>> {
    let ended = watched(ended)?;
    let running = Arc::clone(&current.lock().unwrap_or_else(PoisonError::into_inner));
    let Owned {
        machine,
        first,
        waiting,
        record,
        mut inbox,
    } = owned;
    let mut owner = Owner {
        runtime: saves.runtime(),
        running,
        ended,
        current,
        records,
        saves,
        substitutes,
        machine,
        waiting,
        record,
        job: None,
        wanted: None,
        savers: Vec::new(),
        outcome: None,
    };
    owner.perform(first, None);
    let mut handles = true;
    let mut exited = false;
    while owner.machine.phase != Phase::Gone {
        let left = owner.machine.wake_at().map_or(LONGEST_SLEEP, |at| {
            Duration::from_millis(at.millis_since(now())).min(LONGEST_SLEEP)
        });
        tokio::select! {
            biased;
            _ = owner.ended.readable(), if !exited => {
                exited = true;
                let out_of_memory = owner.runtime.is_out_of_memory(&owner.running);
                owner.feed(Event::Exited { out_of_memory }, None);
            }
            outcome = Job::over(&mut owner.job) => owner.save_is_over(outcome),
            request = inbox.recv(), if handles => match request {
                Some(request) => owner.take(request),
                // What is ending or being saved is seen to its end, for as long as that takes at most.
                None if matches!(owner.machine.phase, Phase::Ending { .. } | Phase::Saving(_)) => {
                    handles = false;
                }
                None => return Ok(None),
            },
            () = sleep(left) => {
                let before = owner.machine;
                owner.feed(Event::Tick, None);
                // It did not end in time, and nobody is there to wait for it any longer.
                if !handles && owner.machine != before {
                    return Ok(None);
                }
            }
        }
        if !handles && owner.machine.phase == Phase::Live {
            return Ok(None);
        }
    }
    let record = owner.lock().clone();
    let saved = match owner.outcome.take() {
        Some(Ok(snapshot)) if owner.machine.saved => Some(snapshot),
        _ => None,
    };
    Ok(Some(Ended {
        cause: owner.machine.cause.unwrap_or(DeathCause::AgentDied),
        saved,
        savers: owner.savers,
        job: owner.job,
        record,
        epoch: owner.machine.epoch,
        waiting: owner.waiting,
    }))
}

impl<R: Runtime> Owner<'_, R> {
    fn take(&mut self, request: Request) {
        let (event, caller) = match request {
            Request::Kill { epoch, reply } => (Event::Kill { epoch }, Caller::Plain(reply)),
            Request::SetDeadline {
                epoch,
                deadline,
                reply,
            } => (Event::SetDeadline { epoch, deadline }, Caller::Plain(reply)),
            Request::SetEgress {
                epoch,
                egress,
                reply,
            } => (Event::SetEgress { epoch }, Caller::Egress(egress, reply)),
            Request::Save {
                epoch,
                wanted,
                reply,
            } => {
                let event = Event::Save {
                    epoch,
                    after: wanted.after,
                    same: self.wanted.as_ref() == Some(&wanted),
                };
                (event, Caller::Save(wanted, reply))
            }
            Request::Replace { epoch, reply } => (Event::Replace { epoch }, Caller::Plain(reply)),
        };
        self.feed(event, Some(caller));
    }

    /// Takes what a save has come to.
    fn save_is_over(&mut self, outcome: Result<HostSnapshot, crate::saves::Failure>) {
        let (event, outcome) = match outcome {
            Ok(snapshot) => (Event::Saved, Ok(snapshot)),
            Err(failure) => (
                Event::SaveFailed {
                    harmed: failure.harmed,
                },
                Err(failure.error),
            ),
        };
        if !matches!(self.machine.phase, Phase::Saving(_)) {
            // Overtaken; those who waited have been told.
            if let Ok(snapshot) = outcome {
                self.saves.delete(snapshot.snapshot_id);
            }
            return;
        }
        if let Ok(snapshot) = &outcome {
            self.saves.accept(&snapshot.snapshot_id);
        }
        self.outcome = Some(outcome);
        self.feed(event, None);
    }

    /// Begins the snapshot that was asked for, or the deadline's own.
    fn begin_save(&mut self) {
        let (epoch, deadline) = (self.machine.epoch.0, self.machine.deadline.0);
        // The next agent must not take a later epoch's command for a new one. What fails here fails the save.
        let written = self.write(|record| {
            record.epoch = epoch;
            record.deadline = deadline;
        });
        let record = self.lock().clone();
        let wanted = self
            .wanted
            .get_or_insert_with(|| Wanted::at_deadline(&record))
            .clone();
        self.outcome = None;
        self.job = Some(match written {
            Ok(()) => self.saves.begin(Arc::clone(&self.running), record, wanted),
            Err(error) => Job::failed(error),
        });
    }

    fn answer_savers(&mut self, result: &Result<HostSnapshot, HostError>) {
        for reply in self.savers.drain(..) {
            // Whoever has gone away needs no answer.
            drop(reply.send(result.clone()));
        }
        self.wanted = None;
    }

    fn feed(&mut self, event: Event, caller: Option<Caller>) {
        let (machine, effects) = step(&self.machine, now(), event);
        self.machine = machine;
        self.perform(effects, caller);
    }

    fn perform(&mut self, effects: Vec<Effect>, mut caller: Option<Caller>) {
        for effect in effects {
            match effect {
                Effect::Answer(answer) => {
                    let result = self.result(answer);
                    if let Some(caller) = caller.take() {
                        caller.answer(result);
                    }
                }
                Effect::Join => {
                    if let Some(Caller::Plain(reply)) = caller.take() {
                        self.waiting.push(reply);
                    }
                }
                Effect::JoinSave => {
                    if let Some(Caller::Save(wanted, reply)) = caller.take() {
                        self.wanted = Some(wanted);
                        self.savers.push(reply);
                    }
                }
                Effect::Record => {
                    let (epoch, deadline) = (self.machine.epoch.0, self.machine.deadline.0);
                    let result = self.write(|record| {
                        record.epoch = epoch;
                        record.deadline = deadline;
                    });
                    if let Some(caller) = caller.take() {
                        caller.answer(result);
                    }
                }
                Effect::Egress => {
                    if let Some(Caller::Egress(egress, reply)) = caller.take() {
                        // A few netlink messages, in line: the next request meets a sandbox that has all of it.
                        let result = self
                            .runtime
                            .set_egress(&self.running, &egress)
                            .map_err(|error| failed(&error))
                            .and_then(|()| {
                                self.write(|record| record.egress = wire::Egress::from(&egress))
                            });
                        Caller::Plain(reply).answer(result);
                    }
                }
                Effect::Replace => {
                    let result = self.replace();
                    if let Some(caller) = caller.take() {
                        caller.answer(result);
                    }
                }
                Effect::Save => self.begin_save(),
                Effect::SaveDone => {
                    if let Some(outcome) = self.outcome.take() {
                        self.answer_savers(&outcome);
                    }
                }
                Effect::SaveFailed => {
                    if let Some(outcome) = self.outcome.take() {
                        if let Err(error) = &outcome {
                            tracing::warn!(
                                sandbox_id = self.lock().sandbox_id,
                                %error,
                                "a snapshot was not made"
                            );
                        }
                        self.answer_savers(&outcome);
                    }
                }
                Effect::DiscardSave => self.discard_save(),
                Effect::Signal => self.runtime.kill(&self.running),
                Effect::StillThere => self.tell_that_it_is_still_there(),
                // The map of sandboxes does that when this task is over.
                Effect::Forget | Effect::Bury => {}
            }
        }
    }

    /// Lets what was prepared take the place of what runs. The record decides: an agent that starts adopts whichever it names and ends
    /// the other one.
    fn replace(&mut self) -> Result<(), HostError> {
        let sandbox_id = self.lock().sandbox_id.clone();
        let Some(substitute) = self.substitutes.take(&sandbox_id) else {
            return Err(HostError {
                kind: HostErrorKind::Failed,
                message: format!("nothing was prepared to take the place of sandbox {sandbox_id}"),
            });
        };
        match self.try_replace(&substitute) {
            Ok(ended) => {
                let Substitute { made, .. } = substitute;
                let old = std::mem::replace(&mut self.running, Arc::clone(&made.running));
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = made.running;
                let old_ended = std::mem::replace(&mut self.ended, ended.watch);
                self.saves
                    .retire(old, old_ended.into_inner(), ended.upper, ended.slot);
                tracing::info!(sandbox_id, "a sandbox was rolled back");
                Ok(())
            }
            Err(error) => {
                self.saves.discard(substitute.made);
                Err(error)
            }
        }
    }

    /// The steps that may fail; without the last of them nothing has changed. Its processes are ended.
    fn try_replace(&mut self, substitute: &Substitute<R>) -> Result<Replaced, HostError> {
        let made = &substitute.made;
        let process = self
            .runtime
            .process(&made.running)
            .ok_or_else(|| failed(&crate::workshop::MakeError::EndedEarly))?;
        let watch = made
            .ended
            .try_clone()
            .and_then(watched)
            .map_err(|error| failed(&error))?;
        let before = self.lock().clone();
        let egress = Egress::try_from(&before.egress).map_err(|error| failed(&error))?;
        self.runtime
            .set_egress(&made.running, &egress)
            .map_err(|error| failed(&error))?;
        let (epoch, deadline) = (self.machine.epoch.0, self.machine.deadline.0);
        let written = self.write(|record| {
            record.epoch = epoch;
            record.deadline = deadline;
            record.slot = made.slot;
            record.pid = process.pid;
            record.start_time = process.start_time;
            record.upper.clone_from(&made.upper);
            record.inherited = made.inherited;
            record.basis = substitute.basis.clone();
            record.guests.clone_from(&substitute.guests);
            record.init_secret.clone_from(&made.init_secret);
        });
        if let Err(error) = written {
            *self.lock() = before;
            return Err(error);
        }
        self.runtime.kill(&self.running);
        Ok(Replaced {
            watch,
            upper: before.upper,
            slot: before.slot,
        })
    }

    /// A kill, or an end, has overtaken the save.
    fn discard_save(&mut self) {
        if let Some(job) = &mut self.job {
            job.discard();
        }
        if let Some(Ok(snapshot)) = self.outcome.take() {
            self.saves.delete(snapshot.snapshot_id);
        }
        let error = HostError {
            kind: HostErrorKind::NotFound,
            message: format!(
                "sandbox {} was ended while its snapshot was made",
                self.lock().sandbox_id
            ),
        };
        self.answer_savers(&Err(error));
    }

    fn tell_that_it_is_still_there(&mut self) {
        let message = "processes of the sandbox are left ten seconds after SIGKILL";
        tracing::error!(sandbox_id = self.lock().sandbox_id, message);
        let error = || HostError {
            kind: HostErrorKind::Failed,
            message: message.to_owned(),
        };
        for reply in self.waiting.drain(..) {
            // Whoever has gone away needs no answer.
            drop(reply.send(Err(error())));
        }
        self.answer_savers(&Err(error()));
    }

    /// Here and nowhere else, so that no record is written after its sandbox has ended.
    fn write(&self, change: impl FnOnce(&mut Record)) -> Result<(), HostError> {
        let mut record = self.lock();
        change(&mut record);
        self.records.put(&record).map_err(|error| HostError {
            kind: HostErrorKind::Failed,
            message: format!("failed to write its record: {error}"),
        })
    }

    fn result(&self, answer: Answer) -> Result<(), HostError> {
        let sandbox_id = self.lock().sandbox_id.clone();
        answer_as_result(answer, &sandbox_id, self.machine.epoch)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a replacement leaves: how the new processes are watched, and what the old ones had.
struct Replaced {
    watch: AsyncFd<OwnedFd>,
    upper: String,
    slot: u16,
}

fn watched(ended: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "unsound only for types whose descriptor may change; an OwnedFd keeps its own"
    )]
    AsyncFd::with_interest(ended, Interest::READABLE)
}

/// What a caller gets to hear.
pub(crate) fn answer_as_result(
    answer: Answer,
    sandbox_id: &str,
    known: Epoch,
) -> Result<(), HostError> {
    let (kind, message) = match answer {
        Answer::Done => return Ok(()),
        Answer::StaleEpoch => (
            HostErrorKind::StaleEpoch,
            format!(
                "sandbox {sandbox_id} is at epoch {}, the command is of an earlier one",
                known.0
            ),
        ),
        Answer::NotLive => (
            HostErrorKind::NotLive,
            format!("sandbox {sandbox_id} is being started or is ending"),
        ),
        Answer::BeingPaused => (
            HostErrorKind::BeingPaused,
            format!("sandbox {sandbox_id} is being paused"),
        ),
        Answer::Lost => (
            HostErrorKind::Lost,
            format!("sandbox {sandbox_id} is ending, since it may be damaged"),
        ),
        Answer::Busy => (
            HostErrorKind::CannotSave,
            format!("a snapshot of sandbox {sandbox_id} is being made"),
        ),
        Answer::NotFound => (
            HostErrorKind::NotFound,
            format!("sandbox {sandbox_id} does not run on this host"),
        ),
    };
    Err(HostError { kind, message })
}

fn failed(error: &dyn std::error::Error) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message: crate::chain(error),
    }
}
