//! What a sandbox is asked to be, and what it is.

use std::fmt;

/// Milliseconds since 1970-01-01 UTC. Deadlines are told in it, since they cross processes and restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This moment and so many milliseconds more, saturating.
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this moment, zero when it is later.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This deadline, as it stands when what it was asked for has started: a sandbox lives a second at least, so that it can be
    /// initialised and its caller be told. Host and control reckon alike.
    #[must_use]
    pub fn of_started(self, started_at: Self) -> Self {
        self.max(started_at.plus_millis(1_000))
    }
}

/// Counts the incarnations and decisions of one sandbox. A command that carries an older one than the host has seen is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first epoch of a sandbox.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The life of a sandbox as control records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxState {
    /// A host was asked to start it; not usable yet.
    Creating,
    /// It answers.
    Running,
    /// Its snapshot is being made, with which it ends.
    Pausing,
    /// It is a snapshot; no process of it is left, and it counts against no limit.
    Paused,
    /// A host was asked to start it from its snapshot.
    Resuming,
    /// Its end is decided and under way; hidden from lists.
    Killing,
    /// It is over; nothing of it is left.
    Dead,
}

/// Why a sandbox is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeathCause {
    /// Somebody asked for it.
    Killed,
    /// Its time was over.
    Expired,
    /// Its memory limit was reached and the kernel ended its agent or init.
    OutOfMemory,
    /// Its agent or init ended for another reason.
    AgentDied,
    /// It could not be started.
    FailedToStart,
    /// The host no longer knows it (a reboot, for one).
    Lost,
}

impl DeathCause {
    /// The machine-readable name, as the database and the events have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Expired => "expired",
            Self::OutOfMemory => "out_of_memory",
            Self::AgentDied => "agent_died",
            Self::FailedToStart => "failed_to_start",
            Self::Lost => "lost",
        }
    }

    /// The inverse of [`DeathCause::as_str`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Killed,
            Self::Expired,
            Self::OutOfMemory,
            Self::AgentDied,
            Self::FailedToStart,
            Self::Lost,
        ]
        .into_iter()
        .find(|cause| cause.as_str() == name)
    }
}

impl fmt::Display for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
