//! Notices a fork bomb, and ends it.
//!
//! A bomb leaves the interpreter one part in hundreds of the processor. So it is noticed without a look at its programs, by how many process
//! numbers were given out, and stopped as a whole before they are counted: a fork fails while a signal is pending, so nobody is missed.
//! A few programs that go on are what the code asked for, `server &` for one, and stay.
//!
//! What is deliberately absent: programs that have left the kernel's process group are nobody's here. They are bounded by [`confine`] alone.

use std::fs;
use std::io;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, kill_process_group, prlimit,
    setpriority_process,
};

/// More programs of one execution than this at once are a bomb. They end, and their kernel with them.
const BOMB: usize = 512;
/// More than this wait for everybody else while their execution runs, and end with it.
const CROWD: usize = 256;
/// Process numbers between two looks at a crowd.
const STEP: usize = 64;
/// Processes and threads of root that a kernel may see before its own programs start no more: half of what a sandbox has by default, so that
/// there is always room for the interpreter's own, and for the user's commands.
const MOST: u64 = 2048;
/// The lowest priority.
const LAST: i32 = 19;

/// Bounds what `kernel` and its programs start; they cannot undo it. Where the kernel refuses, it works without.
pub(crate) fn confine(kernel: Pid) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nproc);
    let limit = Rlimit {
        current: Some(current.map_or(MOST, |current| current.min(MOST))),
        maximum: Some(maximum.map_or(MOST, |maximum| maximum.min(MOST))),
    };
    _ = prlimit(Some(kernel), Resource::Nproc, limit);
}

/// What is in the process group of one kernel.
#[derive(Debug)]
pub(crate) struct Watch {
    leader: Pid,
    /// The last process number that was given out at the last look, and who was there. No more are there now than these and one for each
    /// number since. `None` where that cannot be known.
    looked: Option<(i32, usize)>,
}

impl Watch {
    /// Of a kernel that leads its group and has started nothing.
    pub(crate) fn new(leader: Pid) -> Self {
        Self {
            leader,
            looked: last_number().map(|last| (last, 0)),
        }
    }

    /// To be called while an execution runs: kills all of the group, the kernel included, if they are a bomb, and tells whether they were.
    /// Blocks for the time of a look through `/proc` at most, and starts no thread, since there may be no process number left for one.
    pub(crate) fn end_bomb(&mut self) -> io::Result<bool> {
        let Some(followers) = self.stopped_crowd(CROWD)? else {
            return Ok(false);
        };
        wait_for_others(&followers);
        let is_bomb = followers.len() > BOMB;
        let signal = if is_bomb { Signal::KILL } else { Signal::CONT };
        kill_process_group(self.leader, signal)?;
        Ok(is_bomb)
    }

    /// To be called when no execution runs, or should: kills all but the kernel if they are a crowd. Blocks like [`Watch::end_bomb`].
    pub(crate) fn disperse(&mut self) -> io::Result<()> {
        self.disperse_beyond(CROWD)
    }

    fn disperse_beyond(&mut self, crowd: usize) -> io::Result<()> {
        let Some(followers) = self.stopped_crowd(crowd)? else {
            return Ok(());
        };
        wait_for_others(&followers);
        for follower in followers {
            // Another user's, or gone meanwhile.
            _ = kill_process(follower, Signal::KILL);
        }
        kill_process_group(self.leader, Signal::CONT)?;
        Ok(())
    }

    /// The group without the kernel, all of it stopped; `None`, and nothing stopped, if they are no more than `crowd`.
    fn stopped_crowd(&mut self, crowd: usize) -> io::Result<Option<Vec<Pid>>> {
        let last = last_number();
        if !self.may_exceed(crowd, last) {
            return Ok(None);
        }
        kill_process_group(self.leader, Signal::STOP)?;
        let found = followers(self.leader);
        self.looked = last.zip(found.as_ref().ok().map(Vec::len));
        if let Ok(followers) = &found
            && followers.len() > crowd
        {
            return found.map(Some);
        }
        kill_process_group(self.leader, Signal::CONT)?;
        found.map(|_| None)
    }

    /// Whether the group can have become more than `crowd`, or much more than it was.
    fn may_exceed(&self, crowd: usize, last: Option<i32>) -> bool {
        let Some(((looked, found), last)) = self.looked.zip(last) else {
            return true;
        };
        // Numbers begin anew above the largest.
        usize::try_from(last - looked)
            .map_or(true, |since| since > crowd.saturating_sub(found).max(STEP))
    }
}

fn wait_for_others(followers: &[Pid]) {
    for follower in followers {
        // Gone meanwhile.
        _ = setpriority_process(Some(*follower), LAST);
    }
}

/// The last process number that was given out in this sandbox.
fn last_number() -> Option<i32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next_back()?.parse().ok()
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
        until(pid, followers);
        (child, pid)
    }

    /// A program that was started or killed may take a moment to be seen, or to be seen no more.
    fn until(leader: Pid, followers: usize) {
        let since = Instant::now();
        while followers_of(leader) != followers {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{followers} were expected"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn followers_of(leader: Pid) -> usize {
        super::followers(leader).expect("/proc").len()
    }

    /// One that has seen nothing, so that it looks.
    fn watch(leader: Pid) -> Watch {
        Watch {
            leader,
            looked: None,
        }
    }

    #[test]
    fn a_crowd_is_ended_and_its_leader_goes_on() {
        let (mut child, pid) = gathered(8);
        watch(pid).disperse_beyond(7).expect("a group");
        until(pid, 0);
        drop(child.stdin.take());
        // Ends by itself, so it was let go on.
        assert!(child.wait().expect("a shell").code().is_some());
    }

    #[test]
    fn a_few_stay() {
        let (mut child, pid) = gathered(3);
        let mut watch = watch(pid);
        watch.disperse_beyond(3).expect("a group");
        assert_eq!(followers_of(pid), 3);
        assert_eq!(watch.looked.map(|(_, found)| found), Some(3));
        _ = kill_process_group(pid, Signal::KILL);
        _ = child.wait();
    }

    #[test]
    fn who_can_be_no_crowd_is_not_looked_at() {
        let may_exceed = |looked, last| {
            let leader = Pid::INIT;
            Watch { leader, looked }.may_exceed(256, last)
        };
        assert!(!may_exceed(Some((100, 3)), Some(100)));
        assert!(!may_exceed(Some((100, 156)), Some(200)));
        assert!(may_exceed(Some((100, 156)), Some(201)));
        // Among a crowd, after a while.
        assert!(!may_exceed(Some((100, 300)), Some(164)));
        assert!(may_exceed(Some((100, 300)), Some(165)));
        assert!(may_exceed(Some((100, 3)), Some(99)));
        assert!(may_exceed(Some((100, 3)), None));
        assert!(may_exceed(None, Some(100)));
        let before = last_number().expect("a number");
        let (mut child, pid) = gathered(3);
        assert!(last_number().expect("a number") >= before + 4);
        _ = kill_process_group(pid, Signal::KILL);
        _ = child.wait();
    }

    #[test]
    fn a_crowd_that_runs_gets_the_lowest_priority_and_goes_on() {
        let (mut child, pid) = gathered(CROWD + 1);
        assert!(!watch(pid).end_bomb().expect("a group"));
        let followers = super::followers(pid).expect("/proc");
        assert_eq!(followers.len(), CROWD + 1);
        let priority = |pid| rustix::process::getpriority_process(Some(pid)).expect("a process");
        assert!(followers.iter().all(|follower| priority(*follower) == LAST));
        assert_eq!(priority(pid), 0);
        drop(child.stdin.take());
        assert!(child.wait().expect("a shell").code().is_some());
        _ = kill_process_group(pid, Signal::KILL);
    }

    #[test]
    fn a_bomb_is_ended_with_its_leader() {
        let (mut child, pid) = gathered(BOMB + 1);
        assert!(watch(pid).end_bomb().expect("a group"));
        assert_eq!(child.wait().expect("a shell").code(), None, "it was killed");
        until(pid, 0);
    }

    #[test]
    fn what_a_kernel_starts_is_bounded() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read line; grep processes /proc/self/limits"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        confine(Pid::from_child(&child));
        drop(child.stdin.take());
        let said = child.wait_with_output().expect("a shell").stdout;
        let said = String::from_utf8_lossy(&said);
        let bounds: Vec<u64> = said
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        assert_eq!(bounds, [MOST, MOST], "{said}");
    }
}
