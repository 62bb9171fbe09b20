//! The digests of images. Those of memory are large: they are read in parts, on all processors.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a part; the digest of a file is that of its parts' digests.
const PART: u64 = 32 << 20;
/// More would wait for the disk.
const MOST_THREADS: usize = 8;

/// One file of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    #[error("failed to read `{path}`")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("its image `{0}` is missing")]
    Missing(String),
    #[error("there is an image `{0}` that its manifest does not name")]
    Surplus(String),
    #[error("its image `{name}` has {found} bytes and had {expected}")]
    Length {
        name: String,
        expected: u64,
        found: u64,
    },
    #[error("its image `{0}` was changed")]
    Changed(String),
}

/// All images of a folder, sorted by name. What CRIU only writes for people is none.
pub(super) fn all(folder: &Path) -> Result<Vec<ImageFile>, DigestError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.ends_with(".img") {
            let file = File::open(&path).map_err(unreadable(&path))?;
            let bytes = file.metadata().map_err(unreadable(&path))?.len();
            files.push((name.to_owned(), path, file, bytes));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(at, (.., bytes))| (0..bytes.div_ceil(PART)).map(move |part| (at, part)))
        .collect();
    let digests = hash(&parts, |(at, part), buffer| {
        let (_, path, file, bytes) = &files[at];
        part_of(file, part * PART, (*bytes).min((part + 1) * PART), buffer)
            .map_err(unreadable(path))
    })?;
    let mut whole: Vec<Sha256> = files.iter().map(|_| Sha256::new()).collect();
    for ((at, _), digest) in parts.iter().zip(digests) {
        whole[*at].update(digest);
    }
    let named = files.into_iter().zip(whole);
    Ok(named
        .map(|((name, _, _, bytes), whole)| ImageFile {
            name,
            bytes,
            sha256: hex::encode(whole.finalize()),
        })
        .collect())
}

/// Whether a folder has what it should have.
pub(super) fn compare(expected: &[ImageFile], found: &[ImageFile]) -> Result<(), DigestError> {
    for expected in expected {
        let name = || expected.name.clone();
        let Some(found) = found.iter().find(|found| found.name == expected.name) else {
            return Err(DigestError::Missing(name()));
        };
        if found.bytes != expected.bytes {
            return Err(DigestError::Length {
                name: name(),
                expected: expected.bytes,
                found: found.bytes,
            });
        }
        if found.sha256 != expected.sha256 {
            return Err(DigestError::Changed(name()));
        }
    }
    let surplus = found
        .iter()
        .find(|found| !expected.iter().any(|known| known.name == found.name));
    match surplus {
        Some(surplus) => Err(DigestError::Surplus(surplus.name.clone())),
        None => Ok(()),
    }
}

type PartDigest = [u8; 32];

/// Calls `one` for each part, on as many threads as are of use; the results are in the order of the parts.
fn hash(
    parts: &[(usize, u64)],
    one: impl Fn((usize, u64), &mut [u8]) -> Result<PartDigest, DigestError> + Sync,
) -> Result<Vec<PartDigest>, DigestError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // A thread costs more than to read a hundred small images.
    let large = parts.iter().filter(|(_, part)| *part > 0).count() + 1;
    let threads = processors.min(MOST_THREADS).min(large);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![PartDigest::default(); parts.len()]);
    let work = || -> Result<(), DigestError> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(at) else {
                return Ok(());
            };
            let digest = one(*part, &mut buffer)?;
            done.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)[at] = digest;
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let other = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(other);
        }
        result
    })?;
    Ok(done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn part_of(file: &File, from: u64, until: u64, buffer: &mut [u8]) -> io::Result<PartDigest> {
    let mut hash = Sha256::new();
    let mut at = from;
    while at < until {
        let wanted = usize::try_from(until - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        file.read_exact_at(&mut buffer[..wanted], at)?;
        hash.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hash.finalize().into())
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> DigestError {
    let path = path.to_owned();
    move |source| DigestError::Unreadable { path, source }
}
