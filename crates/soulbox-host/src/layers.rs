//! What template builds ask of a host: sandboxes that begin from a list of layers, layers of what they wrote, manifests of builds.
//!
//! What a step of a build does is not known here; the front decides which layers belong together and how they are called.

use std::sync::Arc;

use soulbox_pool::{Inherited, LayerDigest, Pool, PoolError, TemplateManifest};
use soulbox_types::Epoch;
use soulbox_wire::host::{self as wire, Create, HostError, HostErrorKind, HostTemplate};
use tokio::task::spawn_blocking;

use crate::chain;
use crate::host::Host;
use crate::runtime::Runtime;
use crate::workshop::Workshop;

/// overlayfs takes 500 lower layers; the upper's build adds its own.
const MOST_LAYERS: usize = 400;
/// Layers that one question may name.
const MOST_NAMES: usize = 4096;

impl<R: Runtime> Host<R> {
    /// Makes what a live sandbox has written a layer, which is on disk when this returns. What its processes write meanwhile is not in it.
    ///
    /// # Errors
    /// Kinds `NotFound`, `StaleEpoch`, `NoCapacity`, `Failed`.
    pub async fn commit_layer(
        &self,
        sandbox_id: &str,
        epoch: Epoch,
        layer: &str,
    ) -> Result<(), HostError> {
        let record = self.record(sandbox_id)?;
        if epoch < Epoch(record.epoch) {
            return Err(HostError {
                kind: HostErrorKind::StaleEpoch,
                message: format!("sandbox {sandbox_id} is at epoch {}", record.epoch),
            });
        }
        let layer = digest(layer)?;
        self.claim_for_build(&record.build_id, [layer.as_str().to_owned()]);
        with_pool(self.workshop(), move |pool| {
            pool.commit_upper(&record.upper, &layer)
        })
        .await
    }

    /// The layer that has a name now. It stays while the build goes on.
    ///
    /// # Errors
    /// Kind `Failed`, also when the name is none.
    pub async fn find_layer(
        &self,
        build_id: &str,
        name: &str,
    ) -> Result<Option<String>, HostError> {
        let name = digest(name)?;
        let found = with_pool(self.workshop(), move |pool| pool.find_layer(&name)).await?;
        let Some(layer) = found else {
            return Ok(None);
        };
        self.claim_for_build(build_id, [layer.as_str().to_owned()]);
        // It may have been collected before it was claimed.
        with_pool(self.workshop(), move |pool| {
            Ok(Some(layer).filter(|layer| pool.has_layer(layer)))
        })
        .await
        .map(|layer| layer.map(String::from))
    }

    /// Gives a layer another name.
    ///
    /// # Errors
    /// Kind `Failed`, also when a name is none.
    pub async fn name_layer(&self, name: &str, layer: &str) -> Result<(), HostError> {
        let (name, layer) = (digest(name)?, digest(layer)?);
        with_pool(self.workshop(), move |pool| pool.name_layer(&name, &layer)).await
    }

    /// Those of the layers that are in the pool. They stay while the build goes on.
    ///
    /// # Errors
    /// Kind `Failed`, also when a name is none or there are too many.
    pub async fn layers(
        &self,
        build_id: &str,
        names: Vec<String>,
    ) -> Result<Vec<String>, HostError> {
        if names.len() > MOST_NAMES {
            return Err(refused(format!("more than {MOST_NAMES} layers were named")));
        }
        let digests = names.iter().map(|name| digest(name));
        let digests: Vec<_> = digests.collect::<Result<_, _>>()?;
        self.claim_for_build(build_id, names);
        with_pool(self.workshop(), move |pool| {
            let there = digests.into_iter().filter(|digest| pool.has_layer(digest));
            Ok(there.map(String::from).collect())
        })
        .await
    }

    /// One build, whether or not it is the newest of its name.
    ///
    /// # Errors
    /// Kind `Failed`.
    pub async fn build(&self, build_id: &str) -> Result<Option<HostTemplate>, HostError> {
        let found = build(self.workshop(), build_id).await?;
        if found.is_some() {
            return Ok(found.as_ref().map(told));
        }
        // Data directories of before builds had manifests of their own.
        let all = self.templates().await?;
        Ok(all.into_iter().find(|build| build.build_id == build_id))
    }

    /// Keeps a finished build. Of one that recipes have made, only its snapshot is noted.
    ///
    /// # Errors
    /// Kinds `TemplateMissing` when a layer is not here, and `Failed`.
    pub async fn put_build(&self, build: HostTemplate) -> Result<(), HostError> {
        let templates = self.templates().await?;
        let own = templates
            .into_iter()
            .find(|own| own.build_id == build.build_id);
        let Some(mut own) = own else {
            return self.write_build(build).await;
        };
        own.inherited.started = build.inherited.started;
        self.write_build(own).await?;
        self.templates().await.map(drop)
    }

    async fn write_build(&self, build: HostTemplate) -> Result<(), HostError> {
        let layers = digests(&build.layers)?;
        let build_id = build.build_id.clone();
        self.claim_for_build(&build_id, build.layers);
        let manifest = TemplateManifest {
            name: build.name,
            template_id: build.template_id,
            build_id: build.build_id,
            built_at: build.built_at,
            layers,
            cpu_count: build.cpu_count,
            memory_mib: build.memory_mib,
            disk_mib: build.disk_mib,
            default_user: build.default_user,
            default_workdir: build.default_workdir,
            inherited: Inherited {
                env: build.inherited.env,
                start_command: build.inherited.start_command,
                ready_command: build.inherited.ready_command,
                started: build.inherited.started,
            },
        };
        let kept = manifest.clone();
        with_pool(self.workshop(), move |pool| pool.put_build(&kept)).await?;
        self.renew_ahead(&manifest);
        self.claims().built(&build_id);
        Ok(())
    }

    fn claim_for_build(&self, build_id: &str, layers: impl IntoIterator<Item = String>) {
        self.claims().build(build_id, layers);
    }

    /// Forgets a build, and deletes its snapshot.
    ///
    /// # Errors
    /// Kinds `CannotSave` while the snapshot is being made, and `Failed`.
    pub async fn delete_build(&self, build_id: String) -> Result<(), HostError> {
        let known = build(self.workshop(), &build_id).await?;
        if let Some(started) = known.and_then(|build| build.inherited.started) {
            self.delete_snapshot(started).await?;
        }
        let forgotten = build_id.clone();
        with_pool(self.workshop(), move |pool| pool.delete_build(&forgotten)).await?;
        self.forget_ahead(&build_id);
        Ok(())
    }
}

/// A build that has a manifest of its own.
pub(crate) async fn build<R: Runtime>(
    workshop: Arc<Workshop<R>>,
    build_id: &str,
) -> Result<Option<TemplateManifest>, HostError> {
    let build_id = build_id.to_owned();
    with_pool(workshop, move |pool| match pool.build(&build_id) {
        // What cannot be a build's ID is none that is here.
        Err(PoolError::BadName { .. }) => Ok(None),
        other => other,
    })
    .await
}

/// What a step of a build begins from, as if it were a template.
pub(crate) fn manifest(request: &Create) -> Result<TemplateManifest, HostError> {
    if request.layers.len() > MOST_LAYERS {
        return Err(refused(format!(
            "a template has {MOST_LAYERS} layers at most, {} were asked for",
            request.layers.len()
        )));
    }
    Ok(TemplateManifest {
        name: String::new(),
        template_id: String::new(),
        build_id: request.build_id.clone(),
        built_at: 0,
        layers: digests(&request.layers)?,
        cpu_count: request.cpu_milli.div_ceil(1000),
        memory_mib: request.memory_mib,
        disk_mib: request.disk_mib,
        default_user: "root".to_owned(),
        default_workdir: "/".to_owned(),
        inherited: Inherited::default(),
    })
}

/// Whether a manifest is of [`manifest`]: what a sandbox of it writes becomes a layer.
pub(crate) fn is_of_step(manifest: &TemplateManifest) -> bool {
    manifest.name.is_empty() && manifest.template_id.is_empty()
}

/// A manifest in the words of the host RPC.
pub(crate) fn told(manifest: &TemplateManifest) -> HostTemplate {
    let layers = manifest.layers.iter();
    HostTemplate {
        name: manifest.name.clone(),
        template_id: manifest.template_id.clone(),
        build_id: manifest.build_id.clone(),
        built_at: manifest.built_at,
        layers: layers.map(|layer| layer.as_str().to_owned()).collect(),
        cpu_count: manifest.cpu_count,
        memory_mib: manifest.memory_mib,
        disk_mib: manifest.disk_mib,
        default_user: manifest.default_user.clone(),
        default_workdir: manifest.default_workdir.clone(),
        inherited: wire::Inherited {
            env: manifest.inherited.env.clone(),
            start_command: manifest.inherited.start_command.clone(),
            ready_command: manifest.inherited.ready_command.clone(),
            started: manifest.inherited.started.clone(),
        },
    }
}

async fn with_pool<R: Runtime, T: Send + 'static>(
    workshop: Arc<Workshop<R>>,
    call: impl FnOnce(&dyn Pool) -> Result<T, PoolError> + Send + 'static,
) -> Result<T, HostError> {
    let called = spawn_blocking(move || call(&*workshop.pool)).await;
    match called {
        Ok(result) => result.map_err(|error| HostError {
            kind: match error {
                PoolError::ReserveReached { .. } => HostErrorKind::NoCapacity,
                PoolError::LayerMissing { .. } => HostErrorKind::TemplateMissing,
                PoolError::UpperMissing { .. } => HostErrorKind::NotFound,
                PoolError::TooManyFiles { .. } => HostErrorKind::CannotSave,
                _ => HostErrorKind::Failed,
            },
            message: chain(&error),
        }),
        Err(error) => Err(refused(chain(&error))),
    }
}

fn digests(names: &[String]) -> Result<Vec<LayerDigest>, HostError> {
    names.iter().map(|name| digest(name)).collect()
}

fn digest(name: &str) -> Result<LayerDigest, HostError> {
    name.parse().map_err(|error| refused(chain(&error)))
}

fn refused(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message,
    }
}
