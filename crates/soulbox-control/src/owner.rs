//! The task that owns one sandbox: performs what [`Ownership`] says and feeds back what came of it.
//!
//! Requests come in by a bounded channel with a reply each; the latest progress goes out by a watch. Host calls run beside the
//! inbox, so a kill never waits for a start; writes to the store run in line, so rows change in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState, UnixMillis};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::clock;
use crate::error::{CreateError, SandboxError};
use crate::hosts::{FromSnapshot, HostCreate, HostFailure, HostSave};
use crate::lifecycle::{Effect, Event, Machine};
use crate::live::LiveSandbox;
use crate::logs::Logs;
use crate::ownership::{
    Answer, DeadlineChange, Ownership, Reclaiming, Reserving, ResumeWish, Saving, Task, Ticket,
    after_create, after_deadline, after_kill, after_look, after_save, after_unknown,
};
use crate::registry::Registry;
use crate::store::{
    IdempotencyClaim, Pause, PausedBy, Progress, Reclaim, Reservation, SandboxRow, Store,
    StoreError, Swap,
};
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
    /// Answered when it is a snapshot; a pause that is under way is joined.
    Pause {
        memory: bool,
        /// The agent inside does not answer just now.
        silent_guest: bool,
        reply: oneshot::Sender<Result<(), SandboxError>>,
    },
    /// Answered when it answers again.
    Resume {
        wish: ResumeWish,
        order: Box<ResumeOrder>,
        reply: oneshot::Sender<Result<Resumed, SandboxError>>,
    },
    /// The row says something else of what is done at the deadline.
    EndBy { row: Arc<SandboxRow> },
    /// A rollback has ended its processes and put others in their place. Answered when no stream of before is left.
    Replaced { reply: oneshot::Sender<()> },
    /// The host told of its end, or does not know it, and that epoch was the latest then.
    Ended { epoch: Epoch, event: Event },
    /// The row as it was read from shared records. Answered when it is taken up.
    Observe {
        progress: Progress,
        reply: oneshot::Sender<()>,
    },
}

/// What a resume came to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resumed {
    Now(Progress),
    /// It ran already.
    Before,
}

/// What the owner needs for a resume: the create of the sandbox, less what the machine knows.
#[derive(Debug)]
pub(crate) struct ResumeOrder {
    pub(crate) command: HostCreate,
    pub(crate) limit: u32,
}

/// What an owner needs of the rest of control.
pub(crate) struct Surroundings {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hosts: Arc<dyn Hosts>,
    pub(crate) settings: ControlSettings,
    pub(crate) registry: Registry,
    pub(crate) logs: Logs,
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

/// Where an answer goes.
enum Waiter {
    Create(oneshot::Sender<Result<Progress, Refusal>>),
    Kill(oneshot::Sender<()>),
    Deadline(oneshot::Sender<Result<(), SandboxError>>),
    Pause(oneshot::Sender<Result<(), SandboxError>>),
    Resume(oneshot::Sender<Result<Resumed, SandboxError>>),
}

pub(crate) struct Owner {
    around: Arc<Surroundings>,
    row: Arc<SandboxRow>,
    live: Arc<LiveSandbox>,
    ownership: Ownership,
    inbox: mpsc::Receiver<Request>,
    progress: watch::Sender<Progress>,
    state: watch::Sender<SandboxState>,
    under_way: FuturesUnordered<BoxFuture<'static, Fed>>,
    order: Option<Order>,
    refusal: Option<Refusal>,
    /// Why the host did not make the snapshot.
    unsaved: Option<HostFailure>,
    /// Whether the agent inside answered before the latest pause.
    silent_guest: bool,
    waiters: HashMap<Ticket, Waiter>,
    last_ticket: Ticket,
}

/// What is left of a [`Creation`] without its caller.
struct Order {
    command: HostCreate,
    limit: u32,
    claim: Option<IdempotencyClaim>,
}

/// The outcome of a host call.
enum Fed {
    /// What came of the start of that epoch, and why it failed.
    Started {
        epoch: Epoch,
        event: Event,
        refusal: Option<CreateError>,
    },
    /// What the host said when that epoch was the latest.
    Told { epoch: Epoch, event: Event },
    /// Why it did not make the snapshot, beside that.
    NotSaved {
        epoch: Epoch,
        event: Event,
        why: HostFailure,
    },
    /// It was told of something later than the deadline of that epoch.
    Superseded { epoch: Epoch, event: Event },
    /// What came of the kill of that epoch.
    Killed { epoch: Epoch, event: Event },
    /// No answer, and nothing that follows from that.
    Nothing,
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
        decided: (Machine, Vec<Effect>),
        ends: Ends,
        creation: Option<Creation>,
    ) -> Self {
        let mut waiters = HashMap::new();
        let last_ticket = Ticket(0);
        let (ownership, order) = match creation {
            Some(creation) => {
                let ownership = Ownership::create(decided, last_ticket, creation.claim.is_some());
                waiters.insert(last_ticket, Waiter::Create(creation.reply));
                let order = Order {
                    command: creation.command,
                    limit: creation.limit,
                    claim: creation.claim,
                };
                (ownership, Some(order))
            }
            None => (Ownership::resume(decided, &row.progress), None),
        };
        let ownership = if around.store.shared() {
            ownership.shared()
        } else {
            ownership
        };
        Self {
            around,
            row,
            live,
            ownership,
            inbox: ends.inbox,
            progress: ends.progress,
            state: ends.state,
            under_way: FuturesUnordered::new(),
            order,
            refusal: None,
            unsaved: None,
            silent_guest: false,
            waiters,
            last_ticket,
        }
    }

    /// Owns the sandbox until it is over and its row says so, or until the server stops, which leaves it running.
    pub(crate) async fn run(mut self) {
        let stopping = self.around.registry.stopping();
        self.perform().await;
        while !self.ownership.machine().is_over() {
            let wake = self.ownership.wake_at().map_or(LONGEST_SLEEP_MILLIS, |at| {
                at.millis_since(clock::now()).min(LONGEST_SLEEP_MILLIS)
            });
            tokio::select! {
                biased;
                Some(fed) = self.under_way.next() => self.answered(fed).await,
                Some(request) = self.inbox.recv() => self.take(request).await,
                () = tokio::time::sleep(Duration::from_millis(wake)) => self.tick().await,
                () = stopping.cancelled() => return,
            }
        }
        self.around.registry.remove(&self.row.sandbox_id);
        self.inbox.close();
        if self.ownership.machine().state() == SandboxState::Paused {
            // It is at rest. Who asked meanwhile hears nothing, and asks the next owner.
            return;
        }
        while let Some(request) = self.inbox.recv().await {
            self.take(request).await;
        }
        let Progress {
            cause, ended_at, ..
        } = self.ownership.machine().progress();
        let logs = &self.around.logs;
        logs.ended(&self.row.sandbox_id, ended_at, cause);
        let cause = cause.map(DeathCause::as_str);
        info!(sandbox_id = %self.row.sandbox_id, cause, "sandbox is over");
    }

    async fn take(&mut self, request: Request) {
        let now = clock::now();
        match request {
            Request::Kill { cause, reply } => {
                let ticket = self.wait(Waiter::Kill(reply));
                self.ownership.kill(now, cause, ticket);
            }
            Request::Ended { epoch, event } => self.ownership.told(now, epoch, event),
            Request::EndBy { row } => {
                self.ownership.end_by(row.lifecycle.at_deadline);
                self.row = row;
                return;
            }
            Request::Replaced { reply } => {
                self.live.gone.cancel();
                self.around.logs.restarted(&self.row.sandbox_id);
                // Streams from now on have an end of their own.
                self.publish();
                // Whoever has gone away needs no answer.
                let _gone = reply.send(());
                return;
            }
            Request::Pause {
                memory,
                silent_guest,
                reply,
            } => {
                self.silent_guest = silent_guest;
                let ticket = self.wait(Waiter::Pause(reply));
                self.unsaved = None;
                self.ownership.pause(now, memory, ticket);
            }
            Request::Resume { wish, order, reply } => {
                let ticket = self.wait(Waiter::Resume(reply));
                self.order = Some(Order {
                    command: order.command,
                    limit: order.limit,
                    claim: None,
                });
                self.refusal = None;
                self.ownership.resume_for(now, wish, ticket);
            }
            Request::Observe { progress, reply } => {
                self.ownership.observe(now, &progress);
                self.perform().await;
                // Whoever has gone away needs no answer.
                let _gone = reply.send(());
                return;
            }
            Request::Deadline { change, reply } => {
                let ticket = self.wait(Waiter::Deadline(reply));
                self.ownership.move_deadline(now, change, ticket);
            }
        }
        self.perform().await;
    }

    async fn feed(&mut self, event: Event) {
        self.ownership.feed(clock::now(), event);
        self.perform().await;
    }

    async fn answered(&mut self, fed: Fed) {
        let now = clock::now();
        match fed {
            Fed::Started {
                epoch,
                event,
                refusal,
            } => {
                if let Some(why) = refusal.filter(|_| self.ownership.is_latest_start(epoch)) {
                    self.refusal.get_or_insert(Refusal::Failed(why));
                }
                self.ownership.started(now, epoch, event);
            }
            Fed::Told { epoch, event } => self.ownership.told(now, epoch, event),
            Fed::NotSaved { epoch, event, why } => {
                self.unsaved = Some(why);
                self.ownership.told(now, epoch, event);
            }
            Fed::Superseded { epoch, event } => {
                self.ownership.superseded(epoch);
                self.ownership.told(now, epoch, event);
            }
            Fed::Killed { epoch, event } => self.ownership.ended(now, epoch, event),
            Fed::Nothing => return,
        }
        self.perform().await;
    }

    async fn tick(&mut self) {
        if self.ownership.is_doubtful(clock::now()) {
            let read = self.around.store.sandbox(&self.row.sandbox_id);
            match timeout(self.around.settings.command_within, read).await {
                Ok(Ok(Some(row))) => self.ownership.observe(clock::now(), &row.progress),
                // It has been pruned: nobody moves its deadline any more.
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => return self.ownership.doubt(clock::now()),
            }
        }
        self.feed(Event::Tick).await;
    }

    fn wait(&mut self, waiter: Waiter) -> Ticket {
        self.last_ticket.0 += 1;
        self.waiters.insert(self.last_ticket, waiter);
        self.last_ticket
    }

    async fn perform(&mut self) {
        self.publish();
        while let Some(task) = self.ownership.next(clock::now()) {
            // A step may have come between two tasks.
            self.publish();
            match task {
                Task::Answer(ticket, answer) => self.answer(ticket, answer),
                Task::Perform(Effect::Reserve) => {
                    let outcome = self.reserve().await;
                    self.ownership.reserved(clock::now(), outcome);
                }
                Task::Perform(Effect::Save) => {
                    let outcome = self.save().await;
                    self.ownership.saved(clock::now(), outcome);
                }
                Task::Perform(Effect::Reclaim) => {
                    let outcome = self.reclaim().await;
                    self.ownership.reclaimed(clock::now(), outcome);
                }
                Task::Perform(Effect::HostRestore {
                    epoch,
                    pause,
                    memory,
                }) => self.host_restore(epoch, pause, memory),
                Task::Perform(Effect::HostSave { epoch, memory }) => self.host_save(epoch, memory),
                Task::Perform(Effect::HostLook) => self.host_look(),
                Task::Perform(Effect::DropSnapshot { pause }) => self.drop_snapshot(pause),
                Task::Perform(Effect::Cut) => self.live.gone.cancel(),
                // Publishing the state is the announcement.
                Task::Perform(Effect::Announce) => {}
                Task::Perform(Effect::HostCreate) => self.host_create(),
                Task::Perform(Effect::HostKill { epoch }) => self.host_kill(epoch),
                Task::Perform(Effect::HostDeadline { epoch, deadline }) => {
                    self.host_deadline(epoch, deadline);
                }
            }
            self.publish();
        }
    }

    fn publish(&mut self) {
        let machine = self.ownership.machine();
        if machine.state() == SandboxState::Running && self.live.gone.is_cancelled() {
            // It was paused since: streams of before are gone, those of from now on have an end of their own.
            self.live = Arc::new(self.live.renewed());
            let id = &self.row.sandbox_id;
            self.around.registry.replace_live(id, self.live.clone());
        }
        self.progress.send_replace(machine.progress());
        self.state
            .send_if_modified(|state| std::mem::replace(state, machine.state()) != machine.state());
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let sandbox_id = self.row.sandbox_id.clone();
        match (self.waiters.remove(&ticket), answer) {
            (Some(Waiter::Create(reply)), Answer::Created(progress)) => {
                if reply.send(Ok(progress)).is_err() {
                    info!(%sandbox_id, "nobody waited for the created sandbox");
                    self.ownership.creator_gone(clock::now());
                }
            }
            // Any other caller that has gone away needs no answer.
            (Some(Waiter::Create(reply)), _) => {
                let refusal = self.refusal.take();
                let refusal = refusal.unwrap_or(Refusal::Failed(CreateError::Ended));
                drop(reply.send(Err(refusal)));
            }
            (Some(Waiter::Kill(reply)), _) => drop(reply.send(())),
            (Some(Waiter::Deadline(reply)), answer) => {
                drop(reply.send(match answer {
                    Answer::DeadlineUnconfirmed => Err(SandboxError::TimedOut),
                    Answer::BeingKilled => Err(SandboxError::BeingKilled { sandbox_id }),
                    Answer::BeingPaused => Err(SandboxError::BeingPaused { sandbox_id }),
                    Answer::Missing => Err(SandboxError::NotFound {
                        sandbox_id,
                        cause: None,
                    }),
                    _ => Ok(()),
                }));
            }
            (Some(Waiter::Pause(reply)), answer) => {
                drop(reply.send(match answer {
                    Answer::Paused => Ok(()),
                    Answer::AlreadyPaused => Err(SandboxError::AlreadyPaused { sandbox_id }),
                    Answer::BeingKilled => Err(SandboxError::BeingKilled { sandbox_id }),
                    Answer::NotPaused => Err(match self.unsaved.clone() {
                        Some(failure) => SandboxError::NotSaved(failure),
                        None => SandboxError::TimedOut,
                    }),
                    // Over: whoever asked for the pause is told when that was the reason.
                    _ => Err(match self.unsaved.clone() {
                        Some(failure @ HostFailure::Lost(_)) => SandboxError::NotSaved(failure),
                        _ => SandboxError::NotFound {
                            sandbox_id,
                            cause: self.ownership.machine().cause,
                        },
                    }),
                }));
            }
            (Some(Waiter::Resume(reply)), answer) => {
                drop(reply.send(match answer {
                    Answer::Resumed(progress) => Ok(Resumed::Now(progress)),
                    Answer::Runs => Ok(Resumed::Before),
                    Answer::BeingKilled => Err(SandboxError::BeingKilled { sandbox_id }),
                    Answer::NotResumed => Err(SandboxError::NotResumed(Box::new(
                        match self.refusal.take() {
                            Some(Refusal::Failed(why)) => why,
                            // Those who joined: the first one heard why.
                            _ => CreateError::Ended,
                        },
                    ))),
                    _ => Err(SandboxError::NotFound {
                        sandbox_id,
                        cause: None,
                    }),
                }));
            }
            (None, _) => {}
        }
    }

    async fn reserve(&mut self) -> Reserving {
        let Some(order) = &self.order else {
            return Reserving::Refused;
        };
        let within = self.around.settings.command_within;
        let store = &self.around.store;
        let call = store.reserve(&self.row, order.limit, order.claim.as_ref());
        let (refusal, outcome) = match timeout(within, call).await {
            Ok(Ok(Reservation::Made)) => return Reserving::Made,
            Ok(Ok(Reservation::LimitReached)) => {
                let limit = order.limit;
                let refused = CreateError::LimitReached { limit };
                (Refusal::Failed(refused), Reserving::Refused)
            }
            Ok(Ok(Reservation::AlreadyClaimed {
                fingerprint,
                sandbox,
            })) => {
                let claimed = Refusal::Claimed {
                    fingerprint,
                    sandbox,
                };
                (claimed, Reserving::Refused)
            }
            Ok(Err(failure)) => (
                Refusal::Failed(CreateError::Store(failure)),
                Reserving::Refused,
            ),
            Err(_) => (Refusal::Failed(CreateError::TimedOut), Reserving::Unknown),
        };
        self.refusal = Some(refusal);
        outcome
    }

    async fn reclaim(&mut self) -> Reclaiming {
        let Some(order) = &self.order else {
            return Reclaiming::Refused;
        };
        let (expected, progress) = self.ownership.to_reclaim();
        let (id, team_id) = (&self.row.sandbox_id, &self.row.team_id);
        let within = self.around.settings.command_within;
        let store = &self.around.store;
        let outcome = timeout(within, async {
            let call = store.reclaim(team_id, id, expected, &progress, order.limit);
            match call.await? {
                Reclaim::Done => Ok((Reclaiming::Done, None)),
                Reclaim::LimitReached => {
                    let limit = order.limit;
                    let refused = CreateError::LimitReached { limit };
                    Ok((Reclaiming::Refused, Some(refused)))
                }
                Reclaim::Conflict => {
                    let found = store.sandbox(id).await?.map(|row| row.progress);
                    Ok((Reclaiming::Conflict { found }, None))
                }
            }
        });
        let (outcome, refusal) = match outcome.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(failure)) => {
                let failure: StoreError = failure;
                (Reclaiming::Refused, Some(CreateError::Store(failure)))
            }
            Err(_) => (Reclaiming::Unknown, Some(CreateError::TimedOut)),
        };
        if let Some(refusal) = refusal {
            self.refusal = Some(Refusal::Failed(refusal));
        }
        outcome
    }

    async fn save(&mut self) -> Saving {
        let (expected, progress) = self.ownership.to_save();
        let id = &self.row.sandbox_id;
        let within = self.around.settings.command_within;
        let store = &self.around.store;
        let outcome = timeout(within, async {
            match store.advance(id, expected, &progress).await? {
                Swap::Done => Ok(Saving::Done),
                Swap::Conflict => {
                    let found = store.sandbox(id).await?;
                    if let Some(row) = &found
                        && store.shared()
                    {
                        let row = row.progress;
                        return Ok(Saving::Overtaken { row });
                    }
                    let found = found.map(|row| row.progress);
                    Ok(Saving::Conflict { found })
                }
            }
        });
        match outcome.await {
            Ok(Ok(outcome)) => {
                if let Saving::Conflict { found } = outcome {
                    warn!(sandbox_id = %id, ?expected, ?found, "the row is not as it was left");
                }
                outcome
            }
            Ok(Err(failure)) => {
                let failure: StoreError = failure;
                error!(sandbox_id = %id, error = %crate::chain(&failure), "failed to write the row, trying again");
                Saving::Failed
            }
            Err(_) => {
                error!(sandbox_id = %id, "writing the row took too long, trying again");
                Saving::Failed
            }
        }
    }

    fn host_create(&mut self) {
        let Some(order) = &self.order else {
            return;
        };
        self.start(order.command.clone());
    }

    fn host_restore(&mut self, epoch: Epoch, pause: Pause, memory: bool) {
        let Some(order) = &self.order else {
            return;
        };
        if !memory {
            self.around.logs.restarted(&self.row.sandbox_id);
        }
        let mut command = order.command.clone();
        command.epoch = epoch;
        command.deadline = self.ownership.machine().deadline;
        command.snapshot = Some(FromSnapshot {
            snapshot_id: pause.snapshot_id(&self.row.sandbox_id),
            memory,
            is_copy: false,
        });
        self.start(command);
    }

    fn start(&mut self, command: HostCreate) {
        let hosts = self.around.hosts.clone();
        let within = self.around.settings.start_within;
        let call = async move {
            let answer = timeout(within, hosts.create(&command)).await.ok();
            let event = after_create(answer.as_ref());
            let refusal = match answer {
                Some(Ok(_)) => None,
                Some(Err(failure)) => Some(CreateError::Host(failure)),
                None => Some(CreateError::TimedOut),
            };
            if let Some(refusal) = &refusal {
                let error = crate::chain(refusal);
                warn!(sandbox_id = %command.sandbox_id, error, "the sandbox was not started");
            }
            Fed::Started {
                epoch: command.epoch,
                event,
                refusal,
            }
        };
        self.under_way.push(call.boxed());
    }

    fn host_save(&mut self, epoch: Epoch, memory: bool) {
        let hosts = self.around.hosts.clone();
        let pause = Pause {
            epoch,
            by: PausedBy::Control,
            at: clock::now(),
            memory,
            silent_guest: self.silent_guest,
        };
        let save = HostSave {
            sandbox_id: self.row.sandbox_id.clone(),
            epoch,
            snapshot_id: pause.snapshot_id(&self.row.sandbox_id),
            memory,
            end: true,
        };
        let within = self.around.settings.save_within;
        let call = async move {
            let answer = timeout(within, hosts.save(&save)).await.ok();
            let mut event = after_save(epoch, answer.as_ref());
            if let Event::Paused { pause: made } = &mut event {
                made.silent_guest = pause.silent_guest && made.memory;
            }
            let why = match answer {
                Some(Ok(_)) => return Fed::Told { epoch, event },
                Some(Err(failure)) => failure,
                None => HostFailure::Unreachable("no answer in time".to_owned()),
            };
            warn!(sandbox_id = %save.sandbox_id, error = %why, "the sandbox was not paused");
            Fed::NotSaved { epoch, event, why }
        };
        self.under_way.push(call.boxed());
    }

    fn host_look(&mut self) {
        let (hosts, id) = (self.around.hosts.clone(), self.row.sandbox_id.clone());
        let within = self.around.settings.command_within;
        let Machine { epoch, pause, .. } = *self.ownership.machine();
        let call = async move {
            match timeout(within, look(&*hosts, &id, pause)).await {
                Ok(Ok(event)) => Fed::Told { epoch, event },
                Ok(Err(failure)) => {
                    warn!(sandbox_id = %id, error = %failure, "failed to look for a snapshot");
                    Fed::Nothing
                }
                Err(_) => Fed::Nothing,
            }
        };
        self.under_way.push(call.boxed());
    }

    fn drop_snapshot(&self, pause: Pause) {
        let hosts = self.around.hosts.clone();
        let id = pause.snapshot_id(&self.row.sandbox_id);
        let within = self.around.settings.command_within;
        // It may take longer than the sandbox has an owner.
        self.around.registry.owners().spawn(async move {
            // One that stays is found when lists are compared.
            if let Ok(Err(failure)) = timeout(within, hosts.delete_snapshot(&id)).await {
                warn!(snapshot_id = id, error = %failure, "failed to delete a snapshot");
            }
        });
    }

    fn host_kill(&mut self, epoch: Epoch) {
        let (hosts, id) = (self.around.hosts.clone(), self.row.sandbox_id.clone());
        let within = self.around.settings.command_within;
        let call = async move {
            let answer = timeout(within, hosts.kill(&id, epoch)).await.ok();
            let event = after_kill(answer.as_ref());
            if event == Event::KillFailed {
                warn!(sandbox_id = %id, error = why(answer.as_ref()), "kill failed, trying again");
            }
            Fed::Killed { epoch, event }
        };
        self.under_way.push(call.boxed());
    }

    fn host_deadline(&mut self, epoch: Epoch, deadline: UnixMillis) {
        let (hosts, id) = (self.around.hosts.clone(), self.row.sandbox_id.clone());
        let within = self.around.settings.command_within;
        let last = self.ownership.machine().pause;
        let call = async move {
            let told = hosts.set_deadline(&id, epoch, deadline);
            let answer = timeout(within, told).await.ok();
            let mut event = after_deadline(epoch, answer.as_ref());
            if event == Event::Lost {
                let seen = timeout(within, look(&*hosts, &id, last)).await;
                event = after_unknown(epoch, seen.ok().and_then(Result::ok));
            }
            if matches!(
                event,
                Event::DeadlineFailed { .. } | Event::DeadlineTooLate { .. }
            ) {
                warn!(sandbox_id = %id, error = why(answer.as_ref()), "the host did not take the deadline");
            }
            if matches!(answer, Some(Err(HostFailure::StaleEpoch))) {
                return Fed::Superseded { epoch, event };
            }
            Fed::Told { epoch, event }
        };
        self.under_way.push(call.boxed());
    }
}

/// What a host has of a sandbox. Sandboxes first: one that is not listed any more has its snapshot by then.
pub(crate) async fn look(
    hosts: &dyn Hosts,
    id: &SandboxId,
    last: Option<Pause>,
) -> Result<Event, HostFailure> {
    let alive = hosts.list().await?.iter().any(|it| it.sandbox_id == *id);
    let snapshots = hosts.snapshots().await?;
    Ok(after_look(id, last, alive, &snapshots))
}

/// Why a host did not do it, for the log.
fn why(answer: Option<&Result<(), HostFailure>>) -> String {
    match answer {
        Some(Ok(())) => String::new(),
        Some(Err(failure)) => failure.to_string(),
        None => "no answer in time".to_owned(),
    }
}
