//! Requests that are answered before their body was read, such as an upload that is refused.
//!
//! A server that closes a connection with unread bytes makes the kernel reset it, and the client, still writing, sees a broken pipe
//! instead of the answer. So the rest is read and thrown away, for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// All reading on together.
const LONGEST: Duration = Duration::from_secs(30);
/// Between two pieces; a client that has read its answer stops sending.
const IDLE: Duration = Duration::from_secs(5);

/// A request body that is read to its end in the background when it is dropped before.
pub struct Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    body: Option<B>,
}

impl<B> Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    /// Must be dropped within a tokio runtime, else the rest is not read.
    pub fn new(body: B) -> Self {
        Self { body: Some(body) }
    }
}

impl<B> Body for Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &frame {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> Drop for Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(LONGEST, async move {
                while let Ok(Some(Ok(_))) = timeout(IDLE, body.frame()).await {}
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    fn counted(
        pieces: usize,
        read: &Arc<AtomicUsize>,
    ) -> impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static {
        let read = Arc::clone(read);
        StreamBody::new(stream::iter((0..pieces).map(move |_| {
            read.fetch_add(1, Ordering::Relaxed);
            Ok(Frame::data(Bytes::from_static(b"x")))
        })))
    }

    #[tokio::test]
    async fn the_rest_is_read_after_a_drop() {
        let read = Arc::new(AtomicUsize::new(0));
        let mut body = Lingering::new(counted(10, &read));
        assert!(body.frame().await.is_some());
        assert_eq!(read.load(Ordering::Relaxed), 1);
        drop(body);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(read.load(Ordering::Relaxed), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let read = Arc::new(AtomicUsize::new(0));
        let alive = Arc::clone(&read);
        let endless = StreamBody::new(Box::pin(stream::unfold(alive, |alive| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            alive.fetch_add(1, Ordering::Relaxed);
            Some((
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))),
                alive,
            ))
        })));
        drop(Lingering::new(endless));
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!((25..=30).contains(&read.load(Ordering::Relaxed)));
    }
}
