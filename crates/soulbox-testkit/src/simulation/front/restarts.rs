//! The front dies, starts, takes up what it finds, and compares from time to time.

use std::collections::BTreeMap;

use soulbox_control::lifecycle::Event;
use soulbox_control::ownership::Ownership;
use soulbox_control::reconcile::{self, Found, Listed};
use soulbox_types::{Epoch, SandboxState, UnixMillis};

use super::{CallKind, Owner, START_WITHIN};
use crate::simulation::store::Row;
use crate::simulation::world::{Command, Item, Reply, World};

/// As `recovery.rs` has it: lists are compared every 20 s, rows every minute.
const COMPARE_EVERY: u64 = 20_000;
const ROWS_EVERY: u64 = 3;

impl World<'_> {
    pub(in crate::simulation) fn front_dies(&mut self) {
        self.front.incarnation += 1;
        self.front.serving = false;
        self.front.owners.clear();
        self.front.calls.clear();
        self.ledger.front_died();
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
        let mut listed: BTreeMap<usize, Listed> = listed.into_iter().collect();
        let rows: Vec<_> = self.rows.live().collect();
        for (sandbox, row) in rows {
            let on_host = listed.remove(&sandbox);
            self.takes_up(sandbox, &row, on_host.as_ref(), "front starts");
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
            let running = self
                .front
                .owned()
                .any(|it| it == (sandbox, SandboxState::Running));
            if !running {
                let detail = format!("sandbox {sandbox} is not known after a restart");
                self.breaks(("no sandbox is lost", detail));
            }
        }
        self.after(COMPARE_EVERY, Item::Compare { front });
    }

    fn takes_up(&mut self, sandbox: usize, row: &Row, listed: Option<&Listed>, when: &'static str) {
        let (found, decided) = reconcile::take_up(&row.progress, listed, None, self.time());
        let from = match row.progress.state {
            SandboxState::Creating => "row Creating",
            SandboxState::Running => "row Running",
            SandboxState::Pausing => "row Pausing",
            SandboxState::Paused => "row Paused",
            SandboxState::Resuming => "row Resuming",
            SandboxState::Killing => "row Killing",
            SandboxState::Dead => "row Dead",
        };
        let event = match (when, listed) {
            ("abandoned", Some(_)) => "abandoned, listed",
            ("abandoned", None) => "abandoned",
            (_, Some(_)) => "front starts, listed",
            (_, None) => "front starts",
        };
        let to = match found {
            Found::Adopted => "Running",
            Found::AtRest => "Paused",
            Found::Lost | Found::Unfinished => "Killing",
        };
        self.coverage.recovery(from, event, to);
        self.note(|| format!("  takes up {sandbox}: {row:?} {listed:?} is {found:?}"));
        let owner = Owner {
            created_at: row.created_at,
            ..Owner::of(Ownership::resume(decided, &row.progress))
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    fn kills_orphan(&mut self, sandbox: usize, epoch: Epoch, from: &'static str) {
        self.coverage
            .recovery("listed, no living row", from, "killed");
        let command = Command::Kill {
            sandbox,
            epoch: epoch.next(),
        };
        self.calls(sandbox, CallKind::KillOrphan, command);
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
            self.told(sandbox, Event::Lost);
        }
        if self.store_fails() || self.front.incarnation != front {
            return;
        }
        if rows {
            let now = self.time();
            let abandoned: Vec<_> = self
                .rows
                .live()
                .filter(|(sandbox, row)| {
                    !self.front.owners.contains_key(sandbox)
                        && reconcile::is_abandoned(&row.progress, row.created_at, START_WITHIN, now)
                })
                .collect();
            for (sandbox, row) in abandoned {
                self.takes_up(sandbox, &row, listed.get(&sandbox), "abandoned");
                if self.front.incarnation != front {
                    return;
                }
            }
        }
        for (sandbox, listed) in listed {
            let row = self.rows.get(sandbox).map(|row| row.progress);
            if !self.front.owners.contains_key(&sandbox) && reconcile::is_orphan(row.as_ref()) {
                self.kills_orphan(sandbox, listed.epoch, "lists compared");
            }
        }
    }
}
