//! How much of the pool one upper may take now. What uppers are promised together is more than the pool has, so a promise alone would let one
//! sandbox take the space of all others: beyond what it has, an upper gets no more than half of what is free above the reserve. What was
//! promised is noted beside the uppers, and the limit follows when space comes back ([`crate::Pool::share_out`]).

use std::fs;
use std::io;
use std::path::Path;

use soulbox_types::MiB;

use crate::PoolInfo;

/// Less is of no use to a sandbox, whatever is free.
const LEAST: u64 = 64 << 20;

/// What an upper was promised, and what it may have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) promised: MiB,
    pub(crate) now: MiB,
}

impl Share {
    /// For an upper that has `used` bytes.
    pub(crate) fn of(promised: MiB, used: u64, info: &PoolInfo) -> Self {
        let more = info.free_bytes.saturating_sub(info.reserve_bytes) / 2;
        let most = MiB((used + more.max(LEAST)) >> 20);
        Self {
            promised,
            now: promised.min(most),
        }
    }

    /// Notes in `folder` what the upper `name` was promised, where that is not its limit. Not in the upper: a full one takes no note.
    pub(crate) fn remember(self, folder: &Path, name: &str) -> io::Result<()> {
        if self.now < self.promised {
            return fs::write(folder.join(name), self.promised.0.to_string());
        }
        forget(folder, name)
    }
}

pub(crate) fn forget(folder: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The promise that was noted; none where it is the limit, or where the note was cut off by a power failure, which the upper outlives with
/// the limit that it had.
pub(crate) fn promised(folder: &Path, name: &str) -> io::Result<Option<MiB>> {
    match fs::read_to_string(folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => Ok(text.parse().ok().map(MiB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, Quota};

    #[test]
    fn half_of_what_is_free_above_the_reserve() {
        let info = |free_mib: u64| PoolInfo {
            backing: Backing::Subvolume,
            quota: Quota::Simple,
            size_bytes: 10_000 << 20,
            free_bytes: free_mib << 20,
            reserve_bytes: 500 << 20,
        };
        let now = |promised, used_mib: u64, free| {
            Share::of(MiB(promised), used_mib << 20, &info(free)).now.0
        };
        assert_eq!(now(1000, 0, 9000), 1000);
        assert_eq!(now(10_240, 0, 8500), 4000);
        assert_eq!(now(10_240, 3000, 5500), 5500);
        // Below the reserve too a sandbox can write its few files.
        assert_eq!(now(10_240, 3000, 400), 3064);
        assert_eq!(now(10, 0, 400), 10);
    }
}
