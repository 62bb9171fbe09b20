//! Descriptors over a unix stream socket (SCM_RIGHTS), and descriptors inherited across exec.
//!
//! The calls never block: the caller waits for readiness first. What is received has close-on-exec set.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors that one call sends or receives.
pub const MAX_DESCRIPTORS: usize = 16;

/// Sends bytes, and with their first byte the descriptors, in one sendmsg(2); returns how many bytes the kernel took.
/// When that is less than all of them, the descriptors went nevertheless and the rest follows without any.
///
/// # Errors
/// `WouldBlock` when the socket is full (nothing was sent), `InvalidInput` for more than [`MAX_DESCRIPTORS`], `BrokenPipe` when the peer is gone.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty()
        && (descriptors.len() > MAX_DESCRIPTORS
            || !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)))
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags,
    )?)
}

/// Receives into `buffer` and appends the descriptors that came along to `descriptors`; returns the number of bytes, 0 at the end of the stream.
/// One call never crosses the start of a second message that carries descriptors (unix(7)).
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` when the peer sent more than [`MAX_DESCRIPTORS`] (the excess was closed by the kernel).
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        flags,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors than a message may carry",
        ));
    }
    Ok(received.bytes)
}

/// Takes the ownership of a descriptor that this process inherited under a number it was told, with close-on-exec set.
/// Standard input (0) and output (1) are moved to another number and `/dev/null` takes their place, so that no later file gets it.
/// Each other number can be taken once. For the start of a process, before it opens anything itself.
///
/// # Errors
/// `InvalidInput` for 2, negative numbers and a number taken before; the system's error when no such descriptor is open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    if number == 2 || number < 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no number of an inherited descriptor",
        ));
    }
    if number < 2 {
        return replace_standard_stream(number);
    }
    let mut taken = TAKEN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: F_SETFD changes only the flag of the number given and fails with EBADF when nothing is open there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    if !taken.insert(number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor was taken before",
        ));
    }
    // SAFETY: the number is open (fcntl above), it came from outside of this program and `taken` lets nobody own it twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn replace_standard_stream(number: RawFd) -> io::Result<OwnedFd> {
    let stream: &dyn AsFd = if number == 0 {
        &io::stdin()
    } else {
        &io::stdout()
    };
    let moved = rustix::io::fcntl_dupfd_cloexec(stream.as_fd(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: both are open, and 0 and 1 are owned by nobody: the standard library only borrows them.
    if unsafe { libc::dup2(null.as_raw_fd(), number) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_keep_their_order_and_are_closed_on_exec() {
        let (left, right) = UnixStream::pair().unwrap();
        let pipes: Vec<_> = (0..MAX_DESCRIPTORS)
            .map(|_| std::io::pipe().unwrap())
            .collect();
        let readers: Vec<BorrowedFd<'_>> = pipes.iter().map(|(reader, _)| reader.as_fd()).collect();
        assert_eq!(send(left.as_fd(), b"frame", &readers).unwrap(), 5);
        let (mut bytes, mut received) = ([0; 64], Vec::new());
        assert_eq!(
            receive(right.as_fd(), &mut bytes, &mut received).unwrap(),
            5
        );
        assert_eq!(received.len(), MAX_DESCRIPTORS);
        for (at, (descriptor, (_, writer))) in received.into_iter().zip(&pipes).enumerate() {
            assert!(
                rustix::io::fcntl_getfd(&descriptor)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
            let at = u8::try_from(at).unwrap();
            let mut writer = writer.try_clone().unwrap();
            writer.write_all(&[at]).unwrap();
            let mut byte = [0];
            File::from(descriptor).read_exact(&mut byte).unwrap();
            assert_eq!(byte, [at]);
        }
    }

    #[test]
    fn one_receive_does_not_mix_the_descriptors_of_two_messages() {
        let (left, right) = UnixStream::pair().unwrap();
        let (first, second) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        send(left.as_fd(), b"a", &[first.0.as_fd()]).unwrap();
        send(left.as_fd(), b"b", &[second.0.as_fd()]).unwrap();
        let (mut bytes, mut received) = ([0; 64], Vec::new());
        assert_eq!(
            receive(right.as_fd(), &mut bytes, &mut received).unwrap(),
            1
        );
        assert_eq!(received.len(), 1);
    }

    #[test]
    fn too_many_and_nothing_are_errors() {
        let (left, right) = UnixStream::pair().unwrap();
        let many = vec![left.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(
            send(left.as_fd(), b"x", &many).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let error = receive(right.as_fd(), &mut [0; 8], &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(
            receive(right.as_fd(), &mut [0; 8], &mut Vec::new()).unwrap(),
            0
        );
    }

    #[test]
    fn inherited_descriptors_are_taken_once() {
        assert!(take_inherited(2).is_err());
        assert!(take_inherited(-1).is_err());
        assert!(take_inherited(900_000).is_err());
        let number = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 100)
            .map(std::os::fd::IntoRawFd::into_raw_fd)
            .unwrap();
        let taken = take_inherited(number).unwrap();
        assert!(take_inherited(number).is_err());
        drop(taken);
    }
}
