//! Making and unmaking sandboxes: slot, upper, runtime, in the right order. Blocking.
//!
//! What cannot be given back at once is kept as a leftover and tried again; its slot is not used until then.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soulbox_pool::{LayerDigest, PoolError, Snapshot, SnapshotPool, TemplateManifest};
use soulbox_types::Limits;

use crate::layers;
use crate::memory::MemoryError;
use crate::runtime::{
    DialError, GuestSettings, RestoreError, RootFiles, Runtime, RuntimeError, SavedProcesses,
};
use crate::slots::Slots;
use crate::snapshot::{Fingerprint, Known, Memory, RefusedError};

/// SIGKILL to the last exit; a process in an uninterruptible wait for a disk can take that long.
const END_TIMEOUT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error("all slots are in use")]
    NoSlot,
    #[error("the host is short of memory")]
    Memory(#[source] MemoryError),
    #[error("failed to prepare slot {slot}")]
    Prepare {
        slot: u16,
        #[source]
        source: RuntimeError,
    },
    #[error("failed to make the writable part of the root")]
    Upper(#[source] PoolError),
    #[error("layer `{0}` of the template is not in the pool")]
    LayerMissing(String),
    #[error("failed to boot slot {slot}")]
    Boot {
        slot: u16,
        #[source]
        source: RuntimeError,
    },
    #[error("snapshot `{snapshot}` is not used")]
    Refused {
        snapshot: String,
        #[source]
        source: RefusedError,
    },
    #[error("failed to tell what this host is like")]
    Fingerprint(#[source] io::Error),
    #[error("failed to restore snapshot `{snapshot}` in slot {slot}")]
    Restore {
        snapshot: String,
        slot: u16,
        #[source]
        source: RestoreError,
    },
    #[error("failed to connect to envd")]
    Dial(#[source] DialError),
    #[error("failed to get a descriptor of its end")]
    Ended(#[source] io::Error),
    #[error("failed to draw a secret")]
    Random(#[source] io::Error),
    #[error("failed to set its limits")]
    Limits(#[source] RuntimeError),
    #[error("failed to set its disk quota")]
    Quota(#[source] PoolError),
    #[error("failed to read the ranges of its egress")]
    Ranges(#[source] soulbox_types::ParseCidrError),
    #[error("failed to set its egress")]
    Egress(#[source] RuntimeError),
    #[error("it ended while it was started")]
    EndedEarly,
    #[error("failed to write its record")]
    Record(#[source] io::Error),
}

/// A parked slot and its number.
pub(crate) struct Prepared<R: Runtime> {
    pub(crate) slot: u16,
    pub(crate) parked: R::Parked,
}

/// A sandbox as it came off the bench.
pub(crate) struct Made<R: Runtime> {
    pub(crate) slot: u16,
    pub(crate) running: Arc<R::Running>,
    pub(crate) ended: OwnedFd,
    pub(crate) upper: String,
    /// Bytes that the upper had from the snapshot that it was made from.
    pub(crate) inherited: u64,
    /// Digest of its guest programs, where they are not this agent's.
    pub(crate) guests: Option<String>,
    pub(crate) init_secret: String,
    pub(crate) limits: Limits,
}

/// What an upper is at first.
enum First<'a> {
    Empty,
    /// Empty, and going to be a layer.
    OfStep,
    Snapshot(&'a Snapshot),
}

/// What is still to be given back of a sandbox that has ended, in this order.
struct Leftover<R: Runtime> {
    running: Option<Arc<R::Running>>,
    upper: Option<String>,
    slot: u16,
}

pub(crate) struct Workshop<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) pool: Arc<dyn SnapshotPool>,
    pub(crate) slots: Slots,
    /// Images that need not be read again.
    pub(crate) known: Known,
    leftovers: Mutex<Vec<Leftover<R>>>,
}

impl<R: Runtime> Workshop<R> {
    pub(crate) fn new(runtime: R, pool: Arc<dyn SnapshotPool>, slots: Slots) -> Self {
        Self {
            runtime,
            pool,
            slots,
            known: Known::default(),
            leftovers: Mutex::new(Vec::new()),
        }
    }

    /// Takes a slot and parks a launcher in it.
    pub(crate) fn prepare(&self, limits: &Limits) -> Result<Prepared<R>, MakeError> {
        let slot = self.slots.take().ok_or(MakeError::NoSlot)?;
        match self.runtime.prepare(slot, limits) {
            Ok(parked) => Ok(Prepared { slot, parked }),
            Err(source) => {
                self.slots.give_back(slot);
                Err(MakeError::Prepare { slot, source })
            }
        }
    }

    /// Boots a prepared slot with a template, or with what a snapshot had on disk. On an error the slot is given back.
    pub(crate) fn boot(
        &self,
        prepared: Prepared<R>,
        template: &TemplateManifest,
        snapshot: Option<&Snapshot>,
        limits: &Limits,
    ) -> Result<Made<R>, MakeError> {
        let Prepared { slot, parked } = prepared;
        let first = match snapshot {
            Some(snapshot) => First::Snapshot(snapshot),
            None if layers::is_of_step(template) => First::OfStep,
            None => First::Empty,
        };
        let ready = self.furnish(slot, &template.layers, first, limits);
        let (root, upper, init_secret) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // Before the slot's number is free again.
                drop(parked);
                self.slots.give_back(slot);
                return Err(error);
            }
        };
        let guest = GuestSettings {
            default_user: template.default_user.clone(),
            default_workdir: template.default_workdir.clone(),
            init_secret: init_secret.clone(),
        };
        let leftover = |running| Leftover {
            running,
            upper: Some(upper.clone()),
            slot,
        };
        let running = match self.runtime.boot(parked, &root, &guest) {
            Ok(running) => Arc::new(running),
            Err(source) => {
                self.give_back(leftover(None));
                return Err(MakeError::Boot { slot, source });
            }
        };
        match self.runtime.ended(&running) {
            Ok(ended) => Ok(Made {
                slot,
                running,
                ended,
                upper,
                inherited: snapshot.map_or(0, |snapshot| snapshot.disk_bytes),
                guests: None,
                init_secret,
                limits: *limits,
            }),
            Err(source) => {
                // Nothing could tell of its end, so it ends now; the runtime waits for it.
                self.runtime.kill(&running);
                self.give_back(leftover(Some(running)));
                Err(MakeError::Ended(source))
            }
        }
    }

    /// Lets the processes of a snapshot go on in a slot of their own. On an error nothing is left.
    pub(crate) fn restore(
        &self,
        layers: &[LayerDigest],
        snapshot: &Snapshot,
        memory: &Memory,
        limits: &Limits,
    ) -> Result<Made<R>, MakeError> {
        let refused = |source| MakeError::Refused {
            snapshot: snapshot.name.clone(),
            source,
        };
        let slot = self.slots.take().ok_or(MakeError::NoSlot)?;
        let failed = |source| MakeError::Restore {
            snapshot: snapshot.name.clone(),
            slot,
            source,
        };
        let made = (|| {
            let criu = self
                .runtime
                .checkpoints()
                .map_err(|missing| failed(RestoreError::Unsupported(missing)))?;
            let here = Fingerprint::of_this_host(criu).map_err(MakeError::Fingerprint)?;
            memory.fits(&here).map_err(refused)?;
            self.furnish(slot, layers, First::Snapshot(snapshot), limits)
        })();
        let (root, upper, _) = match made {
            Ok(made) => made,
            Err(error) => {
                self.slots.give_back(slot);
                return Err(error);
            }
        };
        let saved = SavedProcesses {
            images: snapshot.images.clone(),
            folder: self.pool.restore_folder(snapshot, &upper),
            guests: memory.guests.clone(),
        };
        let restored = self
            .verified(memory, &snapshot.images, |made| {
                self.runtime.restore(slot, limits, &root, &saved, made)
            })
            .map_err(refused)
            .and_then(|restored| restored.map_err(failed));
        if let Err(error) = self.pool.delete_restore(&upper) {
            // The next agent does it: there is one name for each restore.
            tracing::warn!(error = %crate::chain(&error), "failed to delete the links of a restore");
        }
        let leftover = |running| Leftover {
            running,
            upper: Some(upper.clone()),
            slot,
        };
        let running = match restored {
            Ok(running) => Arc::new(running),
            Err(error) => {
                self.give_back(leftover(None));
                return Err(error);
            }
        };
        match self.runtime.ended(&running) {
            Ok(ended) => Ok(Made {
                slot,
                running,
                ended,
                upper,
                inherited: snapshot.disk_bytes,
                guests: Some(memory.guests.clone()),
                init_secret: memory.init_secret.clone(),
                limits: *limits,
            }),
            Err(source) => {
                self.runtime.kill(&running);
                self.give_back(leftover(Some(running)));
                Err(MakeError::Ended(source))
            }
        }
    }

    /// Has processes restored by `restore`, which gets what is to be done before one of them runs, and finds out whether their images
    /// are what they were: what CRIU goes by before it begins, what it only puts into their memory while it does.
    fn verified<T>(
        &self,
        memory: &Memory,
        images: &Path,
        restore: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> T,
    ) -> Result<T, RefusedError> {
        if self.known.has(images) {
            return Ok(restore(&mut || Ok(())));
        }
        let stamps = Known::stamps(images);
        memory.check_processes(images)?;
        let (restored, contents) = thread::scope(|scope| {
            let mut reading = Some(scope.spawn(|| memory.check_contents(images)));
            let mut contents = None;
            let mut wait = || match reading.take() {
                Some(reading) => contents
                    .insert(
                        reading
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    )
                    .is_ok(),
                None => matches!(contents, Some(Ok(()))),
            };
            let restored = restore(&mut || {
                wait()
                    .then_some(())
                    .ok_or_else(|| io::Error::other("its images are not what they were"))
            });
            // Where it fails for that alone, that is said.
            wait();
            (restored, contents.unwrap_or(Ok(())))
        });
        contents?;
        if let Some(stamps) = stamps {
            self.known.note(images, stamps);
        }
        Ok(restored)
    }

    /// The files of a root, with an upper of its own, and a secret.
    fn furnish(
        &self,
        slot: u16,
        layers: &[LayerDigest],
        first: First<'_>,
        limits: &Limits,
    ) -> Result<(RootFiles, String, String), MakeError> {
        for layer in layers {
            if !self.pool.has_layer(layer) {
                return Err(MakeError::LayerMissing(layer.as_str().to_owned()));
            }
        }
        let mut random = [0u8; 40];
        getrandom::fill(&mut random)
            .map_err(|error| MakeError::Random(io::Error::other(error.to_string())))?;
        let (for_name, secret) = random.split_at(8);
        // Unique for ever, so that a leftover of a crash is never taken for the new one.
        let name = format!("{slot}-{}", hex::encode(for_name));
        let upper = match first {
            First::Empty => self.pool.create_upper(&name, limits.disk),
            First::OfStep => self.pool.create_step_upper(&name, limits.disk),
            First::Snapshot(from) => self.pool.create_upper_from(&from.name, &name, limits.disk),
        }
        .map_err(MakeError::Upper)?;
        let root = RootFiles {
            layers: layers
                .iter()
                .map(|layer| self.pool.layer_path(layer))
                .collect(),
            upper: upper.path,
        };
        Ok((root, name, hex::encode(secret)))
    }

    /// Ends a sandbox that nobody owns and gives everything back.
    pub(crate) fn discard(&self, made: Made<R>) {
        self.retire(made.running, &made.ended, made.upper, made.slot);
    }

    /// Ends processes that nobody owns and gives back what they had.
    pub(crate) fn retire(
        &self,
        running: Arc<R::Running>,
        ended: &OwnedFd,
        upper: String,
        slot: u16,
    ) {
        self.runtime.kill(&running);
        let mut polled = [PollFd::new(ended, PollFlags::IN)];
        let _ = poll(&mut polled, Some(&END_TIMEOUT));
        self.release(running, upper, slot);
    }

    /// Gives an unused slot back.
    pub(crate) fn discard_prepared(&self, prepared: Prepared<R>) {
        drop(prepared.parked);
        self.slots.give_back(prepared.slot);
    }

    /// Gives back what an ended sandbox had.
    pub(crate) fn release(&self, running: Arc<R::Running>, upper: String, slot: u16) {
        self.give_back(Leftover {
            running: Some(running),
            upper: Some(upper),
            slot,
        });
    }

    /// Tries once more to give back what could not be given back before; returns how much is left.
    pub(crate) fn retry_leftovers(&self) -> usize {
        let leftovers = std::mem::take(&mut *self.leftovers());
        for leftover in leftovers {
            self.give_back(leftover);
        }
        self.leftovers().len()
    }

    fn give_back(&self, mut leftover: Leftover<R>) {
        let slot = leftover.slot;
        if let Some(running) = leftover.running.take()
            && let Err(error) = self.runtime.release(&running)
        {
            tracing::warn!(slot, error = %crate::chain(&error), "failed to release a slot, trying again later");
            leftover.running = Some(running);
            self.leftovers().push(leftover);
            return;
        }
        if let Some(upper) = leftover.upper.take()
            && let Err(error) = self.pool.delete_upper(&upper)
        {
            tracing::warn!(slot, error = %crate::chain(&error), "failed to delete an upper, trying again later");
            leftover.upper = Some(upper);
            self.leftovers().push(leftover);
            return;
        }
        self.slots.give_back(slot);
    }

    fn leftovers(&self) -> std::sync::MutexGuard<'_, Vec<Leftover<R>>> {
        self.leftovers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
