//! The conversation after the switch: output and input as binary messages, all else as JSON in text messages.
//!
//! Both directions run side by side, so that a program that does not read its input can still be seen. A client that
//! reads slowly holds its program back; one that is silent for long is given up. The program outlives all of them.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use soulbox_envd_proto::rpc::process::process_event::EndEvent;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::cause::chain;
use crate::process::{Event, InputKind, Process, Subscription};

/// How often the client is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
/// How long a message may take to leave, and how long the client may be silent.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the end of the connection may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// Close codes for applications begin here; the exit code is added.
const EXITED: u16 = 4000;
/// The close code when a signal ended the program, beyond all exit codes.
const SIGNALLED: u16 = 4256;

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Sink = SplitSink<Socket, Message>;

/// What the terminal shows.
pub(super) enum Program {
    Live {
        process: Arc<Process>,
        subscription: Subscription,
    },
    /// It ended a moment ago.
    Finished { pid: u32, end: EndEvent },
}

/// Text messages of ours.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Notice<'a> {
    Start {
        pid: u32,
    },
    #[serde(rename_all = "camelCase")]
    Exit {
        exit_code: i32,
        exited: bool,
        status: &'a str,
    },
    Error {
        message: &'a str,
    },
}

/// Text messages of the client.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Control {
    Resize { cols: u16, rows: u16 },
}

/// Ends with the program, the client, or the connection between them.
pub(super) async fn converse(socket: Socket, program: Program) {
    let (mut sink, mut stream) = socket.split();
    match program {
        Program::Live {
            process,
            subscription,
        } => {
            let presence = Presence::default();
            let (replies, replied) = mpsc::channel(1);
            let refusal = tokio::select! {
                () = show(&mut sink, subscription, replied, &presence) => None,
                refusal = listen(&mut stream, &process, replies, &presence) => refusal,
            };
            if let Some(refusal) = refusal {
                say(&mut sink, Message::Close(Some(refusal))).await;
            }
        }
        Program::Finished { pid, end } => {
            if say(&mut sink, notice(&Notice::Start { pid })).await {
                tell_end(&mut sink, &end).await;
            }
        }
    }
    // The other side closes too, or it might lose what was sent last. Without a close message of ours this sends one.
    _ = timeout(FAREWELL, async {
        if sink.close().await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    })
    .await;
}

/// Whether the client was heard of since the last look.
#[derive(Default)]
struct Presence {
    heard: AtomicBool,
    /// While the program does not take its input, nothing is read of the client.
    writing: AtomicBool,
}

/// Output, notices and pings to the client.
async fn show(
    sink: &mut Sink,
    mut subscription: Subscription,
    mut replied: mpsc::Receiver<String>,
    presence: &Presence,
) {
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = 0;
    loop {
        let message = tokio::select! {
            event = poll_fn(|context| subscription.poll_next(context)) => match event {
                Some(Event::Start { pid }) => notice(&Notice::Start { pid }),
                Some(Event::Data(_, data)) => Message::Binary(data),
                Some(Event::Keepalive) => continue,
                Some(Event::End(end)) => return tell_end(sink, &end).await,
                None => return,
            },
            Some(message) = replied.recv() => notice(&Notice::Error { message: &message }),
            _ = pings.tick() => {
                let present = presence.heard.swap(false, Ordering::Relaxed)
                    || presence.writing.load(Ordering::Relaxed);
                silent = if present { 0 } else { silent + 1 };
                if PING * silent > PATIENCE {
                    return;
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        if !say(sink, message).await {
            return;
        }
    }
}

/// Input and sizes from the client, and why it is not listened to any more, unless it left.
async fn listen(
    stream: &mut SplitStream<Socket>,
    process: &Process,
    replies: mpsc::Sender<String>,
    presence: &Presence,
) -> Option<CloseFrame> {
    loop {
        let message = match stream.next().await? {
            Ok(message) => message,
            Err(error) => return refusal(&error),
        };
        presence.heard.store(true, Ordering::Relaxed);
        let done = match message {
            Message::Binary(data) => {
                presence.writing.store(true, Ordering::Relaxed);
                let written = process.input.write(InputKind::Pty, &data).await;
                presence.writing.store(false, Ordering::Relaxed);
                written.map_err(|error| chain(&error))
            }
            Message::Text(text) => control(process, &text),
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
        };
        if let Err(message) = done
            && replies.send(message).await.is_err()
        {
            return None;
        }
    }
}

/// What a client that broke the rules is told.
fn refusal(error: &Error) -> Option<CloseFrame> {
    let code = match error {
        Error::Capacity(_) => CloseCode::Size,
        Error::Protocol(_) => CloseCode::Protocol,
        Error::Utf8(_) => CloseCode::Invalid,
        _ => return None,
    };
    Some(CloseFrame {
        code,
        reason: error.to_string().into(),
    })
}

fn control(process: &Process, text: &str) -> Result<(), String> {
    let Control::Resize { cols, rows } = serde_json::from_str(text)
        .map_err(|error| format!("invalid message: {error}; input goes in binary messages"))?;
    if cols == 0 || rows == 0 {
        return Err("cols and rows must be 1 to 65535".to_owned());
    }
    process
        .input
        .resize(Winsize {
            ws_col: cols,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        })
        .map_err(|error| chain(&error))
}

/// Whether the bytes are a text message of a client.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::http) fn understands(data: &[u8]) -> bool {
    serde_json::from_slice::<Control>(data).is_ok()
}

async fn tell_end(sink: &mut Sink, end: &EndEvent) {
    let exit = notice(&Notice::Exit {
        exit_code: end.exit_code,
        exited: end.exited,
        status: &end.status,
    });
    let code = match u16::try_from(end.exit_code) {
        Ok(0) if end.exited => CloseCode::Normal,
        Ok(code) if end.exited && code < SIGNALLED - EXITED => CloseCode::from(EXITED + code),
        _ => CloseCode::from(SIGNALLED),
    };
    if say(sink, exit).await {
        let close = CloseFrame {
            code,
            reason: end.status.clone().into(),
        };
        say(sink, Message::Close(Some(close))).await;
    }
}

fn notice(notice: &Notice<'_>) -> Message {
    // Numbers and texts always serialise.
    Message::text(serde_json::to_string(notice).unwrap_or_default())
}

/// Whether the message is on its way.
async fn say(sink: &mut Sink, message: Message) -> bool {
    timeout(PATIENCE, sink.send(message))
        .await
        .is_ok_and(|sent| sent.is_ok())
}
