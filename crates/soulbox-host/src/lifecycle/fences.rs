//! Which creates come too late.

use std::collections::{BTreeMap, VecDeque};

use soulbox_types::{Epoch, UnixMillis};

/// How long an ended or unknown sandbox bars late creates of it: longer than any request can be under way.
const BARRED_MILLIS: u64 = 600_000;
/// Bars that are kept; beyond that the oldest go. Ten minutes of 80 kills a second, some 5 MB.
const MOST_BARS: usize = 50_000;

/// Which creates come too late: a create of a sandbox that has ended here, or whose kill has overtaken it, starts nothing any more.
///
/// In memory only: a request does not outlive the connection to the agent that it was sent on.
#[derive(Debug)]
pub struct Fences<K> {
    /// What is barred, and until when.
    latest: BTreeMap<K, (Epoch, UnixMillis)>,
    /// In the order of their ends.
    bars: VecDeque<(UnixMillis, K)>,
}

impl<K> Default for Fences<K> {
    fn default() -> Self {
        Self {
            latest: BTreeMap::new(),
            bars: VecDeque::new(),
        }
    }
}

impl<K: Ord + Clone> Fences<K> {
    /// From now on a create of that epoch or an earlier one is refused.
    pub fn bar(&mut self, id: &K, epoch: Epoch, now: UnixMillis) {
        let until = now.plus_millis(BARRED_MILLIS);
        let latest = self.latest.entry(id.clone()).or_insert((epoch, until));
        *latest = (latest.0.max(epoch), until);
        self.bars.push_back((until, id.clone()));
        while self.bars.len() > MOST_BARS
            || self.bars.front().is_some_and(|(until, _)| *until < now)
        {
            let Some((until, id)) = self.bars.pop_front() else {
                break;
            };
            // A later bar of the same sandbox has a place of its own in the queue.
            if self.latest.get(&id).is_some_and(|latest| latest.1 <= until) {
                self.latest.remove(&id);
            }
        }
    }

    /// Whether a create of this epoch comes too late.
    #[must_use]
    pub fn bars(&self, id: &K, epoch: Epoch) -> bool {
        self.latest.get(id).is_some_and(|latest| epoch <= latest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixMillis = UnixMillis(1_000_000);
    const E1: Epoch = Epoch(1);
    const E2: Epoch = Epoch(2);

    #[test]
    fn bars_hold_for_their_time_and_are_bounded() {
        let mut fences = Fences::default();
        fences.bar(&"a", E2, T0);
        assert!(fences.bars(&"a", E1) && fences.bars(&"a", E2));
        assert!(!fences.bars(&"a", Epoch(3)) && !fences.bars(&"b", E1));
        fences.bar(&"a", E1, T0.plus_millis(1));
        fences.bar(&"b", E1, T0.plus_millis(BARRED_MILLIS + 1));
        assert!(fences.bars(&"a", E2), "its second bar is not over");
        fences.bar(&"b", E1, T0.plus_millis(BARRED_MILLIS + 2));
        assert!(!fences.bars(&"a", E1));
        assert!(fences.latest.len() == 1 && fences.bars.len() == 2);
    }
}
