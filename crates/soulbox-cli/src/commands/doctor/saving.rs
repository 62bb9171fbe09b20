//! Whether processes can be saved and go on, tried on a sandbox with nothing in it but its daemon.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use soulbox_build::bottom;
use soulbox_host::instance::InstanceClaim;
use soulbox_pool::{BtrfsPool, Pool, PoolOptions};
use soulbox_runtime::criu::{self, Criu};
use soulbox_runtime::identity::Slot;
use soulbox_runtime::native::checkpoint::{After, Dumped};
use soulbox_runtime::native::{self, Native, Running};
use soulbox_runtime::network::NetworkPolicy;
use soulbox_runtime::plan;
use soulbox_runtime::rootfs::RootSource;
use soulbox_types::{Limits, MiB, MilliCpu};

use super::Found;
use super::probe::{Mounted, POOL_SIZE};
use crate::agent::unpack_guests;
use crate::criu::{MEND, find};
use crate::failure::chain;

const LIMITS: Limits = Limits {
    memory: MiB(128),
    cpu: MilliCpu(1000),
    pids: 64,
    disk: MiB(16),
};
/// It takes a tenth of a second.
const WITHIN: Duration = Duration::from_secs(20);

/// Dumps a sandbox, ends it, and restores it.
pub(super) fn processes(setting: Option<&Path>) -> Found {
    let criu = find(setting).map_err(|missing| (missing, MEND.to_owned()))?;
    match attempt(&criu) {
        Ok(()) => Ok(format!("CRIU {}", criu.version())),
        Err(error) => Err((
            format!("CRIU {}: {}", criu.version(), chain(error.as_ref())),
            "use a kernel and a CRIU that work together, such as those of Debian forky".to_owned(),
        )),
    }
}

fn attempt(criu: &Criu) -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("failed to make a directory")?;
    let data = directory.path();
    let size = Some(POOL_SIZE);
    let pool = Mounted(BtrfsPool::open(data, PoolOptions { size })?);
    let guests = unpack_guests(data).map_err(|failure| anyhow!("{failure}"))?;
    let place = Place::take(data)?;
    let instance = place.claim().instance();
    let native = Native::start(
        instance,
        &guests,
        &data.join("run"),
        &NetworkPolicy::default(),
    )?;
    let slot = Slot::new(instance, 0).context("there is no first slot")?;
    let layer = pool.0.begin_layer()?;
    bottom::finish(layer.path())?;
    let source = RootSource {
        layers: vec![layer.path().to_owned()],
        upper: pool.0.create_upper("probe", LIMITS.disk)?.path,
    };
    let images = data.join("pool/images");
    fs::create_dir(&images).context("failed to make a folder for images")?;

    let parked = native.prepare(slot, &LIMITS)?;
    let running = native.boot(parked, source.clone(), &plan::boot("root", "/", "00"))?;
    native.dump(criu, &running, &images, After::End, WITHIN, &mut || Ok(()))?;
    end(&native, &running)?;
    // overlayfs refuses a work directory that was used.
    let work = source.upper.join(soulbox_runtime::rootfs::WORK);
    fs::remove_dir_all(&work)
        .and_then(|()| fs::create_dir(&work))
        .context("failed to make a work directory")?;
    let own = data.join("pool/own");
    criu::remap(&images, &own, slot.id_base())?;
    let dumped = Dumped {
        images: &own,
        guests: &guests,
        root: source,
    };
    let restored = native.restore(criu, slot, &LIMITS, dumped, WITHIN, &mut || Ok(()))?;
    Ok(end(&native, &restored)?)
}

fn end(native: &Native, running: &Running) -> Result<(), native::NativeError> {
    running.kill();
    native.release(running)
}

/// A number among the installations of the host; given back with all that is left of the attempt.
struct Place {
    claim: Option<InstanceClaim>,
}

impl Place {
    fn take(data: &Path) -> anyhow::Result<Self> {
        let claim = Some(InstanceClaim::take(data)?);
        Ok(Self { claim })
    }

    fn claim(&self) -> &InstanceClaim {
        #[expect(clippy::expect_used, reason = "only drop takes it")]
        self.claim.as_ref().expect("claimed")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            // What fails here, `soulbox doctor --sweep` finds.
            let _ = native::remove(claim.instance());
            claim.release();
        }
    }
}
