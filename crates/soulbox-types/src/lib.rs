//! The vocabulary of SoulBox: identifiers, units, what a sandbox is asked to be and what it is.
//!
//! Values only: no I/O, no serialisation. Wire spellings live in `soulbox-wire`.
#![forbid(unsafe_code)]

mod id;
mod inbound;
mod limits;
mod network;
mod outbound;
mod sandbox;

pub use id::{BuildId, IdError, SandboxId, TeamId, TemplateId};
pub use inbound::{HostMask, HttpsPorts, HttpsPortsError, Inbound, ParseHostMaskError};
pub use limits::{Limits, MiB, MilliCpu};
pub use network::{Cidr, Egress, ParseCidrError};
pub use outbound::{Network, NetworkError};
pub use sandbox::{DeathCause, Epoch, SandboxState, UnixMillis};
