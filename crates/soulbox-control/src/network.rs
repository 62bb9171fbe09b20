//! The live change of where a sandbox may connect to.

use std::sync::Arc;

use soulbox_types::{Network, SandboxId, SandboxState};

use crate::control::{Control, missing};
use crate::error::SandboxError;
use crate::hosts::HostFailure;
use crate::pauses::is_resting;
use crate::registry::Handle;
use crate::store::{SandboxRow, TeamRow};

/// A deadline may move while the host is told; more often than this in a row it does not.
const ATTEMPTS: u32 = 5;

impl Control {
    /// Replaces the outbound configuration of a running sandbox; it holds for new connections when this returns.
    ///
    /// # Errors
    /// The sandbox does not run; the host has not confirmed, and will be told again.
    pub async fn set_network(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        network: Network,
    ) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        let turn = match self.running(team, id) {
            Ok(handle) => handle.network_turn,
            Err(missing) => {
                let paused = |row: &SandboxRow| {
                    row.team_id == team.team_id && is_resting(row.progress.state)
                };
                let row = self.store().sandbox(id).await?;
                return Err(if row.as_ref().is_some_and(paused) {
                    SandboxError::BeingPaused {
                        sandbox_id: id.clone(),
                    }
                } else {
                    missing
                });
            }
        };
        let _turn = turn.lock().await;
        // As it is now that the turn has come.
        let handle = self.running(team, id)?;
        self.store().set_network(id, &network).await?;
        let mut row = (*handle.row).clone();
        row.network = network;
        let handle = Handle {
            row: Arc::new(row),
            ..handle
        };
        self.registry().replace_row(id, handle.row.clone());
        self.log(id, "network configuration replaced", []);
        self.tell_egress(&handle).await
    }

    /// Tells the host once more what a sandbox may reach, since it said something else.
    pub(crate) async fn repeat_egress(&self, id: &SandboxId) {
        let Some(handle) = self.registry().get(id) else {
            return;
        };
        let _turn = handle.network_turn.lock().await;
        if let Err(failure) = self.catch_up(id).await {
            tracing::warn!(sandbox_id = %id, error = %crate::chain(&failure), "failed to read what a sandbox may reach");
            return;
        }
        let Some(handle) = self.registry().get(id) else {
            return;
        };
        if handle.state() == SandboxState::Running
            && let Err(failure) = self.tell_egress(&handle).await
        {
            tracing::warn!(sandbox_id = %id, error = %crate::chain(&failure), "failed to repeat what a sandbox may reach");
        }
    }

    async fn tell_egress(&self, handle: &Handle) -> Result<(), SandboxError> {
        let id = &handle.row.sandbox_id;
        let egress = handle.row.network.egress();
        let within = self.settings().command_within;
        for _ in 0..ATTEMPTS {
            let epoch = handle.progress.borrow().epoch;
            let told = self.hosts().set_egress(id, epoch, &egress);
            match tokio::time::timeout(within, told).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(
                    HostFailure::NotFound
                    | HostFailure::NotLive
                    | HostFailure::BeingPaused
                    | HostFailure::Lost(_),
                )) => return Err(missing(id)),
                // Another decision went out meanwhile; the next epoch is here or comes at once.
                Ok(Err(HostFailure::StaleEpoch)) => tokio::task::yield_now().await,
                Ok(Err(failure)) => return Err(SandboxError::Host(failure)),
                Err(_) => return Err(SandboxError::TimedOut),
            }
        }
        Err(SandboxError::TimedOut)
    }
}
