//! [`Shortage`]: whether a sandbox that has just ended did so for want of memory.
//!
//! The kernel counts the programs that it ends at the memory limit, and does not say which. So an end counts as one of memory when the
//! count has grown shortly before it. How shortly depends on how often it is looked at, which is each time somebody asks for the usage.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A look may come between the kernel's decision and the end that follows from it, and must not hide it.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Shortage(Mutex<Looks>);

#[derive(Debug)]
struct Looks {
    latest: (Instant, u64),
    /// What was counted in a look before the latest, at least [`SETTLED`] earlier.
    before: u64,
}

impl Shortage {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Looks {
            latest: (Instant::now(), 0),
            before: 0,
        }))
    }

    pub(super) fn look(&self, now: Instant, oom_kills: u64) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(looks.latest.0) >= SETTLED {
            looks.before = looks.latest.1;
            looks.latest = (now, oom_kills);
        }
    }

    /// Whether the kernel ended programs lately, by its count of now.
    pub(super) fn is_recent(&self, oom_kills: u64) -> bool {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        oom_kills > looks.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_long_ago_is_no_cause() {
        let shortage = Shortage::new();
        assert!(!shortage.is_recent(0));
        assert!(shortage.is_recent(1));
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        shortage.look(after(5), 1);
        // That look may have come between the kernel's decision and the end.
        assert!(shortage.is_recent(1));
        shortage.look(after(6), 1);
        assert!(shortage.is_recent(1), "looks in quick succession are one");
        shortage.look(after(10), 1);
        assert!(!shortage.is_recent(1));
        assert!(shortage.is_recent(2));
    }
}
