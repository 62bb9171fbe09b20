//! Rollbacks: another sandbox is made from a snapshot, and takes the place of the live one when the front has heard its agent.
//!
//! Until then the live one goes on. What is prepared and then forgotten ends by itself.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use soulbox_types::Epoch;
use soulbox_wire::host::{Create, Created, HostError, HostErrorKind};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{Host, Inner, failed, failure, limits_of, not_found};
use crate::memory;
use crate::runtime::Runtime;
use crate::sandbox::Request;
use crate::substitutes::Substitute;
use crate::workshop::MakeError;

/// How long a substitute waits to be wanted.
const WANTED_WITHIN: Duration = Duration::from_secs(60);

impl<R: Runtime> Host<R> {
    /// Makes a sandbox from a snapshot that may take the place of the live one. The descriptor is a TCP connection to its envd.
    ///
    /// # Errors
    /// Kinds `NotFound`, `CannotSave` (there is one already), `SnapshotMissing`, `SnapshotRefused`, `Unsupported`, `NoCapacity` and
    /// `Failed`. The live one goes on, and nothing is left of what was prepared.
    pub async fn prepare(&self, request: Create) -> Result<(Created, OwnedFd), HostError> {
        let inner = &self.inner;
        let _under_way = inner.creations.token();
        if inner.stopping.load(Ordering::SeqCst) {
            return Err(HostError {
                kind: HostErrorKind::Failed,
                message: "the host agent is stopping".to_owned(),
            });
        }
        let sandbox_id = request.sandbox_id.clone();
        let record = self.record(&sandbox_id)?;
        if request.snapshot.is_none() || record.build_id != request.build_id {
            return Err(HostError {
                kind: HostErrorKind::Failed,
                message: format!("sandbox {sandbox_id} is to go back to no snapshot of its build"),
            });
        }
        memory::check(inner.settings.memory_reserve)
            .map_err(|error| failure(&MakeError::Memory(error)))?;
        if !inner.substitutes.reserve(&sandbox_id) {
            return Err(HostError {
                kind: HostErrorKind::CannotSave,
                message: format!("another rollback of sandbox {sandbox_id} is under way"),
            });
        }
        let prepared = inner.clone().make_substitute(request).await;
        if prepared.is_err() {
            inner.substitutes.give_up(&sandbox_id);
        }
        prepared
    }

    /// Lets what was prepared take the place of the live sandbox, whose processes end. Deadline and egress stay as they are.
    ///
    /// # Errors
    /// Kinds `NotFound`, `StaleEpoch` (both are as before), `CannotSave` (a snapshot is being made), and `Failed`: the live one goes on.
    pub async fn replace(&self, sandbox_id: &str, epoch: Epoch) -> Result<(), HostError> {
        let inbox = self.inner.live(sandbox_id, |live| live.inbox.clone())?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Replace { epoch, reply };
        if inbox.send(request).await.is_err() {
            return Err(not_found(sandbox_id));
        }
        answer.await.map_err(|_| not_found(sandbox_id))?
    }

    /// Ends what was prepared.
    pub async fn abandon(&self, sandbox_id: &str) {
        if let Some(substitute) = self.inner.substitutes.take(sandbox_id) {
            self.inner.discard_now(substitute.made).await;
        }
    }
}

impl<R: Runtime> Inner<R> {
    async fn make_substitute(
        self: Arc<Self>,
        request: Create,
    ) -> Result<(Created, OwnedFd), HostError> {
        let origin = self.origin_of(&request).await?;
        let basis = origin.basis();
        let limits = limits_of(&request);
        let permit = self.starts.acquire().await;
        let permit = permit.map_err(|error| failed(&error))?;
        let inner = Arc::clone(&self);
        let made = spawn_blocking(move || inner.make_from(&origin, &limits)).await;
        let made = made
            .map_err(|error| failed(&error))?
            .map_err(|error| failure(&error))?;
        drop(permit);
        let runtime = &self.workshop.runtime;
        let envd = match runtime.dial(&made.running, crate::ENVD_PORT).await {
            Ok(envd) => envd,
            Err(error) => {
                self.discard_now(made).await;
                return Err(failed(&MakeError::Dial(error)));
            }
        };
        if limits.disk != made.limits.disk
            && let Err(error) = self.workshop.pool.set_quota(&made.upper, limits.disk)
        {
            self.discard_now(made).await;
            return Err(failure(&MakeError::Quota(error)));
        }
        if limits != made.limits
            && let Err(error) = runtime.set_limits(&made.running, &limits)
        {
            self.discard_now(made).await;
            return Err(failure(&MakeError::Limits(error)));
        }
        let created = Created {
            started_at: crate::clock::now().0,
            init_secret: made.init_secret.clone(),
            restored: made.guests.is_some(),
        };
        let own = &self.settings.guests;
        let guests = made.guests.clone().unwrap_or_else(|| own.clone());
        let upper = made.upper.clone();
        let sandbox_id = request.sandbox_id;
        let substitute = Substitute {
            made,
            basis,
            guests,
        };
        self.substitutes.put(&sandbox_id, substitute);
        let inner = Arc::downgrade(&self);
        tokio::spawn(async move {
            tokio::time::sleep(WANTED_WITHIN).await;
            let Some(inner) = inner.upgrade() else { return };
            if let Some(unwanted) = inner.substitutes.take_of(&sandbox_id, &upper) {
                tracing::warn!(sandbox_id, "a rollback was begun and left");
                inner.discard_now(unwanted.made).await;
            }
        });
        Ok((created, envd))
    }
}
