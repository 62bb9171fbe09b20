//! From pieces of output to lines of an answer: whole characters, and few lines where much is written.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use crate::message::Line;

/// How long written text waits for more: `print` in a loop becomes a few lines, and one with pauses a line each.
const COALESCE: Duration = Duration::from_millis(30);
/// Text that does not wait.
const FULL: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// The client has gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// The answer to one execution, as far as it is written. Waits for a slow client, and with it the kernel.
pub(crate) struct Output<'a> {
    lines: &'a mpsc::Sender<Bytes>,
    channel: Channel,
    text: Vec<u8>,
    /// When the waiting text is sent.
    due: Option<Instant>,
}

impl<'a> Output<'a> {
    pub(crate) fn new(lines: &'a mpsc::Sender<Bytes>) -> Self {
        Self {
            lines,
            channel: Channel::Stdout,
            text: Vec::new(),
            due: None,
        }
    }

    pub(crate) async fn write(&mut self, channel: Channel, bytes: &[u8]) -> Result<(), Gone> {
        if channel != self.channel {
            self.finish().await?;
            self.channel = channel;
        }
        self.text.extend_from_slice(bytes);
        if self.text.len() >= FULL {
            return self.flush().await;
        }
        self.due.get_or_insert_with(|| Instant::now() + COALESCE);
        Ok(())
    }

    /// Ends when [`Output::flush`] should be called.
    pub(crate) async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Sends what is whole; the beginning of a character waits for its rest.
    pub(crate) async fn flush(&mut self) -> Result<(), Gone> {
        let rest = self.text.split_off(whole(&self.text));
        let text = std::mem::replace(&mut self.text, rest);
        self.due = None;
        self.send_text(&text).await
    }

    /// Sends everything: nothing more comes before the next line.
    pub(crate) async fn finish(&mut self) -> Result<(), Gone> {
        let text = std::mem::take(&mut self.text);
        self.due = None;
        self.send_text(&text).await
    }

    pub(crate) async fn line(&mut self, line: Bytes) -> Result<(), Gone> {
        self.finish().await?;
        self.lines.send(line).await.map_err(|_| Gone)
    }

    async fn send_text(&self, text: &[u8]) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(text);
        let timestamp = jiff::Timestamp::now().to_string();
        let line = match self.channel {
            Channel::Stdout => Line::Stdout {
                text: &text,
                timestamp,
            },
            Channel::Stderr => Line::Stderr {
                text: &text,
                timestamp,
            },
        };
        self.lines.send(line.bytes()).await.map_err(|_| Gone)
    }
}

/// The length of `bytes` without a character at its end that may still become whole.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // An error with a length is in the text, not at its end; it is shown as such. The end is then looked at alone.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => {
            let tail = bytes.len().saturating_sub(3);
            (tail..bytes.len())
                .find(|at| {
                    matches!(std::str::from_utf8(&bytes[*at..]),
                        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
                })
                .unwrap_or(bytes.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(pieces: &[&[u8]]) -> Vec<String> {
        let (send, mut receive) = mpsc::channel(16);
        let mut output = Output::new(&send);
        for piece in pieces {
            output.write(Channel::Stdout, piece).await.unwrap();
            output.flush().await.unwrap();
        }
        output.finish().await.unwrap();
        drop(send);
        let mut texts = Vec::new();
        while let Some(line) = receive.recv().await {
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            texts.push(value["text"].as_str().unwrap().to_owned());
        }
        texts
    }

    #[tokio::test(flavor = "current_thread")]
    async fn characters_are_not_torn() {
        let text = "a€b".as_bytes();
        assert_eq!(lines_of(&[&text[..2], &text[2..]]).await, ["a", "€b"]);
        assert_eq!(
            lines_of(&[b"\xffx\xe2", b"\x82\xac"]).await,
            ["\u{fffd}x", "€"]
        );
        assert_eq!(lines_of(&[b"a\xe2"]).await, ["a", "\u{fffd}"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_other_channel_sends_what_waits() {
        let (send, mut receive) = mpsc::channel(16);
        let mut output = Output::new(&send);
        output.write(Channel::Stdout, b"out").await.unwrap();
        assert!(receive.try_recv().is_err(), "it waits for more");
        output.write(Channel::Stderr, b"err").await.unwrap();
        let line = receive.try_recv().unwrap();
        assert!(line.starts_with(b"{\"type\":\"stdout\",\"text\":\"out\",\"timestamp\":\""));
        drop(receive);
        assert_eq!(output.finish().await, Err(Gone));
    }
}
