//! Whether the host has memory for another sandbox: creates are refused while less than a reserve is available, so that it is a create that
//! fails, with its cause, and not whatever the kernel would end.

use std::fs;
use std::io;

use soulbox_types::MiB;

const MEMINFO: &str = "/proc/meminfo";

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(
        "{} MiB of the host's memory are available, {} MiB are kept free", available.0, reserve.0
    )]
    Short { available: MiB, reserve: MiB },
    #[error("failed to read `{MEMINFO}`")]
    Unreadable(#[source] io::Error),
}

/// Refuses when less than `reserve` is available now. Some 30 us.
pub(crate) fn check(reserve: MiB) -> Result<(), MemoryError> {
    let text = fs::read_to_string(MEMINFO).map_err(MemoryError::Unreadable)?;
    let available = available(&text)
        .ok_or_else(|| MemoryError::Unreadable(io::ErrorKind::InvalidData.into()))?;
    if available < reserve {
        return Err(MemoryError::Short { available, reserve });
    }
    Ok(())
}

/// What the kernel could give without swapping: free memory and the cache that it can drop.
fn available(meminfo: &str) -> Option<MiB> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(MiB(kibibytes >> 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read() {
        let text = "MemTotal:       24610468 kB\nMemFree:        21000000 kB\nMemAvailable:   2097153 kB\n";
        assert_eq!(available(text), Some(MiB(2048)));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_reserve_that_is_not_there_is_refused() {
        check(MiB(0)).expect("nothing is kept free");
        let error = check(MiB(1 << 40)).expect_err("no host has that");
        assert!(matches!(error, MemoryError::Short { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("1099511627776 MiB are kept free"),
            "{error}"
        );
    }
}
