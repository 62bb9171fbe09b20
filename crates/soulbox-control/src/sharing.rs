//! Records that several servers share: this one's owners follow what the others decide.
//!
//! Every server has an owner for every living sandbox, and a decision counts when the row was swapped for it. Whoever was not first reads
//! the row and goes on from there ([`Ownership::overtaken`](crate::ownership::Ownership::overtaken)). News of changed rows come from the
//! store; calls of the API do not trust them to have arrived and read the row first. With records of its own a server does none of this.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use soulbox_types::{SandboxId, SandboxState, TeamId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::catalog::Catalog;
use crate::clock;
use crate::control::Control;
use crate::lifecycle::Machine;
use crate::live::LiveSandbox;
use crate::owner::Request;
use crate::store::{Change, SandboxRow, StoreError};

/// Between two attempts to hear of changes.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

impl Control {
    /// The sandbox, if it can be reached now, as [`Control::live`] has it or as another server has just made it. For requests that
    /// [`Control::live`] knows nothing of: costs a look into shared records.
    pub async fn find_live(&self, id: &SandboxId) -> Option<Arc<LiveSandbox>> {
        let live = self.live(id);
        if live.is_some() || !self.store().shared() {
            return live;
        }
        let within = self.settings().command_within;
        match tokio::time::timeout(within, self.catch_up(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                warn!(sandbox_id = %id, error = %crate::chain(&failure), "failed to look for a sandbox of another server");
            }
            Err(_) => {
                warn!(sandbox_id = %id, "looking for a sandbox of another server took too long")
            }
        }
        self.live(id)
    }

    /// Takes up what other servers decided about a sandbox.
    pub(crate) async fn catch_up(&self, id: &SandboxId) -> Result<(), StoreError> {
        if self.store().shared()
            && let Some(row) = self.store().sandbox(id).await?
        {
            self.note(row).await;
        }
        Ok(())
    }

    /// Takes up what other servers decided about all sandboxes, of one team or of all.
    pub(crate) async fn catch_up_with_all(
        &self,
        team_id: Option<&TeamId>,
    ) -> Result<(), StoreError> {
        if !self.store().shared() {
            return Ok(());
        }
        let owned: Vec<_> = self
            .registry()
            .all()
            .into_iter()
            .filter(|handle| team_id.is_none_or(|team_id| handle.row.team_id == *team_id))
            .map(|handle| handle.row.sandbox_id.clone())
            .collect();
        let rows = self.store().live_sandboxes(team_id).await?;
        let living: HashSet<_> = rows.iter().map(|row| row.sandbox_id.clone()).collect();
        for row in rows {
            self.note(row).await;
        }
        for id in owned.iter().filter(|id| !living.contains(*id)) {
            self.catch_up(id).await?;
        }
        Ok(())
    }

    /// Follows the news until `shutdown`; returns at once when there are none.
    pub(crate) async fn follow(&self, shutdown: &CancellationToken) {
        loop {
            let mut changes = match self.store().changes().await {
                Ok(Some(changes)) => changes,
                Ok(None) => return,
                Err(failure) => {
                    warn!(error = %crate::chain(&failure), "failed to listen for changes of other servers");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(LISTEN_AGAIN) => continue,
                    }
                }
            };
            // What changed before the first one is heard of.
            self.heard(Change::Missed).await;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    change = changes.next() => self.heard(change).await,
                }
            }
        }
    }

    async fn heard(&self, change: Change) {
        debug!(?change, "another server changed something");
        let outcome = match change {
            Change::Sandbox(id) => self.catch_up(&id).await,
            Change::Keys => {
                self.shared.keyring.forget();
                Ok(())
            }
            Change::Templates => self.reload_catalog().await,
            Change::Missed => {
                self.shared.keyring.forget();
                match self.reload_catalog().await {
                    Ok(()) => self.catch_up_with_all(None).await,
                    failed => failed,
                }
            }
        };
        if let Err(failure) = outcome {
            // The next comparison makes up for it.
            warn!(error = %crate::chain(&failure), "failed to take up a change of another server");
        }
    }

    /// Reads the templates that the store has.
    pub(crate) async fn reload_catalog(&self) -> Result<(), StoreError> {
        let reading = async { self.store().catalog().await.map(Catalog::new) };
        self.shared.catalog.read(reading).await
    }

    /// Lets the owner of a sandbox know its row, or makes one when it has none here. Creates of other servers are theirs alone.
    pub(crate) async fn note(&self, row: SandboxRow) {
        let id = row.sandbox_id.clone();
        if let Some(handle) = self.registry().get(&id) {
            let progress = row.progress;
            if handle.row.network != row.network {
                self.registry().replace_row(&id, Arc::new(row));
            }
            let (reply, done) = oneshot::channel();
            let observed = async {
                // An owner that has gone needs no news.
                if handle
                    .requests
                    .send(Request::Observe { progress, reply })
                    .await
                    .is_ok()
                {
                    let _gone = done.await;
                }
            };
            if tokio::time::timeout(self.settings().command_within, observed)
                .await
                .is_err()
            {
                warn!(sandbox_id = %id, "the owner of a sandbox is busy");
            }
            return;
        }
        let now = clock::now();
        if matches!(
            row.progress.state,
            SandboxState::Running
                | SandboxState::Pausing
                | SandboxState::Resuming
                | SandboxState::Killing
        ) {
            let (machine, effects) = Machine::follow(&row.progress, now);
            self.own(Arc::new(row), machine, effects, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use soulbox_types::{DeathCause, Epoch, UnixMillis};

    use super::*;
    use crate::lifecycle::{Effect, Event};
    use crate::ownership::{Answer, DeadlineChange, Ownership, Reserving, Saving, Task, Ticket};
    use crate::store::{Pause, PausedBy, Progress};

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const LATER: UnixMillis = UnixMillis(9_000_000);
    const CALLER: Ticket = Ticket(1);

    fn row(state: SandboxState, epoch: u64) -> Progress {
        Progress {
            state,
            epoch: Epoch(epoch),
            started_at: Some(UnixMillis(900_000)),
            deadline: UnixMillis(1_100_000),
            ended_at: (state == SandboxState::Dead).then_some(NOW),
            cause: matches!(state, SandboxState::Killing | SandboxState::Dead)
                .then_some(DeathCause::Killed),
            pause: None,
        }
    }

    fn running() -> Ownership {
        let row = row(SandboxState::Running, 3);
        let mut owned = Ownership::resume(Machine::follow(&row, NOW), &row).shared();
        assert_eq!(tasks(&mut owned), []);
        owned
    }

    /// What is to be done up to a write of the row, the write included; announcements are no work.
    fn tasks(owned: &mut Ownership) -> Vec<Task> {
        let mut tasks = Vec::new();
        while let Some(task) = owned.next(NOW) {
            if task != Task::Perform(Effect::Announce) {
                tasks.push(task);
            }
            if task == Task::Perform(Effect::Save) {
                break;
            }
        }
        tasks
    }

    fn kill(epoch: u64) -> Task {
        let epoch = Epoch(epoch);
        Task::Perform(Effect::HostKill { epoch })
    }

    const SAVE: Task = Task::Perform(Effect::Save);
    const CUT: Task = Task::Perform(Effect::Cut);

    #[test]
    fn an_expiry_that_another_server_forestalled_harms_nothing() {
        let mut owned = running();
        assert!(owned.is_doubtful(LATER) && !owned.is_doubtful(NOW));
        owned.feed(LATER, Event::Tick);
        assert_eq!(
            tasks(&mut owned),
            [SAVE],
            "streams are not reset before the row has it"
        );
        let row = Progress {
            deadline: UnixMillis(LATER.0 + 1),
            ..row(SandboxState::Running, 4)
        };
        owned.saved(LATER, Saving::Overtaken { row });
        assert_eq!(tasks(&mut owned), []);
        assert_eq!(owned.machine().progress(), row);
        assert_eq!(owned.machine().wake_at(), Some(row.deadline));
    }

    #[test]
    fn another_way_to_the_same_epoch_is_not_taken_for_the_own_one() {
        let mut owned = running();
        owned.move_deadline(NOW, DeadlineChange::Set(LATER), CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        let ours = owned.machine().progress();
        let theirs = Progress {
            deadline: UnixMillis(LATER.0 - 1),
            ..ours
        };
        owned.saved(NOW, Saving::Overtaken { row: theirs });
        assert_eq!(tasks(&mut owned), [SAVE], "decided anew");
        assert_eq!(owned.machine().epoch, ours.epoch.next());
    }

    #[test]
    fn a_deadline_that_another_server_may_have_moved_waits_for_the_row() {
        let mut owned = running();
        let due = owned.wake_at().expect("a timer");
        assert!(owned.is_doubtful(due));
        owned.doubt(due);
        let again = owned.wake_at().expect("a timer");
        assert!(again > due && again.millis_since(due) <= 1_000);
        // What has no deadline to doubt keeps its timers.
        owned.kill(due, DeathCause::Killed, CALLER);
        assert_eq!(owned.wake_at(), owned.machine().wake_at());
    }

    #[test]
    fn the_answer_to_a_kill_of_before_another_servers_start_is_no_end() {
        let mut owned = running();
        owned.kill(NOW, DeathCause::Killed, CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        // Given up on, so the host is asked; meanwhile another server has paused and resumed it.
        owned.saved(NOW, Saving::Failed);
        assert_eq!(tasks(&mut owned), [CUT, kill(4)]);
        owned.observe(NOW, &row(SandboxState::Resuming, 6));
        assert_eq!(tasks(&mut owned), [SAVE]);
        owned.saved(NOW, Saving::Done);
        assert_eq!(tasks(&mut owned), [CUT, kill(7), CUT]);
        owned.ended(NOW, Epoch(4), Event::HostGone);
        assert_eq!(owned.machine().state(), SandboxState::Killing);
        owned.ended(NOW, Epoch(7), Event::HostGone);
        assert_eq!(owned.machine().state(), SandboxState::Dead);
    }

    #[test]
    fn a_kill_is_decided_anew_after_a_deadline_that_was_first() {
        let mut owned = running();
        owned.kill(NOW, DeathCause::Killed, CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        let row = row(SandboxState::Running, 7);
        owned.saved(NOW, Saving::Overtaken { row });
        assert_eq!(tasks(&mut owned), [SAVE]);
        let (expected, progress) = owned.to_save();
        assert_eq!(expected, (SandboxState::Running, Epoch(7)));
        assert_eq!(
            (progress.state, progress.epoch),
            (SandboxState::Killing, Epoch(8))
        );
        owned.saved(NOW, Saving::Done);
        assert_eq!(tasks(&mut owned), [CUT, kill(8)]);
    }

    #[test]
    fn the_second_of_two_kills_waits_for_the_first() {
        let mut owned = running();
        owned.kill(NOW, DeathCause::Killed, CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        let row_ = row(SandboxState::Killing, 4);
        // The very swap that was tried: whose it was does not show, and both kill, which is as good.
        owned.saved(
            NOW,
            Saving::Overtaken {
                row: row(SandboxState::Killing, 5),
            },
        );
        assert_eq!(
            tasks(&mut owned),
            [CUT],
            "the host is asked by the other server"
        );
        owned.observe(NOW, &row_);
        assert_eq!(tasks(&mut owned), [], "old news");
        owned.observe(NOW, &row(SandboxState::Dead, 5));
        assert_eq!(
            tasks(&mut owned),
            [CUT, Task::Answer(CALLER, Answer::Killed)]
        );
        assert!(owned.machine().is_over());
    }

    #[test]
    fn a_kill_that_another_server_left_undone_is_taken_over() {
        let mut owned = running();
        owned.observe(NOW, &row(SandboxState::Killing, 5));
        assert_eq!(tasks(&mut owned), [CUT]);
        let due = owned.machine().wake_at().expect("a timer");
        owned.feed(due, Event::Tick);
        assert_eq!(tasks(&mut owned), [kill(6)]);
        owned.feed(due, Event::HostGone);
        assert!(tasks(&mut owned).contains(&SAVE));
        assert_eq!(owned.to_save().0, (SandboxState::Killing, Epoch(5)));
    }

    #[test]
    fn a_create_that_another_server_killed_is_ended_on_the_host() {
        let created = Machine::create(NOW, 100_000, 30_000);
        let mut owned = Ownership::create(created, CALLER, false).shared();
        assert_eq!(tasks(&mut owned), [Task::Perform(Effect::Reserve)]);
        owned.reserved(NOW, Reserving::Made);
        assert_eq!(tasks(&mut owned), [Task::Perform(Effect::HostCreate)]);
        owned.feed(NOW, Event::Started { started_at: NOW });
        assert!(tasks(&mut owned).contains(&SAVE));
        let row = row(SandboxState::Dead, 2);
        owned.saved(NOW, Saving::Overtaken { row });
        assert_eq!(
            tasks(&mut owned),
            [CUT, kill(3), Task::Answer(CALLER, Answer::NotCreated)]
        );
    }

    #[test]
    fn a_deadline_is_moved_again_after_one_that_was_first() {
        let mut owned = running();
        owned.move_deadline(NOW, DeadlineChange::Set(LATER), CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        let row = row(SandboxState::Running, 9);
        owned.saved(NOW, Saving::Overtaken { row });
        assert_eq!(tasks(&mut owned), [SAVE]);
        let (expected, progress) = owned.to_save();
        assert_eq!(expected, (SandboxState::Running, Epoch(9)));
        assert_eq!((progress.epoch, progress.deadline), (Epoch(10), LATER));
        owned.saved(NOW, Saving::Done);
        let (epoch, deadline) = (Epoch(10), LATER);
        assert_eq!(
            tasks(&mut owned),
            [Task::Perform(Effect::HostDeadline { epoch, deadline })]
        );
        owned.feed(NOW, Event::DeadlineTaken { epoch });
        assert_eq!(
            tasks(&mut owned),
            [Task::Answer(CALLER, Answer::DeadlineMoved)]
        );
    }

    fn pause_at(epoch: u64) -> Pause {
        Pause {
            epoch: Epoch(epoch),
            by: PausedBy::Control,
            at: NOW,
            memory: true,
            silent_guest: false,
        }
    }

    #[test]
    fn a_pause_is_decided_anew_after_a_deadline_that_was_first() {
        let mut owned = running();
        owned.pause(NOW, true, CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        let row = row(SandboxState::Running, 7);
        owned.saved(NOW, Saving::Overtaken { row });
        assert_eq!(tasks(&mut owned), [SAVE]);
        let (expected, progress) = owned.to_save();
        assert_eq!(expected, (SandboxState::Running, Epoch(7)));
        assert_eq!(progress.state, SandboxState::Pausing);
    }

    #[test]
    fn a_pause_that_another_server_has_resumed_is_not_made_again() {
        let mut owned = running();
        owned.pause(NOW, true, CALLER);
        assert_eq!(tasks(&mut owned), [SAVE]);
        owned.saved(NOW, Saving::Done);
        let (epoch, memory) = (Epoch(4), true);
        let save = Task::Perform(Effect::HostSave { epoch, memory });
        assert_eq!(tasks(&mut owned), [CUT, save]);
        let pause = pause_at(4);
        owned.feed(NOW, Event::Paused { pause });
        assert_eq!(tasks(&mut owned), [SAVE]);
        // Given up on. The other server has seen the snapshot and written the same.
        owned.saved(NOW, Saving::Failed);
        let joined = Ticket(2);
        owned.pause(NOW, true, joined);
        assert_eq!(tasks(&mut owned), [CUT], "its row does not say so");
        let row = Progress {
            pause: Some(pause),
            ..row(SandboxState::Running, 5)
        };
        owned.observe(NOW, &row);
        let paused = [CALLER, joined].map(|ticket| Task::Answer(ticket, Answer::Paused));
        assert_eq!(tasks(&mut owned), paused);
        assert_eq!(owned.machine().progress(), row);
    }

    #[test]
    fn an_extension_that_another_servers_deadline_covers_is_confirmed_by_the_host() {
        let extend = DeadlineChange::Extend(UnixMillis(1_050_000));
        let (epoch, deadline) = (Epoch(3), UnixMillis(1_100_000));
        let tell = Task::Perform(Effect::HostDeadline { epoch, deadline });

        let mut owned = running();
        owned.move_deadline(NOW, extend, CALLER);
        assert_eq!(tasks(&mut owned), [tell], "the row has it");
        owned.feed(NOW, Event::DeadlineTaken { epoch });
        let moved = Task::Answer(CALLER, Answer::DeadlineMoved);
        assert_eq!(tasks(&mut owned), [moved]);
        owned.move_deadline(NOW, extend, CALLER);
        assert_eq!(tasks(&mut owned), [moved], "the host has it");

        // The other server did not tell it in time.
        let mut late = running();
        late.move_deadline(NOW, extend, CALLER);
        assert_eq!(tasks(&mut late), [tell]);
        let pausing = true;
        late.feed(NOW, Event::DeadlineTooLate { epoch, pausing });
        assert_eq!(tasks(&mut late), [SAVE]);
        late.saved(NOW, Saving::Done);
        let missing = Task::Answer(CALLER, Answer::Missing);
        assert_eq!(tasks(&mut late), [CUT, missing]);
    }
}
