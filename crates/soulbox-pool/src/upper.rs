//! Uppers: the writable part of one sandbox's root, a subvolume with a quota.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use soulbox_sys::btrfs;

use crate::PoolError;
use crate::numbers::Counter;
use crate::share::Share;

/// One upper. Dropping it does nothing: uppers outlive the process, [`crate::Pool::delete_upper`] ends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    pub name: String,
    /// The subvolume. Contains what a sandbox wrote, setuid files included: never enter it as a path, open it as a descriptor.
    pub path: PathBuf,
}

impl Upper {
    /// overlayfs's `upperdir`: 0755, root.
    #[must_use]
    pub fn upper_dir(&self) -> PathBuf {
        self.path.join("u")
    }

    /// overlayfs's `workdir`.
    #[must_use]
    pub fn work_dir(&self) -> PathBuf {
        self.path.join("w")
    }
}

/// A checked name, so that it is one component of a path and nothing else.
pub(crate) fn check_name(name: &str) -> Result<CString, PoolError> {
    let valid = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    match CString::new(name) {
        Ok(text) if valid => Ok(text),
        _ => Err(PoolError::BadName {
            what: "an upper",
            name: name.to_owned(),
        }),
    }
}

/// Makes an upper; from the counter, where it is for a layer.
pub(crate) fn create(
    uppers: &Path,
    name: &str,
    quota: Option<Share>,
    counter: Option<&Counter>,
) -> Result<Upper, PoolError> {
    let text = check_name(name)?;
    let upper = Upper {
        name: name.to_owned(),
        path: uppers.join(name),
    };
    let parent = File::open(uppers).map_err(PoolError::io("open", uppers))?;
    match counter {
        Some(counter) => counter.begin(&parent, &text)?,
        None => {
            btrfs::create_subvolume(parent.as_fd(), &text).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => PoolError::UpperExists {
                    name: name.to_owned(),
                },
                _ => PoolError::io("create subvolume", &upper.path)(error),
            })?;
        }
    }
    let furnished = furnish(&upper, quota).and_then(|()| match counter {
        // What was just made keeps its numbers.
        Some(_) => Counter::forget_mark(&upper.path),
        None => Ok(()),
    });
    if let Err(error) = furnished {
        // The first error tells why; a subvolume that stays is found by `list_uppers`.
        let _ = btrfs::destroy_subvolume(parent.as_fd(), &text);
        return Err(error);
    }
    Ok(upper)
}

/// overlayfs refuses a work directory that another overlay has used.
pub(crate) fn renew_work(upper: &Upper) -> Result<(), PoolError> {
    let work = upper.work_dir();
    fs::remove_dir_all(&work).map_err(PoolError::io("delete", &work))?;
    make_directories(&[work])
}

fn furnish(upper: &Upper, quota: Option<Share>) -> Result<(), PoolError> {
    make_directories(&[upper.upper_dir(), upper.work_dir()])?;
    match quota {
        Some(quota) => limit(upper, quota),
        None => Ok(()),
    }
}

pub(crate) fn make_directories(paths: &[PathBuf]) -> Result<(), PoolError> {
    for directory in paths {
        // The mode is set apart from mkdir(2), since the umask of the server is not ours to trust: a root of 0700 would lock out `user`.
        DirBuilder::new()
            .mode(0o755)
            .create(directory)
            .map_err(PoolError::io("create", directory))?;
        fs::set_permissions(directory, Permissions::from_mode(0o755))
            .map_err(PoolError::io("set the mode of", directory))?;
    }
    Ok(())
}

pub(crate) fn limit(upper: &Upper, share: Share) -> Result<(), PoolError> {
    let directory = open(upper)?;
    btrfs::limit_referenced(directory.as_fd(), share.now.bytes()).map_err(|source| {
        PoolError::SetQuota {
            name: upper.name.clone(),
            source,
        }
    })
}

pub(crate) fn open(upper: &Upper) -> Result<File, PoolError> {
    File::open(&upper.path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PoolError::UpperMissing {
            name: upper.name.clone(),
        },
        _ => PoolError::io("open", &upper.path)(error),
    })
}

pub(crate) fn delete(uppers: &Path, name: &str) -> Result<(), PoolError> {
    let text = check_name(name)?;
    let parent = File::open(uppers).map_err(PoolError::io("open", uppers))?;
    match btrfs::destroy_subvolume(parent.as_fd(), &text) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PoolError::io("delete subvolume", uppers.join(name))(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn list(uppers: &Path) -> Result<Vec<Upper>, PoolError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(uppers).map_err(PoolError::io("list", uppers))? {
        let entry = entry.map_err(PoolError::io("list", uppers))?;
        if let Some(name) = entry.file_name().to_str()
            && check_name(name).is_ok()
        {
            found.push(Upper {
                name: name.to_owned(),
                path: entry.path(),
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_plain_component() {
        assert!(check_name("i0abc-1").is_ok());
        for bad in ["", ".", "..", "a/b", "A", "a\0", &"a".repeat(65)] {
            assert!(
                matches!(check_name(bad), Err(PoolError::BadName { .. })),
                "{bad:?}"
            );
        }
    }
}
