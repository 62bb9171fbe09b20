//! Output of one process to everybody who follows it: lossless for each live subscriber, with back-pressure, and
//! dropped while nobody listens.
//!
//! A subscriber that stops reading holds the process back once [`QUEUE_BYTES`] wait for it; one that goes away never
//! holds anybody. Small chunks that wait are merged, so that a slow reader gets few large messages rather than many
//! tiny ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use soulbox_envd_proto::rpc::process::process_event::EndEvent;
use tokio::sync::Notify;

/// A queue this full stops the reader of the process's output. It may be exceeded by one chunk.
const QUEUE_BYTES: usize = 96 << 10;
/// Waiting chunks are merged up to this size.
const MERGE_BYTES: usize = 32 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
    Pty,
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Start { pid: u32 },
    Data(Channel, Bytes),
    Keepalive,
    End(EndEvent),
}

#[derive(Default)]
pub(crate) struct Fanout {
    state: Mutex<State>,
    /// Told whenever a queue has become shorter or a subscriber has left.
    room: Notify,
}

#[derive(Default)]
struct State {
    queues: Vec<Queue>,
    next_id: u64,
    closed: bool,
}

struct Queue {
    id: u64,
    events: VecDeque<Event>,
    bytes: usize,
    waker: Option<Waker>,
}

/// One follower. Dropping it unsubscribes.
pub(crate) struct Subscription {
    fanout: Arc<Fanout>,
    id: u64,
}

impl Fanout {
    /// Events from now on, after one that names the process.
    pub(crate) fn subscribe(self: &Arc<Self>, pid: u32) -> Subscription {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.queues.push(Queue {
            id,
            events: VecDeque::from([Event::Start { pid }]),
            bytes: 0,
            waker: None,
        });
        Subscription {
            fanout: Arc::clone(self),
            id,
        }
    }

    /// Whether every subscriber can take another chunk.
    pub(crate) fn has_room(&self) -> bool {
        self.lock()
            .queues
            .iter()
            .all(|queue| queue.bytes < QUEUE_BYTES)
    }

    /// Waits until [`Self::has_room`]. Cancel-safe.
    pub(crate) async fn room(&self) {
        loop {
            let notified = self.room.notified();
            if self.has_room() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn publish(&self, channel: Channel, chunk: &Bytes) {
        for queue in &mut self.lock().queues {
            queue.push_data(channel, chunk);
            queue.wake();
        }
    }

    /// Sends the last event; the streams end after it.
    pub(crate) fn close(&self, end: &EndEvent) {
        let mut state = self.lock();
        state.closed = true;
        for queue in &mut state.queues {
            queue.events.push_back(Event::End(end.clone()));
            queue.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push_data(&mut self, channel: Channel, chunk: &Bytes) {
        self.bytes += chunk.len();
        if let Some(Event::Data(last_channel, last)) = self.events.back_mut()
            && *last_channel == channel
            && last.len() + chunk.len() <= MERGE_BYTES
        {
            let mut merged = std::mem::take(last)
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            merged.extend_from_slice(chunk);
            *last = merged.freeze();
            return;
        }
        self.events.push_back(Event::Data(channel, chunk.clone()));
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Subscription {
    /// The next event; `None` after the last one.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.fanout.lock();
        let closed = state.closed;
        let Some(queue) = state.queues.iter_mut().find(|queue| queue.id == self.id) else {
            return Poll::Ready(None);
        };
        let Some(event) = queue.events.pop_front() else {
            if closed {
                return Poll::Ready(None);
            }
            queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        if let Event::Data(_, chunk) = &event {
            let was_full = queue.bytes >= QUEUE_BYTES;
            queue.bytes -= chunk.len();
            if was_full && queue.bytes < QUEUE_BYTES {
                self.fanout.room.notify_waiters();
            }
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.fanout
            .lock()
            .queues
            .retain(|queue| queue.id != self.id);
        self.fanout.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(subscription: &mut Subscription) -> Option<Event> {
        match subscription.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => panic!("nothing waits"),
        }
    }

    #[test]
    fn small_waiting_chunks_arrive_merged_and_in_order() {
        let fanout = Arc::new(Fanout::default());
        let mut subscription = fanout.subscribe(7);
        for byte in 0..100_u8 {
            fanout.publish(Channel::Stdout, &Bytes::copy_from_slice(&[byte]));
        }
        fanout.publish(Channel::Stderr, &Bytes::from_static(b"e"));
        fanout.close(&EndEvent::default());
        assert!(matches!(
            next(&mut subscription),
            Some(Event::Start { pid: 7 })
        ));
        let expected: Vec<u8> = (0..100).collect();
        assert!(
            matches!(next(&mut subscription), Some(Event::Data(Channel::Stdout, data)) if data == expected)
        );
        assert!(
            matches!(next(&mut subscription), Some(Event::Data(Channel::Stderr, data)) if data == "e")
        );
        assert!(matches!(next(&mut subscription), Some(Event::End(_))));
        assert!(next(&mut subscription).is_none());
    }

    #[test]
    fn merging_leaves_the_other_subscriber_alone() {
        let fanout = Arc::new(Fanout::default());
        let (mut first, mut second) = (fanout.subscribe(1), fanout.subscribe(1));
        fanout.publish(Channel::Pty, &Bytes::from(vec![b'a']));
        assert!(matches!(next(&mut first), Some(Event::Start { .. })));
        assert!(matches!(next(&mut first), Some(Event::Data(_, data)) if data == "a"));
        fanout.publish(Channel::Pty, &Bytes::from(vec![b'b']));
        assert!(matches!(next(&mut first), Some(Event::Data(_, data)) if data == "b"));
        assert!(matches!(next(&mut second), Some(Event::Start { .. })));
        assert!(matches!(next(&mut second), Some(Event::Data(_, data)) if data == "ab"));
    }

    #[tokio::test]
    async fn slow_subscriber_holds_back_until_it_reads_or_leaves() {
        let fanout = Arc::new(Fanout::default());
        let chunk = Bytes::from(vec![0; QUEUE_BYTES]);
        fanout.publish(Channel::Stdout, &chunk);
        assert!(fanout.has_room(), "nobody listens, so nothing is kept");

        let mut reader = fanout.subscribe(1);
        let sleeper = fanout.subscribe(1);
        fanout.publish(Channel::Stdout, &chunk);
        assert!(!fanout.has_room());
        let waiting = tokio::spawn({
            let fanout = Arc::clone(&fanout);
            async move { fanout.room().await }
        });
        tokio::task::yield_now().await;
        next(&mut reader);
        next(&mut reader);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the sleeper is still full");
        drop(sleeper);
        tokio::time::timeout(std::time::Duration::from_secs(5), waiting)
            .await
            .expect("room")
            .expect("no panic");
    }
}
