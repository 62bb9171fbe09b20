//! What a client's connection is doing, and when it has done nothing for too long.
//!
//! hyper's own header timer also runs between the requests of a kept-alive connection, where minutes are fine; so the two are told apart here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// From the first byte of a request's head to its last, and from the connect to the first request.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Between two requests.
const IDLE_WITHIN: Duration = Duration::from_secs(620);
/// How often a connection is looked at; so much later than the limits it may end.
const LOOK: Duration = Duration::from_secs(5);

/// Requests under way in the whole server.
#[derive(Default)]
pub(crate) struct Load {
    requests: AtomicUsize,
    fell: Notify,
}

impl Load {
    /// Returns when no request is under way.
    pub(crate) async fn none(&self) {
        loop {
            let fell = self.fell.notified();
            if self.requests.load(Ordering::SeqCst) == 0 {
                return;
            }
            fell.await;
        }
    }
}

/// One connection.
pub(crate) struct Activity {
    born: Instant,
    requests: AtomicUsize,
    /// Milliseconds after `born`, when the last request ended; likewise when the head of the next began to arrive, 0 for not yet.
    idle_since: AtomicU64,
    head_since: AtomicU64,
    any_request: AtomicBool,
    /// HTTP/2 sends frames between requests, so bytes do not mean that one begins.
    multiplexed: AtomicBool,
    load: Arc<Load>,
}

impl Activity {
    pub(crate) fn new(load: Arc<Load>) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            requests: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            any_request: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            load,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.load.requests.fetch_add(1, Ordering::SeqCst);
        self.head_since.store(0, Ordering::Relaxed);
        self.any_request.store(true, Ordering::Relaxed);
        if version == Version::HTTP_2 {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        Busy {
            activity: Arc::clone(self),
        }
    }

    fn saw_bytes(&self) {
        if self.requests.load(Ordering::Relaxed) == 0
            && !self.multiplexed.load(Ordering::Relaxed)
            && self.head_since.load(Ordering::Relaxed) == 0
        {
            self.head_since.store(self.now().max(1), Ordering::Relaxed);
        }
    }

    fn is_overdue(&self) -> bool {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let millis = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let now = self.now();
        if !self.any_request.load(Ordering::Relaxed) {
            return now >= millis(HEAD_WITHIN);
        }
        let head = self.head_since.load(Ordering::Relaxed);
        (head != 0 && now.saturating_sub(head) >= millis(HEAD_WITHIN))
            || now.saturating_sub(self.idle_since.load(Ordering::Relaxed)) >= millis(IDLE_WITHIN)
    }

    /// Returns when the client has kept us waiting for too long.
    pub(crate) async fn overdue(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.is_overdue() {
                return;
            }
        }
    }
}

/// A request under way.
pub(crate) struct Busy {
    activity: Arc<Activity>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let activity = &self.activity;
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
        if activity.load.requests.fetch_sub(1, Ordering::SeqCst) == 1 {
            activity.load.fell.notify_waiters();
        }
    }
}

/// A body whose request is under way until it is dropped.
pub(crate) struct Counted {
    pub(crate) body: Body,
    pub(crate) _busy: Busy,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes when bytes arrive.
pub(crate) struct Observed<S> {
    pub(crate) socket: S,
    pub(crate) activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.socket).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.saw_bytes();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until the connection is overdue, if that is within half an hour.
    async fn overdue_after(activity: &Activity) -> Option<u64> {
        let begun = Instant::now();
        let overdue = tokio::time::timeout(Duration::from_secs(1800), activity.overdue());
        overdue.await.ok().map(|()| begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_is_not_waited_for() {
        let activity = Activity::new(Arc::default());
        assert_eq!(overdue_after(&activity).await, Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_minutes_are_fine() {
        let activity = Activity::new(Arc::default());
        drop(activity.begin(Version::HTTP_11));
        assert_eq!(overdue_after(&activity).await, Some(620));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_cut_off() {
        let activity = Activity::new(Arc::default());
        drop(activity.begin(Version::HTTP_11));
        activity.saw_bytes();
        assert_eq!(overdue_after(&activity).await, Some(10));

        let multiplexed = Activity::new(Arc::default());
        drop(multiplexed.begin(Version::HTTP_2));
        multiplexed.saw_bytes();
        assert_eq!(overdue_after(&multiplexed).await, Some(620));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_may_take_for_ever() {
        let load = Arc::new(Load::default());
        let activity = Activity::new(Arc::clone(&load));
        let first = activity.begin(Version::HTTP_11);
        activity.saw_bytes();
        assert_eq!(overdue_after(&activity).await, None);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), load.none())
                .await
                .is_err()
        );
        tokio::join!(load.none(), async { drop(first) });
    }
}
