//! The host RPC's transport: frames of `soulbox_wire::host` over one unix stream socket, descriptors by SCM_RIGHTS.
//!
//! The front holds a [`Client`], the agent runs [`serve`]. Either end treats a malformed frame as the end of the connection and says which rule it
//! broke. Nothing is sent twice and nothing reconnects: a front whose connection ends exits, the agent starts another one.

mod client;
mod frame;
mod server;

pub use client::Client;
pub use frame::RpcError;
pub use server::{Handler, serve};

#[cfg(test)]
mod tests;

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
