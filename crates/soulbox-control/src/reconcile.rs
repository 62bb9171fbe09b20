//! What follows when records and hosts are compared, purely: at the start of the server, and from time to time, since an event may be lost.

use soulbox_types::{DeathCause, Epoch, SandboxState, UnixMillis};

use crate::lifecycle::{Effect, GRACE_MILLIS, Machine};
use crate::store::{Pause, Progress};

/// A sandbox that the host does not list is lost only if it is older than this: the list may be of before its start.
const SETTLED_MILLIS: u64 = 10_000;
/// A row is abandoned when its owner should have changed it so long ago.
const ABANDONED_MILLIS: u64 = 60_000;

/// A live sandbox as a host lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub epoch: Epoch,
    pub started_at: UnixMillis,
    pub deadline: UnixMillis,
}

/// What a row without an owner turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It runs on as before.
    Adopted,
    /// It should run, but no host knows it.
    Lost,
    /// It was not finished; it is being killed.
    Unfinished,
    /// It is paused, or is again.
    AtRest,
}

/// What becomes of a row that has no owner, and of its sandbox. `pause` is the latest that the host has a snapshot of.
#[must_use]
pub fn take_up(
    row: &Progress,
    listed: Option<&Listed>,
    pause: Option<Pause>,
    now: UnixMillis,
) -> (Found, (Machine, Vec<Effect>)) {
    let newer = pause.filter(|pause| row.pause.is_none_or(|last| pause.epoch > last.epoch));
    match (row.state, listed) {
        // The host paused it, and nobody has heard of that.
        (SandboxState::Running | SandboxState::Pausing, None) if let Some(pause) = newer => {
            (Found::AtRest, Machine::at_rest(row, pause, now))
        }
        (SandboxState::Pausing, Some(_)) => (Found::Adopted, Machine::resume_pause(row, now)),
        (SandboxState::Paused | SandboxState::Resuming, _) => {
            (Found::AtRest, take_up_at_rest(row, now))
        }
        (SandboxState::Running, Some(host)) => {
            let started_at = row.started_at.unwrap_or(host.started_at);
            let adopted = Machine::adopt(row, host.epoch, host.deadline, started_at, now);
            (Found::Adopted, adopted)
        }
        (SandboxState::Running | SandboxState::Pausing, None) => {
            let cause = if now >= row.deadline {
                DeathCause::Expired
            } else {
                DeathCause::Lost
            };
            (Found::Lost, Machine::resume_kill(row, cause, now))
        }
        // Nobody was told of it, and its agent may not have been initialised.
        (SandboxState::Creating, _) => (
            Found::Unfinished,
            Machine::resume_kill(row, DeathCause::FailedToStart, now),
        ),
        (SandboxState::Killing | SandboxState::Dead, _) => (
            Found::Unfinished,
            Machine::resume_kill(row, DeathCause::Killed, now),
        ),
    }
}

/// What becomes of a row that is paused, or on the way to or from that, and has no owner.
#[must_use]
pub fn take_up_at_rest(row: &Progress, now: UnixMillis) -> (Machine, Vec<Effect>) {
    match (row.state, row.pause) {
        (SandboxState::Paused, Some(pause)) => Machine::at_rest(row, pause, now),
        // Nobody was told that it runs, and its agent may not have been initialised.
        (SandboxState::Resuming, Some(_)) => Machine::undo_resume(row, now),
        // What the host has of it shows.
        (SandboxState::Pausing, _) => Machine::resume_pause(row, now),
        _ => Machine::resume_kill(row, DeathCause::Lost, now),
    }
}

/// Whether nobody will ever want a snapshot of that pause; `row` is what the store has of the sandbox.
#[must_use]
pub fn is_needless(row: Option<&Progress>, pause: &Pause) -> bool {
    let Some(row) = row else {
        return true;
    };
    match row.state {
        SandboxState::Dead => true,
        SandboxState::Paused | SandboxState::Resuming => {
            row.pause.is_some_and(|last| pause.epoch < last.epoch)
        }
        SandboxState::Running | SandboxState::Pausing => {
            row.pause.is_some_and(|last| pause.epoch <= last.epoch)
        }
        SandboxState::Creating | SandboxState::Killing => false,
    }
}

/// Whether an owner's sandbox is gone that a list, asked for at `asked_at`, does not have.
#[must_use]
pub fn is_lost(owned: &Progress, asked_at: UnixMillis) -> bool {
    owned.state == SandboxState::Running
        && owned
            .started_at
            .is_some_and(|at| asked_at.millis_since(at) > SETTLED_MILLIS)
}

/// Whether a listed sandbox that has no owner here belongs to nobody; `row` is what the store has of it. If not, it is another server's.
#[must_use]
pub fn is_orphan(row: Option<&Progress>) -> bool {
    row.is_none_or(|row| matches!(row.state, SandboxState::Dead | SandboxState::Paused))
}

/// Whether a row that has no owner here has none anywhere: it was left by a server that ended before it, or it was inserted after its
/// create or its resume had been given up on. `shared`: other servers own rows as well.
#[must_use]
pub fn is_abandoned(
    row: &Progress,
    created_at: UnixMillis,
    start_within_millis: u64,
    shared: bool,
    now: UnixMillis,
) -> bool {
    let due = match row.state {
        // Who resumes it owns it before the row says so. That of several servers would show as an owner here as well.
        SandboxState::Resuming if !shared => return true,
        SandboxState::Creating => created_at
            .plus_millis(start_within_millis)
            .plus_millis(GRACE_MILLIS),
        SandboxState::Running
        | SandboxState::Pausing
        | SandboxState::Resuming
        | SandboxState::Killing => row.deadline,
        SandboxState::Paused | SandboxState::Dead => return false,
    };
    now > due.plus_millis(ABANDONED_MILLIS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED: UnixMillis = UnixMillis(1_000);

    fn row(state: SandboxState) -> Progress {
        Progress {
            state,
            epoch: Epoch(3),
            started_at: Some(STARTED),
            deadline: UnixMillis(90_000),
            ended_at: None,
            cause: None,
            pause: None,
        }
    }

    #[test]
    fn what_is_younger_than_the_list_is_not_lost() {
        let running = row(SandboxState::Running);
        assert!(!is_lost(&running, UnixMillis(500)));
        assert!(!is_lost(&running, STARTED.plus_millis(SETTLED_MILLIS)));
        let settled = STARTED.plus_millis(SETTLED_MILLIS + 1);
        assert!(is_lost(&running, settled));
        assert!(!is_lost(&row(SandboxState::Pausing), settled));
    }

    #[test]
    fn a_resume_that_nobody_owns_waits_for_its_deadline_only_if_another_server_may_own_it() {
        let abandoned = |state, shared, now| {
            is_abandoned(&row(state), STARTED, 30_000, shared, UnixMillis(now))
        };
        assert!(abandoned(SandboxState::Resuming, false, 2_000));
        assert!(!abandoned(SandboxState::Resuming, true, 2_000));
        assert!(abandoned(SandboxState::Resuming, true, 150_001));
        for state in [SandboxState::Running, SandboxState::Pausing] {
            assert!(!abandoned(state, false, 2_000), "{state:?}");
            assert!(abandoned(state, false, 150_001), "{state:?}");
        }
    }
}
