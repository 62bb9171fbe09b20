//! What is in a template: the layers of one of its builds and the packages that are installed there.

use std::sync::Arc;

use soulbox_types::BuildId;

use crate::catalog::ResolveError;
use crate::control::Control;
use crate::spec::TemplateReference;
use crate::store::{BuildRow, TeamRow};

/// What is in one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Digests, lowest first.
    pub layers: Vec<String>,
    pub packages: Vec<Package>,
}

/// An installed package, as the programs inside tell of it: the author of the template decides what they say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub kind: PackageKind,
    pub name: String,
    pub version: String,
}

/// Who installed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackageKind {
    Debian,
    Python,
    Node,
}

/// Why nobody can say.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("nobody performs builds here")]
    NoBuilder,
    #[error("no host has the files of this template build")]
    Missing,
    #[error("the packages of build `{build_id}` could not be listed: {reason}")]
    Failed { build_id: BuildId, reason: String },
}

impl Control {
    /// The build that a team means, with its contents. Starts a sandbox for it.
    ///
    /// # Errors
    /// See [`ContentsError`].
    pub async fn contents(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<(Arc<BuildRow>, Contents), ContentsError> {
        let resolved = self.resolve(team, reference).await?;
        let builder = self.shared.builder.get().ok_or(ContentsError::NoBuilder)?;
        let build_id = &resolved.build.build_id;
        let contents = builder.contents(build_id).await.map_err(|reason| {
            let build_id = build_id.clone();
            ContentsError::Failed { build_id, reason }
        })?;
        let contents = contents.ok_or(ContentsError::Missing)?;
        Ok((resolved.build, contents))
    }
}
