//! What a sandbox uses, as its host counts it, told to the daemon inside with a request for its figures.
//!
//! A program inside sees neither its disk quota nor, where no control group is mounted, its page cache.

use serde::{Deserialize, Serialize};

/// Header of `GET /metrics` with a [`SandboxUsage`] as JSON. The ingress takes it from what clients send.
pub const USAGE_HEADER: &str = "x-soulbox-usage";

/// Bytes, but for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxUsage {
    /// Processor time since its slot was made.
    pub cpu_micros: u64,
    /// Without the page cache.
    pub memory: u64,
    pub cache: u64,
    /// Added to the template's files; what its quota counts.
    pub disk: u64,
}
