//! Taking out of a process what a dead CRIU has left there: its code, mapped where nobody can write.
//!
//! The next CRIU begins at the lowest code that a process has. Of a static program that is what was left, and so it could never be saved again.
//! The process is made to unmap it by an instruction that stands in it, in one step: nothing is written to its memory.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use crate::traced::{Mapping, Traced, call_in};

/// A stop takes microseconds, on a processor that is free.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Signals that come first are delivered first, each in a try of its own.
const MOST_TRIES: usize = 20;

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
        let mut traced = Traced::seize(pid)?;
        let deadline = Instant::now() + STOP_WITHIN;
        traced.stopped(deadline)?;
        let arguments = [code.range.start, end - code.range.start, 0, 0, 0, 0];
        match traced.call(call, libc::SYS_munmap, arguments, deadline)? {
            Some(0) => return Ok(()),
            Some(_) => return Err(io::ErrorKind::InvalidInput.into()),
            None => {}
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

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
