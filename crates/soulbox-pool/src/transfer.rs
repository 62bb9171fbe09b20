//! The files of a snapshot as one stream of bytes: out of one pool, into another.
//!
//! It is btrfs's own stream, made by the kernel and unpacked by `btrfs receive` of btrfs-progs: owners, modes, times, extended attributes,
//! file capabilities, hard links, holes, whiteouts and sockets are what they were. Numbers of files and times of their making are not. An
//! archive of another kind would have to find each of these by itself, in a tree that a guest has written.
//!
//! A stream is believed: whoever hands it in knows that it is what was sent, and how long it is.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::image::search_path;
use crate::{PoolError, Snapshot, SnapshotDraft};

impl Snapshot {
    /// Begins to send its files. Blocks while it is read; call [`Sending::finish`] at its end.
    ///
    /// # Errors
    /// When btrfs-progs are missing, or the first step fails.
    pub fn send(&self) -> Result<Sending, PoolError> {
        let path = self.upper();
        let mut child = start(
            Command::new("btrfs")
                .args(["send", "--quiet"])
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )?;
        let stream = child.stdout.take();
        Ok(Sending {
            program: Program { child, path },
            stream,
        })
    }

    fn upper(&self) -> PathBuf {
        self.images.with_file_name("upper")
    }
}

impl SnapshotDraft {
    /// Begins to take in files that were sent: the way to fill it that is not a capture. Blocks while it is written; call
    /// [`Receiving::finish`] at its end.
    ///
    /// # Errors
    /// As [`Snapshot::send`].
    pub fn receive(&mut self) -> Result<Receiving<'_>, PoolError> {
        let path = self.folder().to_owned();
        let mut child = start(
            Command::new("btrfs")
                .args(["receive", "--quiet"])
                .arg(&path)
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        )?;
        let stream = child.stdin.take();
        Ok(Receiving {
            program: Program { child, path },
            stream,
            draft: self,
        })
    }
}

/// Files on their way out.
#[derive(Debug)]
pub struct Sending {
    program: Program,
    stream: Option<ChildStdout>,
}

impl Sending {
    /// Whether that was all.
    ///
    /// # Errors
    /// What the program said.
    pub fn finish(mut self) -> Result<(), PoolError> {
        drop(self.stream.take());
        self.program.end("send")
    }
}

impl Read for Sending {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => stream.read(buffer),
            None => Ok(0),
        }
    }
}

/// Files on their way in.
#[derive(Debug)]
pub struct Receiving<'draft> {
    program: Program,
    stream: Option<ChildStdin>,
    draft: &'draft mut SnapshotDraft,
}

impl Receiving<'_> {
    /// That was all. `disk_bytes` are those of the snapshot that was sent.
    ///
    /// # Errors
    /// What the program said; the draft is of no use then.
    pub fn finish(mut self, disk_bytes: u64) -> Result<(), PoolError> {
        drop(self.stream.take());
        self.program.end("receive")?;
        self.draft.received(disk_bytes)
    }
}

impl Write for Receiving<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Some(stream) => stream.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A program under way; ended when dropped.
#[derive(Debug)]
struct Program {
    child: Child,
    path: PathBuf,
}

impl Program {
    fn end(&mut self, doing: &'static str) -> Result<(), PoolError> {
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What cannot be read is not said; the status tells.
            let _ = stderr.read_to_string(&mut said);
        }
        let status = self
            .child
            .wait()
            .map_err(PoolError::io("wait for btrfs with", &self.path))?;
        if status.success() {
            return Ok(());
        }
        Err(PoolError::Transfer {
            doing,
            path: self.path.clone(),
            message: last_line(&said).unwrap_or_else(|| status.to_string()),
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(command: &mut Command) -> Result<Child, PoolError> {
    command
        .env_clear()
        .env("PATH", search_path())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PoolError::BtrfsMissing,
            _ => PoolError::io("start", Path::new("btrfs"))(error),
        })
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}
