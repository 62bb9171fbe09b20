//! Decides: authentication, quota, lifecycle, desired state. Performs nothing itself but through [`Hosts`] and [`Store`].
//!
//! [`Control`] is the entry. One task owns a sandbox; it feeds events to the pure [`ownership`], which is [`lifecycle::step`] and who is
//! answered when, and performs what comes out. What follows from the records of a predecessor is [`reconcile`]'s.
//! Everybody else sends it requests or watches its state. [`Control::live`] is what the ingress looks up.
#![forbid(unsafe_code)]

mod admin;
mod archives;
mod auth;
mod building;
mod builds;
mod catalog;
pub mod clock;
mod contents;
mod control;
mod create;
mod error;
mod history;
mod hosts;
mod keys;
mod latest;
pub mod lifecycle;
mod list;
mod live;
mod logs;
mod metrics;
mod network;
mod nodes;
mod owner;
pub mod ownership;
mod pauses;
mod policy;
mod random;
pub mod reconcile;
mod recovery;
mod registry;
mod retention;
mod rollback;
mod settings;
mod sharing;
mod snapshots;
mod spec;
mod store;
mod tags;
mod teams;
mod template_store;
mod templates;
mod token;

pub use admin::KilledAll;
pub use archives::{ArchiveError, Archives};
pub use auth::{AuthError, Credential};
pub use building::{BuildError, BuildStart, BuildView};
pub use builds::{
    BuildFailure, BuildJob, BuildLogLine, BuildReporter, BuildSource, BuildSpecification,
    BuildStep, Builder, FilesHash, FilesHashError, FinishedBuild, LONGEST_MESSAGE, ParentBuild,
    RegistryLogin, StepRules, snapshot_of_build,
};
pub use catalog::{ResolveError, TemplateView};
pub use contents::{Contents, ContentsError, Package, PackageKind};
pub use control::{Connected, Control, HostEvent, PauseWish, SandboxView};
pub use error::{CreateError, Error, LimitError, RecoverError, SandboxError};
pub use history::{History, KeptLine, KeptSample, Room, Speaker};
pub use hosts::{
    AtDeadline, FromSnapshot, HostCreate, HostDisk, HostFailure, HostNode, HostSandbox, HostSave,
    HostSnapshot, HostTemplate, HostUsage, Hosts, NodeStatus, Started,
};
pub use keys::{KeyError, NewKey, new_api_key};
pub use list::{Cursor, ListQuery, Order, Page, page, parse_sandbox_id};
pub use live::{LiveSandbox, Traffic};
pub use logs::{HostLogLine, LogDirection, LogLevel, LogLine, LogQuery};
pub use metrics::{Point, SandboxSample, TeamSample, TimeRange};
pub use nodes::NodeView;
pub use policy::Policy;
pub use random::RandomError;
pub use recovery::Recovered;
pub use retention::{RetiredBuilds, UnusedBuild};
pub use settings::{ControlSettings, Credentials};
pub use snapshots::{Forked, SnapshotView};
pub use spec::{LimitOverrides, ReferenceError, SandboxSpec, TemplateReference};
pub use store::{
    AliasRow, AssignmentRow, BuildRow, BuildStatus, CatalogRows, Change, Changes, IdempotencyClaim,
    KeyKind, KeyRow, Lifecycle, Pause, PausedBy, Progress, Reclaim, Reservation, SandboxRow,
    SnapshotRow, Spawns, Store, StoreError, Swap, TeamRow, TemplateRow,
};
pub use tags::{AssignmentView, GroupQuery, TagError, TagGroup, TagOrder, TagView, normal_tag};
pub use teams::{TeamError, new_team};
pub use template_store::{
    BeginBuild, BuildDetails, DeleteTemplate, LineQuery, NewBuild, Publish, StartBuild,
    TemplateStore,
};
pub use templates::{RequestedBuild, TemplateError, TemplateRequest};

/// An error with its sources, for one field of a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
