//! Taking out of a process what a dead CRIU has left there: its code, mapped where nobody can write.
//!
//! The next CRIU begins at the lowest code that a process has. Of a static program that is what was left, and so it could never be saved again.
//! The process is made to unmap it by an instruction that stands in it, in one step: nothing is written to its memory.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Mapping;

/// A stop takes microseconds, on a processor that is free.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Signals that come first are delivered first, each in a try of its own.
const MOST_TRIES: usize = 20;
/// A call of the kernel.
const CALL: [u8; 2] = [0x0f, 0x05];

/// Has a process that runs in its own code unmap CRIU's. Blocks for some milliseconds.
///
/// # Errors
/// The kernel's; the process goes on as it was.
pub(super) fn unmap(pid: i32) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let maps: Vec<Mapping> = maps.lines().filter_map(Mapping::parse).collect();
    let Some(code) = maps.iter().find(|it| it.is_crius && it.is_executable) else {
        return Ok(());
    };
    // What it has written to lies behind it.
    let mut end = code.range.end;
    for mapping in maps.iter().filter(|it| it.is_crius) {
        if mapping.range.start == end {
            end = mapping.range.end;
        }
    }
    let call = call_in(pid, &code.range)?;
    for _ in 0..MOST_TRIES {
        if Traced::seize(pid)?.unmap(call, code.range.start..end)? {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Where in the code the kernel is called.
fn call_in(pid: i32, code: &Range<u64>) -> io::Result<u64> {
    let length = usize::try_from(code.end - code.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, code.start)?;
    let at = bytes.windows(CALL.len()).position(|found| found == CALL);
    at.map(|at| code.start + at as u64)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A process that is stopped by this thread; it goes on when this is dropped.
struct Traced {
    pid: Pid,
    /// To be delivered when it goes on.
    signal: Option<Signal>,
}

impl Traced {
    fn seize(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty())?;
        let traced = Self { pid, signal: None };
        ptrace::interrupt(pid)?;
        traced.stopped()?;
        Ok(traced)
    }

    /// Why it has stopped; nothing when that is no signal.
    fn stopped(&self) -> io::Result<Option<Signal>> {
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Stopped(_, signal)) => return Ok(Some(signal)),
                Ok(WaitStatus::PtraceEvent(..)) => return Ok(None),
                Ok(WaitStatus::StillAlive) if Instant::now() > deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_micros(100)),
                Ok(_) => return Err(Errno::ESRCH.into()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes it unmap a range by the call that stands at `call`; false when a signal was to be delivered first.
    #[cfg(target_arch = "x86_64")]
    fn unmap(mut self, call: u64, range: Range<u64>) -> io::Result<bool> {
        let own = ptrace::getregs(self.pid)?;
        let mut made = own;
        made.rip = call;
        made.rax = libc::SYS_munmap.cast_unsigned();
        made.rdi = range.start;
        made.rsi = range.end - range.start;
        // It is in no call of its own that would be begun anew.
        made.orig_rax = u64::MAX;
        ptrace::setregs(self.pid, made)?;
        let stepped = ptrace::step(self.pid, None).map_err(io::Error::from);
        let signal = stepped.and_then(|()| self.stopped());
        let outcome = ptrace::getregs(self.pid).map(|found| found.rax);
        ptrace::setregs(self.pid, own)?;
        match signal? {
            Some(Signal::SIGTRAP) => match outcome? {
                0 => Ok(true),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            },
            // A stop of its own, for which there is no signal, is over when it goes on.
            other => {
                self.signal = other;
                Ok(false)
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn unmap(self, _: u64, _: Range<u64>) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ptrace::detach(self.pid, self.signal);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use super::*;

    /// It holds what a CRIU leaves, waits in a call of the kernel, and counts the signals that it gets.
    const HOLDER: &str = "
import mmap, os, signal, sys
got = 0
def count(*_):
    global got
    got += 1
signal.signal(signal.SIGUSR1, count)
file = os.memfd_create('CRIUMFD')
os.write(file, b'\\x90' * 64 + b'\\x0f\\x05' + b'\\x90' * 8126)
held = mmap.mmap(file, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC)
print('there', flush=True)
for line in sys.stdin:
    print(line.strip(), got, flush=True)
os._exit(0)
";

    #[test]
    fn what_was_left_is_gone_and_its_holder_goes_on() {
        let mut child = Command::new("python3")
            .args(["-c", HOLDER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let pid = child.id().cast_signed();
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut said = || lines.next().expect("a line").expect("text");
        assert_eq!(said(), "there");
        let holds = || {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
            maps.contains("CRIUMFD")
        };
        assert!(holds());
        // One that is on its way is delivered all the same.
        let signal = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGUSR1);
        signal.expect("a signal");
        unmap(pid).expect("unmapped");
        assert!(!holds());
        unmap(pid).expect("there is nothing left");
        let mut input = child.stdin.take().expect("its input");
        writeln!(input, "alive").expect("write");
        assert_eq!(said(), "alive 1");
        drop(input);
        assert!(child.wait().expect("its end").success());
    }
}
