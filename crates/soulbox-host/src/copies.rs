//! Sealed snapshots of a host: copies of snapshots as artifacts in a store, and local copies made of them again.
//!
//! A snapshot is here, in the store, or both. An artifact carries the mark of this installation, and in its note the manifest that the
//! snapshot has here, with a mark of its own: so what comes back is believed for the same reasons as what never left. Everything blocks.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Take, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use soulbox_archive::{Added, Archive, ArchiveError, Artifact, Collected, Stream};
use soulbox_pool::{PoolError, Snapshot, SnapshotPool};
use soulbox_types::MiB;
use soulbox_wire::host::{HostError, HostErrorKind, HostSnapshot, Sealed};

use crate::chain;
use crate::snapshot::{ImageFile, Key, Manifest, RefusedError};

const UPPER: &str = "upper";
const IMAGES: &str = "images";

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("this host has no store of sealed snapshots: `store` is not set")]
    NoStore,
    #[error("snapshot `{0}` is not sealed")]
    NotSealed(String),
    #[error("snapshot `{0}` was sealed as another one")]
    Differs(String),
    #[error("snapshot `{name}` is not used")]
    Refused {
        name: String,
        #[source]
        source: RefusedError,
    },
    #[error("the note of sealed snapshot `{name}` is damaged")]
    Note {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("sealed snapshot `{0}` does not have the memory that its manifest names")]
    Memory(String),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("failed to read the images of a snapshot")]
    Images(#[source] io::Error),
}

impl CopyError {
    /// Whether it is there and is not believed.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Differs(_) | Self::Refused { .. } | Self::Note { .. } | Self::Memory(_) => true,
            Self::Archive(error) => error.is_refusal(),
            _ => false,
        }
    }
}

impl From<CopyError> for HostError {
    fn from(error: CopyError) -> Self {
        let kind = match &error {
            CopyError::NoStore => HostErrorKind::Unsupported,
            CopyError::Pool(PoolError::SnapshotMissing { .. } | PoolError::BadName { .. }) => {
                HostErrorKind::SnapshotMissing
            }
            refused if refused.is_refusal() => HostErrorKind::SnapshotRefused,
            CopyError::Pool(
                PoolError::ReserveReached { .. } | PoolError::NoRoomForMemory { .. },
            ) => HostErrorKind::NoCapacity,
            _ => HostErrorKind::Failed,
        };
        Self {
            kind,
            message: chain(&error),
        }
    }
}

/// What an artifact says beside its streams.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    disk_bytes: u64,
    /// As the pool has it, with the mark.
    manifest: String,
}

/// The copies of a host's snapshots.
pub(crate) struct Copies {
    pool: Arc<dyn SnapshotPool>,
    key: Key,
    /// None: nothing is sealed here.
    archive: Option<Archive>,
    /// Snapshots of which a copy is being made or deleted.
    busy: Mutex<BTreeSet<String>>,
    changed: Condvar,
}

impl Copies {
    pub(crate) fn new(pool: Arc<dyn SnapshotPool>, key: Key, archive: Option<Archive>) -> Self {
        Self {
            pool,
            key,
            archive,
            busy: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Puts all of a local snapshot into the store, durably; what is there already is not stored again.
    pub(crate) fn seal(&self, name: &str) -> Result<Sealed, CopyError> {
        let archive = self.archive()?;
        let _alone = self.alone(name);
        let (snapshot, manifest) = self.local(name)?;
        if let Some(memory) = &manifest.memory {
            // What was damaged here stays where somebody may still look at it.
            memory
                .check(&snapshot.images)
                .map_err(|source| refused(name, source))?;
        }
        let _held = archive.hold()?;
        let mut sending = snapshot.send()?;
        let (upper, mut added) = archive.put_stream(&mut sending)?;
        sending.finish()?;
        let mut bytes = upper.bytes;
        let mut streams = vec![(UPPER.to_owned(), upper)];
        if let Some(memory) = &manifest.memory {
            let images = Joined::new(&snapshot.images, &memory.images);
            let (images, more) = archive.put_stream(images)?;
            added += more;
            bytes += images.bytes;
            streams.push((IMAGES.to_owned(), images));
        }
        let note = Note {
            disk_bytes: snapshot.disk_bytes,
            manifest: snapshot.manifest,
        };
        let note = serde_json::to_string(&note).map_err(|source| CopyError::Note {
            name: name.to_owned(),
            source,
        })?;
        let streams = streams.into_iter().collect();
        archive.put(name, &Artifact { note, streams })?;
        let Added {
            objects: added_objects,
            bytes: added_bytes,
        } = added;
        tracing::info!(
            snapshot_id = name,
            bytes,
            added_objects,
            added_bytes,
            "a snapshot was sealed"
        );
        Ok(Sealed {
            bytes,
            added_objects,
            added_bytes,
        })
    }

    /// The manifest of a sealed snapshot, if there is one of that name.
    pub(crate) fn sealed(&self, name: &str) -> Result<Option<Manifest>, CopyError> {
        let Some(archive) = &self.archive else {
            return Ok(None);
        };
        match archive.get(name) {
            Err(ArchiveError::ArtifactMissing { .. }) => Ok(None),
            other => self
                .opened(name, &other?)
                .map(|(.., manifest)| Some(manifest)),
        }
    }

    /// The local copy of a sealed snapshot, made of the store's when it is not there. Nothing of it is seen before all of it is right.
    pub(crate) fn fetch(&self, name: &str) -> Result<Snapshot, CopyError> {
        let archive = self.archive()?;
        let _alone = self.alone(name);
        match self.pool.snapshot(name) {
            Err(PoolError::SnapshotMissing { .. }) => {}
            // Somebody else was first.
            other => return Ok(other?),
        }
        let _held = archive.hold()?;
        let artifact = archive.get(name)?;
        let (note, manifest) = self.opened(name, &artifact)?;
        let images = manifest.memory.map(|memory| memory.images);
        self.room_for(stream(name, &artifact, UPPER)?.bytes)?;
        let mut draft = self.pool.begin_snapshot(name)?;
        if let Some(images) = images {
            let stream = stream(name, &artifact, IMAGES)?;
            let named: u64 = images.iter().map(|image| image.bytes).sum();
            if named != stream.bytes {
                return Err(CopyError::Memory(name.to_owned()));
            }
            self.pool.room_for_images(named)?;
            let mut writer = Split::new(draft.images(), images);
            archive.get_stream(stream, &mut writer)?;
            writer.finish().map_err(CopyError::Images)?;
        }
        let mut receiving = draft.receive()?;
        match archive.get_stream(stream(name, &artifact, UPPER)?, &mut receiving) {
            // It tells by itself why it took no more.
            Ok(()) | Err(ArchiveError::Sink(_)) => receiving.finish(note.disk_bytes)?,
            Err(error) => return Err(error.into()),
        }
        let snapshot = draft.commit(&note.manifest)?;
        tracing::info!(snapshot_id = name, "a sealed snapshot was fetched");
        Ok(snapshot)
    }

    /// Deletes the local copy of a snapshot when all of it is in the store: what is there is read for that.
    pub(crate) fn drop_local(&self, name: &str) -> Result<(), CopyError> {
        let archive = self.archive()?;
        let _alone = self.alone(name);
        let (snapshot, _) = self.local(name)?;
        let artifact = match archive.get(name) {
            Err(ArchiveError::ArtifactMissing { .. }) => {
                return Err(CopyError::NotSealed(name.to_owned()));
            }
            other => other?,
        };
        let (note, _) = self.opened(name, &artifact)?;
        if note.manifest != snapshot.manifest {
            return Err(CopyError::Differs(name.to_owned()));
        }
        archive.verify(name)?;
        Ok(self.pool.delete_snapshot(name)?)
    }

    /// Deletes all copies; chunks of a sealed one go with the next collection.
    pub(crate) fn delete(&self, name: &str) -> Result<(), CopyError> {
        let _alone = self.alone(name);
        match self.pool.delete_snapshot(name) {
            // What cannot be a snapshot's name is none that is here.
            Err(PoolError::BadName { .. }) => return Ok(()),
            other => other?,
        }
        if let Some(archive) = &self.archive {
            archive.delete(name)?;
        }
        Ok(())
    }

    /// Deletes what no sealed snapshot needs; with `dry_run` it only counts.
    pub(crate) fn collect(&self, dry_run: bool) -> Result<Collected, CopyError> {
        Ok(self.archive()?.collect(dry_run)?)
    }

    /// The names of all artifacts in the store, of other installations too; without a store none.
    pub(crate) fn artifacts(&self) -> Result<Vec<String>, CopyError> {
        match &self.archive {
            None => Ok(Vec::new()),
            Some(archive) => Ok(archive.names()?),
        }
    }

    /// What others are told of a sealed snapshot of this installation; what is not believed is not told of.
    pub(crate) fn told(&self, name: &str) -> Result<Option<HostSnapshot>, CopyError> {
        let Some(archive) = &self.archive else {
            return Ok(None);
        };
        let opened = archive
            .get(name)
            .map_err(CopyError::from)
            .and_then(|artifact| self.opened(name, &artifact));
        match opened {
            Ok((note, manifest)) => Ok(Some(manifest.told(note.disk_bytes))),
            Err(CopyError::Archive(ArchiveError::ArtifactMissing { .. })) => Ok(None),
            Err(CopyError::Archive(error)) if !error.is_refusal() => Err(error.into()),
            Err(error) => {
                tracing::debug!(snapshot_id = name, error = %chain(&error), "a sealed snapshot is not used");
                Ok(None)
            }
        }
    }

    fn archive(&self) -> Result<&Archive, CopyError> {
        self.archive.as_ref().ok_or(CopyError::NoStore)
    }

    fn local(&self, name: &str) -> Result<(Snapshot, Manifest), CopyError> {
        let snapshot = self.pool.snapshot(name)?;
        let manifest = self
            .key
            .open(&snapshot)
            .map_err(|source| refused(name, source))?;
        Ok((snapshot, manifest))
    }

    fn opened(&self, name: &str, artifact: &Artifact) -> Result<(Note, Manifest), CopyError> {
        let note: Note =
            serde_json::from_str(&artifact.note).map_err(|source| CopyError::Note {
                name: name.to_owned(),
                source,
            })?;
        let snapshot = Snapshot {
            name: name.to_owned(),
            images: PathBuf::new(),
            disk_bytes: note.disk_bytes,
            manifest: note.manifest.clone(),
        };
        let manifest = self
            .key
            .open(&snapshot)
            .map_err(|source| refused(name, source))?;
        Ok((note, manifest))
    }

    fn room_for(&self, bytes: u64) -> Result<(), CopyError> {
        let free = || -> Result<_, PoolError> {
            let info = self.pool.info()?;
            let reserve = MiB(info.reserve_bytes >> 20);
            let free = MiB(info.free_bytes >> 20);
            Ok((info.free_bytes >= info.reserve_bytes + bytes, free, reserve))
        };
        if free()?.0 {
            return Ok(());
        }
        self.pool.grow_if_low()?;
        match free()? {
            (true, ..) => Ok(()),
            (false, free, reserve) => Err(PoolError::ReserveReached { free, reserve }.into()),
        }
    }

    /// Waits until nobody makes or deletes a copy of that snapshot, and keeps others from it.
    fn alone(&self, name: &str) -> Alone<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(name.to_owned()) {
            busy = self
                .changed
                .wait(busy)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Alone {
            copies: self,
            name: name.to_owned(),
        }
    }
}

struct Alone<'copies> {
    copies: &'copies Copies,
    name: String,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let busy = self.copies.busy.lock();
        busy.unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
        self.copies.changed.notify_all();
    }
}

fn refused(name: &str, source: RefusedError) -> CopyError {
    CopyError::Refused {
        name: name.to_owned(),
        source,
    }
}

fn stream<'artifact>(
    name: &str,
    artifact: &'artifact Artifact,
    which: &str,
) -> Result<&'artifact Stream, CopyError> {
    artifact.streams.get(which).ok_or_else(|| {
        CopyError::Archive(ArchiveError::StreamMissing {
            name: name.to_owned(),
            stream: which.to_owned(),
        })
    })
}

/// Reads the images one after the other, each as long as it was when its digest was made.
struct Joined<'images> {
    folder: &'images Path,
    next: std::slice::Iter<'images, ImageFile>,
    open: Option<Take<File>>,
}

impl<'images> Joined<'images> {
    fn new(folder: &'images Path, images: &'images [ImageFile]) -> Self {
        Self {
            folder,
            next: images.iter(),
            open: None,
        }
    }
}

impl Read for Joined<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.open {
                let read = file.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
            }
            let Some(image) = self.next.next() else {
                return Ok(0);
            };
            let file = File::open(self.folder.join(&image.name))?;
            self.open = Some(file.take(image.bytes));
        }
    }
}

/// Takes the images one after the other and makes files of them.
struct Split {
    folder: PathBuf,
    next: std::vec::IntoIter<ImageFile>,
    /// The one that is being written, and what is still to come of it.
    open: Option<(File, u64)>,
}

impl Split {
    fn new(folder: PathBuf, images: Vec<ImageFile>) -> Self {
        Self {
            folder,
            next: images.into_iter(),
            open: None,
        }
    }

    /// Opens the next image that has bytes; those without are made on the way.
    fn advance(&mut self) -> io::Result<()> {
        while self.open.as_ref().is_none_or(|(_, left)| *left == 0) {
            let Some(image) = self.next.next() else {
                self.open = None;
                return Ok(());
            };
            // The manifest is ours; a name that leads elsewhere would be a mistake of ours.
            if Path::new(&image.name).file_name() != Some(image.name.as_ref()) {
                return Err(io::Error::other(format!(
                    "`{}` is no file name",
                    image.name
                )));
            }
            // As CRIU made it: some are opened by a CRIU that is already a user of the sandbox. Only root gets into the folder.
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(self.folder.join(&image.name))?;
            self.open = Some((file, image.bytes));
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.advance()?;
        match self.open {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Write for Split {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.advance()?;
        let Some((file, left)) = &mut self.open else {
            return Ok(0);
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX);
        let written = file.write(&bytes[..bytes.len().min(most)])?;
        *left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_joined_and_split_again() {
        let (from, to) = (
            tempfile::tempdir().expect("folder"),
            tempfile::tempdir().expect("folder"),
        );
        let images: Vec<ImageFile> = [("a", "first"), ("b", ""), ("c", "third one"), ("d", "")]
            .into_iter()
            .map(|(name, text)| {
                std::fs::write(from.path().join(name), text).expect("write");
                ImageFile {
                    name: name.to_owned(),
                    bytes: text.len() as u64,
                    sha256: String::new(),
                }
            })
            .collect();
        let mut bytes = Vec::new();
        Joined::new(from.path(), &images)
            .read_to_end(&mut bytes)
            .expect("read");
        assert_eq!(bytes, b"firstthird one");
        let mut split = Split::new(to.path().to_owned(), images.clone());
        split.write_all(&bytes).expect("write");
        split.finish().expect("all of them");
        for (name, text) in [("a", "first"), ("b", ""), ("c", "third one"), ("d", "")] {
            let found = std::fs::read_to_string(to.path().join(name)).expect(name);
            assert_eq!(found, text);
        }
        let again = tempfile::tempdir().expect("folder");
        let mut split = Split::new(again.path().to_owned(), images.clone());
        split.write_all(&bytes[..7]).expect("write");
        split.finish().expect_err("one is not whole");
        let mut outside = images;
        outside[0].name = "../a".to_owned();
        let mut split = Split::new(again.path().to_owned(), outside);
        split.write_all(&bytes).expect_err("not a name");
    }
}
