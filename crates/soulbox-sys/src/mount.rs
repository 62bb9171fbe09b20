//! Attributes of detached mounts.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to make of a mount that nobody sees yet.
#[derive(Debug, Clone, Copy)]
pub struct MountAttributes<'fd> {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_exec: bool,
    /// A user namespace whose maps translate the IDs on disk.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// Apply to the mounts below as well.
    pub recursive: bool,
}

impl MountAttributes<'_> {
    /// Only read-only.
    pub const READ_ONLY: Self = Self {
        read_only: true,
        no_suid: false,
        no_exec: false,
        idmap: None,
        recursive: false,
    };
}

/// Sets attributes of the mount that `mount` (from open_tree or fsmount) stands for. Needs CAP_SYS_ADMIN over its namespace; the ID map also
/// over the file system's user namespace.
///
/// # Errors
/// The kernel's: `EINVAL` where the file system cannot be ID-mapped.
/// Source: mount_setattr(2)
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if attributes.read_only {
        attr.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if attributes.no_suid {
        attr.attr_set |= libc::MOUNT_ATTR_NOSUID;
    }
    if attributes.no_exec {
        attr.attr_set |= libc::MOUNT_ATTR_NOEXEC;
    }
    if let Some(userns) = attributes.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = userns.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH
        | if attributes.recursive {
            libc::AT_RECURSIVE
        } else {
            0
        };
    // SAFETY: both descriptors are open for their borrows, the path is an empty C string and `attr` is alive and of the size told.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
