//! Loop devices: a file as a block device.
//!
//! A device made here clears itself when its last user goes (`LO_FLAGS_AUTOCLEAR`): unmounting is enough.
//! Numbers and layouts: `linux/loop.h`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};

const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: c_ulong = 0x4C07;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `LOOP_MAJOR` of `linux/major.h`.
pub const MAJOR: u32 = 7;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// The file behind a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// `st_dev` of the file, in the kernel's own encoding of 32 bits.
    pub device: u64,
    /// `st_ino` of the file.
    pub inode: u64,
}

/// The number of a device that is free at this moment; another process may take it first.
pub fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `control` is open for the borrow; LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Puts `file` behind `device`, buffered, with blocks of 4 KiB. `EBUSY` when the device has a file already.
/// The caller keeps `device` open until something else (a mount) uses it, or it clears itself again.
pub fn attach(device: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    let fd =
        u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let info = LoopInfo {
        flags: LO_FLAGS_AUTOCLEAR,
        ..LoopInfo::ZERO
    };
    let config = LoopConfig {
        fd,
        block_size: 4096,
        info,
        reserved: [0; 8],
    };
    // SAFETY: both descriptors are open for the borrows; LOOP_CONFIGURE only reads the 304 bytes of `config`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
}

/// Tells the device that its file has grown.
pub fn update_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `device` is open for the borrow; LOOP_SET_CAPACITY takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) })
}

/// What lies behind the device; `ENXIO` when nothing does.
pub fn backing(device: BorrowedFd<'_>) -> io::Result<Backing> {
    let mut info = LoopInfo::ZERO;
    // SAFETY: `device` is open for the borrow; LOOP_GET_STATUS64 writes within the 232 bytes of `info`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    Ok(Backing {
        device: info.device,
        inode: info.inode,
    })
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

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
