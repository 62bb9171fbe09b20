//! What a snapshot says of itself: a manifest, under a key of the installation.
//!
//! Images of processes are as good as root: who can write one can run anything on the host. So a snapshot is used only when its manifest
//! carries the mark of this installation's key, when every image is the very bytes that the manifest names, and when the host is like
//! the one that made it. The files of the disk are under no digest: they are a guest's, and a subvolume that nobody but root reaches.

mod digest;
mod fingerprint;
mod known;

use std::path::Path;

use serde::{Deserialize, Serialize};
use soulbox_archive::mark::{self, MarkError};
use soulbox_pool::Snapshot;
use soulbox_wire::host::{After, HostSnapshot};

use digest::Which;
pub use digest::{Begun, DigestError, Follower, ImageFile};
pub use fingerprint::Fingerprint;
pub(crate) use known::Known;

/// The form of the manifest; another one is refused.
const VERSION: u32 = 1;
/// What the key is derived for: it is used for nothing else.
const PURPOSE: &[u8] = b"soulbox snapshot manifest 1";

/// All that is needed to go on from a snapshot. Holds a secret, so the file is for root only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    pub snapshot_id: String,
    pub sandbox_id: String,
    pub epoch: u64,
    pub build_id: String,
    pub after: After,
    pub created_at: u64,
    /// Digests of the layers below, lowest first.
    pub layers: Vec<String>,
    pub default_user: String,
    pub default_workdir: String,
    /// Its processes, if they were saved.
    pub memory: Option<Memory>,
}

/// Saved processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Sorted by name, all of them.
    pub images: Vec<ImageFile>,
    /// Digest of the guest programs among them.
    pub guests: String,
    /// envd goes on knowing it.
    pub init_secret: String,
    pub fingerprint: Fingerprint,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum RefusedError {
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error("its manifest has form {0}, this version knows {VERSION}")]
    Version(u32),
    #[error("its manifest is that of snapshot {0}")]
    Misplaced(String),
    #[error(transparent)]
    Images(#[from] DigestError),
    #[error("{what} was `{then}` when it was made and is `{now}`")]
    OtherHost {
        what: &'static str,
        then: String,
        now: String,
    },
}

/// The key of an installation.
#[derive(Debug, Clone)]
pub struct Key(mark::Key);

impl Key {
    /// Derives it from the installation's secret.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        Self(mark::Key::derive(secret, PURPOSE))
    }

    /// The manifest and its mark, in one text.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn seal(&self, manifest: &Manifest) -> Result<String, serde_json::Error> {
        self.0.seal(serde_json::to_string(manifest)?)
    }

    /// The manifest of a snapshot, when it is this installation's and this snapshot's. Its images are not looked at.
    ///
    /// # Errors
    /// See [`RefusedError`].
    pub fn open(&self, snapshot: &Snapshot) -> Result<Manifest, RefusedError> {
        let text = self.0.open(&snapshot.manifest)?;
        // Before its form: another version may have other fields.
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let form: Form = serde_json::from_str(&text).map_err(MarkError::Damaged)?;
        if form.version != VERSION {
            return Err(RefusedError::Version(form.version));
        }
        let manifest: Manifest = serde_json::from_str(&text).map_err(MarkError::Damaged)?;
        if manifest.snapshot_id != snapshot.name {
            return Err(RefusedError::Misplaced(manifest.snapshot_id));
        }
        Ok(manifest)
    }
}

impl Manifest {
    /// Of a snapshot without memory.
    #[must_use]
    pub fn new(of: Subject, files: RootBasis) -> Self {
        Self {
            version: VERSION,
            snapshot_id: of.snapshot_id,
            sandbox_id: of.sandbox_id,
            epoch: of.epoch,
            build_id: of.build_id,
            after: of.after,
            created_at: of.created_at,
            layers: files.layers,
            default_user: files.default_user,
            default_workdir: files.default_workdir,
            memory: None,
        }
    }

    /// What others are told of it.
    #[must_use]
    pub fn told(&self, disk_bytes: u64) -> HostSnapshot {
        let images = self.memory.iter().flat_map(|memory| &memory.images);
        HostSnapshot {
            snapshot_id: self.snapshot_id.clone(),
            sandbox_id: self.sandbox_id.clone(),
            epoch: self.epoch,
            build_id: self.build_id.clone(),
            memory: self.memory.is_some(),
            after: self.after,
            created_at: self.created_at,
            disk_bytes,
            image_bytes: images.map(|image| image.bytes).sum(),
        }
    }
}

/// What a snapshot is of.
#[derive(Debug, Clone)]
pub struct Subject {
    pub snapshot_id: String,
    pub sandbox_id: String,
    pub epoch: u64,
    pub build_id: String,
    pub after: After,
    pub created_at: u64,
}

/// What a sandbox's root stands on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootBasis {
    /// Digests of the layers, lowest first.
    pub layers: Vec<String>,
    pub default_user: String,
    pub default_workdir: String,
}

impl Memory {
    /// Whether this host is like the one that made it.
    ///
    /// # Errors
    /// [`RefusedError::OtherHost`].
    pub fn fits(&self, here: &Fingerprint) -> Result<(), RefusedError> {
        self.fingerprint.compare(here)
    }

    /// Whether its images are what they were. Reads all of them.
    ///
    /// # Errors
    /// [`RefusedError::Images`].
    pub fn check(&self, images: &Path) -> Result<(), RefusedError> {
        self.check_only(images, Which::All)
    }

    /// The same of what CRIU reads to know what to make: all but the contents of memory, of which it looks only how much there is. For
    /// what is missing CRIU would wait until it is ended.
    ///
    /// # Errors
    /// [`RefusedError::Images`].
    pub fn check_processes(&self, images: &Path) -> Result<(), RefusedError> {
        let pages = self.images.iter().filter(|it| Which::Pages.has(&it.name));
        digest::compare_lengths(pages, images)?;
        self.check_only(images, Which::Others)
    }

    /// The same of the contents of memory.
    ///
    /// # Errors
    /// [`RefusedError::Images`].
    pub fn check_contents(&self, images: &Path) -> Result<(), RefusedError> {
        self.check_only(images, Which::Pages)
    }

    fn check_only(&self, images: &Path, which: Which) -> Result<(), RefusedError> {
        let found = digest::of(images, which, &Begun::default())?;
        let expected = self.images.iter().filter(|image| which.has(&image.name));
        Ok(digest::compare(expected, &found)?)
    }

    /// What lies in a folder of images now, of which some may have been read already.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(
        images: &Path,
        begun: &Begun,
        guests: String,
        init_secret: String,
        fingerprint: Fingerprint,
    ) -> Result<Self, DigestError> {
        Ok(Self {
            images: digest::of(images, Which::All, begun)?,
            guests,
            init_secret,
            fingerprint,
        })
    }
}

#[cfg(test)]
mod tests;
