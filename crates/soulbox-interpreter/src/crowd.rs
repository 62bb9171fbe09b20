//! Ends what an interrupt leaves of a fork bomb.
//!
//! An interrupt reaches the whole process group of a kernel, but a program that has just been forked may forget it, and each one that
//! does forks on. The kernel is then done with the execution and gets one part in thousands of the processor for the next. A few
//! programs that go on are what the code asked for, `server &` for one, and stay.

use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// More processes than this in a kernel's group are a bomb.
const CROWD: usize = 256;

/// Kills the processes of `leader`'s group, all but `leader`, if they are a crowd; tells how many it killed. Blocks for the time of a look
/// through `/proc`, and starts no thread, since there may be no process number left for one.
///
/// All of them are stopped first: a fork fails while a signal is pending, so nobody is missed.
pub(crate) fn disperse(leader: Pid) -> io::Result<usize> {
    disperse_beyond(leader, CROWD)
}

fn disperse_beyond(leader: Pid, crowd: usize) -> io::Result<usize> {
    kill_process_group(leader, Signal::STOP)?;
    let found = followers(leader);
    let mut killed = 0;
    if let Ok(followers) = &found
        && followers.len() > crowd
    {
        for follower in followers {
            // Another user's, or killed by somebody else meanwhile.
            killed += usize::from(kill_process(*follower, Signal::KILL).is_ok());
        }
    }
    kill_process_group(leader, Signal::CONT)?;
    found.map(|_| killed)
}

/// Who is in `leader`'s group and not dead, without `leader`.
fn followers(leader: Pid) -> io::Result<Vec<Pid>> {
    let mut followers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        // It may have ended since it was listed.
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if pid != leader && group(&stat) == Some(leader) {
            followers.push(pid);
        }
    }
    Ok(followers)
}

/// The process group in a line of `/proc/<pid>/stat`; `None` of a zombie. The name before it may hold anything, parentheses included.
fn group(stat: &[u8]) -> Option<Pid> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after..]).ok()?.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(1)?.parse().ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn group_is_read_behind_any_name() {
        let of = |line: &str| group(line.as_bytes()).map(Pid::as_raw_nonzero);
        assert_eq!(of("7 (cat) S 1 42 42 0").map(i32::from), Some(42));
        assert_eq!(of("7 (a) Z 1 9) R 1 43 43 0").map(i32::from), Some(43));
        assert_eq!(of("7 (gone) Z 1 42 42 0"), None);
        assert_eq!(of("7 cat"), None);
    }

    /// A shell that leads a group of itself and `followers` others.
    fn gathered(followers: usize) -> (Child, Pid) {
        let script = format!("for _ in $(seq {followers}); do sleep 60 & done; read line");
        let child = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let pid = Pid::from_child(&child);
        let since = Instant::now();
        while followers_of(pid) < followers {
            assert!(since.elapsed() < Duration::from_secs(20), "they gather");
            std::thread::sleep(Duration::from_millis(10));
        }
        (child, pid)
    }

    fn followers_of(leader: Pid) -> usize {
        super::followers(leader).expect("/proc").len()
    }

    #[test]
    fn a_crowd_is_ended_and_its_leader_goes_on() {
        let (mut child, pid) = gathered(8);
        assert_eq!(disperse_beyond(pid, 7).expect("a group"), 8);
        drop(child.stdin.take());
        // Ends by itself, so it was let go on.
        assert!(child.wait().expect("a shell").code().is_some());
    }

    #[test]
    fn a_few_stay() {
        let (mut child, pid) = gathered(3);
        assert_eq!(disperse_beyond(pid, 3).expect("a group"), 0);
        assert_eq!(followers_of(pid), 3);
        _ = kill_process_group(pid, Signal::KILL);
        _ = child.wait();
    }
}
