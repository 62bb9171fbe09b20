//! The way into a process: its stdin pipe, its terminal, or nothing.

use std::io;
use std::sync::Arc;

use rustix::termios::Winsize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::descriptor::{Descriptor, retry_interrupted};

#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("tty assigned to process, input should be written to the pty, not to stdin")]
    IsTerminal,
    #[error("tty not assigned to process")]
    NoTerminal,
    #[error("stdin not enabled or closed")]
    Closed,
    #[error("cannot close stdin for PTY process — send Ctrl+D (0x04) instead")]
    CannotCloseTerminal,
    #[error("error writing to process")]
    Write(#[source] io::Error),
    #[error("error resizing tty")]
    Resize(#[source] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputKind {
    Stdin,
    Pty,
}

pub(crate) struct Input {
    target: Target,
    /// Wakes a writer that waits for a full pipe when the input is closed or the process is gone.
    closed: CancellationToken,
}

enum Target {
    /// Writers take turns; `None` once closed.
    Pipe(Mutex<Option<Descriptor>>),
    /// Shared with the reader of the terminal's output.
    Terminal {
        master: Arc<Descriptor>,
        turn: Mutex<()>,
    },
    Nothing,
}

impl Input {
    pub(crate) fn pipe(pipe: Descriptor) -> Self {
        Self {
            target: Target::Pipe(Mutex::new(Some(pipe))),
            closed: CancellationToken::new(),
        }
    }

    pub(crate) fn terminal(master: Arc<Descriptor>) -> Self {
        Self {
            target: Target::Terminal {
                master,
                turn: Mutex::new(()),
            },
            closed: CancellationToken::new(),
        }
    }

    pub(crate) fn nothing() -> Self {
        Self {
            target: Target::Nothing,
            closed: CancellationToken::new(),
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.target, Target::Terminal { .. })
    }

    /// Writes all of `data`, waiting for the process to read it. Dropping the future may leave a part written.
    pub(crate) async fn write(&self, kind: InputKind, data: &[u8]) -> Result<(), InputError> {
        match (&self.target, kind) {
            (Target::Pipe(pipe), InputKind::Stdin) => {
                let pipe = pipe.lock().await;
                let pipe = pipe
                    .as_ref()
                    .filter(|_| !self.closed.is_cancelled())
                    .ok_or(InputError::Closed)?;
                self.write_all(pipe, data).await
            }
            (Target::Terminal { master, turn }, InputKind::Pty) => {
                let _turn = turn.lock().await;
                self.write_all(master, data).await
            }
            (Target::Terminal { .. }, InputKind::Stdin) => Err(InputError::IsTerminal),
            (Target::Pipe(_) | Target::Nothing, InputKind::Pty) => Err(InputError::NoTerminal),
            (Target::Nothing, InputKind::Stdin) => Err(InputError::Closed),
        }
    }

    /// Closes stdin; closing what is closed is no error.
    pub(crate) async fn close(&self) -> Result<(), InputError> {
        match &self.target {
            Target::Pipe(pipe) => {
                self.closed.cancel();
                pipe.lock().await.take();
                Ok(())
            }
            Target::Terminal { .. } => Err(InputError::CannotCloseTerminal),
            Target::Nothing => Ok(()),
        }
    }

    /// The process is gone: whoever still writes is told so.
    pub(crate) fn abandon(&self) {
        self.closed.cancel();
        if let Target::Pipe(pipe) = &self.target
            && let Ok(mut pipe) = pipe.try_lock()
        {
            pipe.take();
        }
    }

    pub(crate) fn resize(&self, size: Winsize) -> Result<(), InputError> {
        let Target::Terminal { master, .. } = &self.target else {
            return Err(InputError::NoTerminal);
        };
        rustix::termios::tcsetwinsize(master.get_ref(), size)
            .map_err(|errno| InputError::Resize(errno.into()))
    }

    async fn write_all(&self, descriptor: &Descriptor, mut data: &[u8]) -> Result<(), InputError> {
        while !data.is_empty() {
            let mut ready = tokio::select! {
                ready = descriptor.writable() => ready.map_err(InputError::Write)?,
                () = self.closed.cancelled() => return Err(InputError::Closed),
            };
            match ready
                .try_io(|descriptor| retry_interrupted(|| rustix::io::write(descriptor, data)))
            {
                Ok(written) => data = &data[written.map_err(InputError::Write)?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}
