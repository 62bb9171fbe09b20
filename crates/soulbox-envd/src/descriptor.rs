//! Descriptors that the event loop waits for.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;

pub(crate) type Descriptor = AsyncFd<OwnedFd>;

/// Makes the open file non-blocking and registers it with the event loop.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<Descriptor> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
    // Deprecated because a safe caller could pass a type whose descriptor is closed or changes; an OwnedFd's does not.
    #[allow(deprecated)]
    AsyncFd::new(descriptor)
}

/// Restores and dumps interrupt system calls once.
pub(crate) fn retry_interrupted<T>(call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(call).map_err(Into::into)
}
