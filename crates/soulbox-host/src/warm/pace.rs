//! When to make slots: not while creates come, since making one takes a whole core for 10 ms, which those and the kills after them then wait
//! for. Pure.

use std::time::{Duration, Instant};

/// So long after the last create the rush is over.
const QUIET: Duration = Duration::from_millis(15);
/// The longest wait for that. A longer one would only empty the stock of a rush that goes on sooner, and a create that finds none takes four
/// times as long.
const PATIENCE: Duration = Duration::from_millis(60);

/// The creates of the last moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rush: Option<Rush>,
}

#[derive(Debug)]
struct Rush {
    first: Instant,
    last: Instant,
}

impl Pace {
    /// Something was taken off the stock.
    pub(super) fn taken(&mut self, now: Instant) {
        match &mut self.rush {
            Some(rush) if now < rush.last + QUIET => rush.last = now,
            rush => {
                *rush = Some(Rush {
                    first: now,
                    last: now,
                });
            }
        }
    }

    /// How long to wait before the next slot is made.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let Some(rush) = &self.rush else {
            return Duration::ZERO;
        };
        let until = (rush.last + QUIET).min(rush.first + PATIENCE);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_single_create_is_waited_for_and_no_longer() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        assert_eq!(pace.wait(start), Duration::ZERO);
        pace.taken(start);
        assert_eq!(pace.wait(start + millis(5)), millis(10));
        assert_eq!(pace.wait(start + QUIET), Duration::ZERO);
    }

    #[test]
    fn a_long_rush_is_not_waited_for() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for at in (0..400).step_by(5) {
            pace.taken(start + millis(at));
        }
        let now = start + millis(396);
        assert_eq!(pace.wait(now), Duration::ZERO);
        // The next rush has its own beginning.
        pace.taken(now + millis(50));
        assert_eq!(pace.wait(now + millis(51)), millis(14));
    }
}
