//! Byte shapes of the host side: the REST API's JSON ([`rest`]) and the RPC between front and host agent ([`host`]).
//!
//! E2B's spellings (`memoryMB`, which is MiB) stay in here.
#![forbid(unsafe_code)]

pub mod host;
pub mod rest;
