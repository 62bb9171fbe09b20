//! Subvolumes that wait for their next upper.
//!
//! Where quotas are on, the kernel commits the whole file system for every subvolume that is deleted: two milliseconds of a processor, and
//! whoever writes to the pool waits meanwhile. So the upper of a sandbox that wrote little is emptied instead, and becomes another's. Of the
//! first sandbox the second one gets nothing: all entries below the subvolume's root are gone, the two directories that overlayfs is given
//! are new ones, and no snapshot or layer has a part of it. What stays are the subvolume's counters of numbers of files, bounded by
//! [`HIGHEST_NUMBER`], and of bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use soulbox_sys::btrfs;

use crate::PoolError;
use crate::upper::{self, Upper};

/// More are not kept: a rush of kills, with no creates after it, is over with that.
const MOST: usize = 256;
/// An upper with more entries, or more bytes, is for the kernel to delete, in its own time.
const MOST_ENTRIES: usize = 64;
const MOST_BYTES: u64 = 1 << 20;
/// The kernel counts the files of a subvolume on, so a sandbox would see how many others came before it, and in the end numbers of layers.
const HIGHEST_NUMBER: u64 = 4096;

/// The spare subvolumes of one pool, as this process knows them.
#[derive(Debug)]
pub(crate) struct Spares {
    uppers: PathBuf,
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Uppers that began empty here and of which nothing else has a part.
    plain: HashSet<String>,
    /// Names in the folder.
    ready: Vec<String>,
}

/// Why an upper is not kept.
#[derive(Debug)]
enum NotKept {
    TooMuch,
    Failed,
}

impl From<rustix::io::Errno> for NotKept {
    fn from(_: rustix::io::Errno) -> Self {
        Self::Failed
    }
}

impl Spares {
    /// Deletes those of an earlier process. Those of another one that lives it then makes anew.
    pub(crate) fn open(uppers: PathBuf, folder: PathBuf) -> Result<Self, PoolError> {
        let parent = File::open(&folder).map_err(PoolError::io("open", &folder))?;
        for spare in upper::list(&folder)? {
            match btrfs::destroy_subvolume(parent.as_fd(), &upper::check_name(&spare.name)?) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PoolError::io("delete subvolume", spare.path)(error));
                }
                _ => {}
            }
        }
        Ok(Self {
            uppers,
            folder,
            state: Mutex::default(),
        })
    }

    /// An upper of that name with empty directories, without a limit of its own; `None` when there is no spare one.
    pub(crate) fn take(&self, name: &str) -> Option<Upper> {
        loop {
            let spare = self.lock().ready.pop()?;
            let upper = Upper {
                name: name.to_owned(),
                path: self.uppers.join(name),
            };
            // Fails when another process has opened the pool, and so deleted it.
            if fs::rename(self.folder.join(spare), &upper.path).is_ok() {
                return Some(upper);
            }
        }
    }

    /// The upper begins empty and is nobody else's.
    pub(crate) fn began(&self, name: &str) {
        self.lock().plain.insert(name.to_owned());
    }

    /// Something else has a part of the upper from now on.
    pub(crate) fn shared(&self, name: &str) {
        self.lock().plain.remove(name);
    }

    /// Empties an upper whose sandbox is gone and keeps its subvolume; otherwise it is to be deleted.
    pub(crate) fn keep(&self, name: &str) -> bool {
        {
            let mut state = self.lock();
            if !state.plain.remove(name) || state.ready.len() >= MOST {
                return false;
            }
        }
        let upper = Upper {
            name: name.to_owned(),
            path: self.uppers.join(name),
        };
        let kept = empty(&upper).is_ok() && fs::rename(&upper.path, self.folder.join(name)).is_ok();
        if kept {
            self.lock().ready.push(name.to_owned());
        }
        kept
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves nothing but the two directories, which are new.
fn empty(upper: &Upper) -> Result<(), NotKept> {
    let root = File::open(&upper.path).map_err(|_| NotKept::Failed)?;
    clear(&root.into(), &mut Allowance::default())?;
    upper::make_directories(&[upper.upper_dir(), upper.work_dir()]).map_err(|_| NotKept::Failed)?;
    let newest = fs::metadata(upper.work_dir()).map_err(|_| NotKept::Failed)?;
    if newest.ino() > HIGHEST_NUMBER {
        return Err(NotKept::TooMuch);
    }
    Ok(())
}

/// What was seen so far.
#[derive(Default)]
struct Allowance {
    entries: usize,
    bytes: u64,
}

/// Deletes all that is in a directory. A guest named these files and made these links: each is reached from its directory's descriptor,
/// and no link is followed.
fn clear(directory: &OwnedFd, seen: &mut Allowance) -> Result<(), NotKept> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        seen.entries += 1;
        seen.bytes += u64::try_from(found.st_blocks).unwrap_or(u64::MAX >> 10) * 512;
        if seen.entries > MOST_ENTRIES || seen.bytes > MOST_BYTES {
            return Err(NotKept::TooMuch);
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            clear(&openat(directory, name, flags, Mode::empty())?, seen)?;
            unlinkat(directory, name, AtFlags::REMOVEDIR)?;
        } else {
            unlinkat(directory, name, AtFlags::empty())?;
        }
    }
    Ok(())
}
