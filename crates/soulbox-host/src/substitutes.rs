//! Sandboxes that were prepared to take the place of live ones, for a rollback.
//!
//! A substitute runs and belongs to nobody: it is in no record, so an agent that starts ends it. The owner of the live sandbox takes it
//! ([`Substitutes::take`]) when its place is to be taken, or the host does when it is not wanted any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::runtime::Runtime;
use crate::snapshot::RootBasis;
use crate::workshop::Made;

/// A sandbox that may take the place of another.
pub(crate) struct Substitute<R: Runtime> {
    pub(crate) made: Made<R>,
    pub(crate) basis: RootBasis,
    /// Digest of its guest programs.
    pub(crate) guests: String,
}

/// At most one for each live sandbox, by its ID.
pub(crate) struct Substitutes<R: Runtime> {
    /// `None` while it is being made.
    all: Mutex<HashMap<String, Option<Substitute<R>>>>,
}

impl<R: Runtime> Default for Substitutes<R> {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
        }
    }
}

impl<R: Runtime> Substitutes<R> {
    /// Takes the place of one that is to be made; false when there is one.
    pub(crate) fn reserve(&self, sandbox_id: &str) -> bool {
        match self.lock().entry(sandbox_id.to_owned()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(None);
                true
            }
        }
    }

    /// It was not made.
    pub(crate) fn give_up(&self, sandbox_id: &str) {
        self.lock().remove(sandbox_id);
    }

    pub(crate) fn put(&self, sandbox_id: &str, substitute: Substitute<R>) {
        self.lock().insert(sandbox_id.to_owned(), Some(substitute));
    }

    /// The substitute, if it is made.
    pub(crate) fn take(&self, sandbox_id: &str) -> Option<Substitute<R>> {
        self.take_if(sandbox_id, |_| true)
    }

    /// The substitute, if it is made and the very one of that upper.
    pub(crate) fn take_of(&self, sandbox_id: &str, upper: &str) -> Option<Substitute<R>> {
        self.take_if(sandbox_id, |it| it.made.upper == upper)
    }

    /// All that are made.
    pub(crate) fn drain(&self) -> Vec<Substitute<R>> {
        self.lock().drain().filter_map(|(_, it)| it).collect()
    }

    fn take_if(
        &self,
        sandbox_id: &str,
        wanted: impl FnOnce(&Substitute<R>) -> bool,
    ) -> Option<Substitute<R>> {
        let mut all = self.lock();
        if !all.get(sandbox_id)?.as_ref().is_some_and(wanted) {
            return None;
        }
        all.remove(sandbox_id).flatten()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Substitute<R>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
