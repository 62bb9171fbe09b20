//! How much may be at work at once, in all and for one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared counters. A [`Permit`] counts from being taken to being dropped.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    all: usize,
    of_one: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Only sources that hold a permit, so it is never longer than `all`.
    by_source: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
pub(super) struct Permit {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Limits {
    pub(super) fn new(all: usize, of_one: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                all,
                of_one,
                counts: Mutex::default(),
            }),
        }
    }

    /// None when the limit of all or of this source is reached.
    pub(super) fn take(&self, source: IpAddr) -> Option<Permit> {
        let mut counts = self
            .shared
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let held = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.all >= self.shared.all || held >= self.shared.of_one {
            return None;
        }
        counts.all += 1;
        counts.by_source.insert(source, held + 1);
        Some(Permit {
            shared: Arc::clone(&self.shared),
            source,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self
            .shared
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        match counts.by_source.get_mut(&self.source) {
            Some(held) if *held > 1 => *held -= 1,
            _ => {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all() {
        let limits = Limits::new(3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = [limits.take(a), limits.take(a)];
        assert!(held.iter().all(Option::is_some));
        assert!(limits.take(a).is_none(), "its own limit");
        let last = limits.take(b);
        assert!(last.is_some());
        assert!(
            limits.take(IpAddr::from([10, 0, 0, 3])).is_none(),
            "the limit of all"
        );
        drop(held);
        assert!(limits.take(a).is_some());
        drop(last);
        assert!(
            limits
                .shared
                .counts
                .lock()
                .expect("lock")
                .by_source
                .is_empty(),
            "nothing is kept of who left"
        );
    }
}
