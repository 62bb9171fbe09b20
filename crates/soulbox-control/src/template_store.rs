//! [`TemplateStore`]: the part of the records that clients change about templates, and builds with their logs.
//!
//! Each call that changes something is one transaction that looks and then acts, so two callers never both win.

use async_trait::async_trait;
use soulbox_types::{BuildId, TeamId, TemplateId, UnixMillis};

use crate::builds::{BuildFailure, BuildLogLine, BuildSpecification, FinishedBuild};
use crate::logs::{LogDirection, LogLevel};
use crate::store::{AssignmentRow, BuildRow, StoreError, TeamRow};

/// A build that a team asks for, by the template's name in its own namespace.
#[derive(Debug, Clone)]
pub struct NewBuild {
    pub team: TeamRow,
    pub name: String,
    /// Its template is the one to be made if the name is new; the store puts the right one in.
    pub build: BuildRow,
    /// One for each tag; as for the template.
    pub assignments: Vec<AssignmentRow>,
    pub min_free_disk_mib: Option<u64>,
    /// The most builds that the team may have waiting or under way, this one included.
    pub max_builds: u32,
}

/// What became of a [`NewBuild`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginBuild {
    /// The row is there and waits. Builds of the template that waited with one of its tags have failed.
    Begun {
        template_id: TemplateId,
    },
    /// The name is the ID of a template, be it deleted.
    NameTaken,
    LimitReached,
}

/// What became of an attempt to start a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartBuild {
    /// It builds. These were under way with one of its tags and have failed.
    Started {
        superseded: Vec<BuildId>,
    },
    NotWaiting,
}

/// What is known of a build beside its row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildDetails {
    pub specification: Option<BuildSpecification>,
    pub min_free_disk_mib: Option<u64>,
    pub finished: Option<FinishedBuild>,
    pub failure: Option<BuildFailure>,
}

/// Which lines of a build's log.
#[derive(Debug, Clone)]
pub struct LineQuery {
    /// This level and above.
    pub level: LogLevel,
    pub direction: LogDirection,
    /// Lines from this moment on, in the direction.
    pub cursor: Option<UnixMillis>,
    /// So many of the lines that match are passed over.
    pub offset: u64,
    pub limit: u32,
}

/// What became of a change of a template's visibility.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    Done,
    /// The global alias is another template's.
    AliasTaken,
}

/// What became of an attempt to delete a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeleteTemplate {
    /// With these builds.
    Deleted {
        builds: Vec<BuildId>,
    },
    HasRunning,
    HasPaused,
    NotFound,
}

/// Templates, builds and tags as clients change them. The newest row of a tag whose build is ready holds.
///
/// # Errors
/// As for [`crate::Store`].
#[async_trait]
pub trait TemplateStore: Send + Sync + 'static {
    /// Inserts a waiting build, and its template with an alias if the name is new.
    async fn begin_build(&self, new: &NewBuild) -> Result<BeginBuild, StoreError>;
    /// Takes a build from waiting to building.
    async fn start_build(
        &self,
        build_id: &BuildId,
        specification: &BuildSpecification,
        at: UnixMillis,
    ) -> Result<StartBuild, StoreError>;
    /// Ends a build that waits or is under way; false when it is over already.
    async fn end_build(
        &self,
        build_id: &BuildId,
        outcome: Result<&FinishedBuild, &BuildFailure>,
        at: UnixMillis,
    ) -> Result<bool, StoreError>;
    /// Notes that a build is still under way; false when it is not, any more.
    async fn touch_build(&self, build_id: &BuildId, at: UnixMillis) -> Result<bool, StoreError>;
    /// Fails builds that wait since before one moment, or of which nothing was heard since before the other.
    async fn abandon_builds(
        &self,
        waiting_since: UnixMillis,
        silent_since: UnixMillis,
        at: UnixMillis,
    ) -> Result<Vec<BuildId>, StoreError>;
    /// Fails every build of a team that waits or is under way.
    async fn cancel_builds(
        &self,
        team_id: &TeamId,
        at: UnixMillis,
    ) -> Result<Vec<BuildId>, StoreError>;
    /// What is kept of a build beside its row; nothing of it when it was built on the host.
    async fn build_details(&self, build_id: &BuildId) -> Result<BuildDetails, StoreError>;
    /// Adds lines to the log of a build.
    async fn add_build_lines(
        &self,
        build_id: &BuildId,
        lines: &[BuildLogLine],
    ) -> Result<(), StoreError>;
    /// Lines of the log of a build.
    async fn build_lines(
        &self,
        build_id: &BuildId,
        query: &LineQuery,
    ) -> Result<Vec<BuildLogLine>, StoreError>;
    /// Makes a template public or private; a global alias is claimed when one is given.
    async fn publish(
        &self,
        template_id: &TemplateId,
        public: bool,
        global_alias: Option<&str>,
        at: UnixMillis,
    ) -> Result<Publish, StoreError>;
    /// Deletes a template that no living sandbox uses, with all that belongs to it; its ID is never used again.
    async fn delete_template(
        &self,
        template_id: &TemplateId,
        at: UnixMillis,
    ) -> Result<DeleteTemplate, StoreError>;
    /// Adds assignments.
    async fn assign_tags(&self, assignments: &[AssignmentRow]) -> Result<(), StoreError>;
    /// Deletes every assignment of these tags of a template.
    async fn remove_tags(
        &self,
        template_id: &TemplateId,
        tags: &[String],
        at: UnixMillis,
    ) -> Result<(), StoreError>;
}
