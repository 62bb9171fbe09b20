//! Layers in the making.
//!
//! A draft is a subvolume under `drafts/`, locked with flock(2) by its maker, so that it is known to be abandoned as soon as
//! the maker is gone. Committing makes it durable, moves it to its digest's place, and makes it read-only, in this order:
//! what lies under `layers/` is always whole.
//!
//! A draft begins empty, or as what a sandbox has written: overlayfs's whiteouts and marks of an upper mean the same in a lower
//! layer, and no directory is walked for it but the topmost.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use soulbox_sys::btrfs::{self, Access};

use crate::PoolError;
use crate::layer::LayerDigest;
use crate::numbers::Counter;
use crate::upper::Upper;

/// What every start of a sandbox finds empty: runtime state, not files of a template.
const VOLATILE: [&str; 2] = ["run", "dev/shm"];

/// A layer that is being filled. Dropped without [`LayerDraft::commit`], it is deleted.
#[derive(Debug)]
pub struct LayerDraft {
    drafts: PathBuf,
    layers: PathBuf,
    counter: Counter,
    name: String,
    path: PathBuf,
    /// Holds the lock.
    directory: File,
    committed: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl LayerDraft {
    pub(crate) fn begin(drafts: &Path, layers: &Path, counter: Counter) -> Result<Self, PoolError> {
        Self::make(drafts, layers, counter, |parent, name, path| {
            btrfs::create_subvolume(parent.as_fd(), name)
                .map_err(PoolError::io("create subvolume", path))
        })
    }

    /// A draft with what an upper has at this moment. Whoever writes to the upper may go on: nothing of that gets into the draft.
    pub(crate) fn from_upper(
        drafts: &Path,
        layers: &Path,
        counter: Counter,
        upper: &Upper,
    ) -> Result<Self, PoolError> {
        let source = File::open(&upper.path).map_err(PoolError::io("open", &upper.path))?;
        let draft = Self::make(drafts, layers, counter, |parent, name, path| {
            btrfs::snapshot_subvolume(source.as_fd(), parent.as_fd(), name, Access::ReadWrite)
                .map_err(PoolError::io("make a snapshot at", path))
        })?;
        draft.unwrap_upper(upper)?;
        Ok(draft)
    }

    /// Makes the upper's `u` the root of the layer. Names below it are a guest's: no link is followed.
    fn unwrap_upper(&self, upper: &Upper) -> Result<(), PoolError> {
        let inner = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_owned();
            self.path.join(name)
        };
        let work = inner(upper.work_dir());
        fs::remove_dir_all(&work).map_err(PoolError::io("delete", &work))?;
        // A guest may have a `u` of its own in its root.
        let written = self.path.join(&self.name);
        fs::rename(inner(upper.upper_dir()), &written)
            .map_err(PoolError::io("move the files of", &upper.path))?;
        for place in VOLATILE {
            empty(&written, place)?;
        }
        for entry in fs::read_dir(&written).map_err(PoolError::io("list", &written))? {
            let entry = entry.map_err(PoolError::io("list", &written))?;
            let target = self.path.join(entry.file_name());
            fs::rename(entry.path(), &target).map_err(PoolError::io("move a file to", &target))?;
        }
        fs::remove_dir(&written).map_err(PoolError::io("delete", &written))
    }

    fn make(
        drafts: &Path,
        layers: &Path,
        counter: Counter,
        create: impl FnOnce(&File, &CStr, &Path) -> Result<(), PoolError>,
    ) -> Result<Self, PoolError> {
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
        let parent = unswept(drafts)?;
        create(&parent, &text(&name), &path)?;
        let directory = open_locked(&path)?;
        Ok(Self {
            drafts: drafts.to_owned(),
            layers: layers.to_owned(),
            counter,
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

    /// Lets files that are made from now on have numbers that those of no other layer have; for an empty draft. The first call in a pool
    /// takes 12 s.
    ///
    /// # Errors
    /// [`PoolError`] of a failed step.
    pub fn number_apart(&mut self) -> Result<(), PoolError> {
        let parent = unswept(&self.drafts)?;
        destroy(&self.drafts, &self.name)?;
        self.counter.begin(&parent, &text(&self.name))?;
        self.directory = open_locked(&self.path)?;
        Counter::forget_mark(&self.path)
    }

    /// Makes the layer durable and puts it in place; blocks until all of it is on disk. When a layer of that digest is there
    /// already, that one stays and this is deleted. Nothing may be mounted in it or write to it any more.
    pub fn commit(mut self, digest: &LayerDigest) -> Result<PathBuf, PoolError> {
        let target = self.layers.join(digest.as_str());
        if target.exists() {
            return Ok(target);
        }
        // Before the layer counts, so that no crash lets the next one have its numbers.
        self.counter.pass(&self.directory)?;
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

/// While it is open nobody sweeps: a draft that was made and is not locked yet is no left-over one.
fn unswept(drafts: &Path) -> Result<File, PoolError> {
    let directory = File::open(drafts).map_err(PoolError::io("open", drafts))?;
    flock(&directory, FlockOperation::LockShared).map_err(PoolError::io("lock", drafts))?;
    Ok(directory)
}

fn open_locked(draft: &Path) -> Result<File, PoolError> {
    let directory = File::open(draft).map_err(PoolError::io("open", draft))?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive)
        .map_err(PoolError::io("lock", draft))?;
    fs::set_permissions(draft, Permissions::from_mode(0o755))
        .map_err(PoolError::io("set the mode of", draft))?;
    Ok(directory)
}

/// Makes the layer read-only. btrfs refuses to rename a read-only subvolume, so a crash may come between: opening the pool repeats this.
pub(crate) fn seal(layer: &Path) -> Result<(), PoolError> {
    let directory = File::open(layer).map_err(PoolError::io("open", layer))?;
    btrfs::set_read_only(directory.as_fd()).map_err(PoolError::io("make read-only", layer))
}

/// Deletes the drafts whose makers are gone.
pub(crate) fn sweep(drafts: &Path) -> Result<(), PoolError> {
    let directory = File::open(drafts).map_err(PoolError::io("open", drafts))?;
    flock(&directory, FlockOperation::LockExclusive).map_err(PoolError::io("lock", drafts))?;
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

pub(crate) fn destroy(drafts: &Path, name: &str) -> Result<(), PoolError> {
    let parent = File::open(drafts).map_err(PoolError::io("open", drafts))?;
    match btrfs::destroy_subvolume(parent.as_fd(), &text(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PoolError::io("delete subvolume", drafts.join(name))(error))
        }
        _ => Ok(()),
    }
}

/// Deletes what is in the directory `place` below `root`, where it is one and no link leads to it.
fn empty(root: &Path, place: &str) -> Result<(), PoolError> {
    let mut path = root.to_owned();
    for part in Path::new(place) {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(PoolError::io("read", &path)(error)),
        }
    }
    for entry in fs::read_dir(&path).map_err(PoolError::io("list", &path))? {
        let entry = entry.map_err(PoolError::io("list", &path))?;
        let kind = entry.file_type().map_err(PoolError::io("read", &path))?;
        let deleted = if kind.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        deleted.map_err(PoolError::io("delete", entry.path()))?;
    }
    Ok(())
}

pub(crate) fn text(name: &str) -> CString {
    // Directory entries and our own numbers contain no NUL; an empty name is refused by the kernel.
    CString::new(name).unwrap_or_default()
}
