//! Agreement with the hosts: at the start of the server, and from time to time, since an event may be lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use soulbox_types::{Epoch, SandboxId, SandboxState, TemplateId};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::auth;
use crate::clock;
use crate::control::{Control, default_team};
use crate::error::RecoverError;
use crate::hosts::{HostFailure, HostSandbox, HostSnapshot, HostTemplate};
use crate::lifecycle::Event;
use crate::owner::{self, Request};
use crate::ownership::pause_of;
use crate::policy::Policy;
use crate::random;
use crate::reconcile::{self, Found, Listed};
use crate::settings::Credentials;
use crate::store::{
    AliasRow, AssignmentRow, BuildRow, BuildStatus, KeyKind, Pause, SandboxRow, TeamRow,
    TemplateRow,
};

/// How often the store may tidy up. Between two of them its log grows by some 10 KB for each create and kill.
const ROUND: Duration = Duration::from_secs(5);
/// Lists are compared and counters written in every so many rounds.
const COMPARE_ROUNDS: u64 = 4;
/// Rows are pruned in every so many rounds, first in the first.
const PRUNE_ROUNDS: u64 = 360;
/// Rows without an owner are looked for in every so many rounds.
const ABANDONED_ROUNDS: u64 = 12;

/// What was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Run on as before.
    pub adopted: usize,
    /// Had a row, but no host knows them.
    pub lost: usize,
    /// Had no living row, or were not finished; being killed.
    pub orphans: usize,
    pub templates: usize,
}

impl Control {
    /// Takes up the records of the predecessor: default team, credentials, templates, running sandboxes.
    ///
    /// # Errors
    /// The host or the store did not answer, or a credential is malformed.
    pub async fn recover(&self, credentials: &Credentials) -> Result<Recovered, RecoverError> {
        let team = self
            .store()
            .ensure_team(&default_team(random::team_id()?))
            .await?;
        let secrets = [
            (KeyKind::ApiKey, &credentials.api_key, "API key"),
            (
                KeyKind::AccessToken,
                &credentials.access_token,
                "access token",
            ),
        ];
        for (kind, secret, what) in secrets {
            let row = auth::key_row(kind, secret, "credentials.json", &team.team_id)?
                .ok_or(RecoverError::Credential(what))?;
            self.store().replace_key(kind, &row).await?;
        }
        self.shared.keyring.forget();
        self.give_up_builds(true).await?;
        self.refresh_templates(Duration::ZERO).await?;
        let mut found = Recovered {
            templates: self.catalog().all_of(&team).len(),
            ..Recovered::default()
        };
        let listed = self.listed().await?;
        let mut listed: HashMap<SandboxId, HostSandbox> = listed
            .into_iter()
            .map(|sandbox| (sandbox.sandbox_id.clone(), sandbox))
            .collect();
        let pauses = self.pauses_on_host().await?;
        for row in self.store().live_sandboxes(None).await? {
            if row.progress.state == SandboxState::Paused {
                continue;
            }
            let on_host = listed.remove(&row.sandbox_id);
            if self.store().shared()
                && (on_host.is_none() || row.progress.state != SandboxState::Running)
            {
                // It may be in another server's hands: what is left over shows with time.
                self.note(row).await;
                continue;
            }
            let differs = on_host
                .as_ref()
                .filter(|host| host.egress != row.network.egress())
                .map(|host| host.sandbox_id.clone());
            let pause = pauses.get(&row.sandbox_id).copied();
            self.reconcile(row, on_host.as_ref(), pause, &mut found);
            if let Some(id) = differs {
                self.repeat_egress(&id).await;
            }
        }
        for orphan in listed.into_values() {
            found.orphans += 1;
            self.kill_orphan(&orphan.sandbox_id, orphan.epoch).await;
        }
        info!(
            adopted = found.adopted,
            lost = found.lost,
            orphans = found.orphans,
            templates = found.templates,
            "took up the records"
        );
        Ok(found)
    }

    /// Keeps house and samples what sandboxes use, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        tokio::join!(
            self.keep_house(&shutdown),
            self.measure(&shutdown),
            self.collect_logs(&shutdown),
            self.follow(&shutdown)
        );
    }

    /// Compares with the hosts' lists, writes counters, prunes, lets the store tidy up.
    async fn keep_house(&self, shutdown: &CancellationToken) {
        let mut round: u64 = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            round += 1;
            if let Err(failure) = self.store().maintain().await {
                warn!(error = %crate::chain(&failure), "the store failed to tidy up");
            }
            if round.is_multiple_of(COMPARE_ROUNDS) {
                self.compare(round.is_multiple_of(ABANDONED_ROUNDS)).await;
                self.flush_counters().await;
                if let Err(failure) = self.refresh_templates(Duration::ZERO).await {
                    warn!(error = %crate::chain(&failure), "failed to read the host's templates");
                }
                if let Err(failure) = self.give_up_builds(false).await {
                    warn!(error = %crate::chain(&failure), "failed to look for builds that nobody performs");
                }
            }
            if round % PRUNE_ROUNDS == 1 {
                self.prune().await;
                self.sweep_archives().await;
                self.retire_builds().await;
            }
        }
    }

    /// Reads the hosts' templates into the store and the catalog, unless that was done within `unless_within`; says whether.
    pub(crate) async fn refresh_templates(
        &self,
        unless_within: Duration,
    ) -> Result<bool, RecoverError> {
        let mut last = self.shared.refreshed.lock().await;
        if last.is_some_and(|at| at.elapsed() < unless_within) {
            return Ok(false);
        }
        *last = Some(tokio::time::Instant::now());
        let within = self.settings().command_within;
        let templates = tokio::time::timeout(within, self.hosts().templates())
            .await
            .unwrap_or_else(|_| Err(HostFailure::Unreachable("no answer in time".to_owned())))
            .map_err(|source| RecoverError::Host {
                what: "templates",
                source,
            })?;
        let team = self
            .store()
            .ensure_team(&default_team(random::team_id()?))
            .await?;
        let known = self.catalog();
        *self
            .shared
            .installed
            .write()
            .unwrap_or_else(PoisonError::into_inner) =
            templates.iter().map(|it| it.template_id.clone()).collect();
        for template in &templates {
            // A build that is known keeps the tags that it has: `default` may be an older one by its team's wish.
            if known.build(&template.build_id).is_none() {
                self.register(&team, template).await?;
            }
        }
        self.reload_catalog().await?;
        Ok(true)
    }

    pub(crate) async fn flush_counters(&self) {
        let spawns: Vec<_> = self
            .shared
            .spawns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain()
            .map(|(_, spawns)| spawns)
            .collect();
        if !spawns.is_empty()
            && let Err(failure) = self.store().add_spawns(&spawns).await
        {
            warn!(error = %crate::chain(&failure), "failed to count spawns of templates");
        }
        let used = self.shared.keyring.take_used();
        if !used.is_empty()
            && let Err(failure) = self.store().touch_keys(&used).await
        {
            warn!(error = %crate::chain(&failure), "failed to note the use of keys");
        }
    }

    /// The templates that come with the host belong to the default team, have a global name and are public.
    async fn register(&self, team: &TeamRow, template: &HostTemplate) -> Result<(), RecoverError> {
        let row = TemplateRow {
            template_id: template.template_id.clone(),
            team_id: team.team_id.clone(),
            public: true,
            created_at: template.built_at,
            updated_at: template.built_at,
            spawn_count: 0,
            last_spawned_at: None,
        };
        let build = BuildRow {
            build_id: template.build_id.clone(),
            template_id: template.template_id.clone(),
            status: BuildStatus::Ready,
            limits: template.limits,
            default_user: template.default_user.clone(),
            default_workdir: template.default_workdir.clone(),
            envd_version: self.settings().envd_version.clone(),
            policy: Policy::default(),
            created_at: template.built_at,
            updated_at: template.built_at,
            finished_at: Some(template.built_at),
        };
        let alias = AliasRow {
            namespace: String::new(),
            alias: template.name.clone(),
            template_id: template.template_id.clone(),
        };
        let assignment = AssignmentRow {
            assignment_id: random::uuid()?,
            template_id: template.template_id.clone(),
            build_id: template.build_id.clone(),
            tag: "default".to_owned(),
            assigned_at: clock::now(),
        };
        self.store()
            .register_template(&row, &build, &[alias], &assignment)
            .await?;
        info!(template_id = %row.template_id, build_id = %build.build_id, name = template.name, "registered a template");
        Ok(())
    }

    fn reconcile(
        &self,
        row: SandboxRow,
        on_host: Option<&HostSandbox>,
        pause: Option<Pause>,
        found: &mut Recovered,
    ) {
        let listed = on_host.map(listed);
        let (what, (machine, effects)) =
            reconcile::take_up(&row.progress, listed.as_ref(), pause, clock::now());
        match what {
            Found::Adopted => found.adopted += 1,
            Found::Lost => found.lost += 1,
            Found::Unfinished => found.orphans += 1,
            Found::AtRest => {}
        }
        self.own(Arc::new(row), machine, effects, None);
    }

    async fn listed(&self) -> Result<Vec<HostSandbox>, RecoverError> {
        let within = self.settings().command_within;
        tokio::time::timeout(within, self.hosts().list())
            .await
            .unwrap_or_else(|_| Err(HostFailure::Unreachable("no answer in time".to_owned())))
            .map_err(|source| RecoverError::Host {
                what: "sandboxes",
                source,
            })
    }

    /// The latest pause of each sandbox that the host has a snapshot of.
    async fn pauses_on_host(&self) -> Result<HashMap<SandboxId, Pause>, RecoverError> {
        let within = self.settings().command_within;
        let snapshots = tokio::time::timeout(within, self.hosts().snapshots())
            .await
            .unwrap_or_else(|_| Err(HostFailure::Unreachable("no answer in time".to_owned())));
        let snapshots = match snapshots {
            // It cannot make any, so it has none.
            Err(HostFailure::Unsupported(_)) => Vec::new(),
            snapshots => snapshots.map_err(|source| RecoverError::Host {
                what: "snapshots",
                source,
            })?,
        };
        let mut latest = HashMap::<SandboxId, Pause>::new();
        for snapshot in snapshots {
            if let Some(pause) = pause_of(&snapshot) {
                let known = latest.entry(snapshot.sandbox_id).or_insert(pause);
                if pause.epoch > known.epoch {
                    *known = pause;
                }
            }
        }
        Ok(latest)
    }

    /// Deletes the snapshots of pauses that nobody will ever want.
    async fn drop_needless_snapshots(&self) {
        let within = self.settings().command_within;
        let Ok(Ok(snapshots)) = tokio::time::timeout(within, self.hosts().snapshots()).await else {
            return;
        };
        for snapshot in snapshots {
            let Some(pause) = pause_of(&snapshot) else {
                self.drop_if_nobodys(&snapshot).await;
                continue;
            };
            let row = match self.store().sandbox(&snapshot.sandbox_id).await {
                Ok(row) => row,
                Err(failure) => {
                    warn!(error = %crate::chain(&failure), "failed to look up the sandbox of a snapshot");
                    return;
                }
            };
            if reconcile::is_needless(row.as_ref().map(|row| &row.progress), &pause) {
                let id = &snapshot.snapshot_id;
                info!(snapshot_id = id, "deleting a snapshot that nobody needs");
                let deleted = tokio::time::timeout(within, self.hosts().delete_snapshot(id)).await;
                if let Ok(Err(failure)) = deleted {
                    warn!(snapshot_id = id, error = %failure, "failed to delete a snapshot");
                }
            }
        }
    }

    /// Deletes a snapshot that is neither a pause nor kept, and not just being used for forks.
    async fn drop_if_nobodys(&self, snapshot: &HostSnapshot) {
        const FORKED_WITHIN_MILLIS: u64 = 600_000;
        let age = clock::now().millis_since(snapshot.created_at);
        let is_installed = |id: &TemplateId| self.is_installed(id);
        let kept = || self.catalog().keeps(&snapshot.snapshot_id, is_installed);
        if age < FORKED_WITHIN_MILLIS || kept() {
            return;
        }
        info!(
            snapshot_id = snapshot.snapshot_id,
            "deleting a snapshot that nobody kept"
        );
        let within = self.settings().command_within;
        let deleted = self.hosts().delete_snapshot(&snapshot.snapshot_id);
        if let Ok(Err(failure)) = tokio::time::timeout(within, deleted).await {
            warn!(snapshot_id = snapshot.snapshot_id, error = %failure, "failed to delete a snapshot");
        }
    }

    /// What happened to a sandbox that its host does not know any more.
    async fn what_became_of(&self, id: &SandboxId, last: Option<Pause>) -> Option<Event> {
        let within = self.settings().command_within;
        let seen = tokio::time::timeout(within, owner::look(self.hosts(), id, last)).await;
        match seen {
            Ok(Ok(Event::Looked { alive: true, .. })) => None,
            Ok(Ok(seen @ Event::Looked { pause: Some(_), .. })) => Some(seen),
            Ok(Ok(_) | Err(HostFailure::Unsupported(_))) => Some(Event::Lost),
            // The next comparison tries again.
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Compares the host's list with the owners, and the rows as well if that is asked for.
    async fn compare(&self, rows: bool) {
        let asked_at = clock::now();
        let listed = match self.listed().await {
            Ok(listed) => listed,
            Err(failure) => {
                warn!(error = %crate::chain(&failure), "failed to compare with the host");
                return;
            }
        };
        if let Err(failure) = self.catch_up_with_all(None).await {
            warn!(error = %crate::chain(&failure), "failed to read the rows of other servers");
            return;
        }
        let on_host: HashSet<_> = listed.iter().map(|it| &it.sandbox_id).collect();
        for handle in self.registry().all() {
            let progress = *handle.progress.borrow();
            let known = on_host.contains(&handle.row.sandbox_id);
            if !known && reconcile::is_lost(&progress, asked_at) {
                let id = &handle.row.sandbox_id;
                if let Some(event) = self.what_became_of(id, progress.pause).await {
                    warn!(sandbox_id = %id, ?event, "the host does not know the sandbox any more");
                    // An owner that has gone needs no event.
                    let epoch = progress.epoch;
                    drop(handle.requests.send(Request::Ended { epoch, event }).await);
                }
            }
        }
        if rows {
            self.take_up_abandoned(&listed).await;
            self.drop_needless_snapshots().await;
        }
        for sandbox in listed {
            if let Some(handle) = self.registry().get(&sandbox.sandbox_id) {
                if sandbox.egress != handle.row.network.egress() {
                    self.repeat_egress(&sandbox.sandbox_id).await;
                }
            } else {
                match self.store().sandbox(&sandbox.sandbox_id).await {
                    Ok(row) => {
                        if reconcile::is_orphan(row.as_ref().map(|row| &row.progress)) {
                            self.kill_orphan(&sandbox.sandbox_id, sandbox.epoch).await;
                        }
                    }
                    Err(failure) => {
                        warn!(error = %crate::chain(&failure), "failed to look up a sandbox of the host");
                    }
                }
            }
        }
    }

    /// Owns the rows that nobody does.
    async fn take_up_abandoned(&self, on_host: &[HostSandbox]) {
        let pauses = match self.pauses_on_host().await {
            Ok(pauses) => pauses,
            Err(failure) => {
                warn!(error = %crate::chain(&failure), "failed to look for rows without an owner");
                return;
            }
        };
        // Last, so that no owner has left since that a row tells of.
        let rows = match self.store().live_sandboxes(None).await {
            Ok(rows) => rows,
            Err(failure) => {
                warn!(error = %crate::chain(&failure), "failed to look for rows without an owner");
                return;
            }
        };
        let now = clock::now();
        let start_within = clock::millis(self.settings().start_within);
        for row in rows {
            let abandoned = reconcile::is_abandoned(
                &row.progress,
                row.created_at,
                start_within,
                self.store().shared(),
                now,
            );
            if abandoned && self.registry().get(&row.sandbox_id).is_none() {
                warn!(sandbox_id = %row.sandbox_id, "taking up a row that nobody owns");
                let host = on_host.iter().find(|it| it.sandbox_id == row.sandbox_id);
                let pause = pauses.get(&row.sandbox_id).copied();
                self.reconcile(row, host, pause, &mut Recovered::default());
            }
        }
    }

    /// `epoch` is that of the list in which it was: whatever was decided since makes it somebody's, and the kill is refused.
    async fn kill_orphan(&self, id: &SandboxId, epoch: Epoch) {
        warn!(sandbox_id = %id, "killing a sandbox that nobody owns");
        let within = self.settings().command_within;
        match tokio::time::timeout(within, self.hosts().kill(id, epoch)).await {
            Ok(Ok(()) | Err(HostFailure::NotFound | HostFailure::StaleEpoch)) => {}
            // The next comparison tries again.
            Ok(Err(failure)) => {
                warn!(sandbox_id = %id, error = %failure, "failed to kill an orphan")
            }
            Err(_) => warn!(sandbox_id = %id, "failed to kill an orphan in time"),
        }
    }

    async fn prune(&self) {
        let keep = clock::millis(self.settings().keep_dead);
        let before = soulbox_types::UnixMillis(clock::now().0.saturating_sub(keep));
        match self.store().prune(before).await {
            Ok(0) => {}
            Ok(count) => info!(count, "pruned rows of dead sandboxes"),
            Err(failure) => warn!(error = %crate::chain(&failure), "failed to prune"),
        }
        if let Err(failure) = self.trim_history().await {
            warn!(error = %crate::chain(&failure), "failed to forget old lines and samples");
        }
    }
}

fn listed(sandbox: &HostSandbox) -> Listed {
    Listed {
        epoch: sandbox.epoch,
        started_at: sandbox.started_at,
        deadline: sandbox.deadline,
    }
}
