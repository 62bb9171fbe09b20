//! A build from its first log line to its manifest.

mod ahead;
mod contents;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{
    BuildFailure, BuildJob, BuildReporter, BuildSource, BuildStep, Builder, Contents,
    FinishedBuild, LogLevel, StepRules,
};
use soulbox_types::{BuildId, Limits, MiB};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::base::{self, ImagePolicy};
use crate::bench::{Bench, BenchError, Benches, Command, Exit, Guest, KnownBuild, Output};
use crate::context::Context;
use crate::key::Key;
use crate::lines::{Lines, Tail};
use crate::places::{Place as Permit, Places};
use crate::ready::{Pace, until_ready};
use crate::script;

pub use ahead::AheadError;

/// Of one step.
const STEP_WITHIN: Duration = Duration::from_secs(3600);
/// Of a ready command, all its tries together.
const READY_WITHIN: Duration = Duration::from_secs(600);
/// How long a start command without a ready command is watched.
const SETTLE: Duration = Duration::from_secs(20);
const READY_PACE: Pace = Pace {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(2),
};
/// A wait for other builds is not told of when it is shorter.
const UNTOLD: Duration = Duration::from_secs(3);
/// Steps of one build; each is a layer, and a root has 400 at most.
const MOST_STEPS: usize = 300;
/// The disk of a sandbox is no larger for the asking.
const MOST_DISK: MiB = MiB(25_000);

/// Performs builds on benches of a host.
pub struct Steps {
    benches: Arc<dyn Benches>,
    policy: ImagePolicy,
    /// Of the daemon in sandboxes of finished builds.
    envd_version: String,
    /// Of sandboxes of builds.
    places: Arc<Places>,
    /// Layers that are being made, so that builds that need the same one wait for it.
    making: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

/// One build.
struct Build<'a> {
    steps: &'a Steps,
    job: &'a BuildJob,
    reporter: &'a BuildReporter,
    limits: Limits,
    context: Context,
    layers: Vec<String>,
    /// How many of them the build has begun with.
    below: usize,
    key: Key,
    /// What comes is made anew.
    forced: bool,
    start_command: Option<String>,
    ready_command: Option<String>,
}

/// A step that is under way.
struct Place<'a> {
    /// `base`, `finalize`, or its number.
    step: &'a str,
    /// Begins its log lines.
    prefix: String,
}

impl Steps {
    /// At most `sandboxes` of one team's builds run at once, and `kept` more for teams of which none runs.
    #[must_use]
    pub fn new(
        benches: Arc<dyn Benches>,
        policy: ImagePolicy,
        envd_version: &str,
        sandboxes: usize,
        kept: usize,
    ) -> Self {
        Self {
            benches,
            policy,
            envd_version: envd_version.to_owned(),
            places: Places::new(sandboxes + kept, kept),
            making: Mutex::default(),
        }
    }

    /// Who holds it makes the layer, or finds that it was made.
    fn making(&self, layer: &str) -> Arc<AsyncMutex<()>> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = making.get(layer).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::new(()));
        making.insert(layer.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// The layer that a step with that key has made, for a build.
    async fn cached(&self, build_id: &BuildId, key: &Key) -> Result<Option<String>, BuildFailure> {
        let found = self.benches.find(build_id, key.layer()).await;
        found.map_err(|error| internal(&error))
    }
}

#[async_trait]
impl Builder for Steps {
    async fn build(
        &self,
        job: BuildJob,
        reporter: BuildReporter,
    ) -> Result<FinishedBuild, BuildFailure> {
        let performed = async {
            let mut build = Build::begin(self, &job, &reporter).await?;
            let count = job.specification.steps.len();
            if count > MOST_STEPS {
                let message =
                    format!("a build has {MOST_STEPS} steps at most, this one has {count}");
                return Err(failure("base", message));
            }
            for (index, step) in job.specification.steps.iter().enumerate() {
                build.step(index + 1, count, step).await?;
            }
            build.finish().await
        };
        // What was begun ends when it is dropped.
        tokio::select! {
            outcome = performed => outcome,
            () = job.cancelled.cancelled() => Err(BuildFailure {
                step: None,
                message: "build was cancelled".to_owned(),
            }),
        }
    }

    async fn contents(&self, build_id: &BuildId) -> Result<Option<Contents>, String> {
        self.list_contents(build_id).await
    }

    async fn forget(&self, builds: &[BuildId]) -> Vec<BuildId> {
        let mut forgotten = Vec::new();
        for build_id in builds {
            match self.benches.forget(build_id).await {
                Ok(()) => forgotten.push(build_id.clone()),
                Err(error) => tracing::warn!(%build_id, %error, "failed to forget a build"),
            }
        }
        forgotten
    }
}

impl<'a> Build<'a> {
    async fn begin(
        steps: &'a Steps,
        job: &'a BuildJob,
        reporter: &'a BuildReporter,
    ) -> Result<Self, BuildFailure> {
        let specification = &job.specification;
        let (base, from, warning, is_image) = match &specification.source {
            BuildSource::Image(image) => {
                let templates = steps.benches.templates().await;
                let templates = templates.map_err(|error| internal(&error))?;
                let found = base::find(image, &templates, steps.policy)
                    .map_err(|message| failure("base", message))?;
                let mut base = found.build.clone();
                let env = found.env.iter();
                base.env
                    .extend(env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
                (base, image.clone(), found.warning, true)
            }
            BuildSource::Template(name) => {
                let base = parent(steps, job).await?;
                (base, format!("TEMPLATE {name}"), None, false)
            }
        };
        let present = steps.benches.present(&job.build_id, &base.layers).await;
        if present.map_err(|error| internal(&error))?.len() < base.layers.len() {
            return Err(no_base());
        }
        // Of an image only the files and its environment count; of a template all but the user.
        let user = match job.rules {
            StepRules::V2_1 => "user".to_owned(),
            StepRules::V2_0 if is_image => "root".to_owned(),
            StepRules::V2_0 => base.default_user.clone(),
        };
        let context = Context {
            user,
            workdir: (!is_image).then(|| base.default_workdir.clone()),
            env: base.env.clone(),
        };
        let key = Key::base(&job.team_id, &base.layers, &context.text());
        if let Some(warning) = warning {
            reporter.log(LogLevel::Warn, Some("base"), warning).await;
        }
        let line = format!("CACHED [base] FROM {from} [{}]", key.short());
        reporter.log(LogLevel::Info, Some("base"), line).await;
        if job.rules == StepRules::V2_1 {
            let line = format!("CACHED [base] DEFAULT USER user [{}]", key.short());
            reporter.log(LogLevel::Info, Some("base"), line).await;
        }
        let wanted = specification
            .min_free_disk_mib
            .map_or(0, |it| it.min(MOST_DISK.0));
        let limits = Limits {
            disk: MiB(job.limits.disk.0.max(wanted)),
            ..job.limits
        };
        let inherited = |own: &Option<String>, from: &Option<String>| {
            own.clone().or_else(|| from.clone().filter(|_| !is_image))
        };
        Ok(Self {
            start_command: inherited(&specification.start_command, &base.start_command),
            ready_command: match specification.start_command {
                // A new start command has nothing to do with the old ready command.
                Some(_) => specification.ready_command.clone(),
                None => inherited(&specification.ready_command, &base.ready_command),
            },
            steps,
            job,
            reporter,
            limits,
            context,
            below: base.layers.len(),
            layers: base.layers,
            key,
            forced: specification.force,
        })
    }

    async fn step(
        &mut self,
        number: usize,
        count: usize,
        step: &BuildStep,
    ) -> Result<(), BuildFailure> {
        let name = number.to_string();
        let place = Place {
            step: &name,
            prefix: format!("[builder {number}/{count}]"),
        };
        if step.force && !self.forced {
            self.forced = true;
        }
        let files = step.files_hash.as_ref().map(|hash| hash.as_str());
        self.key = self.key.step(&step.kind, &step.args, files);
        let text = format!("{} {}", step.kind, step.args.join(" "));
        match (step.kind.as_str(), step.args.as_slice()) {
            ("ENV" | "ARG", pairs) => {
                if pairs.is_empty() || pairs.len() % 2 != 0 {
                    let message = format!("{} needs names and values in pairs", step.kind);
                    return Err(failure(place.step, message));
                }
                self.tell(&place, &text, false).await;
                self.environment(&place, pairs).await
            }
            ("RUN", [command, user @ ..]) if user.len() <= 1 => {
                let user = user.first().filter(|it| !it.is_empty());
                let command = Command {
                    text: command.clone(),
                    user: user.unwrap_or(&self.context.user).clone(),
                    workdir: self.context.workdir.clone(),
                    env: self.context.run_env(),
                    within: STEP_WITHIN,
                };
                let what = format!("failed to run command '{}'", shown(&command.text));
                self.layer(&place, &text, &command, None, &what).await
            }
            ("WORKDIR", [path]) if !path.is_empty() => {
                let path = self.context.workdir_of(path);
                let command = as_root(script::workdir(&path, &self.context.user));
                let what = format!("failed to make the folder '{path}'");
                self.layer(&place, &text, &command, None, &what).await?;
                self.context.workdir = Some(path);
                Ok(())
            }
            ("USER", [user, more @ ..]) if more.len() <= 1 => {
                // Groups are the user's own, as everywhere in the builder's protocol.
                let user = user.split(':').next().unwrap_or(user);
                if user.is_empty() {
                    return Err(failure(place.step, "USER needs a name".to_owned()));
                }
                let privileged = more.first().is_some_and(|it| it == "true");
                let command = as_root(script::user(user, privileged));
                let what = format!("failed to make the user '{user}'");
                self.layer(&place, &text, &command, None, &what).await?;
                self.context.user = user.to_owned();
                Ok(())
            }
            ("COPY" | "ADD", [source, destination, more @ ..]) if more.len() <= 2 => {
                self.copy(&place, &text, step, source, destination, more)
                    .await
            }
            ("RUN" | "WORKDIR" | "USER" | "COPY" | "ADD", args) => {
                let message = format!("{} does not take {} arguments", step.kind, args.len());
                Err(failure(place.step, message))
            }
            (kind, _) => {
                let message = format!("command type {kind} is not implemented");
                Err(failure(place.step, message))
            }
        }
    }

    async fn environment(
        &mut self,
        place: &Place<'_>,
        pairs: &[String],
    ) -> Result<(), BuildFailure> {
        let mut values: Vec<String> = pairs.iter().skip(1).step_by(2).cloned().collect();
        let names = pairs.iter().step_by(2);
        for name in names.clone() {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("'{name}' is no name of a variable");
                return Err(failure(place.step, message));
            }
        }
        if values.iter().any(|value| value.contains('$')) {
            let mut command = as_root(script::expand(&values));
            // As the author has set them: what a RUN adds to his PATH is no part of it, and this shell starts no program.
            command.env = self.context.env.clone();
            let bench = self.bench(place).await?;
            let mut printed = Vec::new();
            let exit = collect(bench.guest(), &command, &mut printed).await;
            bench.end().await;
            match exit {
                Ok(exit) if exit.code == 0 => {}
                Ok(exit) => {
                    let message = format!("failed to expand variables: {}", exit.status);
                    return Err(failure(place.step, message));
                }
                Err(error) => return Err(refused(place, "failed to expand variables", &error)),
            }
            let mut expanded: Vec<_> = printed.split(|byte| *byte == 0).collect();
            expanded.pop();
            if expanded.len() != values.len() {
                let message =
                    "failed to expand variables: a profile of root's writes to its output";
                return Err(failure(place.step, message.to_owned()));
            }
            values = expanded
                .into_iter()
                .map(|value| String::from_utf8_lossy(value).into_owned())
                .collect();
        }
        self.context.env.extend(names.cloned().zip(values));
        Ok(())
    }

    async fn copy(
        &mut self,
        place: &Place<'_>,
        text: &str,
        step: &BuildStep,
        source: &str,
        destination: &str,
        more: &[String],
    ) -> Result<(), BuildFailure> {
        let what = format!("failed to copy '{source}' to '{destination}'");
        let Some(hash) = &step.files_hash else {
            let message = format!("{what}: the step names no uploaded files");
            return Err(failure(place.step, message));
        };
        let given = |index: usize| more.get(index).filter(|it| !it.is_empty());
        let owner = given(0).unwrap_or(&self.context.user);
        let owner = match owner.contains(':') {
            true => owner.clone(),
            false => format!("{owner}:{owner}"),
        };
        let mode = given(1).map(String::as_str);
        let is_mode = |mode: &str| {
            (1..=5).contains(&mode.len()) && mode.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
        };
        if let Some(mode) = mode.filter(|mode| !is_mode(mode)) {
            let message = format!("{what}: '{mode}' is no octal mode");
            return Err(failure(place.step, message));
        }
        let target = self.context.destination(destination);
        let copied = script::copy(script::ARCHIVE, source, &target, &owner, mode);
        let archive = self.job.archives.path(hash);
        let Some(archive) = archive else {
            if !self.forced
                && let Some(layer) = self.steps.cached(&self.job.build_id, &self.key).await?
            {
                // What it would be unpacked to is there already.
                self.tell(place, text, true).await;
                self.add(layer);
                return Ok(());
            }
            let message = format!("{what}: files with hash {hash} were not uploaded");
            return Err(failure(place.step, message));
        };
        self.layer(place, text, &as_root(copied), Some(&archive), &what)
            .await
    }

    /// Adds the layer of a step, from the cache or by running the command.
    async fn layer(
        &mut self,
        place: &Place<'_>,
        text: &str,
        command: &Command,
        archive: Option<&std::path::Path>,
        what: &str,
    ) -> Result<(), BuildFailure> {
        let making = self.steps.making(self.key.layer());
        let _made_by_one = making.lock().await;
        let cached = match self.forced {
            true => None,
            false => self.steps.cached(&self.job.build_id, &self.key).await?,
        };
        self.tell(place, text, cached.is_some()).await;
        if let Some(layer) = cached {
            self.add(layer);
            return Ok(());
        }
        let own = match self.forced {
            // What was made before may be in use and stays.
            true => self
                .key
                .step("FORCE", &[self.job.build_id.to_string()], None),
            false => self.key.clone(),
        };
        let bench = self.bench(place).await?;
        let made = self.make(place, &bench, command, archive, what, own.layer());
        let made = made.await;
        bench.end().await;
        made?;
        if self.forced {
            let named = self.steps.benches.name(self.key.layer(), own.layer()).await;
            named.map_err(|error| internal(&error))?;
        }
        self.add(own.layer().to_owned());
        Ok(())
    }

    /// Steps after this one are on top of this very layer, so it is part of their keys: when it was made anew, so are they.
    fn add(&mut self, layer: String) {
        self.key = Key::on(&layer);
        self.layers.push(layer);
    }

    async fn make(
        &self,
        place: &Place<'_>,
        bench: &Held,
        command: &Command,
        archive: Option<&std::path::Path>,
        what: &str,
        layer: &str,
    ) -> Result<(), BuildFailure> {
        if let Some(archive) = archive {
            let sent = bench.bench.send(archive, script::ARCHIVE).await;
            sent.map_err(|error| refused(place, what, &error))?;
        }
        let (exit, tail) = self.run(place, "", bench.guest(), command).await;
        let exit = exit.map_err(|error| refused(place, what, &error))?;
        if exit.code != 0 {
            let message = format!("{what}: {}{}", exit.status, tail.text());
            return Err(failure(place.step, message));
        }
        let committed = bench.bench.commit(layer).await;
        committed.map_err(|error| refused(place, what, &error))
    }

    /// Runs a command, each line of its output being a line of the log.
    async fn run(
        &self,
        place: &Place<'_>,
        who: &str,
        guest: &dyn Guest,
        command: &Command,
    ) -> (Result<Exit, BenchError>, Tail) {
        let (output, written) = mpsc::channel(64);
        tokio::join!(guest.run(command, output), self.follow(place, who, written))
    }

    async fn follow(
        &self,
        place: &Place<'_>,
        who: &str,
        mut written: mpsc::Receiver<Output>,
    ) -> Tail {
        let mut tail = Tail::default();
        let (mut out, mut err) = (Lines::default(), Lines::default());
        while let Some(output) = written.recv().await {
            let (lines, is_error) = match &output {
                Output::Stdout(bytes) => (out.push(bytes), false),
                Output::Stderr(bytes) => (err.push(bytes), true),
                Output::Started => continue,
            };
            for line in lines {
                self.line(place, who, &line, is_error, &mut tail).await;
            }
        }
        for (rest, is_error) in [(out.finish(), false), (err.finish(), true)] {
            if let Some(line) = rest {
                self.line(place, who, &line, is_error, &mut tail).await;
            }
        }
        tail
    }

    async fn line(
        &self,
        place: &Place<'_>,
        who: &str,
        line: &str,
        is_error: bool,
        tail: &mut Tail,
    ) {
        tail.push(line);
        let (level, stream) = match is_error {
            true => (LogLevel::Warn, "stderr"),
            false => (LogLevel::Info, "stdout"),
        };
        let text = format!("{} {who}[{stream}]: {line}", place.prefix);
        self.reporter.log(level, Some(place.step), text).await;
    }

    /// The log line that a step begins with.
    async fn tell(&self, place: &Place<'_>, text: &str, cached: bool) {
        let cached = if cached { "CACHED " } else { "" };
        let line = format!("{cached}{} {text} [{}]", place.prefix, self.key.short());
        self.reporter
            .log(LogLevel::Info, Some(place.step), line)
            .await;
    }

    async fn say(&self, place: &Place<'_>, text: String) {
        self.reporter
            .log(LogLevel::Info, Some(place.step), text)
            .await;
    }

    /// The right to have a sandbox; the log says when that is waited for.
    async fn permit(&self, place: &Place<'_>) -> Permit {
        let mut taking = pin!(self.steps.places.take(Some(self.job.team_id.clone())));
        if let Ok(permit) = tokio::time::timeout(UNTOLD, &mut taking).await {
            return permit;
        }
        let line = format!(
            "{} waits until steps of other builds have ended",
            place.prefix
        );
        self.say(place, line).await;
        taking.await
    }

    /// A sandbox with all layers so far.
    async fn bench(&self, place: &Place<'_>) -> Result<Held, BuildFailure> {
        let permit = self.permit(place).await;
        let bench = self
            .steps
            .benches
            .start(&self.job.build_id, &self.layers, &self.limits)
            .await;
        match bench {
            Ok(bench) => Ok(Held {
                bench,
                _permit: permit,
            }),
            // Steps may have deleted what every sandbox needs, such as /dev.
            Err(error @ BenchError::Failed(_)) if self.layers.len() > self.below => {
                tracing::warn!(build_id = %self.job.build_id, %error, "no sandbox of a build's own layers");
                let message = "no sandbox starts with what the steps before have made";
                Err(failure(place.step, message.to_owned()))
            }
            Err(error) => Err(internal(&error)),
        }
    }

    /// The last layer, the start command, and the manifest.
    async fn finish(mut self) -> Result<FinishedBuild, BuildFailure> {
        let place = Place {
            step: "finalize",
            prefix: "[finalize]".to_owned(),
        };
        self.say(&place, "[finalize] Finalizing template build".to_owned())
            .await;
        let (template_id, build_id) = (
            self.job.template_id.to_string(),
            self.job.build_id.to_string(),
        );
        let layer = self
            .key
            .step("FINALIZE", std::slice::from_ref(&build_id), None);
        let bench = self.bench(&place).await?;
        let command = as_root(script::finalize(&template_id, &build_id));
        let what = "failed to finalize the template";
        let mut done = self
            .make(&place, &bench, &command, None, what, layer.layer())
            .await;
        let mut started = None;
        if done.is_ok() {
            done = self.try_start(&place, bench.guest()).await;
        }
        if done.is_ok() && (self.start_command.is_some() || self.ready_command.is_some()) {
            match bench.bench.snapshot(&self.job.build_id).await {
                Ok(Ok(snapshot)) => started = Some(snapshot),
                Ok(Err(why)) => {
                    let what = match self.start_command {
                        Some(_) => "run the start command",
                        None => "wait for the ready command",
                    };
                    let line = format!("Every sandbox will {what}: {why}");
                    self.say(&place, line).await;
                }
                Err(error) => done = Err(refused(&place, "failed to make a snapshot", &error)),
            }
        }
        bench.end().await;
        done?;
        self.layers.push(layer.layer().to_owned());

        let finished = FinishedBuild {
            layers: self.layers.clone(),
            default_user: self.context.user.clone(),
            default_workdir: self.context.final_workdir(),
            env: self.context.env.clone(),
            start_command: self.start_command.clone(),
            ready_command: self.ready_command.clone(),
            envd_version: self.steps.envd_version.clone(),
            disk_mib: self.limits.disk.0,
        };
        let known = KnownBuild {
            name: build_id.clone(),
            template_id,
            build_id,
            layers: self.layers,
            limits: self.limits,
            default_user: finished.default_user.clone(),
            default_workdir: finished.default_workdir.clone(),
            env: self.context.env,
            start_command: self.start_command,
            ready_command: self.ready_command,
            started,
        };
        let kept = self.steps.benches.keep(known).await;
        kept.map_err(|error| internal(&error))?;
        Ok(finished)
    }

    /// What sandboxes of the template will do at their start is done once here, so that what cannot work fails the build.
    async fn try_start(&self, place: &Place<'_>, guest: &dyn Guest) -> Result<(), BuildFailure> {
        let command = |text: &Option<String>, within| {
            text.as_ref().map(|text| Command {
                text: text.clone(),
                user: self.context.user.clone(),
                workdir: Some(self.context.final_workdir()),
                env: self.context.run_env(),
                within,
            })
        };
        let start = command(&self.start_command, STEP_WITHIN);
        let ready = command(&self.ready_command, READY_WITHIN);
        if start.is_none() && ready.is_none() {
            return Ok(());
        }
        if let Some(start) = &start {
            let line = format!("Running start command: {}", start.text);
            self.say(place, line).await;
        }
        let seconds = SETTLE.as_secs();
        let waiting = ready
            .as_ref()
            .map_or(format!("sleep {seconds}"), |it| it.text.clone());
        self.say(
            place,
            format!("Waiting for template to be ready: {waiting}"),
        )
        .await;
        let (output, written) = mpsc::channel(64);
        let readying = until_ready(
            guest,
            start.as_ref(),
            ready.as_ref(),
            READY_PACE,
            SETTLE,
            output,
        );
        let (outcome, tail) = tokio::join!(readying, self.follow(place, "[start] ", written));
        outcome.map_err(|error| failure(place.step, format!("{error}{}", tail.text())))?;
        self.say(place, "Template is ready".to_owned()).await;
        Ok(())
    }
}

/// A sandbox, and the right to have one more.
struct Held {
    bench: Box<dyn Bench>,
    _permit: Permit,
}

impl Held {
    fn guest(&self) -> &dyn Guest {
        &*self.bench
    }

    async fn end(self) {
        self.bench.end().await;
    }
}

/// The build that a build goes on from.
async fn parent(steps: &Steps, job: &BuildJob) -> Result<KnownBuild, BuildFailure> {
    let parent = job.parent.as_ref().ok_or_else(no_base)?;
    let known = steps.benches.build(&parent.row.build_id).await;
    known.map_err(|error| internal(&error))?.ok_or_else(no_base)
}

fn no_base() -> BuildFailure {
    let message = "error getting base template, you may need to rebuild it first";
    failure("base", message.to_owned())
}

/// A command in a message: scripts of megabytes are commands too.
fn shown(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 4 << 10;
    match text.len() {
        0..=LONGEST => text.into(),
        _ => format!("{}[...]", &text[..text.floor_char_boundary(LONGEST)]).into(),
    }
}

fn as_root(text: String) -> Command {
    Command {
        text,
        user: "root".to_owned(),
        workdir: Some("/".to_owned()),
        env: BTreeMap::new(),
        within: STEP_WITHIN,
    }
}

/// The bounded standard output of a short program.
async fn collect(
    guest: &dyn Guest,
    command: &Command,
    into: &mut Vec<u8>,
) -> Result<Exit, BenchError> {
    const MOST: usize = 1 << 20;
    let (output, mut written) = mpsc::channel(16);
    let reading = async {
        while let Some(output) = written.recv().await {
            if let Output::Stdout(bytes) = output
                && into.len() + bytes.len() <= MOST
            {
                into.extend(bytes);
            }
        }
    };
    let (exit, ()) = tokio::join!(guest.run(command, output), reading);
    exit
}

fn failure(step: &str, message: String) -> BuildFailure {
    BuildFailure {
        step: Some(step.to_owned()),
        message,
    }
}

/// What became of a step that could not be run to its end.
fn refused(place: &Place<'_>, what: &str, error: &BenchError) -> BuildFailure {
    match error {
        BenchError::Refused(_) | BenchError::Ended(_) | BenchError::NoCapacity(_) => {
            failure(place.step, format!("{what}: {error}"))
        }
        BenchError::Failed(_) => internal(error),
    }
}

fn internal(error: &BenchError) -> BuildFailure {
    tracing::error!(%error, "a build could not go on");
    let message = match error {
        BenchError::NoCapacity(_) => error.to_string(),
        _ => "An internal error occurred, the server's log has its cause".to_owned(),
    };
    BuildFailure {
        step: None,
        message,
    }
}
