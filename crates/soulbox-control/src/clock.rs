//! Two clocks. Deadlines go by the host's, which the wall clock's jumps do not change; other times are the wall clock's.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use soulbox_types::UnixMillis;

/// The host's time of a moment.
static SET: OnceLock<(UnixMillis, Instant)> = OnceLock::new();

/// Sets the clock of deadlines to the host's time of this moment, before anything asks for it; later calls change nothing. One that was not set
/// begins with the wall clock's time.
pub fn set(now: UnixMillis) {
    let _ = SET.set((now, Instant::now()));
}

/// This moment, by the clock of deadlines.
pub fn now() -> UnixMillis {
    let (set_to, since) = SET.get_or_init(|| (wall(), Instant::now()));
    set_to.plus_millis(millis(since.elapsed()))
}

/// This moment, by the wall clock.
pub fn wall() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixMillis(millis(since))
}

/// A moment of the clock of deadlines, by the wall clock as it stands now.
pub(crate) fn by_wall(at: UnixMillis) -> UnixMillis {
    UnixMillis(wall().0.saturating_add(at.0).saturating_sub(now().0))
}

/// Whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
