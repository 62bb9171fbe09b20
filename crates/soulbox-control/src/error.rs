//! Why control refused or failed. Public messages and statuses are the API's business.

use crate::auth::AuthError;
use crate::catalog::ResolveError;
use crate::hosts::HostFailure;
use crate::random::RandomError;
use crate::store::StoreError;
use soulbox_types::{DeathCause, SandboxId};

/// Why a sandbox was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Template(#[from] ResolveError),
    #[error("the timeout is not positive")]
    TimeoutNotPositive,
    #[error("the timeout is longer than {hours} hours")]
    TimeoutTooLong { hours: u32 },
    #[error(transparent)]
    Limits(#[from] LimitError),
    #[error("private traffic needs a secured agent")]
    PrivateTrafficNotSecure,
    #[error("traffic is to resume what is paused without memory")]
    AutoResumeWithoutMemory,
    #[error("the team has {limit} live sandboxes, which is its limit")]
    LimitReached { limit: u32 },
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    #[error("the create of this idempotency key is still under way")]
    IdempotencyInProgress,
    #[error("what became of the create of this idempotency key is unknown")]
    IdempotencyOutcomeUnknown,
    #[error("the host did not start the sandbox")]
    Host(#[source] HostFailure),
    #[error("the host did not start the sandbox in time")]
    TimedOut,
    #[error("the sandbox ended while it was being created")]
    Ended,
    #[error("the server is stopping")]
    Stopping,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Why limits cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("CPUs must be one or an even number")]
    CpuOdd,
    #[error("more than {max} CPUs")]
    CpuTooMany { max: u32 },
    #[error("memory must be an even number of MiB")]
    MemoryOdd,
    #[error("less than {min} MiB of memory")]
    MemoryTooLittle { min: u64 },
    #[error("more than {max} MiB of memory")]
    MemoryTooMuch { max: u64 },
    #[error("less than {min} MiB of disk")]
    DiskTooLittle { min: u64 },
    #[error("more than {max} MiB of disk")]
    DiskTooMuch { max: u64 },
}

/// Why nothing was done to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("sandbox {sandbox_id} is not there, or another team's")]
    NotFound {
        sandbox_id: SandboxId,
        /// Why it is not there any more, where that is known.
        cause: Option<DeathCause>,
    },
    #[error("sandbox {sandbox_id} is being killed")]
    BeingKilled { sandbox_id: SandboxId },
    #[error("the timeout is longer than {hours} hours")]
    TimeoutTooLong { hours: u32 },
    #[error("the sandbox has lived as long as it may")]
    LifetimeExceeded,
    #[error("the host failed")]
    Host(#[source] HostFailure),
    #[error("sandbox {sandbox_id} is paused already")]
    AlreadyPaused { sandbox_id: SandboxId },
    #[error("sandbox {sandbox_id} runs already")]
    AlreadyRunning { sandbox_id: SandboxId },
    #[error("sandbox {sandbox_id} is being paused")]
    BeingPaused { sandbox_id: SandboxId },
    #[error("sandbox {sandbox_id} is paused")]
    IsPaused { sandbox_id: SandboxId },
    #[error("no snapshot of sandbox {sandbox_id} can be made while it is {state}")]
    NotSnapshotted {
        sandbox_id: SandboxId,
        state: &'static str,
    },
    #[error("sandbox {sandbox_id} cannot be rolled back while it is {state}")]
    NotRolledBack {
        sandbox_id: SandboxId,
        state: &'static str,
    },
    #[error("there is no snapshot {reference} of the team")]
    NoSnapshot { reference: String },
    #[error("snapshot {reference} is not one of sandbox {sandbox_id}")]
    SnapshotOfAnother {
        reference: String,
        sandbox_id: SandboxId,
    },
    /// It goes on.
    #[error("the sandbox was not rolled back")]
    RollbackFailed(#[source] HostFailure),
    #[error("a fork has to make fewer than the {limit} sandboxes that the team may have")]
    TooManyForks { limit: u32 },
    #[error("the name of a snapshot is none of the team's: {0}")]
    SnapshotName(String),
    /// It goes on.
    #[error("the sandbox was not saved")]
    NotSaved(#[source] HostFailure),
    /// It goes on.
    #[error("the agent in the sandbox does not answer")]
    GuestUnresponsive,
    /// It can be booted from its disk.
    #[error("the agent in sandbox {sandbox_id} did not answer when it was paused")]
    SilentWhenPaused { sandbox_id: SandboxId },
    /// It is paused as before.
    #[error("the sandbox was not resumed")]
    NotResumed(#[source] Box<CreateError>),
    /// The command stays under way.
    #[error("the host has not confirmed in time")]
    TimedOut,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Why control could not take up the records of its predecessor.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("the {0} of the credentials is not its prefix and hexadecimal digits")]
    Credential(&'static str),
    #[error("failed to ask the host for its {what}")]
    Host {
        what: &'static str,
        #[source]
        source: HostFailure,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Every error of control, for the one place that translates them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Template(#[from] ResolveError),
}
