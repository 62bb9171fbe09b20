//! Images that were read a moment ago: of one that is begun from many times at once, or right after it was made, they are not read again.
//!
//! A write to one of them changes its length or the time of its last change. To change bytes and neither takes root, who has this
//! process. What a disk does to bytes by itself would not be seen: so it holds for a minute, in which they are mostly still in memory.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const HOLDS_FOR: Duration = Duration::from_secs(60);

/// Of each image by name: number, length, time of the last change.
pub(crate) type Stamps = HashMap<String, (u64, u64, i64, i64)>;

/// Folders whose images are what their manifests name.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<PathBuf, (Instant, Stamps)>>);

impl Known {
    /// What a folder's images are like now; nothing when they cannot be looked at. To be taken before they are read.
    pub(crate) fn stamps(images: &Path) -> Option<Stamps> {
        let mut stamps = Stamps::new();
        for entry in fs::read_dir(images).ok()? {
            let entry = entry.ok()?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.ends_with(".img") {
                let found = entry.metadata().ok()?;
                let stamp = (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
                stamps.insert(name, stamp);
            }
        }
        Some(stamps)
    }

    /// They were right when they had these stamps.
    pub(crate) fn note(&self, images: &Path, stamps: Stamps) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| at.elapsed() < HOLDS_FOR);
        known.insert(images.to_owned(), (Instant::now(), stamps));
    }

    /// Whether they were right a moment ago and have not changed.
    pub(crate) fn has(&self, images: &Path) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(images).is_some_and(|(at, stamps)| {
            at.elapsed() < HOLDS_FOR && Self::stamps(images).as_ref() == Some(stamps)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_to_is_not_known() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("pages-1.img"), "pages").expect("write");
        fs::write(path("dump.log"), "for people").expect("write");
        let known = Known::default();
        assert!(!known.has(folder.path()), "nobody has read it");
        let note = || known.note(folder.path(), Known::stamps(folder.path()).expect("stamps"));
        note();
        fs::write(path("dump.log"), "more for people").expect("write");
        assert!(known.has(folder.path()));
        fs::write(path("pages-1.img"), "Pages").expect("write");
        assert!(!known.has(folder.path()), "as long as before");
        note();
        fs::write(path("more.img"), "").expect("write");
        assert!(!known.has(folder.path()));
        note();
        fs::remove_file(path("more.img")).expect("delete");
        assert!(!known.has(folder.path()));
    }
}
