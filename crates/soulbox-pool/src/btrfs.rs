//! The pool on btrfs: opening, adopting, quotas, space.

mod snapshots;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock, statfs};
use soulbox_sys::btrfs::{self, QuotaKind, SUBVOLUME_ROOT_INODE};
use soulbox_types::MiB;

use crate::draft::{self, LayerDraft};
use crate::layer::{self, LayerDigest};
use crate::manifest::{self, TemplateManifest};
use crate::memory::Memory;
use crate::numbers::Counter;
use crate::share::{self, Share};
use crate::snapshot::SnapshotPool;
use crate::spare::Spares;
use crate::upper::{self, Upper};
use crate::{Backing, Growth, Pool, PoolError, PoolInfo, PoolOptions, Quota, Usage, image};

const BTRFS_SUPER_MAGIC: u64 = 0x9123_683E; // linux/magic.h
/// Of a hundred parts of the pool, how many stay free.
const RESERVE_PERCENT: u64 = 5;
/// Formatting and mounting take well under this.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// The pool of one data directory. Dropping it leaves it mounted: sandboxes outlive the process.
#[derive(Debug)]
pub struct BtrfsPool {
    root: PathBuf,
    lock: PathBuf,
    backing: Backing,
    /// Whether [`Pool::grow_if_low`] may enlarge it.
    grows: bool,
    quota: Quota,
    /// `/sys/fs/btrfs/<uuid>/qgroups`: what the kernel counts, live.
    qgroups: PathBuf,
    spares: Spares,
    memory: Option<Memory>,
}

impl BtrfsPool {
    /// Opens the pool of the data directory, which exists; makes, formats and mounts what is missing, adopts what is there,
    /// and deletes what dead builds left. More than one process may have it open.
    pub fn open(data: &Path, options: PoolOptions) -> Result<Self, PoolError> {
        let data = data
            .canonicalize()
            .map_err(PoolError::io("resolve", data))?;
        let lock = data.join("pool.lock");
        let _held = Lock::take(&lock)?;
        let root = data.join("pool");
        let backing = if is_btrfs(&data)? {
            open_subvolume(&data, &root)?;
            Backing::Subvolume
        } else {
            let image = data.join("pool.img");
            open_image(&image, &root, options.size)?;
            Backing::LoopFile { image }
        };
        for name in [
            "layers",
            "drafts",
            "templates",
            "builds",
            "names",
            "uppers",
            "spares",
            "promises",
            "snapshots",
            "restores",
        ] {
            let path = root.join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(PoolError::io("create", &path)(error));
                }
                _ => {}
            }
        }
        let directory = File::open(&root).map_err(PoolError::io("open", &root))?;
        let id =
            btrfs::file_system_id(directory.as_fd()).map_err(PoolError::io("identify", &root))?;
        let qgroups = PathBuf::from(format!("/sys/fs/btrfs/{}/qgroups", uuid(id)));
        let quota = enable_quota(&directory, &qgroups);
        let grows = options.size.is_none() && backing != Backing::Subvolume;
        let spares = Spares::open(root.join("uppers"), root.join("spares"))?;
        let memory = match backing {
            Backing::Subvolume => None,
            Backing::LoopFile { .. } => Some(Memory::open(&data)?),
        };
        let pool = Self {
            root,
            lock,
            backing,
            grows,
            quota,
            qgroups,
            spares,
            memory,
        };
        draft::sweep(&pool.drafts())?;
        // One that cannot be deleted now harms nobody: the host sweeps again, and tells.
        let _ = pool.sweep_snapshots();
        for entry in fs::read_dir(pool.layers()).map_err(PoolError::io("list", pool.layers()))? {
            draft::seal(&entry.map_err(PoolError::io("list", pool.layers()))?.path())?;
        }
        Ok(pool)
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn drafts(&self) -> PathBuf {
        self.root.join("drafts")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("templates")
    }

    fn build_manifests(&self) -> PathBuf {
        self.root.join("builds")
    }

    /// Layers that have another name than their own, a file for each name.
    fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    fn counter(&self) -> Counter {
        Counter::of(&self.root)
    }

    fn make_upper(
        &self,
        name: &str,
        quota: MiB,
        counter: Option<&Counter>,
    ) -> Result<Upper, PoolError> {
        self.reserve_ok()?;
        let share = match self.quota {
            Quota::Unavailable => None,
            _ => Some(Share::of(quota, 0, &self.info()?)),
        };
        if let Some(share) = share {
            // Checked here since it names a file.
            upper::check_name(name)?;
            share
                .remember(&self.promises(), name)
                .map_err(PoolError::io("note a promise in", self.promises()))?;
        }
        match counter.is_none().then(|| self.spares.take(name)).flatten() {
            Some(spare) => match share.map_or(Ok(()), |share| upper::limit(&spare, share)) {
                Ok(()) => Ok(spare),
                Err(error) => {
                    // The first error tells why; what stays is found by `list_uppers`.
                    let _ = upper::delete(&self.uppers(), name);
                    Err(error)
                }
            },
            None => upper::create(&self.uppers(), name, share, counter),
        }
    }

    fn check_layers(&self, manifest: &TemplateManifest) -> Result<(), PoolError> {
        let missing = |digest: &&LayerDigest| !self.has_layer(digest);
        match manifest.layers.iter().find(missing) {
            None => Ok(()),
            Some(digest) => Err(PoolError::LayerMissing {
                template: manifest.name.clone(),
                digest: digest.clone(),
            }),
        }
    }

    fn uppers(&self) -> PathBuf {
        self.root.join("uppers")
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Hurries the kernel where deleted uppers may be what is missing.
    fn reclaim_if_low(&self) -> Result<(), PoolError> {
        if self.reserve_ok().is_ok() {
            return Ok(());
        }
        File::open(&self.root)
            .and_then(|root| btrfs::commit(root.as_fd()))
            .map_err(PoolError::io("write back", &self.root))
    }

    fn share_out_to(&self, upper: &Upper) -> Result<(), PoolError> {
        let usage = self.usage(&upper.name)?;
        let promises = self.promises();
        let noted = share::promised(&promises, &upper.name)
            .map_err(PoolError::io("read a promise in", &promises))?;
        // One without a limit was promised nothing that could be kept or broken.
        let Some(promised) = noted.or(usage.limit) else {
            return Ok(());
        };
        let share = Share::of(promised, usage.bytes, &self.info()?);
        if usage.limit == Some(share.now) {
            return Ok(());
        }
        self.limit(upper, share)
    }

    fn limit(&self, upper: &Upper, share: Share) -> Result<(), PoolError> {
        let promises = self.promises();
        share
            .remember(&promises, &upper.name)
            .map_err(PoolError::io("note a promise in", &promises))?;
        upper::limit(upper, share)
    }

    /// What uppers were promised that have less now, a file each.
    fn promises(&self) -> PathBuf {
        self.root.join("promises")
    }

    fn find_upper(&self, name: &str) -> Result<(Upper, File), PoolError> {
        upper::check_name(name)?;
        let upper = Upper {
            name: name.to_owned(),
            path: self.uppers().join(name),
        };
        let directory = upper::open(&upper)?;
        Ok((upper, directory))
    }
}

impl Pool for BtrfsPool {
    fn info(&self) -> Result<PoolInfo, PoolError> {
        let stats = statfs(&self.root).map_err(PoolError::io("measure", &self.root))?;
        let block = u64::try_from(stats.f_bsize).unwrap_or(0);
        let size_bytes = stats.f_blocks * block;
        Ok(PoolInfo {
            backing: self.backing.clone(),
            quota: self.quota,
            size_bytes,
            free_bytes: stats.f_bavail * block,
            reserve_bytes: size_bytes / 100 * RESERVE_PERCENT,
        })
    }

    fn reserve_ok(&self) -> Result<(), PoolError> {
        let info = self.info()?;
        if info.free_bytes < info.reserve_bytes {
            return Err(PoolError::ReserveReached {
                free: MiB(info.free_bytes >> 20),
                reserve: MiB(info.reserve_bytes >> 20),
            });
        }
        Ok(())
    }

    fn grow_if_low(&self) -> Result<Growth, PoolError> {
        let Backing::LoopFile { image } = &self.backing else {
            return Ok(Growth::NotNeeded);
        };
        let low = |info: &PoolInfo| info.free_bytes < info.size_bytes / 5;
        if !self.grows || !low(&self.info()?) {
            return Ok(Growth::NotNeeded);
        }
        let _held = Lock::take(&self.lock)?;
        if !low(&self.info()?) {
            return Ok(Growth::NotNeeded); // another process was first
        }
        let step = image::growth_allowed(image)?;
        if step == MiB(0) {
            return Ok(Growth::HostFull);
        }
        image::grow_to(image, &self.root, MiB(image::size(image)?.0 + step.0))?;
        Ok(Growth::Grown {
            size_bytes: self.info()?.size_bytes,
        })
    }

    fn create_upper(&self, name: &str, quota: MiB) -> Result<Upper, PoolError> {
        let upper = self.make_upper(name, quota, None)?;
        self.spares.began(name);
        Ok(upper)
    }

    fn create_step_upper(&self, name: &str, quota: MiB) -> Result<Upper, PoolError> {
        self.make_upper(name, quota, Some(&self.counter()))
    }

    fn set_quota(&self, name: &str, quota: MiB) -> Result<(), PoolError> {
        if self.quota == Quota::Unavailable {
            return Err(PoolError::QuotaUnavailable);
        }
        let (upper, _) = self.find_upper(name)?;
        let used = self.usage(name)?.bytes;
        self.limit(&upper, Share::of(quota, used, &self.info()?))
    }

    fn share_out(&self) -> Result<(), PoolError> {
        self.reclaim_if_low()?;
        if self.quota == Quota::Unavailable {
            return Ok(());
        }
        for upper in self.list_uppers()? {
            match self.share_out_to(&upper) {
                // Deleted meanwhile.
                Err(_) if !upper.path.exists() => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn usage(&self, name: &str) -> Result<Usage, PoolError> {
        if self.quota == Quota::Unavailable {
            return Err(PoolError::QuotaUnavailable);
        }
        let (upper, directory) = self.find_upper(name)?;
        let id = btrfs::subvolume_id(directory.as_fd())
            .map_err(PoolError::io("identify", &upper.path))?;
        let group = self.qgroups.join(format!("0_{id}"));
        let limit = read_number(&group.join("max_referenced"))?;
        Ok(Usage {
            bytes: read_number(&group.join("referenced"))?,
            limit: (limit != 0 && limit != u64::MAX).then_some(MiB(limit >> 20)),
        })
    }

    fn delete_upper(&self, name: &str) -> Result<(), PoolError> {
        if !self.spares.keep(name) {
            upper::delete(&self.uppers(), name)?;
        }
        share::forget(&self.promises(), name)
            .map_err(PoolError::io("delete a promise in", self.promises()))?;
        self.reclaim_if_low()
    }

    fn list_uppers(&self) -> Result<Vec<Upper>, PoolError> {
        upper::list(&self.uppers())
    }

    fn layer_path(&self, digest: &LayerDigest) -> PathBuf {
        self.layers().join(digest.as_str())
    }

    fn has_layer(&self, digest: &LayerDigest) -> bool {
        self.layer_path(digest).is_dir()
    }

    fn find_layer(&self, name: &LayerDigest) -> Result<Option<LayerDigest>, PoolError> {
        let path = self.names().join(name.as_str());
        let given = match fs::read_to_string(&path) {
            // Half a name, of a crash, is none.
            Ok(text) => text.parse().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(PoolError::io("read", &path)(error)),
        };
        let there = |layer: &LayerDigest| self.has_layer(layer);
        Ok(given
            .filter(there)
            .or_else(|| Some(name.clone()).filter(there)))
    }

    fn name_layer(&self, name: &LayerDigest, layer: &LayerDigest) -> Result<(), PoolError> {
        let path = self.names().join(name.as_str());
        // One directory, so a file that is not whole is never seen.
        let new = self.names().join(format!("{}.new", layer.as_str()));
        fs::write(&new, layer.as_str())
            .and_then(|()| File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .map_err(PoolError::io("write", &path))
    }

    fn begin_layer(&self) -> Result<LayerDraft, PoolError> {
        self.grow_if_low()?;
        self.reserve_ok()?;
        LayerDraft::begin(&self.drafts(), &self.layers(), self.counter())
    }

    fn commit_upper(&self, upper: &str, digest: &LayerDigest) -> Result<(), PoolError> {
        if self.has_layer(digest) {
            return Ok(());
        }
        self.grow_if_low()?;
        self.reserve_ok()?;
        let (found, _) = self.find_upper(upper)?;
        self.spares.shared(upper);
        LayerDraft::from_upper(&self.drafts(), &self.layers(), self.counter(), &found)?
            .commit(digest)?;
        Ok(())
    }

    fn templates(&self) -> Result<Vec<TemplateManifest>, PoolError> {
        let mut templates = manifest::read_all(&self.manifests())?;
        for template in &mut templates {
            // A name says which build it is; what is known of that may have changed since.
            if let Some(build) = self.build(&template.build_id)? {
                *template = build;
            }
        }
        Ok(templates)
    }

    fn put_template(&self, manifest: &TemplateManifest) -> Result<(), PoolError> {
        self.put_build(manifest)?;
        manifest::write(&self.manifests(), &manifest.name, manifest)
    }

    fn put_build(&self, manifest: &TemplateManifest) -> Result<(), PoolError> {
        self.check_layers(manifest)?;
        manifest::write(&self.build_manifests(), &manifest.build_id, manifest)
    }

    fn build(&self, build_id: &str) -> Result<Option<TemplateManifest>, PoolError> {
        manifest::read(&self.build_manifests(), build_id)
    }

    fn delete_build(&self, build_id: &str) -> Result<(), PoolError> {
        manifest::delete(&self.build_manifests(), build_id)
    }

    fn builds(&self) -> Result<Vec<TemplateManifest>, PoolError> {
        manifest::read_all(&self.build_manifests())
    }

    fn list_layers(&self) -> Result<Vec<(LayerDigest, SystemTime)>, PoolError> {
        layer::list(&self.layers())
    }

    fn delete_layer(&self, digest: &LayerDigest) -> Result<(), PoolError> {
        layer::delete(&self.layers(), &self.names(), digest)
    }

    fn unmount(&self) -> Result<(), PoolError> {
        match self.backing {
            Backing::Subvolume => Ok(()),
            Backing::LoopFile { .. } => {
                let _held = Lock::take(&self.lock)?;
                image::unmount_from(&self.root)
            }
        }
    }
}

fn open_subvolume(data: &Path, root: &Path) -> Result<(), PoolError> {
    if !root.exists() {
        let parent = File::open(data).map_err(PoolError::io("open", data))?;
        btrfs::create_subvolume(parent.as_fd(), c"pool")
            .map_err(PoolError::io("create subvolume", root))?;
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(PoolError::io("set the mode of", root))?;
    }
    let inode = fs::metadata(root)
        .map_err(PoolError::io("read", root))?
        .ino();
    if inode == SUBVOLUME_ROOT_INODE && is_btrfs(root)? {
        Ok(())
    } else {
        Err(PoolError::NotASubvolume {
            path: root.to_owned(),
        })
    }
}

fn open_image(image: &Path, root: &Path, size: Option<MiB>) -> Result<(), PoolError> {
    if is_mount_point(root)? {
        // The server before us left it mounted, or a build has it open.
        if !image.exists() || !image::is_mounted_from(image, root)? {
            return Err(PoolError::ForeignMount {
                path: root.to_owned(),
            });
        }
    } else {
        image::ensure(image, size)?;
        image::mount_at(image, root)?;
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(PoolError::io("set the mode of", root))?;
    }
    match size {
        Some(size) if image::size(image)? < size => image::grow_to(image, root, size),
        _ => Ok(()),
    }
}

fn is_mount_point(path: &Path) -> Result<bool, PoolError> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(PoolError::io("read", path))?,
    };
    let above = fs::metadata(path.join("..")).map_err(PoolError::io("read", path))?;
    Ok(metadata.dev() != above.dev())
}

fn is_btrfs(path: &Path) -> Result<bool, PoolError> {
    let stats = statfs(path).map_err(PoolError::io("measure", path))?;
    Ok(u64::try_from(stats.f_type).is_ok_and(|magic| magic == BTRFS_SUPER_MAGIC))
}

/// Takes the quotas that the file system has, else the best kind that it accepts.
fn enable_quota(directory: &File, qgroups: &Path) -> Quota {
    if let Some(found) = quota_in_force(qgroups) {
        return found;
    }
    // Refused kinds are the normal case on older kernels; what came of it is in `PoolInfo`.
    for kind in [QuotaKind::Simple, QuotaKind::Full] {
        if btrfs::enable_quota(directory.as_fd(), kind).is_ok() {
            return quota_in_force(qgroups).unwrap_or(match kind {
                QuotaKind::Simple => Quota::Simple,
                QuotaKind::Full => Quota::Full,
            });
        }
    }
    Quota::Unavailable
}

fn quota_in_force(qgroups: &Path) -> Option<Quota> {
    let enabled = fs::read_to_string(qgroups.join("enabled")).ok()?;
    if enabled.trim() != "1" {
        return None;
    }
    // Kernels that know no simple quotas have no `mode`.
    match fs::read_to_string(qgroups.join("mode")) {
        Ok(mode) if mode.trim() == "squota" => Some(Quota::Simple),
        _ => Some(Quota::Full),
    }
}

fn read_number(path: &Path) -> Result<u64, PoolError> {
    let text = fs::read_to_string(path).map_err(PoolError::io("read", path))?;
    text.trim().parse().map_err(|error| {
        PoolError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, error))
    })
}

fn uuid(id: [u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Serialises opening, growing and unmounting between processes. Gone when dropped.
struct Lock(#[expect(dead_code, reason = "closing it gives the lock back")] File);

impl Lock {
    fn take(path: &Path) -> Result<Self, PoolError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(PoolError::io("open", path))?;
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    thread::sleep(Duration::from_millis(50))
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(PoolError::Locked {
                        path: path.to_owned(),
                        seconds: LOCK_PATIENCE.as_secs(),
                    });
                }
                Err(error) => return Err(PoolError::io("lock", path)(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_id_is_spelt_as_in_sysfs() {
        let id = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        assert_eq!(uuid(id), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
