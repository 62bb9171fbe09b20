//! One agent a data directory.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow};
use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// Held for as long as it lives.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the lock of the data directory or says who has it.
    ///
    /// # Errors
    /// Another process has it.
    pub fn take(data: &Path) -> Result<Self, Failure> {
        let path = data.join("lock");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("failed to open `{}`", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::new(anyhow!(
                "another server uses data directory `{}`",
                data.display()
            ))
            .hint("stop it, or choose another directory with --data-dir"));
        }
        Ok(Self { _file: file })
    }
}
