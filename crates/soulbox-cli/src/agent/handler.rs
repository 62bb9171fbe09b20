//! What the front may ask of the agent: host RPC in, calls of [`Host`] out.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use soulbox_host::Host;
use soulbox_host::runtime::Runtime;
use soulbox_types::{Egress, Epoch, UnixMillis};
use soulbox_wire::host::{FrontSettings, Hello, HostError, HostErrorKind, Reply, Request};

use tokio::net::{TcpStream, UnixStream};

use super::node::NodeAccount;
use crate::rpc::Handler;

/// Shorter than the front waits for it.
const DATABASE_WITHIN: Duration = Duration::from_secs(8);

/// Performs the requests of fronts.
pub(super) struct Requests<R: Runtime> {
    host: Host<R>,
    settings: FrontSettings,
    listeners: Vec<OwnedFd>,
    node: Arc<NodeAccount>,
}

type Answer = (Result<Reply, HostError>, Vec<OwnedFd>);

impl<R: Runtime> Requests<R> {
    /// `listeners` are those that `settings` names, in the same order, the administrator's last.
    pub(super) fn new(
        host: Host<R>,
        settings: FrontSettings,
        listeners: Vec<TcpListener>,
        node: NodeAccount,
    ) -> Self {
        Self {
            node: Arc::new(node),
            host,
            settings,
            listeners: listeners.into_iter().map(OwnedFd::from).collect(),
        }
    }
}

impl<R: Runtime> Handler for Requests<R> {
    async fn handle(&self, request: Request) -> Answer {
        match request {
            Request::Hello => return self.hello().await,
            Request::DialDatabase => return self.dial_database().await,
            _ => {}
        }
        let (host, node) = (self.host.clone(), Arc::clone(&self.node));
        // A task of its own: what was begun is finished also when the front goes away meanwhile.
        match tokio::spawn(async move { perform(&host, &node, request).await }).await {
            Ok(answer) => answer,
            Err(error) => (Err(failed(error.to_string())), Vec::new()),
        }
    }
}

impl<R: Runtime> Requests<R> {
    async fn dial_database(&self) -> Answer {
        let Some(url) = self.settings.database_url.clone() else {
            let none = "this server has no database elsewhere".to_owned();
            return (Err(failed(none)), Vec::new());
        };
        match dial_database(&url).await {
            Ok(socket) => (Ok(Reply::Dialled), vec![socket]),
            Err(error) => (Err(error), Vec::new()),
        }
    }

    async fn hello(&self) -> Answer {
        let listeners: Result<Vec<_>, _> = self.listeners.iter().map(OwnedFd::try_clone).collect();
        match (listeners, self.host.templates().await) {
            (Ok(listeners), Ok(templates)) => {
                let hello = Hello {
                    now: soulbox_host::clock::now().0,
                    settings: self.settings.clone(),
                    sandboxes: self.host.list(),
                    templates,
                };
                (Ok(Reply::Hello(Box::new(hello))), listeners)
            }
            (Err(error), _) => (Err(failed(error.to_string())), Vec::new()),
            (_, Err(error)) => (Err(error), Vec::new()),
        }
    }
}

/// Connects to the database for the front, which has no sockets of its own.
async fn dial_database(url: &str) -> Result<OwnedFd, HostError> {
    let options =
        soulbox_store::postgres_options(url).map_err(|error| failed(error.to_string()))?;
    let port = options.get_port();
    let connected = async {
        match options.get_socket() {
            Some(directory) => {
                let path = directory.join(format!(".s.PGSQL.{port}"));
                UnixStream::connect(path)
                    .await?
                    .into_std()
                    .map(OwnedFd::from)
            }
            None => {
                let socket = TcpStream::connect((options.get_host(), port)).await?;
                socket.set_nodelay(true)?;
                socket.into_std().map(OwnedFd::from)
            }
        }
    };
    match tokio::time::timeout(DATABASE_WITHIN, connected).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(failed(format!("the database cannot be reached: {error}"))),
        Err(_) => Err(failed("the database cannot be reached in time".to_owned())),
    }
}

async fn perform<R: Runtime>(host: &Host<R>, node: &NodeAccount, request: Request) -> Answer {
    let done = |result: Result<(), HostError>| (result.map(|()| Reply::Done), Vec::new());
    match request {
        Request::Hello | Request::DialDatabase => (
            Err(failed("this was answered already".to_owned())),
            Vec::new(),
        ),
        Request::Create(create) => {
            let starting = match node.begin() {
                Ok(starting) => starting,
                Err(error) => return (Err(error), Vec::new()),
            };
            match host.create(create).await {
                Ok((created, envd)) => {
                    starting.succeeded();
                    (Ok(Reply::Created(created)), vec![envd])
                }
                Err(error) => (Err(error), Vec::new()),
            }
        }
        Request::Prepare(create) => match host.prepare(create).await {
            Ok((created, envd)) => (Ok(Reply::Created(created)), vec![envd]),
            Err(error) => (Err(error), Vec::new()),
        },
        Request::Replace { sandbox_id, epoch } => {
            done(host.replace(&sandbox_id, Epoch(epoch)).await)
        }
        Request::Abandon { sandbox_id } => {
            host.abandon(&sandbox_id).await;
            done(Ok(()))
        }
        Request::Kill { sandbox_id, epoch } => done(host.kill(&sandbox_id, Epoch(epoch)).await),
        Request::SetDeadline {
            sandbox_id,
            epoch,
            deadline,
        } => done(
            host.set_deadline(&sandbox_id, Epoch(epoch), UnixMillis(deadline))
                .await,
        ),
        Request::SetEgress {
            sandbox_id,
            epoch,
            egress,
        } => match Egress::try_from(&egress) {
            Ok(egress) => done(host.set_egress(&sandbox_id, Epoch(epoch), egress).await),
            Err(error) => (Err(failed(error.to_string())), Vec::new()),
        },
        Request::Dial { sandbox_id, port } => match host.dial(&sandbox_id, port).await {
            Ok(stream) => (Ok(Reply::Dialled), vec![stream]),
            Err(error) => (Err(error), Vec::new()),
        },
        Request::List => (Ok(Reply::Sandboxes(host.list())), Vec::new()),
        Request::Usage => (host.usage().await.map(Reply::Usage), Vec::new()),
        Request::Node => {
            let sandboxes = u32::try_from(host.list().len()).unwrap_or(u32::MAX);
            (
                Ok(Reply::Node(Box::new(
                    node.describe(sandboxes, host.warm_levels()),
                ))),
                Vec::new(),
            )
        }
        Request::SetNodeStatus(status) => {
            node.set(status);
            (Ok(Reply::Done), Vec::new())
        }
        Request::Templates => (host.templates().await.map(Reply::Templates), Vec::new()),
        Request::CommitLayer {
            sandbox_id,
            epoch,
            layer,
        } => done(host.commit_layer(&sandbox_id, Epoch(epoch), &layer).await),
        Request::FindLayer { build_id, name } => {
            let found = host.find_layer(&build_id, &name).await;
            let found = found.map(|layer| Reply::Layers(layer.into_iter().collect()));
            (found, Vec::new())
        }
        Request::NameLayer { name, layer } => done(host.name_layer(&name, &layer).await),
        Request::Layers { build_id, names } => {
            let present = host.layers(&build_id, names).await;
            (present.map(Reply::Layers), Vec::new())
        }
        Request::CollectLayers {
            older_than,
            dry_run,
        } => {
            let collected = host.collect_layers(Duration::from_secs(older_than), dry_run);
            (collected.await.map(Reply::Layers), Vec::new())
        }
        Request::Build { build_id } => {
            let found = host.build(&build_id).await;
            let found = found.map(|build| Reply::Templates(build.into_iter().collect()));
            (found, Vec::new())
        }
        Request::PutBuild(build) => done(host.put_build(*build).await),
        Request::DeleteBuild { build_id } => done(host.delete_build(build_id).await),
        Request::Save(save) => (host.save(save).await.map(Reply::Saved), Vec::new()),
        Request::DeleteSnapshot { snapshot_id } => done(host.delete_snapshot(snapshot_id).await),
        Request::Snapshots => (host.snapshots().await.map(Reply::Snapshots), Vec::new()),
        Request::SealSnapshot { snapshot_id } => {
            let sealed = host.seal_snapshot(snapshot_id).await;
            (sealed.map(Reply::Sealed), Vec::new())
        }
        Request::DropLocalSnapshot { snapshot_id } => {
            done(host.drop_local_snapshot(snapshot_id).await)
        }
        Request::SnapshotCopies => {
            let copies = host.snapshot_copies().await;
            (copies.map(Reply::SnapshotCopies), Vec::new())
        }
        Request::CollectStore { dry_run } => {
            let collected = host.collect_store(dry_run).await;
            (collected.map(Reply::Collected), Vec::new())
        }
    }
}

fn failed(message: String) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message,
    }
}
