//! The sandboxes that have an owner in this process, by ID.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use soulbox_types::{SandboxId, SandboxState};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::live::LiveSandbox;
use crate::owner::Request;
use crate::store::{Progress, SandboxRow};

/// How to reach an owner and what it last said.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) row: Arc<SandboxRow>,
    pub(crate) live: Arc<LiveSandbox>,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) requests: mpsc::Sender<Request>,
    /// Changes of the network configuration, one after the other, so that row and host end with the same one.
    pub(crate) network_turn: Arc<tokio::sync::Mutex<()>>,
    /// One snapshot at a time, and none beside a pause; pauses join.
    pub(crate) snapshot_turn: Arc<tokio::sync::RwLock<()>>,
}

impl Handle {
    pub(crate) fn state(&self) -> SandboxState {
        self.progress.borrow().state
    }
}

#[derive(Default)]
pub(crate) struct Registry {
    handles: RwLock<HashMap<SandboxId, Handle>>,
    owners: TaskTracker,
    stopping: CancellationToken,
}

impl Registry {
    /// Enters an owner unless the sandbox has one; says whether it was entered.
    pub(crate) fn insert(&self, handle: Handle) -> bool {
        match self.write().entry(handle.row.sandbox_id.clone()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(handle);
                true
            }
        }
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        self.write().remove(id);
    }

    /// Changes what is asked of a sandbox that is still there.
    pub(crate) fn replace_row(&self, id: &SandboxId, row: Arc<SandboxRow>) {
        if let Some(handle) = self.write().get_mut(id) {
            handle.row = row;
        }
    }

    /// Lets a sandbox be found that runs again.
    pub(crate) fn replace_live(&self, id: &SandboxId, live: Arc<LiveSandbox>) {
        if let Some(handle) = self.write().get_mut(id) {
            handle.live = live;
        }
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Option<Handle> {
        self.read().get(id).cloned()
    }

    /// The sandbox, if it runs now. On the path of every proxied request: one hash, no allocation.
    pub(crate) fn live(&self, id: &SandboxId) -> Option<Arc<LiveSandbox>> {
        let handles = self.read();
        let live = &handles.get(id)?.live;
        (*live.state.borrow() == SandboxState::Running).then(|| live.clone())
    }

    /// Every sandbox that runs now.
    pub(crate) fn all_live(&self) -> Vec<Arc<LiveSandbox>> {
        let handles = self.read();
        let live = handles.values().map(|handle| &handle.live);
        live.filter(|live| *live.state.borrow() == SandboxState::Running)
            .cloned()
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<Handle> {
        self.read().values().cloned().collect()
    }

    pub(crate) fn owners(&self) -> &TaskTracker {
        &self.owners
    }

    /// Cancelled when the server stops; owners then leave their sandboxes running.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    // Every change of the map is one call, so a panic elsewhere does not spoil it.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner)
    }
}
