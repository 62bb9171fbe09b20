//! Why the pool did not do it.

use std::io;
use std::path::PathBuf;

use soulbox_types::MiB;

use crate::layer::LayerDigest;

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("failed to {doing} `{path}`")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`mkfs.btrfs` is not installed")]
    MkfsMissing,
    #[error("`mkfs.btrfs` could not format `{image}`: {message}")]
    MkfsFailed { image: PathBuf, message: String },
    #[error("the disk of `{image}` has {free} free, a pool of {wanted} does not fit")]
    DiskTooSmall {
        image: PathBuf,
        free: MiB,
        wanted: MiB,
    },
    #[error("a pool of {wanted} is too small, {least} is the least")]
    SizeTooSmall { wanted: MiB, least: MiB },
    #[error("no loop device could be had for `{image}`")]
    LoopDevice {
        image: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is a mount point, but not of this pool")]
    ForeignMount { path: PathBuf },
    #[error("`{path}` exists and is not a btrfs subvolume")]
    NotASubvolume { path: PathBuf },
    #[error("failed to mount `{image}` at `{path}`")]
    Mount {
        image: PathBuf,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another process has held `{path}` for {seconds} s")]
    Locked { path: PathBuf, seconds: u64 },
    #[error("only {free} of the pool are free, {reserve} are kept in reserve")]
    ReserveReached { free: MiB, reserve: MiB },
    #[error("only {free} of the disk are free, {wanted} are needed to save what is in memory")]
    NoRoomForMemory { free: MiB, wanted: MiB },
    #[error("`{name}` is no name for {what}")]
    BadName { what: &'static str, name: String },
    #[error("upper `{name}` exists already")]
    UpperExists { name: String },
    #[error("there is no upper `{name}`")]
    UpperMissing { name: String },
    #[error("failed to set the quota of upper `{name}`")]
    SetQuota {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("a layer has used more than {most} numbers of files")]
    TooManyFiles { most: u64 },
    #[error("the pool's file system has no quotas")]
    QuotaUnavailable,
    #[error("layer {digest} of template `{template}` is not in the pool")]
    LayerMissing {
        template: String,
        digest: LayerDigest,
    },
    #[error("manifest `{path}` cannot be read")]
    BadManifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("snapshot `{name}` exists already")]
    SnapshotExists { name: String },
    #[error("there is no snapshot `{name}`")]
    SnapshotMissing { name: String },
    #[error("snapshot `{name}` has no files of a sandbox")]
    NothingCaptured { name: String },
    #[error("`btrfs` of btrfs-progs is not installed")]
    BtrfsMissing,
    #[error("failed to {doing} files at `{path}`: {message}")]
    Transfer {
        doing: &'static str,
        path: PathBuf,
        message: String,
    },
    #[error("pool `{path}` is in use{}", by(.holders))]
    Busy {
        path: PathBuf,
        /// Programs and mounts, as far as they can be told.
        holders: Vec<String>,
    },
}

impl PoolError {
    /// For `map_err`: a failed step on a path.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source: source.into(),
        }
    }
}

fn by(holders: &[String]) -> String {
    match holders {
        [] => String::new(),
        holders => format!(" by {}", holders.join(", ")),
    }
}
