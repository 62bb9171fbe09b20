//! [`Control`]: what the API, the ingress and the front's start call.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState, TeamId, TemplateId, UnixMillis};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::{AuthError, Credential, Keyring};
use crate::building::Building;
use crate::builds::{Builder, BuilderSlot};
use crate::catalog::{Catalog, ResolveError, TemplateView};
use crate::clock;
use crate::error::SandboxError;
use crate::hosts::{HostSnapshot, Hosts};
use crate::latest::Latest;
use crate::lifecycle::{Effect, Event, Machine};
use crate::list::{self, Cursor, ListQuery, Order, Page};
use crate::live::{LiveSandbox, Traffic};
use crate::logs::{LogLevel, Logs};
use crate::metrics::Metrics;
use crate::owner::{Creation, Ends, INBOX, Owner, Request, Surroundings};
use crate::ownership::{DeadlineChange, pause_of};
use crate::registry::{Handle, Registry};
use crate::settings::ControlSettings;
use crate::spec::TemplateReference;
use crate::store::{Progress, SandboxRow, Spawns, Store, StoreError, TeamRow};
use crate::token::TokenMint;

/// A refresh gives at least this.
const SHORTEST_REFRESH: Duration = Duration::from_secs(15);

/// The deciding half of a SoulBox server. Clones share everything.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) around: Arc<Surroundings>,
    pub(crate) keyring: Keyring,
    pub(crate) mint: TokenMint,
    pub(crate) catalog: Latest<Catalog>,
    pub(crate) spawns: Mutex<HashMap<TemplateId, Spawns>>,
    pub(crate) metrics: Metrics,
    pub(crate) builder: BuilderSlot,
    pub(crate) building: Building,
    /// Templates that hosts list as their own.
    pub(crate) installed: RwLock<HashSet<TemplateId>>,
    /// Serialises readings of the hosts' templates, and says when the last one was.
    pub(crate) refreshed: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    /// One search through the rows of paused sandboxes at a time.
    pub(crate) paused_search: tokio::sync::Mutex<()>,
}

/// A sandbox as the API shows it.
#[derive(Debug, Clone)]
pub struct SandboxView {
    pub row: Arc<SandboxRow>,
    pub progress: Progress,
    pub access_token: Option<String>,
    pub traffic_token: Option<String>,
}

/// What a host told by itself.
#[derive(Debug, Clone)]
pub enum HostEvent {
    /// A sandbox ended other than by a kill of control.
    Exited {
        sandbox_id: SandboxId,
        epoch: Epoch,
        cause: DeathCause,
    },
    /// At its deadline a sandbox was paused by the host itself.
    Paused(HostSnapshot),
}

/// What a connect came to.
#[derive(Debug, Clone)]
pub enum Connected {
    /// It was running.
    Running(SandboxView),
    Resumed(SandboxView),
}

/// A pause as somebody wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseWish {
    /// Processes and memory too, not only what is on disk.
    pub memory: bool,
    /// Refused when the agent inside does not answer.
    pub healthy_guest: bool,
}

impl Control {
    /// Decides with these records and hosts. Call [`Control::recover`] before anything else, and keep [`Control::run`] running.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, hosts: Arc<dyn Hosts>, settings: ControlSettings) -> Self {
        let keyring = Keyring::new(store.clone(), &settings.admin_token);
        let mint = TokenMint::new(&settings.token_seed);
        let registry = Registry::default();
        Self {
            shared: Arc::new(Shared {
                around: Arc::new(Surroundings {
                    store,
                    hosts,
                    settings,
                    registry,
                    logs: Logs::default(),
                }),
                keyring,
                mint,
                catalog: Latest::default(),
                spawns: Mutex::default(),
                metrics: Metrics::default(),
                builder: BuilderSlot::default(),
                building: Building::default(),
                installed: RwLock::default(),
                refreshed: tokio::sync::Mutex::default(),
                paused_search: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Who performs builds of templates from now on; without one, none can be started. The first one stays.
    pub fn set_builder(&self, builder: Arc<dyn Builder>) {
        if self.shared.builder.set(builder).is_err() {
            tracing::warn!("there is a builder already");
        }
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &ControlSettings {
        &self.shared.around.settings
    }

    /// The team that a credential acts for, blocked ones included.
    ///
    /// # Errors
    /// The credential is not valid, or its team is banned.
    pub async fn authenticate(
        &self,
        credential: Credential<'_>,
    ) -> Result<Arc<TeamRow>, AuthError> {
        self.shared.keyring.authenticate(credential).await
    }

    /// Whether this is the administration token.
    ///
    /// # Errors
    /// [`AuthError::AdminToken`].
    pub fn check_admin(&self, token: &str) -> Result<(), AuthError> {
        self.shared.keyring.check_admin(token)
    }

    /// The sandbox, if it can be reached now. Cheap: for every proxied request.
    #[must_use]
    pub fn live(&self, sandbox_id: &SandboxId) -> Option<Arc<LiveSandbox>> {
        self.registry().live(sandbox_id)
    }

    /// The running sandbox whose access token is the one sought, for which all are looked at.
    #[must_use]
    pub fn whose(&self, is_sought: impl Fn(&str) -> bool) -> Option<SandboxId> {
        let sought = |live: &Arc<LiveSandbox>| live.access_token.as_deref().is_some_and(&is_sought);
        let found = self.registry().all_live().into_iter().find(sought);
        found.map(|live| live.sandbox_id.clone())
    }

    /// Tells the owner what happened to its sandbox. Events of sandboxes without an owner are of the past.
    pub async fn host_event(&self, event: HostEvent) {
        let (sandbox_id, epoch, event) = match event {
            HostEvent::Exited {
                sandbox_id,
                epoch,
                cause,
            } => {
                tracing::info!(%sandbox_id, epoch = epoch.0, %cause, "the host told of an end");
                (sandbox_id, epoch, Event::Exited { cause })
            }
            HostEvent::Paused(snapshot) => {
                let Some(pause) = pause_of(&snapshot) else {
                    tracing::warn!(sandbox_id = %snapshot.sandbox_id, snapshot_id = snapshot.snapshot_id, "the host told of a pause of an unknown name");
                    return;
                };
                tracing::info!(sandbox_id = %snapshot.sandbox_id, epoch = snapshot.epoch.0, "the host paused a sandbox at its deadline");
                (snapshot.sandbox_id, snapshot.epoch, Event::Paused { pause })
            }
        };
        let Some(handle) = self.registry().get(&sandbox_id) else {
            return;
        };
        // An owner that has gone needs no event.
        drop(handle.requests.send(Request::Ended { epoch, event }).await);
    }

    /// Moves the deadline to `timeout` from now, at most to the longest life that the team's sandboxes may have.
    ///
    /// # Errors
    /// The sandbox does not run or has lived its longest life.
    pub async fn set_timeout(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        let handle = self.running(team, id)?;
        let started_at = handle
            .progress
            .borrow()
            .started_at
            .unwrap_or(handle.row.created_at);
        if clock::now().millis_since(started_at) >= clock::millis(longest(self.max_hours(team))) {
            return Err(SandboxError::LifetimeExceeded);
        }
        let deadline = self.clamp(team, &handle, timeout);
        self.move_deadline(&handle, DeadlineChange::Set(deadline))
            .await?;
        let fields = [("timeout_s", timeout.as_secs().to_string())];
        self.log(id, "timeout changed", fields);
        Ok(())
    }

    /// Extends the deadline to at least `duration` from now; never shortens it.
    ///
    /// # Errors
    /// The sandbox does not run.
    pub async fn refresh(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        duration: Duration,
    ) -> Result<(), SandboxError> {
        self.catch_up(id).await?;
        let handle = self.running(team, id)?;
        let deadline = self.clamp(team, &handle, duration.max(SHORTEST_REFRESH));
        self.move_deadline(&handle, DeadlineChange::Extend(deadline))
            .await
    }

    /// A sandbox that runs or is paused.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub async fn sandbox(
        &self,
        team: &TeamRow,
        id: &SandboxId,
    ) -> Result<SandboxView, SandboxError> {
        self.catch_up(id).await?;
        let (row, progress) = match self.handle(team, id) {
            Ok(handle) => {
                let progress = *handle.progress.borrow();
                (handle.row, progress)
            }
            // At rest, so that nobody owns it.
            Err(missing) => match self.store().sandbox(id).await? {
                Some(row) if row.team_id == team.team_id => {
                    let progress = row.progress;
                    (Arc::new(row), progress)
                }
                _ => return Err(missing),
            },
        };
        match progress.state {
            SandboxState::Running
            | SandboxState::Pausing
            | SandboxState::Paused
            | SandboxState::Resuming => Ok(self.view(row, progress)),
            SandboxState::Creating | SandboxState::Killing => Err(missing(id)),
            SandboxState::Dead => Err(over(id, progress.cause)),
        }
    }

    /// Sandboxes of the team. A template that means nothing matches nothing.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn list(
        &self,
        team: &TeamRow,
        template: Option<&TemplateReference>,
        query: &ListQuery,
    ) -> Result<Page<SandboxView>, StoreError> {
        let template = match template {
            None => None,
            Some(reference) => match self.catalog().by_alias(team, reference) {
                Ok(template) => Some(template.template_id.clone()),
                Err(_) => return Ok(Page::default()),
            },
        };
        let page = self
            .store()
            .page(&team.team_id, template.as_ref(), query)
            .await?;
        let items = page.items.into_iter().map(|row| {
            let progress = row.progress;
            self.view(Arc::new(row), progress)
        });
        Ok(Page {
            items: items.collect(),
            total: page.total,
            next: page.next,
        })
    }

    /// A page of the team's own templates, newest first.
    #[must_use]
    pub fn templates(
        &self,
        team: &TeamRow,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Page<TemplateView> {
        let views = self.catalog().all_of(team);
        list::page(views, Order::NewestFirst, after, limit, |view| Cursor {
            at: view.template.created_at,
            id: view.template.template_id.to_string(),
        })
    }

    /// One of the team's own templates.
    ///
    /// # Errors
    /// It is not there, or another team's.
    pub fn template(&self, team: &TeamRow, id: &TemplateId) -> Result<TemplateView, ResolveError> {
        self.catalog().own(team, id)
    }

    /// The templates that come with the installation, or were published under a global name.
    #[must_use]
    pub fn default_templates(&self, team: &TeamRow) -> Vec<TemplateView> {
        self.catalog().global(team)
    }

    /// The template of an alias.
    ///
    /// # Errors
    /// It is not there, or another team's private one.
    pub async fn template_by_alias(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Arc<crate::store::TemplateRow>, ResolveError> {
        let found = self.catalog().by_alias(team, reference);
        if matches!(found, Err(ResolveError::NoTemplate { .. }))
            && self.refreshed_for_a_miss().await
        {
            return self.catalog().by_alias(team, reference);
        }
        found
    }

    /// Lets go of the sandboxes, which go on, and returns when every owner has; at most `within`.
    pub async fn stop(&self, within: Duration) {
        self.registry().stopping().cancel();
        self.stop_builds(within).await;
        self.registry().owners().close();
        if tokio::time::timeout(within, self.registry().owners().wait())
            .await
            .is_err()
        {
            tracing::warn!("some owners of sandboxes did not stop in time");
        }
        self.flush_counters().await;
    }

    /// Starts the task that owns a sandbox.
    pub(crate) fn own(
        &self,
        row: Arc<SandboxRow>,
        machine: Machine,
        first: Vec<Effect>,
        creation: Option<Creation>,
    ) {
        let machine = machine.ending_by(row.lifecycle.at_deadline);
        let (requests, inbox) = mpsc::channel(INBOX);
        let (progress, progress_out) = watch::channel(machine.progress());
        let (state, state_out) = watch::channel(machine.state());
        let traffic = match self.traffic_token(&row) {
            Some(token) => Traffic::Private { token },
            None => Traffic::Public,
        };
        self.shared.around.logs.open(&row, creation.is_some());
        // With shared records every server takes up what another one makes.
        let is_adopted = creation.is_none() && !self.store().shared();
        if is_adopted && machine.state() != SandboxState::Paused {
            let message = "sandbox adopted by this server";
            self.log(&row.sandbox_id, message, []);
        }
        let live = Arc::new(LiveSandbox {
            sandbox_id: row.sandbox_id.clone(),
            team_id: row.team_id.clone(),
            state: state_out,
            traffic,
            inbound: row.inbound.clone(),
            access_token: self.access_token(&row),
            gone: CancellationToken::new(),
            used: self.shared.around.logs.usage(&row.sandbox_id),
        });
        let handle = Handle {
            row: row.clone(),
            live: live.clone(),
            progress: progress_out,
            requests,
            network_turn: Arc::default(),
            snapshot_turn: Arc::default(),
        };
        if !self.registry().insert(handle) {
            return;
        }
        let ends = Ends {
            inbox,
            progress,
            state,
        };
        let owner = Owner::new(
            self.shared.around.clone(),
            row,
            live,
            (machine, first),
            ends,
            creation,
        );
        self.registry().owners().spawn(owner.run());
    }

    /// Notes in a sandbox's log what was decided about it.
    pub(crate) fn log(
        &self,
        id: &SandboxId,
        message: &str,
        fields: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let logs = &self.shared.around.logs;
        logs.decided(id, LogLevel::Info, message, fields);
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.shared.around.registry
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.shared.around.store
    }

    pub(crate) fn hosts(&self) -> &dyn Hosts {
        &*self.shared.around.hosts
    }

    /// Whether a host has the template by itself.
    pub(crate) fn is_installed(&self, id: &TemplateId) -> bool {
        let installed = self.shared.installed.read();
        installed
            .unwrap_or_else(PoisonError::into_inner)
            .contains(id)
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.shared.catalog.get()
    }

    /// A template may have been built since the hosts were last asked; they are asked at most once a second for it.
    pub(crate) async fn refreshed_for_a_miss(&self) -> bool {
        match self.refresh_templates(Duration::from_secs(1)).await {
            Ok(refreshed) => refreshed,
            Err(failure) => {
                tracing::warn!(error = %crate::chain(&failure), "failed to read the host's templates");
                false
            }
        }
    }

    pub(crate) fn view(&self, row: Arc<SandboxRow>, progress: Progress) -> SandboxView {
        SandboxView {
            access_token: self.access_token(&row),
            traffic_token: self.traffic_token(&row),
            row,
            progress,
        }
    }

    pub(crate) fn access_token(&self, row: &SandboxRow) -> Option<String> {
        row.secure.then(|| self.shared.mint.envd(&row.sandbox_id))
    }

    fn traffic_token(&self, row: &SandboxRow) -> Option<String> {
        (!row.public_traffic).then(|| self.shared.mint.traffic(&row.sandbox_id))
    }

    pub(crate) fn handle(&self, team: &TeamRow, id: &SandboxId) -> Result<Handle, SandboxError> {
        let handle = self.registry().get(id).ok_or(missing(id))?;
        if handle.row.team_id == team.team_id {
            Ok(handle)
        } else {
            Err(missing(id))
        }
    }

    pub(crate) fn running(&self, team: &TeamRow, id: &SandboxId) -> Result<Handle, SandboxError> {
        let handle = self.handle(team, id)?;
        if handle.state() == SandboxState::Running {
            Ok(handle)
        } else {
            Err(missing(id))
        }
    }

    pub(crate) fn max_hours(&self, team: &TeamRow) -> u32 {
        team.max_sandbox_hours
            .unwrap_or(self.settings().max_sandbox_hours)
    }

    pub(crate) fn clamp(&self, team: &TeamRow, handle: &Handle, timeout: Duration) -> UnixMillis {
        let started_at = handle
            .progress
            .borrow()
            .started_at
            .unwrap_or(handle.row.created_at);
        let last = started_at.plus_millis(clock::millis(longest(self.max_hours(team))));
        clock::now().plus_millis(clock::millis(timeout)).min(last)
    }

    pub(crate) async fn move_deadline(
        &self,
        handle: &Handle,
        change: DeadlineChange,
    ) -> Result<(), SandboxError> {
        let (reply, done) = oneshot::channel();
        let moved = async {
            let request = Request::Deadline { change, reply };
            handle
                .requests
                .send(request)
                .await
                .map_err(|_| missing(&handle.row.sandbox_id))?;
            done.await.map_err(|_| missing(&handle.row.sandbox_id))?
        };
        let within = self.settings().command_within * 2;
        let moved = tokio::time::timeout(within, moved)
            .await
            .map_err(|_| SandboxError::TimedOut)?;
        if let Err(SandboxError::TimedOut) = moved {
            // The host takes no deadline of what is ending. If another server ends it, the row says so by now.
            let id = &handle.row.sandbox_id;
            self.catch_up(id).await?;
            match handle.state() {
                SandboxState::Killing => {
                    return Err(SandboxError::BeingKilled {
                        sandbox_id: id.clone(),
                    });
                }
                SandboxState::Dead => return Err(missing(id)),
                _ => {}
            }
        }
        moved
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("settings", self.settings())
            .finish_non_exhaustive()
    }
}

pub(crate) fn missing(id: &SandboxId) -> SandboxError {
    over(id, None)
}

/// It is not there any more, as its row says.
pub(crate) fn over(id: &SandboxId, cause: Option<DeathCause>) -> SandboxError {
    SandboxError::NotFound {
        sandbox_id: id.clone(),
        cause,
    }
}

pub(crate) fn longest(hours: u32) -> Duration {
    Duration::from_secs(u64::from(hours) * 3600)
}

/// The team that owns what the installation itself brings along.
pub(crate) fn default_team(team_id: TeamId) -> TeamRow {
    TeamRow {
        team_id,
        name: "default".to_owned(),
        slug: "default".to_owned(),
        banned: false,
        blocked: false,
        blocked_reason: None,
        max_sandboxes: None,
        max_sandbox_hours: None,
        created_at: clock::wall(),
    }
}
