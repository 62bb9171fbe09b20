//! Layers that nothing needs: what is left of deleted templates, replaced builds and failed ones.
//!
//! A layer is needed by the manifests of builds, by live sandboxes, by snapshots, those of the store included, and by what has claimed it
//! ([`crate::claims`]). What is younger than the caller says stays as well: it is the cache of the next build, and a recipe's manifest comes
//! after its layer. Each layer goes as a whole, so a collection that is broken off has only done less.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use soulbox_pool::{PoolError, SnapshotPool};
use soulbox_wire::host::HostError;
use tokio::task::spawn_blocking;

use super::{Host, Inner, failed};
use crate::claims::{Claims, Collection};
use crate::copies::{Copies, CopyError};
use crate::runtime::Runtime;
use crate::snapshot::Key;

/// How often layers are collected without being asked, the first time this long after the start.
const FROM_TIME_TO_TIME: Duration = Duration::from_secs(1800);

/// Collects for as long as the host is there.
pub(super) async fn from_time_to_time<R: Runtime>(inner: Weak<Inner<R>>) {
    loop {
        tokio::time::sleep(FROM_TIME_TO_TIME).await;
        let Some(inner) = inner.upgrade() else { return };
        let keep = inner.settings.keep_layers;
        match (Host { inner }).collect_layers(keep, false).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(layers = gone.len(), "deleted layers that nothing needs"),
            Err(error) => tracing::warn!(%error, "failed to collect layers"),
        }
    }
}

impl<R: Runtime> Host<R> {
    /// Deletes layers that nothing needs and that are older than `older_than`; with `dry_run` it only finds them.
    ///
    /// # Errors
    /// Kinds `SnapshotRefused` when nobody can tell what a snapshot needs, and `Failed`; what was deleted before stays so.
    pub async fn collect_layers(
        &self,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<Vec<String>, HostError> {
        let _only_one = self.inner.collecting.lock().await;
        let claims = Arc::clone(self.claims());
        let collection = claims.collection();
        // A sandbox may become a snapshot meanwhile, and a snapshot a sandbox: whichever was missed first is found later.
        let mut needed = self.layers_of_sandboxes()?;
        needed.extend(self.layers_of_sealed().await?);
        let key = Key::derive(&self.inner.settings.snapshot_key);
        let pool = Arc::clone(&self.workshop().pool);
        let of_snapshots = spawn_blocking(move || layers_of_snapshots(&*pool, &key));
        needed.extend(of_snapshots.await.map_err(|error| failed(&error))??);
        needed.extend(self.layers_of_sandboxes()?);
        let pool = Arc::clone(&self.workshop().pool);
        let collected =
            spawn_blocking(move || collect(&*pool, &collection, needed, older_than, dry_run));
        let collected = collected.await.map_err(|error| failed(&error))?;
        collected.map_err(|error| failed(&error))
    }

    pub(crate) fn claims(&self) -> &Arc<Claims> {
        &self.inner.claims
    }

    fn layers_of_sandboxes(&self) -> Result<BTreeSet<String>, HostError> {
        let records = self.inner.records.all().map_err(|error| failed(&error))?;
        Ok(records.into_iter().flat_map(|it| it.basis.layers).collect())
    }

    async fn layers_of_sealed(&self) -> Result<Vec<String>, HostError> {
        let read = |copies: &Copies| {
            let mut layers = Vec::new();
            for name in copies.artifacts()? {
                match copies.sealed(&name) {
                    Ok(manifest) => layers.extend(manifest.map_or(Vec::new(), |it| it.layers)),
                    // Another installation's, or damaged: no sandbox here will ever be made of it.
                    Err(error) if error.is_refusal() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(layers)
        };
        self.inner.with_copies(read).await
    }
}

fn layers_of_snapshots(pool: &dyn SnapshotPool, key: &Key) -> Result<Vec<String>, HostError> {
    let mut layers = Vec::new();
    for snapshot in pool.list_snapshots().map_err(|error| failed(&error))? {
        let manifest = key.open(&snapshot).map_err(|source| {
            HostError::from(CopyError::Refused {
                name: snapshot.name.clone(),
                source,
            })
        })?;
        layers.extend(manifest.layers);
    }
    Ok(layers)
}

fn collect(
    pool: &dyn SnapshotPool,
    collection: &Collection,
    mut needed: BTreeSet<String>,
    older_than: Duration,
    dry_run: bool,
) -> Result<Vec<String>, PoolError> {
    // Listed before the manifests are read: a build that ends meanwhile has layers that are not in this list, or a manifest that is read.
    let layers = pool.list_layers()?;
    for manifest in pool.builds()?.into_iter().chain(pool.templates()?) {
        needed.extend(manifest.layers.into_iter().map(String::from));
    }
    let now = SystemTime::now();
    let is_old = |since: SystemTime| now.duration_since(since).is_ok_and(|age| age >= older_than);
    let mut unneeded: Vec<String> = Vec::new();
    for (layer, since) in layers {
        if !is_old(since) || needed.contains(layer.as_str()) {
            continue;
        }
        let delete = || match dry_run {
            true => Ok(()),
            false => pool.delete_layer(&layer),
        };
        if collection.take(layer.as_str(), delete)? {
            unneeded.push(layer.into());
        }
    }
    Ok(unneeded)
}
