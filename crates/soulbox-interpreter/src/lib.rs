//! The code interpreter inside a sandbox: an HTTP server on port 49999 in front of kernels.
//!
//! `http` translates requests, `contexts` knows which contexts there are, `context` is the task that owns one: executions in
//! order, interruption, death and restart. `kernel` is a running kernel process, `launch` starts one, `message` is what kernels
//! say, `output` puts what they write into lines of the answer, `crowd` notices fork bombs and ends them. Kernels are programs
//! of other languages (`kernels/<language>`);
//! docs/kernels.md has their protocol. `kernelspec` finds installed kernels of Jupyter, and `jupyter` is the driver of one, a process
//! of this same program.
//!
//! The server asks nobody for a token: the ingress decides who reaches the port. Deliberately absent: time limits of
//! executions, which are the client's business: a client that goes away interrupts its execution.
#![forbid(unsafe_code)]

mod context;
mod contexts;
mod crowd;
pub mod http;
pub mod jupyter;
mod kernel;
mod kernelspec;
mod language;
mod launch;
mod message;
mod output;
pub mod server;

pub use contexts::Contexts;
pub use launch::Launcher;
