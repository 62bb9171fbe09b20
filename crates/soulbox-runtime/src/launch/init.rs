//! The launcher's last life: init of the sandbox. It reaps orphans and ends with envd, and with it the kernel ends all that is left.
//!
//! It is dumpable, has no descriptors, and answers no signal from inside (a pid 1 without handlers gets none of them). Root inside may
//! stop envd, though: init lets it go on.

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

/// Exit codes from 64 on tell how envd ended; the agent reads them from waitid.
pub const ENVD_EXITED: i32 = 64;
/// envd was ended by a signal.
pub const ENVD_KILLED: i32 = 65;

/// Reaps until envd, `envd_pid`, is gone; returns the exit code.
#[must_use]
pub fn run(envd_pid: i32) -> i32 {
    let Some(envd) = Pid::from_raw(envd_pid) else {
        return 2;
    };
    loop {
        match wait(WaitOptions::UNTRACED) {
            Ok(Some((pid, status))) if pid == envd && status.stopped() => {
                // Else the sandbox would look alive and answer nobody; tests/e2e/test_faults.py. ESRCH: it was killed meanwhile.
                let _ = kill_process(envd, Signal::CONT);
            }
            Ok(Some((pid, status))) if pid == envd => {
                return if status.terminating_signal().is_some() {
                    ENVD_KILLED
                } else {
                    ENVD_EXITED
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // No child is left, so envd is gone too.
            Err(_) => return ENVD_EXITED,
        }
    }
}
