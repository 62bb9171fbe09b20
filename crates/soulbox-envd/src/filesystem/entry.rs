//! What clients are told about one file, and listings of directories.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use buffa_types::google::protobuf::Timestamp;
use soulbox_envd_proto::rpc::filesystem::{EntryInfo, FileType};

use super::metadata;
use crate::path::name;
use crate::users::Names;

/// Describes the entry at `path`, without following it.
pub(crate) fn describe(path: &str, names: &Names) -> io::Result<EntryInfo> {
    let own = fs::symlink_metadata(path)?;
    let mut entry = EntryInfo {
        name: name(path).to_owned(),
        r#type: file_type(&own).into(),
        path: path.to_owned(),
        size: i64::try_from(own.size()).unwrap_or(i64::MAX),
        mode: own.mode() & 0o777,
        permissions: permissions(&own),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        ..Default::default()
    };
    if (own.mtime(), own.mtime_nsec()) != (0, 0) {
        let nanos = i32::try_from(own.mtime_nsec()).unwrap_or(0);
        entry.modified_time = Timestamp {
            seconds: own.mtime(),
            nanos,
            ..Default::default()
        }
        .into();
    }
    if own.is_symlink() {
        entry.is_symlink = true;
        // Clients want to know what is behind a link; a broken one has no type and is its own target.
        let target = fs::canonicalize(path).and_then(|target| Ok((fs::metadata(&target)?, target)));
        entry.r#type = target
            .as_ref()
            .map_or(FileType::FILE_TYPE_UNSPECIFIED, |(behind, _)| {
                file_type(behind)
            })
            .into();
        if let Ok((behind, _)) = &target {
            entry.mode = behind.mode() & 0o777;
        }
        entry.symlink_target = Some(target.map_or_else(
            |_| path.to_owned(),
            |(_, target)| target.to_string_lossy().into_owned(),
        ));
    } else {
        entry.metadata = metadata::read(Path::new(path)).into_iter().collect();
    }
    Ok(entry)
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("path not found: {0}")]
    Missing(String),
    #[error("path is not a directory: {0}")]
    NotDirectory(String),
    #[error("cyclic symlink or chain >255 links: {0}")]
    Cycle(String),
    #[error("error reading directory '{path}'")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Everything below the directory `path` to `depth` levels, each directory before its contents, in the order of names.
/// Links in it are listed, not followed; entries that vanish meanwhile are left out. Blocks for the whole walk.
pub(crate) fn list(path: &str, depth: u32) -> Result<Vec<EntryInfo>, ListError> {
    const ELOOP: i32 = 40;

    let metadata = fs::metadata(path).map_err(|source| match source {
        source if source.kind() == io::ErrorKind::NotFound => ListError::Missing(path.to_owned()),
        source if source.raw_os_error() == Some(ELOOP) => ListError::Cycle(path.to_owned()),
        source => ListError::Read {
            path: path.to_owned(),
            source,
        },
    })?;
    if !metadata.is_dir() {
        return Err(ListError::NotDirectory(path.to_owned()));
    }
    let names = Names::load();
    let mut entries = Vec::new();
    walk(
        path.trim_end_matches('/'),
        depth.max(1),
        &names,
        &mut entries,
    )?;
    Ok(entries)
}

fn walk(
    directory: &str,
    depth: u32,
    names: &Names,
    entries: &mut Vec<EntryInfo>,
) -> Result<(), ListError> {
    let read = |source| ListError::Read {
        path: directory.to_owned(),
        source,
    };
    let listing = match fs::read_dir(if directory.is_empty() { "/" } else { directory }) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(read(source)),
    };
    let mut children = Vec::new();
    for child in listing {
        let child = child.map_err(read)?;
        let is_directory = child.file_type().is_ok_and(|file_type| file_type.is_dir());
        children.push((child.file_name(), is_directory));
    }
    children.sort();
    for (name, is_directory) in children {
        let path = format!("{directory}/{}", name.to_string_lossy());
        match describe(&path, names) {
            Ok(entry) => entries.push(entry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ListError::Read { path, source }),
        }
        if is_directory && depth > 1 {
            walk(&path, depth - 1, names, entries)?;
        }
    }
    Ok(())
}

fn file_type(metadata: &Metadata) -> FileType {
    if metadata.is_file() {
        FileType::FILE_TYPE_FILE
    } else if metadata.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// The mode as Go prints it, which is what clients know: letters for everything special, then three triplets.
fn permissions(metadata: &Metadata) -> String {
    let file_type = metadata.file_type();
    let mode = metadata.mode();
    let letters = [
        (file_type.is_dir(), 'd'),
        (file_type.is_symlink(), 'L'),
        (
            file_type.is_block_device() || file_type.is_char_device(),
            'D',
        ),
        (file_type.is_fifo(), 'p'),
        (file_type.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (file_type.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = letters
        .iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, letter)| *letter)
        .collect();
    if text.is_empty() {
        text.push('-');
    }
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        text.push(if mode & (1 << bit) != 0 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn permissions_read_as_in_go() {
        let root = tempfile::tempdir().expect("tempdir");
        let check = |name: &str, mode: u32, expected: &str| {
            let path = root.path().join(name);
            fs::write(&path, "").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(
                permissions(&fs::symlink_metadata(&path).expect("stat")),
                expected
            );
        };
        check("plain", 0o644, "-rw-r--r--");
        check("setuid", 0o4755, "urwxr-xr-x");
        check("setgid", 0o2755, "grwxr-xr-x");
        assert_eq!(
            permissions(&fs::symlink_metadata("/dev/null").expect("stat")),
            "Dcrw-rw-rw-"
        );
        assert_eq!(
            permissions(&fs::symlink_metadata("/tmp").expect("stat")),
            "dtrwxrwxrwx"
        );
        symlink("x", root.path().join("link")).expect("symlink");
        assert_eq!(
            permissions(&fs::symlink_metadata(root.path().join("link")).expect("stat")),
            "Lrwxrwxrwx"
        );
    }

    #[test]
    fn links_show_what_is_behind_them() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
        fs::create_dir(at("dir")).expect("mkdir");
        symlink("dir", at("good")).expect("symlink");
        symlink("nowhere", at("broken")).expect("symlink");
        let names = Names::load();
        let good = describe(&at("good"), &names).expect("describes");
        assert!(good.is_symlink && good.r#type == FileType::FILE_TYPE_DIRECTORY);
        let real = fs::canonicalize(at("dir")).expect("canonicalize");
        assert_eq!(good.symlink_target.as_deref(), real.to_str());
        let broken = describe(&at("broken"), &names).expect("describes");
        assert!(broken.is_symlink && broken.r#type == FileType::FILE_TYPE_UNSPECIFIED);
        assert_eq!(broken.symlink_target, Some(at("broken")));
    }

    #[test]
    fn listing_is_ordered_limited_and_keeps_the_asked_prefix() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(root.path().join("real/b/deep")).expect("mkdir");
        fs::write(root.path().join("real/a"), "").expect("write");
        symlink("real", root.path().join("link")).expect("symlink");
        symlink("b", root.path().join("real/c")).expect("symlink");
        let asked = format!("{}/link", root.path().display());
        let listed = |depth| -> Vec<String> {
            let entries = list(&asked, depth).expect("lists");
            entries
                .into_iter()
                .map(|entry| entry.path.replace(&asked, ""))
                .collect()
        };
        assert_eq!(listed(0), ["/a", "/b", "/c"]);
        assert_eq!(listed(2), ["/a", "/b", "/b/deep", "/c"]);
        symlink("loop", root.path().join("loop")).expect("symlink");
        let list = |name: &str| list(&format!("{}/{name}", root.path().display()), 1);
        assert!(matches!(list("loop"), Err(ListError::Cycle(_))));
        assert!(matches!(list("nowhere"), Err(ListError::Missing(_))));
        assert!(matches!(list("real/a"), Err(ListError::NotDirectory(_))));
    }
}
