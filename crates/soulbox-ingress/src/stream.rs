//! The body of an answer on its way from a sandbox to the client.
//!
//! It ends with an error, which resets the client's stream, when the sandbox ends or its connection breaks; the connection goes back to the pool
//! when the answer is complete, and is closed when the client goes first.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::crowd::Place;
use crate::pool::Pool;
use crate::route::Target;
use crate::upstream::Upstream;

/// Data frames below this size are joined with what is there already: HTTP/2 clients count unread small frames and give up on the connection.
const SMALL: usize = 1024;
/// A joined frame grows no larger.
const JOINED: usize = 16 * 1024;

/// Why a body ends before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the sandbox ended")]
    SandboxEnded,
    #[error("the answer of the sandbox broke off")]
    Upstream(#[source] hyper::Error),
}

pub(crate) struct Relayed {
    body: Incoming,
    /// What came after the frames that were joined.
    next: Option<Option<Result<Frame<Bytes>, Broken>>>,
    upstream: Option<Upstream>,
    /// Counted as long as the answer is under way.
    _place: Place,
    pool: Arc<Pool>,
    target: Target,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Relayed {
    pub(crate) fn new(
        body: Incoming,
        upstream: Upstream,
        pool: Arc<Pool>,
        target: Target,
        ended: CancellationToken,
        place: Place,
    ) -> Self {
        Self {
            body,
            next: None,
            upstream: Some(upstream),
            _place: place,
            pool,
            target,
            ended: Box::pin(ended.cancelled_owned()),
        }
    }

    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(next);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map(|frame| frame.map(|frame| frame.map_err(Broken::Upstream)))
    }

    /// Joins a small frame with those that are ready now; waits for none.
    fn join(&mut self, first: Bytes, context: &mut Context<'_>) -> Bytes {
        let mut joined: Option<BytesMut> = None;
        while joined.as_ref().map_or(first.len(), BytesMut::len) < JOINED {
            match self.poll_body(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                    let Ok(more) = frame.into_data() else { break };
                    if more.len() > JOINED {
                        // Large enough to go by itself, uncopied.
                        self.next = Some(Some(Ok(Frame::data(more))));
                        break;
                    }
                    joined
                        .get_or_insert_with(|| BytesMut::from(&first[..]))
                        .extend_from_slice(&more);
                }
                Poll::Ready(other) => {
                    self.next = Some(other);
                    break;
                }
            }
        }
        joined.map_or(first, BytesMut::freeze)
    }

    fn release(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            self.pool.put(&self.target, upstream);
        }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if this.ended.as_mut().poll(context).is_ready() {
            this.upstream = None;
            return Poll::Ready(Some(Err(Broken::SandboxEnded)));
        }
        loop {
            let frame = match this.poll_body(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    // An empty DATA frame means nothing, and clients take many of them for an attack.
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) if data.len() < SMALL => {
                        Some(Ok(Frame::data(this.join(data, context))))
                    }
                    Ok(data) => Some(Ok(Frame::data(data))),
                    Err(trailers) => Some(Ok(trailers)),
                },
                Some(Err(error)) => {
                    this.upstream = None;
                    Some(Err(error))
                }
                None => {
                    this.release();
                    None
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.next {
            None => self.body.is_end_stream(),
            Some(next) => next.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        // Only asked before the first frame, when nothing is held back.
        self.body.size_hint()
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        // A server does not ask for a frame after the last one that a content length announced.
        if self.is_end_stream() {
            self.release();
        }
    }
}
