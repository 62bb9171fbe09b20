//! [`Located`]: the ingress's `Locate` on one machine: control knows the sandboxes, the host agent dials.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use soulbox_control::{Control, CreateError, SandboxError, Traffic};
use soulbox_envd_proto::SandboxUsage;
use soulbox_ingress::{DialError, Found, IsSought, Live, Locate, WakeError};
use soulbox_types::{SandboxId, SandboxState};
use soulbox_wire::host::{HostErrorKind, HostUsage, Reply, Request};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use super::hosts::connected;
use crate::rpc::{Client, RpcError};

/// How long what the host counted is passed on.
const USAGE_LIFE: Duration = Duration::from_secs(1);
/// How long the host is waited for; without its word the daemon inside says less.
const USAGE_PATIENCE: Duration = Duration::from_secs(2);

/// How long all paused sandboxes may be looked through, and others who want that waited for.
const SEARCH_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Located {
    pub(super) control: Control,
    pub(super) client: Client,
    pub(super) counted: Mutex<Counted>,
}

/// What the host last said of its sandboxes.
#[derive(Default)]
pub(super) struct Counted {
    at: Option<Instant>,
    of: HashMap<String, HostUsage>,
}

#[async_trait]
impl Locate for Located {
    fn live(&self, sandbox_id: &SandboxId) -> Option<Live> {
        let live = self.control.live(sandbox_id)?;
        if *live.state.borrow() != SandboxState::Running || live.gone.is_cancelled() {
            return None;
        }
        let traffic_token = match &live.traffic {
            Traffic::Public => None,
            Traffic::Private { token } => Some(token.clone()),
        };
        Some(Live {
            ended: live.gone.clone(),
            traffic_token,
            inbound: live.inbound.clone(),
        })
    }

    async fn find(&self, sandbox_id: &SandboxId) -> Found {
        if self.control.find_live(sandbox_id).await.is_some()
            && let Some(live) = self.live(sandbox_id)
        {
            return Found::Live(live);
        }
        match self.control.paused_for_traffic(sandbox_id).await {
            Ok(Some(paused)) => Found::Paused {
                traffic_token: paused.traffic_token,
                access_token: paused.access_token,
            },
            Ok(None) => Found::Nothing,
            Err(error) => {
                warn!(%sandbox_id, error = crate::failure::chain(&error), "failed to look for a paused sandbox");
                Found::Nothing
            }
        }
    }

    async fn wake(&self, sandbox_id: &SandboxId) -> Result<Live, WakeError> {
        match self.control.wake_for_traffic(sandbox_id).await {
            Ok(true) => self.live(sandbox_id).ok_or(WakeError::NotFound),
            Ok(false) => Err(WakeError::NotFound),
            Err(SandboxError::NotResumed(why)) => Err(match *why {
                CreateError::LimitReached { limit } => WakeError::LimitReached { limit },
                other => WakeError::Failed(crate::failure::chain(&other)),
            }),
            Err(error) => Err(WakeError::Failed(crate::failure::chain(&error))),
        }
    }

    fn used(&self, sandbox_id: &SandboxId) {
        if let Some(live) = self.control.live(sandbox_id) {
            live.used.store(true, Ordering::Relaxed);
        }
    }

    async fn whose(&self, is_sought: IsSought<'_>) -> Option<SandboxId> {
        if let Some(live) = self.control.whose(is_sought) {
            return Some(live);
        }
        match timeout(SEARCH_WITHIN, self.control.whose_paused(is_sought)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                warn!(
                    error = crate::failure::chain(&error),
                    "failed to look through paused sandboxes"
                );
                None
            }
            Err(_) => None,
        }
    }

    async fn dial(&self, sandbox_id: &SandboxId, port: u16) -> Result<TcpStream, DialError> {
        let request = Request::Dial {
            sandbox_id: sandbox_id.to_string(),
            port,
        };
        match self.client.request(request).await {
            Ok((Reply::Dialled, descriptors)) => connected(descriptors).map_err(DialError::Failed),
            Ok(_) => Err(DialError::Failed(
                "the answer is of another kind".to_owned(),
            )),
            Err(RpcError::Host(error)) => Err(match error.kind {
                HostErrorKind::NotFound => DialError::NotFound,
                HostErrorKind::PortClosed => DialError::PortClosed,
                _ => DialError::Failed(error.message),
            }),
            Err(error) => Err(DialError::Failed(crate::failure::chain(&error))),
        }
    }

    async fn usage(&self, sandbox_id: &SandboxId) -> Option<SandboxUsage> {
        // One question to the host for all who ask within its time, however many they are.
        let mut counted = self.counted.lock().await;
        if counted.at.is_none_or(|at| at.elapsed() >= USAGE_LIFE) {
            let asked = self.client.request(Request::Usage);
            let all = match timeout(USAGE_PATIENCE, asked).await {
                Ok(Ok((Reply::Usage(all), _))) => all,
                // Also that is an answer to all who ask now: one after the other they would each wait as long.
                _ => Vec::new(),
            };
            counted.at = Some(Instant::now());
            counted.of = all
                .into_iter()
                .map(|it| (it.sandbox_id.clone(), it))
                .collect();
        }
        let usage = counted.of.get(sandbox_id.as_str())?;
        Some(SandboxUsage {
            cpu_micros: usage.cpu_micros,
            memory: usage.memory,
            cache: usage.cache,
            disk: usage.disk,
        })
    }
}
