//! [`LiveSandbox`]: what the ingress needs to know about a sandbox that can be reached now.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use soulbox_types::{Inbound, SandboxId, SandboxState, TeamId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Who may reach the ports of a sandbox other than envd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// Everybody who knows the address.
    Public,
    /// Who sends this token in `e2b-traffic-access-token`.
    Private { token: String },
}

/// A sandbox that can be reached now. Holding one keeps nothing alive: watch [`LiveSandbox::gone`].
#[derive(Debug)]
pub struct LiveSandbox {
    pub sandbox_id: SandboxId,
    pub team_id: TeamId,
    /// The latest state; anything but `Running` means that requests must be refused.
    pub state: watch::Receiver<SandboxState>,
    pub traffic: Traffic,
    pub inbound: Arc<Inbound>,
    /// The token that envd demands, if the sandbox is secured.
    pub access_token: Option<String>,
    /// Cancelled the moment its end is decided, before the host is asked: streams into it are then reset.
    pub gone: CancellationToken,
    /// To be set by whoever carries a request to envd: its log is then read soon.
    pub used: Arc<AtomicBool>,
}

impl LiveSandbox {
    /// The same sandbox after a pause: its streams have an end of their own.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            sandbox_id: self.sandbox_id.clone(),
            team_id: self.team_id.clone(),
            state: self.state.clone(),
            traffic: self.traffic.clone(),
            inbound: self.inbound.clone(),
            access_token: self.access_token.clone(),
            gone: CancellationToken::new(),
            used: self.used.clone(),
        }
    }
}
