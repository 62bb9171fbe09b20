//! Connections into sandboxes that wait for their next request.
//!
//! A server may close an idle connection whenever it likes, and a request that was already sent then must not be repeated unless its method allows
//! that. So connections to user's servers wait only briefly (common servers close after 2 s or more), those to envd, which is ours, for long.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use soulbox_envd_proto::ENVD_PORT;
use soulbox_types::SandboxId;

use crate::route::Target;
use crate::upstream::Upstream;

/// Idle connections of one sandbox.
const PER_SANDBOX: usize = 64;
/// Idle connections of all; each is a descriptor here and one inside.
const IN_ALL: usize = 4096;
const USER_IDLE: Duration = Duration::from_secs(1);
/// envd closes after 640 s.
const ENVD_IDLE: Duration = Duration::from_secs(600);

struct Parked {
    port: u16,
    upstream: Upstream,
    since: Instant,
}

impl Parked {
    fn is_usable(&self, now: Instant) -> bool {
        let limit = if self.port == ENVD_PORT {
            ENVD_IDLE
        } else {
            USER_IDLE
        };
        !self.upstream.is_closed() && now.duration_since(self.since) < limit
    }
}

#[derive(Default)]
struct Idle {
    by_sandbox: HashMap<SandboxId, Vec<Parked>>,
    count: usize,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to this port that was used last, if one is still good.
    pub(crate) async fn take(&self, target: &Target) -> Option<Upstream> {
        loop {
            let mut upstream = self.take_parked(target)?;
            if upstream.is_free().await {
                return Some(upstream);
            }
        }
    }

    fn take_parked(&self, target: &Target) -> Option<Upstream> {
        let now = Instant::now();
        let mut idle = self.idle();
        loop {
            let parked = idle.by_sandbox.get_mut(&target.sandbox_id)?;
            let newest = parked
                .iter()
                .rposition(|parked| parked.port == target.port)?;
            let found = parked.remove(newest);
            if parked.is_empty() {
                idle.by_sandbox.remove(&target.sandbox_id);
            }
            idle.count -= 1;
            if found.is_usable(now) {
                return Some(found.upstream);
            }
        }
    }

    /// Keeps a connection for the next request to this port, unless there are enough.
    pub(crate) fn put(&self, target: &Target, upstream: Upstream) {
        if upstream.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.count >= IN_ALL {
            return;
        }
        let parked = idle
            .by_sandbox
            .entry(target.sandbox_id.clone())
            .or_default();
        if parked.len() < PER_SANDBOX {
            parked.push(Parked {
                port: target.port,
                upstream,
                since: Instant::now(),
            });
            idle.count += 1;
        }
    }

    /// Closes what is kept for a sandbox.
    pub(crate) fn forget(&self, sandbox_id: &SandboxId) {
        let mut idle = self.idle();
        if let Some(gone) = idle.by_sandbox.remove(sandbox_id) {
            idle.count -= gone.len();
        }
    }

    /// Closes what waited too long, what the peer closed, and what belongs to sandboxes that are no longer there.
    pub(crate) fn sweep(&self, is_live: impl Fn(&SandboxId) -> bool) {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.by_sandbox.retain(|sandbox_id, parked| {
            if !is_live(sandbox_id) {
                return false;
            }
            parked.retain(|parked| parked.is_usable(now));
            !parked.is_empty()
        });
        idle.count = idle.by_sandbox.values().map(Vec::len).sum();
    }
}
