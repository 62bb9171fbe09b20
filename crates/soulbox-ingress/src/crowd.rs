//! How many requests may be under way into one sandbox.
//!
//! envd is counted apart from all other ports: who floods a server that a sandbox shows to the public must not lock out its owner.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use soulbox_envd_proto::ENVD_PORT;
use soulbox_types::SandboxId;

use crate::route::Target;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Envd,
    Ports,
}

type Counts = HashMap<(SandboxId, Side), u32>;

pub(crate) struct Crowd {
    limit: u32,
    counts: Mutex<Counts>,
}

/// A request that is counted until this is dropped.
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    key: (SandboxId, Side),
}

impl Crowd {
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit,
            counts: Mutex::default(),
        })
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// A place for one more request, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, target: &Target) -> Option<Place> {
        let side = if target.port == ENVD_PORT {
            Side::Envd
        } else {
            Side::Ports
        };
        let key = (target.sandbox_id.clone(), side);
        let mut counts = self.counts();
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place {
            crowd: Arc::clone(self),
            key,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Every change is one step, so a panic elsewhere does not spoil it.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.crowd.counts().entry(self.key.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_for_each_sandbox_and_side() {
        let crowd = Crowd::new(1);
        let target = |id: &str, port| Target {
            sandbox_id: id.parse().unwrap(),
            port,
        };
        let first = crowd.enter(&target("ia", 80));
        assert!(first.is_some());
        assert!(crowd.enter(&target("ia", 81)).is_none());
        let envd = crowd.enter(&target("ia", ENVD_PORT));
        assert!(envd.is_some() && crowd.enter(&target("ia", ENVD_PORT)).is_none());
        let other = crowd.enter(&target("ib", 80));
        assert!(other.is_some());
        drop((first, envd, other));
        assert!(crowd.counts().is_empty());
        assert!(crowd.enter(&target("ia", 81)).is_some());
    }
}
