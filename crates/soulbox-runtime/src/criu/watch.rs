//! Watching CRIU itself, so that its end finds what it holds standing still.
//!
//! A process that is killed lets go of all that it traces, and those go on at once, wherever they are. Of a process that is traced itself
//! the kernel tells before: it stops once more on its way out (PTRACE_EVENT_EXIT), with everything still in its hands.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// A thread that traces a process until that has ended.
#[derive(Debug)]
pub(crate) struct Watch<T> {
    thread: JoinHandle<Option<T>>,
    released: Arc<AtomicBool>,
}

impl<T: Send + 'static> Watch<T> {
    /// Watches a child of this process. When it ends before [`Watch::release`], and not by exiting with 0, `last` is called while it still
    /// holds what it traces. Whoever started it reaps it.
    ///
    /// # Errors
    /// The kernel's: no thread, or somebody traces it already.
    pub(crate) fn begin(pid: i32, last: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (begun, has_begun) = sync_channel(1);
        let released = Arc::new(AtomicBool::new(false));
        let is_released = Arc::clone(&released);
        let thread = thread::Builder::new()
            .name("criu-watch".to_owned())
            .spawn(move || follow(Pid::from_raw(pid), &begun, &is_released, last))?;
        // All requests of ptrace(2) must come from the thread that traces.
        has_begun
            .recv()
            .map_err(io::Error::other)?
            .map_err(io::Error::from)?;
        Ok(Self { thread, released })
    }

    /// It holds nothing any more: its end may come.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// Waits for the end of the process; what `last` gave, if it was called.
    pub(crate) fn end(self) -> Option<T> {
        self.thread.join().ok().flatten()
    }
}

fn follow<T>(
    process: Pid,
    begun: &SyncSender<nix::Result<()>>,
    released: &AtomicBool,
    last: impl FnOnce() -> T,
) -> Option<T> {
    let seized = ptrace::seize(process, ptrace::Options::PTRACE_O_TRACEEXIT);
    let goes_on = seized.is_ok();
    if begun.send(seized).is_err() || !goes_on {
        return None;
    }
    let mut last = Some(last);
    let mut told = None;
    // Nothing is taken from whoever waits for its exit.
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
    loop {
        let signal = match waitid(Id::Pid(process), how) {
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                let ended_well = ptrace::getevent(process) == Ok(0);
                if !ended_well && !released.load(Ordering::SeqCst) {
                    told = told.or_else(|| Some(last.take()?()));
                }
                None
            }
            // A signal on its way to it.
            Ok(WaitStatus::PtraceEvent(_, signal, 0)) => Some(signal),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return told;
            }
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => None,
        };
        // It may be gone by now, which the next turn sees.
        let _ = ptrace::cont(process, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, ExitStatus};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

    use super::*;

    fn watched(script: &str) -> (Child, Watch<String>) {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let status = move || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let watch = Watch::begin(pid, status).unwrap();
        (child, watch)
    }

    fn reap(child: &mut Child) -> ExitStatus {
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
        poll(&mut [PollFd::new(&ended, PollFlags::IN)], None).unwrap();
        child.wait().unwrap()
    }

    #[test]
    fn one_that_is_killed_is_seen_before_it_is_gone() {
        let (mut child, watch) = watched("exec sleep 60");
        child.kill().unwrap();
        let seen = watch.end().expect("it was called");
        assert!(seen.contains("State:\tt (tracing stop)"), "{seen}");
        assert!(!reap(&mut child).success(), "its exit is ours to see");
    }

    #[test]
    fn one_that_ends_well_or_was_released_is_let_go() {
        let (mut child, watch) = watched("sleep 0.3; exit 0");
        assert!(reap(&mut child).success());
        assert_eq!(watch.end(), None);

        let (mut child, watch) = watched("exec sleep 60");
        watch.release();
        child.kill().unwrap();
        reap(&mut child);
        assert_eq!(watch.end(), None);
    }

    #[test]
    fn signals_reach_it() {
        let (mut child, watch) =
            watched("trap 'exit 7' TERM; trap : USR1; while :; do sleep 0.05; done");
        // By then the traps are set.
        thread::sleep(Duration::from_millis(300));
        for signal in [Signal::USR1, Signal::TERM] {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let began = Instant::now();
        assert_eq!(reap(&mut child).code(), Some(7));
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(
            watch.end().is_some(),
            "an exit with a complaint is an end too"
        );
    }
}
