//! A stream cut into chunks and put together again.

use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use fastcdc::v2020::{Error as CutError, StreamCDC};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::ArchiveError;

/// Bytes of a chunk. Smaller ones find more that is equal in memory that has changed here and there, and cost more objects; the figures
/// are in docs/pause.md.
const LEAST: usize = 4 << 10;
const AVERAGE: usize = 16 << 10;
const MOST: usize = 64 << 10;
/// Chunks that are worked on at once; bounds the memory of a seal to a few MiB.
const UNDER_WAY: usize = 64;
/// More costs more time than it saves bytes.
const COMPRESSION: i32 = 1;
const FOLDER: &str = "chunks";
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes of a chunk's entry in a list: digest, length as little endian.
const ENTRY: usize = DIGEST + 4;

type Digest = [u8; DIGEST];

/// A stream in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    pub bytes: u64,
    pub chunks: u64,
    /// Hex digest of the list of its chunks.
    list: String,
}

/// What storing something has added to the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    pub objects: u64,
    /// As stored, so compressed.
    pub bytes: u64,
}

impl std::ops::AddAssign for Added {
    fn add_assign(&mut self, more: Self) {
        self.objects += more.objects;
        self.bytes += more.bytes;
    }
}

/// The chunks of a store.
#[derive(Debug, Clone)]
pub(crate) struct Chunks {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
}

/// A chunk of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    digest: Digest,
    length: u32,
}

impl Chunks {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, runtime: Handle) -> Self {
        Self { store, runtime }
    }

    /// Stores a stream; what is there already and intact is not written again.
    pub(crate) fn put(&self, source: impl Read) -> Result<(Stream, Added), ArchiveError> {
        let mut under_way: VecDeque<JoinHandle<_>> = VecDeque::new();
        let (mut list, mut bytes, mut added) = (Vec::new(), 0, Added::default());
        let mut take = |finished: JoinHandle<Result<(Entry, Added), ArchiveError>>| {
            let (entry, more) = self
                .runtime
                .block_on(finished)
                .map_err(ArchiveError::Panicked)??;
            list.extend_from_slice(&entry.digest);
            list.extend_from_slice(&entry.length.to_le_bytes());
            bytes += u64::from(entry.length);
            added += more;
            Ok(())
        };
        for chunk in StreamCDC::new(source, LEAST, AVERAGE, MOST) {
            let data = chunk.map_err(cut_error)?.data;
            let chunks = self.clone();
            under_way.push_back(self.runtime.spawn_blocking(move || chunks.keep(data)));
            if under_way.len() == UNDER_WAY
                && let Some(finished) = under_way.pop_front()
            {
                take(finished)?;
            }
        }
        under_way.into_iter().try_for_each(&mut take)?;
        let chunks = (list.len() / ENTRY) as u64;
        let (entry, more) = self.keep(list)?;
        added += more;
        let list = hex::encode(entry.digest);
        Ok((
            Stream {
                bytes,
                chunks,
                list,
            },
            added,
        ))
    }

    /// Writes a stream's bytes to `sink`, each chunk when it is known to be right.
    pub(crate) fn get(&self, stream: &Stream, sink: &mut dyn Write) -> Result<(), ArchiveError> {
        let mut under_way: VecDeque<JoinHandle<_>> = VecDeque::new();
        let mut take = |finished: JoinHandle<Result<Vec<u8>, ArchiveError>>| {
            let data = self
                .runtime
                .block_on(finished)
                .map_err(ArchiveError::Panicked)??;
            sink.write_all(&data).map_err(ArchiveError::Sink)
        };
        for entry in self.entries(stream)? {
            let chunks = self.clone();
            under_way.push_back(self.runtime.spawn_blocking(move || chunks.fetch(&entry)));
            if under_way.len() == UNDER_WAY
                && let Some(finished) = under_way.pop_front()
            {
                take(finished)?;
            }
        }
        under_way.into_iter().try_for_each(take)
    }

    /// Adds the digests of all objects that a stream needs.
    pub(crate) fn name_all(
        &self,
        stream: &Stream,
        digests: &mut BTreeSet<String>,
    ) -> Result<(), ArchiveError> {
        let entries = self.entries(stream)?;
        digests.extend(entries.iter().map(|entry| hex::encode(entry.digest)));
        digests.insert(stream.list.clone());
        Ok(())
    }

    /// Deletes all objects but those; with `dry_run` it only counts. Returns what was kept and what was deleted.
    pub(crate) fn keep_only(
        &self,
        digests: &BTreeSet<String>,
        dry_run: bool,
    ) -> Result<(Added, Added), ArchiveError> {
        let folder = Path::from(FOLDER);
        self.runtime.block_on(async {
            let failed = || ArchiveError::store("list", &folder);
            let (mut kept, mut deleted) = (Added::default(), Added::default());
            let mut listed = self.store.list(Some(&folder));
            while let Some(object) = listed.try_next().await.map_err(failed())? {
                let one = Added {
                    objects: 1,
                    bytes: object.size,
                };
                if object
                    .location
                    .filename()
                    .is_some_and(|name| digests.contains(name))
                {
                    kept += one;
                    continue;
                }
                deleted += one;
                if !dry_run {
                    let failed = ArchiveError::store("delete", &object.location);
                    self.store.delete(&object.location).await.map_err(failed)?;
                }
            }
            Ok((kept, deleted))
        })
    }

    /// The list of a stream's chunks, known to be right and of the stream's size.
    fn entries(&self, stream: &Stream) -> Result<Vec<Entry>, ArchiveError> {
        let bad = || ArchiveError::BadList {
            digest: stream.list.clone(),
        };
        // All chunks but the last are of some size, so that a false number of them cannot ask for much memory.
        if stream.chunks > stream.bytes / LEAST as u64 + 1 {
            return Err(bad());
        }
        let mut digest = Digest::default();
        hex::decode_to_slice(&stream.list, &mut digest).map_err(|_| bad())?;
        let length = u32::try_from(stream.chunks * ENTRY as u64).map_err(|_| bad())?;
        let list = self.fetch(&Entry { digest, length })?;
        let entries = list.chunks_exact(ENTRY).map(|entry| {
            let (digest, length) = entry.split_at(DIGEST);
            Some(Entry {
                digest: digest.try_into().ok()?,
                length: u32::from_le_bytes(length.try_into().ok()?),
            })
        });
        let entries: Vec<Entry> = entries.collect::<Option<_>>().ok_or_else(bad)?;
        let sum: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
        if sum != stream.bytes || entries.iter().any(|entry| entry.length as usize > MOST) {
            return Err(bad());
        }
        Ok(entries)
    }

    /// Stores one object, unless it is there and intact: one that was damaged is made whole by this.
    fn keep(&self, data: Vec<u8>) -> Result<(Entry, Added), ArchiveError> {
        let digest = Sha256::digest(&data).into();
        // The list of four terabytes is as long.
        let length = u32::try_from(data.len()).map_err(|_| ArchiveError::BadList {
            digest: hex::encode(digest),
        })?;
        let entry = Entry { digest, length };
        match self.fetch(&entry) {
            Ok(_) => return Ok((entry, Added::default())),
            Err(ArchiveError::ChunkMissing { .. } | ArchiveError::ChunkDamaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let packed = zstd::bulk::compress(&data, COMPRESSION).map_err(ArchiveError::Source)?;
        let added = Added {
            objects: 1,
            bytes: packed.len() as u64,
        };
        let place = place(&digest);
        self.runtime
            .block_on(self.store.put(&place, packed.into()))
            .map_err(ArchiveError::store("write", &place))?;
        Ok((entry, added))
    }

    /// One object's content, which is what its name says.
    fn fetch(&self, entry: &Entry) -> Result<Vec<u8>, ArchiveError> {
        let place = place(&entry.digest);
        let digest = || hex::encode(entry.digest);
        let damaged = || ArchiveError::ChunkDamaged { digest: digest() };
        let length = entry.length as usize;
        let packed: Bytes = self.runtime.block_on(async {
            let found = match self.store.get(&place).await {
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(ArchiveError::ChunkMissing { digest: digest() });
                }
                other => other.map_err(ArchiveError::store("read", &place))?,
            };
            // Before its bytes are in memory.
            if found.meta.size > zstd::zstd_safe::compress_bound(length) as u64 {
                return Err(damaged());
            }
            found
                .bytes()
                .await
                .map_err(ArchiveError::store("read", &place))
        })?;
        let data = zstd::bulk::decompress(&packed, length).map_err(|_| damaged())?;
        if data.len() != length || Sha256::digest(&data)[..] != entry.digest {
            return Err(damaged());
        }
        Ok(data)
    }
}

/// Where an object lies: in one of 256 folders, since some file systems are slow with very many files in one.
fn place(digest: &Digest) -> Path {
    let name = hex::encode(digest);
    Path::from_iter([FOLDER, &name[..2], &name])
}

fn cut_error(error: CutError) -> ArchiveError {
    ArchiveError::Source(match error {
        CutError::IoError(error) => error,
        other => std::io::Error::other(other.to_string()),
    })
}
