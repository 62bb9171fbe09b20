//! Messages and Connect services generated from `proto/`: modules `process` and `filesystem`.
#![allow(clippy::all, unreachable_pub)]

/// What the services were generated from, as a `FileDescriptorSet`; for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/published.bin"));

include!(concat!(env!("OUT_DIR"), "/envd_rpc.rs"));
