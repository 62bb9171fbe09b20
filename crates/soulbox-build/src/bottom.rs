//! Our bottom layer: what the root of every sandbox has, whatever its template.
//!
//! Device nodes exist here and nowhere else; layers from outside may not bring any. The runtime mounts onto
//! the empty folders made here: /proc, /sys, /dev/pts, /dev/shm, and [`GUEST_PROGRAMS`] for envd and init.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// Counts for the digest of every recipe; raise it with each change of this file's result.
pub const BOTTOM_VERSION: u32 = 1;
/// Where envd and init are mounted inside a sandbox.
pub const GUEST_PROGRAMS: &str = "usr/lib/soulbox";
/// Ids on disk are 0..65535: a slot's range has no more.
const LAST_ID: u32 = 65535;

/// The nodes of /dev: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEV_LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Folders that must exist, with their modes.
const FOLDERS: [(&str, u32); 11] = [
    ("dev", 0o755),
    ("dev/pts", 0o755),
    ("dev/shm", 0o1777),
    ("proc", 0o755),
    ("sys", 0o755),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("etc", 0o755),
    (GUEST_PROGRAMS, 0o755),
];
/// Files with the same text in every sandbox: hostname, address and resolver are the same in all of them.
const FILES: [(&str, &str); 4] = [
    ("etc/hostname", "e2b.local\n"),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost e2b.local\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    ),
    ("etc/resolv.conf", "nameserver 169.254.0.22\n"),
    // Empty and present: a sandbox gets its own by being created, not by being copied.
    ("etc/machine-id", ""),
];

/// Why a tree could not become a bottom layer.
#[derive(Debug, thiserror::Error)]
pub enum BottomError {
    #[error("failed to make `{path}`")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` belongs to {uid}:{gid}: only the ids 0 to {LAST_ID} exist inside a sandbox")]
    IdTooHigh { path: PathBuf, uid: u32, gid: u32 },
    #[error("`{path}` is a device outside of /dev")]
    StrayDevice { path: PathBuf },
    #[error(
        "`{path}` is a link and must be a folder: what is made in it would come to lie elsewhere"
    )]
    LinkedFolder { path: PathBuf },
}

/// What a finished tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    pub entries: u64,
    /// Bytes of disk, hard links counted once.
    pub bytes: u64,
}

/// Puts the common part into `root` and checks the whole tree. Needs root (device nodes).
pub fn finish(root: &Path) -> Result<TreeSize, BottomError> {
    // Whatever the bootstrap left in /dev is replaced: nodes that we do not list must not exist.
    let dev = root.join("dev");
    remove_tree(&dev)?;
    for (name, mode) in FOLDERS {
        refuse_links(root, Path::new(name))?;
        make_folder(&root.join(name), mode)?;
    }
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )
        .map_err(|errno| BottomError::Make {
            path: path.clone(),
            source: errno.into(),
        })?;
        // mknod(2) applies the umask.
        set_mode(&path, 0o666)?;
    }
    for (name, target) in DEV_LINKS {
        let path = dev.join(name);
        symlink(target, &path).map_err(|source| BottomError::Make { path, source })?;
    }
    for (name, text) in FILES {
        let path = root.join(name);
        remove_file(&path)?;
        fs::write(&path, text).map_err(|source| BottomError::Make {
            path: path.clone(),
            source,
        })?;
        set_mode(&path, 0o644)?;
    }
    refuse_links(root, Path::new("var/lib/dbus"))?;
    remove_file(&root.join("var/lib/dbus/machine-id"))?;
    measure(root)
}

/// Walks the tree: every id in range, devices only where we made them.
///
/// # Errors
/// Of a read, and what is not as it must be.
pub fn measure(root: &Path) -> Result<TreeSize, BottomError> {
    let dev = root.join("dev");
    let mut size = TreeSize::default();
    let mut linked = std::collections::HashSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let failed = |source| BottomError::Read {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let metadata = fs::symlink_metadata(&path).map_err(|source| BottomError::Read {
                path: path.clone(),
                source,
            })?;
            if metadata.uid() > LAST_ID || metadata.gid() > LAST_ID {
                return Err(BottomError::IdTooHigh {
                    path,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                });
            }
            let kind = metadata.file_type();
            // Number 0:0 is overlayfs's mark of a deleted file, and opens nothing.
            let whiteout = kind.is_char_device() && metadata.rdev() == 0;
            if (kind.is_char_device() || kind.is_block_device()) && folder != dev && !whiteout {
                return Err(BottomError::StrayDevice { path });
            }
            size.entries += 1;
            if metadata.nlink() == 1 || kind.is_dir() || linked.insert(metadata.ino()) {
                size.bytes += metadata.blocks() * 512;
            }
            if kind.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(size)
}

/// A tree is made by programs of its own packages: a link such as `etc -> /etc` would lead what is written here to the host's.
fn refuse_links(root: &Path, name: &Path) -> Result<(), BottomError> {
    let mut path = root.to_owned();
    for component in name.components() {
        path.push(component);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                return Err(BottomError::LinkedFolder { path });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(BottomError::Read { path, source }),
        }
    }
    Ok(())
}

fn make_folder(path: &Path, mode: u32) -> Result<(), BottomError> {
    fs::create_dir_all(path).map_err(|source| BottomError::Make {
        path: path.to_owned(),
        source,
    })?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), BottomError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| {
        BottomError::Make {
            path: path.to_owned(),
            source,
        }
    })
}

fn remove_tree(path: &Path) -> Result<(), BottomError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BottomError::Make {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), BottomError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BottomError::Make {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as a bootstrap leaves it; tests run as root, as all of SoulBox does.
    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["dev", "etc", "usr/bin", "var/lib/dbus"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        folder
    }

    #[test]
    fn a_finished_tree_has_the_common_part_and_only_our_devices() {
        let tree = tree();
        let root = tree.path();
        fs::write(root.join("dev/console"), "left over").unwrap();
        symlink("/run/somewhere", root.join("etc/resolv.conf")).unwrap();
        fs::write(root.join("var/lib/dbus/machine-id"), "abc").unwrap();

        let size = finish(root).unwrap();
        assert!(size.entries > 20 && size.bytes > 0, "{size:?}");
        for (name, major, minor) in DEVICES {
            let metadata = fs::metadata(root.join("dev").join(name)).unwrap();
            assert!(metadata.file_type().is_char_device(), "{name}");
            assert_eq!(metadata.rdev(), makedev(major, minor), "{name}");
            assert_eq!(metadata.mode() & 0o7777, 0o666, "{name}");
        }
        assert!(!root.join("dev/console").exists());
        assert_eq!(
            fs::read_link(root.join("dev/ptmx")).unwrap(),
            Path::new("pts/ptmx")
        );
        assert_eq!(
            fs::metadata(root.join("dev/shm")).unwrap().mode() & 0o7777,
            0o1777
        );
        assert_eq!(
            fs::read_to_string(root.join("etc/resolv.conf")).unwrap(),
            "nameserver 169.254.0.22\n"
        );
        assert_eq!(fs::read_to_string(root.join("etc/machine-id")).unwrap(), "");
        assert!(!root.join("var/lib/dbus/machine-id").exists());
        assert!(root.join(GUEST_PROGRAMS).is_dir());
        // A second run finds its own work and does it again.
        assert_eq!(finish(root).unwrap().entries, size.entries);
    }

    #[test]
    fn links_of_a_hostile_tree_lead_nowhere() {
        for linked in [
            "etc", "run", "tmp", "proc", "sys", "var", "usr", "usr/lib", "dev",
        ] {
            let (tree, outside) = (tree(), tempfile::tempdir().unwrap());
            for name in ["hostname", "hosts", "resolv.conf", "machine-id"] {
                fs::write(outside.path().join(name), "of the host").unwrap();
            }
            let path = tree.path().join(linked);
            _ = fs::remove_dir_all(&path);
            symlink(outside.path(), &path).unwrap();
            match finish(tree.path()) {
                // Whatever /dev was is replaced, without following it.
                Ok(_) => assert_eq!(linked, "dev"),
                Err(error) => assert!(
                    matches!(&error, BottomError::LinkedFolder { path: found } if *found == path),
                    "{linked}: {error}"
                ),
            }
            let left: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
            assert_eq!(left.len(), 4, "{linked}");
            for entry in left {
                let text = fs::read_to_string(entry.unwrap().path()).unwrap();
                assert_eq!(text, "of the host", "{linked}");
            }
        }
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced() {
        let (tree, outside) = (tree(), tempfile::tempdir().unwrap());
        let target = outside.path().join("passwd");
        fs::write(&target, "of the host").unwrap();
        symlink(&target, tree.path().join("etc/hosts")).unwrap();
        finish(tree.path()).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "of the host");
    }

    #[test]
    fn an_id_outside_of_the_range_is_refused() {
        let tree = tree();
        let path = tree.path().join("usr/bin/tool");
        fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(65536), None).unwrap();
        assert!(matches!(
            finish(tree.path()),
            Err(BottomError::IdTooHigh { uid: 65536, .. })
        ));
    }

    #[test]
    fn a_device_elsewhere_is_refused() {
        let tree = tree();
        let path = tree.path().join("usr/bin/tool");
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(1, 3),
        )
        .unwrap();
        assert!(
            matches!(finish(tree.path()), Err(BottomError::StrayDevice { path: found }) if found == path)
        );
    }
}
