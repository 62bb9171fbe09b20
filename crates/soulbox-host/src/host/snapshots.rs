//! Snapshots of a host: made of live sandboxes, listed, deleted, and begun from.

use std::collections::HashMap;
use std::sync::Arc;

use soulbox_archive::mark::MarkError;
use soulbox_pool::{Inherited, LayerDigest, PoolError, Snapshot, SnapshotPool, TemplateManifest};
use soulbox_types::{Epoch, Limits};
use soulbox_wire::host::{
    After, Create, FromSnapshot, HostError, HostErrorKind, HostSnapshot, Save,
};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{Host, Inner, failed, not_found};
use crate::chain;
use crate::layers;
use crate::lifecycle;
use crate::runtime::Runtime;
use crate::sandbox::Request;
use crate::saves::Wanted;
use crate::snapshot::{Fingerprint, Key, Manifest, Memory, RefusedError, RootBasis};
use crate::workshop::{Made, MakeError};

/// What a sandbox begins from.
pub(super) struct Origin {
    template: TemplateManifest,
    snapshot: Option<Snapshot>,
    /// Its processes go on.
    memory: Option<Memory>,
    /// What it begins from instead, where that can be used: the snapshot that its build has ended with.
    started: Option<Box<Origin>>,
}

impl Origin {
    /// Everything that a root of it may consist of.
    pub(super) fn layers(&self) -> Vec<String> {
        let own = self.template.layers.iter();
        let mut layers: Vec<_> = own.map(|layer| layer.as_str().to_owned()).collect();
        layers.extend(self.started.iter().flat_map(|started| started.layers()));
        layers
    }

    /// The build, where it begins from that alone: not a step of a build, and nothing of a snapshot.
    pub(super) fn build_alone(&self) -> Option<&TemplateManifest> {
        let is_of_snapshot = self.snapshot.is_some() || self.started.is_some();
        let is_build = !is_of_snapshot && !layers::is_of_step(&self.template);
        is_build.then_some(&self.template)
    }

    pub(super) fn basis(&self) -> RootBasis {
        let layers = self.template.layers.iter();
        RootBasis {
            layers: layers.map(|layer| layer.as_str().to_owned()).collect(),
            default_user: self.template.default_user.clone(),
            default_workdir: self.template.default_workdir.clone(),
        }
    }
}

impl<R: Runtime> Host<R> {
    /// Makes a snapshot of a live sandbox; returns when all of it is on disk and, with [`After::End`], no process is left. A second
    /// call for the very same snapshot waits for the first.
    ///
    /// # Errors
    /// Kinds `NotFound` (also when it was ended meanwhile), `StaleEpoch`, `Unsupported`, `CannotSave` and `NoCapacity` (it goes on),
    /// `Failed`.
    pub async fn save(&self, save: Save) -> Result<HostSnapshot, HostError> {
        let sandbox_id = save.sandbox_id;
        let inbox = self.inner.live(&sandbox_id, |live| live.inbox.clone())?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Save {
            epoch: Epoch(save.epoch),
            wanted: Wanted {
                snapshot_id: save.snapshot_id,
                memory: save.memory,
                after: match save.after {
                    After::GoOn => lifecycle::After::GoOn,
                    After::End => lifecycle::After::End,
                },
            },
            reply,
        };
        if inbox.send(request).await.is_err() {
            return Err(not_found(&sandbox_id));
        }
        answer.await.map_err(|_| not_found(&sandbox_id))?
    }

    /// Deletes a snapshot. What was made from it stays as it is; one that is not there is deleted already.
    ///
    /// # Errors
    /// Kind `CannotSave` while it is being made, and `Failed`.
    pub async fn delete_snapshot(&self, snapshot_id: String) -> Result<(), HostError> {
        if self.inner.saves.is_unfinished(&snapshot_id) {
            return Err(HostError {
                kind: HostErrorKind::CannotSave,
                message: format!("snapshot {snapshot_id} is being made"),
            });
        }
        self.inner
            .with_copies(move |copies| copies.delete(&snapshot_id))
            .await
    }

    /// Every whole snapshot of this installation, local or sealed. One that was tampered with is not listed; it can be deleted by its
    /// name.
    ///
    /// # Errors
    /// Kind `Failed`.
    pub async fn snapshots(&self) -> Result<Vec<HostSnapshot>, HostError> {
        let copies = self.snapshot_copies().await?;
        Ok(copies.into_iter().map(|copy| copy.snapshot).collect())
    }

    pub(super) async fn local_snapshots(&self) -> Result<Vec<HostSnapshot>, HostError> {
        let found = self
            .inner
            .with_snapshots(|pool| pool.list_snapshots())
            .await?;
        let key = self.inner.saves.key();
        let listed = found
            .iter()
            .filter_map(|snapshot| match key.open(snapshot) {
                Ok(manifest) => Some(manifest.told(snapshot.disk_bytes)),
                Err(error) => {
                    let snapshot_id = &snapshot.name;
                    tracing::warn!(snapshot_id, error = %chain(&error), "a snapshot is not used");
                    None
                }
            });
        Ok(listed.collect())
    }
}

impl<R: Runtime> Inner<R> {
    /// What a sandbox begins from: a template, a list of layers, or a snapshot.
    pub(super) async fn origin_of(&self, request: &Create) -> Result<Origin, HostError> {
        match &request.snapshot {
            None => {
                let template = self.root_of(request).await?;
                Ok(Origin {
                    started: self.started(request, &template).await,
                    template,
                    snapshot: None,
                    memory: None,
                })
            }
            Some(from) => self.saved(request, from).await,
        }
    }

    async fn started(&self, request: &Create, template: &TemplateManifest) -> Option<Box<Origin>> {
        let from = FromSnapshot {
            snapshot_id: template.inherited.started.clone()?,
            memory: true,
        };
        // It stays for an agent that can use it, and until then nobody is warned of what he knows.
        self.workshop.runtime.checkpoints().ok()?;
        match self.saved(request, &from).await {
            Ok(origin) => Some(Box::new(origin)),
            Err(error) => {
                tracing::warn!(build_id = request.build_id, %error, "the snapshot of a build is not used");
                None
            }
        }
    }

    /// Whether a snapshot with memory can be gone on from here, with the guest programs that new sandboxes have. Where none can be made,
    /// another would be no better.
    pub(super) async fn is_current(&self, snapshot_id: &str) -> bool {
        let Ok((_, manifest)) = self.manifest_of(snapshot_id).await else {
            return false;
        };
        let Some(memory) = manifest.memory else {
            return false;
        };
        let Ok(criu) = self.workshop.runtime.checkpoints() else {
            return true;
        };
        let here = Fingerprint::of_this_host(criu);
        memory.guests == self.settings.guests && here.is_ok_and(|here| memory.fits(&here).is_ok())
    }

    /// What a snapshot says of itself, and the snapshot where it is local.
    async fn manifest_of(
        &self,
        snapshot_id: &str,
    ) -> Result<(Option<Snapshot>, Manifest), HostError> {
        let name = snapshot_id.to_owned();
        let missing = || HostError {
            kind: HostErrorKind::SnapshotMissing,
            message: format!("there is no snapshot `{snapshot_id}` on this host"),
        };
        if self.saves.is_unfinished(&name) {
            return Err(missing());
        }
        let found = self
            .with_snapshots(move |pool| match pool.snapshot(&name) {
                Err(PoolError::SnapshotMissing { .. } | PoolError::BadName { .. }) => Ok(None),
                // Half of a manifest is none of ours.
                Err(PoolError::BadManifest { source, .. }) => Ok(Some(Err(source))),
                other => other.map(|snapshot| Some(Ok(snapshot))),
            })
            .await?
            .transpose()
            .map_err(|source| refused(snapshot_id, &MarkError::Damaged(source).into()))?;
        let manifest = match &found {
            Some(snapshot) => {
                let opened = self.saves.key().open(snapshot);
                opened.map_err(|error| refused(snapshot_id, &error))?
            }
            None => {
                let name = snapshot_id.to_owned();
                let sealed = self.with_copies(move |copies| copies.sealed(&name)).await?;
                sealed.ok_or_else(missing)?
            }
        };
        Ok((found, manifest))
    }

    async fn saved(&self, request: &Create, from: &FromSnapshot) -> Result<Origin, HostError> {
        let (found, manifest) = self.manifest_of(&from.snapshot_id).await?;
        if manifest.build_id != request.build_id {
            return Err(HostError {
                kind: HostErrorKind::SnapshotRefused,
                message: format!(
                    "snapshot `{}` is of build {}, not of {}",
                    from.snapshot_id, manifest.build_id, request.build_id
                ),
            });
        }
        if from.memory && manifest.memory.is_none() {
            return Err(HostError {
                kind: HostErrorKind::SnapshotRefused,
                message: format!("snapshot `{}` was made without memory", from.snapshot_id),
            });
        }
        let memory = manifest.memory.clone().filter(|_| from.memory);
        let snapshot = match found {
            Some(snapshot) => snapshot,
            None => self.fetched(&from.snapshot_id, memory.as_ref()).await?,
        };
        let layers: Result<Vec<LayerDigest>, _> =
            manifest.layers.iter().map(|layer| layer.parse()).collect();
        Ok(Origin {
            template: template(request, &manifest, layers.map_err(|error| failed(&error))?),
            snapshot: Some(snapshot),
            memory,
            started: None,
        })
    }

    /// The local copy of a snapshot that is only in the store, which is of use here.
    async fn fetched(
        &self,
        snapshot_id: &str,
        memory: Option<&Memory>,
    ) -> Result<Snapshot, HostError> {
        if let Some(memory) = memory {
            // Before gigabytes are fetched for nothing.
            let criu = self.workshop.runtime.checkpoints();
            let criu = criu.map_err(|missing| HostError {
                kind: HostErrorKind::Unsupported,
                message: missing,
            })?;
            let here = Fingerprint::of_this_host(criu).map_err(|error| failed(&error))?;
            let fits = memory.fits(&here);
            fits.map_err(|error| refused(snapshot_id, &error))?;
        }
        let name = snapshot_id.to_owned();
        self.with_copies(move |copies| copies.fetch(&name)).await
    }

    /// A sandbox from the snapshot that its build has ended with, or as its origin wants it, and what its root is made of. Blocks.
    pub(super) fn make_started(
        &self,
        origin: &Origin,
        limits: &Limits,
    ) -> Result<(Made<R>, RootBasis), MakeError> {
        if let Some(started) = &origin.started {
            match self.make_from(started, limits) {
                Ok(made) => return Ok((made, started.basis())),
                // Nothing is left of these, and whoever asked can start the programs.
                Err(error @ (MakeError::Refused { .. } | MakeError::Restore { .. })) => {
                    tracing::warn!(error = %chain(&error), "the snapshot of a build is not used");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((self.make_from(origin, limits)?, origin.basis()))
    }

    /// A sandbox as its origin wants it. Blocks.
    pub(super) fn make_from(&self, origin: &Origin, limits: &Limits) -> Result<Made<R>, MakeError> {
        match (&origin.snapshot, &origin.memory) {
            (Some(snapshot), Some(memory)) => {
                self.workshop
                    .restore(&origin.template.layers, snapshot, memory, limits)
            }
            (snapshot, _) => self.make(&origin.template, snapshot.as_ref()),
        }
    }

    async fn with_snapshots<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn SnapshotPool) -> Result<T, PoolError> + Send + 'static,
    ) -> Result<T, HostError> {
        let workshop = Arc::clone(&self.workshop);
        spawn_blocking(move || call(&*workshop.pool))
            .await
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))
    }
}

/// Sandboxes that have ended with a snapshot, and the epochs of these.
pub(super) fn paused(
    pool: &dyn SnapshotPool,
    key: &Key,
) -> Result<HashMap<String, u64>, PoolError> {
    let mut paused = HashMap::new();
    for snapshot in pool.list_snapshots()? {
        // What is not ours says nothing.
        let Ok(manifest) = key.open(&snapshot) else {
            continue;
        };
        if manifest.after == After::End {
            let epoch = paused.entry(manifest.sandbox_id).or_insert(manifest.epoch);
            *epoch = manifest.epoch.max(*epoch);
        }
    }
    Ok(paused)
}

/// A snapshot's root, as if it were a template.
fn template(request: &Create, manifest: &Manifest, layers: Vec<LayerDigest>) -> TemplateManifest {
    TemplateManifest {
        name: String::new(),
        template_id: String::new(),
        build_id: manifest.build_id.clone(),
        built_at: 0,
        layers,
        cpu_count: request.cpu_milli.div_ceil(1000),
        memory_mib: request.memory_mib,
        disk_mib: request.disk_mib,
        default_user: manifest.default_user.clone(),
        default_workdir: manifest.default_workdir.clone(),
        inherited: Inherited::default(),
    }
}

fn refused(snapshot_id: &str, error: &RefusedError) -> HostError {
    HostError {
        kind: HostErrorKind::SnapshotRefused,
        message: format!("snapshot `{snapshot_id}` is not used: {}", chain(error)),
    }
}
