//! Pause, resume, connect and kill: what the API asks of one sandbox, whether it has an owner or is at rest.
//!
//! A paused sandbox is a row and a snapshot. Whoever wants something of it gives it an owner, who leaves again when nobody asks for a
//! while; a request that came just then has no answer and is asked again of the next owner.

use std::sync::Arc;
use std::time::Duration;

use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState};
use tokio::sync::oneshot;

use crate::clock;
use crate::control::{Connected, Control, PauseWish, SandboxView, longest, missing, over};
use crate::error::{CreateError, SandboxError};
use crate::hosts::{AtDeadline, HostCreate};
use crate::owner::{Request, ResumeOrder, Resumed};
use crate::ownership::{DeadlineChange, ResumeWish};
use crate::reconcile;
use crate::registry::Handle;
use crate::store::{SandboxRow, TeamRow};

/// How long callers wait for a kill; it stays under way after that.
const KILL_ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long callers wait for a pause; it stays under way after that.
const PAUSE_ANSWER_WITHIN: Duration = Duration::from_secs(180);
/// Changes of state that a caller may run into one after the other.
const ATTEMPTS: u32 = 5;
/// How long the agent in a sandbox may take to show that it is healthy.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);

impl Control {
    /// The sandbox running: its deadline extended to `timeout` from now if that is later, or resumed for so long.
    ///
    /// # Errors
    /// The timeout is longer than may be, whether or not the sandbox exists; the sandbox is not there; it cannot be resumed.
    pub async fn connect(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        timeout: Duration,
        memory: bool,
    ) -> Result<Connected, SandboxError> {
        self.check_timeout(team, timeout)?;
        self.catch_up(id).await?;
        for _ in 0..ATTEMPTS {
            let handle = self.reach(team, id).await?;
            match handle.state() {
                SandboxState::Running => {}
                SandboxState::Killing => return Err(being_killed(id)),
                SandboxState::Creating | SandboxState::Dead => return Err(missing(id)),
                SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
                    match self.wake(team, &handle, timeout, memory).await? {
                        Some(Resumed::Now(_)) => {
                            let view = self.extended(team, id, timeout).await?;
                            return Ok(Connected::Resumed(view));
                        }
                        Some(Resumed::Before) | None => continue,
                    }
                }
            }
            match self.extended(team, id, timeout).await {
                Ok(view) => return Ok(Connected::Running(view)),
                Err(SandboxError::BeingPaused { .. } | SandboxError::NotFound { .. }) => {
                    // It may be paused by now.
                    tokio::task::yield_now().await;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(missing(id))
    }

    /// The paused sandbox running again, for so long.
    ///
    /// # Errors
    /// As [`Control::connect`]; it runs already.
    pub async fn resume(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        timeout: Duration,
        memory: bool,
        auto_pause: Option<bool>,
    ) -> Result<SandboxView, SandboxError> {
        self.check_timeout(team, timeout)?;
        self.catch_up(id).await?;
        let running = || SandboxError::AlreadyRunning {
            sandbox_id: id.clone(),
        };
        for _ in 0..ATTEMPTS {
            let mut handle = self.reach(team, id).await?;
            match handle.state() {
                SandboxState::Running => return Err(running()),
                SandboxState::Killing | SandboxState::Creating | SandboxState::Dead => {
                    return Err(missing(id));
                }
                // The host knows of it already.
                SandboxState::Resuming => {}
                SandboxState::Pausing | SandboxState::Paused => {
                    if let Some(auto_pause) = auto_pause {
                        self.end_by(&mut handle, auto_pause).await?;
                    }
                }
            }
            match self.wake(team, &handle, timeout, memory).await? {
                Some(Resumed::Now(progress)) => return Ok(self.view(handle.row, progress)),
                Some(Resumed::Before) => return Err(running()),
                None => {}
            }
        }
        Err(SandboxError::TimedOut)
    }

    /// Makes the sandbox a snapshot; returns when all of it is on disk and no process is left. Pauses at the same time join.
    ///
    /// # Errors
    /// It is paused already, or cannot be: then it goes on.
    pub async fn pause(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        wish: PauseWish,
    ) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        for _ in 0..ATTEMPTS {
            let handle = self.reach(team, id).await?;
            // What is on disk only is of use when the agent has written all that it was given.
            let mut silent_guest = false;
            if handle.state() == SandboxState::Running {
                match self.check_guest(&handle).await {
                    Err(silent) if wish.healthy_guest || !wish.memory => return Err(silent),
                    health => silent_guest = health.is_err(),
                }
            }
            self.last_words(id).await;
            // A snapshot that is being made is waited for.
            let turn = handle.snapshot_turn.clone();
            let Ok(_turn) = tokio::time::timeout(PAUSE_ANSWER_WITHIN, turn.read()).await else {
                return Err(SandboxError::TimedOut);
            };
            let (reply, done) = oneshot::channel();
            let memory = wish.memory;
            let request = Request::Pause {
                memory,
                silent_guest,
                reply,
            };
            if handle.requests.send(request).await.is_err() {
                continue;
            }
            match tokio::time::timeout(PAUSE_ANSWER_WITHIN, done).await {
                Err(_) => return Err(SandboxError::TimedOut),
                // Its owner has just left it at rest.
                Ok(Err(_)) => {}
                Ok(Ok(Ok(()))) => {
                    let kind = if memory { "full" } else { "filesystem" };
                    self.log(id, "sandbox paused", [("kind", kind.to_owned())]);
                    return Ok(());
                }
                Ok(Ok(Err(failure))) => return Err(failure),
            }
        }
        Err(missing(id))
    }

    /// Ends a sandbox, running or paused; returns when no process of it is left. Kills at the same time join.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::TimedOut`] leaves the kill under way.
    pub async fn kill(&self, team: &TeamRow, id: &SandboxId) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        for _ in 0..ATTEMPTS {
            let handle = self.reach(team, id).await?;
            // Its owner may still be writing that it is over.
            if handle.state() == SandboxState::Dead {
                return Err(missing(id));
            }
            let at_rest = handle.state() == SandboxState::Paused;
            if !at_rest {
                self.last_words(id).await;
            }
            let (reply, done) = oneshot::channel();
            let request = Request::Kill {
                cause: DeathCause::Killed,
                reply,
            };
            let killed = async {
                handle.requests.send(request).await.map_err(|_| ())?;
                done.await.map_err(|_| ())
            };
            match tokio::time::timeout(KILL_ANSWER_WITHIN, killed).await {
                Err(_) => return Err(SandboxError::TimedOut),
                Ok(Ok(())) => return Ok(()),
                Ok(Err(())) if at_rest => {}
                Ok(Err(())) => return Err(missing(id)),
            }
        }
        Err(missing(id))
    }

    /// What a request for a paused sandbox needs to have so that it is resumed; none when it is not there or traffic does not resume it.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn paused_for_traffic(
        &self,
        id: &SandboxId,
    ) -> Result<Option<SandboxView>, SandboxError> {
        let Some(row) = self.store().sandbox(id).await? else {
            return Ok(None);
        };
        let row = Arc::new(row);
        let progress = row.progress;
        if !is_resting(progress.state) {
            // It may have come back between two looks.
            let back =
                progress.state == SandboxState::Running && row.lifecycle.auto_resume.is_some();
            return Ok((back && self.live(id).is_some()).then(|| self.view(row, progress)));
        }
        let wakes =
            row.lifecycle.auto_resume.is_some() && progress.pause.is_none_or(|pause| pause.memory);
        // A pause that is under way may fail, and then it goes on.
        let waits = progress.state == SandboxState::Pausing;
        Ok((wakes || waits).then(|| self.view(row, progress)))
    }

    /// The paused sandbox that traffic resumes, whose access token is the one sought. All rows are read, for one who asks at a time.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn whose_paused(
        &self,
        is_sought: impl Fn(&str) -> bool,
    ) -> Result<Option<SandboxId>, SandboxError> {
        let _turn = self.shared.paused_search.lock().await;
        let rows = self.store().live_sandboxes(None).await?;
        let waits = |row: &&SandboxRow| {
            is_resting(row.progress.state)
                && row.lifecycle.auto_resume.is_some()
                && row.progress.pause.is_none_or(|pause| pause.memory)
        };
        let sought = |row: &&SandboxRow| self.access_token(row).is_some_and(|it| is_sought(&it));
        let found = rows.iter().filter(waits).find(sought);
        Ok(found.map(|row| row.sandbox_id.clone()))
    }

    /// Makes a sandbox running because of traffic, if it is so configured. False when that cannot be: it is not there, or wants to be
    /// left alone.
    ///
    /// # Errors
    /// The quota is exhausted, or the resume failed.
    pub async fn wake_for_traffic(&self, id: &SandboxId) -> Result<bool, SandboxError> {
        if let Some(handle) = self.registry().get(id) {
            let mut progress = handle.progress.clone();
            let settled = progress.wait_for(|it| it.state != SandboxState::Pausing);
            if tokio::time::timeout(PAUSE_ANSWER_WITHIN, settled)
                .await
                .is_err()
            {
                return Err(SandboxError::TimedOut);
            }
            if handle.state() == SandboxState::Running {
                return Ok(true);
            }
        }
        let Some(row) = self.store().sandbox(id).await? else {
            return Ok(false);
        };
        let Some(timeout_millis) = row.lifecycle.auto_resume else {
            return Ok(false);
        };
        if row.progress.pause.is_some_and(|pause| !pause.memory) {
            return Ok(false);
        }
        let Some(team) = self.store().team(&row.team_id).await? else {
            return Ok(false);
        };
        if team.banned || team.blocked {
            return Ok(false);
        }
        let timeout = Duration::from_millis(timeout_millis).min(longest(self.max_hours(&team)));
        match self.connect(&team, id, timeout, true).await {
            Ok(_) => Ok(true),
            Err(SandboxError::NotFound { .. } | SandboxError::BeingKilled { .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The owner of a sandbox; one that is at rest gets one.
    pub(crate) async fn reach(
        &self,
        team: &TeamRow,
        id: &SandboxId,
    ) -> Result<Handle, SandboxError> {
        if let Ok(handle) = self.handle(team, id) {
            return Ok(handle);
        }
        let row = self.store().sandbox(id).await?.ok_or(missing(id))?;
        if row.team_id != team.team_id {
            return Err(missing(id));
        }
        if !is_resting(row.progress.state) {
            return Err(over(id, row.progress.cause));
        }
        let (machine, effects) = reconcile::take_up_at_rest(&row.progress, clock::now());
        self.own(Arc::new(row), machine, effects, None);
        self.handle(team, id)
    }

    /// Changes what is done at the deadline of one that does not run.
    async fn end_by(&self, handle: &mut Handle, auto_pause: bool) -> Result<(), SandboxError> {
        let at_deadline = match (auto_pause, handle.row.lifecycle.at_deadline) {
            (false, _) => AtDeadline::Kill,
            (true, AtDeadline::Kill) => AtDeadline::Pause { memory: true },
            (true, kept) => kept,
        };
        if at_deadline == handle.row.lifecycle.at_deadline {
            return Ok(());
        }
        let id = handle.row.sandbox_id.clone();
        self.store().set_at_deadline(&id, at_deadline).await?;
        let mut row = (*handle.row).clone();
        row.lifecycle.at_deadline = at_deadline;
        handle.row = Arc::new(row);
        self.registry().replace_row(&id, handle.row.clone());
        let row = handle.row.clone();
        // One that has just left read the row before: the next one reads it anew.
        let _left = handle.requests.send(Request::EndBy { row }).await;
        Ok(())
    }

    /// Asks the owner for a resume; nothing when the owner has just left.
    async fn wake(
        &self,
        team: &TeamRow,
        handle: &Handle,
        timeout: Duration,
        memory: bool,
    ) -> Result<Option<Resumed>, SandboxError> {
        let settings = self.settings();
        let progress = *handle.progress.borrow();
        let paused = progress
            .pause
            .filter(|_| progress.state == SandboxState::Paused);
        if memory && paused.is_some_and(|pause| pause.silent_guest) {
            let sandbox_id = handle.row.sandbox_id.clone();
            return Err(SandboxError::SilentWhenPaused { sandbox_id });
        }
        if self.registry().stopping().is_cancelled() {
            let stopping = Box::new(CreateError::Stopping);
            return Err(SandboxError::NotResumed(stopping));
        }
        let wish = ResumeWish {
            memory,
            timeout_millis: clock::millis(timeout),
            within_millis: clock::millis(settings.start_within),
        };
        let order = Box::new(ResumeOrder {
            command: self.command(&handle.row),
            limit: team.max_sandboxes.unwrap_or(settings.max_sandboxes),
        });
        let (reply, done) = oneshot::channel();
        let request = Request::Resume { wish, order, reply };
        if handle.requests.send(request).await.is_err() {
            return Ok(None);
        }
        // A pause may be under way before it.
        let within = PAUSE_ANSWER_WITHIN + settings.start_within + settings.command_within * 2;
        match tokio::time::timeout(within, done).await {
            Err(_) => Err(SandboxError::TimedOut),
            Ok(Err(_)) => Ok(None),
            Ok(Ok(outcome)) => {
                let resumed = outcome?;
                if matches!(resumed, Resumed::Now(_)) {
                    let fields = [("timeout_s", timeout.as_secs().to_string())];
                    self.log(&handle.row.sandbox_id, "sandbox resumed", fields);
                }
                Ok(Some(resumed))
            }
        }
    }

    /// The create of a sandbox as its row has it; epoch, deadline and snapshot are the owner's business.
    pub(crate) fn command(&self, row: &SandboxRow) -> HostCreate {
        let (default_user, default_workdir) = self.catalog().defaults_of(&row.build_id);
        HostCreate {
            sandbox_id: row.sandbox_id.clone(),
            epoch: Epoch::FIRST,
            template_id: row.template_id.clone(),
            build_id: row.host_build_id.clone(),
            limits: row.limits,
            egress: row.network.egress(),
            deadline: row.progress.deadline,
            access_token: self.access_token(row),
            env: std::collections::BTreeMap::new(),
            default_user,
            default_workdir,
            at_deadline: row.lifecycle.at_deadline,
            snapshot: None,
        }
    }

    async fn extended(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<SandboxView, SandboxError> {
        let handle = self.handle(team, id)?;
        let deadline = self.clamp(team, &handle, timeout);
        self.move_deadline(&handle, DeadlineChange::Extend(deadline))
            .await?;
        let progress = *handle.progress.borrow();
        Ok(self.view(handle.row, progress))
    }

    fn check_timeout(&self, team: &TeamRow, timeout: Duration) -> Result<(), SandboxError> {
        let hours = self.max_hours(team);
        if timeout > longest(hours) {
            return Err(SandboxError::TimeoutTooLong { hours });
        }
        Ok(())
    }

    pub(crate) async fn check_guest(&self, handle: &Handle) -> Result<(), SandboxError> {
        let row = &handle.row;
        let token = self.access_token(row);
        // Nothing is later than that, so the answer is short.
        let asked = self
            .hosts()
            .logs(&row.sandbox_id, token.as_deref(), u64::MAX);
        match tokio::time::timeout(HEALTHY_WITHIN, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(failure)) => {
                tracing::warn!(sandbox_id = %row.sandbox_id, error = %failure, "the agent in a sandbox does not answer");
                Err(SandboxError::GuestUnresponsive)
            }
            Err(_) => Err(SandboxError::GuestUnresponsive),
        }
    }
}

fn being_killed(id: &SandboxId) -> SandboxError {
    SandboxError::BeingKilled {
        sandbox_id: id.clone(),
    }
}

pub(crate) fn is_resting(state: SandboxState) -> bool {
    matches!(
        state,
        SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming
    )
}
