//! Rollback: a running sandbox becomes what one of its snapshots is, with the same ID and the same tokens.
//!
//! The host makes a second sandbox from the snapshot. When the agent inside has answered, it takes the place of the first, which ends; until
//! then the first goes on, and after any failure too. Deadline, network and metadata stay; nothing of the row changes.

use soulbox_types::{SandboxId, SandboxState};
use tokio::sync::oneshot;

use crate::catalog::ResolveError;
use crate::control::{Control, missing};
use crate::error::SandboxError;
use crate::hosts::{FromSnapshot, HostCreate, HostFailure};
use crate::owner::Request;
use crate::registry::Handle;
use crate::spec::TemplateReference;
use crate::store::TeamRow;

/// A deadline may move while the host is told; more often than this in a row it does not.
const ATTEMPTS: u32 = 5;

impl Control {
    /// Takes a running sandbox back to a snapshot of itself; returns when that answers and no stream of before is left.
    ///
    /// # Errors
    /// The sandbox does not run, something else is done with it, the snapshot is not there or of another sandbox, or the host failed: it
    /// goes on as before.
    pub async fn rollback(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        reference: &TemplateReference,
    ) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        let handle = self.reach(team, id).await?;
        let from = self.snapshot_of(team, id, reference).await?;
        let sandbox_id = id.clone();
        let busy = |state| SandboxError::NotRolledBack {
            sandbox_id: sandbox_id.clone(),
            state,
        };
        match handle.state() {
            SandboxState::Running => {}
            SandboxState::Pausing => return Err(busy("pausing")),
            SandboxState::Paused => return Err(busy("paused")),
            SandboxState::Resuming => return Err(busy("resuming")),
            SandboxState::Killing => return Err(SandboxError::BeingKilled { sandbox_id }),
            SandboxState::Creating | SandboxState::Dead => return Err(missing(id)),
        }
        let turn = handle.snapshot_turn.clone();
        let Ok(_turn) = turn.try_write() else {
            return Err(busy("snapshotting"));
        };
        self.last_words(id).await;
        let command = HostCreate {
            epoch: handle.progress.borrow().epoch,
            snapshot: Some(from),
            ..self.command(&handle.row)
        };
        let within = self.settings().start_within;
        match tokio::time::timeout(within, self.hosts().prepare(&command)).await {
            Ok(Ok(())) => {}
            Ok(Err(HostFailure::NotFound | HostFailure::Lost(_))) => return Err(missing(id)),
            Ok(Err(failure)) => return Err(SandboxError::RollbackFailed(failure)),
            Err(_) => {
                self.abandon(id).await;
                return Err(SandboxError::TimedOut);
            }
        }
        let replaced = self.replace(&handle, command).await;
        if replaced.is_err() {
            self.abandon(id).await;
            return replaced;
        }
        let (reply, cut) = oneshot::channel();
        if handle
            .requests
            .send(Request::Replaced { reply })
            .await
            .is_ok()
        {
            // Without an owner it has ended meanwhile, and its streams with it.
            let _ended = cut.await;
        }
        self.log(
            id,
            "sandbox rolled back",
            [("snapshot", reference.to_string())],
        );
        Ok(())
    }

    /// What a sandbox begins from that is to be as in that snapshot of its own.
    async fn snapshot_of(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        reference: &TemplateReference,
    ) -> Result<FromSnapshot, SandboxError> {
        let unknown = || SandboxError::NoSnapshot {
            reference: reference.to_string(),
        };
        let resolved = self.resolve(team, reference).await;
        let resolved = resolved.map_err(|error| match error {
            ResolveError::NoTemplate { .. }
            | ResolveError::NoTag { .. }
            | ResolveError::Foreign { .. } => unknown(),
        })?;
        let catalog = self.catalog();
        let snapshot = catalog.snapshot(&resolved.build.build_id);
        let snapshot = snapshot.ok_or_else(unknown)?;
        if snapshot.sandbox_id != *id {
            return Err(SandboxError::SnapshotOfAnother {
                reference: reference.to_string(),
                sandbox_id: id.clone(),
            });
        }
        Ok(FromSnapshot {
            snapshot_id: snapshot.snapshot_name.clone(),
            memory: snapshot.memory,
            is_copy: true,
        })
    }

    async fn replace(&self, handle: &Handle, mut command: HostCreate) -> Result<(), SandboxError> {
        let within = self.settings().start_within;
        for _ in 0..ATTEMPTS {
            command.epoch = handle.progress.borrow().epoch;
            match tokio::time::timeout(within, self.hosts().replace(&command)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(HostFailure::NotFound | HostFailure::Lost(_))) => {
                    return Err(missing(&command.sandbox_id));
                }
                // Another decision went out meanwhile; the next epoch is here or comes at once.
                Ok(Err(HostFailure::StaleEpoch)) => tokio::task::yield_now().await,
                Ok(Err(failure)) => return Err(SandboxError::RollbackFailed(failure)),
                Err(_) => break,
            }
        }
        Err(SandboxError::TimedOut)
    }

    /// What is not heard ends by itself.
    async fn abandon(&self, id: &SandboxId) {
        let within = self.settings().command_within;
        match tokio::time::timeout(within, self.hosts().abandon(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::warn!(sandbox_id = %id, error = %failure, "failed to end what was prepared for a rollback");
            }
            Err(_) => {
                tracing::warn!(sandbox_id = %id, "ending what was prepared for a rollback took too long")
            }
        }
    }
}
