//! Connecting to a port inside. A helper thread only makes the sockets, inside the sandbox's network namespace; connecting them is the caller's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use soulbox_sys::socket::set_mark;

use crate::identity::INNER_ADDRESS;
use crate::network::sockets::DIALLED;

/// Where a server inside may listen, in the order in which to try: 127.0.0.1, ::1, the address of eth0. The first two also reach servers
/// on 0.0.0.0 and ::.
#[must_use]
pub fn addresses(port: u16) -> [SocketAddr; 3] {
    [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        SocketAddr::from((INNER_ADDRESS, port)),
    ]
}

struct Job {
    network_namespace: OwnedFd,
    ipv6: bool,
    reply: SyncSender<io::Result<OwnedFd>>,
}

/// The thread that makes sockets. It ends when this is dropped.
#[derive(Debug)]
pub struct Dialer {
    jobs: SyncSender<Job>,
}

impl Dialer {
    /// Starts the thread. Needs root.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start() -> io::Result<Self> {
        let home = open(
            "/proc/self/ns/net",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (jobs, inbox) = sync_channel(1024);
        thread::Builder::new()
            .name("dialer".into())
            .spawn(move || run(&inbox, &home))?;
        Ok(Self { jobs })
    }

    /// A new TCP socket in that network namespace: not connected, non-blocking. Blocks for some 20 µs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn socket(&self, network_namespace: OwnedFd, ipv6: bool) -> io::Result<OwnedFd> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (reply, answer) = sync_channel(1);
        self.jobs
            .send(Job {
                network_namespace,
                ipv6,
                reply,
            })
            .map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn run(inbox: &Receiver<Job>, home: &OwnedFd) {
    while let Ok(job) = inbox.recv() {
        let made = make(&job);
        // A thread that stayed would keep the namespace, and with it the veth pair, of a sandbox that is gone.
        if let Err(error) =
            move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        {
            let _ = job.reply.send(Err(error.into()));
            return;
        }
        let _ = job.reply.send(made);
    }
}

fn make(job: &Job) -> io::Result<OwnedFd> {
    move_into_link_name_space(
        job.network_namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?;
    marked_socket(job.ipv6)
}

/// A socket in the thread's network namespace that can be told from those of the programs inside: before a dump it is reset.
pub(crate) fn marked_socket(ipv6: bool) -> io::Result<OwnedFd> {
    let family = if ipv6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    set_mark(socket.as_fd(), DIALLED)?;
    Ok(socket)
}
