//! [`Located`]: the ingress's `Locate` on one machine: control knows the sandboxes, the host agent dials.

use async_trait::async_trait;
use soulbox_control::{Control, Traffic};
use soulbox_ingress::{DialError, Live, Locate};
use soulbox_types::{SandboxId, SandboxState};
use soulbox_wire::host::{HostErrorKind, Reply, Request};
use tokio::net::TcpStream;

use super::hosts::connected;
use crate::rpc::{Client, RpcError};

pub(super) struct Located {
    pub(super) control: Control,
    pub(super) client: Client,
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
        })
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
}
