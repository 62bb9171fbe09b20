//! A picture of something that changes elsewhere, as it was read last.

use std::sync::{Arc, PoisonError, RwLock};

#[derive(Debug, Default)]
pub(crate) struct Latest<T> {
    picture: RwLock<Arc<T>>,
    /// Whoever reads it anew.
    turn: tokio::sync::Mutex<()>,
}

impl<T> Latest<T> {
    pub(crate) fn get(&self) -> Arc<T> {
        let picture = self.picture.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&picture)
    }

    /// Puts what is read in its place; when that fails, it stays. One reading after the other: an older one that took longer would otherwise
    /// take a newer one's place.
    pub(crate) async fn read<E>(
        &self,
        reading: impl Future<Output = Result<T, E>>,
    ) -> Result<(), E> {
        let _turn = self.turn.lock().await;
        let read = Arc::new(reading.await?);
        *self.picture.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_slow_reading_takes_no_newer_ones_place() {
        let (latest, source) = (Latest::<u32>::default(), Cell::new(1));
        let (go_on, held) = oneshot::channel::<()>();
        let slow = latest.read(async {
            let seen = source.get();
            held.await.map(|()| seen)
        });
        let newer = async {
            source.set(2);
            latest
                .read(async { Ok::<_, Infallible>(source.get()) })
                .await
        };
        let letting_go = async {
            tokio::task::yield_now().await;
            go_on.send(())
        };
        let (slow, newer, let_go) = tokio::join!(slow, newer, letting_go);
        assert!(slow.is_ok() && newer.is_ok() && let_go.is_ok());
        assert_eq!(*latest.get(), 2);

        let failed = latest.read(async { Err("no") }).await;
        assert_eq!((failed, *latest.get()), (Err("no"), 2));
    }
}
