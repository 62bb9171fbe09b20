//! Starting a program under other credentials, with every step between fork and exec in one place.
//!
//! The standard library does the fork, the stdio and the error pipe; what it cannot do (supplementary groups, a
//! controlling terminal, `chdir` after the change of user, exit codes 126 and 127 of a shell) happens here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::ptr;

use rustix::process::{Gid, Pid, PidfdFlags, Uid};

/// Who the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Everything that exec needs, complete before the fork.
#[derive(Debug)]
pub struct Program {
    /// Files to try, in order: one for a name with a slash, else one for each directory of the search path.
    pub candidates: Vec<CString>,
    /// Argument zero included.
    pub arguments: Vec<CString>,
    /// `NAME=value` each; nothing is inherited.
    pub environment: Vec<CString>,
    pub working_directory: CString,
    pub credentials: Credentials,
    /// The name that a complaint on stderr shows.
    pub name: String,
}

/// Whether the program leads a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Stays in the caller's session and process group.
    Inherited,
    /// Leads a new session whose controlling terminal is its stdin.
    Terminal,
}

/// A running child. Nobody else waits for it: the owner reads its exit from `pidfd`.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot start `{name}`")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot watch process {pid}")]
    Pidfd {
        pid: u32,
        #[source]
        source: io::Error,
    },
}

/// Pointers into strings that travel with them.
struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    fn to(strings: &[CString]) -> Self {
        Self(
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([ptr::null()])
                .collect(),
        )
    }
}

// SAFETY: the pointers are only read, by the forked child, and what they point to is owned by the same closure.
unsafe impl Send for Pointers {}
// SAFETY: as above; nothing is ever written through them.
unsafe impl Sync for Pointers {}

/// Forks and executes `program`. Blocks for the fork and until the child has executed or failed.
///
/// A program that cannot be executed is *started* nevertheless, as a shell would: it writes one line to its stderr and
/// exits with 127 (not found) or 126 (not executable).
/// # Errors
/// [`SpawnError::Start`] when the child could not become the user or enter the working directory.
/// Privilege: CAP_SETUID and CAP_SETGID in the current user namespace.
pub fn spawn(
    program: Program,
    session: Session,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
) -> Result<Spawned, SpawnError> {
    let name = program.name.clone();
    // Never executed under this name: the closure below executes the candidates itself.
    let mut command = Command::new("/");
    command.stdin(stdin).stdout(stdout).stderr(stderr);

    let arguments = Pointers::to(&program.arguments);
    let environment = Pointers::to(&program.environment);
    let scripts: Vec<(Vec<CString>, Pointers)> = program
        .candidates
        .iter()
        .map(|file| script_arguments(file, &program.arguments))
        .collect();
    let groups: Vec<Gid> = program
        .credentials
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let complaint = format!("exec: '{}': ", program.name).into_bytes();

    let in_child = move || -> io::Result<()> {
        become_user(&program, session, &groups)?;
        let mut refusal = libc::ENOENT;
        for (file, (_, script)) in program.candidates.iter().zip(&scripts) {
            match execute(file, &arguments, &environment) {
                libc::ENOEXEC => {
                    execute(c"/bin/sh", script, &environment);
                    refusal = libc::ENOEXEC;
                    break;
                }
                // As execvp: one that is there but refused is reported only if no later one runs.
                libc::ENOENT | libc::ENOTDIR => {}
                other => refusal = other,
            }
        }
        complain(&complaint, refusal);
        let code = if refusal == libc::ENOENT { 127 } else { 126 };
        // SAFETY: _exit(2) takes any code, runs no handlers and does not return.
        unsafe { libc::_exit(code) }
    };
    // SAFETY: `in_child` makes only system calls on memory allocated before the fork: no locks, no allocation.
    unsafe { command.pre_exec(in_child) };

    let child = command
        .spawn()
        .map_err(|source| SpawnError::Start { name, source })?;
    let pid = child.id();
    // The child is unreaped, so its pid cannot have been given to another process yet.
    let pidfd = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK))
        .map_err(|errno| SpawnError::Pidfd {
            pid,
            source: errno.into(),
        })?;
    Ok(Spawned { pid, pidfd })
}

/// `/bin/sh FILE ARGUMENT...`, for a file that the kernel does not know how to run.
fn script_arguments(file: &CStr, arguments: &[CString]) -> (Vec<CString>, Pointers) {
    let script: Vec<CString> = [c"sh".to_owned(), file.to_owned()]
        .into_iter()
        .chain(arguments.iter().skip(1).cloned())
        .collect();
    let pointers = Pointers::to(&script);
    (script, pointers)
}

/// Runs in the child.
fn become_user(program: &Program, session: Session, groups: &[Gid]) -> io::Result<()> {
    if session == Session::Terminal {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    be_expendable();
    rustix::thread::set_thread_groups(groups)?;
    let gid = Gid::from_raw(program.credentials.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(program.credentials.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // After the change of user: a directory that the user may not enter is refused.
    rustix::process::chdir(program.working_directory.as_c_str())?;
    Ok(())
}

/// Runs in the child: memory shortage takes programs before the daemon, and they get none of its priorities.
/// What the kernel refuses here is not worth refusing the start.
fn be_expendable() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const BEST_EFFORT_4: libc::c_int = (2 << 13) | 4; // IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 4), linux/ioprio.h

    if let Ok(score) = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) {
        _ = rustix::io::write(&score, b"100");
    }
    _ = rustix::process::setpriority_process(None, 0);
    // SAFETY: ioprio_set(2) takes three integers and touches no memory.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, BEST_EFFORT_4) };
}

/// Runs in the child; returns the error number, or does not return.
fn execute(file: &CStr, arguments: &Pointers, environment: &Pointers) -> i32 {
    // SAFETY: both arrays end with a null pointer and point to strings that the calling closure owns.
    unsafe { libc::execve(file.as_ptr(), arguments.0.as_ptr(), environment.0.as_ptr()) };
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Runs in the child.
fn complain(prefix: &[u8], refusal: i32) {
    let reason: &[u8] = match refusal {
        libc::ENOENT => b"No such file or directory\n",
        libc::EACCES => b"Permission denied\n",
        libc::ENOEXEC => b"Exec format error\n",
        libc::E2BIG => b"Argument list too long\n",
        libc::ENOMEM => b"Cannot allocate memory\n",
        _ => b"Cannot be executed\n",
    };
    let stderr = rustix::stdio::stderr();
    // Nobody is left to tell when stderr is closed.
    _ = rustix::io::write(stderr, prefix).and_then(|_| rustix::io::write(stderr, reason));
}

/// Forbids other processes of the sandbox, its root included, to read this one's memory and descriptors.
/// Source: prctl(2), PR_SET_DUMPABLE.
pub fn forbid_inspection() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Closes every descriptor above stderr but `kept`, whoever opened it.
/// For the start of a program, while it owns no other descriptor: one that is owned would be closed twice.
/// Source: close_range(2).
pub fn close_all_but(kept: i32) -> io::Result<()> {
    let kept = u32::try_from(kept).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    for (first, last) in [
        (3, kept.saturating_sub(1)),
        (kept.saturating_add(1).max(3), u32::MAX),
    ] {
        if first > last {
            continue;
        }
        // SAFETY: close_range(2) touches no memory; the caller vouches that nothing here owns those descriptors.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes a descriptor that this process inherited under a known number; it is closed on exec from now on.
/// # Errors
/// When no such descriptor is open.
/// Call it once a number, before anything else could have opened it.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::{BorrowedFd, FromRawFd as _};

    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only used for one fcntl(2), which reports a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as fcntl(2) just showed, and inherited, so nothing in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn run(
        candidates: &[&str],
        working_directory: &str,
    ) -> Result<(String, Option<i32>), SpawnError> {
        let (mut output, writer) = io::pipe().expect("pipe");
        let program = Program {
            candidates: candidates
                .iter()
                .map(|file| CString::new(*file).expect("no NUL"))
                .collect(),
            arguments: vec![
                c"sh".into(),
                c"-c".into(),
                c"pwd; id -u; echo $A; cat /proc/self/oom_score_adj".into(),
            ],
            environment: vec![c"A=b".into(), c"PATH=/usr/bin:/bin".into()],
            working_directory: CString::new(working_directory).expect("no NUL"),
            credentials: Credentials {
                uid: 65534,
                gid: 65534,
                groups: vec![],
            },
            name: "sh".into(),
        };
        let error_writer = writer.try_clone().expect("dup");
        let spawned = spawn(
            program,
            Session::Inherited,
            Stdio::null(),
            writer.into(),
            error_writer.into(),
        )?;
        let mut text = String::new();
        output.read_to_string(&mut text).expect("read");
        let status = rustix::process::waitid(
            rustix::process::WaitId::Pid(
                Pid::from_raw(spawned.pid.try_into().expect("pid")).expect("pid"),
            ),
            rustix::process::WaitIdOptions::EXITED,
        )
        .expect("waitid");
        Ok((text, status.and_then(|status| status.exit_status())))
    }

    #[test]
    fn program_runs_as_the_user_in_its_directory() {
        let (text, code) = run(&["/nowhere/sh", "/bin/sh"], "/tmp").expect("starts");
        assert_eq!(text, "/tmp\n65534\nb\n100\n");
        assert_eq!(code, Some(0));
    }

    #[test]
    fn missing_program_exits_127_with_a_line() {
        assert_eq!(
            run(&["/nowhere/sh"], "/").expect("starts"),
            ("exec: 'sh': No such file or directory\n".into(), Some(127))
        );
    }

    #[test]
    fn unexecutable_program_exits_126_with_a_line() {
        assert_eq!(
            run(&["/etc/passwd"], "/").expect("starts"),
            ("exec: 'sh': Permission denied\n".into(), Some(126))
        );
    }

    #[test]
    fn directory_is_entered_as_the_user() {
        let closed =
            std::env::temp_dir().join(format!("soulbox-sys-closed-{}", std::process::id()));
        std::fs::create_dir(&closed).expect("mkdir");
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("chmod");
        let refused = run(&["/bin/sh"], closed.to_str().expect("UTF-8"));
        std::fs::remove_dir(&closed).expect("rmdir");
        assert!(
            matches!(refused, Err(SpawnError::Start { source, .. }) if source.raw_os_error() == Some(libc::EACCES))
        );
    }
}
