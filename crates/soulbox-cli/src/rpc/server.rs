//! The agent's end: performs the requests of one front, each in a task of its own.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use soulbox_wire::host::{AgentFrame, Event, FrontFrame, HostError, Reply, Request};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::error;

use super::frame::{Frame, Incoming, RpcError};

/// Requests under way at once; the next one waits in the socket.
const CONCURRENT: usize = 512;
/// Frames that wait for the socket.
const OUTGOING: usize = 256;
/// How long requests under way may go on when their front is gone.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Performs requests. Calls run concurrently.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request and the descriptors that belong to it, in order.
    /// The future is dropped at an await point when the front has been gone for a second; what must be finished belongs into a task.
    fn handle(
        &self,
        request: Request,
    ) -> impl Future<Output = (Result<Reply, HostError>, Vec<OwnedFd>)> + Send;
}

/// Serves one front until its connection ends; `Ok` when it closed between two frames. Events go out as they come from `events`;
/// when that channel ends, requests are served on.
///
/// # Errors
/// The rule that the front broke, or the failure of the socket. The socket is closed in every case.
pub async fn serve(
    socket: UnixStream,
    handler: Arc<impl Handler>,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(), RpcError> {
    let (outgoing, frames) = mpsc::channel(OUTGOING);
    let mut tasks = JoinSet::new();
    let outcome = tokio::select! {
        outcome = write(&socket, frames, events) => outcome,
        outcome = read(&socket, &handler, &outgoing, &mut tasks) => outcome,
    };
    drop(socket);
    // The answers have nowhere to go, but a half-done step is better finished than dropped.
    drop(outgoing);
    let _ = tokio::time::timeout(AFTERMATH, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    outcome
}

async fn read(
    socket: &UnixStream,
    handler: &Arc<impl Handler>,
    outgoing: &mpsc::Sender<Frame>,
    tasks: &mut JoinSet<()>,
) -> Result<(), RpcError> {
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let mut incoming = Incoming::new();
    while let Some((FrontFrame { id, request }, descriptors)) = incoming.next(socket).await? {
        if !descriptors.is_empty() {
            // No request has any: a front that sends some is confused or hostile.
            return Err(RpcError::Descriptors {
                announced: 0,
                found: descriptors.len(),
            });
        }
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return Err(RpcError::Closed);
        };
        let (handler, outgoing) = (Arc::clone(handler), outgoing.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let (result, descriptors) = handler.handle(request).await;
            match Frame::new(&AgentFrame::Reply { id, result }, descriptors) {
                // Fails when the connection is over: then nobody waits.
                Ok(frame) => drop(outgoing.send(frame).await),
                Err(error) => error!(error = %crate::failure::chain(&error), "a reply cannot be sent, the front will time out"),
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    Ok(())
}

async fn write(
    socket: &UnixStream,
    mut frames: mpsc::Receiver<Frame>,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(), RpcError> {
    let mut more_events = true;
    loop {
        let frame = tokio::select! {
            Some(frame) = frames.recv() => frame,
            event = events.recv(), if more_events => match event {
                Some(event) => Frame::new(&AgentFrame::Event(event), Vec::new())?,
                None => { more_events = false; continue }
            },
            else => return Ok(()),
        };
        if !frame.send(socket).await? {
            return Ok(());
        }
    }
}
