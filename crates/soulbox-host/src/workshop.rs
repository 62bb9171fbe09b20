//! Making and unmaking sandboxes: slot, upper, runtime, in the right order. Blocking.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soulbox_pool::{Pool, PoolError, TemplateManifest};
use soulbox_types::Limits;

use crate::runtime::{DialError, GuestSettings, RootFiles, Runtime, RuntimeError};
use crate::slots::Slots;

/// SIGKILL to the last exit; a process in an uninterruptible wait for a disk can take that long.
const END_TIMEOUT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error("all slots are in use")]
    NoSlot,
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
    pub(crate) init_secret: String,
    pub(crate) limits: Limits,
}

pub(crate) struct Workshop<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) slots: Slots,
}

impl<R: Runtime> Workshop<R> {
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

    /// Boots a prepared slot with a template. On an error the slot is given back.
    pub(crate) fn boot(
        &self,
        prepared: Prepared<R>,
        template: &TemplateManifest,
        limits: &Limits,
    ) -> Result<Made<R>, MakeError> {
        let Prepared { slot, parked } = prepared;
        let made = (|| {
            for layer in &template.layers {
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
            let init_secret = hex::encode(secret);
            let upper = self
                .pool
                .create_upper(&name, limits.disk)
                .map_err(MakeError::Upper)?;
            let undo = |error| {
                let _ = self.pool.delete_upper(&name);
                error
            };
            let root = RootFiles {
                layers: template
                    .layers
                    .iter()
                    .map(|layer| self.pool.layer_path(layer))
                    .collect(),
                upper: upper.path,
            };
            let guest = GuestSettings {
                default_user: template.default_user.clone(),
                default_workdir: template.default_workdir.clone(),
                init_secret: init_secret.clone(),
            };
            let running = self
                .runtime
                .boot(parked, &root, &guest)
                .map_err(|source| MakeError::Boot { slot, source })
                .map_err(undo)?;
            let ended = self.runtime.ended(&running).map_err(MakeError::Ended)?;
            Ok(Made {
                slot,
                running: Arc::new(running),
                ended,
                upper: name,
                init_secret,
                limits: *limits,
            })
        })();
        if made.is_err() {
            self.slots.give_back(slot);
        }
        made
    }

    /// Ends a sandbox that nobody owns and gives everything back.
    pub(crate) fn discard(&self, made: Made<R>) {
        self.runtime.kill(&made.running);
        let mut polled = [PollFd::new(&made.ended, PollFlags::IN)];
        let _ = poll(&mut polled, Some(&END_TIMEOUT));
        self.release(&made.running, &made.upper, made.slot);
    }

    /// Gives an unused slot back.
    pub(crate) fn discard_prepared(&self, prepared: Prepared<R>) {
        drop(prepared.parked);
        self.slots.give_back(prepared.slot);
    }

    /// Gives back what an ended sandbox had.
    pub(crate) fn release(&self, running: &R::Running, upper: &str, slot: u16) {
        if let Err(error) = self.runtime.release(running) {
            tracing::warn!(slot, error = %crate::chain(&error), "failed to release a slot; it is not used again");
            return;
        }
        if let Err(error) = self.pool.delete_upper(upper) {
            tracing::warn!(slot, error = %crate::chain(&error), "failed to delete an upper; the next start will");
        }
        self.slots.give_back(slot);
    }
}
