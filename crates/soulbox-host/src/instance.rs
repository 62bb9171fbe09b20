//! Which installation of this host a data directory is. The number decides names and ranges of kernel objects, so it must stay with the data
//! directory as long as sandboxes of it run, also while no agent does.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use soulbox_runtime::identity::{INSTANCES, Instance};

use crate::record;

/// Where the claims of all installations of the host lie; gone after a reboot, as the sandboxes are.
const CLAIMS: &str = "/run/soulbox";

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("failed to {step} `{path}`")]
    File {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("all {INSTANCES} installations that a host can hold are in use")]
    Exhausted,
}

/// A number that is ours while this value lives, and stays ours while the data directory has records of sandboxes.
#[derive(Debug)]
pub struct InstanceClaim {
    instance: Instance,
    /// Locked (flock) while this lives.
    claim: File,
}

impl InstanceClaim {
    /// The number that `data` had before, else the first one that no other data directory needs.
    ///
    /// # Errors
    /// [`InstanceError::Exhausted`], or a file that cannot be used.
    pub fn take(data: &Path) -> Result<Self, InstanceError> {
        let data = data.canonicalize().map_err(failed("resolve", data))?;
        fs::create_dir_all(CLAIMS).map_err(failed("make", Path::new(CLAIMS)))?;
        let mut free = None;
        for instance in (0..INSTANCES).filter_map(Instance::new) {
            let path = Path::new(CLAIMS).join(format!("instance-{}", instance.number()));
            let mut claim = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed("open", &path))?;
            if flock(&claim, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue; // its agent runs
            }
            let mut owner = String::new();
            claim
                .read_to_string(&mut owner)
                .map_err(failed("read", &path))?;
            if Path::new(&owner) == data {
                return Ok(Self { instance, claim });
            }
            let abandoned = owner.is_empty() || !record::any(Path::new(&owner));
            if abandoned && free.is_none() {
                free = Some((instance, claim, path));
            }
        }
        let (instance, mut claim, path) = free.ok_or(InstanceError::Exhausted)?;
        claim
            .set_len(0)
            .and_then(|()| claim.rewind())
            .and_then(|()| claim.write_all(data.as_os_str().as_encoded_bytes()))
            .map_err(failed("write", &path))?;
        Ok(Self { instance, claim })
    }

    /// The number of `data` and nobody else's, if it has one; makes nothing.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn existing(data: &Path) -> Result<Option<Self>, InstanceError> {
        let data = data.canonicalize().map_err(failed("resolve", data))?;
        for instance in (0..INSTANCES).filter_map(Instance::new) {
            let path = Path::new(CLAIMS).join(format!("instance-{}", instance.number()));
            let mut claim = match File::options().read(true).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed("open", &path))?,
            };
            if flock(&claim, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue; // its agent runs
            }
            let mut owner = String::new();
            claim
                .read_to_string(&mut owner)
                .map_err(failed("read", &path))?;
            if Path::new(&owner) == data {
                return Ok(Some(Self { instance, claim }));
            }
        }
        Ok(None)
    }

    /// Gives the number back, for a host on which nothing of the installation is left.
    pub fn release(self) {
        let _ = self.claim.set_len(0);
    }

    /// The number.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::File { step, path, source }
}
