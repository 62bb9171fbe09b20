//! What the owner of one sandbox decides around [`lifecycle::step`](crate::lifecycle::step): in which order effects are performed, what
//! the row is known to say, and whom to answer when. Pure: the task in `owner.rs` and the simulation perform what it says.
//!
//! Feed it ([`Ownership::feed`], [`Ownership::kill`], [`Ownership::move_deadline`]), then perform [`Ownership::next`] until there is
//! none. Effects on the store come back at once by [`Ownership::reserved`] and [`Ownership::saved`], before the next task is asked for.

use std::collections::VecDeque;

use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState, UnixMillis};

use crate::hosts::{AtDeadline, HostFailure, HostSnapshot, Started};
use crate::lifecycle::{Effect, Event, Machine, Phase, Restoring, Told, step};
use crate::store::{Pause, PausedBy, Progress};

/// Between two attempts to read the row of a sandbox whose time may be over.
const DOUBT_MILLIS: u64 = 1_000;

/// Somebody who waits for an answer; the performer knows who.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What somebody who waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It runs, and its row says so.
    Created(Progress),
    /// It does not, and it will not.
    NotCreated,
    /// No process of it is left, and it will not come back.
    Killed,
    /// The host has the deadline, or one that came later; or its time is over.
    DeadlineMoved,
    /// The host did not confirm the deadline; it is told again.
    DeadlineUnconfirmed,
    BeingKilled,
    /// A pause is under way.
    BeingPaused,
    Missing,
    /// It is a snapshot, and its row says so.
    Paused,
    /// It was so already.
    AlreadyPaused,
    /// The host cannot, or did not in time: it goes on.
    NotPaused,
    /// It runs again, and its row says so.
    Resumed(Progress),
    /// It did not have to be resumed.
    Runs,
    /// It is paused as before.
    NotResumed,
}

/// How a deadline is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineChange {
    Set(UnixMillis),
    Extend(UnixMillis),
}

/// A resume as somebody wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumeWish {
    pub memory: bool,
    pub timeout_millis: u64,
    /// How long a host may take.
    pub within_millis: u64,
}

/// What the performer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Perform(Effect),
    /// When a caller is gone who should hear [`Answer::Created`], say so by [`Ownership::creator_gone`].
    Answer(Ticket, Answer),
}

/// What became of the insertion of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserving {
    Made,
    /// Nothing was changed.
    Refused,
    /// The store did not answer in time, so the row may be there or come later.
    Unknown,
}

/// What became of [`Effect::Reclaim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaiming {
    Done,
    /// Nothing was changed.
    Refused,
    /// The store did not answer in time, so the row may be changed or be it later.
    Unknown,
    /// The row is not as expected; it says this, or is not there.
    Conflict {
        found: Option<Progress>,
    },
}

/// What became of a write of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    Done,
    /// Refused, or not answered in time: then it may still come through.
    Failed,
    /// The row has another state or epoch than expected; it says this, or is not there.
    Conflict {
        found: Option<Progress>,
    },
    /// The row of shared records is as another server left it.
    Overtaken {
        row: Progress,
    },
}

#[derive(Debug, Clone, Copy)]
struct Mover {
    ticket: Ticket,
    epoch: Epoch,
    deadline: UnixMillis,
    change: DeadlineChange,
}

/// The decisions of one owner.
#[derive(Debug)]
pub struct Ownership {
    machine: Machine,
    /// State and epoch of the row in the store, as far as is known.
    row: (SandboxState, Epoch),
    creator: Option<Ticket>,
    /// Whether the sandbox is kept when its creator has gone away.
    kept: bool,
    kills: Vec<Ticket>,
    movers: Vec<Mover>,
    pauses: Vec<(Ticket, bool)>,
    resumes: Vec<(Ticket, ResumeWish)>,
    /// The epoch of the start that the host was asked for last.
    start: Option<Epoch>,
    /// Whether other servers may decide as well.
    shared: bool,
    /// Until when a deadline is not acted on.
    doubted_until: UnixMillis,
    effects: VecDeque<Effect>,
    answers: VecDeque<(Ticket, Answer)>,
}

impl Ownership {
    /// From now on this is done at the deadline.
    pub fn end_by(&mut self, at_deadline: AtDeadline) {
        self.machine = self.machine.ending_by(at_deadline);
    }

    /// A sandbox that is being created for `creator`; `kept` when others may ask for the outcome as well.
    #[must_use]
    pub fn create((machine, first): (Machine, Vec<Effect>), creator: Ticket, kept: bool) -> Self {
        let row = machine.progress();
        Self {
            creator: Some(creator),
            kept,
            ..Self::resume((machine, first), &row)
        }
    }

    /// A sandbox of a row that is there.
    #[must_use]
    pub fn resume((machine, first): (Machine, Vec<Effect>), row: &Progress) -> Self {
        let mut ownership = Self {
            machine,
            row: (row.state, row.epoch),
            creator: None,
            kept: false,
            kills: Vec::new(),
            movers: Vec::new(),
            pauses: Vec::new(),
            resumes: Vec::new(),
            start: None,
            shared: false,
            doubted_until: UnixMillis(0),
            effects: VecDeque::new(),
            answers: VecDeque::new(),
        };
        ownership.queue(first);
        ownership
    }

    /// Other servers may decide about it as well: then nothing is done before the row has it.
    #[must_use]
    pub fn shared(self) -> Self {
        Self {
            shared: true,
            ..self
        }
    }

    /// When [`Event::Tick`] is due; none when it is over and its row says so.
    #[must_use]
    pub fn wake_at(&self) -> Option<UnixMillis> {
        let at = self.machine.wake_at()?;
        Some(if self.is_doubtful(at) {
            at.max(self.doubted_until)
        } else {
            at
        })
    }

    /// The row of a sandbox whose time is over as far as is known could not be read. Another server may have moved its deadline, and the
    /// host keeps to that without anybody's help.
    pub fn doubt(&mut self, now: UnixMillis) {
        self.doubted_until = now.plus_millis(DOUBT_MILLIS);
    }

    /// Whether its time is over as far as is known, which another server may have changed.
    #[must_use]
    pub fn is_doubtful(&self, now: UnixMillis) -> bool {
        self.shared && self.machine.state() == SandboxState::Running && now >= self.machine.deadline
    }

    /// The row as it is. Nothing happens unless another server changed it.
    pub fn observe(&mut self, now: UnixMillis, row: &Progress) {
        if *row == self.machine.progress() {
            // Perhaps by a write of ours that was given up on.
            self.row = (row.state, row.epoch);
        } else if (row.epoch, rank(row.state)) > (self.row.1, rank(self.row.0)) {
            self.overtaken(now, row);
        }
    }

    /// Another server was first: what was decided here and not written is void, and what somebody waits for is decided anew.
    fn overtaken(&mut self, now: UnixMillis, row: &Progress) {
        let unannounced = self.row.0 == SandboxState::Creating;
        let asked = self.machine.epoch;
        let came_about = row.pause.is_some_and(|pause| pause.epoch >= asked);
        match self.machine.phase {
            // The pause that is waited for has come about; that it has been resumed since is no reason for another one.
            Phase::Pausing { .. } | Phase::Paused { .. } if came_about => {
                self.answer_pauses(Answer::Paused);
            }
            // It has not: what waited for its end need not resume anything.
            Phase::Pausing { .. } if row.state == SandboxState::Running => {
                self.answer_resumes(Answer::Runs);
            }
            _ => {}
        }
        self.row = (row.state, row.epoch);
        self.effects.clear();
        let (machine, effects) = self.machine.overtaken(row, now, unannounced);
        self.machine = machine;
        self.queue(effects);
        let state = self.machine.state();
        if !self.kills.is_empty() && !is_ending(state) {
            let cause = DeathCause::Killed;
            self.feed(now, Event::Kill { cause });
            return;
        }
        if state != SandboxState::Running {
            return;
        }
        for mover in std::mem::take(&mut self.movers) {
            self.move_deadline(now, mover.change, mover.ticket);
        }
    }

    /// What is decided so far.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Something happened.
    pub fn feed(&mut self, now: UnixMillis, event: Event) {
        let (machine, effects) = step(&self.machine, now, event);
        let before = std::mem::replace(&mut self.machine, machine).phase;
        match (before, machine.phase) {
            (Phase::Pausing { .. }, Phase::Running { .. }) => {
                self.answer_pauses(Answer::NotPaused);
                self.answer_resumes(Answer::Runs);
            }
            // Who asks when it is being undone already waits for that, and then for a resume of their own.
            (
                Phase::Resuming {
                    restoring: Restoring::Undoing { .. },
                    ..
                },
                _,
            ) => {}
            (
                Phase::Resuming { .. },
                Phase::Paused { .. }
                | Phase::Resuming {
                    restoring: Restoring::Undoing { .. },
                    ..
                },
            ) => self.answer_resumes(Answer::NotResumed),
            _ => {}
        }
        match event {
            Event::DeadlineTaken { epoch } => {
                self.answer_movers(epoch, Answer::DeadlineMoved);
            }
            Event::DeadlineFailed { epoch } => {
                self.answer_movers(epoch, Answer::DeadlineUnconfirmed);
            }
            _ => {}
        }
        self.queue(effects);
    }

    /// The answer to the start of that epoch. What the host says to an earlier one than it was asked for last tells nothing of that.
    pub fn started(&mut self, now: UnixMillis, epoch: Epoch, event: Event) {
        if self.is_latest_start(epoch) {
            self.feed(now, event);
        }
    }

    /// Whether no later start than that was asked for.
    #[must_use]
    pub fn is_latest_start(&self, epoch: Epoch) -> bool {
        self.start == Some(epoch)
    }

    /// What came of the kill of that epoch. Another server's start since then is not ended by it, nor barred.
    pub fn ended(&mut self, now: UnixMillis, epoch: Epoch, event: Event) {
        if !self.shared || epoch == self.machine.epoch {
            self.feed(now, event);
        }
    }

    /// What the host says of the sandbox as it was when that epoch was the latest: of one that has been resumed since it tells nothing.
    pub fn told(&mut self, now: UnixMillis, epoch: Epoch, event: Event) {
        let holds = match event {
            // These name their own epochs.
            Event::DeadlineTaken { .. }
            | Event::DeadlineFailed { .. }
            | Event::DeadlineTooLate { .. }
            | Event::Paused { .. } => true,
            // The host has not heard of every decision, yet of every start.
            Event::Exited { .. } => {
                self.start.is_none_or(|start| epoch >= start)
                    && self.machine.pause.is_none_or(|last| epoch > last.epoch)
            }
            _ => epoch == self.machine.epoch,
        };
        if holds {
            self.feed(now, event);
        }
    }

    /// The host has heard of a later decision than the deadline of that epoch. With shared records that may be another server's, which is
    /// read sooner or later, or a snapshot's, which has no deadline: so the callers wait for the next telling.
    pub fn superseded(&mut self, epoch: Epoch) {
        if self.shared {
            for mover in self.movers.iter_mut().filter(|it| it.epoch <= epoch) {
                mover.epoch = epoch.next();
            }
        }
    }

    /// Somebody wants its end, and hears [`Answer::Killed`].
    pub fn kill(&mut self, now: UnixMillis, cause: DeathCause, ticket: Ticket) {
        self.kills.push(ticket);
        self.feed(now, Event::Kill { cause });
    }

    /// Somebody wants it paused; a pause that is under way is joined.
    pub fn pause(&mut self, now: UnixMillis, memory: bool, ticket: Ticket) {
        let answer = match self.machine.state() {
            // Before its row says so, another server may have resumed it: a pause that is under way until then.
            SandboxState::Paused if !self.is_claiming() && self.row.0 == SandboxState::Paused => {
                Answer::AlreadyPaused
            }
            SandboxState::Killing => Answer::BeingKilled,
            SandboxState::Creating | SandboxState::Dead => Answer::Missing,
            SandboxState::Running
            | SandboxState::Pausing
            | SandboxState::Paused
            | SandboxState::Resuming => {
                self.pauses.push((ticket, memory));
                if self.machine.state() == SandboxState::Running {
                    self.feed(now, Event::Pause { memory });
                }
                return;
            }
        };
        self.answers.push_back((ticket, answer));
    }

    /// Somebody wants it to run; a resume that is under way is joined, and one after a pause that is under way waits for that.
    pub fn resume_for(&mut self, now: UnixMillis, wish: ResumeWish, ticket: Ticket) {
        let answer = match self.machine.state() {
            SandboxState::Running => Answer::Runs,
            SandboxState::Killing => Answer::BeingKilled,
            SandboxState::Creating | SandboxState::Dead => Answer::Missing,
            SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
                self.resumes.push((ticket, wish));
                self.begin_resume(now);
                return;
            }
        };
        self.answers.push_back((ticket, answer));
    }

    fn is_claiming(&self) -> bool {
        matches!(self.machine.phase, Phase::Resuming { .. })
    }

    /// Takes up the first wish when it is at rest and its row says so.
    fn begin_resume(&mut self, now: UnixMillis) {
        let at_rest = matches!(self.machine.phase, Phase::Paused { .. });
        if let Some((_, wish)) = self.resumes.first().copied()
            && at_rest
            && self.row.0 == SandboxState::Paused
        {
            let event = Event::Resume {
                memory: wish.memory,
                deadline: now.plus_millis(wish.timeout_millis),
                within_millis: wish.within_millis,
            };
            self.feed(now, event);
        }
    }

    fn answer_pauses(&mut self, answer: Answer) {
        let answered = self.pauses.drain(..).map(|(ticket, _)| (ticket, answer));
        self.answers.extend(answered);
    }

    fn answer_resumes(&mut self, answer: Answer) {
        let answered = self.resumes.drain(..).map(|(ticket, _)| (ticket, answer));
        self.answers.extend(answered);
    }

    /// What [`Effect::Reclaim`] writes, as [`Ownership::to_save`] has it.
    #[must_use]
    pub fn to_reclaim(&self) -> ((SandboxState, Epoch), Progress) {
        let progress = Progress {
            state: SandboxState::Resuming,
            ..self.machine.progress()
        };
        (self.row, progress)
    }

    /// The outcome of [`Effect::Reclaim`].
    pub fn reclaimed(&mut self, now: UnixMillis, outcome: Reclaiming) {
        let event = match outcome {
            Reclaiming::Done => {
                let (_, progress) = self.to_reclaim();
                self.row = (progress.state, progress.epoch);
                Event::Reclaimed
            }
            Reclaiming::Refused => Event::NotReclaimed { unknown: false },
            Reclaiming::Unknown => Event::NotReclaimed { unknown: true },
            // Another server was first; it may be what the callers want.
            Reclaiming::Conflict { found: Some(found) } if self.shared => {
                return self.overtaken(now, &found);
            }
            Reclaiming::Conflict { found: Some(found) } => {
                self.row = (found.state, found.epoch);
                self.machine.epoch = self.machine.epoch.max(found.epoch);
                if is_ending(found.state) {
                    Event::Kill {
                        cause: DeathCause::Killed,
                    }
                } else {
                    Event::NotReclaimed { unknown: true }
                }
            }
            Reclaiming::Conflict { found: None } => Event::Kill {
                cause: DeathCause::Lost,
            },
        };
        self.feed(now, event);
    }

    /// Somebody wants another deadline.
    pub fn move_deadline(&mut self, now: UnixMillis, change: DeadlineChange, ticket: Ticket) {
        let before = self.machine.epoch;
        let (event, deadline) = match change {
            DeadlineChange::Set(deadline) => (Event::SetDeadline { deadline }, deadline),
            DeadlineChange::Extend(deadline) => (Event::Extend { deadline }, deadline),
        };
        if self.machine.state() == SandboxState::Running {
            self.feed(now, event);
        }
        let epoch = self.machine.epoch;
        let taken = Phase::Running {
            deadline: Told::Taken,
        };
        let answer = match self.machine.state() {
            // Nothing had to change, and the host has it.
            SandboxState::Running if epoch == before && self.machine.phase == taken => {
                Answer::DeadlineMoved
            }
            SandboxState::Running => {
                self.movers.push(Mover {
                    ticket,
                    epoch,
                    deadline,
                    change,
                });
                return;
            }
            SandboxState::Pausing if deadline <= now => {
                self.movers.push(Mover {
                    ticket,
                    epoch,
                    deadline,
                    change,
                });
                return;
            }
            SandboxState::Killing => Answer::BeingKilled,
            SandboxState::Pausing => Answer::BeingPaused,
            SandboxState::Creating
            | SandboxState::Paused
            | SandboxState::Resuming
            | SandboxState::Dead => Answer::Missing,
        };
        self.answers.push_back((ticket, answer));
    }

    /// The creator has gone away without learning the ID, so nobody could ever use or end it.
    pub fn creator_gone(&mut self, now: UnixMillis) {
        if !self.kept {
            let cause = DeathCause::Killed;
            self.feed(now, Event::Kill { cause });
        }
    }

    /// What to do next; none when everything waits for something to happen.
    pub fn next(&mut self, now: UnixMillis) -> Option<Task> {
        loop {
            // Answers to movers do not wait for the effects of what came after.
            if let Some((ticket, answer)) = self.answers.pop_front() {
                return Some(Task::Answer(ticket, answer));
            }
            if let Some(mut effect) = self.effects.pop_front() {
                if effect == Effect::Save && ending(self.row.0) > ending(self.machine.state()) {
                    // A row does not go back: it says already what this is on the way to.
                    self.feed(now, Event::Saved);
                    continue;
                }
                if self.shared
                    && effect == Effect::Cut
                    && let Some(first) = self.effects.front_mut()
                    && *first == Effect::Save
                {
                    // Streams are not reset for a decision that another server may forestall.
                    std::mem::swap(&mut effect, first);
                }
                match effect {
                    Effect::HostCreate => self.start = Some(self.machine.epoch),
                    Effect::HostRestore { epoch, .. } => self.start = Some(epoch),
                    _ => {}
                }
                return Some(Task::Perform(effect));
            }
            self.settle(now);
            if self.answers.is_empty() && self.effects.is_empty() {
                return None;
            }
        }
    }

    /// The outcome of [`Effect::Reserve`].
    pub fn reserved(&mut self, now: UnixMillis, outcome: Reserving) {
        let event = match outcome {
            Reserving::Made => Event::Reserved,
            Reserving::Refused => {
                // No row is as good as a dead one: nothing comes back from it.
                self.row.0 = SandboxState::Dead;
                Event::NotReserved
            }
            // The row may be in, so it has to be marked dead.
            Reserving::Unknown => Event::Kill {
                cause: DeathCause::FailedToStart,
            },
        };
        self.feed(now, event);
    }

    /// What [`Effect::Save`] writes: the state and epoch that the row must have, and its new progress.
    #[must_use]
    pub fn to_save(&self) -> ((SandboxState, Epoch), Progress) {
        (self.row, self.machine.progress())
    }

    /// The outcome of [`Effect::Save`].
    pub fn saved(&mut self, now: UnixMillis, outcome: Saving) {
        let progress = self.machine.progress();
        let wanted = (progress.state, progress.epoch);
        let event = match outcome {
            Saving::Done => {
                self.row = wanted;
                Event::Saved
            }
            Saving::Failed => Event::SaveFailed,
            // Another server may have come to the same state and epoch in another way, so all of it has to agree.
            Saving::Overtaken { row } if row == progress => {
                self.row = wanted;
                Event::Saved
            }
            Saving::Overtaken { row } => return self.overtaken(now, &row),
            // It was never in, or has been pruned: either way there is nothing to write to.
            Saving::Conflict { found: None } => {
                self.row = wanted;
                Event::Saved
            }
            Saving::Conflict { found: Some(found) } => self.found(now, &found),
        };
        self.feed(now, event);
    }

    /// The row is not as it was left: what follows.
    fn found(&mut self, now: UnixMillis, found: &Progress) -> Event {
        let progress = self.machine.progress();
        self.row = (found.state, found.epoch);
        // Of the same epoch it may be another decision: of an earlier process, whose write came late.
        let behind = (found.epoch, rank(found.state)) >= (progress.epoch, rank(progress.state));
        self.machine.epoch = self.machine.epoch.max(found.epoch);
        let both_dead = (found.state, progress.state) == (SandboxState::Dead, SandboxState::Dead);
        if *found == progress || both_dead {
            // An earlier attempt came through after all.
            return Event::Saved;
        }
        if ending(found.state) > ending(progress.state) {
            // It was decided before that it ends; it does.
            return Event::Kill {
                cause: DeathCause::Killed,
            };
        }
        if behind && self.machine.state() == SandboxState::Running {
            // What the host was told is not the latest decision any more, so it is decided anew.
            let deadline = self.machine.deadline;
            self.feed(now, Event::SetDeadline { deadline });
        } else if behind {
            self.machine.epoch = self.machine.epoch.next();
        }
        Event::SaveFailed
    }

    fn queue(&mut self, effects: Vec<Effect>) {
        // What an outcome leads to is done before what was to come after it.
        for effect in effects.into_iter().rev() {
            self.effects.push_front(effect);
        }
    }

    /// Answers those who wait for something that has come about.
    fn settle(&mut self, now: UnixMillis) {
        match self.machine.phase {
            Phase::Reserving | Phase::Starting => {}
            Phase::Pausing { .. } => self.settle_movers(now, false),
            Phase::Paused { .. } => {
                self.settle_movers(now, false);
                if self.row.0 == SandboxState::Paused {
                    self.answer_pauses(Answer::Paused);
                    self.begin_resume(now);
                }
            }
            Phase::Resuming { .. } => self.settle_movers(now, false),
            Phase::Running { .. } if !self.resumes.is_empty() => {
                if self.row.0 == SandboxState::Running {
                    let resumed = Answer::Resumed(self.machine.progress());
                    self.answer_resumes(resumed);
                }
            }
            Phase::Running { .. } if !self.pauses.is_empty() => {
                // A resume that somebody's pause waited for, or one that another server forestalled.
                if self.row.0 == SandboxState::Running {
                    let memory = self.pauses.iter().any(|(_, memory)| *memory);
                    self.feed(now, Event::Pause { memory });
                }
            }
            Phase::Running { .. } => {
                if self.row.0 != SandboxState::Creating {
                    if let Some(creator) = self.creator.take() {
                        let created = Answer::Created(self.machine.progress());
                        self.answers.push_back((creator, created));
                    }
                } else if self.creator.is_some() {
                    // Its row does not say that it runs: the next start of the server would kill it, so nobody may rely on it.
                    let cause = DeathCause::FailedToStart;
                    self.feed(now, Event::Kill { cause });
                }
            }
            Phase::Killing { .. } | Phase::Dead => {
                if let Some(creator) = self.creator.take() {
                    self.answers.push_back((creator, Answer::NotCreated));
                }
                let dead = self.machine.phase == Phase::Dead;
                self.settle_movers(now, dead);
                let over = if dead {
                    Answer::Missing
                } else {
                    Answer::BeingKilled
                };
                self.answer_pauses(over);
                self.answer_resumes(over);
                if dead && (is_ending(self.row.0) || !self.may_return()) {
                    let killed = self.kills.drain(..).map(|ticket| (ticket, Answer::Killed));
                    self.answers.extend(killed);
                }
            }
        }
    }

    /// Whether a next owner, who finds the row as it is, may find a snapshot with it. There is none of what has never been paused by anybody,
    /// the host at its deadline included, and whose end is the only decision that the row does not say.
    fn may_return(&self) -> bool {
        let (state, epoch) = self.row;
        let never_paused = matches!(state, SandboxState::Creating | SandboxState::Running)
            && self.machine.epoch == epoch.next()
            && self.machine.pause.is_none()
            && self.machine.at_deadline == AtDeadline::Kill;
        self.shared || !never_paused
    }

    /// Answers those who wanted another deadline of what does not run any more.
    fn settle_movers(&mut self, now: UnixMillis, dead: bool) {
        for mover in std::mem::take(&mut self.movers) {
            let answer = if mover.deadline > now {
                Answer::Missing
            } else if dead || self.row.0 != SandboxState::Running {
                // Its time is over, as was asked for.
                Answer::DeadlineMoved
            } else {
                self.movers.push(mover);
                continue;
            };
            self.answers.push_back((mover.ticket, answer));
        }
    }

    /// A later deadline stands for an earlier one.
    fn answer_movers(&mut self, epoch: Epoch, answer: Answer) {
        if self.machine.state() != SandboxState::Running {
            return;
        }
        let answers = &mut self.answers;
        self.movers.retain(|mover| {
            let answered = mover.epoch <= epoch;
            if answered {
                answers.push_back((mover.ticket, answer));
            }
            !answered
        });
    }
}

/// States of one epoch in the order in which they come.
#[must_use]
pub fn rank(state: SandboxState) -> u8 {
    match state {
        SandboxState::Creating | SandboxState::Resuming => 0,
        SandboxState::Running => 1,
        SandboxState::Pausing => 2,
        SandboxState::Paused => 3,
        SandboxState::Killing => 4,
        SandboxState::Dead => 5,
    }
}

/// How far it is with its end, from which nothing leads back whatever the epoch.
#[must_use]
pub fn ending(state: SandboxState) -> u8 {
    match state {
        SandboxState::Creating
        | SandboxState::Running
        | SandboxState::Pausing
        | SandboxState::Paused
        | SandboxState::Resuming => 0,
        SandboxState::Killing => 1,
        SandboxState::Dead => 2,
    }
}

fn is_ending(state: SandboxState) -> bool {
    ending(state) > 0
}

/// What the host's answer to a wish for a snapshot means; none when it did not come in time.
#[must_use]
pub fn after_save(epoch: Epoch, answer: Option<&Result<HostSnapshot, HostFailure>>) -> Event {
    match answer {
        Some(Ok(saved)) => Event::Paused {
            pause: Pause {
                epoch,
                by: PausedBy::Control,
                at: saved.created_at,
                memory: saved.memory,
                silent_guest: false,
            },
        },
        Some(Err(HostFailure::CannotSave(_) | HostFailure::Unsupported(_))) => Event::PauseFailed,
        Some(Err(_)) | None => Event::PauseUnknown,
    }
}

/// What the lists of a host, sandboxes first and then snapshots, say of a sandbox whose last known pause is `last`.
#[must_use]
pub fn after_look(
    sandbox_id: &SandboxId,
    last: Option<Pause>,
    alive: bool,
    snapshots: &[HostSnapshot],
) -> Event {
    let newer = |pause: &Pause| last.is_none_or(|last| pause.epoch > last.epoch);
    let pause = snapshots
        .iter()
        .filter(|snapshot| snapshot.sandbox_id == *sandbox_id)
        .filter_map(pause_of)
        .filter(newer)
        .max_by_key(|pause| pause.epoch);
    Event::Looked { alive, pause }
}

/// What a look means that follows when the host does not know a sandbox of which it is told the deadline; none when that failed.
#[must_use]
pub fn after_unknown(epoch: Epoch, seen: Option<Event>) -> Event {
    match seen {
        // It has come back since, or a list is ahead of what it tells. When nobody could look it may be paused, and is told again.
        Some(Event::Looked { alive: true, .. }) | None => Event::DeadlineFailed { epoch },
        // The host paused it by itself.
        Some(seen @ Event::Looked { pause: Some(_), .. }) => seen,
        _ => Event::Lost,
    }
}

/// The pause that a snapshot is; none when it is something else.
#[must_use]
pub fn pause_of(snapshot: &HostSnapshot) -> Option<Pause> {
    let by = [PausedBy::Control, PausedBy::Host];
    by.into_iter()
        .map(|by| Pause {
            epoch: snapshot.epoch,
            by,
            at: snapshot.created_at,
            memory: snapshot.memory,
            silent_guest: false,
        })
        .find(|pause| {
            snapshot.ended && pause.snapshot_id(&snapshot.sandbox_id) == snapshot.snapshot_id
        })
}

/// What the host's answer to a create means; none when it did not come in time.
#[must_use]
pub fn after_create(answer: Option<&Result<Started, HostFailure>>) -> Event {
    match answer {
        Some(Ok(started)) => Event::Started {
            started_at: started.started_at,
        },
        Some(Err(failure)) => Event::StartFailed {
            leftover: failure.may_leave_a_sandbox(),
        },
        None => Event::StartFailed { leftover: true },
    }
}

/// What the host's answer to a kill means; none when it did not come in time.
#[must_use]
pub fn after_kill(answer: Option<&Result<(), HostFailure>>) -> Event {
    match answer {
        Some(Ok(()) | Err(HostFailure::NotFound)) => Event::HostGone,
        Some(Err(_)) | None => Event::KillFailed,
    }
}

/// What the host's answer to the deadline of that epoch means; none when it did not come in time.
#[must_use]
pub fn after_deadline(epoch: Epoch, answer: Option<&Result<(), HostFailure>>) -> Event {
    match answer {
        Some(Ok(())) => Event::DeadlineTaken { epoch },
        Some(Err(HostFailure::NotFound)) => Event::Lost,
        // The host has begun to end it, and not for its deadline.
        Some(Err(HostFailure::Lost(_))) => Event::Kill {
            cause: DeathCause::Lost,
        },
        Some(Err(failure @ (HostFailure::NotLive | HostFailure::BeingPaused))) => {
            Event::DeadlineTooLate {
                epoch,
                pausing: *failure == HostFailure::BeingPaused,
            }
        }
        Some(Err(_)) | None => Event::DeadlineFailed { epoch },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1000);

    /// A sandbox that runs and was never paused.
    fn running() -> Ownership {
        let row = Progress {
            state: SandboxState::Running,
            epoch: Epoch(1),
            started_at: Some(NOW),
            deadline: UnixMillis(60_000),
            ended_at: None,
            cause: None,
            pause: None,
        };
        Ownership::resume(Machine::follow(&row, NOW), &row)
    }

    /// What a caller hears whose deadline is in the row and comes to the host after a later decision: at once, and from the next telling.
    fn told_too_late(shared: bool) -> (Vec<Answer>, Vec<Answer>) {
        let mut ownership = running();
        if shared {
            ownership = ownership.shared();
        }
        let change = DeadlineChange::Set(UnixMillis(90_000));
        ownership.move_deadline(NOW, change, Ticket(1));
        let mut heard = (Vec::new(), Vec::new());
        let mut again = false;
        loop {
            while let Some(task) = ownership.next(NOW) {
                match task {
                    Task::Perform(Effect::Save) => ownership.saved(NOW, Saving::Done),
                    Task::Perform(Effect::HostDeadline { epoch, .. }) if again => {
                        ownership.feed(NOW, Event::DeadlineTaken { epoch });
                    }
                    Task::Perform(Effect::HostDeadline { epoch, .. }) => {
                        ownership.superseded(epoch);
                        ownership.feed(NOW, Event::DeadlineFailed { epoch });
                    }
                    Task::Perform(_) => {}
                    Task::Answer(_, answer) if again => heard.1.push(answer),
                    Task::Answer(_, answer) => heard.0.push(answer),
                }
            }
            if again {
                return heard;
            }
            again = true;
            let due = ownership.wake_at().expect("a timer");
            ownership.feed(due, Event::Tick);
        }
    }

    fn pause_at(epoch: u64) -> Pause {
        Pause {
            epoch: Epoch(epoch),
            by: PausedBy::Control,
            at: NOW,
            memory: true,
            silent_guest: false,
        }
    }

    /// A sandbox that was paused at epoch 2 and is at rest.
    fn paused() -> Ownership {
        let row = Progress {
            state: SandboxState::Paused,
            epoch: Epoch(2),
            started_at: Some(NOW),
            deadline: UnixMillis(60_000),
            ended_at: None,
            cause: None,
            pause: Some(pause_at(2)),
        };
        let mut owned = Ownership::resume(Machine::at_rest(&row, pause_at(2), NOW), &row);
        assert_eq!(perform(&mut owned, Saving::Done), []);
        owned
    }

    /// Performs all that is to be done, with that outcome of every write; the answers that were given.
    fn perform(owned: &mut Ownership, outcome: Saving) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(task) = owned.next(NOW) {
            match task {
                Task::Perform(Effect::Save) => owned.saved(NOW, outcome),
                Task::Perform(Effect::Reclaim) => owned.reclaimed(NOW, Reclaiming::Done),
                Task::Perform(_) => {}
                Task::Answer(_, answer) => answers.push(answer),
            }
        }
        answers
    }

    /// Asks for a resume; the epoch of the start that follows.
    fn resume(owned: &mut Ownership) -> Epoch {
        let wish = ResumeWish {
            memory: true,
            timeout_millis: 90_000,
            within_millis: 30_000,
        };
        owned.resume_for(NOW, wish, Ticket(1));
        perform(owned, Saving::Done);
        assert_eq!(owned.machine().state(), SandboxState::Resuming);
        owned.machine().epoch
    }

    const STARTED: Event = Event::Started { started_at: NOW };

    /// A sandbox that has been paused and resumed; the epoch of its second start.
    fn resumed() -> (Ownership, Epoch) {
        let mut owned = paused();
        let epoch = resume(&mut owned);
        owned.started(NOW, epoch, STARTED);
        let runs = Answer::Resumed(owned.machine().progress());
        assert_eq!(perform(&mut owned, Saving::Done), [runs]);
        (owned, epoch)
    }

    #[test]
    fn the_answer_to_an_earlier_resume_is_not_that_to_the_present_one() {
        for late in [STARTED, Event::StartFailed { leftover: false }] {
            let mut owned = paused();
            let first = resume(&mut owned);
            let due = owned.machine().wake_at().expect("a timer");
            owned.feed(due, Event::Tick);
            assert_eq!(perform(&mut owned, Saving::Done), [Answer::NotResumed]);
            owned.feed(due, Event::HostGone);
            perform(&mut owned, Saving::Done);
            let second = resume(&mut owned);
            let before = *owned.machine();
            owned.started(NOW, first, late);
            assert_eq!(*owned.machine(), before, "{late:?}");
            // Nor is it the answer that a kill waits for.
            owned.kill(NOW, DeathCause::Killed, Ticket(2));
            perform(&mut owned, Saving::Done);
            owned.started(NOW, first, late);
            assert_eq!(owned.machine().state(), SandboxState::Killing, "{late:?}");
            assert_eq!(perform(&mut owned, Saving::Done), []);
            owned.started(NOW, second, Event::StartFailed { leftover: false });
            assert_eq!(perform(&mut owned, Saving::Done), [Answer::Killed]);
        }
    }

    #[test]
    fn what_the_host_said_before_a_pause_does_not_end_what_was_resumed() {
        let old = Epoch(2);
        let cause = DeathCause::Lost;
        let unknown = after_deadline(old, Some(&Err(HostFailure::NotFound)));
        assert_eq!(unknown, Event::Lost);
        let gone = Event::Looked {
            alive: false,
            pause: None,
        };
        for late in [
            unknown,
            gone,
            Event::Kill { cause },
            Event::Exited { cause },
        ] {
            let (mut owned, epoch) = resumed();
            owned.told(NOW, old, late);
            assert_eq!(owned.machine().state(), SandboxState::Running, "{late:?}");
            owned.pause(NOW, true, Ticket(3));
            perform(&mut owned, Saving::Done);
            owned.told(NOW, old, late);
            assert_eq!(owned.machine().state(), SandboxState::Pausing, "{late:?}");
            let now = owned.machine().epoch.max(epoch);
            owned.told(NOW, now, late);
            assert!(is_ending(owned.machine().state()), "{late:?} of now");
        }
    }

    #[test]
    fn an_unknown_sandbox_that_is_listed_is_asked_about_again() {
        let epoch = Epoch(4);
        let looked = |alive, pause| Some(Event::Looked { alive, pause });
        let pause = Some(pause_at(4));
        assert_eq!(after_unknown(epoch, None), Event::DeadlineFailed { epoch });
        assert_eq!(after_unknown(epoch, looked(false, None)), Event::Lost);
        assert_eq!(
            after_unknown(epoch, looked(true, pause)),
            Event::DeadlineFailed { epoch }
        );
        let paused = looked(false, pause);
        assert_eq!(after_unknown(epoch, paused), paused.expect("looked"));
    }

    #[test]
    fn the_kill_of_what_is_paused_is_done_when_its_row_says_so() {
        let mut owned = paused();
        owned.kill(NOW, DeathCause::Killed, Ticket(1));
        assert_eq!(perform(&mut owned, Saving::Failed), []);
        owned.feed(NOW, Event::HostGone);
        assert_eq!(owned.machine().state(), SandboxState::Dead);
        assert_eq!(
            perform(&mut owned, Saving::Failed),
            [],
            "it would come back"
        );
        let due = owned.machine().wake_at().expect("a timer");
        owned.feed(due, Event::Tick);
        assert_eq!(perform(&mut owned, Saving::Done), [Answer::Killed]);
        assert!(owned.machine().is_over());

        // What has no row cannot come back.
        let mut pruned = paused();
        pruned.kill(NOW, DeathCause::Killed, Ticket(1));
        perform(&mut pruned, Saving::Failed);
        pruned.feed(NOW, Event::HostGone);
        let none = Saving::Conflict { found: None };
        assert_eq!(perform(&mut pruned, none), [Answer::Killed]);
        let mut refused = Ownership::create(Machine::create(NOW, 1, 1), Ticket(1), false);
        assert_eq!(refused.next(NOW), Some(Task::Perform(Effect::Reserve)));
        refused.reserved(NOW, Reserving::Refused);
        refused.kill(NOW, DeathCause::Killed, Ticket(2));
        let answers = perform(&mut refused, Saving::Failed);
        assert_eq!(answers, [Answer::NotCreated, Answer::Killed]);
    }

    #[test]
    fn the_kill_of_what_was_never_paused_needs_no_records() {
        let mut kept = running();
        kept.end_by(AtDeadline::Pause { memory: true });
        for (mut owned, told) in [
            (running(), vec![Answer::Killed]),
            (kept, vec![]),
            (running().shared(), vec![]),
        ] {
            owned.kill(NOW, DeathCause::Killed, Ticket(1));
            perform(&mut owned, Saving::Failed);
            owned.feed(NOW, Event::HostGone);
            assert_eq!(perform(&mut owned, Saving::Failed), told);
        }
    }

    #[test]
    fn what_the_host_ends_as_damaged_has_not_expired() {
        let answer = Err(HostFailure::Lost("CRIU ended".to_owned()));
        let cause = DeathCause::Lost;
        assert_eq!(
            after_deadline(Epoch(1), Some(&answer)),
            Event::Kill { cause }
        );
    }

    #[test]
    fn a_deadline_that_comes_after_another_servers_decision_is_told_again_before_its_answer() {
        assert_eq!(told_too_late(true), (vec![], vec![Answer::DeadlineMoved]));
        let unconfirmed = vec![Answer::DeadlineUnconfirmed];
        assert_eq!(told_too_late(false), (unconfirmed, vec![]));
    }

    #[test]
    fn a_late_write_of_an_earlier_process_is_not_written_over_with_its_own_epoch() {
        let pause = Progress {
            state: SandboxState::Pausing,
            epoch: Epoch(2),
            ..running().machine().progress()
        };
        let mut owned = running();
        let change = DeadlineChange::Set(UnixMillis(90_000));
        owned.move_deadline(NOW, change, Ticket(1));
        assert_eq!(owned.next(NOW), Some(Task::Perform(Effect::Save)));
        owned.saved(NOW, Saving::Conflict { found: Some(pause) });
        let (expected, progress) = owned.to_save();
        assert_eq!(expected, (SandboxState::Pausing, Epoch(2)));
        assert_eq!(
            (progress.state, progress.epoch),
            (SandboxState::Running, Epoch(3))
        );

        // A resume is being undone whose end the earlier process had heard of.
        let resuming = Progress {
            state: SandboxState::Resuming,
            epoch: Epoch(3),
            pause: Some(pause_at(2)),
            ..pause
        };
        let mut undone = Ownership::resume(Machine::undo_resume(&resuming, NOW), &resuming);
        assert_eq!(undone.next(NOW), Some(Task::Perform(Effect::Save)));
        let at_rest = Progress {
            state: SandboxState::Paused,
            epoch: Epoch(4),
            ..resuming
        };
        undone.saved(
            NOW,
            Saving::Conflict {
                found: Some(at_rest),
            },
        );
        assert_eq!(undone.to_save().1.epoch, Epoch(5));
    }

    #[test]
    fn a_resume_whose_row_says_that_it_ends_is_its_end() {
        let mut owned = paused();
        let wish = ResumeWish {
            memory: true,
            timeout_millis: 90_000,
            within_millis: 30_000,
        };
        owned.resume_for(NOW, wish, Ticket(1));
        assert_eq!(owned.next(NOW), Some(Task::Perform(Effect::Reclaim)));
        // The kill of a server that has died was written late.
        let found = Some(Progress {
            state: SandboxState::Killing,
            epoch: Epoch(3),
            ..owned.machine().progress()
        });
        owned.reclaimed(NOW, Reclaiming::Conflict { found });
        assert_eq!(perform(&mut owned, Saving::Done), [Answer::BeingKilled]);
        assert_eq!(owned.machine().state(), SandboxState::Killing);
    }

    #[test]
    fn a_resume_that_comes_while_another_is_undone_waits_and_is_made() {
        let mut owned = paused();
        let first = resume(&mut owned);
        owned.started(NOW, first, Event::StartFailed { leftover: true });
        assert_eq!(perform(&mut owned, Saving::Done), [Answer::NotResumed]);
        let wish = ResumeWish {
            memory: true,
            timeout_millis: 90_000,
            within_millis: 30_000,
        };
        owned.resume_for(NOW, wish, Ticket(2));
        owned.feed(NOW, Event::KillFailed);
        let due = owned.wake_at().expect("a timer");
        owned.feed(due, Event::Tick);
        assert_eq!(perform(&mut owned, Saving::Done), []);
        owned.feed(due, Event::HostGone);
        assert_eq!(perform(&mut owned, Saving::Done), []);
        let second = owned.machine().epoch;
        assert!(second > first && owned.is_latest_start(second));
        let started_at = due;
        owned.started(due, second, Event::Started { started_at });
        let answers = perform(&mut owned, Saving::Done);
        assert!(matches!(answers[..], [Answer::Resumed(_)]), "{answers:?}");
    }
}
