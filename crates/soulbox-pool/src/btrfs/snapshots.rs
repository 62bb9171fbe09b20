//! The pool's snapshots on btrfs.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::statfs;
use soulbox_types::MiB;

use super::{BtrfsPool, RESERVE_PERCENT};
use crate::share::Share;
use crate::snapshot::{self, Places, Snapshot, SnapshotDraft, SnapshotPool};
use crate::upper::{self, Upper};
use crate::{Pool, PoolError, Quota};

/// Of a large disk that much is kept for others than images, in bytes.
const MOST_KEPT: u64 = 1 << 30;

impl BtrfsPool {
    /// The folders of restores from images in the pool, and of those from images beside it.
    fn restores(&self) -> Vec<PathBuf> {
        let beside = self
            .memory
            .iter()
            .map(|memory| memory.restores().to_owned());
        [self.root.join("restores")]
            .into_iter()
            .chain(beside)
            .collect()
    }

    fn places(&self) -> Places {
        Places {
            snapshots: self.snapshots(),
            memory: self.memory.clone(),
        }
    }
}

impl SnapshotPool for BtrfsPool {
    fn begin_snapshot(&self, name: &str) -> Result<SnapshotDraft, PoolError> {
        self.reserve_ok()?;
        SnapshotDraft::begin(self.places(), name)
    }

    fn capture(
        &self,
        draft: &mut SnapshotDraft,
        upper: &str,
        inherited: u64,
    ) -> Result<(), PoolError> {
        self.spares.shared(upper);
        let (found, _) = self.find_upper(upper)?;
        let own = self.usage(upper).map_or(0, |usage| usage.bytes);
        draft.capture(&found.path, inherited + own)
    }

    fn settle(&self) -> Result<(), PoolError> {
        let directory = File::open(&self.root).map_err(PoolError::io("open", &self.root))?;
        rustix::fs::syncfs(&directory).map_err(PoolError::io("sync", &self.root))
    }

    fn snapshot(&self, name: &str) -> Result<Snapshot, PoolError> {
        snapshot::find(&self.snapshots(), name)
    }

    fn list_snapshots(&self) -> Result<Vec<Snapshot>, PoolError> {
        snapshot::list(&self.snapshots())
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), PoolError> {
        snapshot::delete(&self.places(), name)
    }

    fn room_for_images(&self, bytes: u64) -> Result<(), PoolError> {
        let folder = match &self.memory {
            Some(memory) => memory.images().to_owned(),
            None => self.snapshots(),
        };
        let stats = statfs(&folder).map_err(PoolError::io("measure", &folder))?;
        let block = u64::try_from(stats.f_bsize).unwrap_or(0);
        let kept = (stats.f_blocks * block / 100 * RESERVE_PERCENT).min(MOST_KEPT);
        let (free, wanted) = (stats.f_bavail * block, bytes.saturating_add(kept));
        if free < wanted {
            return Err(PoolError::NoRoomForMemory {
                free: MiB(free >> 20),
                wanted: MiB(wanted >> 20),
            });
        }
        Ok(())
    }

    fn sweep_snapshots(&self) -> Result<(), PoolError> {
        snapshot::sweep(&self.places())
    }

    fn create_upper_from(
        &self,
        snapshot: &str,
        name: &str,
        quota: MiB,
    ) -> Result<Upper, PoolError> {
        self.reserve_ok()?;
        let had = self.snapshot(snapshot)?.disk_bytes;
        snapshot::spread(&self.snapshots(), snapshot, &self.uppers(), name)?;
        let (upper, _) = self.find_upper(name)?;
        let left = quota.bytes().saturating_sub(had).max(MiB(1).bytes());
        let made = upper::renew_work(&upper).and_then(|()| match self.quota {
            Quota::Unavailable => Ok(()),
            _ => {
                let promised = MiB(left.div_ceil(1 << 20));
                self.limit(&upper, Share::of(promised, 0, &self.info()?))
            }
        });
        match made {
            Ok(()) => Ok(upper),
            Err(error) => {
                // The first error tells why; what stays is found by `list_uppers`.
                let _ = self.delete_upper(name);
                Err(error)
            }
        }
    }

    fn restore_folder(&self, snapshot: &Snapshot, name: &str) -> PathBuf {
        let restores = match &self.memory {
            // Those of an earlier version are in the pool.
            Some(memory) if snapshot.images.is_symlink() => memory.restores().to_owned(),
            _ => self.root.join("restores"),
        };
        restores.join(name)
    }

    fn delete_restore(&self, name: &str) -> Result<(), PoolError> {
        upper::check_name(name)?;
        for path in self.restores().into_iter().map(|it| it.join(name)) {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PoolError::io("delete", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn sweep_restores(&self) -> Result<(), PoolError> {
        for folder in self.restores() {
            for entry in fs::read_dir(&folder).map_err(PoolError::io("list", &folder))? {
                let entry = entry.map_err(PoolError::io("list", &folder))?;
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(PoolError::io("delete", &path))?;
            }
        }
        Ok(())
    }
}
