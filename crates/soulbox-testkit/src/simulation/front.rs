//! The front: clients' requests, owners, the store and the calls to the agent. Every decision in here is
//! [`soulbox_control`]'s; this performs, and dies where it is told to.

mod pauses;
mod restarts;
mod sharing;
mod writes;

use std::collections::{BTreeMap, VecDeque};

use soulbox_control::lifecycle::{Effect, Event, Machine};
use soulbox_control::ownership::{
    Answer, DeadlineChange, Ownership, ResumeWish, Task, Ticket, after_create, after_deadline,
    after_kill, after_save,
};
use soulbox_control::reconcile::Listed;
use soulbox_control::{HostFailure, Pause, Progress, Started};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

use super::ledger::Wish;
use super::schedule::{Fault, Op};
use super::store::Row;
use super::world::{Command, Item, Link, Reply, World};

/// As `ControlSettings` has them.
const START_WITHIN: u64 = 30_000;
const COMMAND_WITHIN: u64 = 15_000;
const SAVE_WITHIN: u64 = 120_000;
/// How long callers are kept waiting, as `control.rs` has it.
const CREATE_ANSWER: u64 = START_WITHIN + COMMAND_WITHIN * 2;
const KILL_ANSWER: u64 = 60_000;
const PAUSE_ANSWER: u64 = 180_000;
const DEADLINE_ANSWER: u64 = COMMAND_WITHIN * 2;

#[derive(Debug)]
pub(super) struct Front {
    pub(super) number: u32,
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
    /// The snapshot that it begins with.
    from: Option<String>,
    happened: VecDeque<Happened>,
    inbox: VecDeque<Input>,
    /// The write that it waits for, and what is written.
    writing: Option<(u64, Write)>,
    wakes_at: Option<u64>,
    kill_taken: bool,
}

/// As the task of an owner hears of it.
#[derive(Debug, Clone, Copy)]
enum Happened {
    /// By itself.
    Plain(Event),
    Killed(Epoch, Event),
    Started(Epoch, Event),
    Told(Epoch, Event),
    Superseded(Epoch, Event),
}

#[derive(Debug, Clone, Copy)]
enum Input {
    Kill(Ticket),
    Move(DeadlineChange, Ticket),
    Pause(Ticket),
    Resume(ResumeWish, Ticket),
    Ended(Epoch, Event),
    Observe(Progress),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    Reserve(Row),
    Reclaim {
        expected: (SandboxState, Epoch),
        progress: Progress,
    },
    Advance {
        expected: (SandboxState, Epoch),
        progress: Progress,
    },
}

#[derive(Debug, Clone)]
struct Call {
    sandbox: usize,
    kind: CallKind,
}

#[derive(Debug, Clone)]
enum CallKind {
    Create(Epoch),
    Kill(Epoch),
    Deadline(Epoch),
    Save(Epoch),
    Look(Look),
    LookAtSnapshots {
        look: Look,
        alive: bool,
    },
    Snapshot(Ticket),
    Fork {
        child: usize,
        timeout: u64,
    },
    Replace {
        ticket: Ticket,
        attempt: u32,
    },
    /// Nobody waits for its answer.
    Aside,
    Recover,
    RecoverSnapshots(Vec<(usize, Listed)>),
    Compare {
        asked_at: UnixMillis,
        rows: bool,
    },
    CompareSnapshots(Vec<(usize, Listed)>),
}

/// A look at what the host has of a sandbox, with its last known pause and its epoch.
#[derive(Debug, Clone, Copy)]
struct Look {
    wish: LookWish,
    last: Option<Pause>,
    epoch: Epoch,
}

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookWish {
    Owner,
    /// The host does not know it any more, as it said when it was told a deadline.
    Deadline,
    /// The same, as its list says.
    Comparison,
}

impl Front {
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            incarnation: number,
            serving: true,
            owners: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            compared: 0,
        }
    }

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
            if self.ledger.is_alive(sandbox) {
                self.ledger.exited(sandbox);
            }
            self.ends(sandbox);
            return;
        }
        if !self.front.serving || !self.catches_up(sandbox) {
            return;
        }
        let now = self.time();
        match op {
            Op::Create {
                timeout,
                leaves_after,
                kept,
                pauses: _,
                at: _,
            } => self.create(sandbox, timeout, leaves_after, kept, None),
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
                if known {
                    self.kill(sandbox);
                }
            }
            Op::Pause { .. } => self.pause(sandbox),
            Op::Resume { timeout, .. } => self.resume(sandbox, timeout),
            Op::Snapshot { .. } => self.snapshot(sandbox),
            Op::Fork { of, timeout, .. } => self.fork(of, sandbox, timeout),
            Op::Rollback { .. } => self.roll_back(sandbox),
            Op::Exit { .. } => {}
        }
    }

    /// A client asks this front for something.
    fn ask(&mut self, sandbox: usize, wish: Wish, within: u64) -> Ticket {
        let ticket = self
            .ledger
            .ask(self.front.number, sandbox, wish, self.time());
        self.after(within, Item::Leave(ticket));
        ticket
    }

    fn create(
        &mut self,
        sandbox: usize,
        timeout: u64,
        leaves_after: Option<u64>,
        kept: bool,
        from: Option<String>,
    ) {
        let now = self.time();
        let (machine, first) = Machine::create(now, timeout, START_WITHIN);
        let machine = machine.ending_by(self.at_control_deadline(sandbox));
        let deadline = machine.deadline;
        let within = leaves_after.unwrap_or(CREATE_ANSWER);
        let ticket = self.ask(sandbox, Wish::Create { deadline }, within);
        let ownership = Ownership::create((machine, first), ticket, kept);
        let owner = Owner {
            created_at: now,
            from,
            ..self.owner_of(ownership)
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
        let ticket = self.ask(sandbox, wish, DEADLINE_ANSWER);
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

    fn kill(&mut self, sandbox: usize) {
        let ticket = self.ask(sandbox, Wish::Kill, KILL_ANSWER);
        self.reach(sandbox);
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

    /// When all is at rest: nothing may be left of what stays paused.
    pub(super) fn kills_what_is_paused(&mut self) {
        let paused: Vec<usize> = self.rows.live().map(|(sandbox, _)| sandbox).collect();
        for sandbox in paused {
            self.catches_up(sandbox);
            self.kill(sandbox);
        }
    }

    /// Whether a front that finds this record would take a snapshot for what became of the sandbox.
    fn may_return(&self, sandbox: usize, record: &Progress) -> bool {
        match record.state {
            SandboxState::Killing | SandboxState::Dead => false,
            // Where the write of a pause came late, the host was never asked for one.
            SandboxState::Creating | SandboxState::Running | SandboxState::Pausing
                if record.pause.is_none() =>
            {
                let id = World::id(sandbox);
                let mut snapshots = self.agent.snapshots.values();
                snapshots.any(|snapshot| snapshot.ended && snapshot.sandbox_id == id)
            }
            _ => true,
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) -> bool {
        self.note(|| format!("  {ticket:?} hears {answer:?}"));
        if answer == Answer::Killed
            && let Some(sandbox) = self.ledger.sandbox_of(ticket)
            && let Some(row) = self.rows.get(sandbox)
            && self.may_return(sandbox, &row.progress)
        {
            let detail = format!("sandbox {sandbox}: {row:?}");
            self.breaks(("a killed sandbox does not come back", detail));
        }
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
            // What it decides by itself is the end of something that nobody may rely on, or what somebody has waited for.
            let cause = soulbox_types::DeathCause::FailedToStart;
            let after = owner.ownership.machine();
            let by_itself = match after.state() {
                // Its row says already what it is on the way to.
                _ if before.phase == after.phase => Event::Saved,
                SandboxState::Pausing => Event::Pause { memory: true },
                SandboxState::Paused => Event::Resume {
                    memory: true,
                    deadline: after.deadline,
                    within_millis: START_WITHIN,
                },
                _ => Event::Kill { cause },
            };
            self.coverage.control(&before, &by_itself, after);
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
                    if let Some(happened) = owner.happened.pop_front() {
                        self.hears(&mut owner, happened);
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
            let state = self.rows.get(sandbox).map(|row| row.progress.state);
            let own = owner.ownership.machine().state();
            // The owner of what is at rest may go before it hears what another front, or the late write of a dead one, made of that.
            let unheard = own == SandboxState::Paused;
            if !unheard && state.is_some_and(|state| state != own) {
                let detail = format!("sandbox {sandbox}: {:?}", self.rows.get(sandbox));
                self.breaks(("an owner leaves a dead row", detail));
            }
            return;
        }
        if owner.writing.is_none()
            && let Some(at) = owner.ownership.wake_at()
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

    fn hears(&mut self, owner: &mut Owner, happened: Happened) {
        match happened {
            Happened::Plain(event) => self.observe(owner, event, Ownership::feed),
            Happened::Killed(epoch, event) => {
                self.observe(owner, event, |it, now, event| it.ended(now, epoch, event));
            }
            Happened::Started(epoch, event) => {
                self.observe(owner, event, |it, now, event| it.started(now, epoch, event));
            }
            Happened::Told(epoch, event) => {
                self.observe(owner, event, |it, now, event| it.told(now, epoch, event));
            }
            Happened::Superseded(epoch, event) => {
                owner.ownership.superseded(epoch);
                self.observe(owner, event, |it, now, event| it.told(now, epoch, event));
            }
        }
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
            Input::Pause(ticket) => {
                self.observe(owner, Event::Pause { memory: true }, |it, now, _| {
                    it.pause(now, true, ticket);
                });
            }
            Input::Resume(wish, ticket) => {
                let event = Event::Resume {
                    memory: true,
                    deadline: self.time(),
                    within_millis: wish.within_millis,
                };
                self.observe(owner, event, |it, now, _| {
                    it.resume_for(now, wish, ticket);
                });
            }
            Input::Ended(epoch, event) => self.hears(owner, Happened::Told(epoch, event)),
            // What another front has decided is no transition of this one's.
            Input::Observe(progress) => owner.ownership.observe(self.time(), &progress),
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
                // Whether there is a reason for a pause is looked at where it begins.
                let state = owner.ownership.machine().state();
                if !matches!(state, SandboxState::Pausing | SandboxState::Paused) {
                    let checked = self.ledger.cut(sandbox, self.time());
                    self.check(checked);
                }
            }
            Effect::Announce => {}
            Effect::HostCreate => {
                let command = Command::Create {
                    sandbox,
                    epoch: Epoch::FIRST,
                    deadline: owner.ownership.machine().deadline,
                    from: owner.from.clone(),
                };
                self.calls(sandbox, CallKind::Create(Epoch::FIRST), command);
            }
            Effect::Reclaim => {
                let (expected, progress) = owner.ownership.to_reclaim();
                self.writes(sandbox, owner, Write::Reclaim { expected, progress });
            }
            Effect::HostRestore { epoch, pause, .. } => {
                let command = Command::Create {
                    sandbox,
                    epoch,
                    deadline: owner.ownership.machine().deadline,
                    from: Some(pause.snapshot_id(&World::id(sandbox))),
                };
                self.calls(sandbox, CallKind::Create(epoch), command);
            }
            Effect::HostSave { epoch, .. } => self.asks_for_save(sandbox, epoch),
            Effect::HostLook => {
                self.looks(sandbox, owner.look(LookWish::Owner));
            }
            Effect::DropSnapshot { pause } => {
                let name = pause.snapshot_id(&World::id(sandbox));
                self.calls(sandbox, CallKind::Aside, Command::Delete { name });
            }
            Effect::HostKill { epoch } => {
                let command = Command::Kill { sandbox, epoch };
                self.calls(sandbox, CallKind::Kill(epoch), command);
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
        let now = self.time();
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        if owner.wakes_at != Some(at) {
            return;
        }
        owner.wakes_at = None;
        if owner.writing.is_none() {
            if owner.ownership.is_doubtful(now) && !self.catches_up(sandbox) {
                if let Some(owner) = self.front.owners.get_mut(&sandbox) {
                    owner.ownership.doubt(now);
                    self.drive(sandbox);
                }
                return;
            }
            if let Some(owner) = self.front.owners.get_mut(&sandbox) {
                owner.happened.push_back(Happened::Plain(Event::Tick));
                self.drive(sandbox);
            }
        }
    }

    /// Something that did not come by an answer to a call.
    pub(super) fn told(&mut self, sandbox: usize, epoch: Epoch, event: Event) {
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.inbox.push_back(Input::Ended(epoch, event));
            self.drive(sandbox);
        }
    }

    fn calls(&mut self, sandbox: usize, kind: CallKind, command: Command) {
        self.front.last_call += 1;
        let call = self.front.last_call;
        let front = self.front.incarnation;
        let within = match kind {
            CallKind::Create(_) | CallKind::Replace { .. } => START_WITHIN,
            CallKind::Save(_) | CallKind::Snapshot(_) | CallKind::Fork { .. } => SAVE_WITHIN,
            _ => COMMAND_WITHIN,
        };
        self.front.calls.insert(call, Call { sandbox, kind });
        if !self.agent.up {
            let delay = 1 + self.random.skewed(10);
            let reply = Reply::Failed(HostFailure::Unreachable(String::new()));
            self.after(delay, Item::Reply { front, call, reply });
            return;
        }
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
                    command: command.clone(),
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
            _ => Ok(()),
        });
        let happened = match kind {
            CallKind::Create(epoch) => {
                let event = after_create(self.initialised(reply.as_ref()).as_ref());
                Happened::Started(epoch, event)
            }
            CallKind::Kill(epoch) => Happened::Killed(epoch, after_kill(done.as_ref())),
            CallKind::Deadline(epoch) => match after_deadline(epoch, done.as_ref()) {
                Event::Lost => {
                    if let Some(owner) = self.front.owners.get(&sandbox) {
                        let look = owner.look(LookWish::Deadline);
                        self.looks(sandbox, Look { epoch, ..look });
                    }
                    return;
                }
                event if matches!(done, Some(Err(HostFailure::StaleEpoch))) => {
                    Happened::Superseded(epoch, event)
                }
                event => Happened::Told(epoch, event),
            },
            CallKind::Save(epoch) => {
                let saved = reply.map(|reply| match reply {
                    Reply::Saved(snapshot) => Ok(snapshot),
                    Reply::Failed(failure) => Err(failure),
                    _ => Err(HostFailure::Failed(String::new())),
                });
                Happened::Told(epoch, after_save(epoch, saved.as_ref()))
            }
            CallKind::Look(look) => {
                return match reply {
                    Some(Reply::Listed(listed)) => {
                        let alive = listed.iter().any(|(other, _)| *other == sandbox);
                        let kind = CallKind::LookAtSnapshots { look, alive };
                        self.calls(sandbox, kind, Command::Snapshots);
                    }
                    _ => self.looked(sandbox, look, None),
                };
            }
            CallKind::LookAtSnapshots { look, alive } => {
                return match reply {
                    Some(Reply::Snapshots(snapshots)) => {
                        self.looked(sandbox, look, Some((alive, &snapshots[..])));
                    }
                    _ => self.looked(sandbox, look, None),
                };
            }
            CallKind::Fork { child, timeout } => {
                if let Some(Reply::Saved(snapshot)) = reply {
                    self.create(child, timeout, None, false, Some(snapshot.snapshot_id));
                }
                return;
            }
            CallKind::Replace { ticket, attempt } => {
                return self.replaced(sandbox, ticket, attempt, done.as_ref());
            }
            CallKind::Snapshot(ticket) => return self.snapshotted(ticket, reply),
            CallKind::Aside => return,
            CallKind::Recover => return self.recovers(reply),
            CallKind::RecoverSnapshots(listed) => return self.recovers_with(listed, reply),
            CallKind::Compare { asked_at, rows } => return self.compares(asked_at, rows, reply),
            CallKind::CompareSnapshots(listed) => return self.compares_rows(&listed, reply),
        };
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.happened.push_back(happened);
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
            _ => Err(HostFailure::Failed(String::new())),
        })
    }
}

impl Owner {
    fn look(&self, wish: LookWish) -> Look {
        let machine = self.ownership.machine();
        Look {
            wish,
            last: machine.pause,
            epoch: machine.epoch,
        }
    }

    fn of(ownership: Ownership) -> Self {
        Self {
            ownership,
            created_at: UnixMillis(0),
            from: None,
            happened: VecDeque::new(),
            inbox: VecDeque::new(),
            writing: None,
            wakes_at: None,
            kill_taken: false,
        }
    }
}
