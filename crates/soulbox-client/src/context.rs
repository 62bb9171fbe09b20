//! The folder that a build copies from: which files a COPY means, their digest, their archive.
//!
//! Nothing outside of the folder is read: sources with `..` are refused and links are kept as links. Blocking.

mod ignored;

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use globset::GlobBuilder;
use sha2::{Digest, Sha256};

pub(crate) use ignored::Ignored;

const IGNORE_FILE: &str = ".dockerignore";

/// Why files cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("`{source_path}` leads out of the folder")]
    Outside { source_path: String },
    #[error("`{source_path}` is nothing in `{folder}`, or all of it is ignored")]
    Nothing {
        source_path: String,
        folder: PathBuf,
    },
    #[error("`{pattern}` is not a pattern")]
    Pattern {
        pattern: String,
        #[source]
        source: globset::Error,
    },
    #[error("`{path}` is neither a file, a folder nor a link")]
    Special { path: PathBuf },
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to write an archive")]
    Write(#[source] io::Error),
}

/// A folder with files to copy.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    ignored: Ignored,
}

/// What one COPY means: paths relative to the folder, sorted.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    folder: &'a Folder,
    entries: Vec<(PathBuf, Metadata)>,
}

impl Folder {
    /// Reads what the folder's `.dockerignore` says.
    ///
    /// # Errors
    /// [`ContextError::Read`] and [`ContextError::Pattern`].
    pub fn open(root: &Path) -> Result<Self, ContextError> {
        let path = root.join(IGNORE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(unread(&path)(error)),
        };
        Ok(Self {
            root: root.to_owned(),
            ignored: Ignored::read(&text)?,
        })
    }

    /// The files that a source means: one of them, a folder with all in it, or all that a pattern matches.
    ///
    /// # Errors
    /// Also when it is nothing.
    pub(crate) fn find(&self, source: &str) -> Result<Files<'_>, ContextError> {
        let mut normal = PathBuf::new();
        for part in Path::new(source).components() {
            match part {
                Component::Normal(part) => normal.push(part),
                Component::CurDir => {}
                _ => {
                    return Err(ContextError::Outside {
                        source_path: source.to_owned(),
                    });
                }
            }
        }
        let mut entries = Vec::new();
        if self.root.join(&normal).symlink_metadata().is_ok() {
            self.check_links(&normal, source)?;
            self.walk(&normal, &mut entries)?;
        } else {
            let pattern = GlobBuilder::new(&normal.to_string_lossy())
                .literal_separator(true)
                .build()
                .map_err(|error| ContextError::Pattern {
                    pattern: source.to_owned(),
                    source: error,
                })?
                .compile_matcher();
            let mut all = Vec::new();
            self.walk(Path::new(""), &mut all)?;
            // What is in a folder that matches comes along.
            entries.extend(
                all.into_iter()
                    .filter(|(path, _)| path.ancestors().any(|it| pattern.is_match(it))),
            );
        }
        if entries.is_empty() {
            return Err(ContextError::Nothing {
                source_path: source.to_owned(),
                folder: self.root.clone(),
            });
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Files {
            folder: self,
            entries,
        })
    }

    /// A source that is reached through a link of the folder could lie anywhere.
    fn check_links(&self, path: &Path, source: &str) -> Result<(), ContextError> {
        for above in path
            .ancestors()
            .skip(1)
            .filter(|it| !it.as_os_str().is_empty())
        {
            let place = self.root.join(above);
            if place
                .symlink_metadata()
                .map_err(unread(&place))?
                .is_symlink()
            {
                return Err(ContextError::Outside {
                    source_path: source.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn walk(&self, path: &Path, found: &mut Vec<(PathBuf, Metadata)>) -> Result<(), ContextError> {
        let place = self.root.join(path);
        let metadata = fs::symlink_metadata(&place).map_err(unread(&place))?;
        let is_root = path.as_os_str().is_empty();
        // An exception may be below what is ignored, so the walk goes on there.
        let is_ignored = !is_root && self.ignored.is_ignored(path);
        if metadata.is_dir() {
            if is_ignored && !self.ignored.has_exceptions() {
                return Ok(());
            }
            let mut below = Vec::new();
            for entry in fs::read_dir(&place).map_err(unread(&place))? {
                below.push(entry.map_err(unread(&place))?.file_name());
            }
            below.sort();
            for name in below {
                self.walk(&path.join(name), found)?;
            }
        } else if !metadata.is_file() && !metadata.is_symlink() && !is_ignored {
            return Err(ContextError::Special { path: place });
        }
        if !is_root && !is_ignored {
            found.push((path.to_owned(), metadata));
        }
        Ok(())
    }
}

impl Files<'_> {
    /// A digest of names, modes and contents; owners and times do not count.
    pub(crate) fn digest(&self) -> Result<String, ContextError> {
        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // With its length before it, no part can pass for the end of another.
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        for (path, metadata) in &self.entries {
            let place = self.folder.root.join(path);
            part(path.as_os_str().as_bytes());
            part(&metadata.mode().to_le_bytes());
            if metadata.is_symlink() {
                let target = fs::read_link(&place).map_err(unread(&place))?;
                part(target.as_os_str().as_bytes());
            } else if metadata.is_file() {
                part(&content(&place)?);
            }
        }
        Ok(hex::encode(digest.finalize()))
    }

    /// A packed tar archive, in a file without a name, and how long it is.
    pub(crate) fn archive(&self) -> Result<(File, u64), ContextError> {
        let file = tempfile::tempfile().map_err(ContextError::Write)?;
        let packed = GzEncoder::new(io::BufWriter::new(file), Compression::fast());
        let mut archive = tar::Builder::new(packed);
        archive.follow_symlinks(false);
        for (path, metadata) in &self.entries {
            let place = self.folder.root.join(path);
            let added = if metadata.is_dir() {
                archive.append_dir(path, &place)
            } else {
                archive.append_path_with_name(&place, path)
            };
            added.map_err(unread(&place))?;
        }
        let finished = archive.into_inner().and_then(GzEncoder::finish);
        let mut file = finished
            .and_then(|it| it.into_inner().map_err(io::IntoInnerError::into_error))
            .map_err(ContextError::Write)?;
        file.flush().map_err(ContextError::Write)?;
        let length = file.stream_position().map_err(ContextError::Write)?;
        file.rewind().map_err(ContextError::Write)?;
        Ok((file, length))
    }
}

/// The digest of a file's content.
fn content(place: &Path) -> Result<[u8; 32], ContextError> {
    let mut file = File::open(place).map_err(unread(place))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(unread(place))? {
            0 => return Ok(digest.finalize().into()),
            read => digest.update(&buffer[..read]),
        }
    }
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> ContextError + '_ {
    move |source| ContextError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
