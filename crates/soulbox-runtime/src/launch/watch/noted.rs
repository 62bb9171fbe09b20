//! What the threads of a sandbox are like before CRIU makes them do anything, noted, and put back when CRIU has died.
//!
//! CRIU stops all threads, tells so, and waits for an answer before it begins with the first process. Only who traces a thread is given its
//! registers, and that is CRIU: so CRIU is made to ask for them, by the instruction in which it waits for the answer. Until CRIU lets a thread
//! go it is what was noted, whatever CRIU has made of it; and which threads it had not let go can be seen while it is on its way out.
//!
//! Source: ptrace(2); CRIU, `criu/cr-dump.c`, `compel/src/lib/infect.c`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::STOP_WITHIN;
use crate::cgroup::{CgroupError, Frozen, Hierarchies};
use crate::native::checkpoint::{field, name};
use crate::traced::{Mapping, Traced, call_in};

/// Kinds of registers: general ones, and all others of x86-64. Source: elf.h.
const GENERAL: i32 = 1;
const EXTENDED: i32 = 0x202;
/// All of them stand still already, but on a busy machine each waits for a processor to say so.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(5);
/// CRIU writes two words to where a program's code begins.
const CODE: usize = 32;

/// Why threads are not what they were.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmended {
    /// A signal that nobody can take back any more: the process ends by it.
    #[error("process {0} met the trap behind CRIU's call when CRIU was dead already")]
    Trapped(String),
    #[error("what process {name} was like cannot be put back")]
    Refused {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("they cannot be stopped once more")]
    CannotStop(#[source] CgroupError),
}

#[derive(Debug)]
pub(super) struct Noted {
    threads: Vec<Thread>,
    processes: Vec<Process>,
}

#[derive(Debug)]
struct Thread {
    process: i32,
    thread: i32,
    state: State,
}

/// Registers, as the kernel gives and takes them, and the mask of signals.
#[derive(Debug)]
struct State {
    general: Vec<u8>,
    extended: Vec<u8>,
    blocked: u64,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    /// Where its lowest code begins, and what is there: CRIU writes its own to it.
    at: u64,
    code: [u8; CODE],
    /// CRIU's code opens some more.
    descriptors: HashSet<i32>,
}

impl Noted {
    /// Of all threads in these processes that CRIU has stopped. `criu` is in a stop of this thread's that a signal has put it into while it
    /// waited in a call of the kernel; it goes on waiting.
    ///
    /// # Errors
    /// The kernel's. `event` is then what has come of CRIU instead, such as its end.
    pub(super) fn take(
        criu: Pid,
        processes: &[i32],
        event: &mut Option<WaitStatus>,
    ) -> io::Result<Self> {
        let mut asked = asking::Asked::begin(criu, event)?;
        let mut noted = Self {
            threads: Vec::new(),
            processes: Vec::new(),
        };
        for &process in processes {
            for thread in threads(process) {
                if let Some(state) = asked.about(thread)? {
                    noted.threads.push(Thread {
                        process,
                        thread,
                        state,
                    });
                }
            }
            noted.processes.extend(Process::of(process));
        }
        asked.end()?;
        Ok(noted)
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Keeps what `criu` has not let go.
    pub(super) fn retain_held(&mut self, criu: Pid) {
        let criu = criu.to_string();
        self.threads.retain(|it| {
            let path = format!("/proc/{}/task/{}/status", it.process, it.thread);
            fs::read_to_string(path)
                .is_ok_and(|status| field(&status, "TracerPid") == Some(criu.as_str()))
        });
        self.processes
            .retain(|it| self.threads.iter().any(|held| held.process == it.pid));
    }

    /// Makes the threads of a frozen cgroup, which nobody traces any more, what they were. Those that were let go stay what they are. All stand
    /// still before and after, unless the guard is gone.
    pub(super) fn put_back(
        &self,
        hierarchies: &Hierarchies,
        cgroup: &str,
        frozen: Frozen,
    ) -> (Option<Frozen>, Result<(), Unmended>) {
        if self.threads.is_empty() {
            return (Some(frozen), Ok(()));
        }
        if let Some(trapped) = self.threads.iter().find(|it| it.is_trapped()) {
            let name = name(trapped.process);
            return (Some(frozen), Err(Unmended::Trapped(name)));
        }
        let mut held = HashMap::new();
        for thread in hierarchies.processes(cgroup).into_iter().flat_map(threads) {
            // Who has ended cannot be traced.
            if let Ok(traced) = Traced::seize(thread) {
                held.insert(thread, traced);
            }
        }
        // A frozen thread stops for nobody. These stop before they come to anything of their own.
        drop(frozen);
        let put_back = self.put_back_in(&mut held);
        match hierarchies.adopt(cgroup).freeze(STOP_WITHIN) {
            Ok(frozen) => (Some(frozen), put_back),
            Err(error) => (None, put_back.and(Err(Unmended::CannotStop(error)))),
        }
    }

    fn put_back_in(&self, held: &mut HashMap<i32, Traced>) -> Result<(), Unmended> {
        let deadline = Instant::now() + PUT_BACK_WITHIN;
        for (thread, traced) in held.iter_mut() {
            match traced.stopped(deadline) {
                // It is CRIU's.
                Ok(Some(Signal::SIGTRAP)) => {}
                Ok(signal) => traced.signal = signal,
                Err(source) if self.threads.iter().any(|it| it.thread == *thread) => {
                    return Err(refused(*thread)(source));
                }
                Err(_) => {}
            }
        }
        for process in &self.processes {
            process.put_back().map_err(refused(process.pid))?;
        }
        for thread in &self.threads {
            // One that is not held has ended, unless it was to be reached above.
            let Some(traced) = held.get_mut(&thread.thread) else {
                continue;
            };
            let process = self.processes.iter().find(|it| it.pid == thread.thread);
            thread
                .put_back(traced, process, deadline)
                .map_err(refused(thread.process))?;
        }
        Ok(())
    }
}

fn refused(process: i32) -> impl FnOnce(io::Error) -> Unmended {
    move |source| Unmended::Refused {
        name: name(process),
        source,
    }
}

impl Thread {
    /// Whether it waits for what becomes of a trap that nobody has heard of. Its tracer is gone, so it ends by it.
    fn is_trapped(&self) -> bool {
        let path = format!("/proc/{}/task/{}/stat", self.process, self.thread);
        let stat = fs::read_to_string(path).unwrap_or_default();
        // The last field is what it has to tell whoever traces it.
        stat.trim_end()
            .rsplit_once(' ')
            .is_some_and(|(_, told)| told == (Signal::SIGTRAP as i32).to_string())
    }

    /// `process` is there for its leader.
    fn put_back(
        &self,
        traced: &mut Traced,
        process: Option<&Process>,
        deadline: Instant,
    ) -> io::Result<()> {
        clear_breakpoints(traced.pid)?;
        soulbox_sys::trace::set_registers(self.thread, GENERAL, &self.state.general)?;
        if let Some(process) = process {
            soulbox_sys::trace::set_signal_mask(self.thread, u64::MAX)?;
            process.close_surplus(traced, deadline)?;
            soulbox_sys::trace::set_registers(self.thread, GENERAL, &self.state.general)?;
        }
        soulbox_sys::trace::set_registers(self.thread, EXTENDED, &self.state.extended)?;
        soulbox_sys::trace::set_signal_mask(self.thread, self.state.blocked)?;
        // A trap that it met without having told anybody comes before anything else.
        if self.has_pending_trap()? {
            ptrace::cont(traced.pid, traced.signal.take())?;
            let signal = traced.stopped(deadline)?;
            traced.signal = signal.filter(|&signal| signal != Signal::SIGTRAP);
        }
        Ok(())
    }

    fn has_pending_trap(&self) -> io::Result<bool> {
        let path = format!("/proc/{}/task/{}/status", self.process, self.thread);
        let status = fs::read_to_string(path)?;
        let pending = field(&status, "SigPnd").and_then(|it| u64::from_str_radix(it, 16).ok());
        Ok(pending.unwrap_or(0) & (1 << (Signal::SIGTRAP as u32 - 1)) != 0)
    }
}

/// CRIU stops a process at the end of its own code by one; left there, it would end the program that comes to have that address.
#[cfg(target_arch = "x86_64")]
fn clear_breakpoints(pid: Pid) -> io::Result<()> {
    let control = std::mem::offset_of!(libc::user, u_debugreg) + 7 * size_of::<u64>();
    ptrace::write_user(pid, control as ptrace::AddressType, 0)?;
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn clear_breakpoints(_: Pid) -> io::Result<()> {
    Ok(())
}

impl Process {
    /// Of one that has code and is there.
    fn of(pid: i32) -> Option<Self> {
        let maps = BufReader::new(File::open(format!("/proc/{pid}/maps")).ok()?);
        let mut mappings = maps.lines().map_while(Result::ok);
        let at = mappings.find_map(|line| {
            let mapping = Mapping::parse(&line)?;
            mapping.is_executable.then_some(mapping.range.start)
        })?;
        let mut code = [0; CODE];
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        memory.read_exact_at(&mut code, at).ok()?;
        let descriptors = numbers(&format!("/proc/{pid}/fd")).into_iter().collect();
        Some(Self {
            pid,
            at,
            code,
            descriptors,
        })
    }

    fn put_back(&self) -> io::Result<()> {
        let path = format!("/proc/{}/mem", self.pid);
        let memory = File::options().read(true).write(true).open(path)?;
        let mut found = [0; CODE];
        memory.read_exact_at(&mut found, self.at)?;
        if found == self.code {
            // Nothing of its own is made of a page that it shares.
            return Ok(());
        }
        memory.write_all_at(&self.code, self.at)
    }

    /// Closes what CRIU's code has opened: what it says for people, else, is a deleted file that the next CRIU cannot save. All signals are
    /// blocked.
    fn close_surplus(&self, leader: &mut Traced, deadline: Instant) -> io::Result<()> {
        let found = numbers(&format!("/proc/{}/fd", self.pid));
        let mut surplus = found
            .into_iter()
            .filter(|it| !self.descriptors.contains(it))
            .peekable();
        if surplus.peek().is_none() {
            return Ok(());
        }
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let mut maps = maps.lines().filter_map(Mapping::parse);
        let Some(code) = maps.find(|it| it.is_crius && it.is_executable) else {
            // It opens one for its code before that is there, which is in nobody's way.
            return Ok(());
        };
        let call = match call_in(self.pid, &code.range) {
            // So it is when the code is not there yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        for descriptor in surplus {
            let arguments = [u64::from(descriptor.unsigned_abs()), 0, 0, 0, 0, 0];
            leader.call(call, libc::SYS_close, arguments, deadline)?;
        }
        Ok(())
    }
}

/// Of one that has ended there are none.
fn threads(process: i32) -> Vec<i32> {
    numbers(&format!("/proc/{process}/task"))
}

fn numbers(folder: &str) -> Vec<i32> {
    let entries = fs::read_dir(folder);
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(target_arch = "x86_64")]
mod asking {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    use nix::errno::Errno;
    use nix::sys::ptrace;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    use nix::unistd::Pid;

    use super::{EXTENDED, GENERAL, State};
    use crate::traced::{CALL, calling};

    /// Of the memory for answers: two vectors and a mask, then what the vectors point to.
    const HEAD: usize = 64;
    const MASK_AT: usize = 32;
    const EXTENDED_AT: usize = 1024;
    const SIZE: usize = 32 << 10;

    /// A CRIU that waits, and is made to ask.
    pub(super) struct Asked<'a> {
        criu: Pid,
        event: &'a mut Option<WaitStatus>,
        own: libc::user_regs_struct,
        memory: File,
        /// Where its answers lie in its memory.
        answers: u64,
        /// That came meanwhile; they are sent again.
        signals: Vec<Signal>,
    }

    impl<'a> Asked<'a> {
        pub(super) fn begin(criu: Pid, event: &'a mut Option<WaitStatus>) -> io::Result<Self> {
            let path = format!("/proc/{criu}/mem");
            let mut asked = Self {
                criu,
                event,
                own: ptrace::getregs(criu)?,
                memory: File::options().read(true).write(true).open(path)?,
                answers: 0,
                signals: Vec::new(),
            };
            let mut instruction = [0; CALL.len()];
            asked
                .memory
                .read_exact_at(&mut instruction, asked.own.rip - CALL.len() as u64)?;
            if asked.own.orig_rax == u64::MAX || instruction != CALL {
                return Err(io::Error::other("CRIU waits in no call of the kernel"));
            }
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let [protection, kind] = [protection, kind].map(|it| u64::from(it.unsigned_abs()));
            let arguments = [0, SIZE as u64, protection, kind, u64::MAX, 0];
            asked.answers = asked.call(libc::SYS_mmap, arguments)?;
            Ok(asked)
        }

        /// General and extended registers of a thread and its mask of signals; nothing of one that CRIU has not stopped.
        pub(super) fn about(&mut self, thread: i32) -> io::Result<Option<State>> {
            let at = |offset: usize| self.answers + offset as u64;
            let (mask, extended) = (at(MASK_AT), at(EXTENDED_AT));
            let general_length = (EXTENDED_AT - HEAD) as u64;
            let vectors = [
                [at(HEAD), general_length],
                [extended, (SIZE - EXTENDED_AT) as u64],
            ];
            let vectors: Vec<u8> = vectors
                .iter()
                .flatten()
                .flat_map(|it| it.to_ne_bytes())
                .collect();
            self.memory.write_all_at(&vectors, self.answers)?;
            let thread = u64::from(thread.unsigned_abs());
            let (first, second) = (at(0), at(16));
            let asks = [
                (
                    u64::from(libc::PTRACE_GETREGSET),
                    u64::from(GENERAL.unsigned_abs()),
                    first,
                ),
                (
                    u64::from(libc::PTRACE_GETREGSET),
                    u64::from(EXTENDED.unsigned_abs()),
                    second,
                ),
                (
                    u64::from(libc::PTRACE_GETSIGMASK),
                    size_of::<u64>() as u64,
                    mask,
                ),
            ];
            for (request, kind, into) in asks {
                match self.call(libc::SYS_ptrace, [request, thread, kind, into, 0, 0]) {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            let mut answers = vec![0; SIZE];
            self.memory.read_exact_at(&mut answers, self.answers)?;
            let number = |at: usize| {
                let bytes = answers[at..at + size_of::<u64>()].try_into();
                bytes.map(u64::from_ne_bytes).unwrap_or_default()
            };
            let part = |from: usize, length: u64| {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                answers[from..].get(..length).map(<[u8]>::to_vec)
            };
            let blocked = number(MASK_AT);
            match (part(HEAD, number(8)), part(EXTENDED_AT, number(24))) {
                (Some(general), Some(extended)) => Ok(Some(State {
                    general,
                    extended,
                    blocked,
                })),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        }

        /// CRIU goes on waiting.
        pub(super) fn end(mut self) -> io::Result<()> {
            self.call(libc::SYS_munmap, [self.answers, SIZE as u64, 0, 0, 0, 0])?;
            Ok(())
        }

        fn call(&mut self, number: libc::c_long, arguments: [u64; 6]) -> io::Result<u64> {
            let instruction = self.own.rip - CALL.len() as u64;
            ptrace::setregs(
                self.criu,
                calling(&self.own, instruction, number, arguments),
            )?;
            loop {
                ptrace::step(self.criu, None)?;
                match waitid(
                    Id::Pid(self.criu),
                    WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED,
                )? {
                    WaitStatus::PtraceEvent(_, Signal::SIGTRAP, 0) => break,
                    // It comes before the call is made.
                    WaitStatus::PtraceEvent(_, signal, 0) => self.signals.push(signal),
                    // It is on its way out, or was stopped by somebody.
                    other => {
                        *self.event = Some(other);
                        return Err(Errno::ECHILD.into());
                    }
                }
            }
            let answer = ptrace::getregs(self.criu)?.rax.cast_signed();
            match i32::try_from(answer) {
                Ok(errno @ -4095..=-1) => Err(io::Error::from_raw_os_error(-errno)),
                _ => Ok(answer.cast_unsigned()),
            }
        }
    }

    impl Drop for Asked<'_> {
        fn drop(&mut self) {
            // It may be gone.
            let _ = ptrace::setregs(self.criu, self.own);
            for signal in self.signals.drain(..) {
                let _ = kill(self.criu, signal);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod asking {
    use std::io;

    use nix::sys::wait::WaitStatus;
    use nix::unistd::Pid;

    use super::State;

    pub(super) struct Asked;

    impl Asked {
        pub(super) fn begin(_: Pid, _: &mut Option<WaitStatus>) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn about(&mut self, _: i32) -> io::Result<Option<State>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn end(self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::io::{BufRead, BufReader, Lines, Write};
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use nix::sys::signal::kill;
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;

    /// It answers each line, and has memory and a file of its own.
    const SANDBOXED: &str = "
import sys
count = 0
print('there', flush=True)
for line in sys.stdin:
    count += 1
    print(line.strip(), count, flush=True)
";

    /// As CRIU it stops a process, waits, and then makes of it what does not run: its registers, its mask of signals, its code.
    const HOLDER: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def trace(request, address=0, data=0):
    assert libc.ptrace(request, pid, address, data) != -1, (hex(request), ctypes.get_errno())
pid = int(sys.argv[1])
trace(0x4206)
trace(0x4207)
import os
os.waitpid(pid, 0x40000000)
print('held', flush=True)
sys.stdin.readline()
registers = (ctypes.c_ulonglong * 27)()
trace(12, 0, ctypes.addressof(registers))
for at in (3, 4, 5, 16, 19):
    registers[at] = 0x10
trace(13, 0, ctypes.addressof(registers))
blocked = ctypes.c_ulonglong(2**64 - 1)
trace(0x420b, 8, ctypes.addressof(blocked))
with open(f'/proc/{pid}/maps') as maps:
    code = int(next(line for line in maps if 'x' in line.split()[1]).split('-')[0], 16)
trace(5, code, 0xcccccccccccc050f)
print('spoilt', flush=True)
sys.stdin.readline()
";

    struct Program {
        child: Child,
        input: ChildStdin,
        lines: Lines<BufReader<ChildStdout>>,
    }

    impl Program {
        fn start(text: &str, argument: &str) -> Self {
            let mut command = Command::new("python3");
            command.args(["-c", text, argument]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("python3");
            let input = child.stdin.take().expect("its input");
            let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
            Self {
                child,
                input,
                lines,
            }
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.child.id().cast_signed())
        }

        fn says(&mut self) -> String {
            self.lines.next().expect("a line").expect("text")
        }
    }

    fn wait(pid: Pid) -> WaitStatus {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED;
        waitid(Id::Pid(pid), flags).expect("a stop")
    }

    #[test]
    fn what_a_dead_tracer_has_made_of_a_process_is_put_back() {
        let mut sandboxed = Program::start(SANDBOXED, "");
        assert_eq!(sandboxed.says(), "there");
        let pid = sandboxed.pid();
        let mut holder = Program::start(HOLDER, &pid.to_string());
        assert_eq!(holder.says(), "held");

        let criu = holder.pid();
        ptrace::seize(criu, ptrace::Options::PTRACE_O_TRACEEXIT).expect("seize");
        kill(criu, Signal::SIGWINCH).expect("wake");
        let woken = wait(criu);
        assert!(
            matches!(woken, WaitStatus::PtraceEvent(_, Signal::SIGWINCH, 0)),
            "{woken:?}"
        );
        let mut event = None;
        let mut noted = Noted::take(criu, &[pid.as_raw()], &mut event).expect("noted");
        assert_eq!((noted.threads(), event), (1, None));
        ptrace::cont(criu, None).expect("it goes on waiting");
        writeln!(holder.input).expect("write");
        assert_eq!(holder.says(), "spoilt");

        // In place of a frozen cgroup.
        kill(pid, Signal::SIGSTOP).expect("stop");
        kill(criu, Signal::SIGKILL).expect("kill");
        let dying = wait(criu);
        assert!(
            matches!(
                dying,
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)
            ),
            "{dying:?}"
        );
        noted.retain_held(criu);
        assert_eq!(noted.threads(), 1);
        ptrace::cont(criu, None).expect("its end");
        wait(criu);
        let traced = Traced::seize(pid.as_raw()).expect("seize");
        let mut held = HashMap::from([(pid.as_raw(), traced)]);
        noted.put_back_in(&mut held).expect("put back");
        drop(held);
        kill(pid, Signal::SIGCONT).expect("continue");

        writeln!(sandboxed.input, "alive").expect("write");
        assert_eq!(sandboxed.says(), "alive 1");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        assert_eq!(field(&status, "SigBlk"), Some("0000000000000000"));
        // Nobody holds one that was let go.
        noted.retain_held(criu);
        assert_eq!(noted.threads(), 0);
        drop(sandboxed.input);
        assert!(sandboxed.child.wait().expect("its end").success());
        let _ = holder.child.wait();
    }
}
