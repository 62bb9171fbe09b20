//! `soulbox-envd`: puts the process in order, then serves on one thread until it is killed.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use soulbox_envd::arguments::{self, Command, Listen, Serve};
use soulbox_envd::http;
use soulbox_envd::server;
use soulbox_envd::settings::{Settings, Startup};
use soulbox_envd_proto::ENVD_VERSION;

/// Threads for file operations: few, since the disk is one.
const FILE_THREADS: usize = 8;
const FILE_THREAD_STACK: usize = 256 << 10;

/// Freed memory that may stay while clients are connected: two or three pieces of each output are under way at a time.
const KEPT: u32 = 1 << 20;

#[derive(Debug, thiserror::Error)]
enum StartupError {
    #[error("cannot close this process to inspection")]
    Inspection(#[source] io::Error),
    #[error("cannot take inherited descriptor {number}")]
    Inherited {
        number: i32,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the init secret")]
    Secret(#[source] io::Error),
    #[error("the init secret is not hex")]
    SecretFormat,
    #[error("cannot listen")]
    Listen(#[source] io::Error),
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
}

fn main() -> ExitCode {
    // Before anything secret is in memory.
    if let Err(source) = soulbox_sys::process::forbid_inspection() {
        return fail(&StartupError::Inspection(source));
    }
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Version) => {
            println!("{ENVD_VERSION}");
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(serve)) => match run(serve) {
            Ok(never) => match never {},
            Err(error) => fail(&error),
        },
        Err(error) => {
            eprintln!("error: {error}\n{}", arguments::USAGE);
            ExitCode::from(2)
        }
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", soulbox_envd::cause::chain(error));
    ExitCode::FAILURE
}

fn run(serve: Serve) -> Result<std::convert::Infallible, StartupError> {
    // A refusal costs speed and nothing else.
    _ = soulbox_sys::allocator::keep_at_most(KEPT);
    // Files and directories that programs make are to be readable, whatever the parent had.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let init_secret = serve.init_secret_fd.map(read_secret).transpose()?;
    let listener = listen(serve.listen)?;
    let settings = Settings::new(Startup {
        init_secret,
        default_user: serve.default_user,
        default_workdir: serve.default_workdir,
    });
    http::prepare(&settings);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS)
        .thread_stack_size(FILE_THREAD_STACK)
        .build()
        .map_err(StartupError::Runtime)?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(StartupError::Listen)?;
        Err(StartupError::Accept(
            server::serve(listener, http::router(Arc::new(settings))).await,
        ))
    })
}

fn inherited(number: i32) -> Result<OwnedFd, StartupError> {
    soulbox_sys::process::take_inherited(number)
        .map_err(|source| StartupError::Inherited { number, source })
}

fn read_secret(number: i32) -> Result<Vec<u8>, StartupError> {
    let mut text = String::new();
    File::from(inherited(number)?)
        .read_to_string(&mut text)
        .map_err(StartupError::Secret)?;
    let secret = hex::decode(text.trim()).map_err(|_| StartupError::SecretFormat)?;
    if secret.is_empty() {
        Err(StartupError::SecretFormat)
    } else {
        Ok(secret)
    }
}

fn listen(listen: Listen) -> Result<TcpListener, StartupError> {
    let listener = match listen {
        Listen::Inherited(number) => {
            let listener = TcpListener::from(inherited(number)?);
            close_others(number)?;
            listener
        }
        Listen::Address(address) => {
            let listener = TcpListener::bind(address).map_err(StartupError::Listen)?;
            let bound = listener.local_addr().map_err(StartupError::Listen)?;
            close_others(listener.as_raw_fd())?;
            eprintln!("listening on {bound}");
            listener
        }
    };
    listener
        .set_nonblocking(true)
        .map_err(StartupError::Listen)?;
    Ok(listener)
}

/// Closes what was inherited by mistake: at this point nothing of ours is open but the listener and stdio.
fn close_others(listener: i32) -> Result<(), StartupError> {
    soulbox_sys::process::close_all_but(listener).map_err(|source| StartupError::Inherited {
        number: listener,
        source,
    })
}
