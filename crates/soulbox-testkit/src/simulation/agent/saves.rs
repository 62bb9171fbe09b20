//! Snapshots on the host: begun, made, failed, discarded, and what the next agent makes of them.

use soulbox_control::{HostFailure, HostSnapshot};
use soulbox_host::lifecycle::{After, Event, Phase};
use soulbox_types::{BuildId, DeathCause, UnixMillis};

use super::Wanted;
use crate::simulation::schedule::Fault;
use crate::simulation::world::{Item, Reply, World};

impl World<'_> {
    /// A save under way: its epoch is on disk first, and what does not get there fails it.
    pub(super) fn begins_save(&mut self, sandbox: usize, event: Event) {
        let full = self.disk_is_full();
        let now = self.time();
        let up_since = UnixMillis(now.0 - (self.now - self.agent.up_since));
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        let epoch = entry.machine.epoch;
        let wanted = match (event, entry.wanted.take()) {
            (Event::Save { .. }, Some(wanted)) => wanted,
            _ => Wanted {
                name: format!("auto-{}-{}", World::id(sandbox), epoch.0),
                after: After::End,
            },
        };
        self.agent.last_job += 1;
        let job = self.agent.last_job;
        entry.is_being_paused = wanted.after == After::End;
        entry.job = Some((job, wanted));
        entry.record.epoch = epoch;
        let (record, saved_at, told_at) = (entry.record, entry.saved_at, entry.told_at);
        let applied = self.ledger.applies(sandbox, epoch, !full);
        self.check(applied);
        if event == Event::Tick {
            let promised = self.ledger.due(sandbox);
            // A snapshot beside which it goes on is finished first.
            let due = promised
                .unwrap_or(record.deadline.max(told_at))
                .max(up_since);
            let due = due.max(saved_at);
            let begun = self.ledger.pauses_in_time(sandbox, now, due);
            self.check(begun);
        }
        if !full {
            self.agent.records.insert(sandbox, record);
        }
        let (mut fails, mut slow) = (full || self.random.once_in(12), 0);
        for fault in &self.schedule.faults {
            match *fault {
                Fault::SaveFails { from, until } if (from..until).contains(&self.now) => {
                    fails = true;
                }
                Fault::SaveSlow { from, until, by } if (from..until).contains(&self.now) => {
                    slow = by;
                }
                _ => {}
            }
        }
        let takes = self.random.skewed(200) + slow;
        let agent = self.agent.incarnation;
        self.after(
            takes,
            Item::SaveEnds {
                agent,
                sandbox,
                job,
                well: !fails,
            },
        );
    }

    /// A save has come to something. One with which the sandbox ends may have ended it already.
    pub(in crate::simulation) fn save_ends(&mut self, sandbox: usize, job: u64, well: bool) {
        let now = self.time();
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        if entry
            .job
            .as_ref()
            .is_none_or(|(current, _)| *current != job)
        {
            // Nobody wants it any more.
            return;
        }
        let Some((_, wanted)) = entry.job.take() else {
            return;
        };
        entry.saved_at = now;
        if !well {
            entry.is_being_paused = false;
            let harmed = self.random.once_in(8);
            if harmed {
                self.ledger.harm(sandbox);
            } else if wanted.after == After::End {
                self.ledger.excuse(sandbox);
            }
            return self.host_feeds(sandbox, Event::SaveFailed { harmed }, None);
        }
        let snapshot = HostSnapshot {
            snapshot_id: wanted.name.clone(),
            sandbox_id: World::id(sandbox),
            epoch: entry.record.epoch,
            build_id: BuildId::from_random([1; 16]),
            memory: true,
            ended: wanted.after == After::End,
            created_at: now,
            disk_bytes: 0,
            image_bytes: 0,
        };
        entry.made = Some(snapshot.clone());
        let exited = matches!(entry.machine.phase, Phase::Saving(it) if it.exited.is_some());
        self.note(|| format!("  snapshot {} is whole", wanted.name));
        self.ledger.saved(sandbox, &wanted.name);
        self.agent.snapshots.insert(wanted.name, snapshot);
        if let Some(front_too) = self.agent_dies_here() {
            return self.agent_dies(front_too);
        }
        if wanted.after == After::End && !exited && self.random.once_in(2) {
            self.ends(sandbox);
        }
        self.host_feeds(sandbox, Event::Saved, None);
    }

    pub(super) fn save_done(&mut self, sandbox: usize) {
        let entry = self.agent.entries.get_mut(&sandbox);
        if let Some(made) = entry.and_then(|it| it.made.take()) {
            self.answers_savers(sandbox, &Reply::Saved(made));
        }
    }

    pub(super) fn save_failed(&mut self, sandbox: usize) {
        let entry = self.agent.entries.get(&sandbox);
        let goes_on = entry.is_some_and(|it| it.machine.phase == Phase::Live);
        let failure = if goes_on {
            HostFailure::CannotSave(String::new())
        } else {
            HostFailure::Failed(String::new())
        };
        self.answers_savers(sandbox, &Reply::Failed(failure));
    }

    pub(super) fn discards_save(&mut self, sandbox: usize) {
        if let Some(entry) = self.agent.entries.get_mut(&sandbox) {
            entry.job = None;
            if entry.machine.cause == Some(DeathCause::Lost) {
                // It took longer than it may.
                self.ledger.harm(sandbox);
            }
            if let Some(made) = entry.made.take() {
                self.forgets(&made.snapshot_id);
            }
        }
        self.answers_savers(sandbox, &Reply::Failed(HostFailure::NotFound));
    }

    /// A snapshot is deleted.
    pub(super) fn forgets(&mut self, name: &str) {
        if self.agent.snapshots.remove(name).is_none() {
            return;
        }
        self.note(|| format!("  snapshot {name} is deleted"));
        self.check_paused_rows();
        let deleted = self.ledger.deleted(name);
        self.check(deleted);
    }

    /// A sandbox whose snapshot is of its record's epoch or a later one was to end with it, and somebody may have been told.
    pub(super) fn ends_what_was_paused(&mut self) {
        let paused: Vec<usize> = self
            .agent
            .records
            .iter()
            .filter(|(sandbox, record)| {
                let id = World::id(**sandbox);
                self.agent
                    .snapshots
                    .values()
                    .any(|it| it.ended && it.sandbox_id == id && it.epoch >= record.epoch)
            })
            .map(|(sandbox, _)| *sandbox)
            .collect();
        for sandbox in paused {
            self.agent.records.remove(&sandbox);
            let now = self.time();
            let swept = self.ledger.signalled(sandbox, now, now);
            self.check(swept);
            self.ledger.ended(sandbox);
            self.coverage
                .recovery("record, alive, paused since", "agent starts", "swept");
        }
    }

    fn answers_savers(&mut self, sandbox: usize, reply: &Reply) {
        let entry = self.agent.entries.get_mut(&sandbox);
        let savers = entry.map(|it| std::mem::take(&mut it.savers));
        for caller in savers.into_iter().flatten() {
            self.replies(caller, reply.clone());
        }
    }
}
