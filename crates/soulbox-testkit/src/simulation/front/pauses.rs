//! Pauses, resumes, snapshots, forks and rollbacks as clients ask for them, and looks at what became of them.

use soulbox_control::lifecycle::Event;
use soulbox_control::ownership::{
    Answer, Ownership, ResumeWish, Ticket, after_look, after_unknown,
};
use soulbox_control::reconcile;
use soulbox_control::{AtDeadline, HostFailure, HostSnapshot, Progress};
use soulbox_host::lifecycle::After;
use soulbox_types::{Epoch, SandboxState};

use super::{CallKind, Happened, Input, Look, LookWish, Owner, PAUSE_ANSWER, START_WITHIN};
use crate::simulation::ledger::Wish;
use crate::simulation::world::{Command, Reply, World};

impl World<'_> {
    /// Whether it is paused at its deadline.
    pub(in crate::simulation) fn pauses(&self, sandbox: usize) -> bool {
        self.pausing.get(sandbox).copied().unwrap_or(false)
    }

    pub(super) fn at_control_deadline(&self, sandbox: usize) -> AtDeadline {
        if self.pauses(sandbox) {
            AtDeadline::Pause { memory: true }
        } else {
            AtDeadline::Kill
        }
    }

    /// What is at rest gets an owner.
    pub(super) fn reach(&mut self, sandbox: usize) {
        if self.front.owners.contains_key(&sandbox) {
            return;
        }
        let Some(row) = self.rows.get(sandbox).copied() else {
            return;
        };
        if !matches!(
            row.progress.state,
            SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming
        ) {
            return;
        }
        let (machine, effects) = reconcile::take_up_at_rest(&row.progress, self.time());
        let machine = machine.ending_by(self.at_control_deadline(sandbox));
        let ownership = Ownership::resume((machine, effects), &row.progress);
        let owner = Owner {
            created_at: row.created_at,
            ..self.owner_of(ownership)
        };
        self.front.owners.insert(sandbox, owner);
        self.drive(sandbox);
    }

    pub(super) fn pause(&mut self, sandbox: usize) {
        if self.ledger.promised(sandbox).is_none() {
            return;
        }
        let ticket = self.ask(sandbox, Wish::Pause, PAUSE_ANSWER);
        self.reach(sandbox);
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.inbox.push_back(Input::Pause(ticket));
            self.drive(sandbox);
        } else {
            self.answer(ticket, Answer::Missing);
        }
    }

    pub(super) fn resume(&mut self, sandbox: usize, timeout: u64) {
        if self.ledger.promised(sandbox).is_none() {
            return;
        }
        let deadline = self.time().plus_millis(timeout);
        let ticket = self.ask(sandbox, Wish::Resume(deadline), PAUSE_ANSWER);
        self.reach(sandbox);
        let wish = ResumeWish {
            memory: true,
            timeout_millis: timeout,
            within_millis: START_WITHIN,
        };
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.inbox.push_back(Input::Resume(wish, ticket));
            self.drive(sandbox);
        } else {
            self.answer(ticket, Answer::Missing);
        }
    }

    pub(super) fn snapshot(&mut self, sandbox: usize) {
        let Some(epoch) = self.running(sandbox) else {
            return;
        };
        let ticket = self.ask(sandbox, Wish::Snapshot, PAUSE_ANSWER);
        let command = Command::Save {
            sandbox,
            epoch,
            name: format!("kept-{}", ticket.0),
            after: After::GoOn,
        };
        self.calls(sandbox, CallKind::Snapshot(ticket), command);
    }

    /// A client hears of its snapshot, or that there is none; it does not matter to the sandbox.
    pub(super) fn snapshotted(&mut self, ticket: Ticket, reply: Option<Reply>) {
        if let Some(Reply::Saved(snapshot)) = reply {
            let name = &snapshot.snapshot_id;
            let exists = self.agent.snapshots.contains_key(name);
            let promised = self.ledger.promise_snapshot(name, exists);
            self.check(promised);
        }
        self.ledger.leave(ticket);
    }

    pub(super) fn asks_for_save(&mut self, sandbox: usize, epoch: Epoch) {
        let command = Command::Save {
            sandbox,
            epoch,
            name: format!("pause-{}-{}", World::id(sandbox), epoch.0),
            after: After::End,
        };
        self.calls(sandbox, CallKind::Save(epoch), command);
    }

    /// Lists what the host has, sandboxes first.
    pub(super) fn looks(&mut self, sandbox: usize, look: Look) {
        self.calls(sandbox, CallKind::Look(look), Command::List);
    }

    pub(super) fn looked(
        &mut self,
        sandbox: usize,
        look: Look,
        seen: Option<(bool, &[HostSnapshot])>,
    ) {
        let Look { wish, last, epoch } = look;
        let seen =
            seen.map(|(alive, snapshots)| after_look(&World::id(sandbox), last, alive, snapshots));
        let event = match (wish, seen) {
            (LookWish::Deadline, seen) => after_unknown(epoch, seen),
            (LookWish::Owner, Some(seen)) => seen,
            (LookWish::Owner | LookWish::Comparison, None) => return,
            (LookWish::Comparison, Some(Event::Looked { alive: true, .. })) => return,
            (LookWish::Comparison, Some(seen @ Event::Looked { pause: Some(_), .. })) => seen,
            (LookWish::Comparison, Some(_)) => Event::Lost,
        };
        if wish == LookWish::Comparison {
            return self.told(sandbox, epoch, event);
        }
        if let Some(owner) = self.front.owners.get_mut(&sandbox) {
            owner.happened.push_back(Happened::Told(epoch, event));
            self.drive(sandbox);
        }
    }

    /// Asks for what another one shall begin with.
    pub(super) fn fork(&mut self, of: usize, child: usize, timeout: u64) {
        let Some(epoch) = self.running(of) else {
            return;
        };
        let command = Command::Save {
            sandbox: of,
            epoch,
            name: format!("fork-{child}"),
            after: After::GoOn,
        };
        self.calls(of, CallKind::Fork { child, timeout }, command);
    }

    /// Back to the latest snapshot that a client has of it.
    pub(super) fn roll_back(&mut self, sandbox: usize) {
        let Some(epoch) = self.running(sandbox) else {
            return;
        };
        let id = World::id(sandbox);
        let mut snapshots = self.agent.snapshots.values();
        if snapshots.any(|it| it.sandbox_id == id && !it.ended) {
            let ticket = self.ask(sandbox, Wish::Rollback, PAUSE_ANSWER);
            let kind = CallKind::Replace { ticket, attempt: 1 };
            self.calls(sandbox, kind, Command::Replace { sandbox, epoch });
        }
    }

    /// What came of a rollback. Another decision may have gone out meanwhile: then it is asked for once more.
    pub(super) fn replaced(
        &mut self,
        sandbox: usize,
        ticket: Ticket,
        attempt: u32,
        done: Option<&Result<(), HostFailure>>,
    ) {
        match (done, self.running(sandbox)) {
            (Some(Err(HostFailure::StaleEpoch)), Some(epoch)) if attempt < 5 => {
                let attempt = attempt + 1;
                let kind = CallKind::Replace { ticket, attempt };
                return self.calls(sandbox, kind, Command::Replace { sandbox, epoch });
            }
            (Some(Ok(())), _) => self.ledger.rolled_back(sandbox),
            _ => {}
        }
        self.ledger.leave(ticket);
    }

    /// The epoch of a sandbox that runs, as this front has it.
    fn running(&self, sandbox: usize) -> Option<Epoch> {
        let machine = self.front.owners.get(&sandbox)?.ownership.machine();
        (machine.state() == SandboxState::Running).then_some(machine.epoch)
    }

    /// What is paused, as the rows say, has its snapshot.
    pub(in crate::simulation) fn check_paused_rows(&mut self) {
        let rows: Vec<_> = self.rows.live().collect();
        for (sandbox, row) in rows {
            self.check_paused_row(sandbox, &row.progress);
        }
    }

    pub(super) fn check_paused_row(&mut self, sandbox: usize, progress: &Progress) {
        if !matches!(
            progress.state,
            SandboxState::Paused | SandboxState::Resuming
        ) {
            return;
        }
        let name = progress.pause.map(|it| it.snapshot_id(&World::id(sandbox)));
        let name = name.unwrap_or_default();
        let exists = self.agent.snapshots.contains_key(&name);
        let checked = self.ledger.row_is_paused(sandbox, &name, exists);
        self.check(checked);
    }
}
