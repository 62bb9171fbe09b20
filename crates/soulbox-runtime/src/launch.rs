//! The launcher: one static program with three lives, and three errands for a sandbox that is dumped or restored ([`criu`], [`furnish`],
//! [`watch`]).
//!
//! 1. *Outside*: started by the host agent as root, with the control socket as its standard input. It puts itself into the cgroups, clones
//!    a child into new namespaces, writes the child's ID maps and ends.
//! 2. *Parked*: the child, pid 1 inside and a child of the agent. It makes its file systems while the host's are still visible, moves to an
//!    empty root, gets its network, listens on envd's port, and waits for a [`BootPlan`] or for the end of the control socket.
//! 3. *Init*: after the boot it has moved to the sandbox's root, given up its privileges, started envd, and become a program that only reaps
//!    (see [`init`]).
//!
//! The control socket is a SEQPACKET pair; each message is one packet of JSON with its descriptors. See [`channel`].

pub mod channel;
pub mod criu;
mod furnish;
pub mod init;
mod outside;
mod parked;
pub(crate) mod watch;

use std::io;

use channel::{Channel, FromLauncher, ToLauncher};
use soulbox_sys::namespace::close_all_on_exec;

/// A step of the launcher that failed; the agent gets it over the control socket.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub struct LaunchError {
    step: String,
    #[source]
    source: io::Error,
}

impl LaunchError {
    fn report(&self) -> FromLauncher {
        FromLauncher::Failed {
            step: self.step.clone(),
            errno: self.source.raw_os_error().unwrap_or(0),
        }
    }
}

/// Names the step of an I/O error.
trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, LaunchError> {
        self.map_err(|source| LaunchError {
            step: step.into(),
            source: source.into(),
        })
    }
}

/// What the first message asks for.
fn serve(control: &Channel) -> Result<(), LaunchError> {
    // Nothing started here may inherit what the agent's own parent forgot to close.
    close_all_on_exec().step("mark descriptors as closed on exec")?;
    match control.receive::<ToLauncher>(None).step("read a plan")? {
        None => Ok(()),
        Some((ToLauncher::Setup(plan), cgroups)) => outside::run(control, &plan, cgroups),
        Some((ToLauncher::Criu(plan), descriptors)) => criu::run(control, &plan, descriptors),
        Some((ToLauncher::Furnish(plan), descriptors)) => {
            furnish::run(control, plan.as_ref(), descriptors)
        }
        Some((ToLauncher::Watch(plan), _)) => watch::run(control, &plan),
        Some(_) => Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read a plan"),
    }
}

/// The program's main: `soulbox-launch` with the control socket as standard input, or `soulbox-launch init PID`. Returns the exit code.
#[must_use]
pub fn main(arguments: &[String]) -> i32 {
    match arguments {
        [command, pid] if command == "init" => match pid.parse() {
            Ok(pid) => init::run(pid),
            Err(_) => 2,
        },
        [] => {
            let control = match Channel::from_stdin() {
                Ok(control) => control,
                Err(error) => {
                    eprintln!("soulbox-launch: no control socket on standard input: {error}");
                    return 2;
                }
            };
            match serve(&control) {
                Ok(()) => 0,
                Err(error) => {
                    // When the agent is gone nobody is left to tell.
                    let _ = control.send(&error.report(), &[]);
                    1
                }
            }
        }
        _ => {
            eprintln!("soulbox-launch: started by the soulbox host agent only");
            2
        }
    }
}
