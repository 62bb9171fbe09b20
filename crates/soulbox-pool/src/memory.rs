//! Where what sandboxes had in memory lies: on the data directory's own file system.
//!
//! ```text
//! <data>/memory/images/<name>/      what `snapshots/<name>/images` of the pool leads to
//!               restores/<name>/    links to images while a sandbox is made from them
//! ```
//!
//! A pool in a loop file would take every page twice, once for its own file system and once for that of the file, while a sandbox stands still.
//! Where the data directory is on btrfs itself, that is the pool's file system too, and there is no such folder.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use rustix::fs::{AtFlags, FlockOperation, flock, statat};
use rustix::io::Errno;
use soulbox_sys::writeback;

use crate::PoolError;

const FOLDER: &str = "memory";
/// Each waits for the disk; waits that come at the same time are one for it.
const PERSISTING_AT_ONCE: usize = 16;

/// The folder beside the pool.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    images: PathBuf,
    restores: PathBuf,
}

impl Memory {
    /// Makes what is missing of it in the data directory, for root alone.
    pub(crate) fn open(data: &Path) -> Result<Self, PoolError> {
        let root = data.join(FOLDER);
        let memory = Self {
            images: root.join("images"),
            restores: root.join("restores"),
        };
        for path in [&root, &memory.images, &memory.restores] {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(PoolError::io("create", path)(error));
                }
                _ => {}
            }
        }
        Ok(memory)
    }

    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    pub(crate) fn restores(&self) -> &Path {
        &self.restores
    }

    /// Makes an empty folder for the images of a new snapshot, and the link to it. The link is the first to come and, by
    /// [`Memory::delete`], the last to go: a folder without one is a leftover.
    pub(crate) fn begin(&self, name: &str, link: &Path) -> Result<(), PoolError> {
        // From `<data>/pool/snapshots/<name>`: a data directory may be moved.
        let target = Path::new("../../..").join(FOLDER).join("images").join(name);
        symlink(&target, link).map_err(PoolError::io("create", link))?;
        // Of a pool that is no more.
        self.delete(name)?;
        let folder = self.images.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(PoolError::io("create", folder))
    }

    /// Deletes the images of a snapshot, if it has any here.
    pub(crate) fn delete(&self, name: &str) -> Result<(), PoolError> {
        let folder = self.images.join(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PoolError::io("delete", folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes images of which there is no snapshot and no writer any more. Another thread or process may unmount the pool at any time, and
    /// what is not to be seen then is not gone: the folder of the snapshots stays open, so that it is asked and no other in its place.
    pub(crate) fn sweep(&self, snapshots: &Path) -> Result<(), PoolError> {
        let pool = File::open(snapshots).map_err(PoolError::io("open", snapshots))?;
        let mut swept = Ok(());
        let entries = fs::read_dir(&self.images).map_err(PoolError::io("list", &self.images))?;
        for entry in entries {
            let entry = entry.map_err(PoolError::io("list", &self.images))?;
            let name = entry.file_name();
            let is_written = File::open(entry.path())
                .is_ok_and(|it| flock(&it, FlockOperation::NonBlockingLockExclusive).is_err());
            if is_written {
                continue;
            }
            match statat(&pool, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => {}
                Err(Errno::NOENT) => swept = swept.and(self.delete(&name.to_string_lossy())),
                Err(error) => {
                    let path = snapshots.join(&name);
                    swept = swept.and(Err(PoolError::io("read", path)(io::Error::from(error))));
                }
            }
        }
        swept
    }
}

/// Has a folder of files and their names go to the disk; returns when all is there. Each file by itself: what others write to the same
/// file system is not waited for.
pub(crate) fn persist(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        // All of it is on its way before the first is waited for. What does not begin now begins then.
        let _ = writeback::begin(file.as_fd(), 0..u64::MAX >> 1);
        files.push(file);
    }
    let threads = files.len().min(PERSISTING_AT_ONCE);
    let left = Mutex::new(files.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> io::Result<()> {
        while let Some(file) = next() {
            file.sync_all()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        others.into_iter().fold(work(), |result, other| {
            let other = other.join();
            result.and(other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })?;
    File::open(folder)?.sync_all()?;
    let parent = folder.canonicalize()?;
    match parent.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
