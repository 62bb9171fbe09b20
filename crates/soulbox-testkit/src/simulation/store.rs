//! The rows, with the store's own rules: a reservation counts and inserts at once, a change compares and swaps.

use std::collections::BTreeMap;

use soulbox_control::ownership::{ending, rank};
use soulbox_control::{Progress, Reclaim, Swap};
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
        if self.counted() >= limit {
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
        let back = (progress.epoch, rank(progress.state)) < (before.epoch, rank(before.state));
        if back || ending(progress.state) < ending(before.state) {
            return Err(format!("sandbox {sandbox}: {before:?} became {progress:?}"));
        }
        Ok(Swap::Done)
    }

    /// As [`Rows::advance`] if fewer than `limit` are alive.
    pub(super) fn reclaim(
        &mut self,
        sandbox: usize,
        expected: (SandboxState, Epoch),
        progress: &Progress,
        limit: u32,
    ) -> Result<Reclaim, String> {
        let row = self.rows.get(&sandbox).map(|row| row.progress);
        let is_expected = row.is_some_and(|row| (row.state, row.epoch) == expected);
        if is_expected && self.counted() >= limit {
            return Ok(Reclaim::LimitReached);
        }
        Ok(match self.advance(sandbox, expected, progress)? {
            Swap::Done => Reclaim::Done,
            Swap::Conflict => Reclaim::Conflict,
        })
    }

    pub(super) fn get(&self, sandbox: usize) -> Option<&Row> {
        self.rows.get(&sandbox)
    }

    /// Rows that are not dead.
    pub(super) fn live(&self) -> impl Iterator<Item = (usize, Row)> + '_ {
        let rows = self.rows.iter().map(|(sandbox, row)| (*sandbox, *row));
        rows.filter(|(_, row)| row.progress.state != SandboxState::Dead)
    }

    /// Those that count against the limit.
    fn counted(&self) -> u32 {
        let counted = self
            .live()
            .filter(|(_, row)| row.progress.state != SandboxState::Paused);
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    }
}
