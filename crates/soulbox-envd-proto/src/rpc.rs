//! Messages and Connect services generated from `proto/`: modules `process` and `filesystem`.
#![allow(clippy::all, unreachable_pub)]

include!(concat!(env!("OUT_DIR"), "/envd_rpc.rs"));
