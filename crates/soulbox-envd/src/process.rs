//! Programs of the sandbox: who runs, what they say, how they ended.
//!
//! Each program has one task, which alone reads its output and its exit (`run`); requests reach it through [`Process`].
//! Neither depends on the request that started the program. A finished program is remembered for [`RETENTION`], so that
//! a client that comes back a little late still learns the end.

mod exit;
mod fanout;
mod input;
mod service;
mod spawn;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use soulbox_envd_proto::LogLevel;
use soulbox_envd_proto::rpc::process::process_event::EndEvent;
use soulbox_envd_proto::rpc::process::{ProcessConfig, StartRequest};
use tokio_util::sync::CancellationToken;

use crate::cause::chain;
use crate::descriptor::{Descriptor, retry_interrupted};
use crate::log::Log;
use exit::Exit;
pub(crate) use exit::Lifetime;
use fanout::{Channel, Fanout};
pub(crate) use fanout::{Event, Subscription};
use input::Input;
pub(crate) use input::InputKind;
pub(crate) use service::ProcessService;
pub(crate) use spawn::{DEFAULT_PATH, StartError, Surroundings};

/// How long the end of a program is kept for late clients.
const RETENTION: Duration = Duration::from_secs(30);
/// One read of output: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// Smaller chunks are copied, so that they do not pin a whole buffer while they wait.
const COPIED: usize = 8 << 10;

/// A live program.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    /// As the client gave it.
    pub(crate) config: ProcessConfig,
    pub(crate) input: Input,
    started: Instant,
    pidfd: OwnedFd,
    fanout: Arc<Fanout>,
    /// Set when the program was told to end: its pipes are then not waited for, since children may hold them.
    cut: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    #[error("process {pid} has finished already")]
    Finished { pid: u32 },
    #[error("error sending signal to process {pid}")]
    Send {
        pid: u32,
        #[source]
        source: io::Error,
    },
}

/// What a request names a program by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// A program that a client may follow.
pub(crate) enum Followed {
    Live(Subscription),
    /// It has ended within the last [`RETENTION`].
    Finished {
        pid: u32,
        end: EndEvent,
    },
}

#[derive(Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
    pub(crate) log: Log,
}

#[derive(Default)]
struct Table {
    live: HashMap<u32, Arc<Process>>,
    finished: VecDeque<Finished>,
}

struct Finished {
    pid: u32,
    tag: Option<String>,
    end: EndEvent,
    at: Instant,
}

impl Selector {
    fn selects(&self, pid: u32, tag: Option<&str>) -> bool {
        match self {
            Self::Pid(wanted) => *wanted == pid,
            Self::Tag(wanted) => tag == Some(wanted),
        }
    }
}

impl Processes {
    /// Starts a program and its task. `deadline` is the end of the program's life.
    pub(crate) fn start(
        self: &Arc<Self>,
        mut request: StartRequest,
        surroundings: &Surroundings<'_>,
        deadline: Option<Instant>,
    ) -> Result<(Arc<Process>, Subscription), StartError> {
        let started = spawn::start(&request, surroundings).inspect_err(|error| {
            let fields = [("command", command(&request)), ("error", chain(error))];
            self.log
                .note(LogLevel::Warn, "process", "process_start_failed", fields);
        })?;
        let fields = [
            ("pid", started.spawned.pid.to_string()),
            ("command", command(&request)),
            ("user", surroundings.user.name.clone()),
        ];
        self.log
            .note(LogLevel::Info, "process", "process_start", fields);
        let process = Arc::new(Process {
            pid: started.spawned.pid,
            tag: request.tag.take(),
            config: request.process.take().unwrap_or_default(),
            input: started.input,
            started: Instant::now(),
            pidfd: started.spawned.pidfd,
            fanout: Arc::default(),
            cut: CancellationToken::new(),
        });
        let subscription = process.fanout.subscribe(process.pid);
        {
            let mut table = self.lock();
            table.finished.retain(|finished| {
                finished.pid != process.pid
                    && (finished.tag.is_none() || finished.tag != process.tag)
            });
            table.live.insert(process.pid, Arc::clone(&process));
        }
        // The task belongs to the program, not to the request: it ends when the program has ended.
        tokio::spawn(run(
            Arc::clone(self),
            Arc::clone(&process),
            started.pidfd,
            started.outputs,
            deadline,
        ));
        Ok((process, subscription))
    }

    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        let mut all: Vec<_> = self.lock().live.values().cloned().collect();
        all.sort_by_key(|process| process.pid);
        all
    }

    pub(crate) fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.lock().find(selector)
    }

    pub(crate) fn follow(&self, selector: &Selector) -> Option<Followed> {
        let table = self.lock();
        if let Some(process) = table.find(selector) {
            return Some(Followed::Live(process.fanout.subscribe(process.pid)));
        }
        table
            .finished
            .iter()
            .rev()
            .find(|finished| {
                finished.at.elapsed() < RETENTION
                    && selector.selects(finished.pid, finished.tag.as_deref())
            })
            .map(|finished| Followed::Finished {
                pid: finished.pid,
                end: finished.end.clone(),
            })
    }

    /// Live entry out, end in, in one step: a client finds one or the other.
    fn finish(&self, process: &Process, end: &EndEvent) {
        let mut table = self.lock();
        table
            .finished
            .retain(|finished| finished.at.elapsed() < RETENTION);
        table.finished.push_back(Finished {
            pid: process.pid,
            tag: process.tag.clone(),
            end: end.clone(),
            at: Instant::now(),
        });
        table.live.remove(&process.pid);
        process.fanout.close(end);
        drop(table);
        let level = if end.error.is_none() {
            LogLevel::Info
        } else {
            LogLevel::Warn
        };
        let fields = [
            ("pid", process.pid.to_string()),
            ("exit_code", end.exit_code.to_string()),
            ("process_result", end.status.clone()),
            ("took_ms", process.started.elapsed().as_millis().to_string()),
        ];
        self.log.note(level, "process", "process_end", fields);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        match selector {
            Selector::Pid(pid) => self.live.get(pid).cloned(),
            Selector::Tag(_) => self
                .live
                .values()
                .find(|process| selector.selects(process.pid, process.tag.as_deref()))
                .cloned(),
        }
    }
}

impl Process {
    /// Sends a signal that ends the program; does not wait for the end.
    pub(crate) fn end(&self, signal: Signal) -> Result<(), SignalError> {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => SignalError::Finished { pid: self.pid },
            errno => SignalError::Send {
                pid: self.pid,
                source: errno.into(),
            },
        })?;
        self.cut.cancel();
        Ok(())
    }
}

/// Program and arguments of a request, for people: not to be parsed.
fn command(request: &StartRequest) -> String {
    let Some(config) = request.process.as_option() else {
        return String::new();
    };
    let words = std::iter::once(&config.cmd).chain(&config.args);
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// One output of a program, `None` once it is at its end.
struct Source {
    channel: Channel,
    descriptor: Option<Arc<Descriptor>>,
}

impl Source {
    /// The next chunk; nothing at the end. Never ready again after that. Cancel-safe.
    async fn read(&mut self) -> Option<Bytes> {
        let Some(descriptor) = &self.descriptor else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = descriptor.readable().await else {
                break;
            };
            match ready.try_io(read_chunk) {
                Ok(Ok(chunk)) if !chunk.is_empty() => return Some(chunk),
                // A terminal whose other side is closed answers EIO.
                Ok(_) => break,
                Err(_would_block) => {}
            }
        }
        self.descriptor = None;
        None
    }

    /// What lies in the pipe already, at most a pipe full.
    fn drain(&mut self, fanout: &Fanout) {
        let Some(descriptor) = self.descriptor.take() else {
            return;
        };
        if let Ok(chunk) = read_chunk(&descriptor)
            && !chunk.is_empty()
        {
            fanout.publish(self.channel, &chunk);
        }
    }
}

fn read_chunk(descriptor: &Descriptor) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(CHUNK);
    let length = retry_interrupted(|| {
        rustix::io::read(descriptor, rustix::buffer::spare_capacity(&mut buffer))
    })?;
    Ok(if length <= COPIED {
        Bytes::copy_from_slice(&buffer)
    } else {
        Bytes::from(buffer)
    })
}

/// The task of one program.
async fn run(
    processes: Arc<Processes>,
    process: Arc<Process>,
    pidfd: Descriptor,
    outputs: Vec<(Channel, Arc<Descriptor>)>,
    deadline: Option<Instant>,
) {
    let mut sources = outputs.into_iter().map(|(channel, descriptor)| Source {
        channel,
        descriptor: Some(descriptor),
    });
    let mut first = sources.next().unwrap_or(Source {
        channel: Channel::Stdout,
        descriptor: None,
    });
    let mut second = sources.next().unwrap_or(Source {
        channel: Channel::Stderr,
        descriptor: None,
    });
    let mut lifetime = Lifetime::Within;
    let mut exit = None;
    let deadline = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);

    let exit = loop {
        if let Some(exit) = exit
            && (process.cut.is_cancelled()
                || (first.descriptor.is_none() && second.descriptor.is_none()))
        {
            break exit;
        }
        let room = process.fanout.has_room();
        tokio::select! {
            ended = wait(&pidfd), if exit.is_none() => exit = Some(ended),
            () = &mut deadline, if lifetime == Lifetime::Within => {
                lifetime = Lifetime::Expired;
                // A program that has ended meanwhile needs no signal, but its pipes are not waited for either.
                _ = process.end(Signal::KILL);
                process.cut.cancel();
            }
            () = process.cut.cancelled(), if exit.is_some() => {}
            () = process.fanout.room(), if !room => {}
            chunk = first.read(), if room => if let Some(chunk) = chunk { process.fanout.publish(first.channel, &chunk) },
            chunk = second.read(), if room => if let Some(chunk) = chunk { process.fanout.publish(second.channel, &chunk) },
        }
    };
    for source in [&mut first, &mut second] {
        source.drain(&process.fanout);
    }
    process.input.abandon();
    // Only now may the kernel give the pid away: until here it names this program in the table.
    reap(&pidfd);
    processes.finish(&process, &exit.event(lifetime));
}

/// Waits for the exit; the process stays a zombie. Cancel-safe.
pub(crate) async fn wait(pidfd: &Descriptor) -> Exit {
    loop {
        let Ok(mut ready) = pidfd.readable().await else {
            return Exit::Code(-1);
        };
        match exit_of(
            pidfd,
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        ) {
            Ok(Some(exit)) => return exit,
            Ok(None) => ready.clear_ready(),
            // ECHILD: somebody else reaped it, so its code is lost for good.
            Err(_) => return Exit::Code(-1),
        }
    }
}

pub(crate) fn reap(pidfd: &Descriptor) {
    // The exit is known; there is nothing to do about a refusal.
    _ = exit_of(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

fn exit_of(pidfd: &Descriptor, options: WaitIdOptions) -> io::Result<Option<Exit>> {
    let status = retry_interrupted(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options)
    })?;
    Ok(status.and_then(|status| Exit::of(&status)))
}
