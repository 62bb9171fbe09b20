//! Templates as their team changes them: a request for a build, visibility, deletion.

use std::time::Duration;

use sha2::{Digest, Sha256};
use soulbox_types::{BuildId, Limits, TeamId, TemplateId};

use crate::archives::Archives;
use crate::builds::FilesHash;
use crate::catalog::{ResolveError, TemplateView};
use crate::clock;
use crate::control::{Control, longest};
use crate::create::apply;
use crate::error::LimitError;
use crate::policy::Policy;
use crate::random::{self, RandomError};
use crate::spec::{LimitOverrides, ReferenceError, TemplateReference};
use crate::store::{BuildRow, BuildStatus, StoreError, TeamRow};
use crate::tags::{self, TagError};
use crate::template_store::{BeginBuild, DeleteTemplate, NewBuild, Publish};

const DEFAULT_TAG: &str = "default";
const LONGEST_NAME: usize = 128;
/// How long a link for an upload is good.
const UPLOAD_WITHIN: Duration = Duration::from_secs(30 * 60);

/// What a team wants built.
#[derive(Debug, Clone, Default)]
pub struct TemplateRequest {
    /// `[namespace/]alias[:tag]`; the tag is one more of the tags.
    pub name: String,
    pub tags: Vec<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    pub min_free_disk_mib: Option<u64>,
    pub policy: Policy,
}

/// A build that waits for its start.
#[derive(Debug, Clone)]
pub struct RequestedBuild {
    pub template: TemplateView,
    pub build_id: BuildId,
    pub tags: Vec<String>,
}

/// Why a template was not changed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the template has no name")]
    NameMissing,
    #[error("the name is longer than {LONGEST_NAME} characters")]
    NameTooLong,
    #[error(transparent)]
    Name(#[from] ReferenceError),
    #[error("namespace `{namespace}` is not the team's own, `{slug}`")]
    ForeignNamespace { namespace: String, slug: String },
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error(transparent)]
    Limits(#[from] LimitError),
    #[error("a timeout of sandboxes must be positive")]
    TimeoutNotPositive,
    #[error("a timeout of sandboxes is longer than {hours} hours")]
    TimeoutTooLong { hours: u32 },
    #[error("`{name}` is the ID of a template")]
    NameTaken { name: String },
    #[error("the global alias `{alias}` is another template's")]
    AliasTaken { alias: String },
    #[error("the team has {limit} builds waiting or under way, which is its limit")]
    BuildLimitReached { limit: u32 },
    #[error(transparent)]
    Template(#[from] ResolveError),
    #[error("template `{reference}` has running sandboxes")]
    HasRunning { reference: String },
    #[error("template `{reference}` has paused sandboxes")]
    HasPaused { reference: String },
    #[error("template `{reference}` has snapshots of its sandboxes")]
    HasSnapshots { reference: String },
    #[error("template `{reference}` comes with the host")]
    Installed { reference: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl Control {
    /// Makes a waiting build of the team's template of that name, which is made too when there is none.
    ///
    /// # Errors
    /// See [`TemplateError`]; nothing was made.
    pub async fn request_build(
        &self,
        team: &TeamRow,
        request: &TemplateRequest,
    ) -> Result<RequestedBuild, TemplateError> {
        let (name, tags) = named(team, request)?;
        let limits = self.template_limits(request)?;
        let hours = self.max_hours(team);
        match request.policy.timeout {
            Some(Duration::ZERO) => return Err(TemplateError::TimeoutNotPositive),
            Some(timeout) if timeout > longest(hours) => {
                return Err(TemplateError::TimeoutTooLong { hours });
            }
            Some(_) | None => {}
        }
        let now = clock::wall();
        let template_id = TemplateId::from_random(random::bytes()?);
        let build_id = BuildId::from_random(random::bytes()?);
        let assignments = tags
            .iter()
            .map(|tag| tags::assignment(&template_id, &build_id, tag.clone()))
            .collect::<Result<_, _>>()?;
        let max_builds = self.settings().max_builds;
        let new = NewBuild {
            team: team.clone(),
            name: name.clone(),
            build: BuildRow {
                build_id: build_id.clone(),
                template_id,
                status: BuildStatus::Waiting,
                limits,
                default_user: "user".to_owned(),
                default_workdir: "/home/user".to_owned(),
                envd_version: self.settings().envd_version.clone(),
                policy: request.policy.clone(),
                created_at: now,
                updated_at: now,
                finished_at: None,
            },
            assignments,
            min_free_disk_mib: request.min_free_disk_mib,
            max_builds,
        };
        let template_id = match self.store().begin_build(&new).await? {
            BeginBuild::Begun { template_id } => template_id,
            BeginBuild::NameTaken => return Err(TemplateError::NameTaken { name }),
            BeginBuild::LimitReached => {
                return Err(TemplateError::BuildLimitReached { limit: max_builds });
            }
        };
        self.reload_catalog().await?;
        let template = self.catalog().view_of(&template_id);
        // It may have been deleted since.
        let template = template.ok_or(ResolveError::NoTemplate { reference: name })?;
        tracing::info!(team_id = %team.team_id, %template_id, %build_id, ?tags, "a build was requested");
        Ok(RequestedBuild {
            template,
            build_id,
            tags,
        })
    }

    /// Shows a template to all teams, or to its own only; nothing is changed without a value. With `globally`, a template that becomes public
    /// gets its alias as a global name too. Returns its names.
    ///
    /// # Errors
    /// See [`TemplateError`]; nothing was changed.
    pub async fn publish(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
        public: Option<bool>,
        globally: bool,
    ) -> Result<Vec<String>, TemplateError> {
        let template = self.own_untagged(team, reference).await?;
        let id = &template.template_id;
        if let Some(public) = public {
            let own = self.catalog().view_of(id);
            let alias = own
                .and_then(|view| view.aliases.first().cloned())
                .filter(|_| public && globally);
            let done = self
                .store()
                .publish(id, public, alias.as_deref(), clock::wall())
                .await?;
            match (done, alias) {
                (Publish::AliasTaken, alias) => {
                    let alias = alias.unwrap_or_default();
                    return Err(TemplateError::AliasTaken { alias });
                }
                (Publish::Done, _) => {}
            }
            self.reload_catalog().await?;
            tracing::info!(template_id = %id, public, "changed who sees a template");
        }
        let view = self.catalog().view_of(id);
        Ok(view.map(|view| view.names).unwrap_or_default())
    }

    /// Deletes a template with its builds and tags.
    ///
    /// # Errors
    /// See [`TemplateError`]; nothing was deleted.
    pub async fn delete_template(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<(), TemplateError> {
        let template = self.owned(team, reference).await?;
        let id = &template.template_id;
        let shown = || reference.to_string();
        // The packages delete a snapshot by the reference that they got for it. Where other tags are, that is not all of the template.
        if let Some(tag) = &reference.tag
            && self.catalog().history(id).iter().any(|it| it.tag != *tag)
        {
            return Err(TagError::NameHasTag.into());
        }
        if self.is_installed(id) {
            return Err(TemplateError::Installed { reference: shown() });
        }
        if self.catalog().carries_snapshots(id) {
            return Err(TemplateError::HasSnapshots { reference: shown() });
        }
        let before = self.catalog();
        match self.store().delete_template(id, clock::wall()).await? {
            DeleteTemplate::Deleted { builds } => {
                self.reload_catalog().await?;
                tracing::info!(template_id = %id, builds = builds.len(), "deleted a template");
                self.forget_snapshots(&before, &builds).await;
                self.shared.building.cancel(&builds);
                self.forget_deleted().await;
                Ok(())
            }
            DeleteTemplate::HasRunning => Err(TemplateError::HasRunning { reference: shown() }),
            DeleteTemplate::HasPaused => Err(TemplateError::HasPaused { reference: shown() }),
            DeleteTemplate::NotFound => Err(ResolveError::NoTemplate { reference: shown() }.into()),
        }
    }

    /// The archives of a team whose template this is.
    ///
    /// # Errors
    /// There is no such template of the team.
    pub async fn archives(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Archives, TemplateError> {
        self.own_untagged(team, reference).await?;
        Ok(self.archives_of(&team.team_id))
    }

    /// What allows anybody to upload an archive for the team, and until when, in Unix seconds.
    #[must_use]
    pub fn upload_permission(&self, team_id: &TeamId, hash: &FilesHash) -> (u64, String) {
        let expires = clock::wall().0 / 1000 + UPLOAD_WITHIN.as_secs();
        (expires, self.shared.mint.upload(team_id, hash, expires))
    }

    /// The place of an archive, if the token is the one for it and has not expired.
    #[must_use]
    pub fn uploadable(
        &self,
        team_id: &TeamId,
        hash: &FilesHash,
        expires: u64,
        token: &str,
    ) -> Option<Archives> {
        if expires < clock::wall().0 / 1000 {
            return None;
        }
        let good = self.shared.mint.upload(team_id, hash, expires);
        // Digests are compared, so that the time it takes tells nothing of the token.
        let same = Sha256::digest(&good) == Sha256::digest(token);
        same.then(|| self.archives_of(team_id))
    }

    async fn own_untagged(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<std::sync::Arc<crate::store::TemplateRow>, TemplateError> {
        if reference.tag.is_some() {
            return Err(TagError::NameHasTag.into());
        }
        Ok(self.owned(team, reference).await?)
    }

    fn template_limits(&self, request: &TemplateRequest) -> Result<Limits, LimitError> {
        let settings = self.settings();
        let mut limits = settings.template_limits;
        // What is wanted to be free is a wish, and more than there may be is cut off.
        if let Some(wanted) = request.min_free_disk_mib {
            let wanted = wanted.min(settings.max_disk_mib);
            limits.disk.0 = limits.disk.0.max(wanted);
        }
        let overrides = LimitOverrides {
            cpus: request.cpus,
            memory_mib: request.memory_mib,
            disk_mib: None,
        };
        apply(limits, overrides, settings)
    }
}

/// The alias in the team's namespace, and the tags.
fn named(
    team: &TeamRow,
    request: &TemplateRequest,
) -> Result<(String, Vec<String>), TemplateError> {
    if request.name.trim().is_empty() {
        return Err(TemplateError::NameMissing);
    }
    if request.name.len() > LONGEST_NAME {
        return Err(TemplateError::NameTooLong);
    }
    let reference: TemplateReference = request.name.parse()?;
    if let Some(namespace) = reference.namespace.filter(|it| *it != team.slug) {
        let slug = team.slug.clone();
        return Err(TemplateError::ForeignNamespace { namespace, slug });
    }
    let mut texts: Vec<_> = reference.tag.into_iter().collect();
    texts.extend(request.tags.iter().cloned());
    let mut tags = tags::assignable(&texts)?;
    if tags.is_empty() {
        tags.push(DEFAULT_TAG.to_owned());
    }
    Ok((reference.name, tags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::default_team;
    use soulbox_types::TeamId;

    fn check(name: &str, tags: &[&str]) -> Result<(String, Vec<String>), TemplateError> {
        let team = default_team(TeamId::from_random([1; 16]));
        let request = TemplateRequest {
            name: name.to_owned(),
            tags: tags.iter().map(|it| (*it).to_owned()).collect(),
            ..TemplateRequest::default()
        };
        named(&team, &request)
    }

    #[test]
    fn names_are_of_the_own_namespace_and_tags_are_merged() {
        let good = |name: &str, tags: &[&str]| check(name, tags).expect("good");
        assert_eq!(
            good(" T1 ", &[]),
            ("t1".to_owned(), vec!["default".to_owned()])
        );
        let (name, tags) = good("default/t1:v1", &["v1", "latest"]);
        assert_eq!(
            (name.as_str(), tags.join(" ").as_str()),
            ("t1", "v1 latest")
        );
        assert!(matches!(check("", &[]), Err(TemplateError::NameMissing)));
        assert!(matches!(check("a b", &[]), Err(TemplateError::Name(_))));
        assert!(matches!(
            check(&"a".repeat(129), &[]),
            Err(TemplateError::NameTooLong)
        ));
        let foreign = check("other/t1", &[]);
        assert!(
            matches!(foreign, Err(TemplateError::ForeignNamespace { .. })),
            "{foreign:?}"
        );
    }
}
