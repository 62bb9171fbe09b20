//! The wall clock. Deadlines cross processes and restarts, so they are wall-clock times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use soulbox_types::UnixMillis;

/// This moment.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixMillis(millis(since))
}

/// Whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
