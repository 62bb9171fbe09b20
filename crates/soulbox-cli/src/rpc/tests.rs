//! Both ends over a socket pair, and frames that no honest peer sends.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use soulbox_wire::host::{
    AgentFrame, Event, FrontFrame, HEADER_LEN, HostError, HostErrorKind, MAX_BODY, Reply, Request,
};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Client, Handler, RpcError, serve};

/// Answers `Dial` with the read ends of `port` pipes whose contents are 0, 1, 2 and so on; `List` never; `Templates` at once.
#[derive(Default)]
struct Pipes {
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Handler for Pipes {
    async fn handle(&self, request: Request) -> (Result<Reply, HostError>, Vec<OwnedFd>) {
        match request {
            Request::Dial { port, .. } => {
                let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(u64::from(port % 7) * 5)).await;
                self.running.fetch_sub(1, Ordering::SeqCst);
                let descriptors = (0..port).map(|at| {
                    let (reader, mut writer) = std::io::pipe().unwrap();
                    writer.write_all(&at.to_be_bytes()).unwrap();
                    OwnedFd::from(reader)
                });
                (Ok(Reply::Dialled), descriptors.collect())
            }
            Request::List => std::future::pending().await,
            Request::Templates => (Ok(Reply::Templates(Vec::new())), Vec::new()),
            _ => (
                Err(HostError {
                    kind: HostErrorKind::NotFound,
                    message: "no such sandbox".to_owned(),
                }),
                Vec::new(),
            ),
        }
    }
}

struct Agent {
    handler: Arc<Pipes>,
    events: mpsc::Sender<Event>,
    served: JoinHandle<Result<(), RpcError>>,
}

fn agent(socket: UnixStream) -> Agent {
    let handler = Arc::new(Pipes::default());
    let (events, mut receiver) = mpsc::channel(16);
    let served = tokio::spawn({
        let handler = Arc::clone(&handler);
        async move { serve(socket, handler, &mut receiver).await }
    });
    Agent {
        handler,
        events,
        served,
    }
}

fn pair() -> (Client, mpsc::Receiver<Event>, Agent) {
    let (front, back) = UnixStream::pair().unwrap();
    let (client, events) = Client::start(front);
    (client, events, agent(back))
}

fn dial(port: u16) -> Request {
    Request::Dial {
        sandbox_id: "i".to_owned(),
        port,
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future)
        .await
        .expect("within five seconds")
}

#[tokio::test]
async fn descriptors_arrive_in_order() {
    let (client, _events, _agent) = pair();
    let (reply, descriptors) = soon(client.request(dial(16))).await.unwrap();
    assert!(matches!(reply, Reply::Dialled));
    let numbers = descriptors.into_iter().map(|descriptor| {
        let mut bytes = [0; 2];
        std::fs::File::from(descriptor)
            .read_exact(&mut bytes)
            .unwrap();
        u16::from_be_bytes(bytes)
    });
    assert_eq!(numbers.collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_run_at_once_and_keep_their_descriptors() {
    let (client, _events, agent) = pair();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..2000_u16 {
        let client = client.clone();
        tasks.spawn(async move {
            let (_, descriptors) = client.request(dial(at % 9)).await.unwrap();
            assert_eq!(descriptors.len(), usize::from(at % 9));
        });
    }
    soon(async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap()
        }
    })
    .await;
    assert!(agent.handler.most.load(Ordering::SeqCst) > 10);
}

#[tokio::test]
async fn refusals_keep_their_kind() {
    let (client, _events, _agent) = pair();
    let kill = Request::Kill {
        sandbox_id: "i".to_owned(),
        epoch: 1,
    };
    let RpcError::Host(error) = soon(client.request(kill)).await.unwrap_err() else {
        panic!("not the host's error")
    };
    assert_eq!(error.kind, HostErrorKind::NotFound);
}

#[tokio::test]
async fn events_come_out() {
    let (_client, mut events, agent) = pair();
    let sent = Event::Exited {
        sandbox_id: "i1".to_owned(),
        epoch: 3,
        cause: "killed".to_owned(),
    };
    agent.events.send(sent).await.unwrap();
    let Event::Exited {
        sandbox_id, epoch, ..
    } = soon(events.recv()).await.unwrap()
    else {
        panic!("another event than was sent");
    };
    assert_eq!((sandbox_id.as_str(), epoch), ("i1", 3));
}

#[tokio::test]
async fn the_end_of_the_agent_ends_waiting_requests_at_once() {
    let (client, mut events, agent) = pair();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.request(Request::List).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.served.abort();
    assert!(matches!(
        soon(waiting).await.unwrap(),
        Err(RpcError::Closed)
    ));
    soon(client.closed()).await;
    assert!(soon(events.recv()).await.is_none());
    assert!(matches!(
        soon(client.request(Request::Templates)).await,
        Err(RpcError::Closed)
    ));
}

#[tokio::test]
async fn the_end_of_the_front_is_no_error() {
    let (client, events, agent) = pair();
    soon(client.request(Request::Templates)).await.unwrap();
    drop((client, events));
    soon(agent.served).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_request_times_out_and_is_forgotten() {
    let (front, back) = UnixStream::pair().unwrap();
    let (client, _events) = Client::start(front);
    let error = client.request(Request::List).await.unwrap_err();
    assert_eq!(error.to_string(), "no answer to `List` within 10000 ms");
    // The late reply to the first request is dropped, the second one is answered.
    let reply = |id| AgentFrame::Reply {
        id,
        result: Ok(Reply::Done),
    };
    for id in [1, 2] {
        super::frame::Frame::new(&reply(id), Vec::new())
            .unwrap()
            .send(&back)
            .await
            .unwrap();
    }
    assert!(matches!(
        client.request(Request::List).await,
        Ok((Reply::Done, _))
    ));
}

#[tokio::test]
async fn a_body_larger_than_the_socket_buffer_passes() {
    let (front, back) = UnixStream::pair().unwrap();
    let (client, _events) = Client::start(front);
    let answer = tokio::spawn(async move {
        let message = "x".repeat(4 << 20);
        let frame = AgentFrame::Reply {
            id: 1,
            result: Err(HostError {
                kind: HostErrorKind::Failed,
                message,
            }),
        };
        let descriptor = OwnedFd::from(std::io::pipe().unwrap().0);
        super::frame::Frame::new(&frame, vec![descriptor])
            .unwrap()
            .send(&back)
            .await
            .unwrap();
        back
    });
    let RpcError::Host(error) = soon(client.request(Request::List)).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(error.message.len(), 4 << 20);
    drop(soon(answer).await.unwrap());
}

#[test]
fn an_oversized_frame_is_not_made() {
    let error = HostError {
        kind: HostErrorKind::Failed,
        message: "x".repeat(MAX_BODY),
    };
    let frame = super::frame::Frame::new(
        &AgentFrame::Reply {
            id: 1,
            result: Err(error),
        },
        Vec::new(),
    );
    assert!(matches!(frame, Err(RpcError::BodyTooLong { .. })));
}

/// What the agent says about these raw bytes, sent with so many descriptors, and whether it then closed the connection.
async fn refused(bytes: &[u8], descriptors: usize) -> RpcError {
    let (mut raw, back) = std::os::unix::net::UnixStream::pair().unwrap();
    back.set_nonblocking(true).unwrap();
    let agent = agent(UnixStream::from_std(back).unwrap());
    let with = vec![raw.as_fd(); descriptors];
    soulbox_sys::fdpass::send(raw.as_fd(), bytes, &with).unwrap();
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    let error = soon(agent.served).await.unwrap().unwrap_err();
    let mut rest = Vec::new();
    // The agent may reset instead of closing when it left bytes unread; either way nothing comes.
    let _ = raw.read_to_end(&mut rest);
    assert!(rest.is_empty());
    error
}

fn framed(body: &[u8], announced: u8) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend([announced, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

#[tokio::test]
async fn malformed_frames_close_the_connection() {
    let list = serde_json::to_vec(&FrontFrame {
        id: 1,
        request: Request::List,
    })
    .unwrap();
    assert_eq!(framed(&list, 0).len(), list.len() + HEADER_LEN);

    assert!(matches!(
        refused(&framed(b"{\"id\":1}", 0), 0).await,
        RpcError::Body(_)
    ));
    assert!(matches!(
        refused(&framed(&list[..list.len() - 1], 0), 0).await,
        RpcError::Body(_)
    ));
    assert!(matches!(
        refused(&[0xff; 8], 0).await,
        RpcError::ReservedBytes
    ));
    assert!(matches!(
        refused(&[0xff, 0, 0, 0, 0, 0, 0, 0], 0).await,
        RpcError::BodyTooLong { .. }
    ));
    assert!(matches!(
        refused(&framed(&list, 0)[..12], 0).await,
        RpcError::CutShort
    ));
    assert!(matches!(
        refused(&framed(&list, 0)[..3], 0).await,
        RpcError::CutShort
    ));
    // Announced and missing, sent and not announced, and more than a request may have.
    assert!(matches!(
        refused(&framed(&list, 2), 1).await,
        RpcError::Descriptors {
            announced: 2,
            found: 1
        }
    ));
    assert!(matches!(
        refused(&framed(&list, 17), 16).await,
        RpcError::Descriptors {
            announced: 17,
            found: 16
        }
    ));
    assert!(matches!(
        refused(&framed(&list, 0), 1).await,
        RpcError::Descriptors {
            announced: 0,
            found: 1
        }
    ));
    assert!(matches!(
        refused(&framed(&list, 1), 1).await,
        RpcError::Descriptors {
            announced: 0,
            found: 1
        }
    ));
}

#[tokio::test]
async fn frames_split_at_every_byte_are_understood() {
    let (raw, back) = UnixStream::pair().unwrap();
    let _agent = agent(back);
    let list = serde_json::to_vec(&FrontFrame {
        id: 9,
        request: Request::Templates,
    })
    .unwrap();
    for byte in framed(&list, 0) {
        soulbox_sys::fdpass::send(raw.as_fd(), &[byte], &[]).unwrap();
        tokio::task::yield_now().await;
    }
    let mut incoming = super::frame::Incoming::new();
    let (frame, _) = soon(incoming.next::<AgentFrame>(&raw))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(
        frame,
        AgentFrame::Reply {
            id: 9,
            result: Ok(Reply::Templates(_))
        }
    ));
}
