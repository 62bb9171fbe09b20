//! `GET /logs` of the daemon, for the host only: what it has logged since a number that the host remembers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most lines that the daemon keeps and the host reads at once.
pub const MAX_LOG_LINES: usize = 1000;
/// And the most bytes of them, as JSON.
pub const MAX_LOG_BYTES: usize = 256 << 10;

/// The query of `GET /logs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// The number of the last line that is known already.
    #[serde(default)]
    pub after: u64,
}

/// One line; the answer is JSON of each, one below the other, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counted from 1 by this daemon; what is missing was dropped.
    pub number: u64,
    /// Unix milliseconds.
    pub at: u64,
    pub level: LogLevel,
    /// The part of the daemon that says it.
    pub logger: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}
