//! Decides: authentication, quota, lifecycle, desired state. Performs nothing itself but through [`Hosts`] and [`Store`].
//!
//! [`Control`] is the entry. One task owns a sandbox ([`owner`]); it feeds events to the pure [`lifecycle::step`] and performs the
//! effects. Everybody else sends it requests or watches its state.
#![forbid(unsafe_code)]

mod hosts;
pub mod lifecycle;
mod live;
mod settings;
mod store;

pub use hosts::{HostCreate, HostFailure, HostSandbox, HostTemplate, Hosts, Started};
pub use live::{LiveSandbox, Traffic};
pub use settings::{ControlSettings, Credentials};
pub use store::{
    AliasRow, AssignmentRow, BuildRow, BuildStatus, CatalogRows, IdempotencyClaim, KeyKind, KeyRow,
    Progress, Reservation, SandboxRow, Spawns, Store, StoreError, Swap, TeamRow, TemplateRow,
};
