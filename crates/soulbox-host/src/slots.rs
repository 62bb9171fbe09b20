//! Which slots are free. A slot's number comes back only when everything of its last sandbox is gone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The numbers that are in use.
#[derive(Debug)]
pub(crate) struct Slots {
    count: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: BTreeSet<u16>,
    /// Where the search for a free number begins: behind the last one taken, so that a number rests before it is used again. The
    /// kernel takes some 50 ms to let a network namespace go.
    next: u16,
}

impl Slots {
    /// `count` slots, of which `used` are taken.
    #[must_use]
    pub(crate) fn new(count: u16, used: impl IntoIterator<Item = u16>) -> Self {
        Self {
            count,
            state: Mutex::new(State {
                used: used.into_iter().collect(),
                next: 0,
            }),
        }
    }

    /// Takes a free number; `None` when all are in use.
    #[must_use]
    pub(crate) fn take(&self) -> Option<u16> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (state.next..self.count)
            .chain(0..state.next)
            .find(|index| !state.used.contains(index))?;
        state.used.insert(free);
        state.next = (free + 1) % self.count;
        Some(free)
    }

    /// Gives a number back.
    pub(crate) fn give_back(&self, index: u16) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .used
            .remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        let slots = Slots::new(3, [1]);
        assert_eq!(
            (slots.take(), slots.take(), slots.take()),
            (Some(0), Some(2), None)
        );
        slots.give_back(0);
        slots.give_back(1);
        assert_eq!(
            (slots.take(), slots.take(), slots.take()),
            (Some(0), Some(1), None)
        );
    }

    #[test]
    fn a_number_rests_before_it_is_used_again() {
        let slots = Slots::new(3, []);
        for expected in [0, 1, 2, 0, 1] {
            assert_eq!(slots.take(), Some(expected));
            slots.give_back(expected);
        }
    }
}
