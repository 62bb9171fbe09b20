//! What a host keeps on disk for its sandboxes: read-only layers, one writable upper per sandbox, and the templates' manifests.
//!
//! ```text
//! <data>/pool.img              the loop file, where <data> is not on btrfs itself
//! <data>/pool.lock             held while the pool is opened, grown or unmounted
//! <data>/memory/               beside the loop file: images of processes, see [`memory`]
//! <data>/pool/                 btrfs: a subvolume of <data>'s own, or the mounted loop file
//!   layers/<sha256>/           a tree that never changes again; owners on disk are 0..65535
//!   drafts/<name>/             a layer in the making, locked by its maker
//!   templates/<name>.json      a [`TemplateManifest`]: the newest build of that name
//!   builds/<build>.json        a [`TemplateManifest`] of every build
//!   snapshots/<name>/          what a sandbox was, to go on from: a [`Snapshot`]
//!   restores/<name>/           links to a snapshot's images while a sandbox is made from them
//!   uppers/<name>/{u,w}        a subvolume with a quota: overlayfs's upper and work directories
//!   spares/<name>/{u,w}        an upper whose sandbox is gone, emptied, for the next one
//!   promises/<name>            the quota that an upper was promised, where it has less for now
//! ```
//!
//! Flow: `soulbox-build` fills a [`LayerDraft`] and puts a manifest; the host agent makes an [`Upper`] for every slot and
//! deletes it after the sandbox. Mounting the overlay is the runtime's. Everything here blocks and needs root.
#![forbid(unsafe_code)]

mod btrfs;
mod draft;
mod error;
mod holders;
mod image;
mod layer;
mod manifest;
mod memory;
mod numbers;
mod share;
mod snapshot;
mod spare;
mod transfer;
mod upper;

pub use btrfs::BtrfsPool;
pub use draft::LayerDraft;
pub use error::PoolError;
pub use layer::{DigestError, LayerDigest};
pub use manifest::{Inherited, TemplateManifest};
pub use snapshot::{Snapshot, SnapshotDraft, SnapshotPool};
pub use transfer::{Receiving, Sending};
pub use upper::Upper;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use soulbox_types::MiB;

/// Between two tries of an unmount.
const AGAIN: Duration = Duration::from_millis(100);

/// How a pool is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolOptions {
    /// The size of the loop file. Given: the file is made or grown to it and then left alone. Absent: 10 GiB or 60% of the
    /// free space, whichever is less, and it grows by itself. Without meaning where the data directory lies on btrfs.
    pub size: Option<MiB>,
}

/// Where the bytes of a pool are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A subvolume of the btrfs on which the data directory lies.
    Subvolume,
    /// A file, mounted through a loop device.
    LoopFile { image: PathBuf },
}

/// What holds a sandbox to its disk limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// btrfs simple quotas.
    Simple,
    /// btrfs full quota groups: the same limits, slower deletes.
    Full,
    /// The kernel offers neither: limits are not enforced, and whoever shows limits must say so.
    Unavailable,
}

/// The state of a pool at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    pub backing: Backing,
    pub quota: Quota,
    pub size_bytes: u64,
    pub free_bytes: u64,
    /// Below this much free space no upper is made.
    pub reserve_bytes: u64,
}

/// What [`Pool::grow_if_low`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// There is enough free space, or the size is fixed.
    NotNeeded,
    /// The pool has this many bytes now.
    Grown { size_bytes: u64 },
    /// Space is low and the host's disk has no more to give.
    HostFull,
}

/// Bytes that an upper takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What is on disk for it; data not yet written back is missing.
    pub bytes: u64,
    /// Its limit, if it has one.
    pub limit: Option<MiB>,
}

/// A place for layers, uppers and manifests. Every call blocks; the longest are [`Pool::begin_layer`] and [`Pool::grow_if_low`],
/// which may allocate gigabytes.
pub trait Pool: Send + Sync {
    /// Backing, quota and space.
    fn info(&self) -> Result<PoolInfo, PoolError>;

    /// Whether an upper may be made now.
    /// # Errors
    /// [`PoolError::ReserveReached`] when less than the reserve is free.
    fn reserve_ok(&self) -> Result<(), PoolError>;

    /// Enlarges the pool when less than a fifth of it is free and the host's disk allows. For a periodic task.
    fn grow_if_low(&self) -> Result<Growth, PoolError>;

    /// Makes the upper `name` (1 to 64 of `[a-z0-9-]`), empty, limited to `quota` or, where that is less, to half of what is free above the
    /// reserve. The caller deletes it.
    /// # Errors
    /// [`PoolError::ReserveReached`], [`PoolError::UpperExists`], and failed steps, which leave nothing behind.
    fn create_upper(&self, name: &str, quota: MiB) -> Result<Upper, PoolError>;

    /// Like [`Pool::create_upper`], for what becomes a layer: its files have numbers that those of no layer have. The first one of a pool
    /// takes 12 s.
    fn create_step_upper(&self, name: &str, quota: MiB) -> Result<Upper, PoolError>;

    /// Changes the limit of an upper; also below what it has, which then cannot grow.
    fn set_quota(&self, name: &str, quota: MiB) -> Result<(), PoolError>;

    /// Lets the limits of uppers follow what is free: down when others took it, up to what was promised when it came back. For a periodic
    /// task; where nothing is counted, it does nothing.
    fn share_out(&self) -> Result<(), PoolError>;

    /// What an upper takes. [`PoolError::QuotaUnavailable`] where nothing counts it.
    fn usage(&self, name: &str) -> Result<Usage, PoolError>;

    /// Deletes an upper; the space comes back later. An overlay that still uses it goes on until its last reference is gone.
    /// One that does not exist is deleted already.
    fn delete_upper(&self, name: &str) -> Result<(), PoolError>;

    /// The uppers there are, sorted.
    fn list_uppers(&self) -> Result<Vec<Upper>, PoolError>;

    /// Where the layer lies or would lie.
    fn layer_path(&self, digest: &LayerDigest) -> PathBuf;

    /// Whether the layer is complete and in place.
    fn has_layer(&self, digest: &LayerDigest) -> bool;

    /// The layer that has the name now: the one that [`Pool::name_layer`] gave it last, else the one whose digest it is.
    fn find_layer(&self, name: &LayerDigest) -> Result<Option<LayerDigest>, PoolError>;

    /// Gives a layer that is there another name, durably. Who has the layer that had the name keeps it.
    fn name_layer(&self, name: &LayerDigest, layer: &LayerDigest) -> Result<(), PoolError>;

    /// A new layer to fill.
    fn begin_layer(&self) -> Result<LayerDraft, PoolError>;

    /// Makes what an upper has at this moment a layer, durably; it is read-only then, and the upper goes on as it was. When a layer of
    /// that digest is there already, that one stays.
    /// # Errors
    /// [`PoolError::UpperMissing`], [`PoolError::ReserveReached`], and failed steps, which leave no layer.
    fn commit_upper(&self, upper: &str, digest: &LayerDigest) -> Result<(), PoolError>;

    /// The newest build of every name, sorted by name, read anew.
    fn templates(&self) -> Result<Vec<TemplateManifest>, PoolError>;

    /// Writes the manifest of a build, durably, and makes it the newest one of `manifest.name`.
    /// # Errors
    /// [`PoolError::LayerMissing`] when a layer that it names is not here.
    fn put_template(&self, manifest: &TemplateManifest) -> Result<(), PoolError>;

    /// Writes the manifest of a build, durably, under its build ID alone; a name that is this build stays so.
    /// # Errors
    /// [`PoolError::LayerMissing`] when a layer that it names is not here.
    fn put_build(&self, manifest: &TemplateManifest) -> Result<(), PoolError>;

    /// The manifest of a build, if it is here.
    fn build(&self, build_id: &str) -> Result<Option<TemplateManifest>, PoolError>;

    /// Forgets a build; its layers stay. One that is not there is forgotten already.
    fn delete_build(&self, build_id: &str) -> Result<(), PoolError>;

    /// The manifests of all builds.
    fn builds(&self) -> Result<Vec<TemplateManifest>, PoolError>;

    /// All layers that are in place, each with the time since which it is.
    fn list_layers(&self) -> Result<Vec<(LayerDigest, SystemTime)>, PoolError>;

    /// Deletes a layer, and other names that it has. The caller knows that nothing needs it: who has it as a part of its root reads errors
    /// from then on. One that is not there is deleted already.
    fn delete_layer(&self, digest: &LayerDigest) -> Result<(), PoolError>;

    /// Unmounts a loop-file pool; for a subvolume there is nothing to do. Overlays that still use it keep the file system alive.
    /// # Errors
    /// [`PoolError::Busy`] while files in it are open.
    fn unmount(&self) -> Result<(), PoolError>;

    /// [`Pool::unmount`], again and again for at most `patience` while something in it is open: what ends holds its files for a moment.
    /// # Errors
    /// As of the last try.
    fn unmount_within(&self, patience: Duration) -> Result<(), PoolError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.unmount() {
                Err(PoolError::Busy { .. }) if Instant::now() < deadline => thread::sleep(AGAIN),
                done => return done,
            }
        }
    }
}
