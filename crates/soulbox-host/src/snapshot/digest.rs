//! The digests of images. Those of memory are large: they are read in parts, on all processors, and while they are still being written.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use soulbox_sys::writeback;

/// Bytes of a part; the digest of a file is that of its parts' digests.
const PART: u64 = 32 << 20;
/// More would wait for the disk.
const MOST_THREADS: usize = 8;
/// What is read at once.
const BUFFER: usize = 256 << 10;
/// How much is sent to the disk at once while more is being written.
const WRITTEN_AT_ONCE: u64 = 8 << 20;
/// How often it is looked whether an image has grown.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// Contents of memory: nobody reads more out of them than bytes to put into a process, and they are nearly all that there is to read.
const PAGES: &str = "pages-";

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

/// Which images of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// What is in memory.
    Pages,
    /// What the processes are.
    Others,
    All,
}

impl Which {
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Self::Pages => name.starts_with(PAGES),
            Self::Others => !name.starts_with(PAGES),
            Self::All => true,
        }
    }
}

/// Images of a folder, sorted by name. What CRIU only writes for people is none. Those of memory may have been `begun`.
pub(super) fn of(
    folder: &Path,
    which: Which,
    begun: &Begun,
) -> Result<Vec<ImageFile>, DigestError> {
    let mut files = Vec::new();
    for (name, path) in named(folder, which)? {
        let file = File::open(&path).map_err(unreadable(&path))?;
        let bytes = file.metadata().map_err(unreadable(&path))?.len();
        files.push((name, path, file, bytes));
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(at, (.., bytes))| (0..bytes.div_ceil(PART)).map(move |part| (at, part)))
        .collect();
    let digests = hash(&parts, |(at, part), buffer| {
        let (name, path, file, bytes) = &files[at];
        let mut reading = begun.part(name, part);
        reading
            .read(file, (*bytes).min((part + 1) * PART), buffer)
            .map_err(unreadable(path))?;
        Ok(reading.hash.finalize().into())
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

fn named(folder: &Path, which: Which) -> Result<Vec<(String, PathBuf)>, DigestError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.ends_with(".img") && which.has(name) {
            found.push((name.to_owned(), path));
        }
    }
    Ok(found)
}

/// A part of a file, read up to there.
#[derive(Debug, Clone)]
struct Reading {
    hash: Sha256,
    at: u64,
}

impl Reading {
    fn of_part(part: u64) -> Self {
        Self {
            hash: Sha256::new(),
            at: part * PART,
        }
    }

    fn read(&mut self, file: &File, until: u64, buffer: &mut [u8]) -> io::Result<()> {
        while self.at < until {
            let wanted = usize::try_from(until - self.at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            file.read_exact_at(&mut buffer[..wanted], self.at)?;
            self.hash.update(&buffer[..wanted]);
            self.at += wanted as u64;
        }
        Ok(())
    }
}

/// What was read of images while they were written: of each by name, its parts in their order.
#[derive(Debug, Default)]
pub struct Begun(HashMap<String, Vec<Reading>>);

impl Begun {
    /// How much was read.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        let read = self.0.values().filter_map(|parts| parts.last());
        read.map(|part| part.at).sum()
    }

    fn part(&self, name: &str, part: u64) -> Reading {
        let parts = self.0.get(name);
        let begun = parts.and_then(|parts| parts.get(usize::try_from(part).ok()?));
        begun.cloned().unwrap_or_else(|| Reading::of_part(part))
    }
}

/// A thread that reads images of memory behind whoever writes them, and has them go to the disk. They only grow: CRIU writes each from its
/// begin to its end.
#[derive(Debug)]
pub struct Follower {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Begun>>,
}

impl Follower {
    /// Begins to follow what is written into `folder`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(folder: PathBuf) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let thread = thread::Builder::new()
            .name("images".to_owned())
            .spawn(move || follow(&folder, &is_over))?;
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// What it has read by now.
    #[must_use]
    pub fn end(mut self) -> Begun {
        self.stop()
    }

    fn stop(&mut self) -> Begun {
        self.over.store(true, Ordering::SeqCst);
        let thread = self.thread.take();
        // What it has not read is read by whoever wants the digests.
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

fn follow(folder: &Path, over: &AtomicBool) -> Begun {
    let mut begun = Begun::default();
    let mut open: HashMap<String, File> = HashMap::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        for (name, path) in named(folder, Which::Pages).unwrap_or_default() {
            if !open.contains_key(&name)
                && let Ok(file) = File::open(&path)
            {
                open.insert(name.clone(), file);
            }
            let Some(file) = open.get(&name) else {
                continue;
            };
            let bytes = file.metadata().map_or(0, |found| found.len());
            let parts = begun.0.entry(name).or_default();
            while read_on(parts, file, bytes, &mut buffer) {
                let at = parts.last().map_or(0, |part| part.at);
                if at.is_multiple_of(WRITTEN_AT_ONCE) {
                    // What does not begin now is written by whoever makes all of it durable.
                    let _ = writeback::begin(file.as_fd(), at - WRITTEN_AT_ONCE..at);
                }
                if over.load(Ordering::SeqCst) {
                    return begun;
                }
            }
        }
        if over.load(Ordering::SeqCst) {
            return begun;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Reads one more buffer of a file that has so many bytes; false when there is less, or it cannot be read.
fn read_on(parts: &mut Vec<Reading>, file: &File, bytes: u64, buffer: &mut [u8]) -> bool {
    let at = parts.last().map_or(0, |part| part.at);
    let until = at + buffer.len() as u64;
    if until > bytes {
        return false;
    }
    if at == parts.len() as u64 * PART {
        parts.push(Reading::of_part(parts.len() as u64));
    }
    let part = parts.last_mut();
    part.is_some_and(|part| part.read(file, until, buffer).is_ok())
}

/// Whether a folder has what it should have.
pub(super) fn compare<'images>(
    expected: impl Iterator<Item = &'images ImageFile> + Clone,
    found: &[ImageFile],
) -> Result<(), DigestError> {
    for expected in expected.clone() {
        let name = || expected.name.clone();
        let Some(found) = found.iter().find(|found| found.name == expected.name) else {
            return Err(DigestError::Missing(name()));
        };
        same_length(expected, found.bytes)?;
        if found.sha256 != expected.sha256 {
            return Err(DigestError::Changed(name()));
        }
    }
    let surplus = found
        .iter()
        .find(|found| !expected.clone().any(|known| known.name == found.name));
    match surplus {
        Some(surplus) => Err(DigestError::Surplus(surplus.name.clone())),
        None => Ok(()),
    }
}

/// Looks only whether `expected` are there and as long as they were.
pub(super) fn compare_lengths<'images>(
    expected: impl Iterator<Item = &'images ImageFile>,
    folder: &Path,
) -> Result<(), DigestError> {
    for expected in expected {
        let path = folder.join(&expected.name);
        match path.metadata() {
            Ok(found) => same_length(expected, found.len())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DigestError::Missing(expected.name.clone()));
            }
            Err(source) => return Err(DigestError::Unreadable { path, source }),
        }
    }
    Ok(())
}

fn same_length(expected: &ImageFile, found: u64) -> Result<(), DigestError> {
    if found == expected.bytes {
        return Ok(());
    }
    Err(DigestError::Length {
        name: expected.name.clone(),
        expected: expected.bytes,
        found,
    })
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
        let mut buffer = vec![0; BUFFER];
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

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> DigestError {
    let path = path.to_owned();
    move |source| DigestError::Unreadable { path, source }
}
