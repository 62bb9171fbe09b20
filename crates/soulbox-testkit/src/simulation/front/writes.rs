//! Owners and the store: a write takes its time, may be refused, and may come through after it was given up on.

use soulbox_control::lifecycle::Event;
use soulbox_control::ownership::{Reclaiming, Reserving, Saving};
use soulbox_control::{Progress, Reclaim, Swap};
use soulbox_types::SandboxState;

use super::{COMMAND_WITHIN, Owner, Write};
use crate::simulation::schedule::Fault;
use crate::simulation::world::{Item, World};

impl World<'_> {
    pub(super) fn writes(&mut self, sandbox: usize, owner: &mut Owner, write: Write) {
        self.front.last_call += 1;
        let call = self.front.last_call;
        let front = self.front.incarnation;
        let slow = self.fault(|fault| match *fault {
            Fault::StoreSlow { from, until, by } => Some((from, until, by)),
            _ => None,
        });
        let takes = self.random.skewed(5) + slow.unwrap_or(0);
        let fails = self.store_fails();
        owner.writing = Some((call, write));
        self.after(
            takes,
            Item::Written {
                front,
                sandbox,
                call,
                write,
                fails,
            },
        );
        if takes >= COMMAND_WITHIN {
            let item = Item::WriteTimesOut {
                front,
                sandbox,
                call,
            };
            self.after(COMMAND_WITHIN, item);
        }
    }

    pub(super) fn store_fails(&self) -> bool {
        self.fault(|fault| match *fault {
            Fault::StoreFails { from, until } => Some((from, until, 0)),
            _ => None,
        })
        .is_some()
    }

    /// The store has done it, or refused to; perhaps nobody waits for that any more.
    pub(in crate::simulation) fn written(
        &mut self,
        front: u32,
        sandbox: usize,
        call: u64,
        write: Write,
        fails: bool,
    ) {
        // The statement of a front that has died may have reached the database or not.
        if front != self.front.incarnation && self.random.once_in(2) {
            return;
        }
        enum Outcome {
            Reserving(Reserving),
            Reclaiming(Reclaiming),
            Saving(Saving),
        }
        let before = self.rows.get(sandbox).map(|row| row.progress);
        let outcome = match write {
            Write::Reserve(_) if fails => Outcome::Reserving(Reserving::Refused),
            Write::Reclaim { .. } if fails => Outcome::Reclaiming(Reclaiming::Refused),
            Write::Advance { .. } if fails => Outcome::Saving(Saving::Failed),
            Write::Reserve(row) => {
                let made = self.rows.reserve(sandbox, row, self.schedule.limit);
                Outcome::Reserving(if made {
                    Reserving::Made
                } else {
                    Reserving::Refused
                })
            }
            Write::Reclaim { expected, progress } => {
                let limit = self.schedule.limit;
                match self.rows.reclaim(sandbox, expected, &progress, limit) {
                    Ok(Reclaim::Done) => {
                        self.tells_others(sandbox);
                        Outcome::Reclaiming(Reclaiming::Done)
                    }
                    Ok(Reclaim::LimitReached) => Outcome::Reclaiming(Reclaiming::Refused),
                    Ok(Reclaim::Conflict) => {
                        Outcome::Reclaiming(Reclaiming::Conflict { found: before })
                    }
                    Err(detail) => {
                        self.breaks(("rows do not go back", detail));
                        return;
                    }
                }
            }
            Write::Advance { expected, progress } => {
                match self.rows.advance(sandbox, expected, &progress) {
                    Ok(Swap::Done) => {
                        self.row_changed(sandbox, before, progress);
                        self.tells_others(sandbox);
                        if progress.state == SandboxState::Dead {
                            let checked = self.ledger.row_is_dead(sandbox);
                            self.check(checked);
                        }
                        Outcome::Saving(Saving::Done)
                    }
                    Ok(Swap::Conflict) => Outcome::Saving(match before {
                        Some(row) if self.is_shared() => Saving::Overtaken { row },
                        found => Saving::Conflict { found },
                    }),
                    Err(detail) => {
                        self.breaks(("rows do not go back", detail));
                        return;
                    }
                }
            }
        };
        if !self.is_writing(front, sandbox, call) {
            return;
        }
        let now = self.time();
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        owner.writing = None;
        let before = *owner.ownership.machine();
        let cause = soulbox_types::DeathCause::Killed;
        let overtaken = match &outcome {
            Outcome::Saving(Saving::Overtaken { .. }) => true,
            Outcome::Reclaiming(Reclaiming::Conflict { found }) => found.is_some(),
            _ => false,
        };
        let event = match outcome {
            Outcome::Reserving(outcome) => {
                owner.ownership.reserved(now, outcome);
                match outcome {
                    Reserving::Made => Event::Reserved,
                    Reserving::Refused => Event::NotReserved,
                    Reserving::Unknown => Event::Kill { cause },
                }
            }
            Outcome::Reclaiming(outcome) => {
                owner.ownership.reclaimed(now, outcome);
                match outcome {
                    Reclaiming::Done => Event::Reclaimed,
                    Reclaiming::Refused => Event::NotReclaimed { unknown: false },
                    Reclaiming::Unknown => Event::NotReclaimed { unknown: true },
                    Reclaiming::Conflict { .. } if owner.ownership.machine().cause.is_some() => {
                        Event::Kill { cause }
                    }
                    Reclaiming::Conflict { .. } => Event::NotReclaimed { unknown: true },
                }
            }
            Outcome::Saving(outcome) => {
                owner.ownership.saved(now, outcome);
                match outcome {
                    Saving::Done | Saving::Conflict { found: None } => Event::Saved,
                    _ => Event::SaveFailed,
                }
            }
        };
        let after = *owner.ownership.machine();
        // What another front has decided is no transition of this one's.
        if !(overtaken && self.is_shared()) {
            self.coverage.control(&before, &event, &after);
        }
        self.drive(sandbox);
    }

    /// A pause is kept until somebody wants its end, and what is to be paused at its deadline is.
    fn row_changed(&mut self, sandbox: usize, before: Option<Progress>, after: Progress) {
        self.check_paused_row(sandbox, &after);
        let ends = matches!(after.state, SandboxState::Killing | SandboxState::Dead);
        let Some(before) = before.filter(|_| ends) else {
            return;
        };
        let name = before.pause.map(|it| it.snapshot_id(&World::id(sandbox)));
        let name = name.unwrap_or_default();
        let at_rest = match before.state {
            SandboxState::Paused => true,
            // Its row may not have come to say that it runs.
            SandboxState::Resuming => !self.ledger.has_run_again(sandbox, &name, self.time()),
            _ => false,
        };
        let lives = matches!(
            before.state,
            SandboxState::Running | SandboxState::Pausing | SandboxState::Resuming
        );
        if at_rest || lives && self.pauses(sandbox) {
            let checked = self.ledger.may_be_lost(sandbox, at_rest);
            self.check(checked);
        }
    }

    pub(in crate::simulation) fn write_times_out(&mut self, front: u32, sandbox: usize, call: u64) {
        if !self.is_writing(front, sandbox, call) {
            return;
        }
        let now = self.time();
        let Some(owner) = self.front.owners.get_mut(&sandbox) else {
            return;
        };
        let Some((_, write)) = owner.writing.take() else {
            return;
        };
        let before = *owner.ownership.machine();
        let cause = soulbox_types::DeathCause::FailedToStart;
        let event = match write {
            Write::Reserve(_) => {
                owner.ownership.reserved(now, Reserving::Unknown);
                Event::Kill { cause }
            }
            Write::Reclaim { .. } => {
                owner.ownership.reclaimed(now, Reclaiming::Unknown);
                Event::NotReclaimed { unknown: true }
            }
            Write::Advance { .. } => {
                owner.ownership.saved(now, Saving::Failed);
                Event::SaveFailed
            }
        };
        let after = *owner.ownership.machine();
        self.coverage.control(&before, &event, &after);
        self.drive(sandbox);
    }

    fn is_writing(&self, front: u32, sandbox: usize, call: u64) -> bool {
        let owner = self.front.owners.get(&sandbox);
        let writing = owner.and_then(|owner| owner.writing.as_ref());
        front == self.front.incarnation && writing.is_some_and(|(current, _)| *current == call)
    }
}
