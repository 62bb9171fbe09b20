//! The clock of deadlines. It shows the wall clock's time of the moment it was set and from then on goes as steadily as the kernel's monotonic
//! clock, so that a wall clock that is put right by an hour ends no sandbox early and keeps none late.
//!
//! It is one clock for all processes of an installation: the next agent takes it over, as long as there are sandboxes whose deadlines are in its
//! time, and the front is told it at its start. After a jump the times of sandboxes are shown by it, and not by the wall clock.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use soulbox_types::UnixMillis;

use crate::record;

/// Below the data directory.
const FILE: &str = "host/clock.json";

/// How far the time is ahead of the kernel's monotonic clock, which begins anew with each boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    boot_id: String,
    ahead_millis: u64,
}

static AHEAD_MILLIS: OnceLock<u64> = OnceLock::new();

/// This moment. A clock that was not set is set by the wall clock.
#[must_use]
pub fn now() -> UnixMillis {
    let ahead = *AHEAD_MILLIS.get_or_init(|| wall().saturating_sub(monotonic()));
    UnixMillis(monotonic().saturating_add(ahead))
}

/// Sets the clock, to that of an earlier agent of the data directory if sandboxes of it may run. Once a process; later calls change nothing.
pub(crate) fn set(data: &Path) -> io::Result<()> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let path = data.join(FILE);
    let earlier = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Setting>(&text).ok())
        .filter(|setting| setting.boot_id == boot_id && record::any(data));
    let setting = earlier.unwrap_or_else(|| Setting {
        boot_id,
        ahead_millis: wall().saturating_sub(monotonic()),
    });
    let draft = path.with_extension("new");
    fs::write(&draft, serde_json::to_vec(&setting)?)?;
    fs::rename(draft, path)?;
    let _ = AHEAD_MILLIS.set(setting.ahead_millis);
    Ok(())
}

fn wall() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let millis = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    u64::try_from(millis).unwrap_or(0)
}
