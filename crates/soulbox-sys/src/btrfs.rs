//! The btrfs ioctls that the pool needs: subvolumes, quota, resize, identity.
//!
//! Every function takes a descriptor of a directory on a mounted btrfs, blocks for the one call, and needs root.
//! Numbers and layouts: `linux/btrfs.h`; the layouts are the same on all 64-bit Linux.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};

/// How btrfs accounts for the bytes of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// An extent is charged to the subvolume that first wrote it; kernel 6.7 and later. Deleting is cheap.
    Simple,
    /// Shared and exclusive bytes are computed from back references.
    Full,
}

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of the root directory of every subvolume.
pub const SUBVOLUME_ROOT_INODE: u64 = 256;

const MAGIC: c_ulong = 0x94;
const NAME_LEN: usize = 4088; // BTRFS_PATH_NAME_MAX + 1

const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

const RESIZE: c_ulong = request::<VolumeArgs>(WRITE, 3);
const SYNC: c_ulong = (MAGIC << 8) | 8; // takes no argument
const SUBVOL_CREATE: c_ulong = request::<VolumeArgs>(WRITE, 14);
const SNAP_CREATE_V2: c_ulong = request::<SnapshotArgs>(WRITE, 23);
const SNAP_DESTROY: c_ulong = request::<VolumeArgs>(WRITE, 15);
const INO_LOOKUP: c_ulong = request::<InodeLookupArgs>(READ | WRITE, 18);
const SUBVOL_GETFLAGS: c_ulong = request::<u64>(READ, 25);
const SUBVOL_SETFLAGS: c_ulong = request::<u64>(WRITE, 26);
const FS_INFO: c_ulong = request::<FileSystemInfo>(READ, 31);
const QUOTA_CTL: c_ulong = request::<QuotaControl>(READ | WRITE, 40);
const QGROUP_LIMIT: c_ulong = request::<QgroupLimitArgs>(READ, 43);

const QUOTA_CTL_ENABLE: u64 = 1;
const QUOTA_CTL_ENABLE_SIMPLE_QUOTA: u64 = 4;
const QGROUP_LIMIT_MAX_RFER: u64 = 1;
const SUBVOL_RDONLY: u64 = 2;

#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; NAME_LEN],
}

/// `struct btrfs_ioctl_vol_args_v2`, without quota groups to inherit.
#[repr(C)]
struct SnapshotArgs {
    source: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

#[repr(C)]
struct InodeLookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct FileSystemInfo {
    max_id: u64,
    devices: u64,
    id: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupLimitArgs {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `_IOC` of `asm-generic/ioctl.h` with btrfs's magic.
const fn request<T>(direction: c_ulong, number: c_ulong) -> c_ulong {
    (direction << 30) | ((size_of::<T>() as c_ulong) << 16) | (MAGIC << 8) | number
}

/// Makes an empty subvolume `name` in the directory `parent`, owned by the caller.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let args = VolumeArgs::named(name)?;
    // SAFETY: `parent` is open for the borrow; SUBVOL_CREATE only reads the 4096 bytes of `args`, whose name is NUL-terminated.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SUBVOL_CREATE, &raw const *args) })
}

/// Deletes the subvolume `name` in `parent` with all it contains. Returns before the space is free again.
/// Fails with `EBUSY` when something is mounted on it, and with `ENOTEMPTY` when it contains another subvolume.
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let args = VolumeArgs::named(name)?;
    // SAFETY: `parent` is open for the borrow; SNAP_DESTROY only reads the 4096 bytes of `args`, whose name is NUL-terminated.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SNAP_DESTROY, &raw const *args) })
}

/// Whether a snapshot may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Makes `name` in `parent` a snapshot of the subvolume `source`: the same files, sharing their blocks. What was written to `source`
/// before is in it, synced or not.
pub fn snapshot_subvolume(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
    access: Access,
) -> io::Result<()> {
    let mut args = Box::new(SnapshotArgs {
        source: source.as_raw_fd().into(),
        transaction: 0,
        flags: match access {
            Access::ReadOnly => SUBVOL_RDONLY,
            Access::ReadWrite => 0,
        },
        unused: [0; 4],
        name: [0; 4040],
    });
    let bytes = name.to_bytes_with_nul();
    let Some(space) = args.name.get_mut(..bytes.len()) else {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    };
    space.copy_from_slice(bytes);
    // SAFETY: both descriptors are open for their borrows; SNAP_CREATE_V2 only reads the 4096 bytes of `args`, whose name is NUL-terminated.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SNAP_CREATE_V2, &raw const *args) })
}

/// The number of the subvolume that `directory` belongs to; its quota group is `0/<number>`.
pub fn subvolume_id(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let mut args = Box::new(InodeLookupArgs {
        tree: 0,
        object: SUBVOLUME_ROOT_INODE,
        name: [0; 4080],
    });
    // SAFETY: `directory` is open for the borrow; INO_LOOKUP reads and writes within the 4096 bytes of `args`, which we own alone.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), INO_LOOKUP, &raw mut *args) })?;
    Ok(args.tree)
}

/// Makes the subvolume that `directory` belongs to read-only. Idempotent.
pub fn set_read_only(directory: BorrowedFd<'_>) -> io::Result<()> {
    let mut flags = 0_u64;
    // SAFETY: `directory` is open for the borrow; GETFLAGS writes one u64, which `flags` is.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_GETFLAGS, &raw mut flags) })?;
    if flags & SUBVOL_RDONLY != 0 {
        return Ok(());
    }
    flags |= SUBVOL_RDONLY;
    // SAFETY: `directory` is open for the borrow; SETFLAGS reads one u64, which `flags` is.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_SETFLAGS, &raw const flags) })
}

/// The UUID of the file system, as `/sys/fs/btrfs/<uuid>` spells it in text.
pub fn file_system_id(directory: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut info = Box::new(FileSystemInfo {
        max_id: 0,
        devices: 0,
        id: [0; 16],
        rest: [0; 992],
    });
    // SAFETY: `directory` is open for the borrow; FS_INFO reads and writes within the 1024 bytes of `info`, which we own alone.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FS_INFO, &raw mut *info) })?;
    Ok(info.id)
}

/// Switches quotas on for the whole file system. `EINVAL` or `ENOTTY` where the kernel knows no such kind.
pub fn enable_quota(directory: BorrowedFd<'_>, kind: QuotaKind) -> io::Result<()> {
    let command = match kind {
        QuotaKind::Simple => QUOTA_CTL_ENABLE_SIMPLE_QUOTA,
        QuotaKind::Full => QUOTA_CTL_ENABLE,
    };
    let mut args = QuotaControl { command, status: 0 };
    // SAFETY: `directory` is open for the borrow; QUOTA_CTL reads and writes within the 16 bytes of `args`.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), QUOTA_CTL, &raw mut args) })
}

/// Limits the bytes that the subvolume of `directory` may refer to, metadata included; writes beyond answer `EDQUOT`.
pub fn limit_referenced(directory: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let args = QgroupLimitArgs {
        qgroup: 0, // the kernel then takes the subvolume of the descriptor
        flags: QGROUP_LIMIT_MAX_RFER,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: `directory` is open for the borrow; QGROUP_LIMIT only reads the 48 bytes of `args`.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), QGROUP_LIMIT, &raw const args) })
}

/// Writes everything back, and has the kernel begin at once to give back the space of deleted subvolumes, which else waits for its next
/// round (30 s by default). Returns before that space is free.
pub fn commit(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `directory` is open for the borrow; BTRFS_IOC_SYNC takes no argument.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SYNC, 0) })
}

/// Grows the file system to the size of its first device.
pub fn resize_to_device(directory: BorrowedFd<'_>) -> io::Result<()> {
    let args = VolumeArgs::named(c"1:max")?;
    // SAFETY: `directory` is open for the borrow; RESIZE only reads the 4096 bytes of `args`, whose text is NUL-terminated.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), RESIZE, &raw const *args) })
}

impl VolumeArgs {
    fn named(name: &CStr) -> io::Result<Box<Self>> {
        let bytes = name.to_bytes_with_nul();
        let mut args = Box::new(Self {
            fd: 0,
            name: [0; NAME_LEN],
        });
        let Some(space) = args.name.get_mut(..bytes.len()) else {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        };
        space.copy_from_slice(bytes);
        Ok(args)
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as a C compiler makes them of `linux/btrfs.h`.
    #[test]
    fn requests_have_the_kernel_numbers() {
        assert_eq!(RESIZE, 0x5000_9403);
        assert_eq!(SUBVOL_CREATE, 0x5000_940e);
        assert_eq!(SNAP_DESTROY, 0x5000_940f);
        assert_eq!(SNAP_CREATE_V2, 0x5000_9417);
        assert_eq!(INO_LOOKUP, 0xd000_9412);
        assert_eq!(SUBVOL_GETFLAGS, 0x8008_9419);
        assert_eq!(SUBVOL_SETFLAGS, 0x4008_941a);
        assert_eq!(FS_INFO, 0x8400_941f);
        assert_eq!(QUOTA_CTL, 0xc010_9428);
        assert_eq!(QGROUP_LIMIT, 0x8030_942b);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let long = std::ffi::CString::new(vec![b'a'; NAME_LEN]).expect("no NUL in it");
        let error = VolumeArgs::named(&long)
            .err()
            .and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::ENAMETOOLONG));
    }
}
