//! Files and directories of the sandbox, apart from their contents (those are `http::files`).

mod directory;
mod entry;
pub(crate) mod metadata;
mod service;
mod watch;
mod watcher;

pub(crate) use directory::{DirectoryError, create_owned};
pub(crate) use service::FilesystemService;
