//! What follows when records and hosts are compared, purely: at the start of the server, and from time to time, since an event may be lost.

use soulbox_types::{DeathCause, Epoch, SandboxState, UnixMillis};

use crate::lifecycle::{Effect, GRACE_MILLIS, Machine};
use crate::store::Progress;

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
}

/// What becomes of a row that has no owner, and of its sandbox.
#[must_use]
pub fn take_up(
    row: &Progress,
    listed: Option<&Listed>,
    now: UnixMillis,
) -> (Found, (Machine, Vec<Effect>)) {
    match (row.state, listed) {
        (SandboxState::Running, Some(host)) => {
            let started_at = row.started_at.unwrap_or(host.started_at);
            let adopted = Machine::adopt(row, host.epoch, host.deadline, started_at, now);
            (Found::Adopted, adopted)
        }
        (SandboxState::Running, None) => {
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
    row.is_none_or(|row| row.state == SandboxState::Dead)
}

/// Whether a row that has no owner here has none anywhere: it was left by a server that ended before it, or it was inserted after its
/// create had been given up on.
#[must_use]
pub fn is_abandoned(
    row: &Progress,
    created_at: UnixMillis,
    start_within_millis: u64,
    now: UnixMillis,
) -> bool {
    let due = match row.state {
        SandboxState::Creating => created_at
            .plus_millis(start_within_millis)
            .plus_millis(GRACE_MILLIS),
        SandboxState::Running | SandboxState::Killing => row.deadline,
        SandboxState::Dead => return false,
    };
    now > due.plus_millis(ABANDONED_MILLIS)
}
