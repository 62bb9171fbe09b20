//! The launcher as a watcher of CRIU: when CRIU dies, what it holds shall be found standing still.
//!
//! A process that is killed lets go of all that it traces, and those go on at once, wherever they are. Of a process that is traced itself
//! the kernel tells before: it stops once more on its way out (PTRACE_EVENT_EXIT), with everything still in its hands. A process of its own
//! watches and no thread of the agent, since agent and CRIU may be killed together: then what was held stands still until the next agent
//! takes it over.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::channel::{Channel, FromLauncher, ToLauncher, WatchPlan};
use super::{LaunchError, Step};
use crate::cgroup::{CgroupError, Frozen, Hierarchies};
use crate::native::checkpoint::is_ending;

/// Stopping takes a moment for each process that is not stopped by CRIU already.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Returns when CRIU has ended and the agent has taken over what was stopped, or is gone.
pub(super) fn run(control: &Channel, plan: &WatchPlan) -> Result<(), LaunchError> {
    let criu = Pid::from_raw(plan.criu);
    ptrace::seize(criu, ptrace::Options::PTRACE_O_TRACEEXIT).step("trace CRIU")?;
    control.send(&FromLauncher::Watching, &[]).step("report")?;
    let mut frozen = None;
    loop {
        let signal = match waitid(Id::Pid(criu), WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED) {
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                let end = ptrace::getevent(criu).unwrap_or(libc::SIGKILL.into());
                if is_to_be_stopped(control, end) && !is_ending(plan.init) {
                    frozen = tell(control, stop(plan));
                }
                None
            }
            // It is stopped as others are, and no tracing shall wake it.
            Ok(WaitStatus::PtraceEvent(_, stopped, libc::PTRACE_EVENT_STOP))
                if stopped != Signal::SIGTRAP =>
            {
                // It may be gone by now, which the next turn sees.
                let _ = soulbox_sys::trace::leave_stopped(plan.criu);
                continue;
            }
            // A signal on its way to it.
            Ok(WaitStatus::PtraceEvent(_, signal, 0)) => Some(signal),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => break,
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => None,
        };
        // It may be gone by now, which the next turn sees.
        let _ = ptrace::cont(criu, signal);
    }
    if let Some(frozen) = frozen {
        match control.receive::<ToLauncher>(None) {
            // CRIU had nothing in its hands any more.
            Ok(Some((ToLauncher::LetGo, _))) => drop(frozen),
            // The agent has it, or the next one finds it.
            _ => frozen.leave(),
        }
    }
    Ok(())
}

/// Whether CRIU may have left something behind. `end` is how it ends, as wait(2) tells it.
fn is_to_be_stopped(control: &Channel, end: libc::c_long) -> bool {
    match control.receive::<ToLauncher>(Some(Duration::ZERO)) {
        // It holds nothing any more: its end may come.
        Ok(Some(_)) => false,
        // Without an agent it gives up by itself, in good order.
        Ok(None) => libc::WIFSIGNALED(i32::try_from(end).unwrap_or(libc::SIGKILL)),
        Err(_) => end != 0,
    }
}

fn stop(plan: &WatchPlan) -> Result<Frozen, CgroupError> {
    Hierarchies::discover()?
        .adopt(&plan.cgroup)
        .freeze(STOP_WITHIN)
}

/// Tells the agent, which may be gone.
fn tell(control: &Channel, stopped: Result<Frozen, CgroupError>) -> Option<Frozen> {
    let (message, frozen) = match stopped {
        Ok(frozen) => (FromLauncher::Stopped, Some(frozen)),
        Err(error) => {
            let errno = match &error {
                CgroupError::File { source, .. } => source.raw_os_error(),
                _ => None,
            };
            let step = format!("stop what CRIU held: {error}");
            let errno = errno.unwrap_or(0);
            (FromLauncher::Failed { step, errno }, None)
        }
    };
    let _ = control.send(&message, &[]);
    frozen
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread::{self, JoinHandle};

    use rustix::process::{Signal, kill_process};

    use super::{Channel, Duration, FromLauncher, ToLauncher, WatchPlan, is_to_be_stopped, run};

    /// A process, and a thread that watches it and reaps it; there is no cgroup to be stopped, so it complains where it would stop one.
    fn watched(script: &str) -> (rustix::process::Pid, Channel, JoinHandle<bool>) {
        let mut command = Command::new("sh");
        let child = command.args(["-c", script]).stdin(Stdio::null()).spawn();
        let pid = rustix::process::Pid::from_child(&child.unwrap());
        let plan = WatchPlan {
            criu: pid.as_raw_nonzero().get(),
            init: i32::try_from(std::process::id()).unwrap(),
            cgroup: "soulbox-of-no-sandbox".to_owned(),
        };
        let (ours, theirs) = Channel::both().unwrap();
        let thread = thread::spawn(move || run(&theirs, &plan).is_ok());
        assert!(matches!(heard(&ours), Some(FromLauncher::Watching)));
        (pid, ours, thread)
    }

    fn heard(control: &Channel) -> Option<FromLauncher> {
        let heard = control.receive(Some(Duration::from_secs(10))).unwrap();
        heard.map(|(message, _)| message)
    }

    #[test]
    fn what_one_that_is_killed_holds_is_stopped() {
        let (pid, control, thread) = watched("exec sleep 60");
        kill_process(pid, Signal::KILL).unwrap();
        let Some(FromLauncher::Failed { step, .. }) = heard(&control) else {
            panic!("it was not to be stopped");
        };
        assert!(step.contains("soulbox-of-no-sandbox"), "{step}");
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_stop_stays_one() {
        let (pid, control, thread) = watched("exec sleep 60");
        let state = || {
            let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
            let stat = std::fs::read_to_string(path).unwrap();
            stat.rsplit(") ").next().and_then(|it| it.chars().next())
        };
        let until = |wanted: &dyn Fn(Option<char>) -> bool| {
            let began = std::time::Instant::now();
            while !wanted(state()) {
                assert!(began.elapsed() < Duration::from_secs(10), "{:?}", state());
                thread::sleep(Duration::from_millis(5));
            }
        };
        let is_stopped = |state: Option<char>| matches!(state, Some('t' | 'T'));
        kill_process(pid, Signal::STOP).unwrap();
        until(&is_stopped);
        thread::sleep(Duration::from_millis(300));
        assert!(is_stopped(state()), "{:?}", state());
        kill_process(pid, Signal::CONT).unwrap();
        until(&|state| state == Some('S'));
        kill_process(pid, Signal::STOP).unwrap();
        until(&is_stopped);
        kill_process(pid, Signal::KILL).unwrap();
        assert!(matches!(heard(&control), Some(FromLauncher::Failed { .. })));
        assert!(thread.join().unwrap());
    }

    #[test]
    fn one_that_ends_well_or_is_let_go_is_left_alone() {
        let (_, control, thread) = watched("sleep 0.3; exit 0");
        assert!(thread.join().unwrap());
        assert!(heard(&control).is_none());

        let (pid, control, thread) = watched("exec sleep 60");
        control.send(&ToLauncher::LetGo, &[]).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        assert!(thread.join().unwrap());
        assert!(heard(&control).is_none());
    }

    #[test]
    fn an_exit_with_a_complaint_counts_while_there_is_an_agent() {
        let complaint = "trap 'exit 7' TERM; trap : USR1; while :; do sleep 0.05; done";
        let (pid, control, thread) = watched(complaint);
        // By then the traps are set; signals reach it.
        thread::sleep(Duration::from_millis(300));
        for signal in [Signal::USR1, Signal::TERM] {
            kill_process(pid, signal).unwrap();
        }
        assert!(matches!(heard(&control), Some(FromLauncher::Failed { .. })));
        assert!(thread.join().unwrap());

        let gone = |end| {
            let (ours, theirs) = Channel::both().unwrap();
            drop(ours);
            is_to_be_stopped(&theirs, end)
        };
        assert!(gone(libc::SIGKILL.into()));
        assert!(!gone(7 << 8));
    }
}
