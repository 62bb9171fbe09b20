//! What the administrator may do to all sandboxes of a team.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream;
use soulbox_types::{SandboxState, TeamId};

use crate::control::Control;
use crate::error::SandboxError;
use crate::store::StoreError;

/// Kills that are under way at once; a host does not end more of them any faster.
const KILLS_AT_ONCE: usize = 32;

/// What became of the sandboxes of a team.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KilledAll {
    pub killed: u32,
    /// Not confirmed in time; the kills stay under way.
    pub failed: u32,
}

impl Control {
    /// Ends every sandbox that the team has now; none when there is no such team. A create that is under way is ended too.
    ///
    /// # Errors
    /// The team could not be looked up.
    pub async fn kill_all_of(&self, team_id: &TeamId) -> Result<Option<KilledAll>, StoreError> {
        let Some(team) = self.store().team(team_id).await? else {
            return Ok(None);
        };
        self.catch_up_with_all(Some(team_id)).await?;
        let handles = self.registry().all().into_iter();
        let ids = handles
            .filter(|handle| handle.row.team_id == *team_id)
            .map(|handle| handle.row.sandbox_id.clone());
        let kills = ids.map(|id| {
            let team = &team;
            async move { self.kill(team, &id).await }
        });
        let all = stream::iter(kills)
            .buffer_unordered(KILLS_AT_ONCE)
            .fold(KilledAll::default(), |mut all, outcome| async move {
                match outcome {
                    Ok(()) => all.killed += 1,
                    // It ended by itself meanwhile.
                    Err(SandboxError::NotFound { .. }) => {}
                    Err(_) => all.failed += 1,
                }
                all
            })
            .await;
        tracing::info!(%team_id, killed = all.killed, failed = all.failed, "killed all sandboxes of a team");
        Ok(Some(all))
    }

    /// How many sandboxes this server owns, by the name of their state.
    #[must_use]
    pub fn counts_by_state(&self) -> [(&'static str, u32); 3] {
        let mut counts = [("creating", 0), ("running", 0), ("killing", 0)];
        for handle in self.registry().all() {
            match handle.state() {
                SandboxState::Creating => counts[0].1 += 1,
                SandboxState::Resuming => counts[0].1 += 1,
                SandboxState::Running | SandboxState::Pausing => counts[1].1 += 1,
                SandboxState::Killing => counts[2].1 += 1,
                SandboxState::Paused | SandboxState::Dead => {}
            }
        }
        counts
    }

    /// How many sandboxes run, by team; teams without any are absent.
    #[must_use]
    pub fn running_counts(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for handle in self.registry().all() {
            if handle.state() == SandboxState::Running {
                *counts.entry(handle.row.team_id.to_string()).or_default() += 1;
            }
        }
        counts
    }
}
