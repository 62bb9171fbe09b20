//! Copies of snapshots: put into the store, dropped here, listed, collected.

use std::sync::Arc;

use soulbox_wire::host::{
    Collected, HostError, HostErrorKind, HostSnapshot, Sealed, SnapshotCopies,
};
use tokio::task::spawn_blocking;

use super::{Host, Inner, failed};
use crate::copies::{Copies, CopyError};
use crate::runtime::Runtime;

impl<R: Runtime> Host<R> {
    /// Puts a snapshot into the store, durably; what an earlier one has in common with it is not stored again.
    ///
    /// # Errors
    /// Kinds `SnapshotMissing` (also while it is being made), `SnapshotRefused`, `Unsupported` without a store, and `Failed`.
    pub async fn seal_snapshot(&self, snapshot_id: String) -> Result<Sealed, HostError> {
        if self.inner.saves.is_unfinished(&snapshot_id) {
            return Err(missing(&snapshot_id));
        }
        self.inner
            .with_copies(move |copies| copies.seal(&snapshot_id))
            .await
    }

    /// Deletes the local copy of a sealed snapshot, after all of it was read in the store. A restore that reads it just now fails.
    ///
    /// # Errors
    /// As [`Host::seal_snapshot`]; when it is not sealed, kind `Failed`.
    pub async fn drop_local_snapshot(&self, snapshot_id: String) -> Result<(), HostError> {
        if self.inner.saves.is_unfinished(&snapshot_id) {
            return Err(missing(&snapshot_id));
        }
        self.inner
            .with_copies(move |copies| copies.drop_local(&snapshot_id))
            .await
    }

    /// Every whole snapshot of this installation, sorted by name, with its copies.
    ///
    /// # Errors
    /// Kind `Failed`, also when the store cannot be read: a shorter list would be a false one.
    pub async fn snapshot_copies(&self) -> Result<Vec<SnapshotCopies>, HostError> {
        let local = self.local_snapshots().await?;
        let mut copies = self
            .inner
            .with_copies(move |copies| both(copies, local))
            .await?;
        copies.retain(|copy| !self.inner.saves.is_unfinished(&copy.snapshot.snapshot_id));
        Ok(copies)
    }

    /// Deletes from the store what no sealed snapshot needs; with `dry_run` it only counts.
    ///
    /// # Errors
    /// Kinds `Unsupported`, `SnapshotRefused` when nobody can tell what is needed, and `Failed`, also while something is sealed.
    pub async fn collect_store(&self, dry_run: bool) -> Result<Collected, HostError> {
        let collected = self
            .inner
            .with_copies(move |copies| copies.collect(dry_run))
            .await?;
        Ok(Collected {
            kept_objects: collected.kept.objects,
            kept_bytes: collected.kept.bytes,
            deleted_objects: collected.deleted.objects,
            deleted_bytes: collected.deleted.bytes,
        })
    }
}

impl<R: Runtime> Inner<R> {
    pub(super) async fn with_copies<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Copies) -> Result<T, CopyError> + Send + 'static,
    ) -> Result<T, HostError> {
        let copies = Arc::clone(&self.copies);
        spawn_blocking(move || call(&copies))
            .await
            .map_err(|error| failed(&error))?
            .map_err(HostError::from)
    }
}

/// The local ones and those of the store.
fn both(copies: &Copies, local: Vec<HostSnapshot>) -> Result<Vec<SnapshotCopies>, CopyError> {
    let mut all: Vec<SnapshotCopies> = local
        .into_iter()
        .map(|snapshot| SnapshotCopies {
            snapshot,
            local: true,
            sealed: false,
        })
        .collect();
    for name in copies.artifacts()? {
        match all
            .iter_mut()
            .find(|copy| copy.snapshot.snapshot_id == name)
        {
            Some(copy) => copy.sealed = copies.told(&name)?.is_some(),
            None => {
                if let Some(snapshot) = copies.told(&name)? {
                    all.push(SnapshotCopies {
                        snapshot,
                        local: false,
                        sealed: true,
                    });
                }
            }
        }
    }
    all.sort_by(|a, b| a.snapshot.snapshot_id.cmp(&b.snapshot.snapshot_id));
    Ok(all)
}

fn missing(snapshot_id: &str) -> HostError {
    HostError {
        kind: HostErrorKind::SnapshotMissing,
        message: format!("there is no snapshot `{snapshot_id}` on this host"),
    }
}
