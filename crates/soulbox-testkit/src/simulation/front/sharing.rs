//! Two fronts on the same records: one follows what the other decides, as `sharing.rs` of control has it.

use soulbox_control::lifecycle::Machine;
use soulbox_control::ownership::Ownership;
use soulbox_types::SandboxState;

use super::{Input, Owner};
use crate::simulation::store::Row;
use crate::simulation::world::{Item, World};

impl World<'_> {
    /// An owner of this front.
    pub(super) fn owner_of(&self, ownership: Ownership) -> Owner {
        Owner::of(if self.is_shared() {
            ownership.shared()
        } else {
            ownership
        })
    }

    /// Takes up what another front decided about a sandbox; false when the records cannot be read.
    pub(in crate::simulation) fn catches_up(&mut self, sandbox: usize) -> bool {
        if !self.is_shared() {
            return true;
        }
        if self.store_fails() {
            return false;
        }
        if let Some(row) = self.rows.get(sandbox).copied() {
            self.notes(sandbox, &row);
        }
        self.front.serving
    }

    pub(super) fn catches_up_with_all(&mut self) {
        let mut known: Vec<usize> = self.front.owned().map(|(sandbox, _)| sandbox).collect();
        known.extend(self.rows.live().map(|(sandbox, _)| sandbox));
        known.sort_unstable();
        known.dedup();
        for sandbox in known {
            if !self.catches_up(sandbox) {
                return;
            }
        }
    }

    /// Lets the owner of a sandbox know its row, or makes one. Creates of another front are its own.
    pub(super) fn notes(&mut self, sandbox: usize, row: &Row) {
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.inbox.push_back(Input::Observe(row.progress));
            return self.drive(sandbox);
        }
        if !matches!(
            row.progress.state,
            SandboxState::Running
                | SandboxState::Pausing
                | SandboxState::Resuming
                | SandboxState::Killing
        ) {
            return;
        }
        let (machine, effects) = Machine::follow(&row.progress, self.time());
        let machine = machine.ending_by(self.at_control_deadline(sandbox));
        let ownership = Ownership::resume((machine, effects), &row.progress);
        let owner = Owner {
            created_at: row.created_at,
            ..self.owner_of(ownership)
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    /// The records tell the other fronts of a change.
    pub(super) fn tells_others(&mut self, sandbox: usize) {
        let own = self.front.incarnation;
        let others: Vec<u32> = self.fronts().map(|front| front.incarnation).collect();
        for front in others.into_iter().filter(|front| *front != own) {
            for delay in self.sends() {
                self.after(delay, Item::News { front, sandbox });
            }
        }
    }
}
