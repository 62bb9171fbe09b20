//! Frames on the socket: one sendmsg(2) each when the socket has room, one buffer for what arrives.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use soulbox_sys::fdpass;
use soulbox_wire::host::{HEADER_LEN, HostError, MAX_BODY, MAX_FDS};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes asked of the kernel at a time; most frames are far smaller.
const READ_AT_ONCE: usize = 16 * 1024;

/// Why a request has no answer, or why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    #[error("the connection to the other half of the server is closed")]
    Closed,
    #[error("no answer to `{request}` within {millis} ms")]
    TimedOut { request: &'static str, millis: u64 },
    #[error("{0}")]
    Host(HostError),
    #[error("a frame body of {found} bytes is longer than {MAX_BODY}")]
    BodyTooLong { found: usize },
    #[error("a frame header's reserved bytes are not zero")]
    ReservedBytes,
    #[error("a frame carries {found} descriptors and announces {announced}")]
    Descriptors { announced: usize, found: usize },
    #[error("a frame's body is not understood")]
    Body(#[source] serde_json::Error),
    #[error("the connection ended inside a frame")]
    CutShort,
    #[error("the receiver of events fell behind")]
    EventsOverrun,
    #[error("failed to read or write the connection")]
    Io(#[source] io::Error),
}

/// A frame ready to be sent.
pub(super) struct Frame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Frame {
    pub(super) fn new(body: &impl Serialize, descriptors: Vec<OwnedFd>) -> Result<Self, RpcError> {
        let mut bytes = vec![0; HEADER_LEN];
        serde_json::to_writer(&mut bytes, body).map_err(RpcError::Body)?;
        let length = bytes.len() - HEADER_LEN;
        if length > MAX_BODY {
            return Err(RpcError::BodyTooLong { found: length });
        }
        let count = u8::try_from(descriptors.len())
            .ok()
            .filter(|count| usize::from(*count) <= MAX_FDS);
        let Some(count) = count else {
            return Err(RpcError::Descriptors {
                announced: MAX_FDS,
                found: descriptors.len(),
            });
        };
        let header = u32::try_from(length)
            .map_err(|_| RpcError::BodyTooLong { found: length })?
            .to_be_bytes();
        bytes[..4].copy_from_slice(&header);
        bytes[4] = count;
        Ok(Self { bytes, descriptors })
    }

    /// Writes the whole frame; the descriptors go with its first byte and are closed here afterwards.
    /// False when the peer is gone, which the reading half learns as the end of the stream.
    pub(super) async fn send(self, socket: &UnixStream) -> Result<bool, RpcError> {
        let mut sent = 0;
        while sent < self.bytes.len() {
            let outcome = socket
                .async_io(Interest::WRITABLE, || {
                    let with: Vec<_> = if sent == 0 {
                        self.descriptors.iter().map(AsFd::as_fd).collect()
                    } else {
                        Vec::new()
                    };
                    fdpass::send(socket.as_fd(), &self.bytes[sent..], &with)
                })
                .await;
            match outcome {
                Ok(count) => sent += count,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(RpcError::Io(error)),
            }
        }
        Ok(true)
    }
}

/// What has arrived and is not a whole frame yet.
pub(super) struct Incoming {
    scratch: Box<[u8]>,
    buffer: Vec<u8>,
    start: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            scratch: vec![0; READ_AT_ONCE].into_boxed_slice(),
            buffer: Vec::new(),
            start: 0,
            descriptors: VecDeque::new(),
        }
    }

    /// The next frame, `None` when the peer closed between two frames. Cancel-safe: all that has arrived stays in `self`.
    pub(super) async fn next<T: DeserializeOwned>(
        &mut self,
        socket: &UnixStream,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, RpcError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if self.read(socket).await? == 0 {
                return if self.start == self.buffer.len() {
                    Ok(None)
                } else {
                    Err(RpcError::CutShort)
                };
            }
        }
    }

    async fn read(&mut self, socket: &UnixStream) -> Result<usize, RpcError> {
        self.buffer.drain(..std::mem::take(&mut self.start));
        let Self {
            buffer,
            scratch,
            descriptors,
            ..
        } = self;
        let outcome = socket
            .async_io(Interest::READABLE, || {
                // Kept within the closure: whatever left the socket is in `self` even when the future is dropped.
                let mut arrived = Vec::new();
                let outcome = fdpass::receive(socket.as_fd(), scratch, &mut arrived);
                descriptors.extend(arrived);
                buffer.extend_from_slice(&scratch[..*outcome.as_ref().unwrap_or(&0)]);
                outcome
            })
            .await;
        match outcome {
            // A peer that closes with frames unread resets the connection: for us that is its end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            other => other.map_err(RpcError::Io),
        }
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, RpcError> {
        let have = &self.buffer[self.start..];
        let Some(header) = have.first_chunk::<HEADER_LEN>() else {
            // The kernel hands descriptors over with the first byte of their frame.
            return if have.is_empty() && !self.descriptors.is_empty() {
                Err(RpcError::Descriptors {
                    announced: 0,
                    found: self.descriptors.len(),
                })
            } else {
                Ok(None)
            };
        };
        let [l0, l1, l2, l3, count, reserved @ ..] = *header;
        if reserved != [0; 3] {
            return Err(RpcError::ReservedBytes);
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_BODY {
            return Err(RpcError::BodyTooLong { found: length });
        }
        let count = usize::from(count);
        if count > MAX_FDS || count > self.descriptors.len() {
            return Err(RpcError::Descriptors {
                announced: count,
                found: self.descriptors.len(),
            });
        }
        let Some(body) = have.get(HEADER_LEN..HEADER_LEN + length) else {
            return Ok(None);
        };
        let value = serde_json::from_slice(body).map_err(RpcError::Body)?;
        self.start += HEADER_LEN + length;
        Ok(Some((value, self.descriptors.drain(..count).collect())))
    }
}
