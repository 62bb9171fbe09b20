//! The front's end: many requests under way at once, each with a deadline.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_wire::host::{AgentFrame, Event, FrontFrame, HostError, Reply, Request};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error};

use super::frame::{Frame, Incoming, RpcError};

/// Frames that wait for the socket.
const OUTGOING: usize = 256;
/// Events that wait for whoever handles them; more and the connection ends, since the reader must not stall the replies.
const EVENTS: usize = 4096;

type Answer = (Result<Reply, HostError>, Vec<OwnedFd>);

/// A handle on the connection; clones share it. The connection ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    outgoing: mpsc::Sender<Frame>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    ended: watch::Receiver<bool>,
}

/// Who waits for which reply; `None` once the connection is over.
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    fn add(&self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()?
            .insert(id, sender);
        Some(receiver)
    }

    fn remove(&self, id: u64) -> Option<oneshot::Sender<Answer>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()?
            .remove(&id)
    }

    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Forgets a request whose caller went away, so that a late reply and its descriptors are dropped.
struct Registered<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.waiting.remove(self.id);
    }
}

impl Client {
    /// Takes over the socket. Events of the agent come out of the receiver, which ends with the connection.
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn start(socket: UnixStream) -> (Self, mpsc::Receiver<Event>) {
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let (events_in, events_out) = mpsc::channel(EVENTS);
        let (ended_in, ended) = watch::channel(false);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let connection = Connection {
            socket,
            waiting: Arc::clone(&waiting),
            events: events_in,
        };
        // Ends with the socket or, by `frames`, with the last handle.
        tokio::spawn(async move {
            match connection.run(frames).await {
                Ok(()) => debug!("host RPC connection ended"),
                Err(error) => {
                    error!(error = %crate::failure::chain(&error), "host RPC connection failed")
                }
            }
            connection.waiting.close();
            ended_in.send_replace(true);
        });
        (
            Self {
                inner: Arc::new(Inner {
                    outgoing,
                    waiting,
                    next_id: AtomicU64::new(1),
                    ended,
                }),
            },
            events_out,
        )
    }

    /// Sends a request and waits for its reply and descriptors, at most as long as [`time_for`] gives that kind of request.
    /// Dropping the future forgets the request; the agent may perform it nevertheless.
    ///
    /// # Errors
    /// [`RpcError::Host`] is the agent's own refusal; [`RpcError::TimedOut`] and [`RpcError::Closed`] leave open whether it was done.
    pub async fn request(&self, request: Request) -> Result<(Reply, Vec<OwnedFd>), RpcError> {
        let (name, within) = time_for(&request);
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = Frame::new(&FrontFrame { id, request }, Vec::new())?;
        let answer = self.inner.waiting.add(id).ok_or(RpcError::Closed)?;
        let _registered = Registered {
            waiting: &self.inner.waiting,
            id,
        };
        let exchange = async {
            self.inner
                .outgoing
                .send(frame)
                .await
                .map_err(|_| RpcError::Closed)?;
            answer.await.map_err(|_| RpcError::Closed)
        };
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let (result, descriptors) =
            tokio::time::timeout(within, exchange)
                .await
                .map_err(|_| RpcError::TimedOut {
                    request: name,
                    millis,
                })??;
        Ok((result.map_err(RpcError::Host)?, descriptors))
    }

    /// Returns when the connection is over, at once when it is already.
    pub async fn closed(&self) {
        // An error means that the task is gone, which is the same news.
        let _ = self.inner.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// The name of a request, for messages, and how long its answer may take.
fn time_for(request: &Request) -> (&'static str, Duration) {
    match request {
        Request::Hello => ("Hello", Duration::from_secs(30)),
        Request::Create(_) => ("Create", Duration::from_secs(30)),
        Request::Kill { .. } => ("Kill", Duration::from_secs(20)),
        Request::SetDeadline { .. } => ("SetDeadline", Duration::from_secs(5)),
        Request::SetEgress { .. } => ("SetEgress", Duration::from_secs(5)),
        Request::Dial { .. } => ("Dial", Duration::from_secs(30)),
        Request::DialDatabase => ("DialDatabase", Duration::from_secs(10)),
        Request::List => ("List", Duration::from_secs(10)),
        Request::Usage => ("Usage", Duration::from_secs(10)),
        Request::Node => ("Node", Duration::from_secs(5)),
        Request::SetNodeStatus(_) => ("SetNodeStatus", Duration::from_secs(5)),
        Request::Templates => ("Templates", Duration::from_secs(10)),
        // Gigabytes of memory and of files go to disk.
        Request::Save(_) => ("Save", Duration::from_secs(120)),
        Request::Prepare(_) => ("Prepare", Duration::from_secs(30)),
        Request::Replace { .. } => ("Replace", Duration::from_secs(10)),
        Request::Abandon { .. } => ("Abandon", Duration::from_secs(15)),
        Request::DeleteSnapshot { .. } => ("DeleteSnapshot", Duration::from_secs(30)),
        // Gigabytes of files go to disk.
        Request::CommitLayer { .. } => ("CommitLayer", Duration::from_secs(300)),
        Request::FindLayer { .. } => ("FindLayer", Duration::from_secs(10)),
        Request::NameLayer { .. } => ("NameLayer", Duration::from_secs(10)),
        Request::Layers { .. } => ("Layers", Duration::from_secs(10)),
        // Each is a subvolume of its own.
        Request::CollectLayers { .. } => ("CollectLayers", Duration::from_secs(600)),
        Request::Build { .. } => ("Build", Duration::from_secs(10)),
        Request::PutBuild(_) => ("PutBuild", Duration::from_secs(10)),
        Request::DeleteBuild { .. } => ("DeleteBuild", Duration::from_secs(10)),
        Request::Snapshots => ("Snapshots", Duration::from_secs(10)),
        // Gigabytes are compressed, or read again.
        Request::SealSnapshot { .. } => ("SealSnapshot", Duration::from_secs(3600)),
        Request::DropLocalSnapshot { .. } => ("DropLocalSnapshot", Duration::from_secs(3600)),
        Request::SnapshotCopies => ("SnapshotCopies", Duration::from_secs(60)),
        Request::CollectStore { .. } => ("CollectStore", Duration::from_secs(3600)),
    }
}

struct Connection {
    socket: UnixStream,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<Event>,
}

impl Connection {
    async fn run(&self, mut frames: mpsc::Receiver<Frame>) -> Result<(), RpcError> {
        let write = async {
            while let Some(frame) = frames.recv().await {
                if !frame.send(&self.socket).await? {
                    break;
                }
            }
            Ok(())
        };
        // Both halves live in one task: no hand-over between them, and the end of one is the end of the other.
        tokio::select! {
            outcome = write => outcome,
            outcome = self.read() => outcome,
        }
    }

    async fn read(&self) -> Result<(), RpcError> {
        let mut incoming = Incoming::new();
        while let Some((frame, descriptors)) = incoming.next::<AgentFrame>(&self.socket).await? {
            match frame {
                AgentFrame::Reply { id, result } => {
                    // Nobody waits any more: the caller gave up, and dropping the descriptors is all there is to do.
                    if let Some(waiting) = self.waiting.remove(id) {
                        let _ = waiting.send((result, descriptors));
                    }
                }
                AgentFrame::Event(event) => match self.events.try_send(event) {
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => return Err(RpcError::EventsOverrun),
                },
            }
        }
        Ok(())
    }
}
