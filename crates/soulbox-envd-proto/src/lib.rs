//! Byte shapes that also ship into a sandbox: `/init`, signatures of file URLs, constants, and (feature `rpc`) the
//! protobuf messages and Connect services of `proto/`.
//!
//! Without features this crate is small, so that the front can sign and refuse without linking an RPC stack.
#![forbid(unsafe_code)]

mod init;
mod log;
mod route;
#[cfg(feature = "rpc")]
pub mod rpc;
mod signature;
mod usage;

pub use init::{
    INIT_SIGNATURE_HEADER, InitRequest, SandboxLimits, VolumeMount, machine_id, sign_init,
    verify_init,
};
pub use log::{LogLevel, LogLine, LogQuery, MAX_LOG_BYTES, MAX_LOG_LINES};
pub use route::{HOST_ONLY_ROUTES, is_host_only};
pub use signature::{FileOperation, sign_file};
pub use usage::{SandboxUsage, USAGE_HEADER};

/// The envd release whose behaviour is matched. Plain `X.Y.Z`: a suffix breaks version parsing in official clients.
pub const ENVD_VERSION: &str = "0.6.13";

/// The port that envd listens on inside every sandbox.
pub const ENVD_PORT: u16 = 49983;

/// Header that carries the access token.
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";
