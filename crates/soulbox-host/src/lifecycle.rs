//! The life of one sandbox on its host as a pure function: [`step`] maps a machine and an event to a machine and effects.
//!
//! [`crate::host`] and [`crate::sandbox`] perform the effects and feed back what came of them. Nothing in here waits, reads a clock
//! or fails. Rules that hold for every sequence of events:
//! - a command that is older than the latest one is refused;
//! - a kill wins over everything: a start and a save that are under way end with it, and no later command takes it back;
//! - kills join: everybody who asked is answered when no process is left, and not before;
//! - saves of the same snapshot join; a snapshot with which the sandbox ends is answered when it is whole and no process is left;
//! - a save that fails leaves the sandbox running, unless it was harmed;
//! - a sandbox is known, and its ID taken, until no process of it is left.
//!
//! ```text
//! Starting -> Live -> Ending -> Gone
//!     |       |  ^ +-- exited ----^
//!     |     Saving ----> (ended with its snapshot: Ending, or Gone when it has exited already)
//!     +-- start failed -----------^     (killed meanwhile: Ending)
//! ```
//! `docs/lifecycle.md` has the table of transitions, which the simulation checks against this code.

mod fences;
mod saving;

use soulbox_types::{DeathCause, Epoch, UnixMillis};

pub use fences::Fences;

/// SIGKILL to the last exit; after so long those who wait are told, and it is sent again.
const END_MILLIS: u64 = 10_000;
/// Longer than all the steps of a save, which have limits of their own, may take together.
pub const SAVE_MILLIS: u64 = 420_000;

/// What becomes of a sandbox whose snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    GoOn,
    End,
}

/// What is done at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDeadline {
    Kill,
    /// A snapshot with which it ends; when there can be none, it is killed.
    Pause,
}

/// Where a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its ID is taken; it is being made. Every step of that has a time limit of its own.
    Starting {
        /// A kill came meanwhile, so it ends as soon as it is there.
        doomed: bool,
    },
    /// envd accepts connections.
    Live,
    /// A snapshot of it is being made.
    Saving(Saving),
    /// SIGKILL was sent.
    Ending {
        /// When to send it again, and to say that it is taking long.
        again_at: UnixMillis,
    },
    /// No process is left.
    Gone,
}

/// A save under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saving {
    pub after: After,
    /// It is the deadline's: nobody asked.
    pub at_deadline: bool,
    /// No process is left already, and whether its memory limit was why; what came of the save is waited for.
    pub exited: Option<OutOfMemory>,
    /// What is not done by then never will be.
    pub until: UnixMillis,
}

/// Whether the memory limit ended a sandbox.
pub type OutOfMemory = bool;

/// All that [`step`] needs to know about a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub phase: Phase,
    /// The latest that a command carried.
    pub epoch: Epoch,
    pub deadline: UnixMillis,
    pub at_deadline: AtDeadline,
    /// Why it ends; the first cause stays.
    pub cause: Option<DeathCause>,
    /// It ends since its snapshot is whole: it is paused.
    pub saved: bool,
}

/// What happened. Commands have a caller, who is answered by the effects of the command's own step or joins those who wait for the end
/// or for the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// envd accepts connections, and its record is written.
    Started {
        started_at: UnixMillis,
    },
    /// It was not made, and nothing of it is left.
    StartFailed,
    Kill {
        epoch: Epoch,
    },
    SetDeadline {
        epoch: Epoch,
        deadline: UnixMillis,
    },
    SetEgress {
        epoch: Epoch,
    },
    Save {
        epoch: Epoch,
        after: After,
        /// It is the very snapshot that is being made, by its name and all else.
        same: bool,
    },
    /// What was prepared is to take its place.
    Replace {
        epoch: Epoch,
    },
    /// The snapshot is whole and on disk.
    Saved,
    /// It was not made, and nothing of it is left.
    SaveFailed {
        /// Whether the processes may be damaged or stand still.
        harmed: bool,
    },
    /// No process is left.
    Exited {
        out_of_memory: OutOfMemory,
    },
    /// The time of [`Machine::wake_at`] is here.
    Tick,
}

/// What a command is answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    StaleEpoch,
    /// It is being made or is ending, so there is nothing to change; it is not over.
    NotLive,
    /// As [`Answer::NotLive`]: it ends with its snapshot.
    BeingPaused,
    /// As [`Answer::NotLive`]: it ends since a save may have damaged it.
    Lost,
    /// Another snapshot of it is being made.
    Busy,
    NotFound,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Answer the caller of this command.
    Answer(Answer),
    /// The caller of this command waits for the end.
    Join,
    /// The caller of this command waits for the snapshot.
    JoinSave,
    /// Write epoch and deadline to its record; whether that succeeded is the answer.
    Record,
    /// Change where it may connect to; whether that succeeded is the answer.
    Egress,
    /// Let what was prepared take its place, record and all; whether that succeeded is the answer.
    Replace,
    /// Write the epoch to its record and begin the snapshot: that of the command, or the deadline's own.
    Save,
    /// Tell those who wait for the snapshot that it is there.
    SaveDone,
    /// Tell those who wait for the snapshot why there is none.
    SaveFailed,
    /// The snapshot is of no use any more: delete it, or do not finish it, and tell those who wait for it.
    DiscardSave,
    /// SIGKILL to all its processes.
    Signal,
    /// Tell those who wait for the end that processes are left; they need not wait any longer.
    StillThere,
    /// Free the ID and tell those who wait that nothing is left.
    Forget,
    /// Delete the record, [`Effect::Forget`], tell those who wait for the snapshot when it is [`Machine::saved`], send an event when
    /// nobody waited, and give back what it had.
    Bury,
}

impl Machine {
    /// A sandbox whose start was asked for.
    #[must_use]
    pub fn create(epoch: Epoch, deadline: UnixMillis, at_deadline: AtDeadline) -> Self {
        Self {
            phase: Phase::Starting { doomed: false },
            epoch,
            deadline,
            at_deadline,
            cause: None,
            saved: false,
        }
    }

    /// A sandbox that runs since before this agent did, as its record has it.
    #[must_use]
    pub fn adopt(epoch: Epoch, deadline: UnixMillis, at_deadline: AtDeadline) -> Self {
        Self {
            phase: Phase::Live,
            ..Self::create(epoch, deadline, at_deadline)
        }
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<UnixMillis> {
        match self.phase {
            Phase::Starting { .. } | Phase::Gone => None,
            Phase::Live => Some(self.deadline),
            Phase::Saving(saving) if self.dies_saving(saving) => {
                Some(saving.until.min(self.deadline))
            }
            Phase::Saving(saving) => Some(saving.until),
            Phase::Ending { again_at } => Some(again_at),
        }
    }

    /// Whether a start under way is of no use any more.
    #[must_use]
    pub fn is_doomed(&self) -> bool {
        self.phase == Phase::Starting { doomed: true }
    }

    /// Whether the deadline ends it before its snapshot is made: a pause at the deadline waits for that, and a pause that is under
    /// way is an end already.
    fn dies_saving(&self, saving: Saving) -> bool {
        saving.after == After::GoOn
            && saving.exited.is_none()
            && self.at_deadline == AtDeadline::Kill
    }

    fn end(&mut self, now: UnixMillis, cause: DeathCause) {
        self.cause.get_or_insert(cause);
        self.phase = Phase::Ending {
            again_at: now.plus_millis(END_MILLIS),
        };
    }

    fn save(&mut self, now: UnixMillis, after: After, at_deadline: bool) {
        self.phase = Phase::Saving(Saving {
            after,
            at_deadline,
            exited: None,
            until: now.plus_millis(SAVE_MILLIS),
        });
    }

    /// It ended by itself.
    fn exit(&mut self, out_of_memory: OutOfMemory) {
        self.cause.get_or_insert(if out_of_memory {
            DeathCause::OutOfMemory
        } else {
            DeathCause::AgentDied
        });
        self.phase = Phase::Gone;
    }
}

/// What a sandbox becomes when something happens at `now`, and what is to be done about it.
#[must_use]
pub fn step(machine: &Machine, now: UnixMillis, event: Event) -> (Machine, Vec<Effect>) {
    let mut next = *machine;
    let effects = match (machine.phase, event) {
        (
            Phase::Starting { .. } | Phase::Live | Phase::Saving(_) | Phase::Ending { .. },
            Event::Kill { epoch },
        )
        | (
            Phase::Live | Phase::Saving(_),
            Event::SetDeadline { epoch, .. }
            | Event::SetEgress { epoch }
            | Event::Replace { epoch }
            | Event::Save { epoch, .. },
        ) if epoch < machine.epoch => {
            vec![Effect::Answer(Answer::StaleEpoch)]
        }
        (Phase::Saving(saving), _) => saving::step(machine, &mut next, saving, now, event),

        (Phase::Starting { doomed: false }, Event::Started { started_at }) => {
            next.phase = Phase::Live;
            next.deadline = machine.deadline.of_started(started_at);
            vec![Effect::Answer(Answer::Done)]
        }
        (Phase::Starting { doomed: true }, Event::Started { .. }) => {
            next.end(now, DeathCause::Killed);
            vec![Effect::Answer(Answer::StaleEpoch), Effect::Signal]
        }
        (Phase::Starting { .. }, Event::StartFailed) => {
            next.cause = Some(DeathCause::FailedToStart);
            next.phase = Phase::Gone;
            vec![Effect::Forget]
        }
        (Phase::Starting { .. }, Event::Kill { epoch }) => {
            next.epoch = epoch;
            next.phase = Phase::Starting { doomed: true };
            vec![Effect::Join]
        }

        (Phase::Live, Event::Kill { epoch }) => {
            next.epoch = epoch;
            next.end(now, DeathCause::Killed);
            vec![Effect::Join, Effect::Signal]
        }
        (Phase::Live, Event::SetDeadline { epoch, deadline }) => {
            next.epoch = epoch;
            next.deadline = deadline;
            vec![Effect::Record]
        }
        (Phase::Live, Event::SetEgress { .. }) => vec![Effect::Egress],
        (Phase::Live, Event::Replace { epoch }) => {
            next.epoch = epoch;
            vec![Effect::Replace]
        }
        (Phase::Live, Event::Exited { out_of_memory }) => {
            next.exit(out_of_memory);
            vec![Effect::Bury]
        }
        (Phase::Live, Event::Save { epoch, after, .. }) => {
            next.epoch = epoch;
            next.save(now, after, false);
            vec![Effect::JoinSave, Effect::Save]
        }
        (Phase::Live, Event::Tick) if now >= machine.deadline => match machine.at_deadline {
            AtDeadline::Kill => {
                next.end(now, DeathCause::Expired);
                vec![Effect::Signal]
            }
            AtDeadline::Pause => {
                next.save(now, After::End, true);
                vec![Effect::Save]
            }
        },

        (Phase::Ending { .. }, Event::Kill { epoch }) => {
            next.epoch = epoch;
            if machine.saved {
                next.saved = false;
                next.cause = Some(DeathCause::Killed);
                vec![Effect::Join, Effect::DiscardSave]
            } else {
                vec![Effect::Join]
            }
        }
        (Phase::Ending { .. }, Event::Exited { .. }) => {
            next.phase = Phase::Gone;
            vec![Effect::Bury]
        }
        (Phase::Ending { again_at }, Event::Tick) if now >= again_at => {
            next.phase = Phase::Ending {
                again_at: now.plus_millis(END_MILLIS),
            };
            vec![Effect::StillThere, Effect::Signal]
        }

        // Not over: whoever heard that it is unknown would take it for ended.
        (
            Phase::Starting { .. } | Phase::Ending { .. },
            Event::SetDeadline { .. }
            | Event::SetEgress { .. }
            | Event::Replace { .. }
            | Event::Save { .. },
        ) => vec![Effect::Answer(if machine.saved {
            Answer::BeingPaused
        } else if machine.cause == Some(DeathCause::Lost) {
            Answer::Lost
        } else {
            Answer::NotLive
        })],
        (
            _,
            Event::Kill { .. }
            | Event::SetDeadline { .. }
            | Event::SetEgress { .. }
            | Event::Replace { .. }
            | Event::Save { .. },
        ) => vec![Effect::Answer(Answer::NotFound)],
        _ => Vec::new(),
    };
    (next, effects)
}

#[cfg(test)]
mod tests;
