//! The daemon inside every sandbox: runs programs, reads and writes files, for whoever holds the sandbox's token.
//!
//! One event loop on one thread. `server` accepts, `http` checks and routes, `process` and `filesystem` do the work,
//! `settings` holds what `/init` said. It runs as root of the sandbox's user namespace and is not pid 1; when it dies,
//! the sandbox is dead. It never sets the clock, mounts nothing and opens no connection.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod cause;
mod descriptor;
mod environment;
mod filesystem;
mod fork;
pub mod http;
mod log;
mod path;
mod process;
pub mod server;
mod service;
pub mod settings;
mod users;
