//! What becomes of a tree whose CRIU died while it had hold of it.
//!
//! The tree is stopped before CRIU lets go of it ([`crate::launch::watch`] sees to that), so nothing runs on in a state that is not its own. CRIU
//! works on one process at a time, and what it does to it can be seen: its code stands in memory, a thread is in that code, or blocks all
//! signals for it. A leader of threads that serves as CRIU's daemon finds back by itself when the connection to CRIU ends, since it has its
//! registers and its mask of signals with it. Whatever else is in CRIU's code has lost them: only CRIU knew them. TCP connections that CRIU
//! has read are of no use until they are told that it is over.
//!
//! Source: CRIU, `compel/src/lib/infect.c`, `compel/plugins/std/infect.c`, `criu/sk-tcp.c`.

mod leftover;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::checkpoint::{field, pid_descriptor, title};
use super::{Native, Running};
use crate::cgroup::{CgroupError, Frozen};
use crate::launch::watch::STOP_WITHIN;

/// Finding back takes microseconds, on a processor that is free.
const FIND_BACK_WITHIN: Duration = Duration::from_secs(2);
/// What stands where a process is made to call the kernel: the call and a trap, of x86-64 and of arm64.
const INJECTED: [[u8; 8]; 2] = [
    [0x0f, 0x05, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc],
    [0x01, 0x00, 0x00, 0xd4, 0x00, 0x00, 0x20, 0xd4],
];
/// What stands behind that while the memory for CRIU's code is made: the name of that memory.
const MEMORY: &[u8; 8] = b"CRIUMFD\0";
const MEMORY_FILE: &str = "/memfd:CRIUMFD";
/// All signals but SIGKILL and SIGSTOP, as /proc shows them.
const ALL_BLOCKED: &str = "fffffffffffbfeff";

/// Why a tree cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Harm {
    #[error("it was not stopped")]
    NotStopped,
    #[error("it could not be stopped")]
    NotBeStopped(#[source] io::Error),
    #[error("it could not be stopped once more")]
    CannotStop(#[source] CgroupError),
    #[error("process {0} was being made to call the kernel")]
    Injected(String),
    #[error("a thread of process {0} was in CRIU's code")]
    Thread(String),
    #[error("process {0} was on its way into CRIU's code")]
    Blocked(String),
    #[error("process {0} did not find back from CRIU's code")]
    Astray(String),
    #[error("what is left of process {pid} cannot be seen")]
    Unseen {
        pid: i32,
        #[source]
        source: io::Error,
    },
}

impl Native {
    /// Lets a tree go on that was stopped while its CRIU died, if it can. Blocks for some milliseconds, at most for
    /// [`FIND_BACK_WITHIN`].
    pub(super) fn rescue(&self, running: &Running, mut frozen: Frozen) -> Result<(), Harm> {
        let cgroup = running.slot.cgroup();
        reopen_connections(&self.hierarchies.processes(&cgroup))?;
        let deadline = Instant::now() + FIND_BACK_WITHIN;
        let mut astray = HashSet::new();
        loop {
            let mut is_well = true;
            for pid in self.hierarchies.processes(&cgroup) {
                if examine(pid)? == Whereabouts::CriusCode {
                    is_well = false;
                    astray.insert((pid, name(pid)));
                }
            }
            drop(frozen);
            if is_well {
                break;
            }
            if let Some((_, name)) = astray.iter().next()
                && Instant::now() > deadline
            {
                return Err(Harm::Astray(name.clone()));
            }
            thread::sleep(Duration::from_millis(1));
            frozen = running
                .cgroup
                .freeze(STOP_WITHIN)
                .map_err(Harm::CannotStop)?;
        }
        for pid in self.hierarchies.processes(&cgroup) {
            // One of which it cannot be taken goes on all the same, and may not be saved again.
            let _ = leftover::unmap(pid);
        }
        // One that met a trap on its way back has ended by it.
        match astray.into_iter().find(|(pid, _)| has_ended(*pid)) {
            Some((_, name)) => Err(Harm::Astray(name)),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// In its own code, or gone.
    OwnCode,
    /// Its leader serves CRIU.
    CriusCode,
}

/// Where a process is that stands still, and whether it can go on from there.
fn examine(pid: i32) -> Result<Whereabouts, Harm> {
    let path = |rest: &str| PathBuf::from(format!("/proc/{pid}/{rest}"));
    let unseen = |source| Harm::Unseen { pid, source };
    let Some(maps) = unless_gone(fs::read_to_string(path("maps"))).map_err(unseen)? else {
        return Ok(Whereabouts::OwnCode);
    };
    let maps: Vec<Mapping> = maps.lines().filter_map(Mapping::parse).collect();
    // Of a zombie there is none.
    if !maps.is_empty() {
        let memory = fs::File::open(path("mem")).map_err(unseen)?;
        for mapping in maps.iter().filter(|mapping| mapping.is_executable) {
            let mut start = [0; 16];
            // What the kernel has put there itself (vsyscall) cannot be read.
            if memory
                .read_exact_at(&mut start, mapping.range.start)
                .is_ok()
                && is_injected(&start)
            {
                return Err(Harm::Injected(name(pid)));
            }
        }
    }
    let code: Vec<_> = maps.iter().filter(|mapping| mapping.is_crius).collect();
    if code.is_empty() {
        return Ok(Whereabouts::OwnCode);
    }
    let mut whereabouts = Whereabouts::OwnCode;
    for thread in fs::read_dir(path("task")).map_err(unseen)? {
        let thread = thread.map_err(unseen)?.file_name();
        let file = |name: &str| {
            unless_gone(fs::read_to_string(path("task").join(&thread).join(name))).map_err(unseen)
        };
        let (Some(call), Some(status)) = (file("syscall")?, file("status")?) else {
            continue;
        };
        let at = program_counter(&call).ok_or_else(|| unseen(io::ErrorKind::WouldBlock.into()))?;
        let is_leader = thread.to_str() == Some(&pid.to_string());
        if code.iter().any(|mapping| mapping.range.contains(&at)) {
            if !is_leader {
                return Err(Harm::Thread(name(pid)));
            }
            whereabouts = Whereabouts::CriusCode;
        } else if field(&status, "SigBlk") == Some(ALL_BLOCKED) {
            return Err(Harm::Blocked(name(pid)));
        }
    }
    Ok(whereabouts)
}

/// A line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    is_executable: bool,
    is_crius: bool,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
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

fn is_injected(start: &[u8; 16]) -> bool {
    INJECTED.iter().any(|code| start.starts_with(code)) || start.ends_with(MEMORY)
}

/// Of a line of /proc/PID/task/TID/syscall; none of a thread that is on a processor.
fn program_counter(line: &str) -> Option<u64> {
    let (_, last) = line.trim_end().rsplit_once(' ')?;
    u64::from_str_radix(last.strip_prefix("0x")?, 16).ok()
}

/// Ends the mode (TCP_REPAIR) in which CRIU has left the connections that it read.
fn reopen_connections(processes: &[i32]) -> Result<(), Harm> {
    let mut seen = HashSet::new();
    for &pid in processes {
        let unseen = |source| Harm::Unseen { pid, source };
        let Some(folder) = unless_gone(fs::read_dir(format!("/proc/{pid}/fd"))).map_err(unseen)?
        else {
            continue;
        };
        let process = pid_descriptor(pid).map_err(unseen)?;
        for entry in folder {
            let entry = entry.map_err(unseen)?;
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            if !target.to_string_lossy().starts_with("socket:") || !seen.insert(target) {
                continue;
            }
            let number = entry.file_name().to_string_lossy().parse();
            let number = number.map_err(|error| unseen(io::Error::other(error)))?;
            let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
                .map_err(|error| unseen(error.into()))?;
            reopen(&socket).map_err(|error| unseen(error.into()))?;
        }
    }
    Ok(())
}

fn reopen(socket: &OwnedFd) -> nix::Result<()> {
    // Of what is no TCP socket it cannot be asked.
    if !matches!(getsockopt(socket, sockopt::TcpRepair), Ok(mode) if mode != 0) {
        return Ok(());
    }
    setsockopt(socket, sockopt::TcpRepair, &0)?;
    // The end of that mode clears this, and what it was is not known. Set, it keeps nobody from anything; clear, a server that is
    // started anew could not have its port while this connection is there.
    setsockopt(socket, sockopt::ReuseAddr, &true)
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// How a process is called where people read it.
fn name(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status
        .ok()
        .and_then(|status| title(&status))
        .unwrap_or_else(|| "?".to_owned())
}

fn has_ended(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => field(&status, "State").is_some_and(|state| state.starts_with('Z')),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_criu_leaves_is_told_from_what_is_ones_own() {
        let parse = |line| Mapping::parse(line).unwrap();
        let crius =
            "7f01a000-7f01f000 rwxs 00000000 00:01 1042                   /memfd:CRIUMFD (deleted)";
        assert_eq!(
            parse(crius),
            Mapping {
                range: 0x7f01_a000..0x7f01_f000,
                is_executable: true,
                is_crius: true
            }
        );
        let anonymous = parse("7ffc0000-7ffc1000 rw-p 00000000 00:00 0 ");
        assert!(!anonymous.is_crius && !anonymous.is_executable);
        assert!(!parse("1000-2000 r-xp 00000000 00:22 17   /bin/bash").is_crius);

        assert_eq!(program_counter("-1 0x7ffd1 0x7f2a\n"), Some(0x7f2a));
        assert_eq!(
            program_counter("45 0x3 0x1 0x8 0x0 0x0 0x0 0x7 0x9f\n"),
            Some(0x9f)
        );
        assert_eq!(program_counter("running\n"), None);

        let mut start = [0x90; 16];
        assert!(!is_injected(&start));
        start[..8].copy_from_slice(&INJECTED[0]);
        assert!(is_injected(&start));
        start = [0x90; 16];
        start[8..].copy_from_slice(MEMORY);
        assert!(is_injected(&start));
    }

    #[test]
    fn a_connection_that_criu_has_read_is_usable_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        setsockopt(&client, sockopt::TcpRepair, &1).unwrap();
        client.write_all(b"x").unwrap_err();
        reopen_connections(&[std::process::id().cast_signed()]).unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert!(getsockopt(&client, sockopt::ReuseAddr).unwrap());
    }
}
