//! `soulbox-interpreter`: serves on a listener that it inherits as its stdin, or on an address. As `--kernel` it is the driver of an
//! installed kernel of Jupyter, started by itself.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use soulbox_interpreter::{Contexts, Launcher, http, jupyter, server};

const USAGE: &str = "usage: soulbox-interpreter (--inherit | --listen ADDRESS | --kernel FILE) [--drivers FOLDER]\n\
    --inherit serves on the listening socket that is its stdin\n\
    --kernel drives the Jupyter kernel of a kernel.json for the interpreter at the other end of its stdin";
const DRIVERS: &str = "/run/soulbox/kernels";

enum Task {
    ServeInherited,
    ServeAddress(SocketAddr),
    Drive(PathBuf),
}

struct Arguments {
    task: Task,
    drivers: PathBuf,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let (mut task, mut drivers) = (None, PathBuf::from(DRIVERS));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--inherit" => task = Some(Task::ServeInherited),
            "--listen" => task = Some(Task::ServeAddress(arguments.next()?.parse().ok()?)),
            "--kernel" => task = Some(Task::Drive(arguments.next()?.into())),
            "--drivers" => drivers = arguments.next()?.into(),
            _ => return None,
        }
    }
    Some(Arguments {
        task: task?,
        drivers,
    })
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let inherited = || io::stdin().as_fd().try_clone_to_owned();
    match arguments.task {
        // Kept open by nobody else: kernels get a stdin of their own, and so does what they start.
        Task::ServeInherited => serve(TcpListener::from(inherited()?), &arguments.drivers),
        Task::ServeAddress(address) => serve(TcpListener::bind(address)?, &arguments.drivers),
        Task::Drive(spec) => drive(inherited()?, &spec, &arguments.drivers),
    }
}

fn serve(listener: TcpListener, drivers: &Path) -> Result<(), Box<dyn std::error::Error>> {
    listener.set_nonblocking(true)?;
    let launcher = Launcher::new(drivers)?;
    runtime()?.block_on(async {
        let contexts = Arc::new(Contexts::new(launcher));
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let serving = server::serve(listener, http::router(Arc::clone(&contexts)));
        let ((), error) = tokio::join!(contexts.prepare(), serving);
        Err(error.into())
    })
}

fn drive(
    connection: OwnedFd,
    spec: &Path,
    drivers: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    // When memory is short, the code that took it shall end, and not the interpreter. Where that is refused, it works without.
    _ = fs::write("/proc/self/oom_score_adj", "500");
    runtime()?.block_on(jupyter::drive(UnixStream::from(connection), spec, drivers))?;
    Ok(())
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
}
