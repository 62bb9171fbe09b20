//! Numbers of files.
//!
//! overlayfs shows the numbers that the files of its layers have as if one file system had given them, but each subvolume of btrfs counts
//! from 257. Two files of one root would have the same number, and `cp`, `mv` and `tar` would take them for one. So what is going to be a
//! layer counts from where all layers of the pool have ended: it begins as a snapshot of one subvolume, the *counter*, in which a file with
//! a number above all of theirs lies, and its own commit moves the counter up. Uppers that never become layers count from 257, and reach
//! the first layer's numbers only after half a million files.
//!
//! A number can only be reached by making files: 22 us each.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use soulbox_sys::btrfs::{self, Access};

use crate::PoolError;
use crate::draft;

/// The least number of a file of a layer.
const FIRST: u64 = 1 << 19;
/// How far one layer may move the counter; that takes 46 s, in which no other layer is committed.
const MOST: u64 = 1 << 21;
/// The file with the highest number of the counter. Snapshots of it count on from there.
const MARK: &str = "mark";

/// The counter of a pool.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    path: PathBuf,
    layers: PathBuf,
    drafts: PathBuf,
}

impl Counter {
    /// The counter of the pool at `root`, which need not be there yet.
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            path: root.join("numbers"),
            layers: root.join("layers"),
            drafts: root.join("drafts"),
        }
    }

    /// Makes `name` in `parent` a subvolume that is empty but for [`Self::forget_mark`] and counts from above all layers. The first call in
    /// a pool takes 12 s.
    pub(crate) fn begin(&self, parent: &File, name: &std::ffi::CStr) -> Result<(), PoolError> {
        self.ensure()?;
        let counter = self.open()?;
        btrfs::snapshot_subvolume(counter.as_fd(), parent.as_fd(), name, Access::ReadWrite)
            .map_err(PoolError::io("make a snapshot of", &self.path))
    }

    /// Deletes what a new subvolume has of the counter. Its numbers go on as long as it stays in use, or has a file that was made in it.
    pub(crate) fn forget_mark(subvolume: &Path) -> Result<(), PoolError> {
        let mark = subvolume.join(MARK);
        fs::remove_file(&mark).map_err(PoolError::io("delete", &mark))
    }

    /// Moves the counter above the files of a layer that is about to be committed. A pool without a counter has no layer that needs it.
    pub(crate) fn pass(&self, layer: &File) -> Result<(), PoolError> {
        if !self.path.join(MARK).exists() {
            return Ok(());
        }
        let counter = self.open()?;
        // Held for as long as one layer takes at most.
        flock(&counter, FlockOperation::LockExclusive)
            .map_err(PoolError::io("lock", &self.path))?;
        let (from, to) = (
            next(&counter).map_err(PoolError::io("count in", &self.path))?,
            next(layer).map_err(PoolError::io("count in", "a layer"))?,
        );
        if to.saturating_sub(from) > MOST {
            return Err(PoolError::TooManyFiles { most: MOST });
        }
        self.raise(&counter, to)
    }

    fn ensure(&self) -> Result<(), PoolError> {
        if self.path.join(MARK).exists() {
            return Ok(());
        }
        let name = draft::text("numbers");
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let parent = File::open(parent).map_err(PoolError::io("open", parent))?;
        match btrfs::create_subvolume(parent.as_fd(), &name) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PoolError::io("create subvolume", &self.path)(error));
            }
            _ => {}
        }
        let counter = self.open()?;
        flock(&counter, FlockOperation::LockExclusive)
            .map_err(PoolError::io("lock", &self.path))?;
        // Another process may have been first.
        if self.path.join(MARK).exists() {
            return Ok(());
        }
        let mut first = FIRST;
        for layer in fs::read_dir(&self.layers).map_err(PoolError::io("list", &self.layers))? {
            let layer = layer.map_err(PoolError::io("list", &self.layers))?.path();
            first = first.max(self.end_of(&layer)?);
        }
        self.raise(&counter, first)
    }

    /// A number above those of a layer that cannot be written to any more.
    fn end_of(&self, layer: &Path) -> Result<u64, PoolError> {
        let name = draft::text("numbers-of-a-layer");
        let layer = File::open(layer).map_err(PoolError::io("open", layer))?;
        let parent = File::open(&self.drafts).map_err(PoolError::io("open", &self.drafts))?;
        btrfs::snapshot_subvolume(layer.as_fd(), parent.as_fd(), &name, Access::ReadWrite)
            .map_err(PoolError::io("make a snapshot in", &self.drafts))?;
        let path = self.drafts.join("numbers-of-a-layer");
        let end = File::open(&path).and_then(|copy| next(&copy));
        // What stays is an abandoned draft.
        let _ = btrfs::destroy_subvolume(parent.as_fd(), &name);
        end.map_err(PoolError::io("count in", &path))
    }

    fn raise(&self, counter: &File, to: u64) -> Result<(), PoolError> {
        let failed = |error| PoolError::io("count in", &self.path)(error);
        while next(counter).map_err(failed)? < to {}
        // The new one is there before the old one goes, whenever this ends.
        let (new, mark) = (self.path.join("new"), self.path.join(MARK));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let made = OpenOptions::new().write(true).create_new(true).open(&new);
        made.and_then(|_| fs::rename(&new, &mark)).map_err(failed)
    }

    fn open(&self) -> Result<File, PoolError> {
        File::open(&self.path).map_err(PoolError::io("open", &self.path))
    }
}

/// Uses up the next number of a subvolume and returns it: it is above those of all files that are there.
fn next(subvolume: &File) -> io::Result<u64> {
    // A number is used up by each file, also one that never had a name.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = openat(subvolume, c".", flags, Mode::RUSR).and_then(fstat)?;
    Ok(made.st_ino)
}
