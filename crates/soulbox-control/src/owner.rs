//! The task that owns one sandbox: performs the effects of [`lifecycle::step`](crate::lifecycle::step) and feeds back what came of them.
//!
//! Requests come in by a bounded channel with a reply each; the latest progress goes out by a watch. Host calls run beside the
//! inbox, so a kill never waits for a start; writes to the store run in line, so rows change in order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use soulbox_types::{DeathCause, Epoch, SandboxState, UnixMillis};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::clock;
use crate::error::{CreateError, SandboxError};
use crate::hosts::{HostCreate, HostFailure};
use crate::lifecycle::{self, Effect, Event, Machine, Phase};
use crate::live::LiveSandbox;
use crate::registry::Registry;
use crate::store::{IdempotencyClaim, Progress, Reservation, SandboxRow, Store, Swap};
use crate::{Hosts, settings::ControlSettings};

/// Requests that may wait for an owner; beyond that callers wait.
pub(crate) const INBOX: usize = 64;
/// The clock may be set: no sleep is longer than this.
const LONGEST_SLEEP_MILLIS: u64 = 30_000;

/// What an owner may be asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Answered when it is over; a kill that is under way is joined.
    Kill {
        cause: DeathCause,
        reply: oneshot::Sender<()>,
    },
    /// Answered when the host has it.
    Deadline {
        change: DeadlineChange,
        reply: oneshot::Sender<Result<(), SandboxError>>,
    },
    /// The host told of its end, or does not know it.
    Ended(Event),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum DeadlineChange {
    Set(UnixMillis),
    Extend(UnixMillis),
}

/// What an owner needs of the rest of control.
pub(crate) struct Surroundings {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hosts: Arc<dyn Hosts>,
    pub(crate) settings: ControlSettings,
    pub(crate) registry: Registry,
}

/// Why a create did not come to a running sandbox, when somebody waits for it.
#[derive(Debug)]
pub(crate) enum Refusal {
    Failed(CreateError),
    Claimed {
        fingerprint: String,
        sandbox: Option<Box<SandboxRow>>,
    },
}

/// A create that somebody waits for.
pub(crate) struct Creation {
    pub(crate) command: HostCreate,
    pub(crate) limit: u32,
    pub(crate) claim: Option<IdempotencyClaim>,
    pub(crate) reply: oneshot::Sender<Result<Progress, Refusal>>,
}

pub(crate) struct Owner {
    around: Arc<Surroundings>,
    row: Arc<SandboxRow>,
    live: Arc<LiveSandbox>,
    machine: Machine,
    /// State and epoch of the row in the store.
    saved: (SandboxState, Epoch),
    inbox: mpsc::Receiver<Request>,
    progress: watch::Sender<Progress>,
    state: watch::Sender<SandboxState>,
    under_way: FuturesUnordered<BoxFuture<'static, Fed>>,
    creation: Option<Creation>,
    refusal: Option<Refusal>,
    kills: Vec<oneshot::Sender<()>>,
    deadlines: Vec<(Epoch, oneshot::Sender<Result<(), SandboxError>>)>,
}

/// The outcome of a host call: an event, and for a failed create why.
struct Fed {
    event: Event,
    refusal: Option<CreateError>,
}

impl From<Event> for Fed {
    fn from(event: Event) -> Self {
        Self {
            event,
            refusal: None,
        }
    }
}

/// The ends of an owner's channels that it keeps itself.
pub(crate) struct Ends {
    pub(crate) inbox: mpsc::Receiver<Request>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) state: watch::Sender<SandboxState>,
}

impl Owner {
    pub(crate) fn new(
        around: Arc<Surroundings>,
        row: Arc<SandboxRow>,
        live: Arc<LiveSandbox>,
        machine: Machine,
        ends: Ends,
        creation: Option<Creation>,
    ) -> Self {
        Self {
            saved: (row.progress.state, row.progress.epoch),
            around,
            row,
            live,
            machine,
            inbox: ends.inbox,
            progress: ends.progress,
            state: ends.state,
            under_way: FuturesUnordered::new(),
            creation,
            refusal: None,
            kills: Vec::new(),
            deadlines: Vec::new(),
        }
    }

    /// Owns the sandbox until it is over and its row says so, or until the server stops, which leaves it running.
    pub(crate) async fn run(mut self, first: Vec<Effect>) {
        let stopping = self.around.registry.stopping();
        self.perform(first).await;
        while !self.machine.is_over() {
            let wake = self.machine.wake_at().map_or(LONGEST_SLEEP_MILLIS, |at| {
                at.millis_since(clock::now()).min(LONGEST_SLEEP_MILLIS)
            });
            tokio::select! {
                biased;
                Some(fed) = self.under_way.next() => {
                    if let Some(why) = fed.refusal {
                        self.refusal.get_or_insert(Refusal::Failed(why));
                    }
                    self.feed(fed.event).await;
                }
                Some(request) = self.inbox.recv() => self.take(request).await,
                () = tokio::time::sleep(Duration::from_millis(wake)) => self.feed(Event::Tick).await,
                () = stopping.cancelled() => return,
            }
        }
        self.around.registry.remove(&self.row.sandbox_id);
        self.inbox.close();
        while let Some(request) = self.inbox.recv().await {
            self.take(request).await;
        }
        info!(sandbox_id = %self.row.sandbox_id, cause = self.machine.cause.map(DeathCause::as_str), "sandbox is over");
    }

    async fn take(&mut self, request: Request) {
        match request {
            Request::Kill { cause, reply } => {
                self.kills.push(reply);
                self.feed(Event::Kill { cause }).await;
            }
            Request::Ended(event) => self.feed(event).await,
            Request::Deadline { change, reply } => {
                let before = self.machine.epoch;
                if self.machine.state() == SandboxState::Running {
                    self.feed(match change {
                        DeadlineChange::Set(deadline) => Event::SetDeadline { deadline },
                        DeadlineChange::Extend(deadline) => Event::Extend { deadline },
                    })
                    .await;
                }
                match self.machine.state() {
                    SandboxState::Running if self.machine.epoch == before => answer(reply, Ok(())),
                    // Its time is over now, which control sees to itself; the host's answer would come too late.
                    SandboxState::Running if self.machine.deadline <= clock::now() => {
                        answer(reply, Ok(()));
                    }
                    SandboxState::Running => self.deadlines.push((self.machine.epoch, reply)),
                    SandboxState::Killing => answer(
                        reply,
                        Err(SandboxError::BeingKilled {
                            sandbox_id: self.row.sandbox_id.clone(),
                        }),
                    ),
                    SandboxState::Creating | SandboxState::Dead => {
                        answer(
                            reply,
                            Err(SandboxError::NotFound {
                                sandbox_id: self.row.sandbox_id.clone(),
                            }),
                        );
                    }
                }
            }
        }
    }

    async fn feed(&mut self, event: Event) {
        let (machine, effects) = lifecycle::step(&self.machine, clock::now(), event);
        self.machine = machine;
        self.settle_deadlines(event);
        self.perform(effects).await;
    }

    /// Performs effects in order; what the in-line ones lead to is performed before the next one.
    async fn perform(&mut self, effects: Vec<Effect>) {
        self.publish();
        let mut queue: std::collections::VecDeque<_> = effects.into();
        while let Some(effect) = queue.pop_front() {
            let event = match effect {
                Effect::Reserve => Some(self.reserve().await),
                Effect::Save => Some(self.save().await),
                Effect::Cut => {
                    self.live.gone.cancel();
                    None
                }
                // Publishing the state is the announcement.
                Effect::Announce => None,
                Effect::HostCreate => {
                    self.host_create();
                    None
                }
                Effect::HostKill { epoch } => {
                    self.host_kill(epoch);
                    None
                }
                Effect::HostDeadline { epoch, deadline } => {
                    self.host_deadline(epoch, deadline);
                    None
                }
            };
            if let Some(event) = event {
                let (machine, more) = lifecycle::step(&self.machine, clock::now(), event);
                self.machine = machine;
                for effect in more.into_iter().rev() {
                    queue.push_front(effect);
                }
                self.publish();
            }
        }
        self.settle().await;
    }

    fn publish(&self) {
        self.progress.send_replace(self.machine.progress());
        self.state.send_if_modified(|state| {
            std::mem::replace(state, self.machine.state()) != self.machine.state()
        });
    }

    /// Answers those who wait for something that has come about.
    async fn settle(&mut self) {
        match self.machine.phase {
            Phase::Reserving | Phase::Starting => {}
            Phase::Running { .. } => {
                if self.saved.0 == SandboxState::Creating {
                    // Its row does not say that it runs: the next start of the server would kill it, so nobody may rely on it.
                    if self.creation.is_some() {
                        self.feed_boxed(Event::Kill {
                            cause: DeathCause::FailedToStart,
                        })
                        .await;
                    }
                    return;
                }
                let Some(creation) = self.creation.take() else {
                    return;
                };
                let kept = creation.claim.is_some();
                if creation.reply.send(Ok(self.machine.progress())).is_err() && !kept {
                    // The caller has gone away without learning the ID, so nobody could ever use or end it.
                    info!(sandbox_id = %self.row.sandbox_id, "nobody waited for the created sandbox");
                    self.feed_boxed(Event::Kill {
                        cause: DeathCause::Killed,
                    })
                    .await;
                }
            }
            Phase::Killing { .. } | Phase::Dead => {
                if let Some(creation) = self.creation.take() {
                    let refusal = self
                        .refusal
                        .take()
                        .unwrap_or(Refusal::Failed(CreateError::Ended));
                    // A caller that has gone away needs no answer.
                    drop(creation.reply.send(Err(refusal)));
                }
                if self.machine.phase == Phase::Dead {
                    for reply in self.kills.drain(..) {
                        // Whoever has gone away needs no answer.
                        let _gone = reply.send(());
                    }
                }
            }
        }
    }

    /// [`Owner::feed`] for those whom it calls.
    fn feed_boxed(&mut self, event: Event) -> BoxFuture<'_, ()> {
        self.feed(event).boxed()
    }

    fn settle_deadlines(&mut self, event: Event) {
        let over = self.machine.state() != SandboxState::Running;
        let mut waiting = Vec::new();
        for (epoch, reply) in self.deadlines.drain(..) {
            match event {
                _ if over => answer(
                    reply,
                    Err(SandboxError::NotFound {
                        sandbox_id: self.row.sandbox_id.clone(),
                    }),
                ),
                // A later deadline stands for an earlier one.
                Event::DeadlineTaken { epoch: taken } if epoch <= taken => answer(reply, Ok(())),
                Event::DeadlineFailed { epoch: failed } if epoch <= failed => {
                    answer(reply, Err(SandboxError::TimedOut));
                }
                _ => waiting.push((epoch, reply)),
            }
        }
        self.deadlines = waiting;
    }

    async fn reserve(&mut self) -> Event {
        let Some(creation) = &self.creation else {
            return Event::NotReserved;
        };
        let within = self.around.settings.command_within;
        let call = self
            .around
            .store
            .reserve(&self.row, creation.limit, creation.claim.as_ref());
        let (refusal, event) = match timeout(within, call).await {
            Ok(Ok(Reservation::Made)) => return Event::Reserved,
            Ok(Ok(Reservation::LimitReached)) => {
                let limit = creation.limit;
                (
                    Refusal::Failed(CreateError::LimitReached { limit }),
                    Event::NotReserved,
                )
            }
            Ok(Ok(Reservation::AlreadyClaimed {
                fingerprint,
                sandbox,
            })) => (
                Refusal::Claimed {
                    fingerprint,
                    sandbox,
                },
                Event::NotReserved,
            ),
            Ok(Err(failure)) => (
                Refusal::Failed(CreateError::Store(failure)),
                Event::NotReserved,
            ),
            // The row may be in, so it has to be marked dead.
            Err(_) => {
                let cause = DeathCause::FailedToStart;
                (
                    Refusal::Failed(CreateError::TimedOut),
                    Event::Kill { cause },
                )
            }
        };
        self.refusal = Some(refusal);
        event
    }

    async fn save(&mut self) -> Event {
        let progress = self.machine.progress();
        let id = &self.row.sandbox_id;
        let within = self.around.settings.command_within;
        match timeout(within, self.around.store.advance(id, self.saved, &progress)).await {
            Ok(Ok(Swap::Done)) => {
                self.saved = (progress.state, progress.epoch);
                Event::Saved
            }
            Ok(Ok(Swap::Conflict)) => {
                // There is one owner, so this is a defect or another server on this database. The host's word stands, ours is not written.
                error!(sandbox_id = %id, "the row was changed by somebody else");
                self.saved = (progress.state, progress.epoch);
                Event::Saved
            }
            Ok(Err(failure)) => {
                error!(sandbox_id = %id, error = %crate::chain(&failure), "failed to write the row, trying again");
                Event::SaveFailed
            }
            Err(_) => {
                error!(sandbox_id = %id, "writing the row took too long, trying again");
                Event::SaveFailed
            }
        }
    }

    fn host_create(&mut self) {
        let Some(creation) = &self.creation else {
            return;
        };
        let (hosts, command) = (self.around.hosts.clone(), creation.command.clone());
        let within = self.around.settings.start_within;
        self.under_way.push(
            async move {
                let sandbox_id = &command.sandbox_id;
                match timeout(within, hosts.create(&command)).await {
                    Ok(Ok(started)) => Event::Started {
                        started_at: started.started_at,
                    }
                    .into(),
                    Ok(Err(failure)) => {
                        warn!(%sandbox_id, error = %failure, "the host did not start the sandbox");
                        let leftover = failure.may_leave_a_sandbox();
                        let refusal = Some(CreateError::Host(failure));
                        Fed {
                            event: Event::StartFailed { leftover },
                            refusal,
                        }
                    }
                    Err(_) => {
                        warn!(%sandbox_id, "the host did not start the sandbox in time");
                        let event = Event::StartFailed { leftover: true };
                        Fed {
                            event,
                            refusal: Some(CreateError::TimedOut),
                        }
                    }
                }
            }
            .boxed(),
        );
    }

    fn host_kill(&mut self, epoch: Epoch) {
        let (hosts, id) = (self.around.hosts.clone(), self.row.sandbox_id.clone());
        let within = self.around.settings.command_within;
        self.under_way.push(
            async move {
                match timeout(within, hosts.kill(&id, epoch)).await {
                    Ok(Ok(()) | Err(HostFailure::NotFound)) => Event::HostGone,
                    Ok(Err(failure)) => {
                        warn!(sandbox_id = %id, error = %failure, "kill failed, trying again");
                        Event::KillFailed
                    }
                    Err(_) => {
                        warn!(sandbox_id = %id, "kill took too long, trying again");
                        Event::KillFailed
                    }
                }
                .into()
            }
            .boxed(),
        );
    }

    fn host_deadline(&mut self, epoch: Epoch, deadline: UnixMillis) {
        let (hosts, id) = (self.around.hosts.clone(), self.row.sandbox_id.clone());
        let within = self.around.settings.command_within;
        self.under_way.push(
            async move {
                match timeout(within, hosts.set_deadline(&id, epoch, deadline)).await {
                    Ok(Ok(())) => Event::DeadlineTaken { epoch },
                    Ok(Err(HostFailure::NotFound)) => Event::Lost,
                    Ok(Err(failure)) => {
                        warn!(sandbox_id = %id, error = %failure, "the host did not take the deadline");
                        Event::DeadlineFailed { epoch }
                    }
                    Err(_) => Event::DeadlineFailed { epoch },
                }
                .into()
            }
            .boxed(),
        );
    }
}

/// A caller that has gone away needs no answer.
fn answer(reply: oneshot::Sender<Result<(), SandboxError>>, result: Result<(), SandboxError>) {
    drop(reply.send(result));
}
