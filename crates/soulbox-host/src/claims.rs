//! Layers that somebody uses without a manifest, a record or a snapshot that says so: a build between its steps, a sandbox that is being
//! started. They are not collected.
//!
//! A collection first reads what needs layers and then deletes. What was claimed at its begin or at any time since counts until its end, so
//! that a claim whose owner wrote its manifest or record meanwhile, after those were read, is not missed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After this a build is over, however it ended, and so is what it claimed.
const BUILD: Duration = Duration::from_secs(2 * 3600);

#[derive(Debug, Default)]
pub(crate) struct Claims {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of sandboxes that are being started, each start once.
    starts: HashMap<u64, Vec<String>>,
    next: u64,
    /// Of builds, by their ID, with the time of the last claim.
    builds: HashMap<String, (BTreeSet<String>, Instant)>,
    /// Claimed since the collection that is under way began.
    spared: Option<BTreeSet<String>>,
}

/// The layers of one start. Given up when dropped.
pub(crate) struct Start {
    claims: Arc<Claims>,
    number: u64,
}

/// A collection under way. Over when dropped.
pub(crate) struct Collection(Arc<Claims>);

impl Claims {
    /// For a sandbox that is being started; kept until its record is written.
    pub(crate) fn start(self: &Arc<Self>, layers: Vec<String>) -> Start {
        let mut state = self.lock();
        state.spare(&layers);
        let number = state.next;
        state.next += 1;
        state.starts.insert(number, layers);
        Start {
            claims: Arc::clone(self),
            number,
        }
    }

    /// For a build that goes on. Whoever claims before he looks whether a layer is there finds it there until he is done.
    pub(crate) fn build(&self, build_id: &str, layers: impl IntoIterator<Item = String>) {
        let layers: Vec<_> = layers.into_iter().collect();
        let mut state = self.lock();
        state.spare(&layers);
        let (claimed, at) = state
            .builds
            .entry(build_id.to_owned())
            .or_insert_with(|| (BTreeSet::new(), Instant::now()));
        claimed.extend(layers);
        *at = Instant::now();
    }

    /// The build has a manifest now.
    pub(crate) fn built(&self, build_id: &str) {
        self.lock().builds.remove(build_id);
    }

    /// One at a time: the caller sees to that.
    pub(crate) fn collection(self: &Arc<Self>) -> Collection {
        let mut state = self.lock();
        state.builds.retain(|_, (_, at)| at.elapsed() < BUILD);
        let claimed = state.builds.values().flat_map(|(layers, _)| layers.iter());
        let starting = state.starts.values().flatten();
        let spared = claimed.chain(starting).cloned().collect();
        state.spared = Some(spared);
        drop(state);
        Collection(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collection {
    /// Does away with a layer unless it is claimed; says whether it did. Nobody claims anything meanwhile, so whoever does later looks after it.
    pub(crate) fn take<E>(
        &self,
        layer: &str,
        delete: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let state = self.0.lock();
        if state.spared.as_ref().is_some_and(|it| it.contains(layer)) {
            return Ok(false);
        }
        delete().map(|()| true)
    }
}

impl State {
    fn spare(&mut self, layers: &[String]) {
        if let Some(spared) = &mut self.spared {
            spared.extend(layers.iter().cloned());
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.claims.lock().starts.remove(&self.number);
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.0.lock().spared = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the layers that a collection takes.
    fn taken(collection: &Collection, layers: &[&str]) -> Vec<String> {
        let mut taken = Vec::new();
        for layer in layers {
            let gone = collection.take(layer, || Ok::<_, ()>(()));
            if gone == Ok(true) {
                taken.push((*layer).to_owned());
            }
        }
        taken
    }

    #[test]
    fn what_is_claimed_stays_until_it_is_given_up() {
        let claims = Arc::new(Claims::default());
        let start = claims.start(vec!["a".into(), "b".into()]);
        let other = claims.start(vec!["b".into()]);
        claims.build("one", ["c".to_owned()]);
        claims.build("one", ["d".to_owned()]);
        let all = ["a", "b", "c", "d", "e"];
        assert_eq!(taken(&claims.collection(), &all), ["e"]);
        drop(start);
        assert_eq!(taken(&claims.collection(), &all), ["a", "e"]);
        drop(other);
        claims.built("one");
        assert_eq!(taken(&claims.collection(), &all), all);
    }

    #[test]
    fn what_was_claimed_for_a_moment_of_a_collection_stays_to_its_end() {
        let claims = Arc::new(Claims::default());
        let before = claims.start(vec!["a".into()]);
        let collection = claims.collection();
        drop(before);
        drop(claims.start(vec!["b".into()]));
        claims.build("one", ["c".to_owned()]);
        claims.built("one");
        assert_eq!(taken(&collection, &["a", "b", "c", "d"]), ["d"]);
        drop(collection);
        assert_eq!(
            taken(&claims.collection(), &["a", "b", "c"]),
            ["a", "b", "c"]
        );
    }
}
