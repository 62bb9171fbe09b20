//! The rows, with the store's own rules: a reservation counts and inserts at once, a change compares and swaps.

use std::collections::BTreeMap;

use soulbox_control::ownership::rank;
use soulbox_control::{Progress, Swap};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) created_at: UnixMillis,
    pub(super) progress: Progress,
}

#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: BTreeMap<usize, Row>,
}

impl Rows {
    /// Inserts a row if fewer than `limit` are alive.
    pub(super) fn reserve(&mut self, sandbox: usize, row: Row, limit: u32) -> bool {
        if self.living() >= limit {
            return false;
        }
        self.rows.insert(sandbox, row);
        true
    }

    /// Replaces the progress of a row that is as expected. An error is a row that went back.
    pub(super) fn advance(
        &mut self,
        sandbox: usize,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, String> {
        let Some(row) = self.rows.get_mut(&sandbox) else {
            return Ok(Swap::Conflict);
        };
        let before = row.progress;
        if (before.state, before.epoch) != expected {
            return Ok(Swap::Conflict);
        }
        row.progress = *progress;
        if rank(progress.state) < rank(before.state) || progress.epoch < before.epoch {
            return Err(format!("sandbox {sandbox}: {before:?} became {progress:?}"));
        }
        Ok(Swap::Done)
    }

    pub(super) fn get(&self, sandbox: usize) -> Option<&Row> {
        self.rows.get(&sandbox)
    }

    /// Rows that are not dead.
    pub(super) fn live(&self) -> impl Iterator<Item = (usize, Row)> + '_ {
        let rows = self.rows.iter().map(|(sandbox, row)| (*sandbox, *row));
        rows.filter(|(_, row)| row.progress.state != SandboxState::Dead)
    }

    pub(super) fn living(&self) -> u32 {
        u32::try_from(self.live().count()).unwrap_or(u32::MAX)
    }
}
