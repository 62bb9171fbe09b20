//! The loop file: made, formatted, attached, mounted, grown.
//!
//! The file is allocated in full (`fallocate`), so that a full host disk cannot turn the pool read-only under running
//! sandboxes; for the same reason it is mounted without discard, which would punch holes into it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, FileType, Mode, fallocate, makedev, mknodat, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use soulbox_sys::loopdev;
use soulbox_types::MiB;

use crate::{PoolError, holders};

/// Below this btrfs spends most of its space on itself.
const LEAST: MiB = MiB(256);
const DEFAULT: MiB = MiB(10 << 10);
/// How often another process may snatch the free loop device away.
const ATTACH_TRIES: u32 = 32;

/// Makes and formats the image unless it is there. Returns whether it was made.
pub(crate) fn ensure(image: &Path, size: Option<MiB>) -> Result<bool, PoolError> {
    if image.exists() {
        return Ok(false);
    }
    let directory = image.parent().unwrap_or(Path::new("/"));
    let free = free_space(directory)?;
    let wanted = match size {
        Some(size) if size < LEAST => {
            return Err(PoolError::SizeTooSmall {
                wanted: size,
                least: LEAST,
            });
        }
        Some(size) => size,
        None => DEFAULT.min(MiB(free.0 / 10 * 6)),
    };
    if wanted > free || wanted < LEAST {
        return Err(PoolError::DiskTooSmall {
            image: image.to_owned(),
            free,
            wanted: wanted.max(LEAST),
        });
    }
    // Formatted under another name: an image that exists is a whole one.
    let draft = image.with_extension("img.new");
    let made = (|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(PoolError::io("create", &draft))?;
        fallocate(&file, FallocateFlags::empty(), 0, wanted.bytes())
            .map_err(PoolError::io("allocate", &draft))?;
        format(&draft)?;
        file.sync_all().map_err(PoolError::io("sync", &draft))?;
        fs::rename(&draft, image).map_err(PoolError::io("put in place", image))?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(PoolError::io("sync", directory))
    })();
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made.map(|()| true)
}

fn format(image: &Path) -> Result<(), PoolError> {
    // Metadata once: the copy would lie in the same file. No discard: it would undo the allocation.
    let output = Command::new("mkfs.btrfs")
        .args([
            "--quiet",
            "--force",
            "--nodiscard",
            "--metadata",
            "single",
            "--data",
            "single",
            "--label",
            "soulbox-pool",
        ])
        .arg(image)
        // root's PATH lacks sbin in some login shells.
        .env("PATH", search_path())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PoolError::MkfsMissing,
            _ => PoolError::io("start mkfs.btrfs for", image)(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .trim()
        .to_owned();
    Err(PoolError::MkfsFailed {
        image: image.to_owned(),
        message,
    })
}

pub(crate) fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Mounts the image at `target`, through the loop device that it has already or a new one.
pub(crate) fn mount_at(image: &Path, target: &Path) -> Result<(), PoolError> {
    match fs::DirBuilder::new().mode(0o700).create(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(PoolError::io("create", target)(error));
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .map_err(PoolError::io("open", image))?;
    // Held until the mount holds it.
    let (device, _open) = attach(image, &file)?;
    // nosuid: sandboxes write setuid files of disk owner 0, which outside of them is the host's root. Overlays that
    // use these directories have mounts of their own and keep their setuid programs.
    mount(
        &device,
        target,
        "btrfs",
        MountFlags::NOATIME | MountFlags::NOSUID,
        Some(c"nodiscard"),
    )
    .map_err(|error| PoolError::Mount {
        image: image.to_owned(),
        path: target.to_owned(),
        source: error.into(),
    })
}

fn attach(image: &Path, file: &File) -> Result<(PathBuf, File), PoolError> {
    let failed = |source| PoolError::LoopDevice {
        image: image.to_owned(),
        source,
    };
    // Two devices over one file would be two caches over one file system: its end. A device can be left from a mount
    // that detached overlays, or another mount namespace, keep alive.
    if let Some(found) = device_of(file).map_err(failed)? {
        return Ok(found);
    }
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(failed)?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..ATTACH_TRIES {
        let number = loopdev::free_number(control.as_fd()).map_err(failed)?;
        let (path, device) = open_device(number).map_err(failed)?;
        match loopdev::attach(device.as_fd(), file) {
            Ok(()) => return Ok((path, device)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(last))
}

/// The loop device behind which `file` is, opened.
fn device_of(file: &File) -> io::Result<Option<(PathBuf, File)>> {
    let wanted = file.metadata()?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("loop")?.parse().ok())
        else {
            continue;
        };
        if !entry.path().join("loop/backing_file").exists() {
            continue; // nothing behind it
        }
        let (path, device) = open_device(number)?;
        // It may have cleared itself in between; then it is not ours.
        if loopdev::backing(device.as_fd())
            .is_ok_and(|found| (found.device, found.inode) == (wanted.dev(), wanted.ino()))
        {
            return Ok(Some((path, device)));
        }
    }
    Ok(None)
}

fn open_device(number: u32) -> io::Result<(PathBuf, File)> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // In a container /dev is often a plain directory that the kernel adds no node to.
            let made = mknodat(
                rustix::fs::CWD,
                &path,
                FileType::BlockDevice,
                Mode::RUSR | Mode::WUSR,
                makedev(loopdev::MAJOR, number),
            );
            match made {
                Err(error) if error != rustix::io::Errno::EXIST => Err(error.into()),
                _ => open().map(|file| (path.clone(), file)),
            }
        }
        opened => opened.map(|file| (path.clone(), file)),
    }
}

/// Whether what is mounted here comes from the image.
pub(crate) fn is_mounted_from(image: &Path, mounted: &Path) -> Result<bool, PoolError> {
    let file = File::open(image).map_err(PoolError::io("open", image))?;
    let Some((device, _)) = device_of(&file).map_err(|source| PoolError::LoopDevice {
        image: image.to_owned(),
        source,
    })?
    else {
        return Ok(false);
    };
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(PoolError::io("read", "/proc/self/mountinfo"))?;
    let target = mounted
        .canonicalize()
        .map_err(PoolError::io("resolve", mounted))?;
    Ok(is_in_table(
        &table,
        &device.to_string_lossy(),
        &target.to_string_lossy(),
    ))
}

/// Looks for a btrfs mount of `device` at `target` in the text of `/proc/<pid>/mountinfo`.
fn is_in_table(table: &str, device: &str, target: &str) -> bool {
    // proc_pid_mountinfo(5): space, tab, newline and backslash are octal escapes there.
    let target = target
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    table.lines().any(|line| {
        let Some((before, after)) = line.split_once(" - ") else {
            return false;
        };
        let mut after = after.split(' ');
        before.split(' ').nth(4) == Some(target.as_str())
            && after.next() == Some("btrfs")
            && after.next() == Some(device)
    })
}

/// Enlarges the file to `size`, then the device, then the file system at `mounted`.
pub(crate) fn grow_to(image: &Path, mounted: &Path, size: MiB) -> Result<(), PoolError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .map_err(PoolError::io("open", image))?;
    let failed = |source| PoolError::LoopDevice {
        image: image.to_owned(),
        source,
    };
    let (_, device) = device_of(&file)
        .map_err(failed)?
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
    fallocate(&file, FallocateFlags::empty(), 0, size.bytes())
        .map_err(PoolError::io("allocate", image))?;
    loopdev::update_capacity(device.as_fd()).map_err(failed)?;
    let directory = File::open(mounted).map_err(PoolError::io("open", mounted))?;
    soulbox_sys::btrfs::resize_to_device(directory.as_fd())
        .map_err(PoolError::io("resize", mounted))
}

/// The size of the image.
pub(crate) fn size(image: &Path) -> Result<MiB, PoolError> {
    let metadata = fs::metadata(image).map_err(PoolError::io("read the size of", image))?;
    Ok(MiB(metadata.len() >> 20))
}

/// How much bigger the image may become: half its size, at most 10 GiB, and a tenth of the host's disk stays free.
pub(crate) fn growth_allowed(image: &Path) -> Result<MiB, PoolError> {
    let now = size(image)?;
    let stats = statfs(image).map_err(PoolError::io("measure", image))?;
    let block = u64::try_from(stats.f_bsize).unwrap_or(0);
    let (total, free) = (
        MiB((stats.f_blocks * block) >> 20),
        MiB((stats.f_bavail * block) >> 20),
    );
    let room = free.0.saturating_sub(total.0 / 10);
    let step = room.min(now.0 / 2).min(10 << 10);
    // Little steps are not worth the work.
    Ok(if step < 64 { MiB(0) } else { MiB(step) })
}

pub(crate) fn unmount_from(target: &Path) -> Result<(), PoolError> {
    match unmount(target, UnmountFlags::empty()) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(PoolError::Busy {
            path: target.to_owned(),
            holders: holders::of(target),
        }),
        Err(error) => Err(PoolError::io("unmount", target)(error)),
    }
}

fn free_space(directory: &Path) -> Result<MiB, PoolError> {
    let stats = statfs(directory).map_err(PoolError::io("measure", directory))?;
    Ok(MiB((stats.f_bavail
        * u64::try_from(stats.f_bsize).unwrap_or(0))
        >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_device_and_escaped_target() {
        let table = "36 25 0:31 / /data/my\\040pool rw,noatime - btrfs /dev/loop3 rw,space_cache=v2\n\
                     37 25 0:32 / /other rw shared:1 - ext4 /dev/loop4 rw\n";
        assert!(is_in_table(table, "/dev/loop3", "/data/my pool"));
        assert!(!is_in_table(table, "/dev/loop4", "/data/my pool"));
        assert!(!is_in_table(table, "/dev/loop3", "/data/my"));
        assert!(!is_in_table(table, "/dev/loop4", "/other"));
    }
}
