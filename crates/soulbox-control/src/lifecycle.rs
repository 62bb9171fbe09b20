//! The life of one sandbox as a pure function: [`step`] maps a machine and an event to a machine and effects.
//!
//! The owner task performs the effects in order and feeds what came of them back as events. Nothing in here waits, reads a clock
//! or fails. Rules that hold for every sequence of events:
//! - every machine that is not over has a [`Machine::wake_at`]: no state lacks a timer that leaves it (`Paused` has the one after which
//!   its owner leaves it at rest);
//! - a kill wins over everything, and the cause that came first stays;
//! - `Dead` is final, and it is entered from `Killing` only when the host has said that nothing is left;
//! - each decision that the host is told of has an epoch of its own, and a deadline is told only when the row has it: so the next owner
//!   knows of every epoch that may be under way, and none of them can undo what it decides.
//!
//! ```text
//! Reserving -> Starting -> Running -> Killing -> Dead
//!     |            |           +-- exited, lost --^
//!     |            +-- start failed, nothing left ^   (something may be left: Killing)
//!     +-- refused --------------------------------^
//!
//! Running -> Pausing -> Paused -> Resuming -> Running      a kill leads from each of them to Killing
//!    ^---- failed -+      ^------- failed -+
//! ```
//!
//! A failed pause leaves it running, a failed resume leaves it paused. The snapshot of a pause is deleted when what was resumed from it
//! runs and its row says so.

use soulbox_types::{DeathCause, Epoch, SandboxState, UnixMillis};

use crate::hosts::AtDeadline;
use crate::store::{Pause, Progress};

/// Longest wait in `Reserving` and `Starting` beyond what the performer allows its calls: a safety net, never the normal way out.
pub(crate) const GRACE_MILLIS: u64 = 5_000;
/// A start that took longer than this moves the deadline, so that the caller does not pay for it.
const START_LAG_MILLIS: u64 = 1_000;
/// How long an attempt to kill is waited for; the performer gives up earlier and says so.
const ATTEMPT_MILLIS: u64 = 20_000;
const FIRST_RETRY_MILLIS: u64 = 250;
const LAST_RETRY_MILLIS: u64 = 10_000;
/// When a row could not be changed.
const SAVE_RETRY_MILLIS: u64 = 2_000;

/// How long a pause may take before the sandbox counts as running again.
const PAUSE_WITHIN_MILLIS: u64 = 150_000;
/// How long the host is left to what it does at a deadline, or has begun before: as long as it may take for a snapshot and an end
/// (`SAVE_MILLIS` in its `lifecycle.rs`). It is killed after that, and what is not saved is lost.
const HOST_PAUSES_WITHIN_MILLIS: u64 = 450_000;
/// Between two looks at what became of a pause.
const LOOK_MILLIS: u64 = 1_000;
/// How long somebody else's pause or resume is left to them.
const FOLLOW_MILLIS: u64 = 60_000;
/// How long a pause is waited for that a server which has ended had begun. One that comes later is found when lists are compared.
const LEFT_PAUSE_MILLIS: u64 = 5_000;
/// How long the owner of a paused sandbox stays for the next one who wants something.
const REST_MILLIS: u64 = 5_000;

/// Where a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its row, and with it its place in the quota, is being inserted.
    Reserving,
    /// A host was asked to start it.
    Starting,
    /// It answers.
    Running { deadline: Told },
    /// The host makes the snapshot with which it ends.
    Pausing {
        memory: bool,
        saving: Saving,
        /// When the host is looked at, or asked again.
        look_at: UnixMillis,
        /// When it counts as running again, or is killed if its time is over.
        until: UnixMillis,
    },
    /// It is at rest. Its owner leaves at that time, or has left.
    Paused { rests_at: Option<UnixMillis> },
    /// It is to go on from its snapshot.
    Resuming {
        memory: bool,
        restoring: Restoring,
        retry_at: UnixMillis,
    },
    /// The host was asked to end it.
    Killing {
        /// The answer to the create is still out, so that the kill may have come too early.
        start_pending: bool,
        attempts: u32,
        retry_at: UnixMillis,
    },
    /// Over.
    Dead,
}

/// How far a pause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// The host is asked when the row has it.
    AfterSave,
    /// The host was asked.
    Asked,
    /// The host does it by itself, or another server has asked it.
    Watched,
}

/// How far a resume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoring {
    /// Its place in the quota is being taken.
    Claiming,
    /// A host was asked to start it.
    Starting,
    /// That failed, and what may be left of it is being ended.
    Undoing { attempts: u32 },
    /// Another server sees to it.
    Followed,
}

/// Whether the host has the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It has.
    Taken,
    /// The row has another server's deadline, and whether that server has told the host shows only there.
    Elsewhere,
    /// It will be told when the row has it.
    AfterSave,
    /// It was told and has not answered yet.
    Asked,
    /// It did not take it; it is told again then.
    Again { at: UnixMillis },
}

/// All that [`step`] needs to know about a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub phase: Phase,
    pub epoch: Epoch,
    pub deadline: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub ended_at: Option<UnixMillis>,
    pub cause: Option<DeathCause>,
    /// The last pause.
    pub pause: Option<Pause>,
    pub at_deadline: AtDeadline,
    /// What it was resumed from is still on the host.
    resumed: Option<Pause>,
    /// When the create or the resume was asked for.
    asked_at: UnixMillis,
    /// When the host or the store must have answered in `Reserving` and `Starting`.
    give_up_at: UnixMillis,
    /// The row does not have this machine's state; saving is tried again then.
    save_again_at: Option<UnixMillis>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The row is in.
    Reserved,
    /// The row is not in: quota or store.
    NotReserved,
    /// The sandbox answers since then.
    Started { started_at: UnixMillis },
    /// The create failed; whether something may be left of it.
    StartFailed { leftover: bool },
    /// The deadline shall be this, earlier or later.
    SetDeadline { deadline: UnixMillis },
    /// The deadline shall be no earlier than this.
    Extend { deadline: UnixMillis },
    /// The host took the deadline of that epoch.
    DeadlineTaken { epoch: Epoch },
    /// The host did not answer to the deadline of that epoch.
    DeadlineFailed { epoch: Epoch },
    /// The deadline of that epoch came too late: the host was ending it already, or pausing it.
    DeadlineTooLate { epoch: Epoch, pausing: bool },
    /// Its end was decided.
    Kill { cause: DeathCause },
    /// The host says that no process is left.
    HostGone,
    /// The host did not manage to, or did not answer.
    KillFailed,
    /// The host says that it ended by itself.
    Exited { cause: DeathCause },
    /// The host does not know it.
    Lost,
    /// It shall be paused.
    Pause { memory: bool },
    /// It is a snapshot, and nothing of it is left.
    Paused { pause: Pause },
    /// The host cannot; it goes on.
    PauseFailed,
    /// The host did not answer, or does not know the sandbox any more.
    PauseUnknown,
    /// What the host has of it: whether it is alive, and the pause that came after the last known one.
    Looked { alive: bool, pause: Option<Pause> },
    /// It shall run again; `deadline` is its new one.
    Resume {
        memory: bool,
        deadline: UnixMillis,
        within_millis: u64,
    },
    /// It has its place in the quota again.
    Reclaimed,
    /// It has not, or that is not known.
    NotReclaimed { unknown: bool },
    /// The row has the state.
    Saved,
    /// The row could not be changed.
    SaveFailed,
    /// The time of [`Machine::wake_at`] is here.
    Tick,
}

/// What the owner has to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Insert the row. Comes back as [`Event::Reserved`] or [`Event::NotReserved`].
    Reserve,
    /// Ask the host to start it. [`Event::Started`] or [`Event::StartFailed`].
    HostCreate,
    /// Ask the host for the snapshot with which it ends. [`Event::Paused`], [`Event::PauseFailed`] or [`Event::PauseUnknown`].
    HostSave { epoch: Epoch, memory: bool },
    /// Look at what the host has of it. [`Event::Looked`], or nothing when the host does not answer.
    HostLook,
    /// Take its place in the quota and write the progress. [`Event::Reclaimed`] or [`Event::NotReclaimed`].
    Reclaim,
    /// Ask the host to start it from the snapshot. [`Event::Started`] or [`Event::StartFailed`].
    HostRestore {
        epoch: Epoch,
        pause: Pause,
        memory: bool,
    },
    /// Delete the snapshot; what is not deleted is found later.
    DropSnapshot { pause: Pause },
    /// Ask the host to end it. [`Event::HostGone`] or [`Event::KillFailed`].
    HostKill { epoch: Epoch },
    /// Tell the host the deadline. [`Event::DeadlineTaken`], [`Event::DeadlineFailed`], [`Event::DeadlineTooLate`] or [`Event::Lost`].
    HostDeadline { epoch: Epoch, deadline: UnixMillis },
    /// Reset the streams into it and let nobody find it any more.
    Cut,
    /// Let it be found.
    Announce,
    /// Write the progress to the row. [`Event::Saved`] or [`Event::SaveFailed`].
    Save,
}

impl Machine {
    /// A sandbox that is asked for now.
    #[must_use]
    pub fn create(
        now: UnixMillis,
        timeout_millis: u64,
        start_within_millis: u64,
    ) -> (Self, Vec<Effect>) {
        let machine = Self {
            phase: Phase::Reserving,
            epoch: Epoch::FIRST,
            deadline: now.plus_millis(timeout_millis),
            started_at: None,
            ended_at: None,
            cause: None,
            pause: None,
            at_deadline: AtDeadline::Kill,
            resumed: None,
            asked_at: now,
            give_up_at: now
                .plus_millis(start_within_millis)
                .plus_millis(GRACE_MILLIS),
            save_again_at: None,
        };
        (machine, vec![Effect::Reserve])
    }

    /// A sandbox that runs on a host since before this process did. The later epoch's deadline holds; both sides get it.
    #[must_use]
    pub fn adopt(
        row: &Progress,
        host_epoch: Epoch,
        host_deadline: UnixMillis,
        started_at: UnixMillis,
        now: UnixMillis,
    ) -> (Self, Vec<Effect>) {
        let deadline = if host_epoch > row.epoch {
            host_deadline
        } else {
            row.deadline
        };
        let mut machine = Self {
            phase: Phase::Running {
                deadline: Told::Taken,
            },
            epoch: row.epoch.max(host_epoch),
            deadline,
            started_at: Some(started_at),
            ended_at: None,
            cause: None,
            pause: row.pause,
            at_deadline: AtDeadline::Kill,
            // Should what it was resumed from be there, it is found when snapshots are compared.
            resumed: None,
            asked_at: now,
            give_up_at: now,
            save_again_at: None,
        };
        let mut effects = vec![Effect::Announce];
        if deadline != host_deadline {
            machine.move_deadline(deadline, &mut effects);
        } else if machine.progress() != *row {
            effects.push(Effect::Save);
        }
        (machine, effects)
    }

    /// A row that was being killed, or that no host knows, when the process started: it is killed once more, so that the host has said it.
    #[must_use]
    pub fn resume_kill(row: &Progress, cause: DeathCause, now: UnixMillis) -> (Self, Vec<Effect>) {
        let machine = Self {
            phase: Phase::Starting,
            epoch: row.epoch,
            deadline: row.deadline,
            started_at: row.started_at,
            ended_at: None,
            cause: row.cause,
            pause: row.pause,
            at_deadline: AtDeadline::Kill,
            resumed: None,
            asked_at: now,
            give_up_at: now,
            save_again_at: None,
        };
        let (mut machine, effects) = step(&machine, now, Event::Kill { cause });
        // The create of an earlier process is not under way any more.
        if let Phase::Killing { start_pending, .. } = &mut machine.phase {
            *start_pending = false;
        }
        (machine, effects)
    }

    /// A sandbox that another server looks after as well; the row is as that one left it.
    #[must_use]
    pub fn follow(row: &Progress, now: UnixMillis) -> (Self, Vec<Effect>) {
        let machine = Self {
            phase: Phase::Running {
                deadline: Told::Taken,
            },
            epoch: row.epoch,
            deadline: row.deadline,
            started_at: row.started_at,
            ended_at: row.ended_at,
            cause: row.cause,
            pause: row.pause,
            at_deadline: AtDeadline::Kill,
            resumed: None,
            asked_at: now,
            give_up_at: now,
            save_again_at: None,
        };
        machine.overtaken(row, now, false)
    }

    /// A row that is at rest, or whose host paused it when nobody heard of that.
    #[must_use]
    pub fn at_rest(row: &Progress, pause: Pause, now: UnixMillis) -> (Self, Vec<Effect>) {
        let (mut machine, _) = Self::follow(row, now);
        let mut effects = Vec::new();
        machine.rest(now, pause, &mut effects);
        if machine.progress() == *row {
            effects.clear();
        }
        (machine, effects)
    }

    /// A pause that an earlier process began and nobody waits for any more: it may come to its end soon, or never.
    #[must_use]
    pub fn resume_pause(row: &Progress, now: UnixMillis) -> (Self, Vec<Effect>) {
        let (mut machine, effects) = Self::follow(row, now);
        if let Phase::Pausing { until, .. } = &mut machine.phase {
            *until = now.plus_millis(if now < row.deadline {
                LEFT_PAUSE_MILLIS
            } else {
                HOST_PAUSES_WITHIN_MILLIS
            });
        }
        (machine, effects)
    }

    /// A resume that an earlier process began and nobody waits for any more: it is paused again.
    #[must_use]
    pub fn undo_resume(row: &Progress, now: UnixMillis) -> (Self, Vec<Effect>) {
        let (mut machine, _) = Self::follow(row, now);
        let mut effects = Vec::new();
        machine.undo(now, 1, &mut effects);
        (machine, effects)
    }

    /// With what the sandbox is to do at its deadline.
    #[must_use]
    pub fn ending_by(self, at_deadline: AtDeadline) -> Self {
        Self {
            at_deadline,
            ..self
        }
    }

    /// What it becomes when another server has decided first and left the row like this. `unannounced` says that no row had it running:
    /// then that server did not know of the host's sandbox, and the end of it has to come from here.
    #[must_use]
    pub fn overtaken(
        &self,
        row: &Progress,
        now: UnixMillis,
        unannounced: bool,
    ) -> (Self, Vec<Effect>) {
        let mut next = Self {
            epoch: row.epoch,
            deadline: row.deadline,
            started_at: row.started_at.or(self.started_at),
            ended_at: row.ended_at,
            cause: row.cause,
            pause: row.pause,
            save_again_at: None,
            ..*self
        };
        let retry_at = now.plus_millis(ATTEMPT_MILLIS);
        match row.state {
            SandboxState::Creating => (*self, Vec::new()),
            SandboxState::Running => {
                next.phase = Phase::Running {
                    deadline: Told::Elsewhere,
                };
                (next, vec![Effect::Announce])
            }
            // That server, or the host by itself, sees to it; what came of it shows on the host.
            SandboxState::Pausing => {
                next.phase = Phase::Pausing {
                    memory: true,
                    saving: Saving::Watched,
                    look_at: now.plus_millis(LOOK_MILLIS),
                    until: now.plus_millis(FOLLOW_MILLIS),
                };
                (next, vec![Effect::Cut])
            }
            SandboxState::Paused => {
                next.phase = Phase::Paused {
                    rests_at: Some(now.plus_millis(REST_MILLIS)),
                };
                (next, vec![Effect::Cut])
            }
            SandboxState::Resuming => {
                next.phase = Phase::Resuming {
                    memory: true,
                    restoring: Restoring::Followed,
                    retry_at: now.plus_millis(FOLLOW_MILLIS),
                };
                (next, vec![Effect::Cut])
            }
            SandboxState::Killing | SandboxState::Dead if unannounced => {
                next.epoch = row.epoch.max(self.epoch).next();
                next.ended_at = None;
                next.phase = Phase::Killing {
                    start_pending: self.phase == Phase::Starting,
                    attempts: 1,
                    retry_at,
                };
                let epoch = next.epoch;
                (next, vec![Effect::Cut, Effect::HostKill { epoch }])
            }
            // That server sees to it; should it end before that, the attempt after this one is ours.
            SandboxState::Killing => {
                next.phase = Phase::Killing {
                    start_pending: false,
                    attempts: 1,
                    retry_at,
                };
                (next, vec![Effect::Cut])
            }
            SandboxState::Dead => {
                next.phase = Phase::Dead;
                (next, vec![Effect::Cut])
            }
        }
    }

    /// When [`Event::Tick`] is due; none when it is over and its row says so.
    #[must_use]
    pub fn wake_at(&self) -> Option<UnixMillis> {
        let own = match self.phase {
            Phase::Reserving | Phase::Starting => Some(self.give_up_at),
            Phase::Running {
                deadline: Told::Again { at },
            } => Some(at.min(self.deadline)),
            Phase::Running { .. } => Some(self.deadline),
            Phase::Pausing { look_at, until, .. } => Some(look_at.min(until)),
            Phase::Paused { rests_at } => rests_at,
            Phase::Resuming { retry_at, .. } | Phase::Killing { retry_at, .. } => Some(retry_at),
            Phase::Dead => None,
        };
        match (own, self.save_again_at) {
            (Some(own), Some(save)) => Some(own.min(save)),
            (own, save) => own.or(save),
        }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.wake_at().is_none()
    }

    /// Whether a pause came after the last known one.
    #[must_use]
    pub fn is_newer(&self, pause: &Pause) -> bool {
        self.pause.is_none_or(|last| pause.epoch > last.epoch)
    }

    /// What others see.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        match self.phase {
            Phase::Reserving | Phase::Starting => SandboxState::Creating,
            Phase::Running { .. } => SandboxState::Running,
            Phase::Pausing { .. } => SandboxState::Pausing,
            Phase::Paused { .. } => SandboxState::Paused,
            Phase::Resuming {
                restoring: Restoring::Claiming,
                ..
            } => SandboxState::Paused,
            Phase::Resuming { .. } => SandboxState::Resuming,
            Phase::Killing { .. } => SandboxState::Killing,
            Phase::Dead => SandboxState::Dead,
        }
    }

    /// What the row should say.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            state: self.state(),
            epoch: self.epoch,
            started_at: self.started_at,
            deadline: self.deadline,
            ended_at: self.ended_at,
            cause: self.cause,
            pause: self.pause,
        }
    }

    /// Until when the host is left to what it does at the deadline.
    fn host_pauses_until(&self) -> UnixMillis {
        self.deadline.plus_millis(HOST_PAUSES_WITHIN_MILLIS)
    }

    /// Its time is over.
    fn expire(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        match self.at_deadline {
            AtDeadline::Kill => self.kill(now, DeathCause::Expired, false, effects),
            // The host does it by itself at this very moment, so it is not asked as well.
            AtDeadline::Pause { memory } => self.watch(now, memory, effects),
        }
    }

    /// The host pauses it by itself.
    fn watch(&mut self, now: UnixMillis, memory: bool, effects: &mut Vec<Effect>) {
        self.epoch = self.epoch.next();
        self.phase = Phase::Pausing {
            memory,
            saving: Saving::Watched,
            look_at: now.plus_millis(LOOK_MILLIS),
            until: now.plus_millis(HOST_PAUSES_WITHIN_MILLIS),
        };
        effects.extend([Effect::Cut, Effect::Save]);
    }

    fn rest(&mut self, now: UnixMillis, pause: Pause, effects: &mut Vec<Effect>) {
        self.pause = Some(pause);
        self.epoch = self.epoch.max(pause.epoch);
        self.resumed = None;
        self.phase = Phase::Paused {
            rests_at: Some(now.plus_millis(REST_MILLIS)),
        };
        effects.extend([Effect::Cut, Effect::Save]);
    }

    /// A pause did not come about.
    fn go_on(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Announce);
        // With a new epoch, so that no late command of the pause counts any more.
        self.move_deadline(self.deadline, effects);
    }

    /// Ends what may be left of a resume.
    fn undo(&mut self, now: UnixMillis, attempts: u32, effects: &mut Vec<Effect>) {
        self.epoch = self.epoch.next();
        self.phase = Phase::Resuming {
            memory: true,
            restoring: Restoring::Undoing { attempts },
            retry_at: now.plus_millis(ATTEMPT_MILLIS),
        };
        effects.extend([Effect::Save, Effect::HostKill { epoch: self.epoch }]);
    }

    /// A resume did not come about, and nothing is left of it.
    fn rest_again(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        self.epoch = self.epoch.next();
        self.phase = Phase::Paused {
            rests_at: Some(now.plus_millis(REST_MILLIS)),
        };
        effects.push(Effect::Save);
    }

    fn kill(
        &mut self,
        now: UnixMillis,
        cause: DeathCause,
        start_pending: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.epoch = self.epoch.next();
        self.cause.get_or_insert(cause);
        self.phase = Phase::Killing {
            start_pending,
            attempts: 1,
            retry_at: now.plus_millis(ATTEMPT_MILLIS),
        };
        effects.extend([
            Effect::Cut,
            Effect::Save,
            Effect::HostKill { epoch: self.epoch },
        ]);
    }

    fn die(&mut self, now: UnixMillis, cause: DeathCause, effects: &mut Vec<Effect>) {
        self.cause.get_or_insert(cause);
        self.ended_at = Some(now);
        self.phase = Phase::Dead;
        effects.extend([Effect::Cut, Effect::Save]);
    }

    /// The deadline of what has just started.
    fn count_from(&mut self, started_at: UnixMillis, effects: &mut Vec<Effect>) {
        let lag = started_at.millis_since(self.asked_at);
        if lag > START_LAG_MILLIS {
            let deadline = self.deadline.plus_millis(lag).of_started(started_at);
            self.move_deadline(deadline, effects);
        } else {
            self.deadline = self.deadline.of_started(started_at);
            effects.push(Effect::Save);
        }
    }

    fn move_deadline(&mut self, deadline: UnixMillis, effects: &mut Vec<Effect>) {
        self.epoch = self.epoch.next();
        self.deadline = deadline;
        self.phase = Phase::Running {
            deadline: Told::AfterSave,
        };
        effects.push(Effect::Save);
    }
}

/// What a sandbox becomes when something happens at `now`, and what is to be done about it.
#[must_use]
pub fn step(machine: &Machine, now: UnixMillis, event: Event) -> (Machine, Vec<Effect>) {
    let mut next = *machine;
    let mut effects = Vec::new();
    if let Event::Paused { pause }
    | Event::Looked {
        pause: Some(pause), ..
    } = event
        && !machine.is_newer(&pause)
    {
        // Old news of a pause from which it has been resumed since.
        return (next, effects);
    }
    match (machine.phase, event) {
        (phase, Event::Saved) => {
            next.save_again_at = None;
            if phase
                == (Phase::Running {
                    deadline: Told::AfterSave,
                })
            {
                next.phase = Phase::Running {
                    deadline: Told::Asked,
                };
                effects.push(Effect::HostDeadline {
                    epoch: machine.epoch,
                    deadline: machine.deadline,
                });
            }
            if let Phase::Pausing {
                saving: Saving::AfterSave,
                memory,
                until,
                ..
            } = phase
            {
                next.phase = Phase::Pausing {
                    memory,
                    saving: Saving::Asked,
                    look_at: until,
                    until,
                };
                let epoch = machine.epoch;
                effects.extend([Effect::Cut, Effect::HostSave { epoch, memory }]);
            }
            // The row says that it runs: what it was resumed from is of no use any more.
            if let (Phase::Running { .. }, Some(pause)) = (phase, machine.resumed) {
                next.resumed = None;
                effects.push(Effect::DropSnapshot { pause });
            }
            if let (Phase::Dead, Some(pause)) = (phase, machine.pause) {
                effects.push(Effect::DropSnapshot { pause });
            }
        }
        // Nothing is saved before the start.
        (Phase::Reserving | Phase::Starting, Event::SaveFailed) => {}
        (_, Event::SaveFailed) => next.save_again_at = Some(now.plus_millis(SAVE_RETRY_MILLIS)),

        (Phase::Reserving, Event::Reserved) => {
            next.phase = Phase::Starting;
            effects.push(Effect::HostCreate);
        }
        (Phase::Reserving, Event::NotReserved) => {
            // There is no row, so there is nothing to save.
            next.cause = Some(DeathCause::FailedToStart);
            next.ended_at = Some(now);
            next.phase = Phase::Dead;
        }
        // No host was asked yet, but the row may be there: the store did not say.
        (Phase::Reserving, Event::Kill { cause }) => next.die(now, cause, &mut effects),
        (Phase::Reserving, Event::Tick) if now >= machine.give_up_at => {
            next.die(now, DeathCause::FailedToStart, &mut effects);
        }

        (Phase::Starting, Event::Started { started_at }) => {
            next.started_at = Some(started_at);
            next.phase = Phase::Running {
                deadline: Told::Taken,
            };
            effects.push(Effect::Announce);
            next.count_from(started_at, &mut effects);
        }
        (Phase::Starting, Event::StartFailed { leftover: false }) => {
            next.die(now, DeathCause::FailedToStart, &mut effects);
        }
        (Phase::Starting, Event::StartFailed { leftover: true }) => {
            next.kill(now, DeathCause::FailedToStart, false, &mut effects);
        }
        (Phase::Starting, Event::Tick) if now >= machine.give_up_at => {
            next.kill(now, DeathCause::FailedToStart, false, &mut effects);
        }
        // The host tells of an end only after a start; the answer to the create has been overtaken.
        (Phase::Starting, Event::Exited { cause }) => next.die(now, cause, &mut effects),
        (Phase::Starting, Event::Kill { cause }) => next.kill(now, cause, true, &mut effects),

        // The host ends it at this moment, so nothing can be promised any more.
        (Phase::Running { .. }, Event::SetDeadline { .. } | Event::Extend { .. })
            if now >= machine.deadline =>
        {
            next.expire(now, &mut effects);
        }
        (Phase::Running { .. }, Event::SetDeadline { deadline }) => {
            next.move_deadline(deadline, &mut effects);
        }
        (Phase::Running { .. }, Event::Extend { deadline }) if deadline > machine.deadline => {
            next.move_deadline(deadline, &mut effects);
        }
        // The row has it already, so there is nothing to write before the host is told.
        (
            Phase::Running {
                deadline: Told::Elsewhere,
            },
            Event::Extend { .. },
        ) => {
            next.phase = Phase::Running {
                deadline: Told::Asked,
            };
            effects.push(Effect::HostDeadline {
                epoch: machine.epoch,
                deadline: machine.deadline,
            });
        }
        (Phase::Running { .. }, Event::DeadlineTaken { epoch }) if epoch == machine.epoch => {
            next.phase = Phase::Running {
                deadline: Told::Taken,
            };
        }
        (Phase::Running { .. }, Event::DeadlineFailed { epoch }) if epoch == machine.epoch => {
            let at = now.plus_millis(retry_millis(2));
            next.phase = Phase::Running {
                deadline: Told::Again { at },
            };
        }
        // Nothing leads back from that. A pause shows by its snapshot, whether it was begun by the host or by a command given up on.
        (
            Phase::Running {
                deadline: Told::Asked,
            },
            Event::DeadlineTooLate { epoch, pausing },
        ) if epoch == machine.epoch => {
            if pausing {
                next.watch(now, true, &mut effects);
            } else {
                next.expire(now, &mut effects);
            }
        }
        (Phase::Running { .. }, Event::Kill { cause }) => {
            next.kill(now, cause, false, &mut effects)
        }
        (Phase::Running { .. }, Event::Exited { cause }) => next.die(now, cause, &mut effects),
        (Phase::Running { .. }, Event::Lost) => next.die(now, DeathCause::Lost, &mut effects),
        (Phase::Running { .. }, Event::Tick) if now >= machine.deadline => {
            next.expire(now, &mut effects);
        }
        (Phase::Running { .. }, Event::Pause { .. }) if now >= machine.deadline => {
            next.expire(now, &mut effects);
        }
        (Phase::Running { .. }, Event::Pause { memory }) => {
            next.epoch = machine.epoch.next();
            let until = now.plus_millis(PAUSE_WITHIN_MILLIS);
            next.phase = Phase::Pausing {
                memory,
                saving: Saving::AfterSave,
                look_at: until,
                until,
            };
            effects.push(Effect::Save);
        }
        // The host did it by itself.
        (Phase::Running { .. } | Phase::Pausing { .. }, Event::Paused { pause }) => {
            next.rest(now, pause, &mut effects);
        }
        (
            Phase::Pausing {
                saving: Saving::Asked,
                ..
            },
            Event::PauseFailed,
        ) => {
            if now >= machine.deadline {
                // Perhaps the host's own pause was first.
                next.expire(now, &mut effects);
            } else {
                next.go_on(&mut effects);
            }
        }
        (
            Phase::Pausing {
                saving: Saving::Asked,
                memory,
                until,
                ..
            },
            Event::PauseUnknown,
        ) => {
            next.phase = Phase::Pausing {
                memory,
                saving: Saving::Asked,
                look_at: now.plus_millis(LOOK_MILLIS),
                until,
            };
        }
        (
            Phase::Pausing { .. } | Phase::Running { .. },
            Event::Looked {
                alive: false,
                pause: Some(pause),
            },
        ) => next.rest(now, pause, &mut effects),
        (
            Phase::Pausing { .. },
            Event::Looked {
                alive: false,
                pause: None,
            }
            | Event::Lost,
        ) => {
            let cause = if now >= machine.deadline {
                DeathCause::Expired
            } else {
                DeathCause::Lost
            };
            next.die(now, cause, &mut effects);
        }
        (Phase::Pausing { .. }, Event::Exited { cause }) => next.die(now, cause, &mut effects),
        // Asked once more with the same words, the host joins what is under way. With its snapshot it may be ending yet, and a kill
        // from now on would take that with it: it is not at rest before it is gone.
        (
            Phase::Pausing {
                saving: Saving::Asked,
                memory,
                until,
                ..
            },
            Event::Looked { alive: true, .. },
        ) if now < until => {
            next.phase = Phase::Pausing {
                memory,
                saving: Saving::Asked,
                look_at: until,
                until,
            };
            let epoch = machine.epoch;
            effects.push(Effect::HostSave { epoch, memory });
        }
        (Phase::Pausing { .. }, Event::Kill { cause }) => {
            next.kill(now, cause, false, &mut effects)
        }
        // Its time came meanwhile: the host is at it, or begins by itself.
        (
            Phase::Pausing {
                memory,
                saving,
                until,
                ..
            },
            Event::Tick,
        ) if now >= until && now >= machine.deadline && until < machine.host_pauses_until() => {
            next.phase = Phase::Pausing {
                memory,
                saving,
                look_at: now.plus_millis(LOOK_MILLIS),
                until: machine.host_pauses_until(),
            };
            effects.push(Effect::HostLook);
        }
        (Phase::Pausing { until, .. }, Event::Tick) if now >= until => {
            if now >= machine.deadline {
                next.kill(now, DeathCause::Expired, false, &mut effects);
            } else {
                next.go_on(&mut effects);
            }
        }
        (
            Phase::Pausing {
                memory,
                saving,
                look_at,
                until,
            },
            Event::Tick,
        ) if now >= look_at => {
            next.phase = Phase::Pausing {
                memory,
                saving,
                look_at: now.plus_millis(LOOK_MILLIS),
                until,
            };
            effects.push(Effect::HostLook);
        }

        (
            Phase::Paused { .. },
            Event::Resume {
                memory,
                deadline,
                within_millis,
            },
        ) => {
            next.epoch = machine.epoch.next();
            next.deadline = deadline;
            next.asked_at = now;
            next.give_up_at = now.plus_millis(within_millis).plus_millis(GRACE_MILLIS);
            next.phase = Phase::Resuming {
                memory,
                restoring: Restoring::Claiming,
                retry_at: next.give_up_at,
            };
            effects.push(Effect::Reclaim);
        }
        (Phase::Paused { .. }, Event::Kill { cause }) => next.kill(now, cause, false, &mut effects),
        (Phase::Paused { rests_at: Some(at) }, Event::Tick) if now >= at => {
            next.phase = Phase::Paused { rests_at: None };
        }

        (
            Phase::Resuming {
                memory,
                restoring: Restoring::Claiming,
                retry_at,
            },
            Event::Reclaimed,
        ) => match machine.pause {
            Some(pause) => {
                next.phase = Phase::Resuming {
                    memory,
                    restoring: Restoring::Starting,
                    retry_at,
                };
                let epoch = machine.epoch;
                effects.push(Effect::HostRestore {
                    epoch,
                    pause,
                    memory: memory && pause.memory,
                });
            }
            None => next.die(now, DeathCause::Lost, &mut effects),
        },
        (
            Phase::Resuming {
                restoring: Restoring::Claiming,
                ..
            },
            Event::NotReclaimed { unknown },
        ) => {
            next.phase = Phase::Paused {
                rests_at: Some(now.plus_millis(REST_MILLIS)),
            };
            if unknown {
                // The row may say that it is being resumed.
                next.epoch = machine.epoch.next();
                effects.push(Effect::Save);
            }
        }
        (
            Phase::Resuming {
                restoring: Restoring::Starting,
                ..
            },
            Event::Started { started_at },
        ) => {
            next.started_at = Some(started_at);
            // Snapshots that an earlier resume left, of which nobody was told, count no more than the one it came from.
            next.resumed = machine.pause;
            next.pause = machine.pause.map(|pause| Pause {
                epoch: Epoch(machine.epoch.0.saturating_sub(1)),
                ..pause
            });
            next.phase = Phase::Running {
                deadline: Told::Taken,
            };
            effects.push(Effect::Announce);
            next.count_from(started_at, &mut effects);
        }
        (
            Phase::Resuming {
                restoring: Restoring::Starting,
                ..
            },
            Event::StartFailed { leftover: false },
        ) => next.rest_again(now, &mut effects),
        (
            Phase::Resuming {
                restoring: Restoring::Starting,
                ..
            },
            Event::StartFailed { leftover: true } | Event::Exited { .. },
        ) => next.undo(now, 1, &mut effects),
        (
            Phase::Resuming {
                restoring: Restoring::Undoing { .. },
                ..
            },
            Event::HostGone | Event::Exited { .. },
        ) => next.rest_again(now, &mut effects),
        (
            Phase::Resuming {
                memory,
                restoring: Restoring::Undoing { attempts },
                ..
            },
            Event::KillFailed,
        ) => {
            next.phase = Phase::Resuming {
                memory,
                restoring: Restoring::Undoing { attempts },
                retry_at: now.plus_millis(retry_millis(attempts)),
            };
        }
        (
            Phase::Resuming {
                restoring,
                retry_at,
                ..
            },
            Event::Tick,
        ) if now >= retry_at => {
            let attempts = match restoring {
                Restoring::Undoing { attempts } => attempts.saturating_add(1),
                Restoring::Claiming | Restoring::Starting | Restoring::Followed => 1,
            };
            next.undo(now, attempts, &mut effects);
        }
        (Phase::Resuming { restoring, .. }, Event::Kill { cause }) => {
            let pending = restoring == Restoring::Starting;
            next.kill(now, cause, pending, &mut effects);
        }

        (
            Phase::Running {
                deadline: Told::Again { at },
            },
            Event::Tick,
        ) if now >= at => {
            // With a new epoch, in case the host has seen a later one than the row knew.
            next.move_deadline(machine.deadline, &mut effects);
        }

        // The answer to the create came after the kill was asked for: the host may have started it after all.
        (
            Phase::Killing {
                start_pending: true,
                attempts,
                ..
            },
            Event::Started { .. } | Event::StartFailed { leftover: true },
        ) => {
            if let Event::Started { started_at } = event {
                next.started_at = Some(started_at);
            }
            next.phase = Phase::Killing {
                start_pending: false,
                attempts,
                retry_at: now.plus_millis(ATTEMPT_MILLIS),
            };
            effects.push(Effect::HostKill {
                epoch: machine.epoch,
            });
        }
        (
            Phase::Killing {
                start_pending: true,
                ..
            },
            Event::StartFailed { leftover: false },
        ) => {
            next.die(now, DeathCause::Killed, &mut effects);
        }
        // The host knows of nothing now, yet the create may still come through: wait for its answer.
        (
            Phase::Killing {
                start_pending: true,
                ..
            },
            Event::HostGone,
        ) => {}
        (Phase::Killing { .. }, Event::HostGone | Event::Exited { .. }) => {
            next.die(now, DeathCause::Killed, &mut effects);
        }
        // It was paused before the kill came; its snapshot goes with it.
        (Phase::Killing { .. }, Event::Paused { pause }) => {
            next.pause = Some(pause);
            next.die(now, DeathCause::Killed, &mut effects);
        }
        (
            Phase::Killing {
                start_pending,
                attempts,
                ..
            },
            Event::KillFailed,
        ) => {
            next.phase = Phase::Killing {
                start_pending,
                attempts,
                retry_at: now.plus_millis(retry_millis(attempts)),
            };
        }
        (
            Phase::Killing {
                start_pending,
                attempts,
                retry_at,
            },
            Event::Tick,
        ) if now >= retry_at => {
            // With a new epoch, in case the host has seen a later one than the row knew.
            next.epoch = machine.epoch.next();
            next.phase = Phase::Killing {
                // The performer bounds every create; an answer that is out for longer than that will not come.
                start_pending: start_pending && now < machine.give_up_at,
                attempts: attempts.saturating_add(1),
                retry_at: now.plus_millis(ATTEMPT_MILLIS),
            };
            effects.push(Effect::HostKill { epoch: next.epoch });
        }
        // Late answers, repetitions, and questions that no longer matter.
        _ => {}
    }
    if event == Event::Tick && next.save_again_at.is_some_and(|at| now >= at) {
        next.save_again_at = Some(now.plus_millis(LAST_RETRY_MILLIS));
        if !effects.contains(&Effect::Save) {
            effects.push(Effect::Save);
        }
    }
    (next, effects)
}

fn retry_millis(attempts: u32) -> u64 {
    FIRST_RETRY_MILLIS
        .saturating_mul(1 << attempts.min(10))
        .min(LAST_RETRY_MILLIS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::{ending, rank};
    use crate::store::PausedBy;

    const T0: UnixMillis = UnixMillis(1_000_000);

    fn at(millis: u64) -> UnixMillis {
        T0.plus_millis(millis)
    }

    /// Feeds events at their times and returns the last machine and all effects.
    fn play(events: &[(u64, Event)]) -> (Machine, Vec<Effect>) {
        let (mut machine, first) = Machine::create(T0, 60_000, 30_000);
        assert_eq!(first, [Effect::Reserve]);
        let mut all = Vec::new();
        for (millis, event) in events {
            let (next, effects) = step(&machine, at(*millis), *event);
            machine = next;
            all.extend(effects);
        }
        (machine, all)
    }

    const STARTED: Event = Event::Started {
        started_at: UnixMillis(1_000_003),
    };
    const KILL: Event = Event::Kill {
        cause: DeathCause::Killed,
    };
    const E2: Epoch = Epoch(2);

    /// A sandbox that runs and whose row says so.
    fn running() -> Machine {
        play(&[(1, Event::Reserved), (3, STARTED), (4, Event::Saved)]).0
    }

    fn pause_at(epoch: u64) -> Pause {
        Pause {
            epoch: Epoch(epoch),
            by: PausedBy::Control,
            at: at(20),
            memory: true,
            silent_guest: false,
        }
    }

    #[test]
    fn a_pause_asks_the_host_when_the_row_has_it_and_a_resume_deletes_the_snapshot_likewise() {
        let (machine, effects) = step(&running(), at(10), Event::Pause { memory: true });
        assert_eq!(machine.state(), SandboxState::Pausing);
        assert_eq!(effects, [Effect::Save]);
        let (machine, effects) = step(&machine, at(11), Event::Saved);
        let save = Effect::HostSave {
            epoch: E2,
            memory: true,
        };
        assert_eq!(effects, [Effect::Cut, save]);
        let pause = pause_at(2);
        let (machine, effects) = step(&machine, at(20), Event::Paused { pause });
        assert_eq!(machine.state(), SandboxState::Paused);
        assert_eq!(effects, [Effect::Cut, Effect::Save]);
        let resume = Event::Resume {
            memory: true,
            deadline: at(90_000),
            within_millis: 30_000,
        };
        let (machine, effects) = step(&machine, at(30), resume);
        assert_eq!(effects, [Effect::Reclaim]);
        let (machine, effects) = step(&machine, at(31), Event::Reclaimed);
        let restore = Effect::HostRestore {
            epoch: Epoch(3),
            pause,
            memory: true,
        };
        assert_eq!(effects, [restore]);
        let (machine, effects) = step(&machine, at(40), STARTED);
        assert_eq!(effects, [Effect::Announce, Effect::Save]);
        assert_eq!(machine.deadline, at(90_000));
        let (machine, effects) = step(&machine, at(41), Event::Saved);
        assert_eq!(effects, [Effect::DropSnapshot { pause }]);
        // News of the old pause come late.
        let late = step(&machine, at(42), Event::Paused { pause });
        assert_eq!(late, (machine, vec![]));
    }

    #[test]
    fn what_an_earlier_resume_left_is_no_pause_of_the_present_one() {
        let resume = Event::Resume {
            memory: true,
            deadline: at(90_000),
            within_millis: 30_000,
        };
        let row = Progress {
            state: SandboxState::Paused,
            epoch: Epoch(6),
            pause: Some(pause_at(2)),
            ..running().progress()
        };
        let mut machine = Machine::at_rest(&row, pause_at(2), at(30)).0;
        for event in [resume, Event::Reclaimed, STARTED, Event::Saved] {
            machine = step(&machine, at(31), event).0;
        }
        assert_eq!(
            (machine.state(), machine.epoch),
            (SandboxState::Running, Epoch(7))
        );
        // Resumes of the epochs 3 to 5 were given up on; the host may have paused what came of one of them.
        for epoch in 2..=6 {
            let left = pause_at(epoch);
            assert!(!machine.is_newer(&left), "{epoch}");
            let (after, _) = step(&machine, at(32), Event::Paused { pause: left });
            assert_eq!(after.state(), SandboxState::Running, "{epoch}");
        }
        let own = pause_at(7);
        let (after, _) = step(&machine, at(32), Event::Paused { pause: own });
        assert_eq!(after.state(), SandboxState::Paused);
    }

    #[test]
    fn a_failed_pause_runs_on_and_a_failed_resume_stays_paused() {
        let (machine, _) = step(&running(), at(10), Event::Pause { memory: true });
        let (machine, _) = step(&machine, at(11), Event::Saved);
        let (failed, effects) = step(&machine, at(12), Event::PauseFailed);
        assert_eq!(failed.state(), SandboxState::Running);
        assert_eq!(failed.epoch, Epoch(3), "a late pause is stale");
        assert_eq!(effects, [Effect::Announce, Effect::Save]);

        let pause = pause_at(2);
        let (machine, _) = step(&machine, at(20), Event::Paused { pause });
        let resume = Event::Resume {
            memory: true,
            deadline: at(90_000),
            within_millis: 30_000,
        };
        let (machine, _) = step(&machine, at(30), resume);
        let (machine, _) = step(&machine, at(31), Event::Reclaimed);
        let (machine, effects) = step(&machine, at(32), Event::StartFailed { leftover: true });
        assert_eq!(machine.state(), SandboxState::Resuming);
        let kill = Effect::HostKill { epoch: Epoch(4) };
        assert_eq!(effects, [Effect::Save, kill]);
        let (machine, effects) = step(&machine, at(33), Event::HostGone);
        assert_eq!(machine.state(), SandboxState::Paused);
        assert_eq!(machine.pause, Some(pause), "the snapshot is kept");
        assert_eq!(effects, [Effect::Save]);
    }

    #[test]
    fn an_expiry_that_pauses_leaves_it_to_the_host_and_finds_the_snapshot_if_the_news_are_lost() {
        let machine = running().ending_by(AtDeadline::Pause { memory: true });
        let (machine, effects) = step(&machine, at(60_000), Event::Tick);
        assert_eq!(machine.state(), SandboxState::Pausing);
        assert_eq!(effects, [Effect::Cut, Effect::Save]);
        let (machine, effects) = step(&machine, at(60_001), Event::Saved);
        assert_eq!(effects, []);
        let due = machine.wake_at().expect("a timer");
        let (machine, effects) = step(&machine, due, Event::Tick);
        assert_eq!(effects, [Effect::HostLook]);
        let pause = Pause {
            by: PausedBy::Host,
            ..pause_at(1)
        };
        let looked = Event::Looked {
            alive: false,
            pause: Some(pause),
        };
        let (machine, _) = step(&machine, due, looked);
        assert_eq!(machine.state(), SandboxState::Paused);
        assert_eq!(machine.cause, None);
    }

    /// The last thing that is looked for or done, when nothing is heard of a pause from `now` on and the host lists it as alive.
    fn left_alone(mut machine: Machine, now: UnixMillis) -> (UnixMillis, SandboxState) {
        let mut last = now;
        while machine.state() == SandboxState::Pausing {
            last = machine.wake_at().expect("a timer");
            machine = step(&machine, last, Event::Tick).0;
            let alive = Event::Looked {
                alive: true,
                pause: None,
            };
            machine = step(&machine, last, alive).0;
        }
        (last, machine.state())
    }

    #[test]
    fn what_the_host_pauses_at_the_deadline_has_the_time_that_the_host_takes() {
        const LONGEST_SAVE: u64 = 420_000;
        let expired = running().ending_by(AtDeadline::Pause { memory: true });
        let (pausing, _) = step(&expired, at(60_000), Event::Tick);
        let (restarted, _) = Machine::resume_pause(&pausing.progress(), at(60_100));
        let asked = step(&running(), at(59_000), Event::Pause { memory: true }).0;
        let asked = step(&asked, at(59_001), Event::Saved).0;
        for (machine, now) in [(pausing, 60_000), (restarted, 60_100), (asked, 59_001)] {
            let (last, state) = left_alone(machine, at(now));
            assert_eq!(state, SandboxState::Killing, "but no longer than that");
            assert!(last > at(60_000 + LONGEST_SAVE), "{last:?}");
        }
        // Before its deadline it is soon told a new one, which shows whether the host pauses it.
        let begun = step(&running(), at(10), Event::Pause { memory: true }).0;
        let (restarted, _) = Machine::resume_pause(&begun.progress(), at(100));
        let (last, state) = left_alone(restarted, at(100));
        assert_eq!((last, state), (at(5_100), SandboxState::Running));
    }

    #[test]
    fn a_pause_that_fails_since_the_host_has_begun_its_own_is_left_to_the_host() {
        let machine = running().ending_by(AtDeadline::Pause { memory: true });
        let (machine, _) = step(&machine, at(59_999), Event::Pause { memory: true });
        let (machine, _) = step(&machine, at(59_999), Event::Saved);
        let (machine, effects) = step(&machine, at(60_002), Event::PauseFailed);
        assert_eq!(machine.state(), SandboxState::Pausing);
        assert_eq!(effects, [Effect::Cut, Effect::Save]);
        let (machine, _) = step(&machine, at(61_000), Event::Paused { pause: pause_at(7) });
        assert_eq!(machine.state(), SandboxState::Paused);
        let killed = step(&running(), at(59_999), Event::Pause { memory: true }).0;
        let killed = step(&killed, at(59_999), Event::Saved).0;
        let (killed, _) = step(&killed, at(60_002), Event::PauseFailed);
        assert_eq!(killed.cause, Some(DeathCause::Expired));
    }

    #[test]
    fn a_snapshot_is_no_pause_while_processes_are_left() {
        let (machine, _) = step(&running(), at(10), Event::Pause { memory: true });
        let (machine, _) = step(&machine, at(11), Event::Saved);
        let (machine, _) = step(&machine, at(12), Event::PauseUnknown);
        let looked = |alive| Event::Looked {
            alive,
            pause: Some(pause_at(2)),
        };
        let (machine, effects) = step(&machine, at(1_012), looked(true));
        assert_eq!(machine.state(), SandboxState::Pausing);
        let save = Effect::HostSave {
            epoch: E2,
            memory: true,
        };
        assert_eq!(
            effects,
            [save],
            "joined, it is answered when nothing is left"
        );
        let (machine, _) = step(&machine, at(1_013), looked(false));
        assert_eq!(machine.state(), SandboxState::Paused);
    }

    #[test]
    fn create_announces_before_it_saves() {
        let (machine, effects) = play(&[(1, Event::Reserved), (3, STARTED)]);
        assert_eq!(machine.state(), SandboxState::Running);
        assert_eq!(
            effects,
            [Effect::HostCreate, Effect::Announce, Effect::Save]
        );
        assert_eq!(machine.deadline, at(60_000));
        assert_eq!(machine.wake_at(), Some(at(60_000)));
    }

    #[test]
    fn a_slow_start_is_not_paid_by_the_caller() {
        let late = Event::Started {
            started_at: at(5_000),
        };
        let (machine, effects) =
            play(&[(1, Event::Reserved), (5_001, late), (5_001, Event::Saved)]);
        assert_eq!(machine.deadline, at(65_000));
        assert!(effects.contains(&Effect::HostDeadline {
            epoch: E2,
            deadline: at(65_000)
        }));
    }

    #[test]
    fn no_row_no_save() {
        let (machine, effects) = play(&[(1, Event::NotReserved)]);
        assert!(machine.is_over());
        assert_eq!(effects, []);
    }

    #[test]
    fn a_failed_start_is_dead_or_killed_by_what_it_leaves() {
        let (machine, effects) = play(&[
            (1, Event::Reserved),
            (2, Event::StartFailed { leftover: false }),
        ]);
        assert_eq!(
            (machine.state(), machine.cause),
            (SandboxState::Dead, Some(DeathCause::FailedToStart))
        );
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::HostKill { .. }))
        );
        let (machine, effects) = play(&[
            (1, Event::Reserved),
            (2, Event::StartFailed { leftover: true }),
        ]);
        assert_eq!(machine.state(), SandboxState::Killing);
        assert!(effects.contains(&Effect::HostKill { epoch: E2 }));
    }

    #[test]
    fn kill_cuts_before_it_asks_the_host() {
        let (machine, effects) = play(&[(1, Event::Reserved), (3, STARTED), (9, KILL)]);
        assert_eq!(machine.state(), SandboxState::Killing);
        assert_eq!(
            effects[3..],
            [Effect::Cut, Effect::Save, Effect::HostKill { epoch: E2 }]
        );
        let (machine, _) = step(&machine, at(10), Event::HostGone);
        assert_eq!(
            (machine.state(), machine.cause),
            (SandboxState::Dead, Some(DeathCause::Killed))
        );
        assert!(machine.is_over());
    }

    #[test]
    fn a_kill_during_the_start_waits_for_its_answer() {
        let (machine, _) = play(&[(1, Event::Reserved), (2, KILL), (3, Event::HostGone)]);
        assert_eq!(
            machine.state(),
            SandboxState::Killing,
            "the create may still come through"
        );
        let (machine, effects) = step(&machine, at(4), STARTED);
        assert_eq!(effects, [Effect::HostKill { epoch: E2 }]);
        assert_eq!(
            step(&machine, at(5), Event::HostGone).0.state(),
            SandboxState::Dead
        );
    }

    #[test]
    fn expiry_by_control_and_by_host_in_both_orders() {
        let running = [(1, Event::Reserved), (3, STARTED)];
        let (machine, _) = play(&running);
        let (killing, effects) = step(&machine, at(60_000), Event::Tick);
        assert!(effects.contains(&Effect::HostKill { epoch: E2 }));
        let exited = Event::Exited {
            cause: DeathCause::Expired,
        };
        for end in [exited, Event::HostGone] {
            let (dead, _) = step(&killing, at(60_001), end);
            assert_eq!(
                (dead.state(), dead.cause),
                (SandboxState::Dead, Some(DeathCause::Expired))
            );
        }
        let (dead, effects) = step(&machine, at(59_999), exited);
        assert_eq!(
            (dead.state(), dead.cause),
            (SandboxState::Dead, Some(DeathCause::Expired))
        );
        assert_eq!(effects, [Effect::Cut, Effect::Save]);
        assert_eq!(step(&dead, at(60_000), Event::Tick), (dead, vec![]));
    }

    #[test]
    fn extend_only_extends_and_set_also_shortens() {
        let (machine, _) = play(&[(1, Event::Reserved), (3, STARTED)]);
        let (same, effects) = step(
            &machine,
            at(5),
            Event::Extend {
                deadline: at(59_000),
            },
        );
        assert_eq!((same, effects), (machine, vec![]));
        let (longer, _) = step(
            &machine,
            at(5),
            Event::Extend {
                deadline: at(70_000),
            },
        );
        assert_eq!((longer.deadline, longer.epoch), (at(70_000), E2));
        let (shorter, effects) = step(
            &longer,
            at(6),
            Event::SetDeadline {
                deadline: at(9_000),
            },
        );
        assert_eq!(shorter.wake_at(), Some(at(9_000)));
        assert_eq!(effects, [Effect::Save], "the row comes first");
        let (_, effects) = step(&shorter, at(6), Event::Saved);
        let (epoch, deadline) = (Epoch(3), at(9_000));
        assert_eq!(effects, [Effect::HostDeadline { epoch, deadline }]);
        let late = step(
            &shorter,
            at(9_000),
            Event::Extend {
                deadline: at(90_000),
            },
        )
        .0;
        assert_eq!(late.cause, Some(DeathCause::Expired), "its time is over");
    }

    #[test]
    fn an_untold_deadline_is_told_again() {
        let (machine, _) = play(&[
            (1, Event::Reserved),
            (3, STARTED),
            (
                4,
                Event::SetDeadline {
                    deadline: at(90_000),
                },
            ),
            (4, Event::Saved),
        ]);
        let (machine, _) = step(&machine, at(5), Event::DeadlineFailed { epoch: E2 });
        let again = machine.wake_at().expect("a timer");
        assert!(again < at(90_000));
        let (machine, effects) = step(&machine, again, Event::Tick);
        assert_eq!(effects, [Effect::Save]);
        let (machine, effects) = step(&machine, again, Event::Saved);
        assert!(effects.contains(&Effect::HostDeadline {
            epoch: Epoch(3),
            deadline: at(90_000)
        }));
        // The answer to the older telling changes nothing.
        assert_eq!(
            step(&machine, again, Event::DeadlineFailed { epoch: E2 }).0,
            machine
        );
    }

    #[test]
    fn a_deadline_that_comes_too_late_is_the_end_that_the_host_has_begun() {
        let set = Event::SetDeadline {
            deadline: at(90_000),
        };
        let (machine, _) = step(&running(), at(59_990), set);
        let (machine, _) = step(&machine, at(59_991), Event::Saved);
        let late = Event::DeadlineTooLate {
            epoch: E2,
            pausing: false,
        };
        let (ends, effects) = step(&machine, at(60_001), late);
        assert_eq!(ends.state(), SandboxState::Killing);
        assert_eq!(ends.cause, Some(DeathCause::Expired));
        assert!(effects.contains(&Effect::HostKill { epoch: Epoch(3) }));
        let at_deadline = machine.ending_by(AtDeadline::Pause { memory: true });
        let pausing = Event::DeadlineTooLate {
            epoch: E2,
            pausing: true,
        };
        for (machine, event) in [(machine, pausing), (at_deadline, late)] {
            let (pauses, effects) = step(&machine, at(60_001), event);
            assert_eq!(pauses.state(), SandboxState::Pausing);
            assert_eq!(effects, [Effect::Cut, Effect::Save]);
        }
        // An older one's answer means nothing: the host heard of a later one since, or will.
        let (newer, _) = step(&machine, at(59_999), set);
        assert_eq!(step(&newer, at(60_001), late), (newer, vec![]));
    }

    #[test]
    fn what_has_started_lives_a_second_and_the_host_reckons_so_by_itself() {
        let (machine, _) = Machine::create(T0, 0, 30_000);
        let (machine, _) = step(&machine, at(1), Event::Reserved);
        let started_at = at(40);
        let (machine, effects) = step(&machine, at(50), Event::Started { started_at });
        assert_eq!((machine.deadline, machine.epoch), (at(1_040), Epoch::FIRST));
        assert_eq!(effects, [Effect::Announce, Effect::Save]);
    }

    #[test]
    fn adopting_keeps_the_deadline_of_the_later_epoch() {
        let row = Progress {
            state: SandboxState::Running,
            epoch: Epoch(3),
            started_at: Some(T0),
            deadline: at(80_000),
            ended_at: None,
            cause: None,
            pause: None,
        };
        let (machine, effects) = Machine::adopt(&row, Epoch(2), at(50_000), T0, at(10));
        assert_eq!(machine.deadline, at(80_000));
        assert_eq!(effects, [Effect::Announce, Effect::Save]);
        let (_, effects) = step(&machine, at(10), Event::Saved);
        assert!(effects.contains(&Effect::HostDeadline {
            epoch: Epoch(4),
            deadline: at(80_000)
        }));
        let (machine, effects) = Machine::adopt(&row, Epoch(4), at(50_000), T0, at(10));
        assert_eq!((machine.deadline, machine.epoch), (at(50_000), Epoch(4)));
        assert_eq!(effects, [Effect::Announce, Effect::Save]);
        let (_, effects) = Machine::adopt(&row, Epoch(3), at(80_000), T0, at(10));
        assert_eq!(effects, [Effect::Announce]);
    }

    #[test]
    fn a_row_that_could_not_be_written_is_written_later_even_when_dead() {
        let (machine, _) = play(&[(1, Event::Reserved), (3, STARTED), (9, Event::Lost)]);
        let (machine, _) = step(&machine, at(9), Event::SaveFailed);
        assert!(!machine.is_over());
        let wake = machine.wake_at().expect("a timer");
        let (machine, effects) = step(&machine, wake, Event::Tick);
        assert_eq!(effects, [Effect::Save]);
        assert!(step(&machine, wake, Event::Saved).0.is_over());
    }

    /// xorshift64*: a seed names the whole run.
    struct Random(u64);
    impl Random {
        fn next(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
        }
    }

    fn random_event(random: &mut Random, now: UnixMillis) -> Event {
        let deadline = now.plus_millis(random.next(100_000));
        let epoch = Epoch(1 + random.next(6));
        match random.next(33) {
            0 => Event::Reserved,
            1 => Event::NotReserved,
            2 => Event::Started { started_at: now },
            3 => Event::StartFailed {
                leftover: random.next(2) == 0,
            },
            4 => Event::SetDeadline { deadline },
            5 => Event::Extend { deadline },
            6 => Event::DeadlineTaken { epoch },
            7 => Event::DeadlineFailed { epoch },
            8 => Event::Kill {
                cause: DeathCause::Killed,
            },
            9 => Event::HostGone,
            10 => Event::KillFailed,
            11 => Event::Exited {
                cause: DeathCause::OutOfMemory,
            },
            12 => Event::Lost,
            13 | 14 => Event::Saved,
            15 => Event::SaveFailed,
            16 | 17 => Event::Pause {
                memory: random.next(2) == 0,
            },
            18 | 19 => Event::Paused {
                pause: paused(random, now),
            },
            20 => Event::PauseFailed,
            21 => Event::PauseUnknown,
            22 => Event::Looked {
                alive: random.next(2) == 0,
                pause: (random.next(2) == 0).then(|| paused(random, now)),
            },
            23 | 24 => Event::Resume {
                memory: true,
                deadline: now.plus_millis(1 + random.next(60_000)),
                within_millis: 30_000,
            },
            25 | 26 => Event::Reclaimed,
            27 => Event::NotReclaimed {
                unknown: random.next(2) == 0,
            },
            28 => Event::DeadlineTooLate {
                epoch,
                pausing: random.next(2) == 0,
            },
            _ => Event::Tick,
        }
    }

    fn paused(random: &mut Random, at: UnixMillis) -> Pause {
        Pause {
            epoch: Epoch(1 + random.next(12)),
            by: PausedBy::Control,
            at,
            memory: true,
            silent_guest: false,
        }
    }

    #[test]
    fn random_events_never_lead_back_and_never_get_stuck() {
        for seed in 1..=20_000_u64 {
            let random = &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut machine = Machine::create(T0, 1 + random.next(60_000), 30_000).0;
            if random.next(2) == 0 {
                machine = machine.ending_by(AtDeadline::Pause { memory: true });
            }
            let mut now = T0;
            for _ in 0..random.next(40) {
                now = now.plus_millis(random.next(3_000));
                let event = random_event(random, now);
                let (next, effects) = step(&machine, now, event);
                let context = format!("seed {seed}: {machine:?} + {event:?} -> {next:?}");
                assert!(
                    ending(next.state()) >= ending(machine.state()),
                    "went back, {context}"
                );
                // While the place in the quota is taken, the row is still of the epoch before.
                let claiming = matches!(machine.phase, Phase::Resuming { .. })
                    && machine.state() == SandboxState::Paused;
                assert!(
                    claiming
                        || (next.epoch, rank(next.state()))
                            >= (machine.epoch, rank(machine.state())),
                    "went back, {context}"
                );
                assert!(next.epoch >= machine.epoch, "epoch went back, {context}");
                assert!(
                    matches!(next.state(), SandboxState::Dead | SandboxState::Paused)
                        || next.wake_at().is_some(),
                    "no timer, {context}"
                );
                if machine.cause.is_some() {
                    assert_eq!(next.cause, machine.cause, "cause changed, {context}");
                }
                if matches!(event, Event::Kill { .. }) {
                    assert!(ending(next.state()) >= 1, "a kill lost, {context}");
                }
                let cut = effects.contains(&Effect::Cut);
                let states = (machine.state(), next.state());
                if states.0 == SandboxState::Running
                    && !matches!(states.1, SandboxState::Running | SandboxState::Pausing)
                    || matches!(states.1, SandboxState::Paused) && states.0 == SandboxState::Pausing
                {
                    assert!(cut, "left running without a cut, {context}");
                }
                let saves = effects
                    .iter()
                    .any(|it| matches!(it, Effect::HostSave { .. }));
                assert!(
                    !saves || machine.state() == SandboxState::Pausing,
                    "the host is asked before the row has it, {context}"
                );
                assert_eq!(
                    next.state() == SandboxState::Dead,
                    next.ended_at.is_some(),
                    "{context}"
                );
                machine = next;
            }
            finish(seed, machine, now);
        }
    }

    /// From any state: with a host that says gone and a store that saves, timers alone lead to the end.
    fn finish(seed: u64, mut machine: Machine, mut now: UnixMillis) {
        let (next, effects) = step(&machine, now, KILL);
        machine = answer(next, now, effects);
        for _ in 0..20 {
            let Some(wake) = machine.wake_at() else {
                return;
            };
            now = now.max(wake);
            let (next, effects) = step(&machine, now, Event::Tick);
            assert_ne!(
                (next, effects.is_empty()),
                (machine, true),
                "seed {seed}: the timer of {machine:?} does nothing"
            );
            machine = answer(next, now, effects);
        }
        panic!("seed {seed}: not over after 20 timers: {machine:?}");
    }

    fn answer(mut machine: Machine, now: UnixMillis, effects: Vec<Effect>) -> Machine {
        for effect in effects {
            let event = match effect {
                Effect::HostKill { .. } => Event::HostGone,
                Effect::Save => Event::Saved,
                _ => continue,
            };
            let (next, more) = step(&machine, now, event);
            machine = answer(next, now, more);
        }
        machine
    }
}
