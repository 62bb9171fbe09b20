//! A data directory for tests on a real loop file; needs root and btrfs-progs.

use std::process::Command;

use soulbox_pool::{BtrfsPool, PoolOptions};
use soulbox_types::MiB;

/// A data directory whose pool is unmounted at the end, whatever happened.
pub struct Data(pub tempfile::TempDir);

impl Data {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    /// The pool, of 512 MiB.
    pub fn open(&self) -> BtrfsPool {
        let size = Some(MiB(512));
        BtrfsPool::open(self.0.path(), PoolOptions { size })
            .unwrap_or_else(|error| panic!("open the pool, which needs root: {error:?}"))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["--quiet", "--lazy"])
            .arg(self.0.path().join("pool"))
            .status();
    }
}
