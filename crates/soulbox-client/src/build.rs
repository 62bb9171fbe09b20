//! A build of a folder: what it says, its files, and following the server until it is ready.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use soulbox_wire::rest;

use crate::client::{Client, ClientError};
use crate::config::{CONFIG_FILES, Mistake, TemplateConfig};
use crate::context::{ContextError, Folder};
use crate::dockerfile::{DockerfileError, Recipe, Step};

const DOCKERFILES: [&str; 3] = ["soulbox.Dockerfile", "e2b.Dockerfile", "Dockerfile"];
/// Uploads at once.
const UPLOADS: usize = 4;
/// Between two looks at a build: a cached one is done in no time, and a long one is not asked more often than official clients do.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A template's folder, read and known to be right.
#[derive(Debug)]
pub struct Project {
    pub config: TemplateConfig,
    pub recipe: Recipe,
    folder: Arc<Folder>,
}

/// Why a build did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{folder}` has none of {}", DOCKERFILES.join(", "))]
    NoDockerfile { folder: PathBuf },
    #[error("{path}: {}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config {
        path: PathBuf,
        mistakes: Vec<Mistake>,
    },
    #[error("{path}: {error}")]
    Dockerfile {
        path: PathBuf,
        // Not a source: its place belongs in the same line.
        error: DockerfileError,
    },
    #[error(transparent)]
    Files(#[from] ContextError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the template has no name")]
    NoName,
    /// The server's reason.
    #[error("{message}")]
    Failed {
        message: String,
        /// `base`, `finalize` or a number.
        step: Option<String>,
    },
}

/// What is heard of a build.
#[derive(Debug)]
pub enum BuildEvent<'a> {
    Requested(&'a rest::RequestedTemplate),
    /// So many archives are not on the server yet.
    Uploading(usize),
    Line(&'a rest::BuildLogEntry),
}

/// A build that is ready.
#[derive(Debug, Clone)]
pub struct BuiltTemplate {
    pub requested: rest::RequestedTemplate,
}

impl Project {
    /// Reads a folder. `dockerfile` is instead of what the folder's config says.
    ///
    /// # Errors
    /// What cannot be read, and mistakes in it.
    pub fn open(folder: &Path, dockerfile: Option<&Path>) -> Result<Self, BuildError> {
        // One that is not there would be told of as one without a Dockerfile.
        std::fs::read_dir(folder).map_err(unread(folder))?;
        let config = Self::config(folder)?;
        let path = match (dockerfile, &config.dockerfile) {
            (Some(path), _) => folder.join(path),
            (None, Some(path)) => folder.join(path),
            (None, None) => Self::dockerfile(folder).ok_or_else(|| BuildError::NoDockerfile {
                folder: folder.to_owned(),
            })?,
        };
        let text = std::fs::read_to_string(&path).map_err(unread(&path))?;
        let recipe = Recipe::read(&text).map_err(|error| BuildError::Dockerfile {
            path: path.clone(),
            error,
        })?;
        Ok(Self {
            config,
            recipe,
            folder: Arc::new(Folder::open(folder)?),
        })
    }

    /// The Dockerfile that a folder has where nobody names one.
    #[must_use]
    pub fn dockerfile(folder: &Path) -> Option<PathBuf> {
        DOCKERFILES
            .iter()
            .map(|name| folder.join(name))
            .find(|path| path.is_file())
    }

    /// What the first of [`CONFIG_FILES`] that is there says.
    ///
    /// # Errors
    /// [`BuildError::Read`] and [`BuildError::Config`].
    pub fn config(folder: &Path) -> Result<TemplateConfig, BuildError> {
        for name in CONFIG_FILES {
            let path = folder.join(name);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unread(&path)(error)),
            };
            return TemplateConfig::read(&text)
                .map_err(|mistakes| BuildError::Config { path, mistakes });
        }
        Ok(TemplateConfig::default())
    }

    /// All steps, with the digests of their files; and what is copied, by digest. Reads every file that is copied.
    ///
    /// # Errors
    /// [`BuildError::Files`], also when a COPY means nothing.
    pub fn steps(&self) -> Result<(Vec<rest::BuildStep>, BTreeMap<String, String>), BuildError> {
        let users = self.config.users.iter().map(|user| {
            let privileged = if user.sudo { "true" } else { "false" };
            Step::new("USER", [&user.name, privileged])
        });
        let env = self.config.env.iter();
        let env: Vec<_> = env
            .flat_map(|(name, value)| [name.clone(), value.clone()])
            .collect();
        let env = (!env.is_empty()).then_some(Step {
            kind: "ENV",
            args: env,
        });
        let (mut steps, mut copied) = (Vec::new(), BTreeMap::new());
        for step in users.chain(env).chain(self.recipe.steps.iter().cloned()) {
            let files_hash = match (step.kind, step.args.first()) {
                ("COPY", Some(source)) => {
                    let hash = self.folder.find(source)?.digest()?;
                    copied.insert(hash.clone(), source.clone());
                    Some(hash)
                }
                _ => None,
            };
            steps.push(rest::BuildStep {
                kind: step.kind.to_owned(),
                args: step.args,
                files_hash,
                force: false,
            });
        }
        Ok((steps, copied))
    }

    /// What is asked of the server, but for the name and the tags.
    fn request(&self) -> rest::NewTemplate {
        rest::NewTemplate {
            team_id: self.config.team.clone(),
            cpu_count: self.config.cpu_count.map(i64::from),
            memory_mb: self.config.memory_mb.and_then(|it| i64::try_from(it).ok()),
            min_free_disk_mb: self.config.disk_mb.and_then(|it| i64::try_from(it).ok()),
            sandbox_defaults: self.config.sandbox_defaults(),
            ..rest::NewTemplate::default()
        }
    }
}

impl Client {
    /// Builds a folder's template and returns when it is ready. A build that was started goes on when this is dropped.
    ///
    /// # Errors
    /// [`BuildError`]; nothing was asked of the server when files or the name are at fault.
    pub async fn build(
        &self,
        project: &Project,
        name: Option<&str>,
        tags: &[String],
        force: bool,
        events: &mut (dyn FnMut(BuildEvent<'_>) + Send),
    ) -> Result<BuiltTemplate, BuildError> {
        let (steps, copied) = project.steps()?;
        let name = self.name(project, name).await?;
        let request = rest::NewTemplate {
            name: Some(name),
            tags: (!tags.is_empty()).then(|| tags.to_vec()),
            ..project.request()
        };
        let requested = self.request_build(&request).await?;
        events(BuildEvent::Requested(&requested));
        let template = requested.template_id.as_str();

        let mut missing = Vec::new();
        for (hash, source) in copied {
            let link = self.files_link(template, &hash).await?;
            if !link.present {
                missing.push((link.url, source));
            }
        }
        if !missing.is_empty() {
            events(BuildEvent::Uploading(missing.len()));
        }
        stream::iter(missing)
            .map(|(url, source)| self.send_files(Arc::clone(&project.folder), url, source))
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await?;

        let start = rest::StartBuild {
            from_image: Some(project.recipe.image.clone()),
            force,
            steps,
            start_cmd: project
                .config
                .start_cmd
                .clone()
                .or_else(|| project.recipe.start.clone()),
            ready_cmd: project.config.ready_cmd.clone(),
            ..rest::StartBuild::default()
        };
        self.start_build(template, &requested.build_id, &start)
            .await?;
        self.follow(&requested, events).await?;
        Ok(BuiltTemplate { requested })
    }

    /// The name that a build is asked for by: given, or the config's, or that of the template with the config's ID.
    async fn name(&self, project: &Project, name: Option<&str>) -> Result<String, BuildError> {
        if let Some(name) = name.or(project.config.template_name.as_deref()) {
            return Ok(name.trim().to_lowercase());
        }
        let id = project.config.template_id.as_deref();
        let found = self.template(id.ok_or(BuildError::NoName)?).await?;
        let names = found.template.names.first();
        names.cloned().ok_or(BuildError::NoName)
    }

    async fn send_files(
        &self,
        folder: Arc<Folder>,
        url: String,
        source: String,
    ) -> Result<(), BuildError> {
        let packed = tokio::task::spawn_blocking(move || folder.find(&source)?.archive());
        let (archive, length) = packed
            .await
            .map_err(|error| ContextError::Write(io::Error::other(error)))??;
        let archive = tokio::fs::File::from_std(archive);
        Ok(self.upload(&url, archive, length).await?)
    }

    /// Reads the log until the build ended and all of it was read.
    async fn follow(
        &self,
        requested: &rest::RequestedTemplate,
        events: &mut (dyn FnMut(BuildEvent<'_>) + Send),
    ) -> Result<(), BuildError> {
        let (mut offset, mut pause) = (0, FIRST_PAUSE);
        loop {
            let state = self
                .build_state(&requested.template_id, &requested.build_id, offset)
                .await?;
            offset += state.log_entries.len();
            for line in &state.log_entries {
                events(BuildEvent::Line(line));
            }
            match (state.status, state.log_entries.is_empty()) {
                (rest::BuildStatus::Ready, true) => return Ok(()),
                (rest::BuildStatus::Error, true) => {
                    let reason = state.reason;
                    return Err(BuildError::Failed {
                        step: reason.as_ref().and_then(|it| it.step.clone()),
                        message: reason
                            .map_or("the server gives no reason".to_owned(), |it| it.message),
                    });
                }
                // There may be more already.
                (_, false) => pause = FIRST_PAUSE,
                (_, true) => {
                    tokio::time::sleep(pause).await;
                    // By so little that a short build does not wait half as long again for being asked about.
                    pause = (pause + pause / 4).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> BuildError + '_ {
    move |source| BuildError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
