//! The store of an installation: sealed snapshots by name, and the collection of what none of them needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rustix::fs::{FlockOperation, flock, syncfs};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::chunks::{Added, Chunks, Stream};
use crate::error::ArchiveError;
use crate::mark::{self, Key};

/// The form of an artifact; another one is refused.
const VERSION: u32 = 1;
/// What the key is derived for.
const PURPOSE: &[u8] = b"soulbox sealed snapshot 1";
const FOLDER: &str = "snapshots";
const SUFFIX: &str = ".json";
const LOCK: &str = "lock";
/// The longest artifact that is read: some thousand files of memory have their names in it.
const MOST_BYTES: u64 = 16 << 20;
/// How long a seal waits for a collection to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store in a directory of this host.
#[derive(Debug)]
pub struct Archive {
    root: PathBuf,
    store: Arc<dyn ObjectStore>,
    chunks: Chunks,
    key: Key,
    runtime: Handle,
}

/// A sealed snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The caller's, as it was put in.
    pub note: String,
    pub streams: BTreeMap<String, Stream>,
}

/// As it is marked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    name: String,
    note: String,
    streams: BTreeMap<String, Stream>,
}

/// What a collection has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    pub kept: Added,
    /// With a dry run: what would have been deleted.
    pub deleted: Added,
}

/// Keeps others from collecting, or from storing. Released when dropped.
#[derive(Debug)]
#[must_use]
pub struct Held(#[expect(dead_code, reason = "the lock goes with the descriptor")] File);

impl Archive {
    /// Opens the store in that directory, which is made when it is not there. The key of its artifacts is derived from `secret`.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: &FilePath, secret: &[u8], runtime: Handle) -> Result<Self, ArchiveError> {
        // What lies in it is memory of sandboxes: for root alone.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(ArchiveError::io("create", root))?;
        let root = fs::canonicalize(root).map_err(ArchiveError::io("resolve", root))?;
        let store: Arc<dyn ObjectStore> = Arc::new(
            LocalFileSystem::new_with_prefix(&root)
                .map_err(ArchiveError::store("open", root.display()))?,
        );
        Ok(Self {
            chunks: Chunks::new(Arc::clone(&store), runtime.clone()),
            key: Key::derive(secret, PURPOSE),
            root,
            store,
            runtime,
        })
    }

    /// Keeps collections out until it is dropped: taken before the first [`Archive::put_stream`] of an artifact, dropped after
    /// [`Archive::put`].
    ///
    /// # Errors
    /// [`ArchiveError::Busy`] when a collection does not end, and the file system's.
    pub fn hold(&self) -> Result<Held, ArchiveError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lock(FlockOperation::NonBlockingLockShared) {
                Ok(Some(held)) => return Ok(held),
                Ok(None) if Instant::now() > deadline => {
                    return Err(ArchiveError::Busy("what nobody needs is being deleted"));
                }
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Stores the bytes of a source; what is there already is not stored again. It counts once an artifact names it.
    ///
    /// # Errors
    /// [`ArchiveError::Source`], and the store's.
    pub fn put_stream(&self, source: impl Read) -> Result<(Stream, Added), ArchiveError> {
        self.chunks.put(source)
    }

    /// Makes an artifact of streams; when this returns, all of it is on disk. One of the same name is replaced.
    ///
    /// # Errors
    /// The store's.
    pub fn put(&self, name: &str, artifact: &Artifact) -> Result<(), ArchiveError> {
        let form = Form {
            version: VERSION,
            name: name.to_owned(),
            note: artifact.note.clone(),
            streams: artifact.streams.clone(),
        };
        let text = serde_json::to_string(&form)
            .and_then(|text| self.key.seal(text))
            .map_err(|source| ArchiveError::ArtifactDamaged {
                name: name.to_owned(),
                source,
            })?;
        // Whoever sees it finds all that it names, after a power failure too.
        self.settle()?;
        let place = place(name);
        self.runtime
            .block_on(self.store.put(&place, text.into()))
            .map_err(ArchiveError::store("write", &place))?;
        self.settle()
    }

    /// The artifact of that name, when it is this installation's.
    ///
    /// # Errors
    /// [`ArchiveError::ArtifactMissing`]; [`ArchiveError::NotOurs`] and others of which [`ArchiveError::is_refusal`] is true.
    pub fn get(&self, name: &str) -> Result<Artifact, ArchiveError> {
        let text = self.read(name)?;
        let text = self
            .key
            .open(&text)
            .map_err(|source| ArchiveError::NotOurs {
                name: name.to_owned(),
                source,
            })?;
        form(name, &text).map(|form| Artifact {
            note: form.note,
            streams: form.streams,
        })
    }

    /// The names of all artifacts, sorted, whoever made them.
    ///
    /// # Errors
    /// The store's.
    pub fn names(&self) -> Result<Vec<String>, ArchiveError> {
        let folder = Path::from(FOLDER);
        let listed = self.store.list(Some(&folder)).try_collect::<Vec<_>>();
        let listed = self
            .runtime
            .block_on(listed)
            .map_err(ArchiveError::store("list", &folder))?;
        let name = |object: &object_store::ObjectMeta| {
            let file = object.location.filename()?;
            file.strip_suffix(SUFFIX).map(str::to_owned)
        };
        let mut names: Vec<_> = listed.iter().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// Writes the bytes of a stream to `sink`. Each chunk is known to be right before it is written.
    ///
    /// # Errors
    /// [`ArchiveError::ChunkMissing`], [`ArchiveError::ChunkDamaged`], [`ArchiveError::Sink`], and the store's.
    pub fn get_stream(&self, stream: &Stream, sink: &mut dyn Write) -> Result<(), ArchiveError> {
        self.chunks.get(stream, sink)
    }

    /// Reads all of an artifact's streams.
    ///
    /// # Errors
    /// As [`Archive::get`] and [`Archive::get_stream`].
    pub fn verify(&self, name: &str) -> Result<(), ArchiveError> {
        for stream in self.get(name)?.streams.values() {
            self.get_stream(stream, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// Deletes an artifact; its chunks stay until a collection. One that does not exist is deleted already.
    ///
    /// # Errors
    /// The store's.
    pub fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        let place = place(name);
        match self.runtime.block_on(self.store.delete(&place)) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(ArchiveError::store("delete", &place)),
        }
    }

    /// Deletes the chunks that no artifact needs, of whatever installation; with `dry_run` it only counts them.
    ///
    /// # Errors
    /// [`ArchiveError::Busy`] while something is stored. An artifact that cannot be read is an error too, and nothing is deleted: nobody
    /// knows what it needs.
    pub fn collect(&self, dry_run: bool) -> Result<Collected, ArchiveError> {
        let Some(_held) = self.lock(FlockOperation::NonBlockingLockExclusive)? else {
            return Err(ArchiveError::Busy("a snapshot is being stored or fetched"));
        };
        let mut needed = BTreeSet::new();
        for name in self.names()? {
            let text = mark::unbelieved(&self.read(&name)?).map_err(|source| {
                ArchiveError::ArtifactDamaged {
                    name: name.clone(),
                    source,
                }
            })?;
            for stream in form(&name, &text)?.streams.values() {
                self.chunks.name_all(stream, &mut needed)?;
            }
        }
        let (kept, deleted) = self.chunks.keep_only(&needed, dry_run)?;
        Ok(Collected { kept, deleted })
    }

    fn read(&self, name: &str) -> Result<String, ArchiveError> {
        let place = place(name);
        let failed = || ArchiveError::store("read", &place);
        let damaged = |why: String| ArchiveError::ArtifactDamaged {
            name: name.to_owned(),
            source: serde::ser::Error::custom(why),
        };
        let bytes = self.runtime.block_on(async {
            let found = match self.store.get(&place).await {
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(ArchiveError::ArtifactMissing {
                        name: name.to_owned(),
                    });
                }
                other => other.map_err(failed())?,
            };
            if found.meta.size > MOST_BYTES {
                return Err(damaged(format!("it has {} bytes", found.meta.size)));
            }
            found.bytes().await.map_err(failed())
        })?;
        String::from_utf8(bytes.into()).map_err(|error| damaged(error.to_string()))
    }

    fn lock(&self, how: FlockOperation) -> Result<Option<Held>, ArchiveError> {
        let path = self.root.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(ArchiveError::io("open", &path))?;
        match flock(&file, how) {
            Ok(()) => Ok(Some(Held(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(ArchiveError::io("lock", &path)(error)),
        }
    }

    /// Waits until everything that was stored is on disk: once for all chunks, not for each.
    fn settle(&self) -> Result<(), ArchiveError> {
        let directory = File::open(&self.root).map_err(ArchiveError::io("open", &self.root))?;
        syncfs(&directory).map_err(ArchiveError::io("sync", &self.root))
    }
}

/// What an artifact's text says, when it is in its place.
fn form(name: &str, text: &str) -> Result<Form, ArchiveError> {
    let damaged = |source| ArchiveError::ArtifactDamaged {
        name: name.to_owned(),
        source,
    };
    // Before all else: another version may have other fields.
    #[derive(Deserialize)]
    struct Which {
        version: u32,
    }
    let Which { version } = serde_json::from_str(text).map_err(damaged)?;
    if version != VERSION {
        return Err(ArchiveError::Version {
            name: name.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    let form: Form = serde_json::from_str(text).map_err(damaged)?;
    if form.name != name {
        return Err(ArchiveError::Misplaced {
            name: name.to_owned(),
            found: form.name,
        });
    }
    Ok(form)
}

/// Where an artifact lies. What could lead out of the folder is escaped.
fn place(name: &str) -> Path {
    Path::from_iter([FOLDER, &format!("{name}{SUFFIX}")])
}
