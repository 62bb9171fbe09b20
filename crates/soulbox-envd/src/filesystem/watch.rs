//! Watching a directory with inotify: kernel events in, the events that clients know out.
//!
//! A recursive watch follows directories that appear: it first watches the new one, then looks what is in it already, so
//! that nothing made in between is missed. What the look found is not announced again by the event that follows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use soulbox_envd_proto::rpc::filesystem::{EventType, FilesystemEvent};

use super::entry;
use crate::descriptor::{self, Descriptor};
use crate::users::Names;

/// Magic numbers of file systems whose changes other machines make unseen, linux/magic.h.
const NETWORK: [u32; 5] = [
    0x6969,      // NFS
    0xFF53_4D42, // CIFS
    0x517B,      // SMB
    0xFE53_4D42, // SMB2
    0x6573_5546, // FUSE
];
/// Room for a few hundred events of a read.
const BUFFER: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Directory,
    Recursive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    NameOnly,
    WithEntry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkMounts {
    Refused,
    Allowed,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("path not found: {0}")]
    Missing(String),
    #[error("path is not a directory: {0}")]
    NotDirectory(String),
    #[error("cannot watch path on network filesystem: {0}")]
    NetworkMount(String),
    #[error("error watching '{path}'")]
    Watch {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("watcher error: more events came than were read")]
    Overflow,
    #[error("watcher error")]
    Read(#[source] io::Error),
}

pub(crate) struct Watch {
    inotify: Descriptor,
    /// As the client named it.
    root: String,
    scope: Scope,
    detail: Detail,
    /// Of each watch: its directory below the root, empty for the root itself.
    directories: HashMap<i32, String>,
    /// Names that a look into a new directory has announced; their own events are still in the kernel's queue.
    announced: HashSet<String>,
    ready: VecDeque<FilesystemEvent>,
}

/// A kernel event, taken out of the read buffer.
struct Raw {
    watch: i32,
    flags: ReadFlags,
    name: Option<String>,
}

impl Watch {
    /// Starts watching. Blocks while a recursive watch walks the tree.
    pub(crate) fn open(
        root: &str,
        scope: Scope,
        detail: Detail,
        network: NetworkMounts,
    ) -> Result<Self, WatchError> {
        let failed = |source: io::Error| WatchError::Watch {
            path: root.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(root).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => WatchError::Missing(root.to_owned()),
            _ => failed(source),
        })?;
        if !metadata.is_dir() {
            return Err(WatchError::NotDirectory(root.to_owned()));
        }
        let magic = rustix::fs::statfs(root)
            .map_err(|errno| failed(errno.into()))?
            .f_type as u32;
        if network == NetworkMounts::Refused && NETWORK.contains(&magic) {
            return Err(WatchError::NetworkMount(root.to_owned()));
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let mut watch = Self {
            inotify: descriptor::register(inotify).map_err(failed)?,
            root: root.to_owned(),
            scope,
            detail,
            directories: HashMap::new(),
            announced: HashSet::new(),
            ready: VecDeque::new(),
        };
        watch.add(String::new()).map_err(failed)?;
        if scope == Scope::Recursive {
            watch.add_below("", Announce::Nothing);
        }
        Ok(watch)
    }

    /// The next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<FilesystemEvent, WatchError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let read = {
                let mut ready = self.inotify.readable().await.map_err(WatchError::Read)?;
                ready.try_io(|inotify| read_events(inotify.get_ref()))
            };
            match read {
                Ok(events) => {
                    for event in events.map_err(WatchError::Read)? {
                        self.translate(event)?;
                    }
                }
                // Everything older than the last look has been seen.
                Err(_would_block) => self.announced.clear(),
            }
        }
    }

    fn add(&mut self, directory: String) -> io::Result<()> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        if !directory.is_empty() {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let watch = inotify::add_watch(self.inotify.get_ref(), self.absolute(&directory), flags)?;
        self.directories.insert(watch, directory);
        Ok(())
    }

    /// Watches all directories below; those that vanish or cannot be watched are left out.
    fn add_below(&mut self, directory: &str, announce: Announce) {
        let Ok(listing) = std::fs::read_dir(self.absolute(directory)) else {
            return;
        };
        for child in listing.flatten() {
            let name = join(directory, &child.file_name().to_string_lossy());
            if announce == Announce::Created {
                self.announced.insert(name.clone());
                self.emit(&name, EventType::EVENT_TYPE_CREATE);
            }
            if child.file_type().is_ok_and(|file_type| file_type.is_dir())
                && self.add(name.clone()).is_ok()
            {
                self.add_below(&name, announce);
            }
        }
    }

    /// Forgets the watches of a directory that was moved away, and of all below it.
    fn remove_below(&mut self, directory: &str) {
        let below = format!("{directory}/");
        let gone: Vec<i32> = self
            .directories
            .iter()
            .filter(|(_, path)| *path == directory || path.starts_with(&below))
            .map(|(watch, _)| *watch)
            .collect();
        for watch in gone {
            self.directories.remove(&watch);
            // It may have gone with its directory.
            _ = inotify::remove_watch(self.inotify.get_ref(), watch);
        }
    }

    fn translate(&mut self, event: Raw) -> Result<(), WatchError> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(WatchError::Overflow);
        }
        if event.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&event.watch);
            return Ok(());
        }
        let Some(directory) = self.directories.get(&event.watch) else {
            return Ok(());
        };
        let name = match &event.name {
            Some(name) => join(directory, name),
            None if directory.is_empty() => ".".to_owned(),
            // What happens to a directory below the root, its parent's watch tells too.
            None => return Ok(()),
        };
        let flags = event.flags;
        let is_directory = flags.contains(ReadFlags::ISDIR) && event.name.is_some();
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
            && !self.announced.remove(&name)
        {
            self.emit(&name, EventType::EVENT_TYPE_CREATE);
            if is_directory && self.scope == Scope::Recursive && self.add(name.clone()).is_ok() {
                self.add_below(&name, Announce::Created);
            }
        }
        if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF) {
            self.emit(&name, EventType::EVENT_TYPE_RENAME);
            if is_directory {
                self.remove_below(&name);
            }
        }
        if flags.contains(ReadFlags::ATTRIB) {
            self.emit(&name, EventType::EVENT_TYPE_CHMOD);
        }
        if flags.contains(ReadFlags::MODIFY) {
            self.emit(&name, EventType::EVENT_TYPE_WRITE);
        }
        if flags.intersects(ReadFlags::DELETE | ReadFlags::DELETE_SELF) {
            self.emit(&name, EventType::EVENT_TYPE_REMOVE);
        }
        Ok(())
    }

    fn emit(&mut self, name: &str, kind: EventType) {
        let describes = matches!(
            kind,
            EventType::EVENT_TYPE_CREATE
                | EventType::EVENT_TYPE_WRITE
                | EventType::EVENT_TYPE_CHMOD
        );
        let entry = (describes && self.detail == Detail::WithEntry)
            .then(|| {
                entry::describe(
                    &self.absolute(if name == "." { "" } else { name }),
                    &Names::load(),
                )
                .ok()
            })
            .flatten();
        self.ready.push_back(FilesystemEvent {
            name: name.to_owned(),
            r#type: kind.into(),
            entry: entry.map(Into::into).unwrap_or_default(),
        });
    }

    fn absolute(&self, directory: &str) -> String {
        if directory.is_empty() {
            self.root.clone()
        } else {
            join(self.root.trim_end_matches('/'), directory)
        }
    }
}

/// Whether a walk tells what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announce {
    Nothing,
    Created,
}

fn join(directory: &str, name: &str) -> String {
    // Below the root of the watch names are relative, so nothing stands before the first one.
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

fn read_events(inotify: &OwnedFd) -> io::Result<Vec<Raw>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut events = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => events.push(Raw {
                watch: event.wd(),
                flags: event.events(),
                name: event
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            }),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) if !events.is_empty() => return Ok(events),
            Err(errno) => return Err(errno.into()),
        }
        if reader.is_buffer_empty() {
            return Ok(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    async fn next(watch: &mut Watch) -> (String, EventType) {
        let event = tokio::time::timeout(Duration::from_secs(5), watch.next())
            .await
            .expect("an event comes")
            .expect("no error");
        (event.name, event.r#type.as_known().expect("known"))
    }

    #[tokio::test]
    async fn renames_are_two_events_and_new_directories_are_followed() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().to_str().expect("UTF-8");
        let mut watch = Watch::open(
            path,
            Scope::Recursive,
            Detail::NameOnly,
            NetworkMounts::Refused,
        )
        .expect("watches");
        fs::write(root.path().join("a"), "").expect("write");
        assert_eq!(
            next(&mut watch).await,
            ("a".into(), EventType::EVENT_TYPE_CREATE)
        );
        fs::rename(root.path().join("a"), root.path().join("b")).expect("rename");
        assert_eq!(
            next(&mut watch).await,
            ("a".into(), EventType::EVENT_TYPE_RENAME)
        );
        assert_eq!(
            next(&mut watch).await,
            ("b".into(), EventType::EVENT_TYPE_CREATE)
        );
        // All three levels exist before the first event is read.
        fs::create_dir_all(root.path().join("x/y/z")).expect("mkdir");
        for name in ["x", "x/y", "x/y/z"] {
            assert_eq!(
                next(&mut watch).await,
                (name.into(), EventType::EVENT_TYPE_CREATE)
            );
        }
        fs::write(root.path().join("x/y/z/file"), "text").expect("write");
        assert_eq!(
            next(&mut watch).await,
            ("x/y/z/file".into(), EventType::EVENT_TYPE_CREATE)
        );
        assert_eq!(
            next(&mut watch).await,
            ("x/y/z/file".into(), EventType::EVENT_TYPE_WRITE)
        );
    }

    #[tokio::test]
    async fn only_directories_are_watched() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::write(root.path().join("file"), "").expect("write");
        let open = |name: &str| {
            let path = format!("{}/{name}", root.path().display());
            Watch::open(
                &path,
                Scope::Directory,
                Detail::NameOnly,
                NetworkMounts::Refused,
            )
            .err()
        };
        assert!(matches!(open("file"), Some(WatchError::NotDirectory(_))));
        assert!(matches!(open("nowhere"), Some(WatchError::Missing(_))));
    }
}
