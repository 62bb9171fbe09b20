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
