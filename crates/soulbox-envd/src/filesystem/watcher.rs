//! Watches for clients that poll: each has a task that fills a queue, which the next poll empties.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use soulbox_envd_proto::rpc::filesystem::FilesystemEvent;
use tokio::task::JoinHandle;

use super::watch::{Watch, WatchError};

/// A client that polls this rarely gets an error instead.
const QUEUE: usize = 65_536;

#[derive(Default)]
pub(crate) struct Watchers {
    all: Mutex<HashMap<String, Watcher>>,
}

struct Watcher {
    queue: Arc<Mutex<Queue>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Queue {
    events: Vec<FilesystemEvent>,
    error: Option<Arc<WatchError>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watchers {
    /// Keeps `watch` until [`Self::remove`]; the result names it.
    pub(crate) fn add(&self, mut watch: Watch) -> Result<String, getrandom::Error> {
        let id = new_id()?;
        let queue = Arc::new(Mutex::new(Queue::default()));
        let filled = Arc::clone(&queue);
        let task = tokio::spawn(async move {
            loop {
                let event = watch.next().await;
                let mut queue = lock(&filled);
                match event {
                    Ok(_) if queue.events.len() >= QUEUE => {
                        queue.error = Some(Arc::new(WatchError::Overflow))
                    }
                    Ok(event) => queue.events.push(event),
                    Err(error) => queue.error = Some(Arc::new(error)),
                }
                if queue.error.is_some() {
                    return;
                }
            }
        });
        lock(&self.all).insert(id.clone(), Watcher { queue, task });
        Ok(id)
    }

    /// The events since the last call; `None` for an unknown watcher. An error, once there, comes every time.
    pub(crate) fn take(&self, id: &str) -> Option<Result<Vec<FilesystemEvent>, Arc<WatchError>>> {
        let all = lock(&self.all);
        let mut queue = lock(&all.get(id)?.queue);
        Some(match &queue.error {
            Some(error) => Err(Arc::clone(error)),
            None => Ok(std::mem::take(&mut queue.events)),
        })
    }

    /// Whether there was one.
    pub(crate) fn remove(&self, id: &str) -> bool {
        lock(&self.all).remove(id).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `w` and twenty letters or digits.
fn new_id() -> Result<String, getrandom::Error> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

    let mut random = [0; 20];
    getrandom::fill(&mut random)?;
    let letters = random
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
    Ok(std::iter::once('w').chain(letters).collect())
}
