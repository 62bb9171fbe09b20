//! `soulbox-interpreter`: serves on a listener that it inherits as its stdin, or on an address.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use soulbox_interpreter::{Contexts, Launcher, http, server};

const USAGE: &str = "usage: soulbox-interpreter (--inherit | --listen ADDRESS) [--drivers FOLDER]\n\
    --inherit serves on the listening socket that is its stdin";
const DRIVERS: &str = "/run/soulbox/kernels";

enum Listen {
    Inherited,
    Address(SocketAddr),
}

struct Arguments {
    listen: Listen,
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
    let (mut listen, mut drivers) = (None, PathBuf::from(DRIVERS));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--inherit" => listen = Some(Listen::Inherited),
            "--listen" => listen = Some(Listen::Address(arguments.next()?.parse().ok()?)),
            "--drivers" => drivers = arguments.next()?.into(),
            _ => return None,
        }
    }
    Some(Arguments {
        listen: listen?,
        drivers,
    })
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let listener = listen(&arguments.listen)?;
    listener.set_nonblocking(true)?;
    let launcher = Launcher::new(&arguments.drivers)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()?;
    runtime.block_on(async {
        let contexts = Arc::new(Contexts::new(launcher));
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let serving = server::serve(listener, http::router(Arc::clone(&contexts)));
        let ((), error) = tokio::join!(contexts.prepare(), serving);
        Err(error.into())
    })
}

fn listen(listen: &Listen) -> io::Result<TcpListener> {
    match listen {
        Listen::Address(address) => TcpListener::bind(address),
        Listen::Inherited => {
            let inherited = io::stdin().as_fd().try_clone_to_owned()?;
            // Kept open by nobody else: kernels get a stdin of their own, and so does what they start.
            Ok(TcpListener::from(inherited))
        }
    }
}
