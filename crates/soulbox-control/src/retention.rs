//! Versions of templates that nobody uses any more: they are deleted some time after the last tag has left them, and hosts forget them.
//!
//! Deleting and forgetting are two steps, of which a server may die between. So a deleted build stays on a list until its host has forgotten
//! it; that is tried again and again.

use async_trait::async_trait;
use soulbox_types::{BuildId, TemplateId, UnixMillis};
use tracing::{info, warn};

use crate::clock;
use crate::control::Control;
use crate::hosts::HostFailure;
use crate::store::StoreError;

/// A version that nobody uses any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedBuild {
    pub build_id: BuildId,
    pub template_id: TemplateId,
    /// When it failed, or its last tag left it.
    pub unused_since: UnixMillis,
}

/// Builds that go, and what is left of them on hosts.
///
/// # Errors
/// As for [`crate::Store`].
#[async_trait]
pub trait RetiredBuilds: Send + Sync + 'static {
    /// Builds that are over, that hold no tag, that no living sandbox and no snapshot stands on, and to which nothing of that has happened
    /// since a moment, but those that are listed. The longest unused first.
    async fn unused_builds(
        &self,
        unused_since: UnixMillis,
        but: &[BuildId],
    ) -> Result<Vec<UnusedBuild>, StoreError>;
    /// Deletes those builds, with their logs, and tells which they were.
    async fn retire_builds(
        &self,
        unused_since: UnixMillis,
        but: &[BuildId],
    ) -> Result<Vec<UnusedBuild>, StoreError>;
    /// Deleted builds, those of deleted templates too, that hosts may still know.
    async fn forgotten_builds(&self) -> Result<Vec<BuildId>, StoreError>;
    /// No host knows these any more.
    async fn builds_are_forgotten(&self, builds: &[BuildId]) -> Result<(), StoreError>;
}

impl Control {
    /// Deletes versions that have been without a tag for long, and lets the host forget what is deleted.
    pub(crate) async fn retire_builds(&self) {
        match self.retire().await {
            Ok(builds) if builds.is_empty() => {}
            Ok(builds) => {
                info!(
                    builds = builds.len(),
                    "deleted builds that have had no tag for long"
                );
                if let Err(failure) = self.reload_catalog().await {
                    warn!(error = %crate::chain(&failure), "failed to read the templates");
                }
            }
            Err(failure) => {
                warn!(error = %failure, "failed to delete builds that have no tag");
            }
        }
        self.forget_deleted().await;
    }

    async fn retire(&self) -> Result<Vec<UnusedBuild>, String> {
        let within = self.settings().command_within;
        let templates = tokio::time::timeout(within, self.hosts().templates())
            .await
            .unwrap_or_else(|_| Err(HostFailure::Unreachable("no answer in time".to_owned())))
            .map_err(|failure| crate::chain(&failure))?;
        // The newest of a recipe is the host's to offer, whatever tags say.
        let installed: Vec<_> = templates.into_iter().map(|it| it.build_id).collect();
        let kept = clock::millis(self.settings().keep_builds);
        let since = UnixMillis(clock::wall().0.saturating_sub(kept));
        let retired = self.store().retire_builds(since, &installed).await;
        retired.map_err(|failure| crate::chain(&failure))
    }

    /// What a host does not forget now it is asked to forget again the next time.
    pub(crate) async fn forget_deleted(&self) {
        let Some(builder) = self.shared.builder.get() else {
            return;
        };
        let done = async {
            let deleted = self.store().forgotten_builds().await?;
            if deleted.is_empty() {
                return Ok(());
            }
            let forgotten = builder.forget(&deleted).await;
            self.store().builds_are_forgotten(&forgotten).await
        };
        let done: Result<(), StoreError> = done.await;
        if let Err(failure) = done {
            warn!(error = %crate::chain(&failure), "failed to note which builds are forgotten");
        }
    }
}
