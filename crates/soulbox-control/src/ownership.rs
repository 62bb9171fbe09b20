//! What the owner of one sandbox decides around [`lifecycle::step`](crate::lifecycle::step): in which order effects are performed, what
//! the row is known to say, and whom to answer when. Pure: the task in `owner.rs` and the simulation perform what it says.
//!
//! Feed it ([`Ownership::feed`], [`Ownership::kill`], [`Ownership::move_deadline`]), then perform [`Ownership::next`] until there is
//! none. Effects on the store come back at once by [`Ownership::reserved`] and [`Ownership::saved`], before the next task is asked for.

use std::collections::VecDeque;

use soulbox_types::{DeathCause, Epoch, SandboxState, UnixMillis};

use crate::hosts::{HostFailure, Started};
use crate::lifecycle::{Effect, Event, Machine, Phase, Told, step};
use crate::store::Progress;

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
    /// No process of it is left.
    Killed,
    /// The host has the deadline, or one that came later; or its time is over.
    DeadlineMoved,
    /// The host did not confirm the deadline; it is told again.
    DeadlineUnconfirmed,
    BeingKilled,
    Missing,
}

/// How a deadline is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineChange {
    Set(UnixMillis),
    Extend(UnixMillis),
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
    /// Whether other servers may decide as well.
    shared: bool,
    effects: VecDeque<Effect>,
    answers: VecDeque<(Ticket, Answer)>,
}

impl Ownership {
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
            shared: false,
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

    /// Whether its time is over as far as is known, which another server may have changed.
    #[must_use]
    pub fn is_doubtful(&self, now: UnixMillis) -> bool {
        self.shared && self.machine.state() == SandboxState::Running && now >= self.machine.deadline
    }

    /// The row as it is. Nothing happens unless another server changed it.
    pub fn observe(&mut self, now: UnixMillis, row: &Progress) {
        let ours = self.machine.progress();
        if (row.state, row.epoch) == (ours.state, ours.epoch) {
            // Perhaps by a write of ours that was given up on.
            self.row = (row.state, row.epoch);
        } else if (rank(row.state), row.epoch) > (rank(self.row.0), self.row.1) {
            self.overtaken(now, row);
        }
    }

    /// Another server was first: what was decided here and not written is void, and what somebody waits for is decided anew.
    fn overtaken(&mut self, now: UnixMillis, row: &Progress) {
        let unannounced = self.row.0 == SandboxState::Creating;
        self.row = (row.state, row.epoch);
        self.effects.clear();
        let (machine, effects) = self.machine.overtaken(row, now, unannounced);
        self.machine = machine;
        self.queue(effects);
        if self.machine.state() != SandboxState::Running {
            return;
        }
        if !self.kills.is_empty() {
            let cause = DeathCause::Killed;
            self.feed(now, Event::Kill { cause });
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
        self.machine = machine;
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

    /// Somebody wants its end, and hears [`Answer::Killed`].
    pub fn kill(&mut self, now: UnixMillis, cause: DeathCause, ticket: Ticket) {
        self.kills.push(ticket);
        self.feed(now, Event::Kill { cause });
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
            SandboxState::Killing => Answer::BeingKilled,
            SandboxState::Creating | SandboxState::Dead => Answer::Missing,
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
                if effect == Effect::Save && rank(self.row.0) > rank(self.machine.state()) {
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
            Reserving::Refused => Event::NotReserved,
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
            Saving::Overtaken { row } if (row.state, row.epoch) == wanted => {
                self.row = wanted;
                Event::Saved
            }
            Saving::Overtaken { row } => return self.overtaken(now, &row),
            // It was never in, or has been pruned: either way there is nothing to write to.
            Saving::Conflict { found: None } => Event::Saved,
            Saving::Conflict { found: Some(found) } => self.found(now, &found),
        };
        self.feed(now, event);
    }

    /// The row is not as it was left: what follows.
    fn found(&mut self, now: UnixMillis, found: &Progress) -> Event {
        let progress = self.machine.progress();
        self.row = (found.state, found.epoch);
        let later = found.epoch > progress.epoch;
        self.machine.epoch = self.machine.epoch.max(found.epoch);
        let both_dead = (found.state, progress.state) == (SandboxState::Dead, SandboxState::Dead);
        if *found == progress || both_dead {
            // An earlier attempt came through after all.
            return Event::Saved;
        }
        if rank(found.state) > rank(progress.state) {
            // It was decided before that it ends; it does.
            return Event::Kill {
                cause: DeathCause::Killed,
            };
        }
        if later && self.machine.state() == SandboxState::Running {
            // What the host was told is not the latest decision any more, so it is decided anew.
            let deadline = self.machine.deadline;
            self.feed(now, Event::SetDeadline { deadline });
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
                for mover in std::mem::take(&mut self.movers) {
                    let answer = if mover.deadline > now {
                        Answer::Missing
                    } else if dead || rank(self.row.0) > rank(SandboxState::Running) {
                        // Its time is over, as was asked for.
                        Answer::DeadlineMoved
                    } else {
                        self.movers.push(mover);
                        continue;
                    };
                    self.answers.push_back((mover.ticket, answer));
                }
                if dead {
                    let killed = self.kills.drain(..).map(|ticket| (ticket, Answer::Killed));
                    self.answers.extend(killed);
                }
            }
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

/// States in the order in which they come.
#[must_use]
pub fn rank(state: SandboxState) -> u8 {
    match state {
        SandboxState::Creating => 0,
        SandboxState::Running => 1,
        SandboxState::Killing => 2,
        SandboxState::Dead => 3,
    }
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
        Some(Err(_)) | None => Event::DeadlineFailed { epoch },
    }
}
