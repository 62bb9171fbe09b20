//! What is remembered of sandboxes and teams beyond their end and that of this server: lines of logs, and samples.
//!
//! It is written behind what happens. A server that is killed takes its last seconds of lines and its last minutes of samples along.

use async_trait::async_trait;
use soulbox_types::{SandboxId, TeamId, UnixMillis};

use crate::logs::LogLine;
use crate::store::StoreError;

/// A line of a sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLine {
    pub sandbox_id: SandboxId,
    pub speaker: Speaker,
    /// Tells lines of one speaker and one moment apart, and orders them. A [`Speaker::Server`] has one line of each number from
    /// [`KeptLine::ONCE`] on, whatever its moment.
    pub number: u64,
    pub line: LogLine,
}

impl KeptLine {
    /// What several servers may note, each at a moment of its own, has a number from here on and below the greatest of a database
    /// (the migrations `once` have both).
    pub const ONCE: u64 = 1 << 62;
}

/// Whose a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// What was decided.
    Server,
    /// The daemon inside.
    Guest,
}

/// What one speaker's lines of one sandbox may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub lines: usize,
    pub bytes: usize,
}

/// What something was at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSample {
    /// The ID of a sandbox or of a team.
    pub subject: String,
    pub at: UnixMillis,
    /// JSON.
    pub sample: String,
}

/// The part of the store that forgets.
///
/// # Errors
/// As for [`crate::Store`]; a power failure may undo what was kept last.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Adds lines; those of the same speaker, moment and number are there already, and so are [`KeptLine::ONCE`]'s of the same number.
    async fn keep_lines(&self, at: UnixMillis, lines: &[KeptLine]) -> Result<(), StoreError>;
    /// Deletes the oldest lines that have no room.
    async fn bound_lines(
        &self,
        sandbox_id: &SandboxId,
        speaker: Speaker,
        room: Room,
    ) -> Result<(), StoreError>;
    /// The lines of a sandbox of the team, oldest first.
    async fn lines(
        &self,
        team_id: &TeamId,
        sandbox_id: &SandboxId,
    ) -> Result<Vec<LogLine>, StoreError>;
    /// Adds samples, or replaces those of the same moment.
    async fn keep_samples(&self, samples: &[KeptSample]) -> Result<(), StoreError>;
    /// Samples from one moment to another, both included, oldest first.
    async fn samples(
        &self,
        subject: &str,
        between: (UnixMillis, UnixMillis),
    ) -> Result<Vec<(UnixMillis, String)>, StoreError>;
    /// Deletes what was kept before a moment, then the longest kept lines, some hundred at once, until all others have room.
    async fn trim_history(&self, before: UnixMillis, max_bytes: u64) -> Result<(), StoreError>;
}
