//! Snapshots: what a sandbox had on disk at one moment, with room for the images of its memory.
//!
//! ```text
//! <data>/pool/snapshots/<name>/upper/      a read-only subvolume: the sandbox's upper
//!                              images/     files of whoever dumps its processes; a link where [`crate::memory`] has them
//!                              manifest    bytes of the caller's; there when all else is, and on disk
//! ```
//!
//! A draft is locked by its maker, and its images by whoever writes them, who may outlive the maker; one without manifest and locks is a
//! leftover. Extents that a snapshot shares stay charged to the
//! upper that first wrote them, so an upper made from a snapshot begins at what the snapshot had: see [`Snapshot::disk_bytes`].

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FlockOperation, flock, syncfs};
use serde::{Deserialize, Serialize};
use soulbox_sys::btrfs::{self, Access};

use soulbox_types::MiB;

use crate::memory::{self, Memory};
use crate::upper::{Upper, check_name};
use crate::{Pool, PoolError};

const UPPER: &std::ffi::CStr = c"upper";
const IMAGES: &str = "images";
const MANIFEST: &str = "manifest.json";

/// What the pool itself notes down with the caller's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Noted<'text> {
    disk_bytes: u64,
    #[serde(borrow)]
    manifest: std::borrow::Cow<'text, str>,
}

/// A whole snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub name: String,
    /// The folder of the images.
    pub images: PathBuf,
    /// Bytes that the upper had been charged for, those that it had from an earlier snapshot included.
    pub disk_bytes: u64,
    /// As it was committed.
    pub manifest: String,
}

/// A [`Pool`] that keeps what sandboxes were.
pub trait SnapshotPool: Pool {
    /// A new snapshot to fill.
    ///
    /// # Errors
    /// [`PoolError::ReserveReached`], [`PoolError::SnapshotExists`].
    fn begin_snapshot(&self, name: &str) -> Result<SnapshotDraft, PoolError>;

    /// Puts what the upper has now into the snapshot; milliseconds when [`SnapshotPool::settle`] came just before. `inherited` are the
    /// bytes of the snapshot that the upper was made from.
    ///
    /// # Errors
    /// [`PoolError::UpperMissing`], and failed steps.
    fn capture(
        &self,
        draft: &mut SnapshotDraft,
        upper: &str,
        inherited: u64,
    ) -> Result<(), PoolError>;

    /// Writes back what waits for it, so that a capture need not.
    ///
    /// # Errors
    /// The disk's.
    fn settle(&self) -> Result<(), PoolError>;

    /// The whole snapshot of that name.
    ///
    /// # Errors
    /// [`PoolError::SnapshotMissing`].
    fn snapshot(&self, name: &str) -> Result<Snapshot, PoolError>;

    /// The whole snapshots, sorted, but those whose manifests cannot be read: one that is damaged hides no other.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    fn list_snapshots(&self) -> Result<Vec<Snapshot>, PoolError>;

    /// Deletes a snapshot; uppers made from it stay as they are. One that does not exist is deleted already.
    ///
    /// # Errors
    /// Failed steps; what is left is no snapshot any more.
    fn delete_snapshot(&self, name: &str) -> Result<(), PoolError>;

    /// Whether so many bytes of images can be written, with something left for others.
    ///
    /// # Errors
    /// [`PoolError::NoRoomForMemory`].
    fn room_for_images(&self, bytes: u64) -> Result<(), PoolError>;

    /// Deletes the drafts that nobody fills any more.
    ///
    /// # Errors
    /// The first of those that could not be deleted; the others are gone.
    fn sweep_snapshots(&self) -> Result<(), PoolError>;

    /// Makes the upper `name` with what the snapshot has; it may grow to `quota`, the snapshot's part included.
    ///
    /// # Errors
    /// [`PoolError::SnapshotMissing`], [`PoolError::UpperExists`], [`PoolError::ReserveReached`], and failed steps, which leave nothing.
    fn create_upper_from(&self, snapshot: &str, name: &str, quota: MiB)
    -> Result<Upper, PoolError>;

    /// Where the images of one restore are put together, of links to the snapshot's; on the same file system, and not there yet.
    fn restore_folder(&self, snapshot: &Snapshot, name: &str) -> PathBuf;

    /// Deletes that folder; one that does not exist is deleted already.
    ///
    /// # Errors
    /// The file system's.
    fn delete_restore(&self, name: &str) -> Result<(), PoolError>;

    /// Deletes the folders of all restores, for when none is under way.
    ///
    /// # Errors
    /// The file system's.
    fn sweep_restores(&self) -> Result<(), PoolError>;
}

/// Where the snapshots of a pool lie.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) snapshots: PathBuf,
    /// Where new images lie, if not in the pool.
    pub(crate) memory: Option<Memory>,
}

/// A snapshot in the making. Dropped without [`SnapshotDraft::commit`], it is deleted.
#[derive(Debug)]
pub struct SnapshotDraft {
    places: Places,
    name: String,
    path: PathBuf,
    /// Holds the lock.
    directory: File,
    disk_bytes: Option<u64>,
    committed: bool,
}

impl SnapshotDraft {
    pub(crate) fn begin(places: Places, name: &str) -> Result<Self, PoolError> {
        check_name(name)?;
        let path = places.snapshots.join(name);
        let directory = loop {
            make_directory(&path)?;
            if let Some(directory) = lock_made(&path)? {
                break directory;
            }
        };
        let draft = Self {
            places,
            name: name.to_owned(),
            path,
            directory,
            disk_bytes: None,
            committed: false,
        };
        match &draft.places.memory {
            Some(memory) => memory.begin(name, &draft.images())?,
            None => make_directory(&draft.images())?,
        }
        Ok(draft)
    }

    /// The folder to put the images in; empty, 0700.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path.join(IMAGES)
    }

    /// Takes over what the upper has now. Nothing may write to it meanwhile, or it is in neither state.
    pub(crate) fn capture(&mut self, upper: &Path, disk_bytes: u64) -> Result<(), PoolError> {
        let source = File::open(upper).map_err(PoolError::io("open", upper))?;
        btrfs::snapshot_subvolume(
            source.as_fd(),
            self.directory.as_fd(),
            UPPER,
            Access::ReadOnly,
        )
        .map_err(PoolError::io("make a snapshot of", upper))?;
        self.disk_bytes = Some(disk_bytes);
        Ok(())
    }

    /// Where all of it lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.path
    }

    /// The upper has come from elsewhere.
    pub(crate) fn received(&mut self, disk_bytes: u64) -> Result<(), PoolError> {
        let upper = self.path.join("upper");
        if !upper.is_dir() {
            return Err(PoolError::NothingCaptured {
                name: self.name.clone(),
            });
        }
        self.disk_bytes = Some(disk_bytes);
        Ok(())
    }

    /// Makes it whole: when this returns, all of it is on disk.
    ///
    /// # Errors
    /// [`PoolError::NothingCaptured`], and failed steps; it is deleted then.
    pub fn commit(mut self, manifest: &str) -> Result<Snapshot, PoolError> {
        let Some(disk_bytes) = self.disk_bytes else {
            return Err(PoolError::NothingCaptured {
                name: self.name.clone(),
            });
        };
        let target = self.path.join(MANIFEST);
        let temporary = self.path.join("manifest.new");
        let noted = serde_json::to_vec(&Noted {
            disk_bytes,
            manifest: manifest.into(),
        })
        .map_err(|source| PoolError::BadManifest {
            path: target.clone(),
            source,
        })?;
        fs::write(&temporary, &noted).map_err(PoolError::io("write", &temporary))?;
        // Everything, and then that it counts: each wait for the disk is a wait of whoever stands still meanwhile.
        let images = self.images();
        thread::scope(|scope| {
            let elsewhere = self.places.memory.is_some();
            let persisting = elsewhere.then(|| scope.spawn(|| memory::persist(&images)));
            syncfs(&self.directory).map_err(PoolError::io("sync", &self.path))?;
            match persisting.map(thread::ScopedJoinHandle::join) {
                Some(Ok(persisted)) => persisted.map_err(PoolError::io("sync", &images)),
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                None => Ok(()),
            }
        })?;
        fs::rename(&temporary, &target)
            .and_then(|()| self.directory.sync_all())
            .map_err(PoolError::io("write", &target))?;
        self.committed = true;
        Ok(Snapshot {
            name: self.name.clone(),
            images: self.images(),
            disk_bytes,
            manifest: manifest.to_owned(),
        })
    }
}

impl Drop for SnapshotDraft {
    fn drop(&mut self) {
        if !self.committed {
            // What fails here is taken by a sweep, once the lock is gone.
            let _ = delete(&self.places, &self.name);
        }
    }
}

/// The whole snapshot of that name.
pub(crate) fn find(snapshots: &Path, name: &str) -> Result<Snapshot, PoolError> {
    check_name(name)?;
    let path = snapshots.join(name).join(MANIFEST);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PoolError::SnapshotMissing {
                name: name.to_owned(),
            });
        }
        other => other.map_err(PoolError::io("read", &path))?,
    };
    let noted: Noted<'_> =
        serde_json::from_slice(&text).map_err(|source| PoolError::BadManifest { path, source })?;
    Ok(Snapshot {
        name: name.to_owned(),
        images: snapshots.join(name).join(IMAGES),
        disk_bytes: noted.disk_bytes,
        manifest: noted.manifest.into_owned(),
    })
}

/// All whole ones that can be read, sorted by name.
pub(crate) fn list(snapshots: &Path) -> Result<Vec<Snapshot>, PoolError> {
    let mut found = Vec::new();
    for name in names(snapshots)? {
        match find(snapshots, &name) {
            // Without a manifest it is a draft; a damaged one tells nothing, and can be deleted by its name.
            Err(PoolError::SnapshotMissing { .. } | PoolError::BadManifest { .. }) => {}
            other => found.push(other?),
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Makes `upper` in the directory `uppers` a writable copy of what the snapshot has, with a new work directory.
pub(crate) fn spread(
    snapshots: &Path,
    name: &str,
    uppers: &Path,
    upper: &str,
) -> Result<(), PoolError> {
    find(snapshots, name)?;
    let text = check_name(upper)?;
    let source = snapshots.join(name).join("upper");
    let directory = File::open(&source).map_err(PoolError::io("open", &source))?;
    let parent = File::open(uppers).map_err(PoolError::io("open", uppers))?;
    btrfs::snapshot_subvolume(directory.as_fd(), parent.as_fd(), &text, Access::ReadWrite).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => PoolError::UpperExists {
                name: upper.to_owned(),
            },
            _ => PoolError::io("make a snapshot of", &source)(error),
        },
    )
}

/// Deletes a snapshot or what is left of one; one that does not exist is deleted already.
pub(crate) fn delete(places: &Places, name: &str) -> Result<(), PoolError> {
    check_name(name)?;
    let path = places.snapshots.join(name);
    let directory = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(PoolError::io("open", &path))?,
    };
    let failed = |error| PoolError::io("delete", &path)(error);
    // First the manifest: without it the rest is a leftover, whatever comes next.
    match fs::remove_file(path.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    match btrfs::destroy_subvolume(directory.as_fd(), UPPER) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    if let Some(memory) = &places.memory {
        memory.delete(name)?;
    }
    fs::remove_dir_all(&path).map_err(failed)
}

/// Deletes the drafts of which neither a maker nor a writer of images is left; the first error after having tried all.
pub(crate) fn sweep(places: &Places) -> Result<(), PoolError> {
    let Places { snapshots, memory } = places;
    let mut swept = memory.as_ref().map_or(Ok(()), |it| it.sweep(snapshots));
    for name in names(snapshots)? {
        let path = snapshots.join(&name);
        let free = |path: &Path| {
            let directory = File::open(path).ok()?;
            flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
            Some(directory)
        };
        let Some(_draft) = free(&path) else {
            continue;
        };
        let images = path.join(IMAGES);
        if (images.exists() && free(&images).is_none()) || path.join(MANIFEST).exists() {
            continue;
        }
        swept = swept.and(delete(places, &name));
    }
    swept
}

/// The lock of a new draft; none when a sweep took it for a leftover in the moment before.
fn lock_made(path: &Path) -> Result<Option<File>, PoolError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let directory = match File::open(path) {
        Err(error) if gone(&error) => return Ok(None),
        other => other.map_err(PoolError::io("open", path))?,
    };
    flock(&directory, FlockOperation::LockExclusive).map_err(PoolError::io("lock", path))?;
    match fs::metadata(path) {
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(PoolError::io("read", path)(error)),
        Ok(_) => Ok(Some(directory)),
    }
}

fn names(snapshots: &Path) -> Result<Vec<String>, PoolError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(snapshots).map_err(PoolError::io("list", snapshots))? {
        let entry = entry.map_err(PoolError::io("list", snapshots))?;
        if let Some(name) = entry.file_name().to_str()
            && check_name(name).is_ok()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn make_directory(path: &Path) -> Result<(), PoolError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PoolError::SnapshotExists {
                name: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            },
            _ => PoolError::io("create", path)(error),
        })
}
