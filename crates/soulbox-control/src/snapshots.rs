//! Snapshots of running sandboxes, which go on: kept as templates with memory, or the beginning of forks.
//!
//! A snapshot is a build of a template, with the host's name of it in a row of its own: it is resolved, tagged and deleted like any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use soulbox_types::{BuildId, SandboxId, SandboxState, TemplateId};
use tracing::{info, warn};

use crate::catalog::Catalog;
use crate::clock;
use crate::control::{Control, SandboxView, longest, missing};
use crate::create::Beginning;
use crate::error::{CreateError, SandboxError};
use crate::hosts::{FromSnapshot, HostFailure, HostSave, HostSnapshot};
use crate::list::{self, Cursor, Order, Page};
use crate::random;
use crate::registry::Handle;
use crate::spec::TemplateReference;
use crate::store::{
    AliasRow, BuildRow, BuildStatus, SandboxRow, SnapshotRow, TeamRow, TemplateRow,
};
use crate::tags;

/// A deadline may move while the host is told; more often than this in a row it does not.
const ATTEMPTS: u32 = 5;

/// A snapshot as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// By which sandboxes are created from it: `<template ID>:<tag>` or `<namespace>/<alias>:<tag>`.
    pub reference: String,
    pub names: Vec<String>,
}

/// What became of one fork.
pub type Forked = Result<SandboxView, CreateError>;

impl Control {
    /// Makes a snapshot of a running sandbox, which goes on, and keeps it as a build of a template: of the team's one of that name, or
    /// of a new one.
    ///
    /// # Errors
    /// The sandbox does not run or cannot be saved; the name is another team's.
    pub async fn snapshot(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        name: Option<&TemplateReference>,
        memory: bool,
    ) -> Result<SnapshotView, SandboxError> {
        let tag = match name {
            None => tags::DEFAULT_TAG.to_owned(),
            Some(name) => self.check_snapshot_name(team, name)?,
        };
        let name_on_host = format!("snap-{}", random::sandbox_id()?);
        let made = self.checkpoint(team, id, name_on_host, memory).await;
        let (handle, saved) = made.map_err(|error| match error {
            SandboxError::IsPaused { sandbox_id } => SandboxError::NotSnapshotted {
                sandbox_id,
                state: "paused",
            },
            other => other,
        })?;
        let kept = self.keep(team, &handle.row, &saved, name, &tag).await;
        if kept.is_err() {
            self.drop_on_host(&saved.snapshot_id).await;
        }
        self.log(id, "snapshot made", []);
        kept
    }

    /// Snapshots of the team, newest first, of one sandbox or of one name if that is asked for. A name that means nothing matches nothing.
    #[must_use]
    pub fn snapshots(
        &self,
        team: &TeamRow,
        sandbox_id: Option<&SandboxId>,
        name: Option<&TemplateReference>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Page<SnapshotView> {
        let catalog = self.catalog();
        let named = match name {
            None => None,
            Some(name) => match catalog.by_alias(team, name) {
                Ok(template) => Some(template.template_id.clone()),
                Err(_) => {
                    return Page {
                        items: Vec::new(),
                        total: 0,
                        next: None,
                    };
                }
            },
        };
        let tag = name.and_then(|name| name.tag.as_deref());
        let all = catalog.snapshots_of(team).into_iter();
        let matching = all.filter(|(row, _, own_tag)| {
            sandbox_id.is_none_or(|id| row.sandbox_id == *id)
                && named.as_ref().is_none_or(|id| row.template_id == *id)
                && tag.is_none_or(|tag| own_tag == tag)
        });
        let page = list::page(matching.collect(), Order::NewestFirst, after, limit, |it| {
            Cursor {
                at: it.0.created_at,
                id: it.0.build_id.to_string(),
            }
        });
        Page {
            total: page.total,
            next: page.next,
            items: page
                .items
                .into_iter()
                .map(|(row, name, tag)| shown(&row.template_id, name, &tag))
                .collect(),
        }
    }

    /// Makes `count` sandboxes that go on from where a running one is, which goes on as well. Each succeeds or fails by itself.
    ///
    /// # Errors
    /// No fork was made: the sandbox does not run, cannot be saved, or there are to be more than the team may have.
    pub async fn fork(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        timeout: Duration,
        count: u32,
    ) -> Result<Vec<Forked>, SandboxError> {
        let hours = self.max_hours(team);
        if timeout > longest(hours) {
            return Err(SandboxError::TimeoutTooLong { hours });
        }
        let limit = team.max_sandboxes.unwrap_or(self.settings().max_sandboxes);
        if count >= limit {
            return Err(SandboxError::TooManyForks { limit });
        }
        let name = format!("fork-{}", random::sandbox_id()?);
        let (handle, saved) = self.checkpoint(team, id, name, true).await?;
        let parent = &handle.row;
        let forks = (0..count).map(|_| self.fork_one(team, parent, &saved, timeout));
        let forks = join_all(forks).await;
        self.drop_on_host(&saved.snapshot_id).await;
        self.log(id, "sandbox forked", [("count", count.to_string())]);
        Ok(forks)
    }

    async fn fork_one(
        &self,
        team: &TeamRow,
        parent: &SandboxRow,
        saved: &HostSnapshot,
        timeout: Duration,
    ) -> Forked {
        let row = SandboxRow {
            sandbox_id: random::sandbox_id()?,
            created_at: clock::now(),
            ..parent.clone()
        };
        let beginning = Beginning {
            timeout,
            env: BTreeMap::new(),
            snapshot: Some(FromSnapshot {
                snapshot_id: saved.snapshot_id.clone(),
                memory: true,
                is_copy: true,
            }),
            claim: None,
        };
        self.begin(team, row, beginning).await
    }

    /// Has the host make a snapshot beside the running sandbox. One at a time: a pause waits, another snapshot is refused.
    async fn checkpoint(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        snapshot_id: String,
        memory: bool,
    ) -> Result<(Handle, HostSnapshot), SandboxError> {
        self.catch_up(id).await?;
        let sandbox_id = id.clone();
        let handle = self.reach(team, id).await?;
        match handle.state() {
            SandboxState::Running => {}
            SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
                return Err(SandboxError::IsPaused { sandbox_id });
            }
            SandboxState::Killing => return Err(SandboxError::BeingKilled { sandbox_id }),
            SandboxState::Creating | SandboxState::Dead => return Err(missing(id)),
        }
        let turn = handle.snapshot_turn.clone();
        let Ok(_turn) = turn.try_write() else {
            let state = "snapshotting";
            return Err(SandboxError::NotSnapshotted { sandbox_id, state });
        };
        if !memory {
            self.check_guest(&handle).await?;
        }
        let within = self.settings().save_within;
        for _ in 0..ATTEMPTS {
            let save = HostSave {
                sandbox_id: id.clone(),
                epoch: handle.progress.borrow().epoch,
                snapshot_id: snapshot_id.clone(),
                memory,
                end: false,
            };
            match tokio::time::timeout(within, self.hosts().save(&save)).await {
                Ok(Ok(saved)) => return Ok((handle, saved)),
                Ok(Err(
                    HostFailure::NotFound | HostFailure::NotLive | HostFailure::BeingPaused,
                )) => return Err(missing(id)),
                // Another decision went out meanwhile; the next epoch is here or comes at once.
                Ok(Err(HostFailure::StaleEpoch)) => tokio::task::yield_now().await,
                Ok(Err(failure)) => return Err(SandboxError::NotSaved(failure)),
                Err(_) => break,
            }
        }
        // Should it come to be after all, nobody will want it.
        self.drop_on_host(&snapshot_id).await;
        Err(SandboxError::TimedOut)
    }

    /// The tag of a name that the team may give.
    fn check_snapshot_name(
        &self,
        team: &TeamRow,
        name: &TemplateReference,
    ) -> Result<String, SandboxError> {
        if let Some(namespace) = name.namespace.as_ref().filter(|it| **it != team.slug) {
            let why = format!("namespace '{namespace}' is not '{}'", team.slug);
            return Err(SandboxError::SnapshotName(why));
        }
        let catalog = self.catalog();
        let bare = TemplateReference {
            namespace: None,
            name: name.name.clone(),
            tag: None,
        };
        // The name of a template that was built, the team's or a global one, would mean two things.
        if let Ok(template) = catalog.by_alias(team, &bare)
            && !catalog.is_snapshot(&template.template_id)
        {
            let why = format!("'{}' is a template that is no snapshot", name.name);
            return Err(SandboxError::SnapshotName(why));
        }
        match &name.tag {
            None => Ok(tags::DEFAULT_TAG.to_owned()),
            Some(tag) => {
                tags::normal_tag(tag).map_err(|error| SandboxError::SnapshotName(error.to_string()))
            }
        }
    }

    async fn keep(
        &self,
        team: &TeamRow,
        row: &SandboxRow,
        saved: &HostSnapshot,
        name: Option<&TemplateReference>,
        tag: &str,
    ) -> Result<SnapshotView, SandboxError> {
        let own = name.map(|name| TemplateReference {
            namespace: Some(team.slug.clone()),
            name: name.name.clone(),
            tag: None,
        });
        let known = own
            .as_ref()
            .and_then(|own| self.catalog().by_alias(team, own).ok());
        let template_id = match known {
            Some(template) => template.template_id.clone(),
            None => TemplateId::from_random(random::bytes()?),
        };
        let build_id = BuildId::from_random(random::bytes()?);
        let now = clock::wall();
        let (default_user, default_workdir) = self.catalog().defaults_of(&row.build_id);
        let below = self.catalog().build(&row.build_id);
        let template = TemplateRow {
            template_id: template_id.clone(),
            team_id: team.team_id.clone(),
            public: false,
            created_at: now,
            updated_at: now,
            spawn_count: 0,
            last_spawned_at: None,
        };
        let build = BuildRow {
            build_id: build_id.clone(),
            template_id: template_id.clone(),
            status: BuildStatus::Ready,
            limits: row.limits,
            default_user,
            default_workdir,
            envd_version: row.envd_version.clone(),
            // As of the template: what one sandbox was changed to is its own.
            policy: below.map(|it| it.policy.clone()).unwrap_or_default(),
            created_at: now,
            updated_at: now,
            finished_at: Some(now),
        };
        let alias = name.map(|name| AliasRow {
            namespace: team.slug.clone(),
            alias: name.name.clone(),
            template_id: template_id.clone(),
        });
        let assignment = tags::assignment(&template_id, &build_id, tag.to_owned())?;
        let snapshot = SnapshotRow {
            build_id: build_id.clone(),
            template_id: template_id.clone(),
            team_id: team.team_id.clone(),
            sandbox_id: row.sandbox_id.clone(),
            snapshot_name: saved.snapshot_id.clone(),
            host_build_id: row.host_build_id.clone(),
            memory: saved.memory,
            disk_bytes: saved.disk_bytes,
            image_bytes: saved.image_bytes,
            created_at: now,
        };
        let aliases: Vec<_> = alias.into_iter().collect();
        self.store()
            .register_snapshot(&template, &build, &aliases, &assignment, &snapshot)
            .await?;
        self.reload_catalog().await?;
        info!(sandbox_id = %row.sandbox_id, %template_id, %build_id, "kept a snapshot");
        let name = name.map(|name| format!("{}/{}", team.slug, name.name));
        Ok(shown(&template_id, name, tag))
    }

    /// Deletes the snapshots that these builds were, with what the host has of them.
    pub(crate) async fn forget_snapshots(&self, before: &Arc<Catalog>, builds: &[BuildId]) {
        let snapshots: Vec<_> = builds.iter().filter_map(|id| before.snapshot(id)).collect();
        if snapshots.is_empty() {
            return;
        }
        for snapshot in &snapshots {
            self.drop_on_host(&snapshot.snapshot_name).await;
        }
        if let Err(failure) = self.store().forget_snapshots(builds).await {
            warn!(error = %crate::chain(&failure), "failed to delete rows of snapshots");
        }
    }

    async fn drop_on_host(&self, snapshot_id: &str) {
        let within = self.settings().command_within;
        let deleted = tokio::time::timeout(within, self.hosts().delete_snapshot(snapshot_id)).await;
        match deleted {
            Ok(Ok(())) => {}
            // It is found when lists are compared.
            Ok(Err(failure)) => warn!(snapshot_id, error = %failure, "failed to delete a snapshot"),
            Err(_) => warn!(snapshot_id, "deleting a snapshot took too long"),
        }
    }
}

fn shown(template_id: &TemplateId, name: Option<String>, tag: &str) -> SnapshotView {
    SnapshotView {
        reference: match &name {
            Some(name) => format!("{name}:{tag}"),
            None => format!("{template_id}:{tag}"),
        },
        names: name.into_iter().collect(),
    }
}
