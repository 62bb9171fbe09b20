//! Benches of template builds by way of the host RPC. A bench is a sandbox that only this front knows: it holds it by moving its deadline, so
//! that the host ends it when the front is gone.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use soulbox_builder::bench::{
    Bench, BenchError, Benches, Command, Exit, Guest, KnownBuild, Output,
};
use soulbox_control::clock;
use soulbox_envd_proto::{InitRequest, SandboxLimits};
use soulbox_types::{BuildId, DeathCause, Limits, MiB, MilliCpu, SandboxId};
use soulbox_wire::host::{self, Egress, HostErrorKind, HostTemplate, Reply, Request};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::guest::{GuestDaemon, told};
use super::hosts::{PIDS, connected, initialise};
use crate::rpc::{Client, RpcError};

/// How long a bench lives on without its front, and how often the front says that it is there.
const LEASE_MILLIS: u64 = 90_000;
const BEAT: Duration = Duration::from_secs(20);
/// How long envd may take to answer `/init`.
const INIT_WITHIN: Duration = Duration::from_secs(10);
/// How long after a connection broke the host's word of an end may come.
const WORD_WITHIN: Duration = Duration::from_secs(2);
const EPOCH: u64 = 1;

type Ends = Mutex<HashMap<String, watch::Sender<Option<DeathCause>>>>;

/// The benches of the one host of this server.
pub(super) struct RpcBenches {
    client: Client,
    ends: Arc<Ends>,
}

impl RpcBenches {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            ends: Arc::default(),
        }
    }

    /// Takes the news that a sandbox ended; false when it is none of these.
    pub(super) fn ended(&self, sandbox_id: &str, cause: DeathCause) -> bool {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(end) = ends.get(sandbox_id) else {
            return false;
        };
        end.send_replace(Some(cause));
        true
    }

    async fn request(&self, request: Request) -> Result<Reply, BenchError> {
        let (reply, _) = self.client.request(request).await.map_err(told)?;
        Ok(reply)
    }

    async fn done(&self, request: Request) -> Result<(), BenchError> {
        match self.request(request).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn known(&self, request: Request) -> Result<Vec<KnownBuild>, BenchError> {
        match self.request(request).await? {
            Reply::Templates(all) => Ok(all.into_iter().map(known).collect()),
            _ => Err(unexpected()),
        }
    }
}

#[async_trait]
impl Benches for RpcBenches {
    async fn templates(&self) -> Result<Vec<KnownBuild>, BenchError> {
        self.known(Request::Templates).await
    }

    async fn build(&self, build_id: &BuildId) -> Result<Option<KnownBuild>, BenchError> {
        let build_id = build_id.to_string();
        Ok(self.known(Request::Build { build_id }).await?.pop())
    }

    async fn find(&self, build_id: &BuildId, name: &str) -> Result<Option<String>, BenchError> {
        let (build_id, name) = (build_id.to_string(), name.to_owned());
        match self.request(Request::FindLayer { build_id, name }).await? {
            Reply::Layers(found) => Ok(found.into_iter().next()),
            _ => Err(unexpected()),
        }
    }

    async fn name(&self, name: &str, layer: &str) -> Result<(), BenchError> {
        let (name, layer) = (name.to_owned(), layer.to_owned());
        self.done(Request::NameLayer { name, layer }).await
    }

    async fn present(
        &self,
        build_id: &BuildId,
        layers: &[String],
    ) -> Result<Vec<String>, BenchError> {
        let (build_id, names) = (build_id.to_string(), layers.to_vec());
        match self.request(Request::Layers { build_id, names }).await? {
            Reply::Layers(present) => Ok(present),
            _ => Err(unexpected()),
        }
    }

    async fn keep(&self, build: KnownBuild) -> Result<(), BenchError> {
        self.done(Request::PutBuild(Box::new(HostTemplate {
            name: build.name,
            template_id: build.template_id,
            build_id: build.build_id,
            built_at: clock::wall().0,
            layers: build.layers,
            cpu_count: build.limits.cpu.0.div_ceil(1000),
            memory_mib: build.limits.memory.0,
            disk_mib: build.limits.disk.0,
            default_user: build.default_user,
            default_workdir: build.default_workdir,
            inherited: host::Inherited {
                env: build.env,
                start_command: build.start_command,
                ready_command: build.ready_command,
                started: build.started,
            },
        })))
        .await
    }

    async fn forget(&self, build_id: &BuildId) -> Result<(), BenchError> {
        let build_id = build_id.to_string();
        self.done(Request::DeleteBuild { build_id }).await
    }

    async fn start(
        &self,
        build_id: &BuildId,
        layers: &[String],
        limits: &Limits,
    ) -> Result<Box<dyn Bench>, BenchError> {
        let mut random = [0; 20];
        getrandom::fill(&mut random).map_err(|error| BenchError::Failed(error.to_string()))?;
        let sandbox_id = SandboxId::from_random(random).to_string();
        getrandom::fill(&mut random).map_err(|error| BenchError::Failed(error.to_string()))?;
        // Programs inside reach the daemon too, and have no business with it.
        let token = hex::encode(random);
        let (sender, end) = watch::channel(None);
        let mut bench = RpcBench {
            daemon: GuestDaemon {
                client: self.client.clone(),
                sandbox_id: sandbox_id.clone(),
                access_token: Some(token.clone()),
            },
            end,
            ends: Arc::downgrade(&self.ends),
            holding: None,
            over: false,
        };
        self.ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(sandbox_id.clone(), sender);
        let create = Request::Create(host::Create {
            sandbox_id: sandbox_id.clone(),
            epoch: EPOCH,
            build_id: build_id.to_string(),
            memory_mib: limits.memory.0,
            cpu_milli: limits.cpu.0,
            pids: limits.pids,
            disk_mib: limits.disk.0,
            egress: Egress::Open,
            deadline: until(),
            at_deadline: host::AtDeadline::Kill,
            snapshot: None,
            layers: layers.to_vec(),
        });
        // From here on the bench is ended when it is dropped.
        let (reply, descriptors) = self.client.request(create).await.map_err(told)?;
        let Reply::Created(created) = reply else {
            return Err(unexpected());
        };
        let socket = connected(descriptors).map_err(BenchError::Failed)?;
        let init = InitRequest {
            access_token: Some(token),
            default_user: Some("root".to_owned()),
            default_workdir: Some("/".to_owned()),
            limits: Some(SandboxLimits {
                memory_bytes: limits.memory.bytes(),
                cpu_millis: limits.cpu.0,
                disk_bytes: limits.disk.bytes(),
            }),
            ..InitRequest::default()
        };
        let initialised = initialise(socket, &init, &created.init_secret);
        tokio::time::timeout(INIT_WITHIN, initialised)
            .await
            .map_err(|_| BenchError::Failed("the daemon did not answer in time".to_owned()))?
            .map_err(BenchError::Failed)?;
        let holding = tokio::spawn(hold(self.client.clone(), sandbox_id));
        bench.holding = Some(holding.abort_handle());
        Ok(Box::new(bench))
    }
}

/// Moves the deadline of a bench for as long as this runs.
async fn hold(client: Client, sandbox_id: String) {
    loop {
        tokio::time::sleep(BEAT).await;
        let request = Request::SetDeadline {
            sandbox_id: sandbox_id.clone(),
            epoch: EPOCH,
            deadline: until(),
        };
        if let Err(error) = client.request(request).await {
            tracing::debug!(sandbox_id, error = %crate::failure::chain(&error), "a bench could not be held");
        }
    }
}

fn until() -> u64 {
    clock::now().plus_millis(LEASE_MILLIS).0
}

/// One sandbox of a build.
struct RpcBench {
    daemon: GuestDaemon,
    end: watch::Receiver<Option<DeathCause>>,
    ends: Weak<Ends>,
    holding: Option<AbortHandle>,
    over: bool,
}

impl RpcBench {
    /// What became of it, where only a broken connection tells so far.
    async fn explained(&self, error: BenchError) -> BenchError {
        let BenchError::Ended(reason) = error else {
            return error;
        };
        let mut end = self.end.clone();
        let word = tokio::time::timeout(WORD_WITHIN, end.wait_for(Option::is_some));
        let cause = match word.await {
            Ok(Ok(cause)) => *cause,
            _ => None,
        };
        BenchError::Ended(match cause {
            Some(DeathCause::OutOfMemory) => "it reached its memory limit".to_owned(),
            Some(cause) => cause.as_str().replace('_', " "),
            None => reason,
        })
    }

    fn kill(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        if std::mem::replace(&mut self.over, true) {
            return None;
        }
        if let Some(holding) = self.holding.take() {
            holding.abort();
        }
        let sandbox_id = self.daemon.sandbox_id.clone();
        if let Some(ends) = self.ends.upgrade() {
            ends.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&sandbox_id);
        }
        let client = self.daemon.client.clone();
        Some(async move {
            let kill = Request::Kill {
                sandbox_id,
                epoch: EPOCH,
            };
            // What is not there any more has ended, and what cannot be reached ends at its deadline.
            if let Err(error) = client.request(kill).await {
                tracing::debug!(error = %crate::failure::chain(&error), "a bench was not there to be ended");
            }
        })
    }
}

impl Drop for RpcBench {
    fn drop(&mut self) {
        if let Some(kill) = self.kill()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(kill);
        }
    }
}

#[async_trait]
impl Guest for RpcBench {
    async fn run(
        &self,
        command: &Command,
        output: mpsc::Sender<Output>,
    ) -> Result<Exit, BenchError> {
        match self.daemon.run(command, output).await {
            Err(error) => Err(self.explained(error).await),
            ended => ended,
        }
    }
}

#[async_trait]
impl Bench for RpcBench {
    async fn send(&self, file: &Path, to: &str) -> Result<(), BenchError> {
        match self.daemon.send_file(file, to).await {
            Err(error) => Err(self.explained(error).await),
            sent => sent,
        }
    }

    async fn commit(&self, layer: &str) -> Result<(), BenchError> {
        let commit = Request::CommitLayer {
            sandbox_id: self.daemon.sandbox_id.clone(),
            epoch: EPOCH,
            layer: layer.to_owned(),
        };
        match self.daemon.client.request(commit).await {
            Ok((Reply::Done, _)) => Ok(()),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(self.explained(told(error)).await),
        }
    }

    async fn snapshot(&self, build_id: &BuildId) -> Result<Result<String, String>, BenchError> {
        // One of other guest programs, or one that nobody noted, since its front ended.
        let earlier = Request::DeleteSnapshot {
            snapshot_id: soulbox_control::snapshot_of_build(build_id),
        };
        match self.daemon.client.request(earlier).await.map_err(told)? {
            (Reply::Done, _) => {}
            _ => return Err(unexpected()),
        }
        let save = Request::Save(host::Save {
            sandbox_id: self.daemon.sandbox_id.clone(),
            epoch: EPOCH,
            snapshot_id: soulbox_control::snapshot_of_build(build_id),
            memory: true,
            after: host::After::GoOn,
        });
        match self.daemon.client.request(save).await {
            Ok((Reply::Saved(saved), _)) => Ok(Ok(saved.snapshot_id)),
            Ok(_) => Err(unexpected()),
            Err(RpcError::Host(error))
                if matches!(
                    error.kind,
                    HostErrorKind::Unsupported | HostErrorKind::CannotSave
                ) =>
            {
                Ok(Err(error.message))
            }
            Err(error) => Err(self.explained(told(error)).await),
        }
    }

    async fn end(mut self: Box<Self>) {
        if let Some(kill) = self.kill() {
            kill.await;
        }
    }
}

pub(super) fn known(build: HostTemplate) -> KnownBuild {
    KnownBuild {
        name: build.name,
        template_id: build.template_id,
        build_id: build.build_id,
        layers: build.layers,
        limits: Limits {
            memory: MiB(build.memory_mib),
            cpu: MilliCpu::whole(build.cpu_count),
            pids: PIDS,
            disk: MiB(build.disk_mib),
        },
        default_user: build.default_user,
        default_workdir: build.default_workdir,
        env: build.inherited.env,
        start_command: build.inherited.start_command,
        ready_command: build.inherited.ready_command,
        started: build.inherited.started,
    }
}

fn unexpected() -> BenchError {
    BenchError::Failed("the host's answer is of another kind".to_owned())
}
