//! The host agent: owns the sandboxes of one Linux host, a task each, and every kernel object of theirs.
//!
//! | module | owns |
//! |---|---|
//! | [`host`] | the map of live sandboxes; create, dial, list; start and stop of it all |
//! | [`lifecycle`] | what is decided of one sandbox, purely |
//! | [`sandbox`] | one sandbox: performs what is decided |
//! | `copies` | sealed snapshots in the store, and local copies made of them |
//! | [`saves`] | snapshots in the making |
//! | [`snapshot`] | what a snapshot says of itself, and whether it is believed |
//! | `substitutes` | what was prepared to take the place of a live sandbox |
//! | [`warm`] | slots made ahead |
//! | [`workshop`] | the order of steps that makes and unmakes a sandbox |
//! | `layers` | what template builds ask for: layers of what sandboxes wrote, manifests of builds |
//! | [`runtime`], [`native`] | the seam to the isolation tier, and the first tier |
//! | [`record`], [`instance`] | what outlives the agent |
//! | [`memory`] | whether the host has memory for one more |
//! | [`clock`] | the time that deadlines go by |
//! | [`dns`] | the gateway's name server |
//!
//! It parses nothing from the internet and nothing from a guest: bytes of sandboxes never pass through it, only connected sockets.
#![forbid(unsafe_code)]

mod claims;
pub mod clock;
mod copies;
pub mod dns;
pub mod host;
pub mod instance;
mod layers;
pub mod lifecycle;
mod memory;
pub mod native;
pub mod record;
pub mod runtime;
mod sandbox;
mod saves;
mod slots;
pub mod snapshot;
mod substitutes;
mod warm;
mod workshop;

pub use host::{Host, HostSettings, StartError};
pub use warm::{WarmLevels, WarmTargets};

/// The port of envd inside every sandbox.
pub const ENVD_PORT: u16 = soulbox_runtime::identity::ENVD_PORT;
/// Processes and threads of a sandbox whose creator names no number.
pub const DEFAULT_PIDS: u32 = 4096;

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
