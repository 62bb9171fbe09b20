//! Byte shapes of the host side: the REST API's JSON ([`rest`]) the RPC between front and host agent ([`host`]), and
//! commands in a sandbox as clients of its daemon speak of them ([`process`]).
//!
//! E2B's spellings (`memoryMB`, which is MiB) stay in here.
#![forbid(unsafe_code)]

pub mod host;
pub mod process;
pub mod rest;
