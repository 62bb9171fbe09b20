//! One live sandbox: a task owns it until its end, whoever brings that about. [`crate::lifecycle`] decides, this performs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_types::{DeathCause, Egress, Epoch, UnixMillis};
use soulbox_wire::host::{self as wire, HostError, HostErrorKind};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::clock::now;
use crate::lifecycle::{Answer, Effect, Event, Machine, Phase, step};
use crate::record::{Record, Records};
use crate::runtime::Runtime;

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
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) cause: DeathCause,
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
struct Caller {
    reply: Reply,
    egress: Option<Egress>,
}

struct Owner<'a, R: Runtime> {
    runtime: &'a R,
    running: Arc<R::Running>,
    records: &'a Records,
    machine: Machine,
    waiting: Vec<Reply>,
    record: Arc<Mutex<Record>>,
}

/// Waits for the end of a sandbox, or for the end of all its handles (`None`: the agent stops and the sandbox goes on).
pub(crate) async fn own<R: Runtime>(
    runtime: &R,
    running: Arc<R::Running>,
    ended: OwnedFd,
    records: &Records,
    owned: Owned,
) -> io::Result<Option<Ended>> {
    #[expect(
        deprecated,
        reason = "unsound only for types whose descriptor may change; an OwnedFd keeps its own"
    )]
    let ended = AsyncFd::with_interest(ended, Interest::READABLE)?;
    let Owned {
        machine,
        first,
        waiting,
        record,
        mut inbox,
    } = owned;
    let mut owner = Owner {
        runtime,
        running,
        records,
        machine,
        waiting,
        record,
    };
    owner.perform(first, None);
    let mut handles = true;
    while owner.machine.phase != Phase::Gone {
        let left = owner.machine.wake_at().map_or(LONGEST_SLEEP, |at| {
            Duration::from_millis(at.millis_since(now())).min(LONGEST_SLEEP)
        });
        tokio::select! {
            biased;
            _ = ended.readable() => {
                let out_of_memory = runtime.oom_kills(&owner.running) > 0;
                owner.feed(Event::Exited { out_of_memory }, None);
            }
            request = inbox.recv(), if handles => match request {
                Some(request) => owner.take(request),
                // What is ending is seen to its end, for as long as that takes at most.
                None if matches!(owner.machine.phase, Phase::Ending { .. }) => handles = false,
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
    }
    let record = owner.lock().clone();
    Ok(Some(Ended {
        cause: owner.machine.cause.unwrap_or(DeathCause::AgentDied),
        record,
        epoch: owner.machine.epoch,
        waiting: owner.waiting,
    }))
}

impl<R: Runtime> Owner<'_, R> {
    fn take(&mut self, request: Request) {
        let (event, reply, egress) = match request {
            Request::Kill { epoch, reply } => (Event::Kill { epoch }, reply, None),
            Request::SetDeadline {
                epoch,
                deadline,
                reply,
            } => (Event::SetDeadline { epoch, deadline }, reply, None),
            Request::SetEgress {
                epoch,
                egress,
                reply,
            } => (Event::SetEgress { epoch }, reply, Some(egress)),
        };
        self.feed(event, Some(Caller { reply, egress }));
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
                    reply_to(&mut caller, result);
                }
                Effect::Join => self
                    .waiting
                    .extend(caller.take().map(|caller| caller.reply)),
                Effect::Record => {
                    let (epoch, deadline) = (self.machine.epoch.0, self.machine.deadline.0);
                    let result = self.write(|record| {
                        record.epoch = epoch;
                        record.deadline = deadline;
                    });
                    reply_to(&mut caller, result);
                }
                Effect::Egress => {
                    let egress = caller.as_mut().and_then(|caller| caller.egress.take());
                    if let Some(egress) = egress {
                        // A few netlink messages, in line: the next request meets a sandbox that has all of it.
                        let result = self
                            .runtime
                            .set_egress(&self.running, &egress)
                            .map_err(|error| failed(&error))
                            .and_then(|()| {
                                self.write(|record| record.egress = wire::Egress::from(&egress))
                            });
                        reply_to(&mut caller, result);
                    }
                }
                Effect::Signal => self.runtime.kill(&self.running),
                Effect::StillThere => {
                    let message = "processes of the sandbox are left ten seconds after SIGKILL";
                    tracing::error!(sandbox_id = self.lock().sandbox_id, message);
                    for reply in self.waiting.drain(..) {
                        // Whoever has gone away needs no answer.
                        drop(reply.send(Err(HostError {
                            kind: HostErrorKind::Failed,
                            message: message.to_owned(),
                        })));
                    }
                }
                // The map of sandboxes does that when this task is over.
                Effect::Forget | Effect::Bury => {}
            }
        }
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

fn reply_to(caller: &mut Option<Caller>, result: Result<(), HostError>) {
    if let Some(caller) = caller.take() {
        // Whoever has gone away needs no answer.
        drop(caller.reply.send(result));
    }
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
            HostErrorKind::Failed,
            format!("sandbox {sandbox_id} is being started or is ending"),
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
