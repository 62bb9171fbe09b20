//! The control socket between the host agent and a launcher: one JSON message with its descriptors a packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::network::sockets::Connections;
use crate::plan::{BootPlan, SetupPlan};

/// The longest message; a boot plan with its filter has some 8 KiB.
const MAX_MESSAGE: usize = 128 << 10;
/// The most descriptors with one message.
const MAX_FDS: usize = 16;

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// With one descriptor for each cgroup file that a process joins by writing `0`.
    Setup(SetupPlan),
    /// The veth pair is in place.
    NetworkReady,
    /// With three descriptors: the root (a detached overlay), /dev/shm, and the directory of guest programs.
    Boot(BootPlan),
    /// First message: become CRIU. With a tmpfs for /run, CRIU's socket, and cgroup files to join.
    Criu(CriuPlan),
    /// To the launcher that becomes CRIU, for a restore: the same three descriptors as with a boot.
    Mounts,
    /// First message: work in the namespaces of a sandbox. With its user and network namespace. A plan for those of a restored one.
    Furnish(Option<SetupPlan>),
    /// End connections there.
    Reset(Connections),
    /// First message: watch CRIU.
    Watch(WatchPlan),
    /// CRIU holds nothing any more.
    LetGo,
}

/// Whom to watch, and what is to stand still when it dies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchPlan {
    pub criu: i32,
    /// Of what CRIU holds. When that is ending, it is let go.
    pub init: i32,
    pub cgroup: String,
}

/// How to run CRIU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriuPlan {
    /// Program and arguments; the launcher appends `swrk FD`.
    pub program: Vec<String>,
    /// For a restore: first ID on the host and number of IDs.
    pub ids: Option<(u32, u32)>,
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromLauncher {
    /// The child is made; with its pidfd. The pid is the agent's view.
    Cloned {
        pid: i32,
    },
    /// The child has its maps and file systems and has left the host's root: its network namespace can be furnished.
    Inside,
    /// The child listens on envd's port and waits for a boot plan.
    Parked,
    /// envd is started, all privileges are dropped; the last message.
    Booted,
    /// With a user namespace that has the IDs of a restore.
    Mapped,
    /// The namespaces are as told.
    Furnished,
    /// It traces CRIU.
    Watching,
    /// CRIU is dying, and what it held stands still.
    Stopped,
    Failed {
        step: String,
        errno: i32,
    },
}

/// One end of the control socket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A connected pair, both closed on exec.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: ours }, theirs))
    }

    /// A pair of which both ends are ours.
    #[cfg(test)]
    pub(crate) fn both() -> io::Result<(Self, Self)> {
        let (ours, theirs) = Self::pair()?;
        Ok((ours, Self { socket: theirs }))
    }

    /// Starts the launcher with the other end as its standard input, and nothing else of ours.
    ///
    /// # Errors
    /// No socket, or a program that cannot be executed.
    pub(crate) fn start(launcher: &Path) -> io::Result<(Self, Child)> {
        let (control, theirs) = Self::pair()?;
        let process = Command::new(launcher)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((control, process))
    }

    /// The launcher's end: a duplicate of standard input that is closed on exec.
    ///
    /// # Errors
    /// `ENOTSOCK` when standard input is something else.
    pub fn from_stdin() -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
        rustix::net::sockopt::socket_type(&socket)?;
        Ok(Self { socket })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `EPIPE` when the other end is gone (no signal is raised).
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(&body)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Receives one message, waiting for at most `within` (for ever when `None`). `Ok(None)` when the other end is closed.
    ///
    /// # Errors
    /// `ETIMEDOUT`; `EBADMSG` for a message that was cut or is no `M`.
    pub fn receive<M: DeserializeOwned>(
        &self,
        within: Option<Duration>,
    ) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        if let Some(within) = within {
            let timeout = Timespec {
                tv_sec: within.as_secs().cast_signed(),
                tv_nsec: within.subsec_nanos().into(),
            };
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            let polled = loop {
                match poll(&mut ready, Some(&timeout)) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other?,
                }
            };
            if polled == 0 {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
        }
        let mut body = vec![0u8; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut body)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                // The other process ended with our messages unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::from_raw_os_error(libc::EBADMSG));
        }
        let message = serde_json::from_slice(&body[..received.bytes])
            .map_err(|_| io::Error::from_raw_os_error(libc::EBADMSG))?;
        Ok(Some((message, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (ours, theirs) = Channel::both().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        ours.send(&FromLauncher::Cloned { pid: 7 }, &[writer.as_fd()])
            .unwrap();
        drop(writer);
        let (message, mut descriptors) = theirs
            .receive::<FromLauncher>(Some(Duration::from_secs(5)))
            .unwrap()
            .unwrap();
        assert!(matches!(message, FromLauncher::Cloned { pid: 7 }));
        rustix::io::write(descriptors.pop().unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0u8; 4]).unwrap(), 1);
        let late = theirs
            .receive::<FromLauncher>(Some(Duration::from_millis(10)))
            .unwrap_err();
        assert_eq!(late.raw_os_error(), Some(libc::ETIMEDOUT));
        drop(ours);
        assert!(theirs.receive::<FromLauncher>(None).unwrap().is_none());
    }
}
