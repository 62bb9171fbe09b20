//! Builds under way: starting one, running it with its deadline and its log, what became of it, and giving up those that nobody performs.
//!
//! A build that runs here has a task and a token. Others may end it by its row (a newer build of the same tag, the template's deletion, on
//! another server too): the task looks at the row at every beat and then cancels. A row without a beat is of a server that ended.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_types::{BuildId, TeamId, TemplateId, UnixMillis};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::archives::{self, Archives};
use crate::builds::{
    BuildFailure, BuildJob, BuildLogLine, BuildReporter, BuildSource, BuildSpecification,
    BuildStep, Builder, FinishedBuild, ParentBuild, RegistryLogin, StepRules,
};
use crate::clock;
use crate::control::Control;
use crate::logs::LogLevel;
use crate::spec::TemplateReference;
use crate::store::{BuildRow, BuildStatus, StoreError, TeamRow};
use crate::template_store::{LineQuery, StartBuild};

/// How often the row of a build under way is touched, and after how long without it is given up.
const BEAT: Duration = Duration::from_secs(5);
const SILENT: Duration = Duration::from_secs(60);
/// How long a builder may take to give back what a cancelled build has made.
const TIDY_WITHIN: Duration = Duration::from_secs(60);
/// How long lines may take to be written when a build is over.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);
/// Lines of one build that are kept.
const MOST_LINES: usize = 20_000;
/// Lines are written together.
const LINES_AT_ONCE: usize = 256;
const COLLECT: Duration = Duration::from_millis(50);

/// A build as its client wants it started.
#[derive(Debug, Clone)]
pub struct BuildStart {
    pub source: BuildSource,
    pub registry_login: Option<RegistryLogin>,
    pub steps: Vec<BuildStep>,
    pub force: bool,
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    pub rules: StepRules,
}

/// How far a build is.
#[derive(Debug, Clone)]
pub struct BuildView {
    pub build: Arc<BuildRow>,
    /// There when it failed.
    pub failure: Option<BuildFailure>,
}

/// Why nothing was done with a build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("build `{build}` is not there")]
    NotFound { build: String },
    #[error("the build is another team's")]
    Foreign,
    #[error("template `{template_id}` is not there")]
    TemplateNotFound { template_id: String },
    #[error("the build does not wait for its start")]
    NotWaiting,
    #[error("nobody performs builds here")]
    NoBuilder,
    #[error("the server is stopping")]
    Stopping,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The builds that run in this process.
#[derive(Default)]
pub(crate) struct Building {
    tasks: TaskTracker,
    running: Mutex<HashMap<BuildId, CancellationToken>>,
}

impl Building {
    fn begin(&self, build_id: &BuildId) -> CancellationToken {
        let token = CancellationToken::new();
        self.lock().insert(build_id.clone(), token.clone());
        token
    }

    fn over(&self, build_id: &BuildId) {
        self.lock().remove(build_id);
    }

    pub(crate) fn cancel(&self, builds: &[BuildId]) {
        let running = self.lock();
        for token in builds.iter().filter_map(|it| running.get(it)) {
            token.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Hands a waiting build to the builder; it builds when this returns. Builds under way with one of its tags are cancelled.
    ///
    /// # Errors
    /// See [`BuildError`]; the build waits on.
    pub async fn start_build(
        &self,
        team: &TeamRow,
        template_id: &TemplateId,
        build_id: &BuildId,
        start: BuildStart,
    ) -> Result<(), BuildError> {
        let row = self.own_build(team, template_id, build_id)?;
        let builder = self.shared.builder.get().ok_or(BuildError::NoBuilder)?;
        if self.registry().stopping().is_cancelled() {
            return Err(BuildError::Stopping);
        }
        let parent = self.parent(team, &start.source).await?;
        let specification = BuildSpecification {
            source: start.source,
            steps: start.steps,
            force: start.force,
            start_command: start.start_command,
            ready_command: start.ready_command,
            min_free_disk_mib: self
                .store()
                .build_details(build_id)
                .await?
                .min_free_disk_mib,
        };
        let now = clock::wall();
        let started = self
            .store()
            .start_build(build_id, &specification, now)
            .await?;
        let StartBuild::Started { superseded } = started else {
            return Err(BuildError::NotWaiting);
        };
        self.shared.building.cancel(&superseded);
        info!(%template_id, %build_id, steps = specification.steps.len(), "a build was started");
        let parent = match parent {
            Ok(parent) => parent,
            Err(message) => {
                let failure = BuildFailure {
                    step: Some("base".to_owned()),
                    message,
                };
                self.end_build(build_id, Err(failure)).await;
                return Ok(());
            }
        };
        let job = BuildJob {
            build_id: build_id.clone(),
            template_id: template_id.clone(),
            team_id: team.team_id.clone(),
            limits: row.limits,
            rules: start.rules,
            specification,
            registry_login: start.registry_login,
            parent,
            archives: self.archives_of(&team.team_id),
            cancelled: self.shared.building.begin(build_id),
        };
        let (control, builder) = (self.clone(), Arc::clone(builder));
        // The task begins with nothing that could fail, so the row is in somebody's hands from here on.
        self.shared
            .building
            .tasks
            .spawn(async move { control.run_build(&*builder, job).await });
        self.reload_catalog().await?;
        Ok(())
    }

    /// How far a build of the team is.
    ///
    /// # Errors
    /// It is not there, or another team's.
    pub async fn build(
        &self,
        team: &TeamRow,
        template_id: &TemplateId,
        build_id: &BuildId,
    ) -> Result<BuildView, BuildError> {
        let build = self.own_build(team, template_id, build_id)?;
        let failure = match build.status {
            BuildStatus::Failed => self.store().build_details(build_id).await?.failure,
            BuildStatus::Waiting | BuildStatus::Building | BuildStatus::Ready => None,
        };
        Ok(BuildView { build, failure })
    }

    /// Some lines of the log of a build of the team.
    ///
    /// # Errors
    /// It is not there, or another team's.
    pub async fn build_lines(
        &self,
        team: &TeamRow,
        template_id: &TemplateId,
        build_id: &BuildId,
        query: &LineQuery,
    ) -> Result<Vec<BuildLogLine>, BuildError> {
        self.own_build(team, template_id, build_id)?;
        Ok(self.store().build_lines(build_id, query).await?)
    }

    /// Fails every build of a team that waits or is under way; returns how many there were.
    ///
    /// # Errors
    /// The store refused; none was cancelled.
    pub async fn cancel_builds(&self, team_id: &TeamId) -> Result<usize, StoreError> {
        let cancelled = self.store().cancel_builds(team_id, clock::wall()).await?;
        self.shared.building.cancel(&cancelled);
        self.reload_catalog().await?;
        Ok(cancelled.len())
    }

    pub(crate) fn archives_of(&self, team_id: &TeamId) -> Archives {
        let settings = self.settings();
        Archives::new(
            settings.archives.as_deref(),
            team_id,
            settings.max_archive_bytes,
        )
    }

    /// Fails what nobody performs any more. At a start nobody performs anything, unless the records are shared.
    pub(crate) async fn give_up_builds(&self, at_start: bool) -> Result<(), StoreError> {
        let now = clock::wall();
        let ago = |age: Duration| UnixMillis(now.0.saturating_sub(clock::millis(age)));
        let silent_since = if at_start && !self.store().shared() {
            UnixMillis(u64::MAX)
        } else {
            ago(SILENT)
        };
        let waiting_since = ago(self.settings().start_build_within);
        let given_up = self
            .store()
            .abandon_builds(waiting_since, silent_since, now)
            .await?;
        if !given_up.is_empty() {
            warn!(
                builds = given_up.len(),
                "gave up builds that nobody performs"
            );
            self.shared.building.cancel(&given_up);
            self.reload_catalog().await?;
        }
        Ok(())
    }

    /// Deletes archives that were uploaded long ago.
    pub(crate) async fn sweep_archives(&self) {
        let settings = self.settings();
        let Some(directory): Option<&PathBuf> = settings.archives.as_ref() else {
            return;
        };
        match archives::sweep(directory, settings.keep_archives).await {
            Ok(0) => {}
            Ok(count) => info!(count, "deleted old archives"),
            Err(error) => warn!(%error, "failed to look for old archives"),
        }
    }

    /// Cancels what runs here and waits until it has ended, at most so long.
    pub(crate) async fn stop_builds(&self, within: Duration) {
        let running: Vec<_> = self.shared.building.lock().keys().cloned().collect();
        self.shared.building.cancel(&running);
        self.shared.building.tasks.close();
        if tokio::time::timeout(within, self.shared.building.tasks.wait())
            .await
            .is_err()
        {
            warn!("some builds did not stop in time");
        }
    }

    fn own_build(
        &self,
        team: &TeamRow,
        template_id: &TemplateId,
        build_id: &BuildId,
    ) -> Result<Arc<BuildRow>, BuildError> {
        let catalog = self.catalog();
        let missing = || BuildError::NotFound {
            build: build_id.to_string(),
        };
        let build = catalog.build(build_id).ok_or_else(missing)?;
        let template = catalog.template_of(&build).ok_or_else(missing)?;
        if template.team_id != team.team_id {
            return Err(BuildError::Foreign);
        }
        if build.template_id != *template_id {
            return Err(missing());
        }
        Ok(build)
    }

    /// What the source of a build means, or what its client is told when it means nothing.
    async fn parent(
        &self,
        team: &TeamRow,
        source: &BuildSource,
    ) -> Result<Result<Option<ParentBuild>, String>, StoreError> {
        let text = match source {
            BuildSource::Image(_) => return Ok(Ok(None)),
            BuildSource::Template(text) => text,
        };
        let reference: TemplateReference = match text.parse() {
            Ok(reference) => reference,
            Err(_) => return Ok(Err(format!("template '{text}' not found"))),
        };
        let resolved = match self.resolve(team, &reference).await {
            Ok(resolved) => resolved,
            Err(crate::catalog::ResolveError::NoTag { reference, tag }) => {
                return Ok(Err(format!(
                    "tag '{tag}' does not exist for template '{reference}'"
                )));
            }
            Err(_) => return Ok(Err(format!("template '{text}' not found"))),
        };
        let details = self.store().build_details(&resolved.build.build_id).await?;
        Ok(Ok(Some(ParentBuild {
            row: (*resolved.build).clone(),
            finished: details.finished,
        })))
    }

    /// Performs a build to its end and writes what came out.
    async fn run_build(&self, builder: &dyn Builder, job: BuildJob) {
        let build_id = job.build_id.clone();
        let cancelled = job.cancelled.clone();
        let began = tokio::time::Instant::now();
        let (reporter, lines) = BuildReporter::channel();
        let text = format!("Building template {}/{build_id}", job.template_id);
        reporter.log(LogLevel::Info, None, text).await;
        let over = CancellationToken::new();
        let mut written = std::pin::pin!(self.write_lines(&build_id, lines, &over));
        let performed = async {
            let told = reporter.clone();
            let outcome = tokio::select! {
                outcome = self.perform(builder, job, reporter) => outcome,
                () = self.beat(&build_id, &cancelled) => Err(failure("build was cancelled")),
            };
            let (level, text) = match &outcome {
                Ok(_) => {
                    let seconds = began.elapsed().as_secs();
                    (LogLevel::Info, format!("Build finished, took {seconds}s"))
                }
                Err(why) => (LogLevel::Error, format!("Build failed: {}", why.message)),
            };
            told.log(level, None, text).await;
            outcome
        };
        let mut performed = std::pin::pin!(performed);
        let outcome = tokio::select! {
            outcome = &mut performed => {
                // The last lines are there before the build is over, so that nobody misses them.
                over.cancel();
                if tokio::time::timeout(FLUSH_WITHIN, &mut written).await.is_err() {
                    warn!(%build_id, "the last lines of a build were not written in time");
                }
                outcome
            }
            // The reporter lives as long as the build.
            () = &mut written => performed.await,
        };
        self.end_build(&build_id, outcome).await;
        self.shared.building.over(&build_id);
    }

    /// The builder's outcome, or why it was not waited for.
    async fn perform(
        &self,
        builder: &dyn Builder,
        job: BuildJob,
        reporter: BuildReporter,
    ) -> Result<FinishedBuild, BuildFailure> {
        let cancelled = job.cancelled.clone();
        let mut building = std::pin::pin!(builder.build(job, reporter));
        let why = tokio::select! {
            outcome = &mut building => return outcome,
            () = cancelled.cancelled() => failure("build was cancelled"),
            () = tokio::time::sleep(self.settings().build_within) => {
                cancelled.cancel();
                failure("build timed out")
            }
        };
        if tokio::time::timeout(TIDY_WITHIN, building).await.is_err() {
            warn!("a builder did not tidy up in time");
        }
        Err(why)
    }

    /// Touches the row, and cancels when it is somebody else's decision that the build is over. Ends with the build.
    async fn beat(&self, build_id: &BuildId, cancelled: &CancellationToken) {
        loop {
            tokio::time::sleep(BEAT).await;
            match self.store().touch_build(build_id, clock::wall()).await {
                Ok(true) => {}
                Ok(false) => {
                    cancelled.cancel();
                    // `perform` sees it, gives the builder its time, and answers.
                    std::future::pending::<()>().await;
                }
                Err(error) => {
                    warn!(%build_id, error = %crate::chain(&error), "failed to touch a build")
                }
            }
        }
    }

    /// Writes the lines of a build, up to those that were told when it was over: whoever holds a reporter then has nothing to add.
    async fn write_lines(
        &self,
        build_id: &BuildId,
        mut lines: mpsc::Receiver<BuildLogLine>,
        over: &CancellationToken,
    ) {
        let mut room = MOST_LINES;
        let mut full = false;
        let mut batch = Vec::new();
        let mut next = tokio::time::Instant::now();
        loop {
            let told = tokio::select! {
                told = lines.recv_many(&mut batch, LINES_AT_ONCE) => told,
                () = over.cancelled(), if !lines.is_closed() => {
                    lines.close();
                    continue;
                }
            };
            if told == 0 {
                break;
            }
            // What comes within a moment goes together; neither the end nor more than goes at once is waited for.
            while batch.len() < LINES_AT_ONCE {
                let room = LINES_AT_ONCE - batch.len();
                let more = lines.recv_many(&mut batch, room);
                match tokio::time::timeout_at(next, more).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            next = tokio::time::Instant::now() + COLLECT;
            let beyond = batch.split_off(room.min(batch.len()));
            room -= batch.len();
            if !beyond.is_empty() && !full {
                full = true;
                batch.push(BuildLogLine {
                    at: clock::wall(),
                    level: LogLevel::Warn,
                    step: None,
                    message: format!("more than {MOST_LINES} lines, the rest is not kept"),
                });
            }
            // What belongs to no step is little, and says how it ended.
            batch.extend(beyond.into_iter().filter(|line| line.step.is_none()));
            if let Err(error) = self.store().add_build_lines(build_id, &batch).await {
                warn!(%build_id, error = %crate::chain(&error), "lines of a build are lost");
            }
            batch.clear();
        }
    }

    async fn end_build(&self, build_id: &BuildId, outcome: Result<FinishedBuild, BuildFailure>) {
        const AGAIN: Duration = Duration::from_secs(1);
        // A store that is away for long gives the build up itself, for want of beats.
        for _ in 0..30 {
            let ended = self
                .store()
                .end_build(build_id, outcome.as_ref(), clock::wall())
                .await;
            match ended {
                Ok(true) => {
                    info!(%build_id, ready = outcome.is_ok(), "a build ended");
                    break;
                }
                Ok(false) => break,
                Err(error) => {
                    warn!(%build_id, error = %crate::chain(&error), "failed to write the end of a build");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        if let Err(error) = self.reload_catalog().await {
            warn!(error = %crate::chain(&error), "failed to read the templates after a build");
        }
    }
}

fn failure(message: &str) -> BuildFailure {
    BuildFailure {
        step: None,
        message: message.to_owned(),
    }
}
