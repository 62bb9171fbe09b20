//! Programs whose writes are not waited for.
//!
//! dpkg waits for the disk hundreds of times, so that a machine that loses power in the middle keeps a package database. A draft that loses
//! power is deleted, and its commit waits for all of it at once, so for what fills a draft such a wait is told to be over at once.

use std::io;
use std::process::{Child, Command};
use std::thread;

use seccompiler::{SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Calls that return when something is on disk. Those of open files, such as O_SYNC, stay.
const WAITS: [i64; 5] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
];

/// Starts it, and all that it starts, under a seccomp filter in which these calls succeed without being made.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let filter = SeccompFilter::new(
        WAITS.map(|call| (call, Vec::new())).into(),
        SeccompAction::Allow,
        // An error of number 0 is a success.
        SeccompAction::Errno(0),
        TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?,
    );
    let program: seccompiler::BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    // A filter belongs to a thread and what it starts, and never goes: so to a thread that ends.
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            apply_filter(&program).map_err(io::Error::other)?;
            command.spawn()
        });
        starting
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts programs panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn waits_are_over_at_once_in_whatever_it_starts() {
        // The kernel refuses to wait for a pipe; here nobody asks it.
        let script = "import os; os.fsync(os.pipe()[1]); print('over')";
        let outcome = |spawned: io::Result<Child>| {
            let output = spawned.unwrap().wait_with_output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("python3 -c \"{script}\" || true")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        assert_eq!(outcome(spawn(&mut command)), "over\n");
        assert_eq!(outcome(command.spawn()), "", "this thread has no filter");
    }
}
