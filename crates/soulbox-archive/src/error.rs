//! Why the archive did not do it.

use std::io;
use std::path::PathBuf;

use crate::mark::MarkError;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("failed to {doing} `{path}`")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to {doing} `{object}` of the store")]
    Store {
        doing: &'static str,
        object: String,
        #[source]
        source: object_store::Error,
    },
    #[error("the store is in use: {0}")]
    Busy(&'static str),
    #[error("there is no sealed snapshot `{name}` in the store")]
    ArtifactMissing { name: String },
    #[error("sealed snapshot `{name}` is not believed")]
    NotOurs {
        name: String,
        #[source]
        source: MarkError,
    },
    #[error("sealed snapshot `{name}` is damaged")]
    ArtifactDamaged {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("sealed snapshot `{name}` has form {found}, this version knows {known}")]
    Version {
        name: String,
        found: u32,
        known: u32,
    },
    #[error("sealed snapshot `{name}` is that of `{found}`")]
    Misplaced { name: String, found: String },
    #[error("sealed snapshot `{name}` has no stream `{stream}`")]
    StreamMissing { name: String, stream: String },
    #[error("chunk {digest} is missing in the store")]
    ChunkMissing { digest: String },
    #[error("chunk {digest} was changed in the store")]
    ChunkDamaged { digest: String },
    #[error("the list of chunks {digest} does not fit its stream")]
    BadList { digest: String },
    #[error("failed to read what is to be stored")]
    Source(#[source] io::Error),
    #[error("failed to hand out what was stored")]
    Sink(#[source] io::Error),
    #[error("a thread that worked on chunks had panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl ArchiveError {
    /// Whether what is stored cannot be believed or is not whole, so that no second attempt helps.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotOurs { .. }
                | Self::ArtifactDamaged { .. }
                | Self::Version { .. }
                | Self::Misplaced { .. }
                | Self::StreamMissing { .. }
                | Self::ChunkMissing { .. }
                | Self::ChunkDamaged { .. }
                | Self::BadList { .. }
        )
    }

    /// For `map_err`: a failed step on a path.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source: source.into(),
        }
    }

    /// For `map_err`: a failed call of the store.
    pub(crate) fn store(
        doing: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(object_store::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Store {
            doing,
            object,
            source,
        }
    }
}
