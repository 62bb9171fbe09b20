//! Layers in the making.
//!
//! A draft is a subvolume under `drafts/`, locked with flock(2) by its maker, so that it is known to be abandoned as soon as
//! the maker is gone. Committing makes it durable, moves it to its digest's place, and makes it read-only, in this order:
//! what lies under `layers/` is always whole.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use soulbox_sys::btrfs;

use crate::PoolError;
use crate::layer::LayerDigest;

/// A layer that is being filled. Dropped without [`LayerDraft::commit`], it is deleted.
#[derive(Debug)]
pub struct LayerDraft {
    drafts: PathBuf,
    layers: PathBuf,
    name: String,
    path: PathBuf,
    /// Holds the lock.
    directory: File,
    committed: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl LayerDraft {
    pub(crate) fn begin(drafts: &Path, layers: &Path) -> Result<Self, PoolError> {
        // Process numbers come again, so the time is part of the name.
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let name = format!(
            "{nanos}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = drafts.join(&name);
        let parent = File::open(drafts).map_err(PoolError::io("open", drafts))?;
        btrfs::create_subvolume(parent.as_fd(), &text(&name))
            .map_err(PoolError::io("create subvolume", &path))?;
        let directory = File::open(&path).map_err(PoolError::io("open", &path))?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)
            .map_err(PoolError::io("lock", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .map_err(PoolError::io("set the mode of", &path))?;
        Ok(Self {
            drafts: drafts.to_owned(),
            layers: layers.to_owned(),
            name,
            path,
            directory,
            committed: false,
        })
    }

    /// The empty directory to fill; it becomes the root directory of the layer.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the layer durable and puts it in place; blocks until all of it is on disk. When a layer of that digest is there
    /// already, that one stays and this is deleted. Nothing may be mounted in it or write to it any more.
    pub fn commit(mut self, digest: &LayerDigest) -> Result<PathBuf, PoolError> {
        let target = self.layers.join(digest.as_str());
        if target.exists() {
            return Ok(target);
        }
        rustix::fs::syncfs(&self.directory).map_err(PoolError::io("sync", &self.path))?;
        // A directory that is not empty cannot be replaced by a rename, so of two commits at once one wins.
        match fs::rename(&self.path, &target) {
            Ok(()) => self.committed = true,
            Err(_) if target.exists() => return Ok(target),
            Err(error) => return Err(PoolError::io("move a layer to", &target)(error)),
        }
        seal(&target)?;
        let layers = File::open(&self.layers).map_err(PoolError::io("open", &self.layers))?;
        layers
            .sync_all()
            .map_err(PoolError::io("sync", &self.layers))?;
        Ok(target)
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        if !self.committed {
            // What fails here is taken by the sweep of the next start, once the lock is gone.
            let _ = destroy(&self.drafts, &self.name);
        }
    }
}

/// Makes the layer read-only. btrfs refuses to rename a read-only subvolume, so a crash may come between: opening the pool repeats this.
pub(crate) fn seal(layer: &Path) -> Result<(), PoolError> {
    let directory = File::open(layer).map_err(PoolError::io("open", layer))?;
    btrfs::set_read_only(directory.as_fd()).map_err(PoolError::io("make read-only", layer))
}

/// Deletes the drafts whose makers are gone.
pub(crate) fn sweep(drafts: &Path) -> Result<(), PoolError> {
    for entry in fs::read_dir(drafts).map_err(PoolError::io("list", drafts))? {
        let entry = entry.map_err(PoolError::io("list", drafts))?;
        let Ok(directory) = File::open(entry.path()) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Some(name) = entry.file_name().to_str()
        {
            destroy(drafts, name)?;
        }
    }
    Ok(())
}

fn destroy(drafts: &Path, name: &str) -> Result<(), PoolError> {
    let parent = File::open(drafts).map_err(PoolError::io("open", drafts))?;
    match btrfs::destroy_subvolume(parent.as_fd(), &text(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PoolError::io("delete subvolume", drafts.join(name))(error))
        }
        _ => Ok(()),
    }
}

fn text(name: &str) -> CString {
    // Directory entries and our own numbers contain no NUL; an empty name is refused by the kernel.
    CString::new(name).unwrap_or_default()
}
