//! The pool's snapshots on btrfs.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use soulbox_types::MiB;

use super::BtrfsPool;
use crate::share::Share;
use crate::snapshot::{self, Snapshot, SnapshotDraft, SnapshotPool};
use crate::upper::{self, Upper};
use crate::{Pool, PoolError, Quota};

impl BtrfsPool {
    fn restores(&self) -> PathBuf {
        self.root.join("restores")
    }
}

impl SnapshotPool for BtrfsPool {
    fn begin_snapshot(&self, name: &str) -> Result<SnapshotDraft, PoolError> {
        self.reserve_ok()?;
        SnapshotDraft::begin(&self.snapshots(), name)
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
        snapshot::delete(&self.snapshots(), name)
    }

    fn sweep_snapshots(&self) -> Result<(), PoolError> {
        snapshot::sweep(&self.snapshots())
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

    fn restore_folder(&self, name: &str) -> PathBuf {
        self.restores().join(name)
    }

    fn delete_restore(&self, name: &str) -> Result<(), PoolError> {
        upper::check_name(name)?;
        let path = self.restore_folder(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PoolError::io("delete", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn sweep_restores(&self) -> Result<(), PoolError> {
        let folder = self.restores();
        for entry in fs::read_dir(&folder).map_err(PoolError::io("list", &folder))? {
            let entry = entry.map_err(PoolError::io("list", &folder))?;
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(PoolError::io("delete", &path))?;
        }
        Ok(())
    }
}
