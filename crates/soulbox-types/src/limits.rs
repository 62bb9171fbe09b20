//! How much of the machine a sandbox may use.

use std::fmt;

/// A size in mebibytes (2^20 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MiB(pub u64);

impl MiB {
    /// The same size in bytes, saturating.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Processor time in thousandths of one CPU: 2000 is two whole CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliCpu(pub u32);

impl MilliCpu {
    /// So many whole CPUs.
    #[must_use]
    pub fn whole(cpus: u32) -> Self {
        Self(cpus.saturating_mul(1000))
    }

    /// Whole CPUs, rounded up, at least one: what the API calls `cpuCount`.
    #[must_use]
    pub fn cpus(self) -> u32 {
        self.0.div_ceil(1000).max(1)
    }
}

/// The limits that the kernel enforces on one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes, page cache and kernel objects included; swap is never given.
    pub memory: MiB,
    /// Processor time.
    pub cpu: MilliCpu,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes that the sandbox may add to or change in its template's files.
    pub disk: MiB,
}
