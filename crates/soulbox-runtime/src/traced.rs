//! A process of a sandbox that is traced for a moment: stopped, looked at, and let go where it was.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How often it is looked whether it has stopped, which takes microseconds on a processor that is free.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_micros(100);

/// A call of the kernel.
pub(crate) const CALL: [u8; 2] = [0x0f, 0x05];
const MEMORY_FILE: &str = "/memfd:CRIUMFD";

/// A thread that this one traces; it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) pid: Pid,
    /// To be delivered when it goes on.
    pub(crate) signal: Option<Signal>,
}

impl Traced {
    /// Has it stop soon: see [`Traced::stopped`].
    pub(crate) fn seize(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty())?;
        let traced = Self { pid, signal: None };
        ptrace::interrupt(pid)?;
        Ok(traced)
    }

    /// Waits for its next stop. Why it has stopped; nothing when that is no signal.
    pub(crate) fn stopped(&self, deadline: Instant) -> io::Result<Option<Signal>> {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Stopped(_, signal)) => return Ok(Some(signal)),
                Ok(WaitStatus::PtraceEvent(..)) => return Ok(None),
                Ok(WaitStatus::StillAlive) if Instant::now() > deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(WaitStatus::StillAlive) => thread::sleep(LOOK_EVERY),
                Ok(_) => return Err(Errno::ESRCH.into()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes it call the kernel by the instruction at `instruction`, in one step; it then has its own registers again. What the call gives;
    /// nothing when a signal was to be delivered first, which is kept for it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn call(
        &mut self,
        instruction: u64,
        number: libc::c_long,
        arguments: [u64; 6],
        deadline: Instant,
    ) -> io::Result<Option<i64>> {
        let own = ptrace::getregs(self.pid)?;
        ptrace::setregs(self.pid, calling(&own, instruction, number, arguments))?;
        let stepped = ptrace::step(self.pid, None).map_err(io::Error::from);
        let signal = stepped.and_then(|()| self.stopped(deadline));
        let outcome = ptrace::getregs(self.pid).map(|found| found.rax);
        ptrace::setregs(self.pid, own)?;
        match signal? {
            Some(Signal::SIGTRAP) => Ok(Some(outcome?.cast_signed())),
            // A stop of its own, for which there is no signal, is over when it goes on.
            other => {
                self.signal = other;
                Ok(None)
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn call(
        &mut self,
        _: u64,
        _: libc::c_long,
        _: [u64; 6],
        _: Instant,
    ) -> io::Result<Option<i64>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ptrace::detach(self.pid, self.signal);
    }
}

/// The registers of a process that is about to make a call of the kernel by the instruction at `instruction`.
#[cfg(target_arch = "x86_64")]
pub(crate) fn calling(
    own: &libc::user_regs_struct,
    instruction: u64,
    call: libc::c_long,
    arguments: [u64; 6],
) -> libc::user_regs_struct {
    let mut made = *own;
    made.rip = instruction;
    made.rax = call.cast_unsigned();
    [made.rdi, made.rsi, made.rdx, made.r10, made.r8, made.r9] = arguments;
    // It is in no call of its own that would be begun anew.
    made.orig_rax = u64::MAX;
    made
}

/// A line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: Range<u64>,
    pub(crate) is_executable: bool,
    pub(crate) is_crius: bool,
}

impl Mapping {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        // 7f00-7f10 rwxs 00000000 00:01 1042 /memfd:CRIUMFD (deleted)
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self {
            range: address(start)?..address(end)?,
            is_executable: fields.next()?.contains('x'),
            is_crius: fields
                .nth(3)
                .is_some_and(|path| path.trim_start().starts_with(MEMORY_FILE)),
        })
    }
}

/// Where in the mapped code of a process the kernel is called.
pub(crate) fn call_in(pid: i32, code: &Range<u64>) -> io::Result<u64> {
    let length = usize::try_from(code.end - code.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, code.start)?;
    let at = bytes.windows(CALL.len()).position(|found| found == CALL);
    at.map(|at| code.start + at as u64)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
