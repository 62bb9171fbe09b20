//! [`RpcHosts`]: control's `Hosts` by way of the host RPC, and the first words with the envd of a new sandbox.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use soulbox_control::{
    AtDeadline, HostCreate, HostDisk, HostFailure, HostLogLine, HostNode, HostSandbox, HostSave,
    HostSnapshot, HostTemplate, HostUsage, Hosts, NodeStatus, Started,
};
use soulbox_envd_proto::{ENVD_PORT, INIT_SIGNATURE_HEADER, InitRequest, SandboxLimits, sign_init};
use soulbox_ingress::{Ingress, Upstream};
use soulbox_types::{Egress, Epoch, Limits, MiB, MilliCpu, SandboxId, UnixMillis};
use soulbox_wire::host::{self, HostErrorKind, Reply, Request as HostRequest};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::daemon_log;
use super::startup::Startups;
use crate::rpc::{Client, RpcError};

/// How long envd may take to answer `/init`.
const INIT_WITHIN: Duration = Duration::from_secs(10);
/// Processes and threads of a sandbox whose template says nothing of it, as none does yet.
pub(super) const PIDS: u32 = 4096;
/// The most that is read of an envd that refuses.
const MAX_REFUSAL: usize = 4096;

/// The one host of this server.
pub(super) struct RpcHosts {
    client: Client,
    /// Set once, right after control was made: the proxy needs control to find sandboxes.
    ingress: OnceLock<Ingress>,
    startups: Startups,
    templates_seen: watch::Sender<Vec<host::HostTemplate>>,
}

impl RpcHosts {
    pub(super) fn new(client: Client) -> Self {
        Self {
            templates_seen: watch::Sender::default(),
            startups: Startups::new(client.clone()),
            client,
            ingress: OnceLock::new(),
        }
    }

    /// Where connections to envd go for the first request of a client.
    pub(super) fn park_in(&self, ingress: Ingress) {
        // A second call would mean a second proxy; the first one stays.
        let _ = self.ingress.set(ingress);
    }

    /// The host's templates, whenever control has asked for them.
    pub(super) fn templates_seen(&self) -> watch::Receiver<Vec<host::HostTemplate>> {
        self.templates_seen.subscribe()
    }

    async fn request(&self, request: HostRequest) -> Result<(Reply, Vec<OwnedFd>), HostFailure> {
        self.client.request(request).await.map_err(failure)
    }

    /// Has the host make a sandbox, and tells its envd who it is.
    async fn begin(
        &self,
        sandbox: &HostCreate,
        request: impl FnOnce(host::Create) -> HostRequest + Send,
    ) -> Result<(host::Created, Upstream), HostFailure> {
        let request = request(command(sandbox));
        let (Reply::Created(created), descriptors) = self.request(request).await? else {
            return Err(unexpected());
        };
        let socket = connected(descriptors).map_err(HostFailure::Init)?;
        let init = introduction(sandbox, created.restored).map_err(HostFailure::Init)?;
        let initialised =
            tokio::time::timeout(INIT_WITHIN, initialise(socket, &init, &created.init_secret));
        match initialised.await {
            Ok(Ok(upstream)) => Ok((created, upstream)),
            // Control ends what is left.
            Ok(Err(reason)) => Err(HostFailure::Init(reason)),
            Err(_) => Err(HostFailure::Init(format!(
                "no answer within {} s",
                INIT_WITHIN.as_secs()
            ))),
        }
    }

    async fn done(&self, request: HostRequest) -> Result<(), HostFailure> {
        match self.request(request).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

#[async_trait]
impl Hosts for RpcHosts {
    async fn create(&self, sandbox: &HostCreate) -> Result<Started, HostFailure> {
        let (created, upstream) = self.begin(sandbox, HostRequest::Create).await?;
        // Programs that are restored run already.
        if !created.restored {
            let started = self.startups.start(sandbox).await;
            started.map_err(HostFailure::Init)?;
        }
        if let Some(ingress) = self.ingress.get() {
            ingress.park(&sandbox.sandbox_id, ENVD_PORT, upstream);
        }
        Ok(Started {
            started_at: UnixMillis(created.started_at),
        })
    }

    async fn prepare(&self, sandbox: &HostCreate) -> Result<(), HostFailure> {
        let begun = self.begin(sandbox, HostRequest::Prepare).await;
        if matches!(begun, Err(HostFailure::Init(_))) {
            self.abandon(&sandbox.sandbox_id).await?;
        }
        begun.map(drop)
    }

    async fn replace(&self, sandbox: &HostCreate) -> Result<(), HostFailure> {
        let sandbox_id = sandbox.sandbox_id.to_string();
        let epoch = sandbox.epoch.0;
        self.done(HostRequest::Replace { sandbox_id, epoch })
            .await?;
        if let Some(ingress) = self.ingress.get() {
            // Their other ends are gone.
            ingress.forget(&sandbox.sandbox_id);
        }
        if !goes_on(sandbox) {
            let started = self.startups.start(sandbox).await;
            started.map_err(HostFailure::Init)?;
        }
        Ok(())
    }

    async fn abandon(&self, sandbox_id: &SandboxId) -> Result<(), HostFailure> {
        let sandbox_id = sandbox_id.to_string();
        self.done(HostRequest::Abandon { sandbox_id }).await
    }

    async fn kill(&self, sandbox_id: &SandboxId, epoch: Epoch) -> Result<(), HostFailure> {
        if let Some(ingress) = self.ingress.get() {
            ingress.forget(sandbox_id);
        }
        self.done(HostRequest::Kill {
            sandbox_id: sandbox_id.to_string(),
            epoch: epoch.0,
        })
        .await
    }

    async fn set_deadline(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        deadline: UnixMillis,
    ) -> Result<(), HostFailure> {
        let sandbox_id = sandbox_id.to_string();
        self.done(HostRequest::SetDeadline {
            sandbox_id,
            epoch: epoch.0,
            deadline: deadline.0,
        })
        .await
    }

    async fn set_egress(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        egress: &Egress,
    ) -> Result<(), HostFailure> {
        self.done(HostRequest::SetEgress {
            sandbox_id: sandbox_id.to_string(),
            epoch: epoch.0,
            egress: egress.into(),
        })
        .await
    }

    async fn list(&self) -> Result<Vec<HostSandbox>, HostFailure> {
        match self.request(HostRequest::List).await? {
            (Reply::Sandboxes(sandboxes), _) => sandboxes.into_iter().map(listed).collect(),
            _ => Err(unexpected()),
        }
    }

    async fn usage(&self) -> Result<Vec<HostUsage>, HostFailure> {
        match self.request(HostRequest::Usage).await? {
            (Reply::Usage(all), _) => all.into_iter().map(usage).collect(),
            _ => Err(unexpected()),
        }
    }

    async fn templates(&self) -> Result<Vec<HostTemplate>, HostFailure> {
        match self.request(HostRequest::Templates).await? {
            (Reply::Templates(templates), _) => {
                self.templates_seen.send_replace(templates.clone());
                templates.into_iter().map(template).collect()
            }
            _ => Err(unexpected()),
        }
    }

    async fn logs(
        &self,
        sandbox_id: &SandboxId,
        access_token: Option<&str>,
        after: u64,
    ) -> Result<Vec<HostLogLine>, HostFailure> {
        let request = HostRequest::Dial {
            sandbox_id: sandbox_id.to_string(),
            port: ENVD_PORT,
        };
        let (Reply::Dialled, descriptors) = self.request(request).await? else {
            return Err(unexpected());
        };
        let socket = connected(descriptors).map_err(HostFailure::Failed)?;
        daemon_log::read(socket, access_token, after)
            .await
            .map_err(HostFailure::Failed)
    }

    async fn save(&self, save: &HostSave) -> Result<HostSnapshot, HostFailure> {
        if let Some(ingress) = self.ingress.get() {
            // Connections into it end with it, or are of no use to a copy.
            ingress.forget(&save.sandbox_id);
        }
        let request = HostRequest::Save(host::Save {
            sandbox_id: save.sandbox_id.to_string(),
            epoch: save.epoch.0,
            snapshot_id: save.snapshot_id.clone(),
            memory: save.memory,
            after: if save.end {
                host::After::End
            } else {
                host::After::GoOn
            },
        });
        match self.request(request).await? {
            (Reply::Saved(saved), _) => snapshot(saved),
            _ => Err(unexpected()),
        }
    }

    async fn delete_snapshot(&self, snapshot_id: &str) -> Result<(), HostFailure> {
        self.done(HostRequest::DeleteSnapshot {
            snapshot_id: snapshot_id.to_owned(),
        })
        .await
    }

    async fn snapshots(&self) -> Result<Vec<HostSnapshot>, HostFailure> {
        match self.request(HostRequest::Snapshots).await? {
            (Reply::Snapshots(all), _) => all.into_iter().map(snapshot).collect(),
            _ => Err(unexpected()),
        }
    }

    async fn node(&self) -> Result<HostNode, HostFailure> {
        match self.request(HostRequest::Node).await? {
            (Reply::Node(described), _) => Ok(node(*described)),
            _ => Err(unexpected()),
        }
    }

    async fn set_node_status(&self, status: NodeStatus) -> Result<(), HostFailure> {
        self.done(HostRequest::SetNodeStatus(match status {
            NodeStatus::Ready => host::NodeStatus::Ready,
            NodeStatus::Draining => host::NodeStatus::Draining,
            NodeStatus::Unhealthy => host::NodeStatus::Unhealthy,
            NodeStatus::Standby => host::NodeStatus::Standby,
        }))
        .await
    }
}

/// Whether its processes go on from a snapshot.
fn goes_on(sandbox: &HostCreate) -> bool {
    sandbox.snapshot.as_ref().is_some_and(|it| it.memory)
}

fn command(sandbox: &HostCreate) -> host::Create {
    host::Create {
        sandbox_id: sandbox.sandbox_id.to_string(),
        epoch: sandbox.epoch.0,
        build_id: sandbox.build_id.to_string(),
        memory_mib: sandbox.limits.memory.0,
        cpu_milli: sandbox.limits.cpu.0,
        pids: sandbox.limits.pids,
        disk_mib: sandbox.limits.disk.0,
        egress: (&sandbox.egress).into(),
        deadline: sandbox.deadline.0,
        at_deadline: match sandbox.at_deadline {
            AtDeadline::Kill => host::AtDeadline::Kill,
            AtDeadline::Pause { memory } => host::AtDeadline::Pause { memory },
        },
        snapshot: sandbox.snapshot.as_ref().map(|from| host::FromSnapshot {
            snapshot_id: from.snapshot_id.clone(),
            memory: from.memory,
        }),
        layers: Vec::new(),
    }
}

/// What envd is told first.
fn introduction(sandbox: &HostCreate, restored: bool) -> Result<InitRequest, String> {
    // A boot begins with random numbers of its own. What nobody wanted from a snapshot is restored from its build's, as many others are.
    let is_copy = restored && sandbox.snapshot.as_ref().is_none_or(|it| it.is_copy);
    let generation = is_copy.then(generation).transpose()?;
    Ok(InitRequest {
        generation,
        env_vars: (!sandbox.env.is_empty()).then(|| sandbox.env.clone()),
        access_token: sandbox.access_token.clone(),
        default_user: Some(sandbox.default_user.clone()),
        default_workdir: Some(sandbox.default_workdir.clone()),
        sandbox_id: Some(sandbox.sandbox_id.to_string()),
        template_id: Some(sandbox.template_id.to_string()),
        limits: Some(SandboxLimits {
            memory_bytes: sandbox.limits.memory.bytes(),
            cpu_millis: sandbox.limits.cpu.0,
            disk_bytes: sandbox.limits.disk.bytes(),
        }),
        ..InitRequest::default()
    })
}

/// What no two copies have in common.
fn generation() -> Result<String, String> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    Ok(hex::encode(random))
}

/// Tells a new envd who it is; its connection is then ready for a client's request.
pub(super) async fn initialise(
    socket: TcpStream,
    init: &InitRequest,
    secret: &str,
) -> Result<Upstream, String> {
    let secret = hex::decode(secret).map_err(|_| "the secret is not hex".to_owned())?;
    let body = serde_json::to_vec(init).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/init")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header(INIT_SIGNATURE_HEADER, sign_init(&secret, &body))
        .body(axum::body::Body::new(Full::from(body)))
        .map_err(|error| error.to_string())?;
    let mut upstream = Upstream::open(socket)
        .await
        .map_err(|error| crate::failure::chain(&error))?;
    let response = upstream
        .call(request)
        .await
        .map_err(|error| crate::failure::chain(&error))?;
    let status = response.status();
    // To its end: only then is the connection free. It is a guest that speaks.
    let body = Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await;
    if status == StatusCode::NO_CONTENT && body.is_ok() {
        return Ok(upstream);
    }
    let text = body
        .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
        .unwrap_or_default();
    Err(format!("status {status}: {}", text.escape_debug()))
}

/// The one descriptor of a reply as a socket.
pub(super) fn connected(descriptors: Vec<OwnedFd>) -> Result<TcpStream, String> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|descriptors| {
        format!(
            "the host sent {} descriptors instead of one",
            descriptors.len()
        )
    })?;
    let socket = std::net::TcpStream::from(descriptor);
    socket
        .set_nonblocking(true)
        .and_then(|()| TcpStream::from_std(socket))
        .map_err(|error| error.to_string())
}

fn failure(error: RpcError) -> HostFailure {
    match error {
        RpcError::Host(error) => match error.kind {
            HostErrorKind::NotFound => HostFailure::NotFound,
            HostErrorKind::StaleEpoch => HostFailure::StaleEpoch,
            HostErrorKind::NotLive => HostFailure::NotLive,
            HostErrorKind::BeingPaused => HostFailure::BeingPaused,
            HostErrorKind::AlreadyExists => HostFailure::AlreadyExists,
            HostErrorKind::PortClosed => HostFailure::PortClosed,
            HostErrorKind::TemplateMissing => HostFailure::TemplateMissing,
            HostErrorKind::NoCapacity => HostFailure::NoCapacity(error.message),
            HostErrorKind::NotReady => HostFailure::NotReady(error.message),
            HostErrorKind::Failed => HostFailure::Failed(error.message),
            HostErrorKind::Unsupported => HostFailure::Unsupported(error.message),
            HostErrorKind::CannotSave => HostFailure::CannotSave(error.message),
            HostErrorKind::Lost => HostFailure::Lost(error.message),
            HostErrorKind::SnapshotMissing => HostFailure::SnapshotMissing,
            HostErrorKind::SnapshotRefused => HostFailure::SnapshotRefused(error.message),
        },
        other => HostFailure::Unreachable(crate::failure::chain(&other)),
    }
}

fn unexpected() -> HostFailure {
    HostFailure::Failed("the answer is of another kind".to_owned())
}

fn malformed(error: &soulbox_types::IdError) -> HostFailure {
    HostFailure::Failed(format!("the answer is malformed: {error}"))
}

pub(super) fn snapshot(saved: host::HostSnapshot) -> Result<HostSnapshot, HostFailure> {
    Ok(HostSnapshot {
        sandbox_id: saved
            .sandbox_id
            .parse()
            .map_err(|error| malformed(&error))?,
        epoch: Epoch(saved.epoch),
        build_id: saved.build_id.parse().map_err(|error| malformed(&error))?,
        memory: saved.memory,
        ended: saved.after == host::After::End,
        created_at: UnixMillis(saved.created_at),
        disk_bytes: saved.disk_bytes,
        image_bytes: saved.image_bytes,
        snapshot_id: saved.snapshot_id,
    })
}

fn listed(sandbox: host::HostSandbox) -> Result<HostSandbox, HostFailure> {
    Ok(HostSandbox {
        sandbox_id: sandbox
            .sandbox_id
            .parse()
            .map_err(|error| malformed(&error))?,
        epoch: Epoch(sandbox.epoch),
        build_id: sandbox
            .build_id
            .parse()
            .map_err(|error| malformed(&error))?,
        started_at: UnixMillis(sandbox.started_at),
        deadline: UnixMillis(sandbox.deadline),
        egress: Egress::try_from(&sandbox.egress)
            .map_err(|error| HostFailure::Failed(format!("the answer is malformed: {error}")))?,
    })
}

fn usage(usage: host::HostUsage) -> Result<HostUsage, HostFailure> {
    Ok(HostUsage {
        sandbox_id: usage
            .sandbox_id
            .parse()
            .map_err(|error| malformed(&error))?,
        cpu_micros: usage.cpu_micros,
        memory: usage.memory,
        cache: usage.cache,
        processes: usage.processes,
        disk: usage.disk,
        received: usage.received,
        sent: usage.sent,
        oom_kills: usage.oom_kills,
    })
}

fn node(node: host::Node) -> HostNode {
    HostNode {
        id: node.id,
        instance: node.instance,
        status: match node.status {
            host::NodeStatus::Ready => NodeStatus::Ready,
            host::NodeStatus::Draining => NodeStatus::Draining,
            host::NodeStatus::Unhealthy => NodeStatus::Unhealthy,
            host::NodeStatus::Standby => NodeStatus::Standby,
        },
        status_changed_at: UnixMillis(node.status_changed_at),
        sandboxes: node.sandboxes,
        starting: node.starting,
        create_successes: node.create_successes,
        create_fails: node.create_fails,
        creates_ahead: node.creates_ahead,
        slots_ahead: node.slots_ahead,
        version: node.version,
        commit: node.commit,
        cpu_family: node.cpu_family,
        cpu_model: node.cpu_model,
        cpu_model_name: node.cpu_model_name,
        cpu_architecture: node.cpu_architecture,
        cpu_count: node.cpu_count,
        cpu_percent: node.cpu_percent,
        memory_used: node.memory_used,
        memory_total: node.memory_total,
        huge_pages_total: node.huge_pages_total,
        huge_pages_used: node.huge_pages_used,
        huge_pages_reserved: node.huge_pages_reserved,
        huge_page_size: node.huge_page_size,
        disks: node
            .disks
            .into_iter()
            .map(|disk| HostDisk {
                mount_point: disk.mount_point,
                device: disk.device,
                filesystem: disk.filesystem,
                used: disk.used,
                total: disk.total,
            })
            .collect(),
    }
}

fn template(template: host::HostTemplate) -> Result<HostTemplate, HostFailure> {
    Ok(HostTemplate {
        name: template.name,
        template_id: template
            .template_id
            .parse()
            .map_err(|error| malformed(&error))?,
        build_id: template
            .build_id
            .parse()
            .map_err(|error| malformed(&error))?,
        built_at: UnixMillis(template.built_at),
        limits: Limits {
            memory: MiB(template.memory_mib),
            cpu: MilliCpu::whole(template.cpu_count),
            pids: PIDS,
            disk: MiB(template.disk_mib),
        },
        default_user: template.default_user,
        default_workdir: template.default_workdir,
    })
}

#[cfg(test)]
mod tests;
