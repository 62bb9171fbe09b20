//! The front dies, starts, takes up what it finds, and compares from time to time.

use std::collections::BTreeMap;

use soulbox_control::ownership::{Ownership, pause_of};
use soulbox_control::reconcile::{self, Listed};
use soulbox_control::{HostSnapshot, Pause};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

use super::{CallKind, LookWish, Owner, START_WITHIN};
use crate::simulation::store::Row;
use crate::simulation::world::{Command, Item, Reply, World};

/// As `recovery.rs` has it: lists are compared every 20 s, rows every minute.
const COMPARE_EVERY: u64 = 20_000;
const ROWS_EVERY: u64 = 3;

impl World<'_> {
    pub(in crate::simulation) fn front_dies(&mut self) {
        self.front.incarnation += self.schedule.fronts;
        self.front.serving = false;
        self.front.owners.clear();
        self.front.calls.clear();
        self.ledger.front_died(self.front.number);
        let front = self.front.incarnation;
        let delay = 10 + self.random.skewed(2_000);
        self.after(delay, Item::FrontStarts { front });
    }

    pub(in crate::simulation) fn front_starts(&mut self, front: u32) {
        if front != self.front.incarnation || self.front.serving {
            return;
        }
        if self.agent.up {
            self.calls(0, CallKind::Recover, Command::List);
        } else {
            self.after(200, Item::FrontStarts { front });
        }
    }

    pub(super) fn recovers(&mut self, reply: Option<Reply>) {
        let front = self.front.incarnation;
        let Some(Reply::Listed(listed)) = reply else {
            self.after(1_000, Item::FrontStarts { front });
            return;
        };
        if self.store_fails() {
            self.after(1_000, Item::FrontStarts { front });
            return;
        }
        self.calls(0, CallKind::RecoverSnapshots(listed), Command::Snapshots);
    }

    pub(super) fn recovers_with(&mut self, listed: Vec<(usize, Listed)>, reply: Option<Reply>) {
        let front = self.front.incarnation;
        let Some(Reply::Snapshots(snapshots)) = reply else {
            self.after(1_000, Item::FrontStarts { front });
            return;
        };
        if self.store_fails() {
            self.after(1_000, Item::FrontStarts { front });
            return;
        }
        let mut listed: BTreeMap<usize, Listed> = listed.into_iter().collect();
        let rows: Vec<_> = self.rows.live().collect();
        for (sandbox, row) in rows {
            if row.progress.state == SandboxState::Paused {
                continue;
            }
            let on_host = listed.remove(&sandbox);
            if self.is_shared()
                && (on_host.is_none() || row.progress.state != SandboxState::Running)
            {
                // It may be in another front's hands: what is left over shows with time.
                self.notes(sandbox, &row);
                if self.front.incarnation != front {
                    return;
                }
                continue;
            }
            let pause = latest(sandbox, &snapshots);
            self.takes_up(sandbox, &row, on_host.as_ref(), pause, "front starts");
            if self.front.incarnation != front {
                return;
            }
        }
        for (sandbox, listed) in listed {
            self.kills_orphan(sandbox, listed.epoch, "front starts");
        }
        self.front.serving = true;
        let must_run: Vec<_> = self
            .ledger
            .alive()
            .filter(|sandbox| self.ledger.must_run(*sandbox, self.time()))
            .collect();
        for sandbox in must_run {
            let running = self.front.owned().any(|(other, state)| {
                let runs = matches!(state, SandboxState::Running | SandboxState::Pausing);
                other == sandbox && runs
            });
            if !running {
                let detail = format!("sandbox {sandbox} is not known after a restart");
                self.breaks(("no sandbox is lost", detail));
            }
        }
        self.after(COMPARE_EVERY, Item::Compare { front });
    }

    fn takes_up(
        &mut self,
        sandbox: usize,
        row: &Row,
        listed: Option<&Listed>,
        pause: Option<Pause>,
        when: &'static str,
    ) {
        let (found, (machine, effects)) =
            reconcile::take_up(&row.progress, listed, pause, self.time());
        let machine = machine.ending_by(self.at_control_deadline(sandbox));
        let decided = (machine, effects);
        let from = match row.progress.state {
            SandboxState::Creating => "row Creating",
            SandboxState::Running => "row Running",
            SandboxState::Pausing => "row Pausing",
            SandboxState::Paused => "row Paused",
            SandboxState::Resuming => "row Resuming",
            SandboxState::Killing => "row Killing",
            SandboxState::Dead => "row Dead",
        };
        let event = if listed.is_some() {
            "front starts, listed"
        } else {
            "front starts"
        };
        let to = match machine.state() {
            SandboxState::Running => "Running",
            SandboxState::Pausing => "Pausing",
            SandboxState::Paused => "Paused",
            SandboxState::Resuming => "Resuming",
            SandboxState::Creating | SandboxState::Killing | SandboxState::Dead => "Killing",
        };
        if when == "abandoned" {
            let from = "row without an owner";
            self.coverage.recovery(from, when, "as at a start");
        } else {
            self.coverage.recovery(from, event, to);
        }
        self.note(|| format!("  takes up {sandbox}: {row:?} {listed:?} is {found:?}"));
        let ownership = Ownership::resume(decided, &row.progress);
        let owner = Owner {
            created_at: row.created_at,
            ..self.owner_of(ownership)
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    fn kills_orphan(&mut self, sandbox: usize, epoch: Epoch, from: &'static str) {
        self.coverage
            .recovery("listed, no living row", from, "killed");
        self.calls(sandbox, CallKind::Aside, Command::Kill { sandbox, epoch });
    }

    pub(in crate::simulation) fn compare(&mut self) {
        let front = self.front.incarnation;
        self.after(COMPARE_EVERY, Item::Compare { front });
        self.front.compared += 1;
        let kind = CallKind::Compare {
            asked_at: self.time(),
            rows: self.front.compared.is_multiple_of(ROWS_EVERY),
        };
        self.calls(0, kind, Command::List);
    }

    pub(super) fn compares(&mut self, asked_at: UnixMillis, rows: bool, reply: Option<Reply>) {
        let Some(Reply::Listed(listed)) = reply else {
            return;
        };
        let front = self.front.incarnation;
        let listed: BTreeMap<usize, Listed> = listed.into_iter().collect();
        if self.is_shared() {
            if self.store_fails() {
                return;
            }
            self.catches_up_with_all();
            if self.front.incarnation != front {
                return;
            }
        }
        let lost: Vec<usize> = self
            .front
            .owners
            .iter()
            .filter(|(sandbox, owner)| {
                !listed.contains_key(sandbox)
                    && reconcile::is_lost(&owner.ownership.machine().progress(), asked_at)
            })
            .map(|(sandbox, _)| *sandbox)
            .collect();
        for sandbox in lost {
            if let Some(owner) = self.front.owners.get(&sandbox) {
                let look = owner.look(LookWish::Comparison);
                self.looks(sandbox, look);
            }
        }
        if self.store_fails() || self.front.incarnation != front {
            return;
        }
        if rows {
            let known = listed.iter().map(|(sandbox, it)| (*sandbox, *it)).collect();
            self.calls(0, CallKind::CompareSnapshots(known), Command::Snapshots);
        }
        for (sandbox, listed) in listed {
            let row = self.rows.get(sandbox).map(|row| row.progress);
            if !self.front.owners.contains_key(&sandbox) && reconcile::is_orphan(row.as_ref()) {
                self.kills_orphan(sandbox, listed.epoch, "lists compared");
            }
        }
    }

    /// Takes up rows that nobody owns, and deletes snapshots that no row wants.
    pub(super) fn compares_rows(&mut self, listed: &[(usize, Listed)], reply: Option<Reply>) {
        let Some(Reply::Snapshots(snapshots)) = reply else {
            return;
        };
        if self.store_fails() {
            return;
        }
        let (front, now, shared) = (self.front.incarnation, self.time(), self.is_shared());
        let abandoned: Vec<_> = self
            .rows
            .live()
            .filter(|(sandbox, row)| {
                let Row {
                    created_at,
                    progress,
                } = row;
                !self.front.owners.contains_key(sandbox)
                    && reconcile::is_abandoned(progress, *created_at, START_WITHIN, shared, now)
            })
            .collect();
        for (sandbox, row) in abandoned {
            let on_host = listed.iter().find(|(other, _)| *other == sandbox);
            let on_host = on_host.map(|(_, listed)| listed);
            let pause = latest(sandbox, &snapshots);
            self.takes_up(sandbox, &row, on_host, pause, "abandoned");
            if self.front.incarnation != front {
                return;
            }
        }
        for snapshot in snapshots {
            let Some(pause) = pause_of(&snapshot) else {
                continue;
            };
            let of = (0..self.pausing.len()).find(|it| World::id(*it) == snapshot.sandbox_id);
            let row = of.and_then(|sandbox| self.rows.get(sandbox));
            if reconcile::is_needless(row.map(|row| &row.progress), &pause) {
                let name = snapshot.snapshot_id;
                self.calls(0, CallKind::Aside, Command::Delete { name });
            }
        }
    }
}

/// The latest pause that the host has a snapshot of.
fn latest(sandbox: usize, snapshots: &[HostSnapshot]) -> Option<Pause> {
    let id = World::id(sandbox);
    snapshots
        .iter()
        .filter(|snapshot| snapshot.sandbox_id == id)
        .filter_map(pause_of)
        .max_by_key(|pause| pause.epoch)
}
