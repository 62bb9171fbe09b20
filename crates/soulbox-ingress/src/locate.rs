//! [`Locate`]: where a sandbox is and how to reach a port of it. The server supplies the implementation.

use std::sync::Arc;

use async_trait::async_trait;
use soulbox_envd_proto::SandboxUsage;
use soulbox_types::{Inbound, SandboxId};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A sandbox that can be reached now.
#[derive(Debug, Clone)]
pub struct Live {
    /// Cancelled when its end is decided; its streams are reset then.
    pub ended: CancellationToken,
    /// What every port but envd's demands in `e2b-traffic-access-token`, if anything.
    pub traffic_token: Option<String>,
    /// The host that its programs see, and the ports that speak TLS.
    pub inbound: Arc<Inbound>,
}

/// What a look for a sandbox found that cannot be reached at once.
#[derive(Debug, Clone)]
pub enum Found {
    Live(Live),
    /// It is paused, and traffic that has these tokens resumes it.
    Paused {
        traffic_token: Option<String>,
        /// What envd demands in `X-Access-Token`.
        access_token: Option<String>,
    },
    Nothing,
}

/// Why a paused sandbox was not resumed for a request.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    #[error("the sandbox is not there, or not to be resumed")]
    NotFound,
    #[error("the team has as many sandboxes as it may: {limit}")]
    LimitReached { limit: u32 },
    #[error("the sandbox was not resumed: {0}")]
    Failed(String),
}

/// Why a port was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the sandbox is not there")]
    NotFound,
    #[error("nothing listens on the port")]
    PortClosed,
    #[error("the host failed to connect: {0}")]
    Failed(String),
}

/// Whether an access token is the one sought.
pub type IsSought<'a> = &'a (dyn for<'token> Fn(&'token str) -> bool + Sync);

/// Finds sandboxes.
#[async_trait]
pub trait Locate: Send + Sync + 'static {
    /// The sandbox, if requests may go to it. Called once for every request: cheap, from memory.
    fn live(&self, sandbox_id: &SandboxId) -> Option<Live>;

    /// The same with a look, in bounded time, at what other servers have made, and at what is paused. Called when [`Locate::live`] knows
    /// nothing.
    async fn find(&self, sandbox_id: &SandboxId) -> Found {
        self.live(sandbox_id).map_or(Found::Nothing, Found::Live)
    }

    /// Resumes a paused sandbox for a request that may go to it, in bounded time; many who want that at once make one resume.
    async fn wake(&self, sandbox_id: &SandboxId) -> Result<Live, WakeError> {
        self.live(sandbox_id).ok_or(WakeError::NotFound)
    }

    /// Told of each request that goes to a sandbox's envd. Cheap, from memory.
    fn used(&self, _sandbox_id: &SandboxId) {}

    /// The sandbox, of those that requests may go to, or else of those that traffic resumes, whose access token is the one sought. Looks at
    /// all of them, in bounded time.
    async fn whose(&self, is_sought: IsSought<'_>) -> Option<SandboxId>;

    /// Connects to a TCP port inside, once, in bounded time.
    async fn dial(&self, sandbox_id: &SandboxId, port: u16) -> Result<TcpStream, DialError>;

    /// What the host counts of it, at most a second old, in bounded time; nothing when the host does not say.
    async fn usage(&self, sandbox_id: &SandboxId) -> Option<SandboxUsage>;
}
