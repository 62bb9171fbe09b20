//! Having what was written to a file go to the disk early.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Has a range of a file begin to go to the disk, so that a later fsync(2) finds less to do. It promises nothing by itself, and waits for
/// no write, but for room in the queue of a disk that has none.
///
/// # Errors
/// The kernel's; `EINVAL` for what is beyond the longest file.
/// Source: sync_file_range(2)
pub fn begin(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<()> {
    let number = |of: u64| i64::try_from(of).map_err(|_| io::ErrorKind::InvalidInput);
    let (at, bytes) = (
        number(range.start)?,
        number(range.end.saturating_sub(range.start))?,
    );
    // SAFETY: `file` is open for the borrow; sync_file_range(2) takes nothing else but numbers.
    let rc =
        unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_file_is_taken_and_a_pipe_is_not() {
        let file = memfd_create("written", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &[7; 10_000]).unwrap();
        begin(file.as_fd(), 0..10_000).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let refused = begin(reader.as_fd(), 0..1).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ESPIPE));
        begin(file.as_fd(), 0..u64::MAX).unwrap_err();
    }
}
