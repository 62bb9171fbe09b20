//! From a request to a running program: environment, search path, stdio or terminal.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use soulbox_envd_proto::rpc::process::{PTY, ProcessConfig, StartRequest};
use soulbox_sys::process::{Credentials, Program, Session, SpawnError, Spawned};

use super::fanout::Channel;
use super::input::Input;
use crate::descriptor::{self, Descriptor};
use crate::path::{self, PathError};
use crate::users::{self, Names, User, UserError};

/// The search path of a program that names none, as login programs set it.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("process is not set")]
    NoProcess,
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("cwd '{0}' does not exist")]
    MissingDirectory(String),
    #[error("error reading groups of the user")]
    Groups(#[source] UserError),
    #[error("{what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error("error starting process")]
    Spawn(#[from] SpawnError),
    #[error("error starting process: cannot open {what}")]
    Stdio {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What a request may leave to the daemon.
pub(crate) struct Surroundings<'a> {
    pub(crate) user: &'a User,
    pub(crate) default_workdir: Option<&'a str>,
    pub(crate) variables: &'a BTreeMap<String, String>,
}

/// A program that runs, with our ends of its stdio.
pub(crate) struct Started {
    pub(crate) spawned: Spawned,
    pub(crate) pidfd: Descriptor,
    pub(crate) outputs: Vec<(Channel, Arc<Descriptor>)>,
    pub(crate) input: Input,
}

/// Starts what `request` asks for. Blocks for fork and exec.
pub(crate) fn start(
    request: &StartRequest,
    surroundings: &Surroundings<'_>,
) -> Result<Started, StartError> {
    let config = request.process.as_option().ok_or(StartError::NoProcess)?;
    let program = program(config, surroundings)?;
    match request.pty.as_option() {
        Some(pty) => start_with_terminal(program, pty, surroundings.user),
        None => start_with_pipes(program, request.stdin.unwrap_or(true)),
    }
}

fn start_with_pipes(program: Program, with_stdin: bool) -> Result<Started, StartError> {
    let (stdout, stdout_theirs) = io::pipe().map_err(stdio("a pipe"))?;
    let (stderr, stderr_theirs) = io::pipe().map_err(stdio("a pipe"))?;
    let (stdin, input) = if with_stdin {
        let (theirs, ours) = io::pipe().map_err(stdio("a pipe"))?;
        (theirs.into(), Input::pipe(asynchronous(ours.into())?))
    } else {
        (Stdio::null(), Input::nothing())
    };
    let outputs = vec![
        (Channel::Stdout, Arc::new(asynchronous(stdout.into())?)),
        (Channel::Stderr, Arc::new(asynchronous(stderr.into())?)),
    ];
    let spawned = soulbox_sys::process::spawn(
        program,
        Session::Inherited,
        stdin,
        stdout_theirs.into(),
        stderr_theirs.into(),
    )?;
    started(spawned, outputs, input)
}

fn start_with_terminal(program: Program, pty: &PTY, user: &User) -> Result<Started, StartError> {
    let terminal = |errno: rustix::io::Errno| StartError::Stdio {
        what: "a terminal",
        source: errno.into(),
    };
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map_err(terminal)?;
    rustix::pty::unlockpt(&master).map_err(terminal)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(terminal)?;
    rustix::termios::tcsetwinsize(&master, window_size(pty)).map_err(terminal)?;
    // As login programs do, so that the user can open the terminal by its name; others may only write to it.
    let tty = Names::load()
        .gid_of("tty")
        .map(rustix::process::Gid::from_raw);
    rustix::fs::fchown(&slave, Some(rustix::process::Uid::from_raw(user.uid)), tty)
        .map_err(terminal)?;
    rustix::fs::fchmod(&slave, Mode::RUSR | Mode::WUSR | Mode::WGRP).map_err(terminal)?;

    let master = Arc::new(asynchronous(master)?);
    let duplicate = || {
        slave
            .try_clone()
            .map(Stdio::from)
            .map_err(stdio("a terminal"))
    };
    let (stdin, stdout, stderr) = (duplicate()?, duplicate()?, duplicate()?);
    let spawned = soulbox_sys::process::spawn(program, Session::Terminal, stdin, stdout, stderr)?;
    started(
        spawned,
        vec![(Channel::Pty, Arc::clone(&master))],
        Input::terminal(master),
    )
}

fn started(
    spawned: Spawned,
    outputs: Vec<(Channel, Arc<Descriptor>)>,
    input: Input,
) -> Result<Started, StartError> {
    let pidfd = spawned
        .pidfd
        .try_clone()
        .and_then(descriptor::register)
        .map_err(stdio("a pidfd"))?;
    Ok(Started {
        spawned,
        pidfd,
        outputs,
        input,
    })
}

pub(crate) fn window_size(pty: &PTY) -> Winsize {
    let clamp = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    let (columns, rows) = pty
        .size
        .as_option()
        .map_or((0, 0), |size| (size.cols, size.rows));
    Winsize {
        ws_row: clamp(rows),
        ws_col: clamp(columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn asynchronous(descriptor: OwnedFd) -> Result<Descriptor, StartError> {
    descriptor::register(descriptor).map_err(stdio("a pipe"))
}

fn stdio(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Stdio { what, source }
}

fn program(config: &ProcessConfig, surroundings: &Surroundings<'_>) -> Result<Program, StartError> {
    let user = surroundings.user;
    let directory = path::resolve(
        config.cwd.as_deref().unwrap_or_default(),
        user,
        surroundings.default_workdir,
    )?;
    if !std::path::Path::new(&directory).exists() {
        return Err(StartError::MissingDirectory(directory));
    }
    let mut variables: BTreeMap<&str, &str> = BTreeMap::from([
        ("PATH", DEFAULT_PATH),
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
    ]);
    variables.extend(
        surroundings
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    variables.extend(
        config
            .envs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );

    let search_path = variables.get("PATH").copied().unwrap_or(DEFAULT_PATH);
    let text = |what| move |text: String| CString::new(text).map_err(|_| StartError::Nul { what });
    Ok(Program {
        candidates: candidates(&config.cmd, search_path)
            .map(text("cmd"))
            .collect::<Result<_, _>>()?,
        arguments: [&config.cmd]
            .into_iter()
            .chain(&config.args)
            .cloned()
            .map(text("argument"))
            .collect::<Result<_, _>>()?,
        environment: variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .map(text("environment"))
            .collect::<Result<_, _>>()?,
        working_directory: text("cwd")(directory)?,
        credentials: Credentials {
            uid: user.uid,
            gid: user.gid,
            groups: users::groups_of(user).map_err(StartError::Groups)?,
        },
        name: config.cmd.clone(),
    })
}

/// The files that a command name may mean, as execvp sees it.
fn candidates<'a>(command: &'a str, search_path: &'a str) -> impl Iterator<Item = String> + 'a {
    let direct = command.contains('/').then(|| command.to_owned());
    let searched = (!command.contains('/') && !command.is_empty()).then(|| {
        search_path.split(':').map(move |directory| {
            format!(
                "{}/{command}",
                if directory.is_empty() { "." } else { directory }
            )
        })
    });
    direct.into_iter().chain(searched.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_are_searched_and_paths_are_not() {
        assert_eq!(
            candidates("ls", "/a::/b").collect::<Vec<_>>(),
            ["/a/ls", "./ls", "/b/ls"]
        );
        assert_eq!(candidates("./ls", "/a").collect::<Vec<_>>(), ["./ls"]);
        assert_eq!(candidates("", "/a").count(), 0);
    }
}
