//! The hosts as the administrator sees and drains them. There is one.

use soulbox_types::SandboxState;

use crate::control::Control;
use crate::hosts::{HostFailure, HostNode, NodeStatus};

/// A host, and what its sandboxes may use at most, all together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub host: HostNode,
    pub allocated_milli_cpu: u64,
    pub allocated_memory: u64,
}

impl Control {
    /// Every host that can be reached.
    ///
    /// # Errors
    /// The host did not answer.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, HostFailure> {
        let host = self.within(self.hosts().node()).await?;
        let (mut allocated_milli_cpu, mut allocated_memory) = (0, 0);
        for handle in self.registry().all() {
            if !matches!(handle.state(), SandboxState::Dead | SandboxState::Paused) {
                allocated_milli_cpu += u64::from(handle.row.limits.cpu.0);
                allocated_memory += handle.row.limits.memory.bytes();
            }
        }
        Ok(vec![NodeView {
            host,
            allocated_milli_cpu,
            allocated_memory,
        }])
    }

    /// Lets a host take new sandboxes or not; what runs on it goes on. False when there is no such host.
    ///
    /// # Errors
    /// The host did not answer, or refused.
    pub async fn set_node_status(&self, id: &str, status: NodeStatus) -> Result<bool, HostFailure> {
        let host = self.within(self.hosts().node()).await?;
        if host.id != id {
            return Ok(false);
        }
        self.within(self.hosts().set_node_status(status)).await?;
        tracing::info!(host_id = id, ?status, "changed the status of a host");
        Ok(true)
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, HostFailure>>,
    ) -> Result<T, HostFailure> {
        tokio::time::timeout(self.settings().command_within, call)
            .await
            .unwrap_or_else(|_| Err(HostFailure::Unreachable("no answer in time".to_owned())))
    }
}
