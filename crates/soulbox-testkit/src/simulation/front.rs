//! The front: clients' requests, owners, the store and the calls to the agent. Every decision in here is
//! [`soulbox_control`]'s; this performs, and dies where it is told to.

mod restarts;
mod writes;

use std::collections::{BTreeMap, VecDeque};

use soulbox_control::lifecycle::{Effect, Event, Machine};
use soulbox_control::ownership::{
    Answer, DeadlineChange, Ownership, Task, Ticket, after_create, after_deadline, after_kill,
};
use soulbox_control::{HostFailure, Progress, Started};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

use super::ledger::Wish;
use super::schedule::{Fault, Op};
use super::store::Row;
use super::world::{Command, Item, Link, Reply, World};

/// As `ControlSettings` has them.
const START_WITHIN: u64 = 30_000;
const COMMAND_WITHIN: u64 = 15_000;
/// How long callers are kept waiting, as `control.rs` has it.
const CREATE_ANSWER: u64 = START_WITHIN + COMMAND_WITHIN * 2;
const KILL_ANSWER: u64 = 60_000;
const DEADLINE_ANSWER: u64 = COMMAND_WITHIN * 2;

#[derive(Debug, Default)]
pub(super) struct Front {
    pub(super) incarnation: u32,
    pub(super) serving: bool,
    owners: BTreeMap<usize, Owner>,
    calls: BTreeMap<u64, Call>,
    last_call: u64,
    compared: u64,
}

#[derive(Debug)]
struct Owner {
    ownership: Ownership,
    created_at: UnixMillis,
    deadline: UnixMillis,
    happened: VecDeque<Event>,
    inbox: VecDeque<Input>,
    /// The write that it waits for, and what is written.
    writing: Option<(u64, Write)>,
    wakes_at: Option<u64>,
    kill_taken: bool,
}

#[derive(Debug, Clone, Copy)]
enum Input {
    Kill(Ticket),
    Move(DeadlineChange, Ticket),
    Ended(Event),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    Reserve(Row),
    Advance {
        expected: (SandboxState, Epoch),
        progress: Progress,
    },
}

#[derive(Debug, Clone, Copy)]
struct Call {
    sandbox: usize,
    kind: CallKind,
}

#[derive(Debug, Clone, Copy)]
enum CallKind {
    Create,
    Kill,
    Deadline(Epoch),
    KillOrphan,
    Recover,
    Compare { asked_at: UnixMillis, rows: bool },
}

impl Front {
    /// The sandboxes that have an owner, with their states.
    pub(super) fn owned(&self) -> impl Iterator<Item = (usize, SandboxState)> + '_ {
        let owners = self.owners.iter();
        owners.map(|(sandbox, owner)| (*sandbox, owner.ownership.machine().state()))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.owners.is_empty() && self.calls.is_empty()
    }
}

impl World<'_> {
    /// A client or a guest does something.
    pub(super) fn asked(&mut self, op: Op, sandbox: usize) {
        if let Op::Exit { .. } = op {
            self.ledger.exited(sandbox);
            self.ends(sandbox);
            return;
        }
        if !self.front.serving {
            return;
        }
        let now = self.time();
        match op {
            Op::Create {
                timeout,
                leaves_after,
                kept,
                ..
            } => self.create(sandbox, timeout, leaves_after, kept),
            Op::Set { timeout, .. } => {
                let change = DeadlineChange::Set(now.plus_millis(timeout));
                self.move_deadline(sandbox, change);
            }
            Op::Extend { timeout, .. } => {
                let change = DeadlineChange::Extend(now.plus_millis(timeout));
                self.move_deadline(sandbox, change);
            }
            Op::Kill { any, .. } => {
                let known = if any {
                    self.front.owners.contains_key(&sandbox)
                } else {
                    self.ledger.promised(sandbox).is_some()
                };
                if !known {
                    return;
                }
                let ticket = self.ledger.ask(sandbox, Wish::Kill);
                self.after(KILL_ANSWER, Item::Leave(ticket));
                match self.front.owners.get_mut(&sandbox) {
                    Some(owner) if owner.ownership.machine().state() != SandboxState::Dead => {
                        owner.inbox.push_back(Input::Kill(ticket));
                        self.drive(sandbox);
                    }
                    _ => {
                        self.answer(ticket, Answer::Missing);
                    }
                }
            }
            Op::Exit { .. } => {}
        }
    }

    fn create(&mut self, sandbox: usize, timeout: u64, leaves_after: Option<u64>, kept: bool) {
        let now = self.time();
        let (machine, first) = Machine::create(now, timeout, START_WITHIN);
        let deadline = machine.deadline;
        let ticket = self.ledger.ask(sandbox, Wish::Create { deadline });
        self.after(leaves_after.unwrap_or(CREATE_ANSWER), Item::Leave(ticket));
        let owner = Owner {
            created_at: now,
            deadline,
            ..Owner::of(Ownership::create((machine, first), ticket, kept))
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    fn move_deadline(&mut self, sandbox: usize, change: DeadlineChange) {
        if self.ledger.promised(sandbox).is_none() {
            return;
        }
        let wish = match change {
            DeadlineChange::Set(to) => Wish::Set(to),
            DeadlineChange::Extend(to) => Wish::Extend(to),
        };
        let ticket = self.ledger.ask(sandbox, wish);
        self.after(DEADLINE_ANSWER, Item::Leave(ticket));
        match self.front.owners.get_mut(&sandbox) {
            Some(owner) if owner.ownership.machine().state() == SandboxState::Running => {
                owner.inbox.push_back(Input::Move(change, ticket));
                self.drive(sandbox);
            }
            _ => {
                self.answer(ticket, Answer::Missing);
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) -> bool {
        self.note(|| format!("  {ticket:?} hears {answer:?}"));
        match self.ledger.answer(ticket, answer, self.time()) {
            Ok(heard) => heard,
            Err(broken) => {
                self.breaks(broken);
                true
            }
        }
    }

    /// Performs what an owner decides until it waits for something.
    fn drive(&mut self, sandbox: usize) {
        let Some(mut owner) = self.front.owners.remove(&sandbox) else {
            return;
        };
        let incarnation = self.front.incarnation;
        while owner.writing.is_none() {
            let now = self.time();
            let before = *owner.ownership.machine();
            let task = owner.ownership.next(now);
            // What it decides by itself is the end of something that nobody may rely on.
            let cause = soulbox_types::DeathCause::FailedToStart;
            let after = owner.ownership.machine();
            self.coverage
                .control(&before, &Event::Kill { cause }, after);
            match task {
                Some(Task::Answer(ticket, answer)) => {
                    let heard = self.answer(ticket, answer);
                    if !heard && matches!(answer, Answer::Created(_)) {
                        self.observe(&mut owner, Event::Kill { cause }, |it, now, _| {
                            it.creator_gone(now);
                        });
                    }
                }
                Some(Task::Perform(effect)) => {
                    if self.front_dies_here() {
                        self.note(|| format!("  front dies at {effect:?} of {sandbox}"));
                        self.front_dies();
                        return;
                    }
                    self.note(|| format!("  {sandbox}: {effect:?}"));
                    self.performs(sandbox, &mut owner, effect);
                }
                None => {
                    if let Some(event) = owner.happened.pop_front() {
                        self.observe(&mut owner, event, Ownership::feed);
                    } else if let Some(input) = owner.inbox.pop_front() {
                        self.takes(&mut owner, input);
                    } else {
                        break;
                    }
                }
            }
            let state = owner.ownership.machine().state();
            if owner.kill_taken && state == SandboxState::Running {
                self.breaks(("kill wins", format!("sandbox {sandbox} runs again")));
            }
        }
        debug_assert_eq!(incarnation, self.front.incarnation);
        if owner.writing.is_none() && owner.ownership.machine().is_over() {
            let left = self.rows.live().any(|(living, _)| living == sandbox);
            if left {
                let detail = format!("sandbox {sandbox}: {:?}", self.rows.get(sandbox));
                self.breaks(("an owner leaves a dead row", detail));
            }
            return;
        }
        if owner.writing.is_none()
            && let Some(at) = owner.ownership.machine().wake_at()
        {
            let at = World::from_start(at).max(self.now);
            if owner.wakes_at != Some(at) {
                owner.wakes_at = Some(at);
                let front = self.front.incarnation;
                self.at(at, Item::OwnerWakes { front, sandbox, at });
            }
        }
        self.front.owners.insert(sandbox, owner);
    }

    fn observe(
        &mut self,
        owner: &mut Owner,
        event: Event,
        feed: impl FnOnce(&mut Ownership, UnixMillis, Event),
    ) {
        let before = *owner.ownership.machine();
        feed(&mut owner.ownership, self.time(), event);
        self.coverage
            .control(&before, &event, owner.ownership.machine());
    }

    fn takes(&mut self, owner: &mut Owner, input: Input) {
        match input {
            Input::Kill(ticket) => {
                let cause = soulbox_types::DeathCause::Killed;
                owner.kill_taken = true;
                self.observe(owner, Event::Kill { cause }, |it, now, _| {
                    it.kill(now, cause, ticket);
                });
            }
            Input::Move(change, ticket) => {
                let event = match change {
                    DeadlineChange::Set(deadline) => Event::SetDeadline { deadline },
                    DeadlineChange::Extend(deadline) => Event::Extend { deadline },
                };
                self.observe(owner, event, |it, now, _| {
                    it.move_deadline(now, change, ticket);
                });
            }
            Input::Ended(event) => self.observe(owner, event, Ownership::feed),
        }
    }

    fn performs(&mut self, sandbox: usize, owner: &mut Owner, effect: Effect) {
        match effect {
            Effect::Reserve => {
                let row = Row {
                    created_at: owner.created_at,
                    progress: owner.ownership.machine().progress(),
                };
                self.writes(sandbox, owner, Write::Reserve(row));
            }
            Effect::Save => {
                let (expected, progress) = owner.ownership.to_save();
                self.writes(sandbox, owner, Write::Advance { expected, progress });
            }
            Effect::Cut => {
                let checked = self.ledger.cut(sandbox, self.time());
                self.check(checked);
            }
            Effect::Announce => {}
            Effect::HostCreate => {
                let command = Command::Create {
                    sandbox,
                    epoch: Epoch::FIRST,
                    deadline: owner.deadline,
                };
                self.calls(sandbox, CallKind::Create, command);
            }
            Effect::HostSave { .. }
            | Effect::HostLook
            | Effect::Reclaim
            | Effect::HostRestore { .. }
            | Effect::DropSnapshot { .. } => {
                let detail = format!("sandbox {sandbox}: {effect:?}");
                self.breaks(("what nobody asked to pause is not paused", detail));
            }
            Effect::HostKill { epoch } => {
                self.calls(sandbox, CallKind::Kill, Command::Kill { sandbox, epoch });
            }
            Effect::HostDeadline { epoch, deadline } => {
                let command = Command::SetDeadline {
                    sandbox,
                    epoch,
                    deadline,
                };
                self.calls(sandbox, CallKind::Deadline(epoch), command);
            }
        }
    }

    pub(super) fn owner_wakes(&mut self, sandbox: usize, at: u64) {
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        if owner.wakes_at != Some(at) {
            return;
        }
        owner.wakes_at = None;
        if owner.writing.is_none() {
            owner.happened.push_back(Event::Tick);
            self.drive(sandbox);
        }
    }

    /// Something that did not come by an answer to a call.
    pub(super) fn told(&mut self, sandbox: usize, event: Event) {
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.inbox.push_back(Input::Ended(event));
            self.drive(sandbox);
        }
    }

    fn calls(&mut self, sandbox: usize, kind: CallKind, command: Command) {
        self.front.last_call += 1;
        let call = self.front.last_call;
        self.front.calls.insert(call, Call { sandbox, kind });
        let front = self.front.incarnation;
        if !self.agent.up {
            let delay = 1 + self.random.skewed(10);
            let reply = Reply::Failed(HostFailure::Unreachable(String::new()));
            self.after(delay, Item::Reply { front, call, reply });
            return;
        }
        let within = if matches!(kind, CallKind::Create) {
            START_WITHIN
        } else {
            COMMAND_WITHIN
        };
        self.after(within, Item::CallTimesOut { front, call });
        let link = Link {
            front,
            agent: self.agent.incarnation,
        };
        for delay in self.sends() {
            self.after(
                delay,
                Item::Command {
                    link,
                    call,
                    command,
                },
            );
        }
    }

    /// The connection to the agent broke.
    pub(super) fn front_is_cut_off(&mut self) {
        let front = self.front.incarnation;
        let calls: Vec<u64> = self.front.calls.keys().copied().collect();
        for call in calls {
            let delay = self.random.skewed(10);
            let reply = Reply::Failed(HostFailure::Unreachable(String::new()));
            self.after(delay, Item::Reply { front, call, reply });
        }
    }

    /// The answer to a call; none when it did not come in time.
    pub(super) fn replied(&mut self, call: u64, reply: Option<Reply>) {
        let Some(Call { sandbox, kind }) = self.front.calls.remove(&call) else {
            return;
        };
        let done = reply.as_ref().map(|reply| match reply {
            Reply::Failed(failure) => Err(failure.clone()),
            Reply::Created { .. } | Reply::Done | Reply::Listed(_) => Ok(()),
        });
        let event = match kind {
            CallKind::Create => after_create(self.initialised(reply.as_ref()).as_ref()),
            CallKind::Kill => after_kill(done.as_ref()),
            CallKind::Deadline(epoch) => after_deadline(epoch, done.as_ref()),
            CallKind::KillOrphan => return,
            CallKind::Recover => return self.recovers(reply),
            CallKind::Compare { asked_at, rows } => return self.compares(asked_at, rows, reply),
        };
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.happened.push_back(event);
            self.drive(sandbox);
        }
    }

    /// What became of a create, with the first words to its envd.
    fn initialised(&self, reply: Option<&Reply>) -> Option<Result<Started, HostFailure>> {
        let fails = self.fault(|fault| match *fault {
            Fault::InitFails { from, until } => Some((from, until, 0)),
            _ => None,
        });
        Some(match reply? {
            Reply::Created { .. } if fails.is_some() => Err(HostFailure::Init(String::new())),
            Reply::Created { started_at } => Ok(Started {
                started_at: *started_at,
            }),
            Reply::Failed(failure) => Err(failure.clone()),
            Reply::Done | Reply::Listed(_) => Err(HostFailure::Failed(String::new())),
        })
    }
}

impl Owner {
    fn of(ownership: Ownership) -> Self {
        let deadline = ownership.machine().deadline;
        Self {
            ownership,
            created_at: UnixMillis(0),
            deadline,
            happened: VecDeque::new(),
            inbox: VecDeque::new(),
            writing: None,
            wakes_at: None,
            kill_taken: false,
        }
    }
}
