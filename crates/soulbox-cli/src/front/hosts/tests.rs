//! Against an agent of the test over a real socket pair, and an envd of the test over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use soulbox_envd_proto::{SandboxUsage, verify_init};
use soulbox_ingress::{DialError, IsSought, Live, Locate};
use soulbox_wire::host::{Created, HostError};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::rpc::{Handler, serve};

const SECRET: &str = "00112233445566778899aabbccddeeff";

/// Starts every sandbox at once: its envd is this address.
struct Agent(SocketAddr);

impl Handler for Agent {
    async fn handle(&self, request: HostRequest) -> (Result<Reply, HostError>, Vec<OwnedFd>) {
        let refused = |kind| {
            Err(HostError {
                kind,
                message: "no".to_owned(),
            })
        };
        match request {
            HostRequest::Create(create)
                if create.memory_mib == 512 && create.egress == host::Egress::Open =>
            {
                let socket = std::net::TcpStream::connect(self.0).unwrap();
                (
                    Ok(Reply::Created(Created {
                        started_at: 7,
                        init_secret: SECRET.to_owned(),
                        restored: false,
                    })),
                    vec![socket.into()],
                )
            }
            // A build that starts nothing.
            HostRequest::Build { .. } => (Ok(Reply::Templates(Vec::new())), Vec::new()),
            HostRequest::Create(_) => (refused(HostErrorKind::NoCapacity), Vec::new()),
            HostRequest::Kill { epoch: 1, .. } => (Ok(Reply::Done), Vec::new()),
            HostRequest::Kill { .. } => (refused(HostErrorKind::StaleEpoch), Vec::new()),
            _ => (refused(HostErrorKind::NotFound), Vec::new()),
        }
    }
}

async fn hosts(envd: Router) -> RpcHosts {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, envd).await });
    let (front, back) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (_events, mut receiver) = mpsc::channel(1);
        serve(back, Arc::new(Agent(address)), &mut receiver).await
    });
    RpcHosts::new(Client::start(front).0)
}

fn sandbox(memory: u64) -> HostCreate {
    HostCreate {
        sandbox_id: "iabc".parse().unwrap(),
        epoch: Epoch::FIRST,
        template_id: "base".parse().unwrap(),
        build_id: "00000000-0000-4000-8000-000000000000".parse().unwrap(),
        limits: Limits {
            memory: MiB(memory),
            cpu: MilliCpu(2000),
            pids: 10,
            disk: MiB(64),
        },
        egress: Egress::Open,
        deadline: UnixMillis(9),
        access_token: Some("token".to_owned()),
        env: [("A".to_owned(), "1".to_owned())].into(),
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
        at_deadline: AtDeadline::Kill,
        snapshot: None,
    }
}

struct Nowhere(AtomicUsize);

#[async_trait]
impl Locate for Nowhere {
    fn live(&self, _: &SandboxId) -> Option<Live> {
        Some(Live {
            ended: CancellationToken::new(),
            traffic_token: None,
            inbound: Arc::default(),
        })
    }

    async fn whose(&self, _: IsSought<'_>) -> Option<SandboxId> {
        None
    }

    async fn dial(&self, _: &SandboxId, _: u16) -> Result<TcpStream, DialError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(DialError::NotFound)
    }

    async fn usage(&self, _: &SandboxId) -> Option<SandboxUsage> {
        None
    }
}

#[tokio::test]
async fn a_create_initialises_envd_by_signature_and_keeps_the_connection() {
    let (seen, mut bodies) = mpsc::channel(1);
    let init = async move |headers: axum::http::HeaderMap, body: Bytes| {
        let signature = headers[INIT_SIGNATURE_HEADER].to_str().unwrap();
        assert!(verify_init(&hex::decode(SECRET).unwrap(), &body, signature));
        seen.send(body).await.unwrap();
        StatusCode::NO_CONTENT
    };
    let hosts = hosts(
        Router::new()
            .route("/init", post(init))
            .fallback(async || "envd"),
    )
    .await;
    let nowhere = Arc::new(Nowhere(AtomicUsize::new(0)));
    let ingress = Ingress::new(nowhere.clone(), 1);
    hosts.park_in(ingress.clone());

    let started = hosts.create(&sandbox(512)).await.unwrap();
    assert_eq!(started.started_at, UnixMillis(7));
    let init: InitRequest = serde_json::from_slice(&bodies.recv().await.unwrap()).unwrap();
    assert_eq!(init.access_token.as_deref(), Some("token"));
    assert_eq!(init.env_vars, Some(sandbox(512).env));
    assert_eq!(init.sandbox_id.as_deref(), Some("iabc"));
    let limits = SandboxLimits {
        memory_bytes: 512 << 20,
        cpu_millis: 2000,
        disk_bytes: 64 << 20,
    };
    assert_eq!(init.limits, Some(limits));

    // A first request through the proxy needs no dial.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = soulbox_ingress::Server::new(Router::new(), ingress, None);
    tokio::spawn(server.serve(vec![listener], stop.clone(), std::time::Duration::ZERO));
    let mut client = Upstream::open(TcpStream::connect(address).await.unwrap())
        .await
        .unwrap();
    let request = Request::get("/")
        .header("host", "49983-iabc.localhost")
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = client
        .call(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(answer, "envd");
    assert_eq!(nowhere.0.load(Ordering::SeqCst), 0);
    stop.cancel();
}

#[tokio::test]
async fn an_envd_that_refuses_is_told_of() {
    let hosts =
        hosts(Router::new().fallback(async || (StatusCode::UNAUTHORIZED, "bad\nsignature"))).await;
    let HostFailure::Init(reason) = hosts.create(&sandbox(512)).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(reason, r"status 401 Unauthorized: bad\nsignature");
}

#[tokio::test]
async fn failures_of_the_host_keep_their_kind() {
    let hosts = hosts(Router::new()).await;
    let id = sandbox(1).sandbox_id;
    assert_eq!(
        hosts.create(&sandbox(1)).await.unwrap_err(),
        HostFailure::NoCapacity("no".to_owned())
    );
    assert_eq!(hosts.kill(&id, Epoch(1)).await, Ok(()));
    assert_eq!(
        hosts.kill(&id, Epoch(2)).await,
        Err(HostFailure::StaleEpoch)
    );
    assert_eq!(
        hosts.set_deadline(&id, Epoch(1), UnixMillis(1)).await,
        Err(HostFailure::NotFound)
    );
}

#[tokio::test]
async fn an_agent_that_is_gone_is_unreachable() {
    let (front, back) = UnixStream::pair().unwrap();
    drop(back);
    let hosts = RpcHosts::new(Client::start(front).0);
    assert!(matches!(
        hosts.list().await,
        Err(HostFailure::Unreachable(_))
    ));
}
