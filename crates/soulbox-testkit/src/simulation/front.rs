//! The front: clients' requests, owners, the store and the calls to the agent. Every decision in here is
//! [`soulbox_control`]'s; this performs, and dies where it is told to.

use std::collections::{BTreeMap, VecDeque};

use soulbox_control::lifecycle::{Effect, Event, Machine};
use soulbox_control::ownership::{
    Answer, DeadlineChange, Ownership, Reserving, Saving, Task, Ticket, after_create,
    after_deadline, after_kill,
};
use soulbox_control::reconcile::{self, Found, Listed};
use soulbox_control::{HostFailure, Progress, Started, Swap};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

use super::ledger::Wish;
use super::schedule::{Fault, Op};
use super::store::Row;
use super::world::{Command, Item, Link, Reply, World};

/// As `ControlSettings` has them.
const START_WITHIN: u64 = 30_000;
const COMMAND_WITHIN: u64 = 15_000;
/// As `recovery.rs` has it: lists are compared every 20 s, rows every minute.
const COMPARE_EVERY: u64 = 20_000;
const ROWS_EVERY: u64 = 3;
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

    fn writes(&mut self, sandbox: usize, owner: &mut Owner, write: Write) {
        self.front.last_call += 1;
        let call = self.front.last_call;
        let front = self.front.incarnation;
        let slow = self.fault(|fault| match *fault {
            Fault::StoreSlow { from, until, by } => Some((from, until, by)),
            _ => None,
        });
        let takes = self.random.skewed(5) + slow.unwrap_or(0);
        let fails = self.store_fails();
        owner.writing = Some((call, write));
        self.after(
            takes,
            Item::Written {
                front,
                sandbox,
                call,
                write,
                fails,
            },
        );
        if takes >= COMMAND_WITHIN {
            let item = Item::WriteTimesOut {
                front,
                sandbox,
                call,
            };
            self.after(COMMAND_WITHIN, item);
        }
    }

    fn store_fails(&self) -> bool {
        self.fault(|fault| match *fault {
            Fault::StoreFails { from, until } => Some((from, until, 0)),
            _ => None,
        })
        .is_some()
    }

    /// The store has done it, or refused to; perhaps nobody waits for that any more.
    pub(super) fn written(
        &mut self,
        front: u32,
        sandbox: usize,
        call: u64,
        write: Write,
        fails: bool,
    ) {
        // The statement of a front that has died may have reached the database or not.
        if front != self.front.incarnation && self.random.once_in(2) {
            return;
        }
        enum Outcome {
            Reserving(Reserving),
            Saving(Saving),
        }
        let outcome = match write {
            Write::Reserve(_) if fails => Outcome::Reserving(Reserving::Refused),
            Write::Advance { .. } if fails => Outcome::Saving(Saving::Failed),
            Write::Reserve(row) => {
                let made = self.rows.reserve(sandbox, row, self.schedule.limit);
                Outcome::Reserving(if made {
                    Reserving::Made
                } else {
                    Reserving::Refused
                })
            }
            Write::Advance { expected, progress } => {
                match self.rows.advance(sandbox, expected, &progress) {
                    Ok(Swap::Done) => {
                        if progress.state == SandboxState::Dead {
                            let checked = self.ledger.row_is_dead(sandbox);
                            self.check(checked);
                        }
                        Outcome::Saving(Saving::Done)
                    }
                    Ok(Swap::Conflict) => {
                        let row = self.rows.get(sandbox);
                        let found = row.map(|row| row.progress);
                        Outcome::Saving(Saving::Conflict { found })
                    }
                    Err(detail) => {
                        self.breaks(("rows do not go back", detail));
                        return;
                    }
                }
            }
        };
        if !self.is_writing(front, sandbox, call) {
            return;
        }
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        owner.writing = None;
        let before = *owner.ownership.machine();
        let now = UnixMillis(1_000_000 + self.now);
        let cause = soulbox_types::DeathCause::Killed;
        let event = match outcome {
            Outcome::Reserving(outcome) => {
                owner.ownership.reserved(now, outcome);
                match outcome {
                    Reserving::Made => Event::Reserved,
                    Reserving::Refused => Event::NotReserved,
                    Reserving::Unknown => Event::Kill { cause },
                }
            }
            Outcome::Saving(outcome) => {
                owner.ownership.saved(now, outcome);
                match outcome {
                    Saving::Done | Saving::Conflict { found: None } => Event::Saved,
                    _ => Event::SaveFailed,
                }
            }
        };
        let after = *owner.ownership.machine();
        self.coverage.control(&before, &event, &after);
        self.drive(sandbox);
    }

    pub(super) fn write_times_out(&mut self, front: u32, sandbox: usize, call: u64) {
        if !self.is_writing(front, sandbox, call) {
            return;
        }
        let now = self.time();
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        let Some((_, write)) = owner.writing.take() else {
            return;
        };
        let before = *owner.ownership.machine();
        let cause = soulbox_types::DeathCause::FailedToStart;
        let event = match write {
            Write::Reserve(_) => {
                owner.ownership.reserved(now, Reserving::Unknown);
                Event::Kill { cause }
            }
            Write::Advance { .. } => {
                owner.ownership.saved(now, Saving::Failed);
                Event::SaveFailed
            }
        };
        let after = *owner.ownership.machine();
        self.coverage.control(&before, &event, &after);
        self.drive(sandbox);
    }

    fn is_writing(&self, front: u32, sandbox: usize, call: u64) -> bool {
        let owner = self.front.owners.get(&sandbox);
        let writing = owner.and_then(|owner| owner.writing.as_ref());
        front == self.front.incarnation && writing.is_some_and(|(current, _)| *current == call)
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

    pub(super) fn front_dies(&mut self) {
        self.front.incarnation += 1;
        self.front.serving = false;
        self.front.owners.clear();
        self.front.calls.clear();
        self.ledger.front_died();
        let front = self.front.incarnation;
        let delay = 10 + self.random.skewed(2_000);
        self.after(delay, Item::FrontStarts { front });
    }

    pub(super) fn front_starts(&mut self, front: u32) {
        if front != self.front.incarnation || self.front.serving {
            return;
        }
        if self.agent.up {
            self.calls(0, CallKind::Recover, Command::List);
        } else {
            self.after(200, Item::FrontStarts { front });
        }
    }

    fn recovers(&mut self, reply: Option<Reply>) {
        let front = self.front.incarnation;
        let Some(Reply::Listed(listed)) = reply else {
            self.after(1_000, Item::FrontStarts { front });
            return;
        };
        if self.store_fails() {
            self.after(1_000, Item::FrontStarts { front });
            return;
        }
        let mut listed: BTreeMap<usize, Listed> = listed.into_iter().collect();
        let rows: Vec<_> = self.rows.live().collect();
        for (sandbox, row) in rows {
            let on_host = listed.remove(&sandbox);
            self.takes_up(sandbox, &row, on_host.as_ref(), "front starts");
            if self.front.incarnation != front {
                return;
            }
        }
        for (sandbox, listed) in listed {
            self.kills_orphan(sandbox, listed.epoch, "front starts");
        }
        self.front.serving = true;
        let must_run: Vec<_> = self
            .ledger
            .alive()
            .filter(|sandbox| self.ledger.must_run(*sandbox, self.time()))
            .collect();
        for sandbox in must_run {
            let running = self
                .front
                .owned()
                .any(|it| it == (sandbox, SandboxState::Running));
            if !running {
                let detail = format!("sandbox {sandbox} is not known after a restart");
                self.breaks(("no sandbox is lost", detail));
            }
        }
        self.after(COMPARE_EVERY, Item::Compare { front });
    }

    fn takes_up(&mut self, sandbox: usize, row: &Row, listed: Option<&Listed>, when: &'static str) {
        let (found, decided) = reconcile::take_up(&row.progress, listed, self.time());
        let from = match row.progress.state {
            SandboxState::Creating => "row Creating",
            SandboxState::Running => "row Running",
            SandboxState::Killing => "row Killing",
            SandboxState::Dead => "row Dead",
        };
        let event = match (when, listed) {
            ("abandoned", Some(_)) => "abandoned, listed",
            ("abandoned", None) => "abandoned",
            (_, Some(_)) => "front starts, listed",
            (_, None) => "front starts",
        };
        let to = match found {
            Found::Adopted => "Running",
            Found::Lost | Found::Unfinished => "Killing",
        };
        self.coverage.recovery(from, event, to);
        self.note(|| format!("  takes up {sandbox}: {row:?} {listed:?} is {found:?}"));
        let owner = Owner {
            created_at: row.created_at,
            ..Owner::of(Ownership::resume(decided, &row.progress))
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    fn kills_orphan(&mut self, sandbox: usize, epoch: Epoch, from: &'static str) {
        self.coverage
            .recovery("listed, no living row", from, "killed");
        let command = Command::Kill {
            sandbox,
            epoch: epoch.next(),
        };
        self.calls(sandbox, CallKind::KillOrphan, command);
    }

    pub(super) fn compare(&mut self) {
        let front = self.front.incarnation;
        self.after(COMPARE_EVERY, Item::Compare { front });
        self.front.compared += 1;
        let kind = CallKind::Compare {
            asked_at: self.time(),
            rows: self.front.compared.is_multiple_of(ROWS_EVERY),
        };
        self.calls(0, kind, Command::List);
    }

    fn compares(&mut self, asked_at: UnixMillis, rows: bool, reply: Option<Reply>) {
        let Some(Reply::Listed(listed)) = reply else {
            return;
        };
        let front = self.front.incarnation;
        let listed: BTreeMap<usize, Listed> = listed.into_iter().collect();
        let lost: Vec<usize> = self
            .front
            .owners
            .iter()
            .filter(|(sandbox, owner)| {
                !listed.contains_key(sandbox)
                    && reconcile::is_lost(&owner.ownership.machine().progress(), asked_at)
            })
            .map(|(sandbox, _)| *sandbox)
            .collect();
        for sandbox in lost {
            self.told(sandbox, Event::Lost);
        }
        if self.store_fails() || self.front.incarnation != front {
            return;
        }
        if rows {
            let now = self.time();
            let abandoned: Vec<_> = self
                .rows
                .live()
                .filter(|(sandbox, row)| {
                    !self.front.owners.contains_key(sandbox)
                        && reconcile::is_abandoned(&row.progress, row.created_at, START_WITHIN, now)
                })
                .collect();
            for (sandbox, row) in abandoned {
                self.takes_up(sandbox, &row, listed.get(&sandbox), "abandoned");
                if self.front.incarnation != front {
                    return;
                }
            }
        }
        for (sandbox, listed) in listed {
            let row = self.rows.get(sandbox).map(|row| row.progress);
            if !self.front.owners.contains_key(&sandbox) && reconcile::is_orphan(row.as_ref()) {
                self.kills_orphan(sandbox, listed.epoch, "lists compared");
            }
        }
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
