//! A running kernel: what it writes, what it says, its death.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use std::collections::BTreeMap;
use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::crowd::{self, Watch};
use crate::message::{Message, MessageError};

/// One read of a pipe; the kernel's own size of a pipe.
const PIECE: usize = 64 << 10;
/// A message is at most a result, of which drivers show 100 MiB, and its quoting.
const LARGEST_MESSAGE: usize = 128 << 20;
/// Reads of what was written before a message, or before the end: what goes on writing must not hold up either.
const READS_BEFORE: u32 = 64;

/// What a kernel did.
#[derive(Debug)]
pub(crate) enum Event {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Message(Message),
    /// The process is gone, or as good as that.
    Died,
}

impl From<Message> for Event {
    fn from(message: Message) -> Self {
        match message {
            Message::Output { stderr, text } if stderr => Self::Stderr(text.into_bytes()),
            Message::Output { text, .. } => Self::Stdout(text.into_bytes()),
            other => Self::Message(other),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    #[error("cannot connect the kernel")]
    Connect(#[source] io::Error),
    #[error("cannot watch the kernel's process")]
    Watch(#[source] io::Error),
    #[error("the kernel ended before it was ready")]
    EndedEarly,
    #[error("the kernel did not start: {0}")]
    Refused(String),
    #[error("the kernel was not ready within {} s", .0.as_secs())]
    Late(Duration),
}

/// How requests and messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// One JSON value a line.
    Json,
    /// For a driver that is itself a shell script: fields that end with NUL; answers are exit statuses.
    Nul,
}

/// One execution, as a kernel gets it.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) code: &'a str,
    pub(crate) env: &'a BTreeMap<String, String>,
}

/// The kernel's ends of what connects it with this server.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) control: std::os::unix::net::UnixStream,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// This server's ends.
pub(crate) struct Connection {
    control: UnixStream,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// A socket and two pipes. Must be called in the runtime.
pub(crate) fn connection() -> Result<(Connection, Ends), KernelFault> {
    let connect = KernelFault::Connect;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(connect)?;
    ours.set_nonblocking(true).map_err(connect)?;
    let (stdout, stdout_theirs) = io::pipe().map_err(connect)?;
    let (stderr, stderr_theirs) = io::pipe().map_err(connect)?;
    let connection = Connection {
        control: UnixStream::from_std(ours).map_err(connect)?,
        stdout: pipe::Receiver::from_owned_fd(stdout.into()).map_err(connect)?,
        stderr: pipe::Receiver::from_owned_fd(stderr.into()).map_err(connect)?,
    };
    let ends = Ends {
        control: theirs,
        stdout: stdout_theirs.into(),
        stderr: stderr_theirs.into(),
    };
    Ok((connection, ends))
}

/// Of the connection with a kernel.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Something,
    Nothing,
    /// Nothing more will come.
    End,
}

/// Kills its process group when dropped.
#[derive(Debug)]
pub(crate) struct Kernel {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Absent: the fork server is its parent.
    child: Option<Child>,
    control: UnixStream,
    /// Absent: at its end, every writer has closed it.
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    dialect: Dialect,
    received: Vec<u8>,
    searched: usize,
    /// Said, and told as soon as what was written before it is.
    pending: Option<Message>,
    reads_before: u32,
    executions: u64,
    watch: Watch,
    dead: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Kernel {
    /// Takes over a process that was started with the other ends of `connection`, leads its own process group, and is
    /// a child of this process when `child` is given.
    pub(crate) fn new(
        connection: Connection,
        pid: u32,
        child: Option<Child>,
        dialect: Dialect,
    ) -> Result<Self, KernelFault> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| KernelFault::Watch(io::Error::from(io::ErrorKind::InvalidData)))?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)
            .map_err(|errno| KernelFault::Watch(errno.into()))?;
        // Deprecated because a safe caller could pass a type whose descriptor is closed or changes; an OwnedFd's does not.
        #[allow(deprecated)]
        let pidfd = AsyncFd::new(pidfd).map_err(KernelFault::Watch)?;
        crowd::confine(pid);
        Ok(Self {
            pid,
            pidfd,
            child,
            control: connection.control,
            stdout: Some(connection.stdout),
            stderr: Some(connection.stderr),
            dialect,
            received: Vec::new(),
            searched: 0,
            pending: None,
            reads_before: 0,
            executions: 0,
            watch: Watch::new(pid),
            dead: false,
        })
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self, within: Duration) -> Result<(), KernelFault> {
        let waiting = async {
            let mut said = Vec::new();
            loop {
                match self.next().await {
                    Event::Message(Message::Ready) => return Ok(()),
                    Event::Message(Message::Failed { reason }) => {
                        return Err(KernelFault::Refused(reason));
                    }
                    // Whatever the language complains of before the driver can say so itself.
                    Event::Stderr(bytes) if said.len() < 4096 => said.extend(bytes),
                    Event::Died if said.is_empty() => return Err(KernelFault::EndedEarly),
                    Event::Died => {
                        return Err(KernelFault::Refused(
                            String::from_utf8_lossy(&said).trim().to_owned(),
                        ));
                    }
                    Event::Message(_) | Event::Stdout(_) | Event::Stderr(_) => {}
                }
            }
        };
        tokio::time::timeout(within, waiting)
            .await
            .unwrap_or(Err(KernelFault::Late(within)))
    }

    /// Hands over an execution. An error is the kernel's death, which [`Kernel::next`] tells as well.
    pub(crate) async fn execute(&mut self, request: &Request<'_>) -> io::Result<()> {
        let bytes = match self.dialect {
            Dialect::Json => {
                let mut line = serde_json::to_vec(request)?;
                line.push(b'\n');
                line
            }
            Dialect::Nul => nul_request(request),
        };
        self.executions += 1;
        if self.dialect == Dialect::Nul {
            self.pending = Some(Message::Count(self.executions));
        }
        self.control.write_all(&bytes).await
    }

    /// What it does next. Loses nothing when it is cancelled.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if self.dead || self.pending.is_some() {
                if self.reads_before < READS_BEFORE
                    && let Some(event) = self.written_already()
                {
                    self.reads_before += 1;
                    return event;
                }
                self.reads_before = 0;
                if self.pending.is_none() {
                    // Said before it died.
                    self.pending = self.take_message().ok().flatten();
                }
                return self.pending.take().map_or(Event::Died, Event::from);
            }
            match self.take_message() {
                Ok(Some(message)) => {
                    self.pending = Some(message);
                    continue;
                }
                Ok(None) => {}
                // Whoever writes there is not the driver, or no longer: code can reach the driver's descriptor.
                Err(_) => {
                    self.kill();
                    self.dead = true;
                    continue;
                }
            }
            tokio::select! {
                () = readable(self.stdout.as_ref()) => {
                    if let Some(bytes) = read(&mut self.stdout) {
                        return Event::Stdout(bytes);
                    }
                }
                () = readable(self.stderr.as_ref()) => {
                    if let Some(bytes) = read(&mut self.stderr) {
                        return Event::Stderr(bytes);
                    }
                }
                ready = self.control.readable() => {
                    if ready.is_err() || self.receive() == Received::End {
                        self.kill();
                        self.dead = true;
                    }
                }
                _ = self.pidfd.readable() => {
                    while self.receive() == Received::Something {}
                    self.dead = true;
                }
            }
        }
    }

    /// Drops what was written up to now.
    pub(crate) fn forget_output(&mut self) {
        for _ in 0..READS_BEFORE {
            if self.written_already().is_none() {
                return;
            }
        }
    }

    fn written_already(&mut self) -> Option<Event> {
        if let Some(bytes) = read_now(&mut self.stdout) {
            return Some(Event::Stdout(bytes));
        }
        read_now(&mut self.stderr).map(Event::Stderr)
    }

    fn receive(&mut self) -> Received {
        if self.received.len() > LARGEST_MESSAGE {
            return Received::End;
        }
        self.received.reserve(PIECE);
        match self.control.try_read_buf(&mut self.received) {
            Ok(0) => Received::End,
            Ok(_) => Received::Something,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    fn take_message(&mut self) -> Result<Option<Message>, MessageError> {
        let end = match self.dialect {
            Dialect::Json => b'\n',
            Dialect::Nul => 0,
        };
        let Some(length) = self.received[self.searched..]
            .iter()
            .position(|byte| *byte == end)
        else {
            self.searched = self.received.len();
            return Ok(None);
        };
        let length = self.searched + length;
        let message = match self.dialect {
            Dialect::Json => Message::from_json(&self.received[..length]),
            Dialect::Nul => nul_message(&self.received[..length]),
        };
        self.received.drain(..=length);
        // A large result is not kept as room for the next.
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        self.searched = 0;
        message.map(Some)
    }

    /// As Ctrl-C does, programs that the code started included.
    pub(crate) fn interrupt(&self) {
        if !self.dead {
            // Gone already: its death is told by `next`.
            _ = kill_process_group(self.pid, Signal::INT);
        }
    }

    /// Ends it if what it runs is a fork bomb. Its death is told by [`Kernel::next`] as well.
    pub(crate) fn end_bomb(&mut self) -> bool {
        // An error is its death too.
        !self.dead && self.watch.end_bomb().unwrap_or(false)
    }

    /// Ends what was left behind, if that is a crowd.
    pub(crate) fn disperse(&mut self) {
        if !self.dead {
            // An error is its death, which is told by `next`.
            _ = self.watch.disperse();
        }
    }

    /// With its programs, also when it has ended before them: a bomb may outlive the kernel that began it.
    pub(crate) fn kill(&mut self) {
        // By descriptor, in case that it has left its group.
        _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        // Nobody else's: a number is not given out again while a group has it, and its leader ended just now if at all.
        _ = kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.kill();
        if let Some(child) = &mut self.child {
            // Killed above, so this is the time of an exit.
            _ = child.wait();
        }
    }
}

async fn readable(pipe: Option<&pipe::Receiver>) {
    match pipe {
        // An error shows in the read.
        Some(pipe) => _ = pipe.readable().await,
        None => std::future::pending().await,
    }
}

/// What is there; `None` is nothing, or the end, which closes the pipe.
fn read(pipe: &mut Option<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PIECE];
    match pipe.as_ref()?.try_read(&mut bytes) {
        Ok(length) if length > 0 => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        _ => {
            *pipe = None;
            None
        }
    }
}

/// As [`read`], but of the pipe itself: the runtime may not have heard yet of what was written before a message that it has
/// handed over already, and would say that nothing is there.
fn read_now(pipe: &mut Option<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PIECE];
    match rustix::io::read(pipe.as_ref()?, &mut bytes) {
        Ok(length) if length > 0 => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(Errno::AGAIN | Errno::INTR) => None,
        _ => {
            *pipe = None;
            None
        }
    }
}

/// `NAME=value` for each variable, an empty field, the code.
fn nul_request(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in request.env {
        bytes.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(request.code.as_bytes());
    bytes.push(0);
    bytes
}

/// `ready`, an exit status whose error is shown, or `done`.
fn nul_message(field: &[u8]) -> Result<Message, MessageError> {
    Ok(match field {
        b"ready" => Message::Ready,
        b"done" => Message::Done,
        status => {
            let status: u8 = std::str::from_utf8(status)
                .ok()
                .and_then(|status| status.parse().ok())
                .ok_or(MessageError::Status)?;
            Message::Error(crate::message::KernelError {
                name: String::new(),
                value: status.to_string(),
                traceback: String::new(),
            })
        }
    })
}
