//! Which slots are free. A slot's number comes back only when everything of its last sandbox is gone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The numbers that are in use.
#[derive(Debug)]
pub(crate) struct Slots {
    count: u16,
    used: Mutex<BTreeSet<u16>>,
}

impl Slots {
    /// `count` slots, of which `used` are taken.
    #[must_use]
    pub(crate) fn new(count: u16, used: impl IntoIterator<Item = u16>) -> Self {
        Self { count, used: Mutex::new(used.into_iter().collect()) }
    }

    /// Takes the lowest free number; `None` when all are in use.
    #[must_use]
    pub(crate) fn take(&self) -> Option<u16> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..self.count).find(|index| !used.contains(index))?;
        used.insert(free);
        Some(free)
    }

    /// Gives a number back.
    pub(crate) fn give_back(&self, index: u16) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        let slots = Slots::new(3, [1]);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(0), Some(2), None));
        slots.give_back(1);
        assert_eq!(slots.take(), Some(1));
    }
}
