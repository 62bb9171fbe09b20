//! Places for sandboxes of builds, shared between teams: steps of one may take an hour, and nobody else is to wait for that.
//!
//! The last places are for teams that have none, and a place that is given back goes to the team that has the fewest. Among equals who came
//! first is first. So a team waits for others only when more teams than are kept for build at once, and then for the first step that ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use soulbox_types::TeamId;
use tokio::sync::Notify;

/// Who a sandbox is for; what is no team's is the host's own.
pub(crate) type Holder = Option<TeamId>;

#[derive(Debug)]
pub(crate) struct Places {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// So many of the free ones are only for who has none.
    kept: usize,
    /// Only those that have some.
    held: HashMap<Holder, usize>,
    /// In the order in which they came.
    waiting: Vec<(u64, Holder)>,
    next: u64,
}

/// The right to have one sandbox. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    holder: Holder,
}

/// Somebody in the queue. Leaves it when dropped.
struct Waiting<'a> {
    places: &'a Places,
    number: u64,
}

impl Places {
    pub(crate) fn new(all: usize, kept: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: all,
                kept,
                held: HashMap::new(),
                waiting: Vec::new(),
                next: 0,
            }),
            changed: Notify::new(),
        })
    }

    /// Waits for a place.
    pub(crate) async fn take(self: &Arc<Self>, holder: Holder) -> Place {
        let waiting = self.queue(holder.clone());
        loop {
            // Made before the look, so that no change after it is missed.
            let changed = self.changed.notified();
            if self.lock().give(waiting.number) {
                let places = Arc::clone(self);
                return Place { places, holder };
            }
            changed.await;
        }
    }

    fn queue(&self, holder: Holder) -> Waiting<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push((number, holder));
        Waiting {
            places: self,
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held(&self, holder: &Holder) -> usize {
        self.held.get(holder).copied().unwrap_or(0)
    }

    /// Whose turn it is.
    fn first(&self) -> Option<u64> {
        let may = |held: usize| self.free > if held == 0 { 0 } else { self.kept };
        let waiting = self.waiting.iter();
        let ranked = waiting.map(|(number, holder)| (self.held(holder), *number));
        let first = ranked.filter(|(held, _)| may(*held)).min();
        first.map(|(_, number)| number)
    }

    /// Gives a place to somebody in the queue, if it is his turn.
    fn give(&mut self, number: u64) -> bool {
        if self.first() != Some(number) {
            return false;
        }
        let Some(at) = self.waiting.iter().position(|(it, _)| *it == number) else {
            return false;
        };
        let (_, holder) = self.waiting.remove(at);
        self.free -= 1;
        *self.held.entry(holder).or_insert(0) += 1;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.holder) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.holder);
            }
        }
        drop(state);
        self.places.changed.notify_waiters();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.waiting.retain(|(number, _)| *number != self.number);
        drop(state);
        // Whether he got a place or went away, it is another one's turn.
        self.places.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;

    fn team(number: u8) -> Holder {
        Some(TeamId::from_random([number; 16]))
    }

    /// Whether a place is had at once.
    async fn now(places: &Arc<Places>, holder: Holder) -> Option<Place> {
        let taking = places.take(holder);
        tokio::time::timeout(Duration::from_millis(1), taking)
            .await
            .ok()
    }

    async fn settled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn queued(places: &Arc<Places>, holder: Holder) -> JoinHandle<Place> {
        let places = Arc::clone(places);
        tokio::spawn(async move { places.take(holder).await })
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_places_are_for_who_has_none() {
        let places = Places::new(5, 2);
        let mut of_one = Vec::new();
        while let Some(place) = now(&places, team(1)).await {
            of_one.push(place);
        }
        assert_eq!(of_one.len(), 3);
        let of_two = now(&places, team(2)).await.expect("one is kept for it");
        assert!(now(&places, team(2)).await.is_none());
        let of_three = now(&places, None).await.expect("one is kept for it");
        assert!(now(&places, team(4)).await.is_none(), "all are taken");
        // Who gave up the wait is not waited for.
        drop(of_two);
        let of_two = now(&places, team(4)).await.expect("one was given back");
        drop((of_one, of_two, of_three));
        let state = places.lock();
        assert!(state.free == 5 && state.held.is_empty() && state.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_who_has_the_fewest_and_then_to_who_came_first() {
        let places = Places::new(3, 0);
        let mut of_one = Vec::new();
        for _ in 0..2 {
            of_one.push(now(&places, team(1)).await.expect("there are places"));
        }
        let of_two = now(&places, team(2)).await.expect("there are places");
        let first = queued(&places, team(1));
        settled().await;
        let second = queued(&places, team(2));
        let third = queued(&places, team(3));
        settled().await;
        // One has two, two has one, three has none.
        of_one.pop();
        settled().await;
        assert!(third.is_finished() && !first.is_finished() && !second.is_finished());
        // One and two have one each, and one came first.
        drop(third.await.expect("it was given a place"));
        settled().await;
        assert!(first.is_finished() && !second.is_finished());
        drop(of_two);
        let of_two = second.await.expect("it was given a place");
        drop((of_one, of_two, first.await));
        assert_eq!(places.lock().free, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_holds_nobody() {
        let places = Places::new(1, 0);
        let held = places.take(team(1)).await;
        let mut gone = Box::pin(places.take(team(2)));
        let waited = tokio::time::timeout(Duration::from_millis(1), &mut gone).await;
        assert!(waited.is_err());
        let next = queued(&places, team(3));
        settled().await;
        drop(held);
        settled().await;
        assert!(!next.is_finished(), "it is another one's turn");
        drop(gone);
        settled().await;
        assert!(next.is_finished());
    }
}
