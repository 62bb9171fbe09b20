//! The public side of the front: listeners, TLS, and the proxy from a request to a port of a sandbox.
//!
//! A connection is accepted by [`Server`], which decides for each request by its Host and routing headers ([`route`]) whether it belongs to the
//! REST API (any axum router) or to a sandbox. The latter go through [`Ingress`]: refuse what nobody outside may call, find the sandbox
//! ([`Locate`]), check its traffic token, take a pooled connection or dial one, stream both ways. Nothing is buffered whole, nothing of a sandbox
//! is trusted, and when a sandbox ends all its streams are reset at once.
//!
//! Deliberately absent: who owns sandboxes (control), how a port is dialled (the host agent), how a paused sandbox is resumed (control).
#![forbid(unsafe_code)]

mod activity;
mod crowd;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod headers;
mod locate;
mod pool;
mod preflight;
mod proxy;
mod refusal;
mod route;
mod secure;
mod server;
mod signed;
mod stream;
mod tls;
mod upstream;

pub use locate::{DialError, Found, IsSought, Live, Locate, WakeError};
pub use proxy::Ingress;
pub use refusal::Refusal;
pub use route::{Route, Target, route};
pub use server::Server;
pub use tls::{TlsError, acceptor};
pub use upstream::{Upstream, UpstreamError};
